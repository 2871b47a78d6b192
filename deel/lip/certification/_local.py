"""How fast leads change near a sample, through Dense layers with ReLU.

Note [Chain within a radius]

Within a radius r of a sample, the value z_j before an activation stays within
`z_j +- r s_j`, with s_j the norm of the j-th row of R; see [Chain]. There a
ReLU that cannot become positive is constant: for any two points of the ball,
the difference behind it is zero. One that cannot become negative is linear.
What can change are the others; see [Slopes of some values]. Where none is left,
the network is linear, and its constant is that of its Jacobian.

Leads change by at most r times their constants within r, so a prediction stays
within r if that is less than each lead; and within any smaller radius by which
the constants of r may be multiplied. The largest r is found by bisection.
Whether constants grow with r does not matter: what is returned is proven by
the constants of its own ball, or of a larger one.

Note [Rounding within a radius]

Values z_j are computed in float64. Those of the network of real numbers differ
by the proven error of what enters the layer, times the norm of the kernel's
column, and by `gamma_n` of the sum. The rows of R have errors as in
[Rounding of the chain].
"""

import dataclasses
import math

import keras
import numpy as np

from deel.lip._numerics.activations import facts_of
from deel.lip.certification._chain import Ellipsoid
from deel.lip.certification._chain import behind_some_slopes
from deel.lip.certification._chain import image_of
from deel.lip.certification._chain import shortened
from deel.lip.certification._flow import joint_gain
from deel.lip.certification._rounding import FLOAT64
from deel.lip.certification.rules._steps import as_used
from deel.lip.certification.rules._steps import inference_kernel
from deel.lip.certification.rules.dense import DENSE

_EPS = float(np.finfo("float64").eps)

# Halvings of the interval of a radius, of its logarithm.
_HALVINGS = 7

# Layers that do nothing to a vector at inference.
_NOTHING = (
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
)


@dataclasses.dataclass(frozen=True)
class _Matrix:
    """A product with a kernel `(inputs, outputs)`, and its bias."""

    kernel: np.ndarray
    bias: np.ndarray
    flow: object


@dataclasses.dataclass(frozen=True)
class _Slopes:
    """An activation.

    Attributes:
        is_relu: Boolean; otherwise any with slopes from 0 to `slope`.
        slope: Float.
        flow: The `Flow` that enters it; None behind a matrix of the same layer.
    """

    is_relu: bool
    slope: float
    flow: object


@dataclasses.dataclass(frozen=True)
class _Factors:
    """Batch statistics: a factor for each value."""

    factors: np.ndarray
    flow: object = None


class LocalChain:
    """The Dense layers at the end of a network, near one sample after another.

    Args:
        last: `LastLayer`, or None.
        model: The model.

    Raises:
        ValueError: Where no ReLU stands between Dense layers.
    """

    def __init__(self, last, model):
        stages, stop = [], model.layers[-1]
        if last is not None:
            stages, stop = _stages_before(last.flow)
        matrices = [i for i, x in enumerate(stages) if isinstance(x, _Matrix)]
        self._stages = stages[matrices[0] :] if matrices else []
        if not any(isinstance(x, _Slopes) and x.is_relu for x in self._stages):
            raise ValueError(
                "Certificates within a radius need to know when a ReLU is "
                "constant or linear. Expected a network that ends with Dense "
                "layers, `relu` between them, and a last Dense layer without "
                "activation; batch statistics, dropout and activations whose "
                "slopes are zero or more may be there, too. "
                f"Received: local=True, {_named(stop)}"
            )
        self._columns = last.columns
        first = self._stages[0]
        start = first.flow.spread or Ellipsoid(joint_gain([first.flow]))
        image = start.image(first.kernel.T)
        if image is None:
            image = start.radius * first.kernel.T, np.zeros(1)
        rows, lost = image
        self._first = shortened(rows, float(np.linalg.norm(lost)))

    @property
    def flows(self):
        """The flows whose values at samples are asked for."""
        asked = [x for x in self._stages if not isinstance(x, _Factors)]
        return {stage.flow for stage in asked} - {None}

    def before_slopes(self, values, known):
        """What enters each activation, and how far it may be from that.

        Args:
            values: Dictionary from `flows` to arrays, in float64.
            known: Dictionary from flows to their `Computed` in float64.

        Returns:
            List with a pair of arrays `(samples, values)` for each activation.
        """
        pairs = []
        for stage in self._stages:
            if isinstance(stage, _Factors):
                continue
            if isinstance(stage, _Matrix):
                entering, error = values[stage.flow], known[stage.flow].absolute
                error = np.reshape(error, (-1, 1))
                norms = np.linalg.norm(stage.kernel, axis=0)
                sizes = np.linalg.norm(entering, axis=1)[:, None] + error
                gamma = FLOAT64.gamma(len(stage.kernel) + 2, is_product=True)
                made = (
                    entering @ stage.kernel + stage.bias,
                    (norms * error + gamma * (norms * sizes + abs(stage.bias)))
                    * (1 + 1e-9),
                )
            else:
                if stage.flow is not None:
                    error = np.reshape(known[stage.flow].absolute, (-1, 1))
                    made = values[stage.flow], error
                pairs.append(made)
        return pairs

    def leads(self, before, members, radius):
        """How fast leads change within a radius of each sample.

        Args:
            before: List of pairs of arrays, of `before_slopes`.
            members: Integer array `(samples, members)`, the classes that lead.
            radius: Array `(samples,)`.

        Returns:
            Array `(samples, members, classes)`.
        """
        return np.stack(
            [
                self._leads([(z[i], e[i]) for z, e in before], members[i], r)
                for i, r in enumerate(radius)
            ]
        )

    def _leads(self, before, members, radius):
        before = iter(before)
        (rows, error), lost, kept = self._first, None, None
        for index, stage in enumerate(self._stages):
            if isinstance(stage, _Matrix):
                if index:
                    kernel = stage.kernel[kept]
                    rows, lost, error = image_of(rows, error, kernel.T)
                kept = np.arange(stage.kernel.shape[1])
                continue
            if isinstance(stage, _Factors):
                factors = stage.factors[kept][:, None]
                error *= float(np.max(np.abs(stage.factors)))
                error += 4 * _EPS * float(np.linalg.norm(factors * rows))
                rows, lost = factors * rows, None
                continue
            z, wrong = next(before)
            z, wrong = z[kept], np.broadcast_to(wrong, z.shape)[kept]
            if stage.is_relu:
                sizes = np.linalg.norm(rows, axis=1) * (1 + 1e-9)
                sizes += error if lost is None else lost
                reach = (radius * sizes + wrong) * (1 + 1e-9)
                alive = z + reach >= 0
                kept, rows = kept[alive], rows[alive]
                changes = (z - reach <= 0)[alive]
            else:
                rows, error = stage.slope * rows, stage.slope * error
                changes = np.ones(len(kept), bool)
            order = np.argsort(changes, kind="stable")
            kept = kept[order]
            rows, error = behind_some_slopes(
                rows[order], error, int(np.sum(changes))
            )
            lost = None
        columns = self._columns[:, kept]
        leads = columns[members][:, None] - columns
        pairs = leads.shape[:2]
        leads = leads.reshape(math.prod(pairs), len(kept))
        images, lost, _ = image_of(rows, error, leads)
        found = (np.linalg.norm(images, axis=1) + lost) * (1 + 1e-9)
        return found.reshape(pairs)


def largest_radii(radii, slopes, slopes_within):
    """Radii that are proven by the constants within them.

    Args:
        radii: Function of slopes `(samples, members, classes)` that returns a
            pair of radii `(samples,)`, of real numbers and in float32.
        slopes: Array of that shape, which hold at any distance.
        slopes_within: Function of radii `(samples,)` that returns such an
            array, which holds within these.

    Returns:
        Pair of arrays `(samples,)`.
    """
    best = list(radii(slopes))
    least = radius = best[0]
    most = np.full_like(radius, np.inf)
    for step in range(_HALVINGS + 2):
        within = np.minimum(slopes, slopes_within(radius))
        found = radii(within)
        # What holds within the radius says nothing of what is beyond.
        best = [
            np.maximum(b, np.minimum(f, radius))
            for b, f in zip(best, found, strict=True)
        ]
        holds = found[0] >= radius
        least = np.where(holds, radius, least)
        most = np.where(holds, np.minimum(most, found[0]), radius)
        # All there is, where the network is linear up to there; otherwise
        # constants may differ by orders of magnitude.
        radius = np.sqrt(least) * np.sqrt(most) if step else most
    return best


def _stages_before(flow):
    """What makes a flow, from the first layer that is known here on.

    Returns:
        Pair: the stages, and the layer before them, or None.
    """
    stages = []
    while flow.call is not None:
        made = None
        if len(flow.call.inputs) == 1:
            made = _stages_of(flow.call)
        if made is None:
            return stages, flow.call.layer
        stages = made + stages
        flow = flow.call.inputs[0]
    return stages, None


def _named(layer):
    if layer is None:
        return "a network without `relu`"
    return (
        f"layer '{layer.name}' of type {type(layer).__name__}, with no `relu` "
        "between Dense layers behind it"
    )


def _stages_of(call):
    """Stages of a layer; None for one that the local chain does not know."""
    layer, (flow,) = call.layer, call.inputs
    if call.bound.method == "given" or len(flow.shape) != 2:
        return None
    kind = type(layer)
    if kind in DENSE:
        slopes = _slopes_of(layer.activation, None)
        if slopes is None:
            return None
        bias = 0.0
        if layer.bias is not None:
            bias = as_used(layer, layer.bias)
        return [_Matrix(inference_kernel(layer), bias, flow), *slopes]
    if kind is keras.layers.Activation:
        return _slopes_of(layer.activation, flow)
    if kind is keras.layers.ReLU:
        if layer.negative_slope or layer.max_value is not None:
            return None
        return [_Slopes(True, 1.0, flow)]
    if kind is keras.layers.BatchNormalization and call.bound.chain:
        # Of the identity, the rule makes the factors, with their slacks.
        size = flow.shape[-1]
        behind = call.bound.chain(Ellipsoid(1.0, np.eye(size)))
        return [_Factors(np.diag(behind.matrix), flow)]
    return [] if kind in _NOTHING else None


def _slopes_of(activation, flow):
    """Stages of an activation; None where its slopes may be negative."""
    if activation is keras.activations.relu:
        return [_Slopes(True, 1.0, flow)]
    if activation is keras.activations.linear:
        return []
    facts = facts_of(activation)
    if facts is None or facts.smallest is None or facts.smallest < 0:
        return None
    return [_Slopes(False, facts.largest, flow)]
