"""What floating point makes of the scores of a network."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from deel.lip._backend.variables import host
from deel.lip.certification._data import checked_labels
from deel.lip.certification._float64 import as_float64
from deel.lip.certification._float64 import float64
from deel.lip.certification._float64 import float64_copy
from deel.lip.certification._flow import joint_gain
from deel.lip.certification._flow import propagate
from deel.lip.certification._pieces import Piece
from deel.lip.certification._rounding import FLOAT32
from deel.lip.certification._rounding import FLOAT64
from deel.lip.certification._rounding import Computed
from deel.lip.certification._rounding import Estimated
from deel.lip.certification._rounding import Step
from deel.lip.certification._rounding import followed
from deel.lip.certification._walk import METHODS
from deel.lip.certification._walk import Walk
from deel.lip.certification._walk import final_dense
from deel.lip.certification._walk import start
from deel.lip.certification.bounds import score_gain

# Added to each norm: more than backends take for zero, see [Underflow].
_VANISHED = 1e-300

_LARGEST_DISTANCE = float(np.finfo("float32").max)


class Network:
    """What certificates need to know of a network, for one input shape."""

    def __init__(
        self, model, input_shape, constants, rounding, method=METHODS[0]
    ):
        self.model = model
        self.rounding = rounding
        self.features = math.prod(input_shape)
        walk = Walk(constants, method)
        (self.input,) = start(model, tuple(int(n) for n in input_shape))
        (self.output,) = walk.run(model, [self.input])
        walk.require_known_names()
        self.calls = walk.calls
        self.constant = joint_gain([self.output])
        self.score_constant = self.constant
        self.last = None
        last = final_dense(model, walk)
        if last is not None:
            self.last = _LastLayer(*last)
            self.score_constant = score_gain(last)
        self.copies = {}
        self.float32 = dataclasses.replace(
            FLOAT32, factors=rounding_of_factors()
        )

    @property
    def lead_constant(self):
        """The largest of the constants by which radii divide leads."""
        classes = self.model.output_shape[-1]
        # Each class leads once.
        scores = _Scores(np.eye(classes) if classes > 1 else np.ones((1, 1)))
        return float(np.max(self._slopes(scores)[np.isfinite(scores.leads)]))

    def certify(self, x, y):
        """Returns what `Certificates` has for each sample, a dictionary."""
        if not np.all(np.isfinite(x)):
            raise ValueError(
                "Samples must be finite. Received: NaN or infinite values"
            )
        classes = self.model.output_shape[-1]
        label = None if y is None else checked_labels(y, classes)
        if label is not None and len(label) != len(x):
            raise ValueError(
                "Each sample needs one label. "
                f"Received: {len(x)} samples and {len(label)} labels"
            )
        if self.rounding == "estimated":
            found = self._estimated(x)
        else:
            found = self._proven(x)
        return {**found, "label": label}

    def _estimated(self, x):
        unit = _rounding_unit()
        arithmetic = Estimated(unit, FLOAT32.smallest, FLOAT32.largest)
        known = propagate(self.calls, {self.input: Computed(1.0)}, arithmetic)
        error = known[self.output]
        norms = np.linalg.norm(x.reshape(len(x), -1).astype("float64"), axis=1)
        scores = _Scores(self._float32_scores(x))
        at_sample = error.relative * norms + error.absolute
        rounding = scores.root * at_sample
        slopes = self._slopes(scores) + scores.root * error.relative
        radius = _radius(scores.leads - 2 * rounding[:, None], slopes)
        return {
            "radius": radius,
            "prediction": scores.prediction,
            "margin": scores.margin,
            "rounding": rounding,
            "float32_radius": None,
        }

    def _proven(self, x):
        # What overflows is an infinite error, and a radius of zero.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._proven_or_zero(x)

    def _proven_or_zero(self, x):
        values, sizes = self._forward(x)
        scores = _Scores(_finite(values))
        start = Computed(1.0, zero=sizes[self.input])
        exact = propagate(self.calls, {self.input: start}, FLOAT64, sizes)
        own, _ = self._lead_errors(exact, scores, FLOAT64)
        # What is measured is the norm of what float64 computes.
        sizes = {f: sizes[f] + exact[f].absolute for f in sizes}
        given = Step(terms=1, entries=self.features)(self.float32)
        start = followed(Computed(1.0, zero=sizes[self.input]), given)
        start = dataclasses.replace(start, zero=sizes[self.input])
        rounded = propagate(
            self.calls, {self.input: start}, self.float32, sizes
        )
        seen = scores
        found = np.asarray(self.model.predict_on_batch(x), "float64")
        self._check_scores(
            found, values, rounded[self.output], exact[self.output]
        )
        if self.rounding == "float32":
            found = _finite(found)
            # The prediction is that of the network as it runs.
            seen = _Scores(values, _Scores(found).winner)
            own, _ = self._lead_errors(exact, seen, FLOAT64)
        slopes = self._slopes(seen)
        errors, growth = self._lead_errors(rounded, seen, self.float32)
        float32_radius = np.minimum(
            _radius(seen.leads - own - errors, slopes + growth),
            np.nan_to_num(rounded[self.output].reach, nan=0.0),
        )
        radius, rounding = float32_radius, own + errors
        if self.rounding == "exact":
            radius, rounding = _radius(seen.leads - own, slopes), own
        others = np.where(np.isfinite(seen.leads), rounding, 0.0)
        return {
            "radius": radius,
            "prediction": seen.prediction,
            "margin": seen.margin,
            "rounding": np.max(others, axis=1),
            "float32_radius": float32_radius,
        }

    def _float32_scores(self, x):
        return _finite(self.model.predict_on_batch(x))

    def _forward(self, x):
        """Scores in float64, and the norms of all that is computed before."""
        last_use = {
            flow: index
            for index, call in enumerate(self.calls)
            for flow in call.inputs
        }
        sizes = {}
        with float64():
            values = {self.input: as_float64(x)}
            sizes[self.input] = _norms(values[self.input])
            for index, call in enumerate(self.calls):
                inputs = [values[flow] for flow in call.inputs]
                if isinstance(call.layer, Piece):
                    outputs = call.layer.run(inputs, self._in_float64)
                else:
                    outputs = self._in_float64(call.layer)(
                        inputs if len(inputs) > 1 else inputs[0]
                    )
                outputs = keras.tree.flatten(outputs)
                for flow, value in zip(call.outputs, outputs, strict=True):
                    _require_float64(value, call.layer)
                    values[flow] = value
                    sizes[flow] = _norms(value)
                for flow in call.inputs:
                    if last_use[flow] == index and flow is not self.output:
                        values.pop(flow, None)
            scores = ops.convert_to_numpy(values[self.output])
        return np.asarray(scores, "float64"), sizes

    def _in_float64(self, operation):
        """A layer at inference, or operation, that computes in float64."""
        if not isinstance(operation, keras.layers.Layer):
            return operation
        if id(operation) not in self.copies:
            self.copies[id(operation)] = float64_copy(operation)
        copy = self.copies[id(operation)]
        # Whatever it was called with, where it is a part of a piece.
        return lambda inputs, **kwargs: copy(inputs, training=False)

    def _check_scores(self, found, exact, float32, float64):
        """Raises ValueError where scores differ by more than rounding can.

        A layer may have state that its config does not tell, and a device units
        of its own, which no constant tells.

        Args:
            found: Array, scores of the model.
            exact: Array, scores in float64.
            float32: `Computed` of the model.
            float64: `Computed` of the scores in float64.
        """
        with np.errstate(invalid="ignore"):
            error = np.linalg.norm(found - exact, axis=1)
        allowed = float32.absolute + float64.absolute
        # Where float32 overflows, nothing is claimed.
        is_wrong = ~(error <= allowed) & (float32.reach > 0)
        if np.any(is_wrong):
            worst = int(np.argmax(is_wrong))
            raise ValueError(
                "The scores of the model differ from those that are computed "
                "in float64 by more than float32 can be wrong: a layer has "
                "state that is not in its config, or this device computes with "
                "fewer digits than float32 has. Expected at most "
                f"{allowed[worst]:.3g}. Received: {error[worst]:.3g}. "
                '`rounding="estimated"` needs no scores in float64.'
            )

    def _slopes(self, scores):
        """How fast each lead can change."""
        slopes = np.full(scores.leads.shape, scores.root * self.constant)
        if self.last is None:
            return slopes
        return np.minimum(slopes, self.last.lead_constants(scores))

    def _lead_errors(self, known, scores, arithmetic):
        """Errors of each lead at the samples, and for each unit of distance."""
        if self.last is not None:
            return self.last.errors(known[self.last.flow], scores, arithmetic)
        error = known[self.output]
        shape = scores.leads.shape
        at_sample = np.broadcast_to(error.absolute, shape[:1])
        return (
            scores.root * np.repeat(at_sample[:, None], shape[1], axis=1),
            np.full(shape, scores.root * error.relative),
        )


class _Scores:
    """Scores of some samples, and the lead of the best one over each other.

    A single score leads over one that is always zero, or that one over it.

    Args:
        values: Array `(samples, classes)`.
        winner: Integer array, the class that leads; None for the best one.
    """

    def __init__(self, values, winner=None):
        self.is_single = values.shape[1] == 1
        if self.is_single:
            values = np.concatenate([np.zeros_like(values), values], axis=1)
        rows = np.arange(len(values))
        self.winner = np.argmax(values, axis=1) if winner is None else winner
        self.leads = values[rows, self.winner][:, None] - values
        self.leads[rows, self.winner] = np.inf
        # The difference of two scores is a product with (1, -1).
        self.root = 1.0 if self.is_single else math.sqrt(2) * (1 + 1e-12)

    @property
    def prediction(self):
        return self.winner.astype("int64")

    @property
    def margin(self):
        return np.min(self.leads, axis=1)


class _LastLayer:
    """A last Dense layer without activation; see [What is certified].

    Args:
        layer: The layer.
        kernel: Its kernel, float64.
        flow: The `Flow` that enters it.
    """

    def __init__(self, layer, kernel, flow):
        self.flow = flow
        self.terms = len(kernel) + (layer.bias is not None)
        columns = kernel.T
        bias = np.zeros(len(columns))
        if layer.bias is not None:
            bias = np.abs(host(layer.bias).astype("float64"))
        if len(columns) == 1:
            columns = np.concatenate([np.zeros_like(columns), columns])
            bias = np.concatenate([np.zeros_like(bias), bias])
        self._distances = _distances(columns) * (1 + 1e-12)
        self._leads = self._distances * joint_gain([flow]) * (1 + 1e-9)
        image = flow.spread and flow.spread.image(columns)
        if image is not None:
            within, lost = image
            pairs = _distances(within) * (1 + 1e-9) + lost[:, None] + lost
            self._leads = np.minimum(self._leads, pairs)
        self._norms = np.linalg.norm(columns, axis=-1) * (1 + 1e-12)
        self._bias = bias

    def distances(self, scores):
        """Distances of the column of the winner from each other."""
        return self._distances[scores.winner]

    def lead_constants(self, scores):
        """How fast the lead of the winner over each other can change."""
        return self._leads[scores.winner]

    def errors(self, entering, scores, arithmetic):
        """See `Network._lead_errors`.

        Args:
            entering: `Computed` of what enters the layer.
            scores: `_Scores`.
            arithmetic: `Arithmetic`.
        """
        winner = scores.winner
        distances = self.distances(scores)
        norms = self._norms[winner][:, None] + self._norms
        bias = self._bias[winner][:, None] + self._bias
        gamma = arithmetic.gamma(self.terms, is_product=True)
        tiny = 2 * arithmetic.smallest
        magnified = gamma * norms + 2 * tiny * math.sqrt(self.terms)
        lost = tiny * (distances * math.sqrt(self.terms) + 4 * self.terms + 4)
        absolute = np.reshape(entering.absolute, (-1, 1))
        size = np.reshape(entering.zero, (-1, 1)) + absolute
        return (
            distances * absolute + magnified * size + gamma * bias + lost,
            distances * entering.relative
            + magnified * (entering.constant + entering.relative),
        )


def _distances(rows):
    """The distance of each row from each other."""
    return np.sqrt([np.sum((rows - one) ** 2, axis=-1) for one in rows])


def _radius(leads, slopes):
    """The distance up to which all leads stay positive, zero if none."""
    # Where nothing changes, no distance is too far; see the last note.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        radii = np.where(leads > 0, leads / slopes, 0.0)
    radius = np.min(np.nan_to_num(radii, nan=0.0, posinf=np.inf), axis=1)
    return np.minimum(radius * (1 - 1e-12), _LARGEST_DISTANCE)


def _require_float64(tensor, layer):
    """Raises ValueError where a layer of its own choice rounds its output."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype != "float64":
        raise ValueError(
            "Scores are computed in float64, by copies of the layers with that "
            "dtype. Expected a layer whose output has its `compute_dtype`. "
            f"Received: layer '{layer.name}' of type {type(layer).__name__}, "
            f"whose output is {dtype}"
        )


def _norms(tensor):
    """Norm of each sample of a tensor, a NumPy array."""
    if 0 in tensor.shape:
        return np.full(len(tensor), _VANISHED)
    axes = tuple(range(1, len(tensor.shape)))
    # Squares of what is below 1e-154 or above 1e154 are not there.
    largest = ops.max(ops.abs(tensor), axis=axes, keepdims=True)
    largest = ops.where(largest > 0, largest, ops.ones_like(largest))
    squares = ops.sum(ops.square(tensor / largest), axis=axes)
    norms = ops.reshape(largest, (-1,)) * ops.sqrt(squares)
    # More than the sum itself may be wrong by, or than may vanish.
    return ops.convert_to_numpy(norms) * (1 + 1e-9) + _VANISHED


def _finite(scores):
    scores = np.asarray(scores, "float64")
    if not np.all(np.isfinite(scores)):
        raise ValueError(
            "Scores must be finite to be certified. Received: "
            f"{int(np.sum(~np.isfinite(scores)))} NaN or infinite scores "
            f"out of {scores.size}"
        )
    return scores


def rounding_of_factors():
    """By how much this device rounds the factors of float32 products.

    Zero where a product with an identity matrix is exact, and so is a
    convolution with one. TensorFloat-32 keeps ten digits after the first, hence
    2^-11; the power of two above what is seen counts.
    """
    random = np.random.default_rng(0)
    values = random.uniform(1.0, 2.0, (1, 8, 8, 64)).astype("float32")
    kernel = np.zeros((3, 3, 64, 64), "float32")
    kernel[1, 1] = np.eye(64)
    tensor = ops.convert_to_tensor(values)
    product = ops.matmul(
        ops.reshape(tensor, (64, 64)), ops.convert_to_tensor(kernel[1, 1])
    )
    convolved = ops.conv(
        tensor,
        ops.convert_to_tensor(kernel),
        padding="same",
        data_format="channels_last",
    )
    worst = 0.0
    for found in (product, convolved):
        found = ops.convert_to_numpy(found).reshape(values.shape)
        worst = max(worst, float(np.max(np.abs(found / values - 1))))
    return 2.0 ** math.ceil(math.log2(worst)) if worst else 0.0


def _rounding_unit():
    """How far products of this backend and device are from exact ones.

    At least the rounding unit of float32. Some devices round the factors of
    float32 products to fewer digits, and fast algorithms for convolutions add
    errors of their own; one product and two convolutions show it.
    """
    generator = np.random.default_rng(0)
    image = generator.standard_normal((1, 8, 8, 64)).astype("float32")
    kernel = generator.standard_normal((3, 3, 64, 64)).astype("float32")
    pixels, matrix = image.reshape(64, 64), kernel[0, 0]
    exact = image.astype("float64")
    windows = np.lib.stride_tricks.sliding_window_view(exact, (3, 3), (1, 2))
    product = ops.matmul(
        ops.convert_to_tensor(pixels), ops.convert_to_tensor(matrix)
    )
    pairs = [(product, exact.reshape(64, 64) @ matrix.astype("float64"))]
    for taps, expected in (
        (kernel[:1, :1], exact @ matrix.astype("float64")),
        (kernel, np.einsum("bhwcij,ijco->bhwo", windows, kernel)),
    ):
        found = ops.conv(
            ops.convert_to_tensor(image),
            ops.convert_to_tensor(taps),
            data_format="channels_last",
        )
        pairs.append((found, expected))
    unit = float(np.finfo("float32").eps) / 2
    for found, expected in pairs:
        found = ops.convert_to_numpy(found)
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        # Sums of 64 terms and more are wrong by less than eight units.
        unit = max(unit, float(error) / 8)
    return unit
