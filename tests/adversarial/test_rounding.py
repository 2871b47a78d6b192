"""No certificate is broken by rounding, for all that a search can find."""

import keras
import numpy as np
import pytest
from adversarial.families import FAMILIES
from adversarial.families import SLOW
from adversarial.families import build
from adversarial.searches import Result
from adversarial.searches import search

from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.certification import register_bound

QUICK = [name for name in FAMILIES if name not in SLOW]

# Families whose estimated certificates break on every backend.
ESTIMATES_BREAK = ["long_sum"]


def found(name, rounding, seeds, **kwargs):
    result = Result()
    for seed in seeds:
        model, x = build(name, seed)
        result += search(model, x, rounding, seed, **kwargs)
    return result


@pytest.mark.parametrize("name", QUICK)
def test_search_breaks_no_certificate(name):
    float32 = found(name, "float32", [0], count=1)
    exact = found(name, "exact", [0], count=1)
    assert float32.broken == []
    assert exact.broken == []
    # There is something to attack.
    assert exact.certificates > 0


def multiplied(values, joined=False):
    """A network that multiplies by each of some numbers in turn."""
    inputs = x = keras.Input((2,))
    kernels = []
    for index, value in enumerate(values):
        x = keras.layers.Dense(2, use_bias=False)(x)
        kernels.append(value * np.eye(2))
        if joined and index == len(values) // 2 - 1:
            x = keras.layers.Add()([x, x])
    model = keras.Model(inputs, x)
    model.set_weights(kernels)
    return model


@pytest.mark.parametrize("depth", [5, 10])
@pytest.mark.parametrize("joined", [False, True])
def test_bound_of_a_product_that_vanishes_on_its_way_is_not_zero(depth, joined):
    # 1e-380 is no float64, nor is the square of 1e-190.
    model = multiplied([1e-38] * depth + [1e38] * depth, joined)
    assert lipschitz_bound(model) >= (2.0 if joined else 1.0) * (1 - 1e-5)


@pytest.mark.parametrize("depth", [5, 10])
def test_rounding_is_not_lost_where_squares_of_values_vanish(depth):
    middle = [1.0] * 40
    model = multiplied([1e-36] * depth + middle + [1e36] * depth)
    for layer in model.layers[depth + 1 : depth + 41]:
        # Each of the sums in the middle is rounded.
        layer.kernel.assign(np.full((2, 2), 0.5))
    certificates = certify(model, [[1.0, 1.0 / 3]])
    # At least a unit for each of them, at a norm of one.
    assert certificates.rounding[0] > 40 * 2.0**-53


def test_means_whose_sums_overflow_are_not_certified_in_float32():
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )
    model.layers[-1].set_weights([np.array([[0.5, 1.0]]), np.zeros(2)])
    x = np.full((1, 28, 28, 1), 4e35, "float32")
    certificates = certify(model, x, rounding="float32")
    distance = np.linalg.norm(0.9 * x.astype("float64"))
    # There, the mean of TensorFlow is infinite, and so are both scores.
    assert certificates.radius[0] < distance
    assert certify(model, x).radius[0] > distance


@keras.saving.register_keras_serializable("deel.lip.tests.adversarial")
class Rounded(keras.layers.Layer):
    """A layer that has a dtype of its own choice."""

    def call(self, x):
        return keras.ops.cast(x, "float32")


register_bound(Rounded, lambda layer, input_shapes: 1.0)


def test_layers_that_round_scores_of_float64_are_refused():
    model = keras.Sequential(
        [keras.Input((2,)), Rounded(name="rounded"), keras.layers.Dense(2)]
    )
    with pytest.raises(ValueError, match=r"layer 'rounded'.* is float32"):
        certify(model, [[1.0, 2.0]])


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["float32", "exact"])
@pytest.mark.parametrize("name", FAMILIES)
def test_longer_search_breaks_no_certificate(name, rounding):
    result = found(name, rounding, range(1, 13), count=3, steps=16)
    assert result.broken == []
    assert result.certificates > 0


@pytest.mark.parametrize("name", ESTIMATES_BREAK)
def test_search_has_teeth_estimated_certificates_break(name):
    assert found(name, "estimated", range(3)).broken
