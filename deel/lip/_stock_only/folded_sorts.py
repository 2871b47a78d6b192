"""Sorts of pairs that convolutions do.

Note [Folded sorts]

Some runtimes keep what convolutions return in blocks of channels. Activations,
sums, products and means work on these, but not a split in two halves, a minimum
or a maximum: there, all values are brought to another order and back, which
takes longer than the convolution. So a sort is written as a sum. With p and q
for a pair, and `r = relu(p - q)`,

    -min(p, q) = -p + r,    max(p, q) = q + r.

The convolution before returns -p and q, and another one returns r for both. It
reads what the first one reads, with the difference of its two halves as kernel,
where that is little; or else what the first one returns. The next kernel takes
the minima negated, as they are.

A comparison is exact; here each of a pair is wrong by some rounding units of
the larger one.
"""

import keras
import numpy as np
from keras import ops

from deel.lip._stock_only.orders import KEEPS_SIGNS
from deel.lip._stock_only.orders import is_channels_last
from deel.lip._stock_only.orders import sorts_pairs

# With more channels, reading all of them for each takes longer than a split.
_MOST_CHANNELS = 32


def folds(node, readers, is_linear):
    """Whether a convolution and the sort behind it are faster as a sum.

    Args:
        node: The call of a plain layer with a kernel.
        readers: As `readers_of` returns it.
        is_linear: Function of a node, whether a kernel takes its input so.
    """
    layer = node.operation
    if type(layer) is not keras.layers.Conv2D:
        return False
    channels = layer.kernel.shape[-1]
    if layer.compute_dtype != "float32" or (
        channels > _MOST_CHANNELS and not _reads_little(layer)
    ):
        return False
    (x,) = node.outputs
    if not sorts_pairs(layer.activation, channels):
        if layer.activation is not keras.activations.linear:
            return False
        nodes = readers.get(id(x), [None])
        if len(nodes) != 1 or nodes[0] is None:
            return False
        if not sorts_pairs(nodes[0].operation, channels):
            return False
        (x,) = nodes[0].outputs
    return _takes_signs(x, readers, is_linear)


def _reads_little(layer):
    *taps, inputs, channels = layer.kernel.shape
    return np.prod(taps) * inputs <= channels


def _takes_signs(x, readers, is_linear):
    """Whether it costs nothing that some channels are negated."""

    def takes(node):
        if node is None:
            return False
        if is_linear(node):
            return True
        kind = type(node.operation)
        if kind not in KEEPS_SIGNS or not is_channels_last(node.operation):
            return False
        if not KEEPS_SIGNS[kind]:
            return True
        return _takes_signs(node.outputs[0], readers, is_linear)

    return all(map(takes, readers.get(id(x), [None])))


def signs_of_halves(channels):
    """Factors of the channels that are read in halves; see [Folded sorts]."""
    return np.repeat(np.array([-1.0, 1.0], "float32"), channels // 2)


def folded(layer, config, x, y, weights, with_weights):
    """The sorted pairs, of which the first ones are negated.

    Args:
        layer: The convolution that it is made for.
        config: That of the stock layer, without activation.
        x: Symbolic tensor, what the stock layer reads.
        y: Symbolic tensor, what it returns: halves, of which the first one is
            negated.
        weights: List of the arrays of the stock layer.
        with_weights: Function of a layer and its weights, that returns a form.
    """
    channels = y.shape[-1]
    config = {**config, "activation": "relu", "name": f"{layer.name}_fold"}
    if not _reads_little(layer):
        ones = (1,) * (weights[0].ndim - 2)
        weights = [np.eye(channels, dtype="float32")[(None,) * len(ones)]]
        config.update(
            kernel_size=ones,
            strides=ones,
            dilation_rate=ones,
            padding="valid",
            use_bias=False,
        )
        x = y
    fold = type(layer).from_config(config)
    step = with_weights(fold, [_differences(w) for w in weights])(x)
    return ops.add(step, y)


def _differences(weight):
    """What returns the differences of all pairs, for both of each."""
    first, second = np.split(weight, 2, axis=-1)
    return np.concatenate([-(first + second)] * 2, axis=-1)
