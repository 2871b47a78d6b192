"""Operations of `keras.ops` in functional graphs, one by one.

What several of them are together is in `patterns`.
"""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from deel.lip._backend.variables import host
from deel.lip.certification._flow import scaled
from deel.lip.certification._pieces import arguments_of
from deel.lip.certification._pieces import as_array
from deel.lip.certification._pieces import operation_rule
from deel.lip.certification._registry import Bound
from deel.lip.certification.rules._steps import FACTORS
from deel.lip.certification.rules._steps import count_inexact
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules._steps import magnitude
from deel.lip.certification.rules._steps import spread_norm
from deel.lip.certification.rules._steps import step_of
from deel.lip.certification.rules.activations import activation_bound
from deel.lip.certification.rules.joins import joined
from deel.lip.certification.rules.joins import repetitions


def pulled_bound(piece, input_shapes, pull, terms=0, method="formula", **kwargs):
    """`Bound` of a piece of which more than a constant is known.

    Args:
        piece: `Piece`.
        input_shapes: List of tuples.
        pull: As of `Bound`.
        terms: As of `Step`.
        method: As of `Bound`.
        **kwargs: What else `step_of` takes.
    """
    pulled = pull([1.0] * len(piece.outputs))
    weights = tuple(float(np.max(a, initial=0.0)) for a in pulled)
    value = max(weights)
    rounding = step_of(piece, input_shapes, value, terms, **kwargs)
    return Bound(value, method, weights=weights, rounding=rounding, pull=pull)


def largest(amplitudes):
    """The largest of several arrays and floats."""
    return float(max(np.max(a, initial=0.0) for a in amplitudes))


def refuse(piece, expected, **received):
    """Raises ValueError for an operation that has no constant as it is."""
    received = ", ".join(f"{key}={value}" for key, value in received.items())
    raise ValueError(
        f"Operation '{piece.name}' of type {piece.type_name} has no known "
        f"Lipschitz constant as it is used. Expected {expected}. "
        f"Received: {received}"
    )


@operation_rule(
    "BroadcastTo",
    "Concatenate",
    "Copy",
    "ExpandDims",
    "Flip",
    "GetItem",
    "Moveaxis",
    "Pad",
    "Repeat",
    "Reshape",
    "Roll",
    "Split",
    "Squeeze",
    "Stack",
    "Swapaxes",
    "Take",
    "Tile",
    "Transpose",
)
def _copying(piece, input_shapes, context):
    _refuse_constants(piece)
    return copies(piece, input_shapes)


def copies(piece, input_shapes):
    """`Bound` of a piece whose outputs copy values of the inputs."""
    reads = positions(piece, input_shapes)
    sizes = [math.prod(shape[1:]) for shape in input_shapes]
    ends = np.cumsum(sizes)

    def pull(amplitudes):
        spread = [
            np.broadcast_to(a, read.shape).ravel()
            for a, read in zip(amplitudes, reads, strict=True)
        ]
        read = np.concatenate([read.ravel() for read in reads])
        found = _added(read, np.concatenate(spread), int(ends[-1]))
        parts = np.split(found, ends[:-1])
        return [
            _plain(part.reshape(shape[1:]))
            for part, shape in zip(parts, input_shapes, strict=True)
        ]

    return pulled_bound(piece, input_shapes, pull)


def _refuse_constants(piece):
    """Raises ValueError where constants would be taken for positions."""
    arguments = piece.arguments
    given = list(piece.constants())
    if piece.type_name in ("Concatenate", "Stack"):
        given += [
            x
            for x in keras.tree.flatten(next(iter(arguments.values())))
            if not isinstance(x, keras.KerasTensor)
        ]
    if piece.type_name == "Pad":
        value = arguments.get("constant_values")
        given += [value] if value else []
    if given:
        refuse(piece, "tensors without constants", constants=given)


def positions(piece, input_shapes):
    """For each output, which value of the inputs each of its values is.

    Found by what the operation makes of positions. The values of the inputs are
    counted one after the other from 0; a constant has the position -1.

    Raises:
        ValueError: If a shape is not known, or samples are mixed.
    """
    if any(None in shape[1:] for shape in input_shapes):
        refuse(
            piece, "inputs of known shapes: pass `input_shape`",
            shapes=input_shapes,
        )
    batch = piece.inputs[0].shape[0]
    samples = batch or 2
    sizes = [math.prod(shape[1:]) for shape in input_shapes]
    total, before = sum(sizes), 0
    inputs = []
    for shape, size in zip(input_shapes, sizes, strict=True):
        # Zero is what operations pad with.
        first = 1 + before + np.arange(size)
        counted = first + total * np.arange(samples)[:, None]
        counted = counted.reshape(samples, *shape[1:]).astype("int32")
        inputs.append(ops.convert_to_tensor(counted))
        before += size
    outputs = [host(x) for x in piece(inputs)]
    found = []
    for output, symbolic in zip(outputs, piece.outputs, strict=True):
        first = output[0].astype("int64")
        others = first + total * np.arange(samples).reshape(
            -1, *[1] * first.ndim
        )
        is_apart = (
            symbolic.shape[0] == batch
            and len(output) == samples
            and np.all((output == others) | (output == 0))
            and np.all((output == 0) == (first == 0))
            and np.all(first <= total)
        )
        if not is_apart:
            refuse(
                piece, "one that handles each sample by itself",
                shape=symbolic.shape,
            )
        found.append(first - 1)
    return found


def _added(read, amplitudes, size):
    """For each position, the root of the squares of those that read it."""
    amplitudes = amplitudes[read >= 0]
    read = read[read >= 0]
    counts = np.bincount(read, minlength=size)
    if len(counts) == 0 or np.max(counts) <= 1:
        found = np.zeros(size)
        found[read] = amplitudes
        return found
    # Squares vanish below 1e-154.
    unit = np.max(amplitudes) or 1.0
    squares = np.bincount(read, (amplitudes / unit) ** 2, minlength=size)
    # What vanishes beside the largest is at most this, times their number.
    squares += (counts > 0) * len(amplitudes) * 1e-300
    return unit * np.sqrt(squares) * (1 + 1e-12)


def _plain(amplitudes):
    """A float for an array whose values are all the same."""
    if amplitudes.size and np.min(amplitudes) == np.max(amplitudes):
        return float(amplitudes.flat[0])
    return amplitudes


def constant_of(piece):
    """The constant among the two arguments of an operation.

    Returns:
        Tuple: the array, None if both are tensors; and whether it is the first
        one.
    """
    arguments = arguments_of(piece.nodes[-1])
    x1, x2 = arguments["x1"], arguments["x2"]
    if isinstance(x1, keras.KerasTensor) and isinstance(x2, keras.KerasTensor):
        return None, False
    is_first = isinstance(x2, keras.KerasTensor)
    return as_array(x1 if is_first else x2), is_first


def factors(piece, shape, constant):
    """Magnitudes of a constant that multiplies a tensor, for each value."""
    constant = np.abs(constant)
    if constant.size == 1:
        return float(constant.flat[0])
    refuse_repetition(piece, shape)
    constant = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    if constant.shape[0] != 1:
        refuse(piece, "the same constant for each sample", shape=constant.shape)
    # Of images of unknown size, the largest counts.
    if None in shape[1:]:
        return float(np.max(constant))
    return np.broadcast_to(constant[0], shape[1:])


def refuse_repetition(piece, shape):
    """Raises ValueError where a constant makes a tensor larger."""
    (output,) = piece.outputs
    own = piece.inputs[0].shape
    if tuple(output.shape) != tuple(own):
        refuse(
            piece, "a constant that fits the shape of the tensor", shape=own
        )


def magnitudes(piece, values):
    """Magnitudes of a constant, as it is or rounded, whichever is more."""
    rounded = ops.convert_to_tensor(values, dtype=piece.compute_dtype)
    return np.maximum(np.abs(values), np.abs(host(rounded)))


@operation_rule("Multiply", "Divide", "TrueDivide")
def _scaling(piece, input_shapes, context):
    constant, is_first = constant_of(piece)
    is_division = piece.type_name != "Multiply"
    if constant is None or (is_division and is_first):
        refuse(
            piece,
            "a tensor and a constant, by which it is multiplied or divided",
            inputs=[x.name for x in piece.inputs],
        )
    values = constant
    if is_division:
        if np.any(np.abs(constant) < float(np.finfo("float32").tiny)):
            refuse(piece, "a divisor that is not zero", divisor=constant)
        values = 1 / constant
    by = factors(piece, input_shapes[0], magnitudes(piece, values))
    return pulled_bound(
        piece,
        input_shapes,
        lambda amplitudes: [scaled(by, amplitudes[0])],
        terms=0 if np.all(np.isin(constant, (0.0, 1.0, -1.0))) else 2,
        inexact=count_inexact(constant),
    )


@operation_rule("Add", "Subtract")
def _addition(piece, input_shapes, context):
    constant, _ = constant_of(piece)
    if constant is not None:
        refuse_repetition(piece, input_shapes[0])
        return pulled_bound(
            piece,
            input_shapes,
            list,
            terms=1,
            offset=spread_norm(constant, input_shapes[0]),
            inexact=count_inexact(constant),
        )
    if len(piece.inputs) == 1:
        return pulled_bound(
            piece, input_shapes, lambda a: [scaled(2.0, a[0])], terms=1
        )
    weights = repetitions(piece, input_shapes)
    return joined(piece, input_shapes, weights, adds=True)


@operation_rule("Negative")
def _negation(piece, input_shapes, context):
    return pulled_bound(piece, input_shapes, list)


@operation_rule("Maximum", "Minimum")
def _comparison(piece, input_shapes, context):
    constant, _ = constant_of(piece)
    if constant is not None or len(piece.inputs) == 1:
        if constant is not None:
            refuse_repetition(piece, input_shapes[0])
        return pulled_bound(
            piece,
            input_shapes,
            list,
            offset=0.0 if constant is None else _spread(constant, input_shapes),
            inexact=0 if constant is None else count_inexact(constant),
        )
    # |max a - max b| is at most the larger |a - b|.
    if tuple(piece.inputs[0].shape) == tuple(piece.inputs[1].shape):
        return pulled_bound(piece, input_shapes, lambda a: [a[0], a[0]])
    weights = repetitions(piece, input_shapes)
    return joined(piece, input_shapes, weights, adds=False, terms=0)


def _spread(constant, input_shapes):
    return spread_norm(constant, input_shapes[0])


@operation_rule("Clip")
def _clip(piece, input_shapes, context):
    operation = piece.nodes[-1].operation
    limits = [
        as_array(x)
        for x in (operation.x_min, operation.x_max)
        if x is not None
    ]
    if any(x.size != 1 for x in limits):
        refuse(piece, "limits that are numbers", limits=limits)
    size = max((float(np.abs(x).flat[0]) for x in limits), default=0.0)
    return pulled_bound(
        piece,
        input_shapes,
        list,
        offset=_spread(np.asarray(size), input_shapes),
        inexact=count_inexact(*limits),
    )


@operation_rule("Abs", "Absolute")
def _absolute(piece, input_shapes, context):
    return pulled_bound(piece, input_shapes, list, method="largest slope")


# Operations that are activations with their default arguments.
_ACTIVATIONS = {
    "Gelu": "gelu",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "LogSigmoid": "log_sigmoid",
    "Relu": "relu",
    "Relu6": "relu6",
    "Selu": "selu",
    "Sigmoid": "sigmoid",
    "Silu": "silu",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Tanh": "tanh",
}


@operation_rule(*_ACTIVATIONS)
def _activation(piece, input_shapes, context):
    name = _ACTIVATIONS[piece.type_name]
    function = getattr(keras.activations, name)
    bound = activation_bound(function, input_shapes[0], context)
    slope = bound.value

    def pull(amplitudes):
        return [scaled(slope, amplitudes[0])]

    return dataclasses.replace(bound, pull=pull)


@operation_rule("LeakyRelu")
def _leaky_relu(piece, input_shapes, context):
    slope = float(piece.nodes[-1].operation.negative_slope)
    largest = max(1.0, magnitude(piece, slope))
    return pulled_bound(
        piece,
        input_shapes,
        lambda amplitudes: [scaled(largest, amplitudes[0])],
        terms=2,
        inexact=count_inexact(slope),
        method="slopes",
    )


def reduced_axes(piece, shape, axis):
    """The axes of a reduction, a tuple, and how many values it takes.

    Raises:
        ValueError: If samples are mixed, or a length is not known.
    """
    rank = len(shape)
    axes = range(rank) if axis is None else np.atleast_1d(axis)
    axes = tuple(sorted(int(a) % rank for a in axes))
    if 0 in axes:
        refuse(piece, "axes behind that of the samples", axis=axis)
    if any(shape[a] is None for a in axes):
        refuse(
            piece, "an input of known shape: pass `input_shape`", shape=shape
        )
    return axes, math.prod(shape[a] for a in axes)


def _over_axes(piece, shape, axes, factor):
    """The `pull` of a reduction that is `factor`-Lipschitz in what it takes."""
    operation = piece.nodes[-1].operation
    keeps = getattr(operation, "keepdims", False)

    def pull(amplitudes):
        (a,) = amplitudes
        if np.ndim(a) == 0 or None in shape[1:]:
            return [scaled(factor, np.max(a))]
        if not keeps:
            a = np.expand_dims(a, tuple(axis - 1 for axis in axes))
        return [np.broadcast_to(scaled(factor, a), shape[1:])]

    return pull


@operation_rule("Sum", "Mean")
def _sum(piece, input_shapes, context):
    (shape,) = input_shapes
    axes, count = reduced_axes(piece, shape, piece.nodes[-1].operation.axis)
    is_mean = piece.type_name == "Mean"
    root = math.sqrt(count) * (1 + 1e-12) * (1 + half_unit(piece)) ** 2
    return pulled_bound(
        piece,
        input_shapes,
        _over_axes(piece, shape, axes, root / count if is_mean else root),
        terms=count + (FACTORS if is_mean else 0),
        partial=root,
    )


@operation_rule("Max", "Min", "Amax", "Amin")
def _extreme(piece, input_shapes, context):
    (shape,) = input_shapes
    axes, _ = reduced_axes(piece, shape, piece.nodes[-1].operation.axis)
    if (initial := getattr(piece.nodes[-1].operation, "initial", None)):
        refuse(piece, "`initial=None`", initial=initial)
    return pulled_bound(
        piece, input_shapes, _over_axes(piece, shape, axes, 1.0)
    )


@operation_rule("Norm")
def _norm(piece, input_shapes, context):
    (shape,) = input_shapes
    operation = piece.nodes[-1].operation
    axes, count = reduced_axes(piece, shape, operation.axis)
    is_euclidean = operation.ord in (None, "fro") or (
        operation.ord == 2 and len(axes) == 1
    )
    if not is_euclidean:
        refuse(piece, "the Euclidean norm", ord=operation.ord)
    return pulled_bound(
        piece,
        input_shapes,
        _over_axes(piece, shape, axes, 1.0),
        terms=count + FACTORS,
        squares=True,
        partial=math.sqrt(count),
    )


@operation_rule("Sort")
def _sorting(piece, input_shapes, context):
    (shape,) = input_shapes
    axes, _ = reduced_axes(piece, shape, piece.nodes[-1].operation.axis)
    return pulled_bound(
        piece, input_shapes, lambda amplitudes: [evened(amplitudes[0], axes)]
    )


def evened(amplitudes, axes):
    """The largest along some axes, for all values on them.

    Args:
        amplitudes: Float or array.
        axes: Tuple of axes of the tensor, with that of the samples.
    """
    if np.ndim(amplitudes) == 0:
        return amplitudes
    along = tuple(axis - 1 for axis in axes)
    most = np.max(amplitudes, axis=along, keepdims=True)
    return _plain(np.broadcast_to(most, np.shape(amplitudes)))
