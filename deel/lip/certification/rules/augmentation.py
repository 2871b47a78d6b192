"""Layers that change images while training, and that crop them.

Random layers return their input at inference, whatever it is: Keras applies
none of them with `training=False`. `RandomCrop` is the exception: where the
image is not of the size of the crop, it was cropped and resized in older
releases of Keras, and is left as it is in newer ones.
"""

import keras

from deel.lip._numerics.windows import spatial_shape
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import rule
from deel.lip.certification.rules._steps import copied

# Most of them are newer than the oldest Keras that is supported.
_AT_TRAINING_ONLY = [
    getattr(keras.layers, name)
    for name in (
        "AugMix",
        "CutMix",
        "MixUp",
        "RandAugment",
        "RandomBrightness",
        "RandomColorDegeneration",
        "RandomColorJitter",
        "RandomContrast",
        "RandomElasticTransform",
        "RandomErasing",
        "RandomFlip",
        "RandomGaussianBlur",
        "RandomGrayscale",
        "RandomHue",
        "RandomInvert",
        "RandomPerspective",
        "RandomPosterization",
        "RandomRotation",
        "RandomSaturation",
        "RandomSharpness",
        "RandomShear",
        "RandomTranslation",
        "RandomZoom",
    )
    if name in dir(keras.layers)
]


@rule(*_AT_TRAINING_ONLY)
def _identity(layer, input_shapes):
    return Bound(1.0, "formula", True, rounding=copied(layer, input_shapes))


@rule(keras.layers.CenterCrop)
def _center_crop(layer, input_shapes):
    lengths = _image_size(layer, input_shapes)
    crop = layer.height, layer.width
    # Some of the values of the image, each once.
    is_within = all(n >= c for n, c in zip(lengths, crop, strict=True))
    if not is_within:
        raise ValueError(
            f"Layer '{layer.name}' resizes images that are smaller than its "
            "crop, by an interpolation that depends on the backend. Expected "
            f"images of at least {crop}. Received: images of {lengths}"
        )
    return Bound(1.0, "formula", True, rounding=copied(layer, input_shapes))


@rule(keras.layers.RandomCrop)
def _random_crop(layer, input_shapes):
    lengths = _image_size(layer, input_shapes)
    crop = layer.height, layer.width
    if lengths != crop:
        raise ValueError(
            f"What layer '{layer.name}' does at inference depends on the "
            "release of Keras: images are left as they are, or cropped and "
            f"resized. Expected images of the size of the crop, {crop}; crop "
            "those of training in the data set. "
            f"Received: images of {lengths}"
        )
    return Bound(1.0, "formula", True, rounding=copied(layer, input_shapes))


def _image_size(layer, input_shapes):
    """Height and width of the images, which have to be known."""
    (shape,) = input_shapes
    if len(shape) != 4:
        raise ValueError(
            f"Layer '{layer.name}' would crop the batch. Expected images "
            f"(batch, height, width, channels). Received: shape {shape}"
        )
    lengths = tuple(spatial_shape(shape, layer.data_format))
    if None in lengths:
        raise ValueError(
            f"What layer '{layer.name}' does depends on the size of images. "
            "Expected `input_shape=(height, width, channels)`. "
            f"Received: images of {lengths}"
        )
    return lengths
