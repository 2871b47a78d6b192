"""Sorting groups of neighbours on the last axis, exactly.

In convolutional networks, whose feature maps are large, a sort activation takes
longer than the constraint on kernels. So there are several ways to sort pairs,
each at the speed of memory where it is used. All give the same values, bit by
bit, and the same gradient.
"""

import sys

import keras
import numpy as np
from keras import ops

from deel.lip._backend.compilation import fused
from deel.lip._backend.compilation import has_fast_strides
from deel.lip._backend.gradient import custom_gradient
from deel.lip._backend.products import digits_of_products
from deel.lip._backend.tensors import reshaped

# Most channels that one small matrix product sorts; see `_sort_by_products`.
_BLOCK = 16

# Integers that hold a pair of values, and one of them. There are none for pairs
# of float64.
_WORDS = {
    "float32": ("uint64", "uint32"),
    "float16": ("uint32", "uint16"),
    "bfloat16": ("uint32", "uint16"),
}


def sort_groups(inputs, size):
    """Sorts groups of `size` neighbours on the last axis."""
    *others, channels = _shape(inputs)
    groups = reshaped(inputs, (*others, channels // size, size))
    return reshaped(ops.sort(groups, axis=-1), _shape(inputs))


def sort_pairs(inputs, training):
    """Sorts pairs of neighbours on the last axis.

    The gradient takes the same exchange as the values, so nothing but Booleans
    is kept for it. A tie is left as it is.
    """
    if has_fast_strides(inputs, training):
        sort = _sort_words if _has_words(inputs) else _sort_fused
        return sort(inputs)
    if digits_of_products(inputs):
        return _sort_halves(inputs)
    return _sort_by_products(inputs)


def halves(channels):
    """The order of channels in which pairs of neighbours are two halves."""
    return np.arange(channels).reshape(-1, 2).T.reshape(-1)


def sorted_halves(inputs):
    """The two halves of what sorts pairs that are in the order of `halves`."""
    first, second = ops.split(inputs, 2, axis=-1)
    return ops.minimum(first, second), ops.maximum(first, second)


def _sorting(descending, exchange):
    """The first values of all pairs against the second ones."""

    @custom_gradient
    def sort(inputs):
        swap = descending(inputs)

        def gradient(upstream):
            return exchange(upstream, swap)

        return exchange(inputs, swap), gradient

    return sort


def _descending(x):
    pairs = _paired(x)
    return pairs[..., :1] > pairs[..., 1:]


def _exchange(x, swap):
    pairs = _paired(x)
    exchanged = ops.where(swap, ops.flip(pairs, axis=-1), pairs)
    return reshaped(exchanged, _shape(x))


def _paired(x):
    """The same values, with an axis of two at the end."""
    # Converters follow an unknown batch size through axes that stay.
    return reshaped(x, (*_shape(x)[:-1], x.shape[-1] // 2, 2))


def _shape(x):
    """The shape to give to a tensor like `x`, of any number of samples."""
    return ops.shape(x) if None in x.shape[1:] else (-1, *x.shape[1:])


def _has_words(x):
    """Whether XLA, called by TensorFlow, can move pairs as single integers."""
    if keras.backend.backend() != "tensorflow" or sys.byteorder != "little":
        return False
    return x.dtype.name in _WORDS


def _words(x):
    """Each pair as an integer, whose low half is the first value."""
    import tensorflow as tf

    return tf.bitcast(_paired(x), _WORDS[x.dtype.name][0])


def _descending_words(x):
    return _is_low_half_greater(_words(x), dtype=x.dtype.name)


@fused
def _is_low_half_greater(words, dtype):
    import tensorflow as tf

    half = tf.as_dtype(_WORDS[dtype][1])
    high = tf.bitwise.right_shift(words, _width(words))
    low, high = (tf.bitcast(tf.cast(x, half), dtype) for x in (words, high))
    return low > high


def _exchange_words(x, swap):
    @custom_gradient
    def exchange(x):
        import tensorflow as tf

        words = _rotated_where(_words(x), swap)

        # Integers have no gradient, which the gradient of this one would need.
        def gradient(upstream):
            return _exchange_words(upstream, swap)

        return reshaped(tf.bitcast(words, x.dtype), _shape(x)), gradient

    return exchange(x)


@fused
def _rotated_where(words, swap):
    import tensorflow as tf

    width = _width(words)
    low = tf.bitwise.right_shift(words, width)
    high = tf.bitwise.left_shift(words, width)
    return tf.where(swap, tf.bitwise.bitwise_or(low, high), words)


def _width(words):
    """Half the number of bits of integers, as one of them."""
    return words.dtype.as_numpy_dtype(words.dtype.size * 4)


_sort_halves = _sorting(_descending, _exchange)

_sort_fused = _sorting(fused(_descending), fused(_exchange))

_sort_words = _sorting(_descending_words, _exchange_words)


@custom_gradient
def _sort_by_products(inputs):
    """The same from operations that all run at the speed of memory.

    For TensorFlow alone, where access to every other channel is slow. The
    difference within each pair and the exchange of its two values are products
    with small constant matrices. Both are exact: each entry is a sum with at
    most two terms, and one with a factor 1 for the exchange. Values must be
    finite, since the products multiply the other channels by 0; and products
    must not round their factors.
    """
    exchange, difference = _pair_matrices(inputs.shape[-1], inputs.dtype)
    swap = _by_blocks(inputs, difference) > 0
    outputs = ops.where(swap, _by_blocks(inputs, exchange), inputs)

    def gradient(upstream):
        return ops.where(swap, _by_blocks(upstream, exchange), upstream)

    return outputs, gradient


def _pair_matrices(channels, dtype):
    """Matrices that exchange the values of each pair, and subtract them.

    Both entries of a pair receive the same difference, first minus second.
    """
    sizes = range(2, _BLOCK + 1, 2)
    size = max(size for size in sizes if channels % size == 0)
    pairs = np.eye(size // 2)
    exchange = np.kron(pairs, [[0, 1], [1, 0]])
    difference = np.kron(pairs, [[1, 1], [-1, -1]])
    return (
        ops.convert_to_tensor(exchange, dtype=dtype),
        ops.convert_to_tensor(difference, dtype=dtype),
    )


def _by_blocks(x, matrix):
    """Multiplies consecutive blocks of channels by a small matrix."""
    blocks = reshaped(x, (-1, matrix.shape[0]))
    return reshaped(ops.matmul(blocks, matrix), ops.shape(x))
