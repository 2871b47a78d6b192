"""What the initializers draw."""

import json

import harness
import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from harness import normal
from harness import to_numpy

from deel.lip.initializers import DiracInitializer
from deel.lip.initializers import SpectralInitializer


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
        assert_close(harness.singular_values(kernel), k, atol=1e-3)


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
    if keras.backend.backend() != "jax":
        assert_close(drawn, to_numpy(base(shape)) / abs(gain), atol=1e-5)
        return
    # There NumPy draws: other values for a seed, each as likely as the next.
    assert_equal(drawn, SpectralInitializer(base_initializer=base)(shape))
    values = harness.singular_values(harness.as_matrix(drawn))
    assert_close(values, 1.0, atol=1e-5)
    other = keras.initializers.Orthogonal(gain=gain, seed=4)
    different = to_numpy(SpectralInitializer(base_initializer=other)(shape))
    assert np.mean(np.abs(different - to_numpy(drawn))) > 1e-3
    # Of no direction more than of another: the mean is that of random signs.
    matrix = harness.as_matrix(drawn)
    rows = max(matrix.shape)
    assert abs(np.mean(matrix)) < 4 * rows**-0.5 * matrix.size**-0.5
    assert np.sign(gain) == np.sign(np.sum(matrix * _positive(base, shape)))


def _positive(base, shape):
    """What the same seed draws with a positive gain."""
    config = {**base.get_config(), "gain": 1.0}
    base = keras.initializers.Orthogonal.from_config(config)
    drawn = SpectralInitializer(base_initializer=base)(shape)
    return harness.as_matrix(drawn)


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


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 3), (2, 4), (4, 2)])
def test_dirac_kernel_copies_its_input(size, inputs, outputs):
    layer = keras.layers.Conv2D(
        outputs, size, padding="same", kernel_initializer=DiracInitializer()
    )
    x = normal(2, 6, 5, inputs)
    shared = min(inputs, outputs)
    y = to_numpy(layer(x))
    assert_equal(y[..., :shared], x[..., :shared])
    assert not np.any(y[..., shared:])
    config = keras.initializers.serialize(DiracInitializer())
    again = keras.initializers.deserialize(config)
    assert_equal(again(layer.kernel.shape), layer.kernel)
