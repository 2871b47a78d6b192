"""Lipschitz bound of a convolution from how often its windows read a value.

A convolution is a matrix product with the patches of its input,
`y = patches(x) W`. If each value of `x` stands in at most `n` places of the
patches, `||patches(x)||^2 <= n ||x||^2`, with equality when every value is read
that often. Hence `||conv(x)|| <= sqrt(n) ||W|| ||x||`, and the matrix has to be
divided by `sqrt(n)`. Over several axes, n is the product of those of the axes.

"Same" zero padding, window of k values that are d apart, stride s: the value
at x is read by the tap t of the window at p when `p s + t d = x + padding`. So
`t d` is fixed modulo s, which leaves one tap out of `s / gcd(s, d)`; and a
window reads a value at most once. Over an axis of length L there are at most
`min(ceil(k gcd(s, d) / s), ceil(L / s))` of them, wherever the windows start.

Padding with values of the image: the copies count as well. They are counted
one by one.

In both cases the *maximum* over positions bounds the operator. The mean, which
many implementations use, does not.
"""

import math

import numpy as np

from deel.lip._padding import check_length
from deel.lip._padding import shortest_length

DATA_FORMATS = ("channels_last", "channels_first")

# What NumPy calls the modes of padding with values of the image.
NUMPY_MODES = {
    "reflect": "reflect",
    "replicate": "edge",
    "symmetric": "symmetric",
    "circular": "wrap",
}


def spatial_shape(input_shape, data_format):
    """Returns the spatial lengths of an input shape, None where unknown."""
    if data_format not in DATA_FORMATS:
        raise RuntimeError(
            f"Argument `data_format` must be one of {DATA_FORMATS}. "
            f"Received: data_format={data_format}"
        )
    if data_format == "channels_first":
        return tuple(input_shape[2:])
    return tuple(input_shape[1:-1])


def first_spatial_axis(data_format):
    """Returns the number of the first axis of the image itself."""
    return 2 if data_format == "channels_first" else 1


def same_padding(kernel_size, dilation=1):
    """Values to add on each side so that stride 1 keeps the length."""
    return kernel_size // 2 * dilation


def window_overlap(
    kernel_size, stride, length=None, dilation=1, padding_mode="zeros"
):
    """Upper bound of how often the windows along an axis read one value.

    Args:
        kernel_size: Integer, the number k of taps of the window.
        stride: Integer, the stride s.
        length: Integer or None, the length L of the axis if it is known.
        dilation: Integer, the distance d of the taps.
        padding_mode: String, one of `deel.lip._padding.MODES`.

    Returns:
        Integer. With `length=None`, a bound for every length.
    """
    if padding_mode == "zeros":
        overlap = math.ceil(kernel_size * math.gcd(stride, dilation) / stride)
        if length is not None:
            overlap = min(overlap, math.ceil(length / stride))
        return overlap
    axis = (kernel_size, stride, dilation, padding_mode)
    padding = same_padding(kernel_size, dilation)
    if length is not None:
        check_length(length, padding, padding_mode)
        return _counted_overlap(*axis, length)
    # On longer axes the two borders are on their own, and where the windows
    # end depends on the length modulo the stride: nothing new is found.
    span = (kernel_size - 1) * dilation + 1
    shortest = max(1, shortest_length(padding, padding_mode))
    lengths = range(shortest, 2 * span + 2 * stride + 1)
    return max(_counted_overlap(*axis, length) for length in lengths)


def _counted_overlap(kernel_size, stride, dilation, padding_mode, length):
    padding = same_padding(kernel_size, dilation)
    positions = np.arange(length)
    padded = np.pad(positions, padding, mode=NUMPY_MODES[padding_mode])
    span = (kernel_size - 1) * dilation + 1
    starts = np.arange(0, len(padded) - span + 1, stride)
    read = padded[starts[:, None] + dilation * np.arange(kernel_size)]
    return int(np.max(np.bincount(read.ravel())))


def coverage_coefficient(
    kernel_size, strides, lengths, dilation_rate=None, padding_mode="zeros"
):
    """Returns `1 / sqrt(n_1 * ... * n_d)`, a float.

    Args:
        kernel_size: Tuple of integers, one for each spatial axis.
        strides: Tuple of integers.
        lengths: Tuple of integers or Nones, the spatial shape of the input.
        dilation_rate: Tuple of integers; None means 1 everywhere.
        padding_mode: String, see `window_overlap`.
    """
    dilation_rate = dilation_rate or (1,) * len(kernel_size)
    axes = zip(kernel_size, strides, lengths, dilation_rate, strict=True)
    overlaps = [window_overlap(*axis, padding_mode) for axis in axes]
    return 1.0 / math.sqrt(math.prod(overlaps))
