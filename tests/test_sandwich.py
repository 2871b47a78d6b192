"""Pairs of layers bounded together with the activation between them."""

import functools
import itertools

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import built
from harness import normal
from harness import reloaded
from harness import to_numpy
from keras import ops

from deel.lip import layers
from deel.lip._numerics.activations import MONOTONE
from deel.lip.certification import lipschitz_bound
from deel.lip.layers import unconstrained
from deel.lip.model import Sequential
from deel.lip.model import vanillaModel

TOLERANCE = 1e-5


def _largest_slope(there, back):
    """The largest norm of the Jacobian, over all patterns of the activation.

    Args:
        there: Matrix `(inputs, hidden)`.
        back: Matrix `(hidden, outputs)`.
    """
    patterns = itertools.product([0.0, 1.0], repeat=len(back))
    return max(np.linalg.norm(there * d @ back, 2) for d in patterns)


def _matrix(kernel, size):
    """The matrix of a stock layer, of images of a size if it is one of them."""
    *taps, inputs, outputs = kernel.shape
    if not taps:
        return kernel
    layer = keras.layers.Conv2D(outputs, taps, padding="same", use_bias=False)
    layer = built(layer, *size, inputs)
    layer.kernel.assign(kernel)
    return harness.operator_matrix(layer, (*size, inputs))


def _matrices(layer, size=()):
    """Matrices of what stands before and behind the activation of a layer."""
    kernel = to_numpy(layer.wbar).astype("float64")
    before, after = (to_numpy(x).astype("float64") for x in layer.factors())
    there, back = np.split(kernel, [-kernel.shape[-1]], axis=-2)
    return _matrix(there * before, size), _matrix(back * after, size).T


@pytest.mark.elsewhere
@pytest.mark.parametrize("k_coef_lip", [1.0, 3.0])
def test_no_pattern_of_the_activation_expands_by_more(k_coef_lip):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        layer = layers.SandwichDense(5, k_coef_lip=k_coef_lip)
        layer.build((None, int(rng.integers(1, 9))))
        layer.kernel.assign(rng.normal(size=layer.kernel.shape))
        layer.psi.assign(rng.normal(size=5) * 10.0 ** rng.integers(-2, 3))
        layer.condense()
        slope, bound = _largest_slope(*_matrices(layer)), lipschitz_bound(layer)
        assert slope <= bound
        assert bound <= k_coef_lip * (1 + TOLERANCE)
        # What is bounded is nearly reached, the more so with more inputs.
        assert slope >= 0.6 * k_coef_lip


@pytest.mark.elsewhere
def test_bound_is_that_of_the_weights():
    # Also where the kernel is not orthonormal, and shares out nothing.
    for seed in range(20):
        rng = np.random.default_rng(seed)
        layer = unconstrained.DensePair(4, activation="relu", k_coef_lip=0.5)
        layer.build((None, 3))
        kernel = rng.normal(size=(7, 4)) * np.exp(2 * rng.normal(size=(7, 1)))
        layer.kernel.assign(kernel)
        layer.psi.assign(3 * rng.normal(size=4))
        layer.wbar = layer.kernel
        assert _largest_slope(*_matrices(layer)) <= lipschitz_bound(layer)


@pytest.mark.elsewhere
@pytest.mark.parametrize("psi", [2.0, -1.3, 0.4])
def test_bound_is_no_smaller_for_factors_that_are_rounded(psi):
    layer = unconstrained.DensePair(1, "linear", use_bias=False, k_coef_lip=3.0)
    layer.build((None, 1))
    layer.kernel.assign([[3.0], [3.0]])
    layer.psi.assign([psi])
    # 2 / 3 of 3 times 3, whatever the scale.
    assert lipschitz_bound(layer) >= 6.0


@pytest.mark.elsewhere
@pytest.mark.parametrize("kernel_size", [3, (1, 3)])
def test_no_pattern_expands_the_convolutions_by_more(kernel_size):
    size = (2, 2)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        layer = layers.SandwichConv2D(2, kernel_size, k_coef_lip=2.0)
        layer = built(layer, *size, 1 + seed)
        layer.kernel.assign(rng.normal(size=layer.kernel.shape))
        layer.psi.assign(rng.normal(size=2) * 10.0 ** rng.integers(-2, 3))
        layer.condense()
        slope = _largest_slope(*_matrices(layer, size))
        bound = lipschitz_bound(layer)
        assert slope <= bound * (1 + 1e-6)
        assert bound <= 2.0 * (1 + TOLERANCE)
        free = unconstrained.ConvPair2D(2, kernel_size)
        free = built(free, *size, 1 + seed)
        free.kernel.assign(rng.normal(size=free.kernel.shape))
        free.psi.assign(3 * rng.normal(size=2))
        free.wbar = free.kernel
        slope = _largest_slope(*_matrices(free, size))
        assert slope <= lipschitz_bound(free) * (1 + 1e-6)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_convolutions_are_one_and_the_adjoint_of_the_other(data_format):
    is_last = data_format == "channels_last"
    if not is_last and keras.backend.backend() == "tensorflow":
        pytest.skip("no convolution of images with their channels first")
    layer = layers.SandwichConv2D(3, (3, 5), "tanh", data_format=data_format)
    layer = built(layer, *((4, 5, 2) if is_last else (2, 4, 5)))
    layer.psi.assign([1.0, -1.0, 0.5])
    layer.bias.assign([0.3, -0.2, 0.1])
    x = normal(2, 4, 5, 2)
    y = layer(x if is_last else x.transpose(0, 3, 1, 2), training=False)
    y = to_numpy(y) if is_last else to_numpy(y).transpose(0, 2, 3, 1)
    there, back = _matrices(layer, (4, 5))
    bias = np.tile(to_numpy(layer.bias), 20)
    expected = np.tanh(x.reshape(2, -1) @ there + bias) @ back
    assert_close(y.reshape(2, -1), expected, atol=1e-5)


def test_two_halves_meet_where_both_are_one():
    # A and B with the same rows: all that one unit can do.
    layer = built(layers.SandwichDense(2, use_bias=False), 2)
    layer.kernel.assign(np.vstack([np.eye(2), np.eye(2)]))
    layer.condense()
    assert_close(layer(np.array([[3.0, -2.0]])), [[3.0, 0.0]], atol=1e-6)
    assert _largest_slope(*_matrices(layer)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    "psi", [-np.float32(3e38), -9.0, 0.7, np.float32(3e38)]
)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_scales_cancel_in_the_bound_whatever_they_are(psi, activation):
    layer = built(layers.SandwichDense(4, activation), 3)
    layer.psi.assign(psi * np.array([1.0, -1.0, 0.5, 0.0], "float32"))
    before, after = map(to_numpy, layer.factors())
    assert_close(before * after, np.full(4, 2.0), rtol=1e-6)
    assert np.all((before > 0.01) & (before < 100))
    assert lipschitz_bound(layer) <= 1 + TOLERANCE
    x = normal(500, 3)
    y = to_numpy(layer(x, training=False))
    gaps = np.linalg.norm(x[1:] - x[:-1], axis=1)
    assert np.all(np.linalg.norm(y[1:] - y[:-1], axis=1) <= gaps * 1.00001)
    slopes = harness.gradient(
        lambda x: ops.sum(ops.square(layer(x, training=False))), x
    )
    assert np.all(np.isfinite(slopes[0]))


def test_scales_change_the_function_where_the_activation_bends():
    # With ReLU, and without a bias, they have nothing to do.
    x = normal(20, 3)
    for activation, changes in (("relu", False), ("tanh", True)):
        layer = layers.SandwichDense(4, activation, use_bias=False)
        before = to_numpy(layer(x, training=False))
        layer.psi.assign([2.0, -2.0, 1.0, 0.0])
        change = to_numpy(layer(x, training=False)) - before
        assert (np.max(np.abs(change)) > 1e-3) == changes


def _growth(_, outputs):
    """A loss that nothing but the constraint keeps from falling."""
    return -ops.mean(ops.square(outputs))


def _images():
    return Sequential(
        [
            keras.Input((5, 4, 2)),
            layers.SandwichConv2D(3, 3, name="first"),
            layers.SandwichConv2D(2, 3, activation="tanh", name="second"),
            keras.layers.Flatten(),
            layers.SpectralDense(3, name="last"),
        ],
        k_coef_lip=8.0,
    )


def _vectors():
    return Sequential(
        [
            keras.Input((6,)),
            layers.SandwichDense(8, name="first"),
            layers.SandwichDense(8, activation="tanh", name="second"),
            layers.SpectralDense(3, name="last"),
        ],
        k_coef_lip=8.0,
    )


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    ("network", "pair"),
    [
        (_vectors, unconstrained.DensePair),
        (_images, unconstrained.ConvPair2D),
    ],
)
def test_networks_are_trained_saved_and_exported(network, pair, tmp_path):
    model = network()
    assert model.get_layer("second").k_coef_lip == pytest.approx(2.0)
    x = normal(64, *model.input_shape[1:])
    model.compile(keras.optimizers.Adam(0.1), _growth, jit_compile=JIT)
    model.fit(x, np.zeros(64), epochs=4, batch_size=8, verbose=0)
    for layer in harness.constrained_layers(model):
        harness.assert_bounded(layer)
    assert np.any(to_numpy(model.get_layer("second").psi) != 0)
    expected = model.predict(x, verbose=0)
    loaded = reloaded(model, tmp_path, compile=False)
    assert_close(loaded.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-5)
    exported = model.vanilla_export(verify=True)
    assert type(exported.layers[0]) is pair
    found = reloaded(exported, tmp_path).predict(x, verbose=0)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # Stock layers alone, whose bound is not that of a product of norms.
    served = model.vanilla_export(stock_only=True, verify=True)
    assert_close(served.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-5)
    assert lipschitz_bound(served) == pytest.approx(
        lipschitz_bound(model), rel=1e-5
    )


def _stock(factors, kernels, activation="relu"):
    """`f(x A) * factors @ B` in stock Keras."""
    there, back = kernels
    inputs = x = keras.Input((there.shape[0],))
    for kernel, act in ((there, activation), (back, "linear")):
        dense = keras.layers.Dense(
            kernel.shape[1], use_bias=False, activation=act
        )
        dense.build((None, kernel.shape[0]))
        dense.kernel.assign(kernel)
        x = dense(x)
        if kernel is there and factors is not None:
            x = x * factors
    return keras.Model(inputs, x)


@pytest.mark.elsewhere
def test_scales_cancel_in_stock_operations_too():
    # Also where the product of both kernels is less than they are together.
    layer = built(layers.SandwichDense(2, "tanh"), 3)
    layer.psi.assign([9.0, -9.0])
    model = keras.Sequential([keras.Input((3,)), layer])
    for rows in ([1.0, 1.0, 1.0], [1.0, 0.1, 0.1]):
        kernel = normal(5, 2) * np.array([*rows, 0.1, 0.1])[:, None]
        layer.wbar.assign_proven(ops.convert_to_tensor(kernel / 9))
        served = vanillaModel(model, stock_only=True)
        assert_close(lipschitz_bound(served), lipschitz_bound(layer), rtol=1e-5)


@pytest.mark.elsewhere
def test_factors_of_places_are_none_of_units():
    pair = np.diag([0.5, 1.0]), np.diag([0.1, 1.0])
    inputs = keras.Input((2, 2))
    dense = [
        keras.layers.Dense(2, act, use_bias=False) for act in ("relu", None)
    ]
    hidden = dense[0](inputs) * np.array([[2.0], [0.1]], "float32")
    model = keras.Model(inputs, dense[1](hidden))
    for layer, kernel in zip(dense, pair, strict=True):
        layer.kernel.assign(kernel)
    assert lipschitz_bound(model) >= 2.0


@pytest.mark.elsewhere
def test_stock_operations_are_bounded_together_only_where_that_is_proven():
    rng = np.random.default_rng(0)
    # One unit expands where it enters, the other one where it leaves.
    pair = np.diag([1.0, 1.4]), np.diag([1.0, 0.1])
    ones = np.ones(2, "float32")
    assert lipschitz_bound(_stock(ones, pair)) <= 1 + 1e-6
    # Slopes of gelu reach 1.128.
    assert lipschitz_bound(_stock(ones, pair, "gelu")) >= 1.128
    # Negative factors can make one sum of what was orthogonal.
    pair = np.array([[1, 1, 0], [0, 0, 1.8]]), np.array([[1], [-1], [0.1]])
    signs = np.array([1, -1, 1], "float32")
    assert lipschitz_bound(_stock(np.abs(signs), pair)) < 1.7
    assert lipschitz_bound(_stock(signs, pair)) >= 2.0
    for _ in range(30):
        size = rng.integers(1, 6, 3)
        there, back = (
            rng.normal(size=size[i : i + 2]).astype("float32") for i in (0, 1)
        )
        factors = np.exp(rng.normal(size=size[1])).astype("float32")
        slope = _largest_slope(there, factors[:, None] * back.astype("float64"))
        assert lipschitz_bound(_stock(factors, (there, back))) >= slope


def _convolutions(dilation):
    """`relu(x * a) * [1, 1] * b` of one axis, in stock Keras."""
    inputs = keras.Input((1, 9, 1))
    there, back = (
        keras.layers.Conv2D(
            1, (1, 3), padding="same", use_bias=False, dilation_rate=rate, **act
        )
        for rate, act in ((1, {"activation": "relu"}), ((1, dilation), {}))
    )
    outputs = back(there(inputs) * np.ones(1, "float32"))
    there.kernel.assign(np.reshape([1.0, 1.0, 0.0], (1, 3, 1, 1)))
    back.kernel.assign(np.reshape([1.0, -1.0, 0.0], (1, 3, 1, 1)))
    return keras.Model(inputs, outputs), there, back


@pytest.mark.elsewhere
def test_stock_convolutions_are_bounded_together_if_one_is_an_adjoint():
    # `|1 + z|^2 + |1 - z|^2 = 4` for each frequency z: at most 2, not 4.
    model, _, _ = _convolutions(1)
    assert lipschitz_bound(model) <= 2 + 1e-6
    # `1 - z^2` is largest where `1 + z` is not small.
    model, there, back = _convolutions(2)
    first, second = (
        harness.operator_matrix(x, (1, 9, 1)) for x in (there, back)
    )
    # Impulses pass through the activation: no tap before it is negative.
    slope = np.linalg.norm(first @ second, 2)
    assert slope > 2.5
    assert lipschitz_bound(model) >= slope


@pytest.mark.elsewhere
@pytest.mark.parametrize("sizes", [(3, 1), (1, 3), (3, (1, 3))])
def test_stock_convolutions_of_different_windows_are_no_pair(sizes):
    inputs = keras.Input((5, 5, 2))
    there = keras.layers.Conv2D(2, sizes[0], padding="same", activation="relu")
    back = keras.layers.Conv2D(2, sizes[1], padding="same")
    outputs = back(there(inputs) * np.full(2, 0.5, "float32"))
    apart = 0.5 * lipschitz_bound(there) * lipschitz_bound(back)
    found = lipschitz_bound(keras.Model(inputs, outputs), method="product")
    assert found == pytest.approx(apart, rel=1e-6)


def _makers():
    for made in (layers.SandwichDense, unconstrained.DensePair):
        yield made
    for made in (layers.SandwichConv2D, unconstrained.ConvPair2D):
        yield functools.partial(made, kernel_size=3)


@pytest.mark.elsewhere
@pytest.mark.parametrize("make", _makers())
def test_activations_of_other_slopes_are_refused(make):
    for activation in ("gelu", "selu", layers.GroupSort2(), "softmax"):
        with pytest.raises(ValueError, match="slopes from 0 to 1"):
            make(4, activation=activation)
    assert make(4, activation=MONOTONE[0]).k_coef_lip == 1.0


@pytest.mark.elsewhere
@pytest.mark.parametrize("value", [0, -1.0, np.nan, "1"])
def test_constants_are_positive(value):
    for make in _makers():
        with pytest.raises(ValueError, match="Received: k_coef_lip="):
            make(4, k_coef_lip=value)


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    "change",
    [{"padding": "valid"}, {"strides": 2}, {"kernel_size": 2}, {"groups": 2}],
)
def test_convolutions_that_change_the_image_are_refused(change):
    arguments = {"filters": 4, "kernel_size": 3, **change}
    with pytest.raises(ValueError, match="keeps the image"):
        layers.SandwichConv2D(**arguments)
