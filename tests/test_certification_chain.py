"""Bounds that know in which direction a vector moves."""

import itertools

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import normal

from deel.lip import layers
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.certification._network import Network


def dense(widths, activation="relu", seed=0):
    """A stock network with random kernels."""
    random = np.random.default_rng(seed)
    steps = [keras.Input((widths[0],))]
    for width in widths[1:-1]:
        steps.append(keras.layers.Dense(width, activation=activation))
    model = keras.Sequential([*steps, keras.layers.Dense(widths[-1])])
    model.set_weights(
        [
            random.standard_normal(w.shape) / np.sqrt(w.shape[0])
            for w in model.weights
        ]
    )
    return model


def worst_pattern(model):
    """The largest norm over all patterns of slopes, and of pairs of outputs."""
    kernels = [np.asarray(x.kernel, "float64") for x in model.layers]
    hidden = [k.shape[1] for k in kernels[:-1]]
    worst, pairs = 0.0, 0.0
    for pattern in itertools.product((0.0, 1.0), repeat=sum(hidden)):
        slopes = np.split(np.array(pattern), np.cumsum(hidden)[:-1])
        jacobian = kernels[0]
        for d, kernel in zip(slopes, kernels[1:], strict=True):
            jacobian = jacobian * d @ kernel
        worst = max(worst, np.linalg.norm(jacobian, 2))
        leads = jacobian[:, :, None] - jacobian[:, None]
        pairs = np.maximum(pairs, np.linalg.norm(leads, axis=0))
    return worst, pairs


@pytest.mark.parametrize("seed", range(12))
def test_the_chain_bounds_every_pattern_of_activations(seed):
    random = np.random.default_rng(seed)
    widths = random.integers(1, 5, random.integers(3, 6))
    model = dense(widths.tolist(), seed=seed)
    worst, pairs = worst_pattern(model)
    found = lipschitz_bound(model)
    assert worst <= found <= lipschitz_bound(model, method="product")
    if widths[-1] > 1:
        last = Network(model, (int(widths[0]),), None, "exact").last
        assert np.all(pairs <= last._leads)


def test_the_table_says_what_the_chain_saves():
    model = dense([30, 60, 60, 5])
    found, table = lipschitz_bound(model, return_table=True)
    parts = [row.value * row.chain for row in table]
    assert_close(np.prod(parts), found, rtol=1e-6)
    # Nothing is known of the directions before the first activation.
    assert [row.chain < 0.999 for row in table] == [False, True, True]
    _, table = lipschitz_bound(model, return_table=True, method="product")
    assert [row.chain for row in table] == [1.0] * 3


def test_the_chain_is_tight_where_the_product_is_not():
    model = dense([30, 80, 80, 80, 80, 80, 5])
    chain = lipschitz_bound(model)
    product = lipschitz_bound(model, method="product")
    # The specification has 0.38 for five random layers of that width.
    assert chain < 0.5 * product


@pytest.mark.parametrize(
    "activation", ["relu", "elu", "tanh", "sigmoid", "softplus", "leaky_relu"]
)
def test_monotone_activations_use_the_chain(activation):
    inside = dense([20, 40, 40, 3], activation)
    outside = keras.Sequential([keras.Input((20,))])
    for layer in inside.layers[:-1]:
        outside.add(keras.layers.Dense(layer.units))
        outside.add(keras.layers.Dropout(0.1))
        outside.add(keras.layers.Activation(activation))
    outside.add(keras.layers.Dense(3))
    outside.set_weights(inside.get_weights())
    found = lipschitz_bound(inside)
    assert found < 0.95 * lipschitz_bound(inside, method="product")
    assert_close(lipschitz_bound(outside), found, rtol=1e-6)


@pytest.mark.parametrize("activation", ["gelu", "silu", layers.GroupSort2()])
def test_other_activations_fall_back_to_numbers(activation):
    model = dense([20, 40, 40, 3], activation)
    product = lipschitz_bound(model, method="product")
    # What stands behind the last of them is a matrix.
    assert lipschitz_bound(model) == pytest.approx(product, rel=1e-6)


BENT = {
    "elu": lambda: keras.layers.ELU(),
    "a steep elu": lambda: keras.layers.ELU(alpha=2.0),
    "an elu that turns back": lambda: keras.layers.ELU(alpha=-0.5),
    "relu": lambda: keras.layers.ReLU(),
    "a line that is cut off": lambda: keras.layers.ReLU(
        max_value=1.0, negative_slope=1.0
    ),
    "a line that is cut off at zero": lambda: keras.layers.ReLU(
        max_value=0.0, negative_slope=1.0
    ),
    "leaky relu": lambda: keras.layers.LeakyReLU(negative_slope=0.5),
    "prelu": lambda: keras.layers.PReLU(alpha_initializer="ones"),
    "folds": lambda: keras.layers.PReLU(
        alpha_initializer=keras.initializers.Constant(-1.0)
    ),
    "selu": lambda: keras.layers.Activation("selu"),
    "hard sigmoid": lambda: keras.layers.Activation("hard_sigmoid"),
    "softsign": lambda: keras.layers.Activation("softsign"),
    "relu6": lambda: keras.layers.Activation("relu6"),
    "softmax": lambda: keras.layers.Softmax(),
    "gelu": lambda: keras.layers.Activation("gelu"),
    "signs": lambda: keras.layers.BatchNormalization(),
}


@pytest.mark.parametrize("name", BENT)
def test_values_that_cancel_do_so_no_more_behind_an_activation(name):
    # Both hidden values are the input, but for a constant; their difference
    # changes where the activation bends for the one and not for the other.
    x = keras.Input((1,))
    first, last = keras.layers.Dense(2), keras.layers.Dense(1)
    between = BENT[name]()
    model = keras.Model(x, last(between(first(x))))
    if name == "signs":
        between.gamma.assign([1.0, -1.0])
    first.set_weights([np.ones((1, 2)), np.array([0.0, -3.0])])
    last.set_weights([np.array([[1.0], [-1.0]]), np.zeros(1)])
    points = np.linspace(-8, 8, 1601)[:, None]
    network = Network(model, (1,), None, "exact")
    y, *_ = network._forward(points)
    slopes = np.abs(np.diff(y[:, 0]) / np.diff(points[:, 0]))
    # Differences of float64 values, over a hundredth.
    assert np.max(slopes) <= lipschitz_bound(model) * (1 + 1e-9) + 1e-11


def test_batch_statistics_are_factors_of_the_chain():
    model = keras.Sequential(
        [
            keras.Input((10,)),
            keras.layers.Dense(20),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dense(4),
        ]
    )
    random = np.random.default_rng(0)
    model.set_weights(
        [random.uniform(0.3, 2.0, w.shape) for w in model.weights]
    )
    normalization = model.layers[1]
    normalization.gamma.assign(random.choice([-1.0, 1.0], 20) * 1.5)
    kernel, _, gamma, *_, variance, last, _ = model.get_weights()
    # The same network, with the factors in its first kernel.
    factors = gamma / np.sqrt(variance + 1e-3)
    folded = dense([10, 20, 4])
    folded.set_weights([kernel * factors, np.zeros(20), last, np.zeros(4)])
    found = lipschitz_bound(model)
    assert_close(found, lipschitz_bound(folded), rtol=1e-5)
    assert found < lipschitz_bound(model, method="product")


def test_constrained_networks_lose_nothing():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.SpectralDense(8, activation=layers.GroupSort2()),
            layers.SpectralDense(8, activation="relu"),
            layers.FrobeniusDense(3),
        ]
    )
    product = lipschitz_bound(model, method="product")
    assert lipschitz_bound(model) <= product * (1 + 1e-9)


def test_radii_grow_with_the_chain():
    model = dense([20, 60, 60, 60, 5])
    x = normal(30, 20)
    chain = certify(model, x, verbose=0)
    product = certify(model, x, verbose=0, method="product")
    assert chain.lead_constant < 0.8 * product.lead_constant
    ratio = np.median(chain.radius) / np.median(product.radius)
    assert ratio > 1.3
    assert np.all(chain.radius >= product.radius)


def test_huge_and_tiny_networks_have_a_chain():
    for scale in (1e-30, 1e30, 0.0):
        model = dense([3, 4, 4, 2])
        kernels = model.get_weights()
        kernels[0] = kernels[0] * 0 + 1
        model.set_weights(kernels)
        before = keras.layers.Rescaling(scale)
        whole = keras.Sequential([keras.Input((3,)), before, *model.layers])
        expected = scale * lipschitz_bound(model)
        assert lipschitz_bound(whole) == pytest.approx(expected, rel=1e-6)


def test_tiny_networks_are_refined():
    # Squares of their radii are below the smallest number.
    model = dense([3, 4, 4, 2])
    expected = lipschitz_bound(model, refine=True)
    before = [keras.layers.Rescaling(1e-30) for _ in range(6)]
    tiny = keras.Sequential([keras.Input((3,)), *before, *model.layers])
    found = lipschitz_bound(tiny, refine=True)
    assert found == pytest.approx(1e-180 * expected, rel=1e-6)


def test_matrices_that_cancel_are_not_trusted():
    random = np.random.default_rng(0)
    first = random.standard_normal((6, 4))
    # Its rows are orthogonal to those of the first one, up to rounding.
    last = np.linalg.svd(first)[0][:, 4:] @ random.standard_normal((2, 3))
    model = dense([6, 4, 6, 3], "linear")
    model.set_weights(
        [np.eye(6, 4), np.zeros(4), first.T, np.zeros(6), last, np.zeros(3)]
    )
    exact = np.linalg.norm(
        np.asarray(model.layers[1].kernel, "float64")
        @ np.asarray(model.layers[2].kernel, "float64"),
        2,
    )
    assert 0 < exact < 1e-6
    assert exact <= lipschitz_bound(model) < 1e-5


def test_an_unknown_method_is_an_error():
    model = dense([3, 4, 2])
    with pytest.raises(ValueError, match="`method` must be one of"):
        lipschitz_bound(model, method="chains")
    with pytest.raises(ValueError, match="`method` must be one of"):
        certify(model, normal(2, 3), method="chains")
