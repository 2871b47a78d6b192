"""Operations of `keras.ops` in functional graphs, one by one.

What several of them are together is in `deel.lip.certification.patterns`.
"""

import dataclasses
import math

import keras
import numpy as np

from deel.lip.certification._flow import scaled
from deel.lip.certification._nodes import as_array
from deel.lip.certification._nodes import constant_of
from deel.lip.certification._nodes import is_tensor
from deel.lip.certification._nodes import operands
from deel.lip.certification._pieces import operation_rule
from deel.lip.certification.rules._pulled import evened
from deel.lip.certification.rules._pulled import magnitudes
from deel.lip.certification.rules._pulled import pulled_bound
from deel.lip.certification.rules._pulled import reduced_axes
from deel.lip.certification.rules._pulled import refuse
from deel.lip.certification.rules._steps import FACTORS
from deel.lip.certification.rules._steps import count_inexact
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules._steps import magnitude
from deel.lip.certification.rules._steps import spread_norm
from deel.lip.certification.rules.activations import activation_bound
from deel.lip.certification.rules.joins import joined
from deel.lip.certification.rules.joins import repetitions


def factors(piece, shape, constant):
    """Magnitudes of a constant that multiplies a tensor, for each value."""
    refuse_repetition(piece, shape)
    constant = np.abs(constant)
    if constant.size == 1:
        return float(constant.flat[0])
    constant = constant.reshape(
        (1,) * (len(shape) - constant.ndim) + constant.shape
    )
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
        refuse(piece, "a constant that fits the shape of the tensor", shape=own)


@operation_rule("Multiply", "Divide", "TrueDivide")
def _scaling(piece, input_shapes, context):
    constant = constant_of(piece.nodes[-1])
    is_division = piece.type_name != "Multiply"
    if constant is None or (
        is_division and not is_tensor(operands(piece.nodes[-1])[0])
    ):
        refuse(
            piece,
            "a constant as the factor or divisor: products and quotients of "
            "tensors have slopes as large as the tensors",
            shapes=input_shapes,
        )
    smallest, largest = magnitudes(piece, constant)
    if is_division:
        if np.any(smallest < float(np.finfo("float32").tiny)):
            refuse(piece, "a divisor that is not zero", divisor=constant)
        largest = (1 + 1e-15) / smallest
    by = factors(piece, input_shapes[0], largest)
    return pulled_bound(
        piece,
        input_shapes,
        lambda amplitudes: [scaled(by, amplitudes[0])],
        terms=0 if np.all(np.isin(constant, (0.0, 1.0, -1.0))) else 2,
        inexact=count_inexact(constant),
    )


@operation_rule("Add", "Subtract")
def _addition(piece, input_shapes, context):
    constant = constant_of(piece.nodes[-1])
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
    _refuse_other_ranks(piece, input_shapes)
    weights = repetitions(piece, input_shapes)
    bound = joined(piece, input_shapes, weights, adds=True)
    return dataclasses.replace(bound, is_sum=piece.type_name == "Add")


def _refuse_other_ranks(piece, input_shapes):
    """Raises ValueError where the axis of the samples meets another one."""
    if len({len(shape) for shape in input_shapes}) > 1:
        refuse(piece, "tensors of one rank", shapes=input_shapes)


@operation_rule("Negative")
def _negation(piece, input_shapes, context):
    return pulled_bound(piece, input_shapes, list)


@operation_rule("Maximum", "Minimum")
def _comparison(piece, input_shapes, context):
    constant = constant_of(piece.nodes[-1])
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
    _refuse_other_ranks(piece, input_shapes)
    if len({tuple(shape) for shape in input_shapes}) == 1:
        return pulled_bound(piece, input_shapes, lambda a: [a[0], a[0]])
    weights = repetitions(piece, input_shapes)
    return joined(piece, input_shapes, weights, adds=False, terms=0)


def _spread(constant, input_shapes):
    return spread_norm(constant, input_shapes[0])


@operation_rule("Clip")
def _clip(piece, input_shapes, context):
    operation = piece.nodes[-1].operation
    if any(map(is_tensor, (operation.x_min, operation.x_max))):
        refuse(piece, "limits that are numbers", limits="tensors")
    limits = [
        as_array(x) for x in (operation.x_min, operation.x_max) if x is not None
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
    initial = getattr(piece.nodes[-1].operation, "initial", None)
    if initial is not None:
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
