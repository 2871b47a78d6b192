"""In which order the channels of a tensor may be.

Note [orders]

A maximum and a minimum sort pairs of channels, once the first ones of all pairs
are one half of the channels and the second ones the other. To bring them there
and back is slow everywhere (a gather takes several times as long as the sort).
But the channels between two layers with kernels may have any order: the one
before makes them in that order, the one behind takes them so. So each tensor
has an order of its last axis, which layers without a mind of their own hand on,
and which is undone where a layer needs its channels as they were.

Some channels may be negated besides, see [Folded sorts]: layers that are odd in
each of them hand that on, and norms forget it.
"""

import math

import keras
import numpy as np

from deel.lip._graph import nodes_in_order


def same(order, shape):
    """The order itself: of layers that handle all channels alike."""
    return order


def _flattened(order, shape):
    """The order of all values of an image whose channels have an order."""
    if None in shape[1:]:
        return None
    positions = np.arange(math.prod(shape[1:-1]))[:, None]
    return (positions * shape[-1] + order).reshape(-1)


def _stock(names, ranks, of_images):
    """Stock classes, by their names, some of which end with a rank."""
    names = [*names, *(f"{name}{n}D" for n in ranks for name in of_images)]
    return [getattr(keras.layers, name) for name in names]


_ODD = [
    *_stock(
        ["Dropout", "GaussianDropout", "GaussianNoise", "Identity"],
        (1, 2),
        ["SpatialDropout"],
    ),
    *_stock(
        [],
        (1, 2, 3),
        [
            "AveragePooling",
            "Cropping",
            "GlobalAveragePooling",
            "UpSampling",
            "ZeroPadding",
        ],
    ),
]

# What handles all channels alike, and what it makes of their order.
KEEPS_ORDER = dict.fromkeys(
    [
        *_ODD,
        *_stock(
            ["ELU", "LeakyReLU", "ReLU"],
            (1, 2, 3),
            ["GlobalMaxPooling", "MaxPooling"],
        ),
    ],
    same,
)
KEEPS_ORDER[keras.layers.Flatten] = _flattened

# Of these, what negated channels leave negated, and what they do not change.
KEEPS_SIGNS = dict.fromkeys([*_ODD, keras.layers.Flatten], True)


# What joins tensors channel by channel.
JOINS = (
    keras.layers.Add,
    keras.layers.Average,
    keras.layers.Maximum,
    keras.layers.Minimum,
    keras.layers.Subtract,
)


def has_channel_weights(layer, x):
    """Whether each weight of a layer is a number for each channel."""
    if type(layer) is not keras.layers.BatchNormalization:
        return False
    return layer.axis in (-1, len(x.shape) - 1)


def keeps_order(layer_class=None, *, negated=None):
    """Decorator: a layer of this library handles all channels alike.

    Args:
        layer_class: The class, where there are no arguments.
        negated: Boolean or None. True says that a negated channel is negated
            behind it, False that it is the same as if it had not been.
    """
    if layer_class is None:
        return lambda kind: keeps_order(kind, negated=negated)
    KEEPS_ORDER[layer_class] = same
    if negated is not None:
        KEEPS_SIGNS[layer_class] = negated
    return layer_class


def is_channels_last(layer):
    return getattr(layer, "data_format", None) in (None, "channels_last")


def sorts_pairs(layer, channels):
    return getattr(layer, "_sorts_pairs", lambda channels: False)(channels)


def readers_of(graph):
    """Nodes that read each tensor, by id, and the number of uses of layers."""
    readers, uses = {}, {}
    for node in nodes_in_order(graph):
        uses[id(node.operation)] = uses.get(id(node.operation), 0) + 1
        for x in node.input_tensors:
            readers.setdefault(id(x), []).append(node)
    # Who reads an output is not known.
    for x in graph.outputs:
        readers.setdefault(id(x), []).append(None)
    return readers, uses


def wants_halves(x, readers):
    """Whether all that becomes of a tensor is that its pairs are sorted."""
    nodes = readers.get(id(x), [None])
    return all(node is not None and _sorts(node, readers) for node in nodes)


def _sorts(node, readers):
    layer = node.operation
    (x,) = node.input_tensors if len(node.input_tensors) == 1 else (None,)
    if x is None:
        return False
    if sorts_pairs(layer, x.shape[-1]):
        return True
    keeps = KEEPS_ORDER.get(type(layer)) is same and is_channels_last(layer)
    return keeps and wants_halves(node.outputs[0], readers)
