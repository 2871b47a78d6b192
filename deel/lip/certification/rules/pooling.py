"""Pooling."""

import math

import keras
import numpy as np

from deel.lip import layers
from deel.lip._numerics.windows import Axis
from deel.lip._numerics.windows import spatial_shape
from deel.lip.certification._image_steps import Convolution
from deel.lip.certification._norms import matrix_norm
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import Later
from deel.lip.certification._registry import output_shapes
from deel.lip.certification._registry import rule
from deel.lip.certification._registry import size_of
from deel.lip.certification._rounding import Chain
from deel.lip.certification._rounding import Step
from deel.lip.certification._spectrum import behind_convolution
from deel.lip.certification.rules._steps import FACTORS
from deel.lip.certification.rules._steps import count_inexact
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules._steps import magnitude
from deel.lip.certification.rules._steps import step_of


def pooling_axes(layer, shape):
    """How the windows of a layer read an image of a shape, a list of `Axis`."""
    windows = zip(
        spatial_shape(shape, layer.data_format),
        layer.pool_size,
        layer.strides,
        strict=True,
    )
    return [
        Axis(length, size, stride, 1, layer.padding)
        for length, size, stride in windows
    ]


@rule(
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
)
def _max_pooling(layer, input_shapes):
    # |max a - max b| is at most the largest |a - b| of a window, and a value
    # is read by `overlap` windows.
    axes = pooling_axes(layer, input_shapes[0])
    overlap = math.prod(axis.overlap() for axis in axes)
    value = math.sqrt(overlap)
    rounding = step_of(layer, input_shapes, value, 0)
    chain = _largest_chain(layer, axes)
    return Bound(value, "overlap", overlap <= 1, rounding=rounding, chain=chain)


def _largest_chain(layer, axes):
    """The `chain` of the largest values of windows of 2, 4, 8, ... values."""
    if layer.data_format != "channels_last":
        return None
    for axis in axes:
        is_power = axis.size & (axis.size - 1) == 0
        if axis.length is None or axis.size != axis.stride or not is_power:
            return None
        if any(axis.widths()):
            return None
    doublings = [axis.size.bit_length() - 1 for axis in axes]
    return lambda spread: spread.largest(doublings)


@rule(
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
)
def _average_pooling(layer, input_shapes):
    axes = pooling_axes(layer, input_shapes[0])
    norms = [_average_norm(axis) for axis in axes]
    value = math.prod(norm for norm, _ in norms)
    value *= (1 + half_unit(layer)) ** 2
    terms = math.prod(layer.pool_size) + FACTORS
    factor = (1 + half_unit(layer)) ** 2
    return Bound(
        value,
        "singular values",
        all(exact for _, exact in norms),
        chain=_mean_chain(layer, axes, value, factor),
        rounding=step_of(
            layer,
            input_shapes,
            value,
            terms,
            # Windows that overlap repeat values, whose sums the norm divides.
            partial=value * math.prod(layer.pool_size),
        ),
    )


def _mean_chain(layer, axes, norm, factor=1.0):
    """The `chain` of means over windows, times a factor."""
    is_known = all(axis.length is not None for axis in axes)
    if layer.data_format != "channels_last" or not is_known:
        return None
    # At a border, means of fewer values are none over a torus.
    if any(any(axis.widths()) for axis in axes):
        return None
    size = math.prod(axis.size for axis in axes)
    kernel = np.full([axis.size for axis in axes] + [1, 1], factor / size)
    means = Convolution(kernel * (1 + 1e-12), axes, by_channel=True)
    return lambda spread: behind_convolution(spread, means, norm)


def _average_norm(axis):
    """Norm of the matrix of means along one axis.

    At the borders, windows divide by the number of values that are there; on
    the PyTorch backend of Keras, where the sides of some axis are not padded
    alike, they read the border itself instead. A bound counts on every backend.
    """
    if axis.length is None:
        # sqrt(norm_1 norm_inf): rows sum to one, and so many of them overlap,
        # each with at least one value, or with all.
        smallest = axis.size if axis.padding == "valid" else 1
        return math.sqrt(axis.overlap() / smallest), False
    reads = axis.selection()
    counts = np.sum(reads, axis=(1, 2), keepdims=True)
    norm, exact = _mean_norm(reads / np.maximum(counts, 1))
    if not any(axis.widths()):
        return norm, exact
    with_border, _ = _mean_norm(axis.selection(repeats_border=True) / axis.size)
    return max(norm, with_border), False


def _mean_norm(weights):
    """Norm of a matrix of means, from its array `(windows, taps, length)`."""
    matrix = np.sum(weights, axis=1)
    if min(matrix.shape) > 1024:
        sums = np.max(np.sum(matrix, axis=0)) * np.max(np.sum(matrix, axis=1))
        return math.sqrt(sums) * (1 + 1e-12), False
    return matrix_norm(matrix)


@rule(
    layers.ScaledAveragePooling1D,
    layers.ScaledAveragePooling2D,
    layers.ScaledAveragePooling3D,
    layers.ScaledL2NormPooling1D,
    layers.ScaledL2NormPooling2D,
    layers.ScaledL2NormPooling3D,
)
def _scaled_pooling(layer, input_shapes):
    # Windows do not overlap. The mean of p values is 1/sqrt(p)-Lipschitz, and
    # so is the root of the mean of their squares.
    size = math.prod(layer.pool_size)
    value = magnitude(layer, layer._get_coef()) / math.sqrt(size)
    return _pooled(layer, value, size, input_shapes)


def _pooled(layer, value, size, input_shapes):
    """Bound of a scaled mean or norm of so many values."""
    value *= (1 + 1e-12) * (1 + half_unit(layer)) ** 3
    epsilon = getattr(layer, "eps_grad_sqrt", None)
    inexact = count_inexact(layer.k_coef_lip)
    rounding = pooled_rounding(
        layer, input_shapes, value, size, epsilon, inexact
    )
    return Bound(value, "formula", True, rounding=rounding)


def pooled_rounding(layer, input_shapes, value, size, epsilon=None, inexact=0):
    """What a mean or norm of so many values rounds.

    Args:
        layer: The layer or `Piece`.
        input_shapes: List of tuples.
        value: Float, its Lipschitz constant.
        size: Integer, how many values a window has.
        epsilon: Float, what is added to the mean of squares; None for a mean.
        inexact: As of `Step`.
    """

    def offset():
        if epsilon is None:
            return 0.0
        (shape,) = output_shapes(layer, input_shapes)
        return value * math.sqrt(size * epsilon * size_of(shape))

    rounding = step_of(
        layer,
        input_shapes,
        value,
        size + FACTORS,
        offset=offset,
        squares=epsilon is not None,
        inexact=inexact,
        partial=max(value, 1.0) * math.sqrt(size),
    )
    if epsilon and count_inexact(epsilon):
        # Another epsilon moves a norm by no more than its own share.
        of_epsilon = Later(
            lambda: Step(magnified=0.0, offset=offset(), inexact=1)
        )
        rounding = Chain(rounding, of_epsilon)
    return rounding


@rule(
    layers.ScaledAdaptiveAveragePooling2D,
    layers.ScaledAdaptiveL2NormPooling2D,
    layers.ScaledGlobalAveragePooling1D,
    layers.ScaledGlobalAveragePooling2D,
    layers.ScaledGlobalAveragePooling3D,
    layers.ScaledGlobalL2NormPooling1D,
    layers.ScaledGlobalL2NormPooling2D,
    layers.ScaledGlobalL2NormPooling3D,
)
def _scaled_global_pooling(layer, input_shapes):
    lengths = spatial_shape(input_shapes[0], layer.data_format)
    size = math.inf if None in lengths else math.prod(lengths)
    # The root of the number of values is a factor, too.
    value = magnitude(layer, layer.k_coef_lip) * (1 + 1e-6)
    return _pooled(layer, value, size, input_shapes)


def _global_chain(layer, norm):
    """The `chain` of a mean over all positions."""
    if layer.data_format != "channels_last" or layer.keepdims:
        return None
    return lambda spread: spread.mean(norm)


@rule(
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
)
def _global_average(layer, input_shapes):
    lengths = spatial_shape(input_shapes[0], layer.data_format)
    is_known = None not in lengths
    size = math.prod(lengths) if is_known else math.inf
    value = (1 + 1e-12) / math.sqrt(size) if is_known else 1.0
    value *= (1 + half_unit(layer)) ** 2
    return Bound(
        value,
        "formula" if is_known else "image of unknown size",
        is_known,
        rounding=step_of(
            layer,
            input_shapes,
            value,
            size + FACTORS,
            partial=math.sqrt(size),
        ),
        chain=_global_chain(layer, value) if is_known else None,
    )
