"""Euclidean norms of windows, and their slopes."""

import functools
import math

import keras
from keras import ops

from deel.lip._backend.compilation import fused
from deel.lip._backend.gradient import custom_gradient
from deel.lip._backend.tensors import reshaped
from deel.lip._backend.tensors import sliced
from deel.lip._numerics.norm_bounds import one_for_zero
from deel.lip._numerics.windows import channel_axis
from deel.lip._validation import normal_range

# In relative terms: norms that have been cut off, and then rounded.
_NEAR_LIMIT = 1e-6


def unmasked(inputs, mask, data_format):
    """Sequences with zeros for masked steps, and the share of those kept.

    Where all steps are masked the share is that of one step, so that it can
    divide.
    """
    kept = ops.cast(mask, inputs.dtype)
    share = ops.maximum(ops.sum(kept, axis=1), 1) / ops.sum(
        ops.ones_like(kept), axis=1
    )
    mask = ops.expand_dims(ops.cast(mask, "bool"), channel_axis(data_format))
    return ops.where(mask, inputs, ops.zeros_like(inputs)), share


def largest_square(values, size=1):
    """Limit of mean squares of `size` values; see the note on large norms."""
    return normal_range(keras.backend.standardize_dtype(values.dtype))[1] / (
        2.0 * size
    )


def norms_of_windows(inputs, shape, axes, epsilon, scale):
    """Root of the mean square of each window, and of `epsilon`, times `scale`.

    With a gradient that reads and writes the image once. `shape` is that of the
    inputs with their spatial axes split, `axes` are those within windows.
    """
    settings = {"shape": shape, "axes": axes, "scale": scale}

    @custom_gradient
    def pooled(inputs):
        norms = _scaled_norms(inputs, epsilon=epsilon, **settings)

        def gradient(upstream):
            return _slopes_of_norms(inputs, norms, upstream, **settings)

        return norms, gradient

    return pooled(inputs)


# Whole, with the operations on the small tensors: one that TensorFlow does not
# vectorise, as `where`, takes as long as reading the image.
@fused
def _scaled_norms(inputs, shape, axes, epsilon, scale):
    size = math.prod(shape[axis] for axis in axes)
    result = [n for axis, n in enumerate(shape) if axis not in axes]
    # Rows are long enough for vector instructions once the last axis within
    # windows and the channels behind it are one, in blocks.
    rows = (*shape[: axes[-1]], math.prod(shape[axes[-1] :]))
    sums = ops.square(reshaped(inputs, rows))
    for axis in axes:
        block = sums.shape[axis] // shape[axis]
        starts = range(0, sums.shape[axis], block)
        parts = [sliced(sums, axis, i, i + block) for i in starts]
        sums = functools.reduce(ops.add, parts)
    squares = ops.minimum(sums / size, largest_square(inputs, size))
    return ops.sqrt(reshaped(squares, result) + epsilon) * scale


@fused
def _slopes_of_norms(inputs, norms, upstream, shape, axes, scale):
    """Gradient of the norms, which at zero is zero instead of infinite."""
    size = math.prod(shape[axis] for axis in axes)
    # Neither zero nor cut off; of the others, the slope is one by infinity.
    limit = scale * math.sqrt(largest_square(inputs, size)) * (1 - _NEAR_LIMIT)
    regular = ops.logical_and(norms > 0, norms < limit)
    norms = ops.where(regular, norms, float("inf"))
    factors = upstream * (scale * scale / size) / norms
    ones = [1 if axis in axes else n for axis, n in enumerate(shape)]
    product = reshaped(inputs, shape) * reshaped(factors, ones)
    return reshaped(product, ops.shape(inputs))


def _root_and_slope(x):
    """Square root whose gradient at zero is zero instead of infinite."""
    root = ops.sqrt(x)

    def gradient(upstream):
        slope = 0.5 / one_for_zero(root)
        slope = ops.where(root > 0, slope, ops.zeros_like(root))
        return upstream * slope

    return root, gradient


square_root = custom_gradient(_root_and_slope)
