"""What is known of the tensors of a graph, from the inputs to the outputs.

Note [Parts]

The gain of a tensor, see [Constants of a graph], forgets which of its values
came from where. Two halves of a tensor, put together again, would have the
root of two times its gain. So a set of tensors is traced back: nonnegative
numbers a, one for each value of the tensors, such that the squares of what
they move by, each times its `a^2`, add up to no more than those of the tensors
that they are made of, with numbers of their own. What is read twice adds its
squares. A layer of constant L gives all of its inputs L times the largest
number of its outputs; an operation that copies gives each value its own.
Tracing goes back from the latest tensor to earlier ones and ends where one
tensor is left, of which the gain is known, with one number for all its values;
or at sums, whose parts may add up.

Note [Errors of parts]

The computed values of such a set differ from the exact ones by the errors of
the tensors where tracing ended, times the largest numbers there, plus, for each
layer or operation on the way, the largest number of its outputs times the
error of its own: exchange the computed ones for the exact ones, one after the
other, from the last to the first. Pairs that are sorted as two tensors would
double their errors at each layer otherwise.
"""

import dataclasses
import math

import keras
import numpy as np

from deel.lip.certification._branches import sum_of
from deel.lip.certification._chain import SMALLEST_RADIUS
from deel.lip.certification._chain import Ellipsoid
from deel.lip.certification._norms import matrix_norm
from deel.lip.certification._registry import Bound
from deel.lip.certification._rounding import combined
from deel.lip.certification._rounding import own_error


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """What is known of a tensor.

    Attributes:
        shape: Tuple, with the batch axis.
        gain: Array `(rows, inputs)`, the matrix M of [Constants of a graph].
        call: The `Call` that makes it; None for an input.
        sources: Tuple of pairs of a `Flow` and a float, where tracing ended.
        behind: Tuple of pairs of a `Call` and a float, what stands between.
        spread: `Ellipsoid` of the differences of a vector; None for a ball.
    """

    shape: tuple
    gain: np.ndarray
    call: "Call | None" = None
    sources: tuple = ()
    behind: tuple = ()
    spread: Ellipsoid | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A layer or `Piece`, as it is called at one place of a graph.

    Attributes:
        layer: The layer or `Piece`.
        bound: `Bound` of it.
        inputs: List of `Flow`.
        index: Integer, greater than that of all calls before it.
        outputs: List of `Flow`.
    """

    layer: keras.layers.Layer
    bound: Bound
    inputs: list
    index: int
    outputs: list = dataclasses.field(default_factory=list)

    @property
    def weights(self):
        """The constant for each input, a tuple of floats."""
        return self.bound.weights or (self.bound.value,) * len(self.inputs)

    def pull(self, amplitudes):
        """Numbers for the values of the inputs, from those of the outputs.

        Args:
            amplitudes: List, for each output a float or an array of its shape
                without the batch axis.
        """
        if self.bound.pull is not None:
            return self.bound.pull(amplitudes)
        largest = max(np.max(a, initial=0.0) for a in amplitudes)
        return [scaled(weight, largest) for weight in self.weights]


def called(layer, bound, inputs, shapes, index):
    """The `Call` of a layer or `Piece`.

    Args:
        layer: The layer or `Piece`.
        bound: `Bound` of it.
        inputs: List of `Flow`.
        shapes: List of tuples, of the outputs.
        index: As of `Call`.
    """
    call = Call(layer, bound, inputs, index)
    for position, shape in enumerate(shapes):
        sources, behind = _origin(call, position, len(shapes))
        # An overflow is an error at the end, in `joint_gain`.
        with np.errstate(over="ignore", invalid="ignore"):
            parts = [_scaled_gain(a, flow.gain) for flow, a in sources]
            gain = _sum(parts) if bound.adds else _beside(parts)
        gain, spread = _chained(bound, inputs, gain)
        call.outputs.append(
            Flow(tuple(shape), gain, call, sources, behind, spread)
        )
    return call


def _chained(bound, inputs, gain):
    """The gain and `spread` of an output, with what the chain knows."""
    if gain.shape != (1, 1):
        return gain, None
    if bound.is_sum:
        spread = sum_of(inputs, float(gain[0, 0]))
        if spread is None:
            return gain, None
    elif bound.chain is None:
        return gain, None
    else:
        (flow,) = inputs
        before = flow.spread or Ellipsoid(float(flow.gain[0, 0]))
        spread = bound.chain(before)
    if not spread.radius > SMALLEST_RADIUS:
        return gain, None
    is_better = spread.radius < gain[0, 0]
    return (np.full((1, 1), spread.radius) if is_better else gain), spread


def _origin(call, position, outputs):
    """The `sources` and `behind` of an output."""
    if call.bound.adds:
        pairs = zip(call.inputs, call.weights, strict=True)
        return tuple(pairs), ((call, 1.0),)
    amplitudes = [float(i == position) for i in range(outputs)]
    sources, behind = _traced(_pulled(call, amplitudes, {}))
    return sources, ((call, 1.0), *behind)


def _pulled(call, amplitudes, frontier):
    """Adds the numbers of the inputs of a call to those that are there."""
    for flow, a in zip(call.inputs, call.pull(amplitudes), strict=True):
        if flow in frontier:
            a = np.hypot(frontier[flow], a) * (1 + 1e-15)
        frontier[flow] = a
    return frontier


def _traced(frontier):
    """Traces tensors back; see [Parts].

    Args:
        frontier: Dictionary from flows to their numbers, floats or arrays.

    Returns:
        Tuple: pairs of a flow and the largest number, where tracing ended; and
        pairs of a call on the way and the largest number of its outputs.
    """
    behind, alone = [], 0
    while True:
        made = [f for f in frontier if f.call and not f.call.bound.adds]
        if not made or len(behind) == _MOST_CALLS:
            break
        if len(frontier) == 1:
            alone += 1
            if alone > _ALONE or not _tells_more(*made, frontier):
                break
        call = max((f.call for f in made), key=lambda call: call.index)
        amplitudes = [frontier.pop(f, 0.0) for f in call.outputs]
        behind.append(
            (call, float(max(np.max(a, initial=0.0) for a in amplitudes)))
        )
        _pulled(call, amplitudes, frontier)
    sources = (
        (flow, float(np.max(a, initial=0.0))) for flow, a in frontier.items()
    )
    return tuple(sources), tuple(behind)


# How many calls tensors are traced through, and one tensor by itself, each of
# which takes its time. What is known there bounds what is behind as well.
_MOST_CALLS = 64
_ALONE = 8


def _tells_more(flow, frontier):
    """Whether the call that makes the last tensor tells its values apart."""
    return np.ndim(frontier[flow]) > 0 and flow.call.bound.pull is not None


def propagate(calls, known, arithmetic, sizes=None):
    """Follows errors of a forward pass; see [Errors of parts] and `_rounding`.

    Args:
        calls: List of `Call`.
        known: Dictionary from inputs of the graph, `Flow`, to `Computed`.
        arithmetic: `Arithmetic`.
        sizes: Dictionary from other flows to the norms of their values at some
            samples; None for an input of zero, and the norms that layers claim.

    Returns:
        The dictionary, with all flows of the graph.
    """
    known = dict(known)
    own = {}
    for call in calls:
        layer = call.bound.rounding(arithmetic)
        inputs = [known[flow] for flow in call.inputs]
        own[call] = own_error(inputs, layer)
        claimed = [
            w * x.zero for w, x in zip(call.weights, inputs, strict=True)
        ]
        for flow in call.outputs:
            errors = [(a, known[source]) for source, a in flow.sources]
            errors += [(a, own[other]) for other, a in flow.behind]
            zero = sum(claimed) + layer.zero
            known[flow] = combined(
                errors,
                constant=joint_gain([flow]),
                zero=zero if sizes is None else sizes[flow],
            )
    return known


def joint_gain(flows):
    """Bound of all tensors together, as a function of all inputs."""
    (first, *others) = flows
    gain = first.gain
    if others:
        sources, _ = _traced(dict.fromkeys(flows, 1.0))
        with np.errstate(over="ignore", invalid="ignore"):
            gain = _beside([_scaled_gain(a, flow.gain) for flow, a in sources])
    bound = _norm(gain)
    if not math.isfinite(bound):
        raise ValueError(
            "The product of the constants of the layers is too large for a "
            f"float. Received: {bound}"
        )
    return bound


def _beside(parts):
    gain = np.concatenate(parts)
    # Rotating the rows changes no norm; this keeps their number down.
    if len(gain) > gain.shape[1]:
        gain = np.linalg.qr(gain, mode="r") * (1 + 1e-12)
    # A rotation may have turned it; behind it, a ball has that radius.
    return np.abs(gain) if gain.shape == (1, 1) else gain


def _sum(parts):
    # Not `norm`, whose squares vanish below 1e-154.
    columns = [np.hypot.reduce(part, axis=0) for part in parts]
    return np.sum(columns, axis=0)[None]


# Products below this one lose digits, or vanish, see `_scaled_gain`.
_SMALLEST_GAIN = 1e-290


def scaled(weight, amplitudes):
    """`weight * amplitudes`, or more where a product vanishes or loses digits.

    Args:
        weight: Float or array, zero or more.
        amplitudes: Float or array, zero or more.
    """
    # An overflow is an error at the end, in `joint_gain`.
    with np.errstate(over="ignore", invalid="ignore"):
        product = np.multiply(weight, amplitudes)
    is_lost = (product < _SMALLEST_GAIN) & (
        np.multiply(weight > 0, amplitudes > 0)
    )
    return np.where(is_lost, _SMALLEST_GAIN, product)


def _scaled_gain(weight, gain):
    """`weight * gain`, or a matrix with no less of a norm in any direction.

    A product that vanishes where no factor does would make a constant of zero,
    which later layers could not make larger again. A row for each input, of a
    size that is 1e17 times what can vanish, bounds it, whatever is added to it.
    """
    part = weight * gain
    small = (np.abs(part) < _SMALLEST_GAIN) & (gain != 0)
    if weight and np.any(small):
        part = np.concatenate([part, _SMALLEST_GAIN * np.eye(part.shape[1])])
    return part


def _norm(gain):
    if gain.shape == (1, 1):
        return float(abs(gain[0, 0]))
    return float(matrix_norm(gain)[0])
