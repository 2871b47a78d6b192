"""Layers that copy values."""

import math

import keras

from deel.lip import layers
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import rule
from deel.lip.certification.rules._steps import copied


@rule(
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
    keras.layers.Identity,
    keras.layers.InputLayer,
    keras.layers.Permute,
    keras.layers.Reshape,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.ZeroPadding3D,
    layers.InvertibleDownSampling,
    layers.InvertibleUpSampling,
    layers.SpatialShift2D,
)
def _isometry(layer, input_shapes):
    rounding = copied(layer, input_shapes)
    chain = _chain_of(layer, input_shapes[0])
    return Bound(1.0, "formula", True, rounding=rounding, chain=chain)


def _chain_of(layer, shape):
    """The `chain` of a layer that leaves values where they are, or frames."""
    kind = type(layer)
    is_vector = len(shape) == 2
    if kind in _KEEP_VALUES or (is_vector and kind is keras.layers.Flatten):
        return lambda spread: spread
    if is_vector or getattr(layer, "data_format", "") != "channels_last":
        return None
    if kind is keras.layers.Flatten:
        return lambda spread: spread.flattened()
    if kind in _FRAMES:
        lengths = layer.compute_output_shape(shape)[1:-1]
        if None not in lengths:
            return lambda spread: spread.framed(lengths)
    return None


_KEEP_VALUES = (
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.InputLayer,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)

_FRAMES = (
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
    keras.layers.ZeroPadding2D,
    keras.layers.ZeroPadding3D,
)


@rule(keras.layers.RepeatVector)
def _repetition(layer, input_shapes):
    value = math.sqrt(layer.n) * (1 + 1e-12)
    rounding = copied(layer, input_shapes, value)
    return Bound(value, "formula", True, rounding=rounding)


@rule(
    keras.layers.UpSampling1D,
    keras.layers.UpSampling2D,
    keras.layers.UpSampling3D,
)
def _up_sampling(layer, input_shapes):
    if getattr(layer, "interpolation", "nearest") != "nearest":
        raise ValueError(
            f"Layer '{layer.name}' interpolates in a way that depends on the "
            'backend. Expected `interpolation="nearest"`. '
            f"Received: interpolation={layer.interpolation}"
        )
    sizes = (
        layer.size if isinstance(layer.size, (tuple, list)) else [layer.size]
    )
    value = math.sqrt(math.prod(sizes)) * (1 + 1e-12)
    rounding = copied(layer, input_shapes, value)
    return Bound(value, "formula", True, rounding=rounding)
