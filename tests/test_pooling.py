"""Golden values of the pooling layers, and gradients at zero."""

import harness
import keras
import numpy as np
import pytest
from keras import ops

from deel.lip.layers import ScaledAveragePooling2D
from deel.lip.layers import ScaledGlobalAveragePooling2D
from deel.lip.layers import ScaledGlobalL2NormPooling2D
from deel.lip.layers import ScaledL2NormPooling2D

WINDOW = np.array([[1.0, 2.0], [3.0, 4.0]], "float32").reshape(1, 2, 2, 1)


@pytest.mark.parametrize(
    ("layer", "x", "expected"),
    [
        (ScaledAveragePooling2D(), WINDOW, 5.0),
        (ScaledL2NormPooling2D(), WINDOW, 5.477226),
        (ScaledGlobalAveragePooling2D(), WINDOW, 5.0),
        (ScaledGlobalL2NormPooling2D(), WINDOW, 5.477226),
        (ScaledGlobalL2NormPooling2D(), 0 * WINDOW, 0.001),
        (ScaledL2NormPooling2D(), 0 * WINDOW, 0.002),
        (ScaledL2NormPooling2D(eps_grad_sqrt=0.0), 0 * WINDOW, 0.0),
        (ScaledAveragePooling2D(k_coef_lip=3.0), WINDOW, 15.0),
        (ScaledL2NormPooling2D(k_coef_lip=2.0), WINDOW, 10.954452),
        (ScaledGlobalAveragePooling2D(k_coef_lip=2.0), WINDOW, 10.0),
    ],
)
def test_golden_values(layer, x, expected):
    found = ops.convert_to_numpy(layer(x)).item()
    assert found == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_gradient_of_the_norm_is_right_and_finite_at_zero(epsilon):
    layer = ScaledL2NormPooling2D(2, eps_grad_sqrt=epsilon)
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 3)).astype("float32")
    x[0, :2, :2] = 0.0
    (found,) = harness.gradient(lambda z: ops.sum(layer(z)), x)
    assert np.all(found[0, :2, :2] == 0)
    assert np.all(found[:, :, 4:] == 0)
    windows = x[:, :, :4].reshape(2, 2, 2, 2, 2, 3)
    norm = np.sqrt(np.sum(windows**2, axis=(2, 4), keepdims=True) + 4 * epsilon)
    expected = np.divide(
        windows, norm, out=np.zeros_like(windows), where=norm > 0
    )
    np.testing.assert_allclose(
        found[:, :, :4], expected.reshape(2, 4, 4, 3), atol=1e-6
    )


@pytest.mark.parametrize(
    "layer_class", [ScaledAveragePooling2D, ScaledL2NormPooling2D]
)
def test_window_and_stride_are_compared_as_pairs(layer_class):
    # C19
    layer = layer_class(pool_size=2, strides=(2, 2))
    assert layer.strides == (2, 2)
    assert layer_class(pool_size=(2.0, 3.0)).pool_size == (2, 3)
    for arguments in (
        {"pool_size": 2, "strides": 1},
        {"pool_size": (2, 3), "strides": (3, 2)},
        {"padding": "same"},
    ):
        with pytest.raises(RuntimeError, match="Received: "):
            layer_class(**arguments)


@pytest.mark.parametrize("value", [-1e-9, -1, float("nan")])
def test_negative_epsilon_is_refused(value):
    for layer in (ScaledL2NormPooling2D, ScaledGlobalL2NormPooling2D):
        with pytest.raises(RuntimeError, match="Received: eps_grad_sqrt"):
            layer(eps_grad_sqrt=value)


def test_global_average_takes_the_size_of_the_image_at_hand():
    # C14; a coefficient kept from another size would not bound this one.
    inputs = keras.Input((None, None, 1))
    model = keras.Model(inputs, ScaledGlobalAveragePooling2D()(inputs))
    layer = ScaledGlobalAveragePooling2D()
    layer.build((None, 8, 8, 1))
    for size in (2, 3, 8):
        x = np.ones((1, size, size, 1), "float32")
        for function in (model, layer):
            found = ops.convert_to_numpy(function(x)).item()
            assert found == pytest.approx(size)


def test_data_formats_agree():
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype("float32")
    first = np.transpose(x, (0, 3, 1, 2))
    for layer_class in (
        ScaledGlobalAveragePooling2D,
        ScaledGlobalL2NormPooling2D,
    ):
        last_result = layer_class()(x)
        first_result = layer_class(data_format="channels_first")(first)
        np.testing.assert_allclose(
            ops.convert_to_numpy(last_result),
            ops.convert_to_numpy(first_result),
            rtol=1e-5,
        )
