"""Regularizers: golden values, existence of orthogonal convolutions."""

import json

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import normal
from harness import reloaded
from harness import to_numpy

from deel.lip.layers import SpectralConv2D
from deel.lip.layers import SpectralDense
from deel.lip.regularizers import Lorth
from deel.lip.regularizers import Lorth2D
from deel.lip.regularizers import LorthRegularizer
from deel.lip.regularizers import OrthDenseRegularizer

W = np.array([[3.0, 0.0], [4.0, 2.0]], "float32")


def _centred(size, channels, filters):
    """Kernel that copies channels to filters, an orthogonal one."""
    kernel = np.zeros((size, size, channels, filters), "float32")
    kernel[size // 2, size // 2] = np.eye(channels, filters)
    return kernel


def test_golden_value_of_the_dense_regularizer():
    assert float(OrthDenseRegularizer()(W)) == pytest.approx(713)
    assert float(OrthDenseRegularizer(0.5)(W)) == pytest.approx(356.5)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_dense_penalty_is_that_of_the_smaller_gram_matrix(shape):
    w = np.random.default_rng(0).standard_normal(shape)
    values = harness.singular_values(w)
    expected = np.sum((values**2 - 1) ** 2)
    found = float(OrthDenseRegularizer()(w.astype("float32")))
    assert found == pytest.approx(expected, rel=1e-5)
    orthogonal = keras.initializers.Orthogonal(seed=0)(shape)
    assert float(OrthDenseRegularizer()(orthogonal)) < 1e-10


def test_dense_regularizer_refuses_kernels_of_convolutions():
    with pytest.raises(ValueError, match="Received: x"):
        OrthDenseRegularizer()(np.zeros((3, 3, 1, 1)))


def test_golden_values_of_lorth():
    kernel = _centred(3, 2, 2)
    with pytest.warns(UserWarning, match="hard to optimize"):
        lorth = Lorth2D(kernel.shape)
    assert float(lorth.compute_lorth(kernel)) == 0
    assert float(lorth.compute_lorth(2 * kernel)) == pytest.approx(18)


@pytest.mark.parametrize(
    ("shape", "stride", "delta", "padding", "alpha"),
    [
        ((5, 5, 32, 64), 1, 32, 4, min(5 * 32 * 64, 32 * 9**2)),
        ((5, 5, 8, 70), 3, 0, 3, 70 * 3**2),
        ((3, 3, 2, 1), 1, 0, 2, 5**2),
        ((1, 1, 1, 2), 1, 1, 0, min(2, 1)),
    ],
    ids=str,
)
def test_constants_of_a_configuration(shape, stride, delta, padding, alpha):
    lorth = Lorth2D(shape, stride)
    found = (lorth.delta, lorth.padding, lorth.alphaNormSpectral)
    assert found == (delta, padding, alpha)
    assert (lorth.kernel_shape, lorth.stride, lorth.dim) == (shape, stride, 2)


def test_transposed_convolutions_exchange_inputs_and_outputs():
    lorth = Lorth2D((5, 5, 64, 32), 1, conv_transpose=True)
    assert (lorth.delta, lorth.alphaNormSpectral) == (32, 2592)
    assert Lorth2D((5, 5, 64, 32), 1).delta == 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("filters", [1, 3, 9])
def test_value_is_the_distance_of_the_operator_from_an_isometry(
    stride, filters
):
    # On images so large that borders do not count, products of two outputs
    # are those of the operator with its transpose.
    w = 0.3 * normal(3, 3, 2, filters)
    lorth = Lorth2D(w.shape, stride)
    found = float(lorth.compute_lorth(w))
    size = 11
    layer = keras.layers.Conv2D(filters, 3, stride, "valid", use_bias=False)
    layer.build((None, size, size, 2))
    layer.set_weights([w])
    operator = harness.operator_matrix(layer, (size, size, 2))
    products = operator.T @ operator
    outputs = (size - 3) // stride + 1
    # Rows of the output in the middle, against all others.
    products = products.reshape((outputs, outputs, filters) * 2)
    middle = products[outputs // 2, outputs // 2].copy()
    middle[:, outputs // 2, outputs // 2] -= np.eye(filters)
    expected = np.sum(middle**2) - lorth.delta
    assert found == pytest.approx(expected, rel=1e-4)


def test_even_kernels_are_refused():
    with pytest.raises(AssertionError, match="Received: kernel_shape"):
        Lorth2D((4, 4, 1, 1))


@pytest.mark.parametrize(
    ("shape", "stride", "message", "possible"),
    [
        ((3, 3, 32, 289), 4, "Impossible RO", ((3, 3, 32, 288), 4)),
        ((3, 3, 8, 129), 4, "Impossible CO", ((3, 3, 8, 129), 3)),
    ],
    ids=["RO", "CO"],
)
def test_impossible_configurations_are_refused(
    shape, stride, message, possible
):
    with pytest.raises(RuntimeError, match=message):
        LorthRegularizer(shape, stride)
    with pytest.raises(RuntimeError, match=message):
        LorthRegularizer(stride=stride)(np.zeros(shape, "float32"))
    Lorth2D(*possible)


@pytest.mark.parametrize("shape", [(3, 5, 1, 1), (3, 1, 1), (3, 3, 3, 1, 1)])
def test_kernels_that_are_not_square_and_2d_are_refused(shape):
    with pytest.raises(ValueError, match="Received: kernel_shape"):
        Lorth2D(shape)


def test_other_dimensions_are_not_implemented():
    with pytest.raises(NotImplementedError, match="Received: dim=3"):
        LorthRegularizer(dim=3)
    with pytest.raises(NotImplementedError, match="compute_lorth"):
        Lorth(2).compute_lorth(W)


def test_shape_can_be_set_later():
    lorth = Lorth2D()
    found = (lorth.kernel_shape, lorth.padding, lorth.delta)
    assert found == (None, None, None)
    assert lorth.alphaNormSpectral is None
    kernel = _centred(3, 2, 1)
    with pytest.raises(ValueError, match="kernel_shape=None"):
        lorth.compute_lorth(kernel)
    lorth.set_kernel_shape(kernel.shape)
    assert float(lorth.compute_lorth(kernel)) == 0
    with pytest.raises(ValueError, match="Received: w"):
        lorth.compute_lorth(_centred(3, 3, 1))


def test_one_regularizer_serves_kernels_of_several_shapes():
    regularizer = LorthRegularizer(lambda_lorth=2.0)
    for channels in (2, 3, 2):
        kernel = _centred(3, channels, 1)
        assert float(regularizer(kernel)) == 0
        assert float(regularizer(2 * kernel)) == pytest.approx(18)
        assert regularizer.lorth.kernel_shape == kernel.shape
    assert regularizer.kernel_shape is None
    regularizer.set_kernel_shape((3, 3, 2, 1))
    with pytest.raises(ValueError, match="Received: w"):
        regularizer(_centred(3, 3, 1))


@pytest.mark.parametrize(
    "regularizer",
    [
        OrthDenseRegularizer(2),
        LorthRegularizer(),
        LorthRegularizer((5, 5, 8, 70), 3, 0.5, conv_transpose=True),
    ],
    ids=["dense", "deferred", "conv"],
)
def test_configs_are_plain_and_rebuild_an_equal_regularizer(regularizer):
    config = regularizer.get_config()
    assert harness.is_plain(config)
    saved = keras.regularizers.serialize(regularizer)
    assert saved["registered_name"].startswith("deel-lip>")
    rebuilt = keras.regularizers.get(json.loads(json.dumps(saved)))
    assert type(rebuilt) is type(regularizer)
    assert rebuilt.get_config() == config


def _penalty(model):
    return float(to_numpy(model.losses[0]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.layers.Dense(
            3, kernel_regularizer=OrthDenseRegularizer(0.1)
        ),
        lambda: SpectralDense(3, kernel_regularizer=OrthDenseRegularizer(0.1)),
        lambda: keras.layers.Conv2D(
            3, 3, padding="same", kernel_regularizer=LorthRegularizer()
        ),
        lambda: SpectralConv2D(3, 3, kernel_regularizer=LorthRegularizer()),
    ],
    ids=["Dense", "SpectralDense", "Conv2D", "SpectralConv2D"],
)
def test_layers_train_with_them_and_come_back_from_files(make, tmp_path):
    layer = make()
    shape = (5,) if "Dense" in type(layer).__name__ else (6, 6, 2)
    model = keras.Sequential([keras.Input(shape), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=JIT)
    kernel = np.random.default_rng(0).standard_normal(layer.kernel.shape)
    layer.kernel.assign(0.2 * kernel)
    x = np.zeros((4, *shape), "float32")
    y = np.zeros((4, *model.output_shape[1:]), "float32")
    before = _penalty(layer)
    # No data: the penalty alone moves the kernel.
    model.fit(x, y, epochs=20, verbose=0)
    assert _penalty(layer) < 0.9 * before
    loaded = reloaded(model, tmp_path)
    assert _penalty(loaded) == pytest.approx(_penalty(layer), abs=1e-6)
    to_numpy(loaded(x))
