"""Convolutions of images that are padded with their own values."""

import keras
import numpy as np

from deel.lip._numerics.windows import NUMPY_MODES
from deel.lip.certification._pieces import Piece
from deel.lip.certification._pieces import pattern
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import size_of
from deel.lip.certification._rounding import Chain
from deel.lip.certification._rounding import Step
from deel.lip.certification.rules.convolutions import axes_of
from deel.lip.certification.rules.convolutions import convolved
from deel.lip.certification.rules.copying import copies
from deel.lip.certification.rules.copying import positions


@pattern(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
def _padded_convolution(node, graph):
    """A convolution of an image that is padded with its own values."""
    if node.operation.padding != "valid" or len(node.input_tensors) != 1:
        return None
    copying, leaves = [], {}
    waiting = list(node.input_tensors)
    while waiting:
        x = waiting.pop()
        maker = graph.maker(x, "Concatenate", "Flip", "GetItem", "Repeat")
        if maker is None:
            leaves[id(x)] = x
        elif maker not in copying:
            copying.append(maker)
            waiting += maker.input_tensors
    if len(leaves) != 1 or not copying:
        return None
    copying.sort(key=graph.nodes.index)
    nodes, inputs = [*copying, node], list(leaves.values())
    return Piece(nodes, inputs, node.outputs, _padded_convolution_rule)


def _padded_convolution_rule(piece, input_shapes, context):
    (shape,) = input_shapes
    layer = piece.nodes[-1].operation
    (padded,) = piece.nodes[-1].input_tensors
    padding = Piece(piece.nodes[:-1], piece.inputs, [padded], None)
    (read,) = positions(padding, input_shapes)
    padded_shape = (shape[0], *read.shape)
    for mode in NUMPY_MODES:
        axes = axes_of(layer, shape, mode)
        if np.array_equal(read, _padded_positions(layer, shape, axes, mode)):
            return convolved(layer, axes, padded_shape, context)
    axes = axes_of(layer, padded_shape, "valid")
    bound = convolved(layer, axes, padded_shape, context)
    constant = copies(padding, input_shapes).value
    first = Step(constant, entries=max(size_of(shape), read.size))
    return Bound(
        constant * bound.value,
        bound.method,
        rounding=Chain(first, bound.rounding),
    )


def _padded_positions(layer, shape, axes, mode):
    widths = [axis.widths() for axis in axes]
    is_first = layer.data_format == "channels_first"
    widths = [(0, 0), *widths] if is_first else [*widths, (0, 0)]
    positions = np.arange(size_of(shape)).reshape(shape[1:])
    try:
        return np.pad(positions, widths, mode=NUMPY_MODES[mode])
    except ValueError:
        # An image that is too small to be padded so.
        return None
