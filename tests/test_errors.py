"""Wrong arguments of the constrained layers, and of the initializer."""

import json

import harness
import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from harness import to_numpy

from deel.lip import layers
from deel.lip.constraints import SpectralConstraint
from deel.lip.initializers import SpectralInitializer

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
    with pytest.raises(ValueError, match=f"Received: {name}={value}"):
        make(**{name: value})


@pytest.mark.parametrize("make", SPECTRAL[:2])
@pytest.mark.parametrize("name", ["maxiter_spectral", "maxiter_bjorck"])
@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_iteration_limits_are_positive_integers(make, name, value):
    with pytest.raises(ValueError, match=f"Received: {name}={value}"):
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
    with pytest.raises(RuntimeError, match="Received: data_format=other"):
        layer._compute_lip_coef((None, 4, 4, 1))


@pytest.mark.parametrize("make", CONSTRAINED)
def test_coefficient_is_unknown_before_the_layer_is_built(make):
    with pytest.raises(RuntimeError, match="Received: coef_lip=None"):
        make()._get_coef()
    with pytest.raises(AttributeError):
        _ = make().kernel


@pytest.mark.parametrize(
    ("k", "s", "length", "overlap"),
    [
        (3, 1, 28, 3),
        (3, 1, 2, 2),
        (5, 1, 3, 3),
        (7, 1, 4, 4),
        (3, 2, 8, 2),
        (4, 2, 9, 2),
        (5, 3, 11, 2),
        (2, 2, 8, 1),
        (3, 1, None, 3),
    ],
)
def test_convolution_coefficient_counts_overlapping_windows(
    k, s, length, overlap
):
    # C1, C14
    layer = layers.SpectralConv2D(1, (k, 1), strides=(s, s))
    found = layer._compute_lip_coef((None, length, 9, 1))
    assert found == pytest.approx(overlap**-0.5)


def test_wrong_input_shapes_are_refused_by_keras():
    layer = layers.SpectralDense(3)
    layer.build((None, 4))
    with pytest.raises(ValueError, match="incompatible"):
        layer(np.ones((1, 5), "float32"))


@pytest.mark.parametrize(
    ("initializer", "k"),
    [
        (SpectralInitializer(), 1.0),
        (SpectralInitializer(k_coef_lip=2.0), 2.0),
        (SpectralInitializer(base_initializer="glorot_uniform"), 1.0),
        (SpectralInitializer(base_initializer={"class_name": "HeNormal"}), 1.0),
    ],
)
def test_initializer_draws_kernels_with_equal_singular_values(initializer, k):
    for shape in [(8, 4), (4, 8), (3, 3, 2, 5), (1, 1)]:
        kernel = harness.as_matrix(initializer(shape))
        values = harness.singular_values(kernel)
        assert_close(values, k, atol=1e-3)


def test_seed_in_the_base_makes_the_initializer_reproducible():
    base = keras.initializers.Orthogonal(seed=3)
    initializer = SpectralInitializer(k_coef_lip=2.0, base_initializer=base)
    config = initializer.get_config()
    assert harness.is_plain(config)
    rebuilt = SpectralInitializer.from_config(json.loads(json.dumps(config)))
    assert rebuilt.get_config() == config
    assert_equal(rebuilt((8, 4)), initializer((8, 4)))


@pytest.mark.parametrize("shape", [(200, 70), (70, 200), (3, 3, 30, 64)])
@pytest.mark.parametrize("gain", [1.0, -3.0])
def test_initializer_draws_what_the_base_draws(shape, gain):
    # Tall kernels are factorised in another way than that of Keras.
    base = keras.initializers.Orthogonal(gain=gain, seed=3)
    drawn = SpectralInitializer(base_initializer=base)(shape)
    assert_close(drawn, to_numpy(base(shape)) / abs(gain), atol=1e-5)


def test_initializer_without_orthogonalisation_bounds_the_norm():
    initializer = SpectralInitializer(
        eps_bjorck=None, base_initializer="glorot_uniform", k_coef_lip=3.0
    )
    values = harness.singular_values(harness.as_matrix(initializer((8, 4))))
    assert 3 * 0.99 <= values[0] <= 3 * (1 + harness.TOLERANCE)
    assert values[-1] < 2


def test_initializer_takes_the_signature_of_older_releases():
    kernel = SpectralInitializer()((4, 4), "float32", None)
    assert keras.backend.standardize_dtype(kernel.dtype) == "float32"
