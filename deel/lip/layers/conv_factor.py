"""Lipschitz bound of a convolution with "same" zero padding.

A convolution is a matrix product with the patches of its input,
`y = patches(x) W`. Each value of `x` stands in at most `n_h * n_w` patches, so
`||patches(x)||^2 <= n_h n_w ||x||^2`, with equality when every value is read
that often. Hence `||conv(x)|| <= sqrt(n_h n_w) ||W|| ||x||`, and the matrix has
to be divided by `sqrt(n_h n_w)`.

Along one axis of length L, the windows that contain a given position start at
positions that differ by multiples of the stride s, within a range of k: there
are at most `ceil(k / s)` of them, and never more than there are windows,
`ceil(L / s)`. The maximum over positions is what bounds the operator. The mean,
which many implementations use, does not.
"""

import math

DATA_FORMATS = ("channels_last", "channels_first")


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


def window_overlap(kernel_size, stride, length=None):
    """Upper bound of the number of windows that read one position.

    Args:
        kernel_size: Integer, the size k of the window.
        stride: Integer, the stride s.
        length: Integer or None, the length L of the axis if it is known.

    Returns:
        Integer, `min(ceil(k / s), ceil(L / s))`.
    """
    overlap = math.ceil(kernel_size / stride)
    if length is not None:
        overlap = min(overlap, math.ceil(length / stride))
    return overlap


def coverage_coefficient(kernel_size, strides, lengths):
    """Returns `1 / sqrt(n_1 * ... * n_d)`, a float.

    Args:
        kernel_size: Tuple of integers, one for each spatial axis.
        strides: Tuple of integers.
        lengths: Tuple of integers or Nones, the spatial shape of the input.
    """
    axes = zip(kernel_size, strides, lengths, strict=True)
    return 1.0 / math.sqrt(math.prod(window_overlap(*axis) for axis in axes))
