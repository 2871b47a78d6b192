"""Norms, and projections."""

import math

import keras

from deel.lip.certification._nodes import constant_of
from deel.lip.certification._nodes import kind_of
from deel.lip.certification._nodes import operands
from deel.lip.certification._nodes import with_constant
from deel.lip.certification._pieces import Piece
from deel.lip.certification._pieces import pattern
from deel.lip.certification._registry import Bound
from deel.lip.certification.rules._pulled import evened
from deel.lip.certification.rules._pulled import pulled_bound
from deel.lip.certification.rules._pulled import reduced_axes
from deel.lip.certification.rules._steps import FACTORS
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules.pooling import pooled_rounding
from deel.lip.certification.rules.pooling import pooling_axes

_POOLING = (
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
)
_GLOBAL_POOLING = (
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
)


@pattern("Sqrt")
def _norms(node, graph):
    """The root of sums or means of squares, and of a constant."""
    (x,) = node.input_tensors
    x, epsilon, added = with_constant(x, graph, "Add")
    x, limit, limited = with_constant(x, graph, "Minimum")
    is_sound = (epsilon or 0.0) >= 0.0 and (limit is None or limit > 0.0)
    sums = graph.maker(x, "Sum", "Mean") or graph.layer_call(
        x, *_POOLING, *_GLOBAL_POOLING
    )
    if not is_sound or sums is None:
        return None
    if getattr(sums.operation, "padding", "valid") != "valid":
        return None
    squares = graph.maker(sums.input_tensors[0], "Square", "Multiply")
    if squares is None:
        return None
    if kind_of(squares) == "Multiply":
        first, second = operands(squares)
        if first is not second:
            return None
    nodes = [n for n in (squares, sums, limited, added, node) if n is not None]
    inputs = [squares.input_tensors[0]]
    return Piece(nodes, inputs, node.outputs, _norms_rule)


def _norms_rule(piece, input_shapes, context):
    # The gradient of the root of the sum of `m x^2` has the norm sqrt(m) at
    # most, and a value is read by `overlap` windows.
    (shape,) = input_shapes
    sums = piece.nodes[1].operation
    overlap = 1
    if isinstance(sums, _POOLING):
        overlap = math.prod(a.overlap() for a in pooling_axes(sums, shape))
        size = math.prod(sums.pool_size)
    elif isinstance(sums, _GLOBAL_POOLING):
        _, size = reduced_axes(piece, shape, _image_axes(sums, shape))
    else:
        _, size = reduced_axes(piece, shape, sums.axis)
    is_sum = type(sums).__name__ == "Sum"
    value = math.sqrt(overlap if is_sum else overlap / size) * (1 + 1e-12)
    value *= (1 + half_unit(piece)) ** 2
    epsilon = 0.0
    for node in piece.nodes[2:]:
        if kind_of(node) == "Add":
            epsilon = float(constant_of(node).flat[0])
    rounding = pooled_rounding(
        piece,
        input_shapes,
        value,
        size,
        # Of sums, it counts as that of a mean.
        epsilon / size if is_sum else epsilon,
    )
    return Bound(value, "formula", rounding=rounding)


def _image_axes(layer, shape):
    is_first = layer.data_format == "channels_first"
    return range(2, len(shape)) if is_first else range(1, len(shape) - 1)


@pattern("Subtract")
def _centering(node, graph):
    """`x - mean(x)`, an orthogonal projection."""
    x, mean = operands(node)
    maker = graph.maker(mean, "Mean")
    if maker is None or maker.input_tensors[0] is not x:
        return None
    if not maker.operation.keepdims:
        return None
    return Piece([maker, node], [x], node.outputs, _centering_rule)


def _centering_rule(piece, input_shapes, context):
    (shape,) = input_shapes
    axes, count = reduced_axes(piece, shape, piece.nodes[0].operation.axis)
    return pulled_bound(
        piece,
        input_shapes,
        lambda amplitudes: [evened(amplitudes[0], axes)],
        terms=count + FACTORS,
        # The mean and what it is subtracted from, both at most the input.
        magnified=2.0,
        partial=math.sqrt(count),
    )
