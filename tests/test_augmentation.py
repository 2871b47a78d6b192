"""Augmentation and cropping inside of networks: bounds and certificates."""

import keras
import numpy as np
import pytest
from harness import normal
from harness import operator_matrix
from harness import operator_norm
from harness import to_numpy

from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.layers import SpectralDense
from deel.lip.model import Sequential

# Keras' `MixUp` asks JAX for integers that it does not have by default.
pytestmark = pytest.mark.filterwarnings("ignore:Explicitly requested dtype")

SHAPE = (6, 7, 3)

# What the constructors need; classes that this Keras lacks are left out.
ARGUMENTS = {
    "AugMix": (),
    "CutMix": (),
    "MixUp": (),
    "RandAugment": (),
    "RandomBrightness": (0.5,),
    "RandomColorDegeneration": (0.5,),
    "RandomColorJitter": (),
    "RandomContrast": (0.5,),
    "RandomElasticTransform": (0.5,),
    "RandomErasing": (0.5,),
    "RandomFlip": (),
    "RandomGaussianBlur": (0.5,),
    "RandomGrayscale": (0.5,),
    "RandomHue": (0.5,),
    "RandomInvert": (0.5,),
    "RandomPerspective": (0.5,),
    "RandomPosterization": (4,),
    "RandomRotation": (0.5,),
    "RandomSaturation": (0.5,),
    "RandomSharpness": (0.5,),
    "RandomShear": (0.5,),
    "RandomTranslation": (0.5, 0.5),
    "RandomZoom": (0.5,),
    "RandomCrop": SHAPE[:2],
}
RANDOM = [name for name in ARGUMENTS if name in dir(keras.layers)]


def _random(name):
    return getattr(keras.layers, name)(*ARGUMENTS[name])


@pytest.mark.parametrize("name", RANDOM)
def test_random_layers_return_their_input_at_inference_and_have_the_constant_1(
    name,
):
    model = keras.Sequential([keras.Input(SHAPE), _random(name)])
    # Out of the range of pixels as well.
    x = 300 * normal(2, *SHAPE).astype("float32")
    assert np.array_equal(to_numpy(model.predict(x, verbose=0)), x)
    assert lipschitz_bound(model) == 1.0


def test_layers_of_this_keras_that_are_named_random_have_a_rule():
    named = {x for x in dir(keras.layers) if x.startswith("Random")}
    assert named <= set(RANDOM)


@pytest.mark.parametrize("name", [x for x in RANDOM if x != "RandomShear"])
def test_networks_with_random_layers_are_certified_and_exported(name):
    model = Sequential(
        [
            keras.Input(SHAPE),
            _random(name),
            keras.layers.CenterCrop(4, 5),
            keras.layers.Flatten(),
            SpectralDense(4),
        ]
    )
    # `RandomShear` of Keras 3.15 is not rebuilt by its own config.
    x = normal(5, *SHAPE).astype("float32")
    exact = certify(model, x)
    without = Sequential([keras.Input(SHAPE), *model.layers[1:]])
    assert np.all(exact.radius > 0)
    assert np.allclose(exact.radius, certify(without, x).radius)
    exported = certify(model.vanilla_export(verify=True), x)
    assert np.allclose(exported.radius, exact.radius)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("crop", [(4, 5), (6, 2), (1, 1), (6, 7)])
def test_a_crop_of_a_larger_image_has_the_constant_1(crop, data_format):
    shape = SHAPE if data_format == "channels_last" else (3, 6, 7)
    layer = keras.layers.CenterCrop(*crop, data_format=data_format)
    model = keras.Sequential([keras.Input(shape), layer])
    assert lipschitz_bound(model) == 1.0
    # Each value that is left is one of the image, and no other twice.
    matrix = operator_matrix(model, shape)
    assert np.array_equal(matrix.T @ matrix, np.eye(matrix.shape[1]))


@pytest.mark.parametrize("crop", [(7, 7), (6, 8), (4, 8), (12, 14)])
def test_a_crop_of_a_smaller_image_resizes_and_is_refused(crop):
    model = keras.Sequential(
        [keras.Input(SHAPE), keras.layers.CenterCrop(*crop)]
    )
    with pytest.raises(ValueError, match="resizes images that are smaller"):
        lipschitz_bound(model)
    if crop == (12, 14):
        # It would be wrong to take it for a crop.
        assert operator_norm(model, SHAPE) > 1.1


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.CenterCrop(4, 5),
        keras.layers.RandomCrop(4, 5),
    ],
    ids=lambda layer: layer.name,
)
def test_crops_of_images_of_unknown_size_are_refused(layer):
    model = keras.Sequential([keras.Input((None, None, 3)), layer])
    with pytest.raises(ValueError, match="Received: images of"):
        lipschitz_bound(model)
    if isinstance(layer, keras.layers.CenterCrop):
        assert lipschitz_bound(model, input_shape=SHAPE) == 1.0


def test_random_crops_of_other_images_are_refused():
    model = keras.Sequential(
        [keras.Input(SHAPE), keras.layers.RandomCrop(4, 5)]
    )
    with pytest.raises(ValueError, match="release of Keras"):
        lipschitz_bound(model)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_resizing_is_refused_with_the_reason(interpolation):
    layer = keras.layers.Resizing(12, 14, interpolation=interpolation)
    model = keras.Sequential([keras.Input(SHAPE), layer])
    with pytest.raises(ValueError, match="depend on the backend"):
        lipschitz_bound(model)
    given = lipschitz_bound(model, constants={layer.name: 3.0})
    assert given == 3.0 >= operator_norm(model, SHAPE)
