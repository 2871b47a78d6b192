"""Wrong arguments of the constrained layers."""

import json

import numpy as np
import pytest
from harness import built

from deel.lip import layers
from deel.lip.constraints import SpectralConstraint
from deel.lip.initializers import SpectralInitializer

pytestmark = pytest.mark.elsewhere

SPECTRAL = [
    lambda **k: layers.SpectralDense(3, **k),
    lambda **k: layers.SpectralConv2D(3, 3, **k),
    lambda **k: SpectralInitializer(**k),
]


CONSTRAINED = [*SPECTRAL[:2], lambda **k: layers.FrobeniusDense(3, **k)]


@pytest.mark.parametrize("make", SPECTRAL)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eps_spectral", 0.0),
        ("eps_spectral", -1.0),
        ("eps_spectral", float("nan")),
        ("eps_bjorck", 0),
        ("eps_bjorck", -1e-3),
        ("beta_bjorck", 0.0),
        ("beta_bjorck", 0.51),
        ("beta_bjorck", -0.1),
        ("k_coef_lip", 0.0),
        ("k_coef_lip", -1.0),
        ("k_coef_lip", float("inf")),
        ("k_coef_lip", float("nan")),
        ("k_coef_lip", "1"),
    ],
)
def test_numbers_out_of_range_are_refused(make, name, value):
    with pytest.raises(ValueError, match=f"Received: {name}={value!r}"):
        make(**{name: value})


@pytest.mark.parametrize("make", SPECTRAL[:2])
@pytest.mark.parametrize("name", ["maxiter_spectral", "maxiter_bjorck"])
@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_iteration_limits_are_positive_integers(make, name, value):
    with pytest.raises(ValueError, match=f"Received: {name}={value!r}"):
        make(**{name: value})


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", None, True, float("nan")])
def test_units_and_filters_are_positive_integers(value):
    with pytest.raises(ValueError, match="Received: units="):
        layers.SpectralDense(value)
    with pytest.raises(ValueError, match="Received: units="):
        layers.FrobeniusDense(value)
    with pytest.raises(ValueError, match="Received: filters="):
        layers.SpectralConv2D(value, 3)


def test_whole_floats_are_integers():
    assert layers.SpectralDense(128.0).units == 128
    conv = layers.SpectralConv2D(4.0, (3.0, 3.0), strides=2.0)
    assert (conv.filters, conv.kernel_size, conv.strides) == (4, (3, 3), (2, 2))
    assert json.dumps(conv.get_config()["kernel_size"]) == "[3, 3]"


@pytest.mark.parametrize("make", CONSTRAINED[::2])
def test_lora_is_refused(make):
    with pytest.raises(ValueError, match="Received: lora_rank=2"):
        make(lora_rank=2)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"padding": "valid"}, RuntimeError),
        ({"padding": "causal"}, RuntimeError),
        ({"padding": None}, RuntimeError),
        ({"dilation_rate": 2}, RuntimeError),
        ({"dilation_rate": (1, 2)}, RuntimeError),
        ({"groups": 3}, ValueError),
        ({"data_format": "other"}, ValueError),
        ({"kernel_size": 0}, ValueError),
        ({"kernel_size": 2.5}, ValueError),
        ({"strides": 0}, ValueError),
    ],
    ids=str,
)
def test_convolutions_that_are_not_bounded_are_refused(arguments, error):
    with pytest.raises(error, match="Received"):
        layers.SpectralConv2D(**{"filters": 3, "kernel_size": 3, **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {"strides": 2},
        {"strides": (1, 2)},
        {"kernel_constraint": "non_neg"},
        {"padding": "valid"},
        {"dilation_rate": 2},
    ],
    ids=str,
)
def test_frobenius_convolutions_that_are_not_bounded_are_refused(arguments):
    with pytest.raises(RuntimeError, match="Received"):
        layers.FrobeniusConv2D(2, 3, **arguments)
    layers.FrobeniusConv2D(2, 3, kernel_constraint=SpectralConstraint())


@pytest.mark.parametrize("padding", ["same", "SAME", "Same"])
@pytest.mark.parametrize("dilation", [1, (1, 1), [1, 1]])
def test_spellings_of_the_supported_convolution(padding, dilation):
    # C21
    layer = layers.SpectralConv2D(3, 3, padding=padding, dilation_rate=dilation)
    assert layer.padding == "same"


def test_unknown_data_format_is_named_where_the_factor_is_computed():
    layer = layers.SpectralConv2D(3, 3)
    layer.data_format = "other"
    with pytest.raises(RuntimeError, match="Received: data_format='other'"):
        layer._compute_lip_coef((None, 4, 4, 1))


@pytest.mark.parametrize("make", CONSTRAINED)
def test_coefficient_is_unknown_before_the_layer_is_built(make):
    with pytest.raises(RuntimeError, match="Received: coef_lip=None"):
        make()._get_coef()
    with pytest.raises(AttributeError):
        _ = make().kernel


def test_wrong_input_shapes_are_refused_by_keras():
    layer = built(layers.SpectralDense(3), 4)
    with pytest.raises(ValueError, match="incompatible"):
        layer(np.ones((1, 5), "float32"))
