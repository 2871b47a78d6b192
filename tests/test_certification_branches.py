"""Bounds of residual networks that know in which direction branches move."""

import itertools

import keras
import numpy as np
import pytest
from harness import assert_close
from image_chains import largest_norm
from image_chains import numbers

from deel.lip.certification import lipschitz_bound

dense = keras.layers.Dense


def residual(inputs, blocks, last=2, units=2, values=3, joins=None):
    """A stock network of sums of a vector and a branch of it."""
    joins = joins or keras.layers.add
    x = start = keras.Input((inputs,))
    x = dense(values)(x)
    for _ in range(blocks):
        branch = dense(values)(dense(units, activation="relu")(x))
        x = joins([x, branch])
    return keras.Model(start, dense(last)(x))


def randomized(model, seed, of=numbers):
    random = np.random.default_rng(seed)
    weights = [of(random, w.shape) for w in model.get_weights()]
    model.set_weights(weights)
    return model


def behind_patterns(jacobians, kernel):
    """Jacobians behind a layer with ReLU, for all patterns, old ones first."""
    inner = kernel.T @ jacobians
    patterns = itertools.product([0.0, 1.0], repeat=kernel.shape[1])
    patterns = np.array(list(patterns))[None, :, :, None]
    return (patterns * inner[:, None]).reshape(-1, *inner.shape[1:])


def worst_pattern(model):
    kernels = [np.asarray(w, "float64") for w in model.get_weights()[::2]]
    jacobians = kernels[0].T[None]
    for first, last in zip(kernels[1:-1:2], kernels[2:-1:2], strict=True):
        branch = last.T @ behind_patterns(jacobians, first)
        repeats = len(branch) // len(jacobians)
        jacobians = np.repeat(jacobians, repeats, axis=0) + branch
    return largest_norm(kernels[-1].T @ jacobians)


@pytest.mark.parametrize("seed", range(12))
def test_no_pattern_exceeds_the_bound_of_a_residual_network(seed):
    model = randomized(residual(2, 3), seed)
    found = lipschitz_bound(model)
    product = lipschitz_bound(model, method="product")
    assert worst_pattern(model) <= found * (1 + 1e-9)
    assert found <= product * (1 + 1e-9)


def gaussian(random, shape):
    return random.standard_normal(shape) / np.sqrt(shape[0])


def test_branches_add_up_to_less_than_their_norms():
    model = randomized(residual(20, 4, 5, units=40, values=40), 0, gaussian)
    found, table = lipschitz_bound(model, return_table=True)
    assert found < 0.2 * lipschitz_bound(model, method="product")
    shares = [row.chain for row in table if row.type == "Add"]
    assert len(shares) == 4
    assert max(shares) < 0.9
    by_operator = residual(
        20, 4, 5, 40, 40, joins=lambda pair: pair[0] + pair[1]
    )
    by_operator.set_weights(model.get_weights())
    assert_close(lipschitz_bound(by_operator), found, rtol=1e-9)


def test_a_branch_that_undoes_its_input_leaves_nothing():
    x = keras.Input((3,))
    model = keras.Model(x, keras.layers.add([x, dense(3, use_bias=False)(x)]))
    model.set_weights([-np.eye(3)])
    assert lipschitz_bound(model) < 1e-6
    assert lipschitz_bound(model, method="product") == pytest.approx(2.0)
    # Behind an activation, it does so for some inputs alone. Its slopes from 0
    # to -1 leave those from 0 to 1.
    inner = dense(3, use_bias=False, activation="relu")
    model = keras.Model(x, keras.layers.add([x, inner(x)]))
    model.set_weights([-np.eye(3)])
    assert 1.0 <= lipschitz_bound(model) < 2.0


def convolutional(blocks, between=None):
    def convolution():
        return keras.layers.Conv2D(4, 3, padding="same")

    start = keras.Input((8, 8, 2))
    x = convolution()(start)
    for _ in range(blocks):
        y = keras.layers.BatchNormalization()(convolution()(x))
        y = convolution()(keras.layers.ReLU()(y))
        if between is not None:
            y = between()(y)
        x = keras.layers.ReLU()(keras.layers.add([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(start, dense(3)(x))


def scaled_kernels(random, shape):
    if len(shape) == 1:
        return random.uniform(0.5, 1.5, shape)
    return random.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))


def test_convolutional_branches_are_followed_by_frequency():
    model = randomized(convolutional(2), 0, scaled_kernels)
    product = lipschitz_bound(model, method="product")
    found = lipschitz_bound(model)
    assert found < 0.4 * product
    # The network itself expands no more than that.
    random = np.random.default_rng(0)
    x = random.standard_normal((64, 8, 8, 2)).astype("float32")
    step = 1e-2 * random.standard_normal(x.shape).astype("float32")
    moved = model.predict(x + step, verbose=0) - model.predict(x, verbose=0)
    ratios = np.linalg.norm(moved, axis=1) / np.linalg.norm(
        step.reshape(len(x), -1), axis=1
    )
    assert np.max(ratios) <= found


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    "between",
    [
        lambda: keras.layers.MaxPooling2D(3, strides=1, padding="same"),
        lambda: keras.layers.Activation("gelu"),
        lambda: keras.layers.Permute((2, 1, 3)),
    ],
    ids=["windows that overlap", "negative slopes", "another image"],
)
def test_branches_that_are_not_known_are_never_worse(between):
    model = randomized(convolutional(1, between), 0, scaled_kernels)
    product = lipschitz_bound(model, method="product")
    assert lipschitz_bound(model) <= product * (1 + 1e-9)
