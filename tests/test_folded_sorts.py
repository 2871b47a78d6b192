"""Sorts of pairs that convolutions do, in exports for some runtimes."""

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import normal
from harness import to_numpy

from deel.lip import layers
from deel.lip._stock_only.conversion import stock_model
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.export._formats import FORMATS
from deel.lip.model import Model
from deel.lip.model import Sequential

# No file that is written on JAX has them.
pytestmark = pytest.mark.elsewhere

WITHIN = {"rtol": 1e-5, "atol": 1e-5}


def _kinds(model):
    return [type(x).__name__ for x in model.operations]


def _moved(model):
    """The model with biases, and kernels that are not those of the start."""
    rng = np.random.default_rng(0)
    model.set_weights(
        [
            w + rng.normal(size=w.shape).astype("float32") / 10
            for w in model.get_weights()
        ]
    )
    return model


def _network():
    sorts = layers.GroupSort2
    return _moved(
        Sequential(
            [
                keras.Input((12, 12, 1)),
                # Its pairs come from what it reads,
                layers.SpectralConv2D(16, 3, strides=2, activation=sorts()),
                layers.ScaledL2NormPooling2D(),
                # these from what it returns.
                layers.SpectralConv2D(8, 3),
                sorts(k_coef_lip=1.5),
                layers.ScaledAveragePooling2D(),
                layers.SpectralConv2D(4, 3, activation=sorts()),
                keras.layers.ZeroPadding2D(1),
                keras.layers.Flatten(),
                layers.SpectralDense(6, activation=layers.FullSort()),
                layers.FrobeniusDense(3),
            ]
        )
    )


def test_convolutions_sort_with_the_scores_and_the_radii_of_the_model():
    model = _network()
    exported = stock_model(model, folds_sorts=True)
    kinds = _kinds(exported)
    assert kinds.count("Conv2D") == 6
    assert not {"Maximum", "Split", "Take"} & set(kinds)
    x = 3 * normal(20, *model.input_shape[1:])
    expected = model.predict(x, verbose=0)
    assert_close(exported.predict(x, verbose=0), expected, **WITHIN)
    found, expected = (
        certify(m, x, rounding="exact", verbose=0).radius
        for m in (exported, model)
    )
    assert np.mean(expected) > 0.001
    assert_close(found, expected, rtol=1e-6, atol=1e-6 * expected.max())


def _called_twice(x):
    dense = layers.SpectralDense(4)
    x = keras.layers.Flatten()(x)
    return [dense(x), dense(x)]


def _read_besides(x):
    y = layers.SpectralConv2D(4, 3)(x)
    return layers.SpectralDense(3)(layers.GroupSort2()(y)) + y[..., :3]


@pytest.mark.parametrize(
    "behind",
    [
        lambda x: x,
        keras.layers.MaxPooling2D(2),
        lambda x: keras.layers.ReLU()(keras.layers.AveragePooling2D(2)(x)),
        layers.GroupSort2(),
        lambda x: layers.GroupSort2()(keras.layers.AveragePooling2D(2)(x)),
        layers.PrescaledResidual(layers.SpectralConv2D(4, 3)),
        _called_twice,
        _read_besides,
    ],
    ids=[
        "end",
        "maximum",
        "relu",
        "sort",
        "sorts",
        "residual",
        "shared",
        "read",
    ],
)
def test_negated_minima_are_seen_by_nobody(behind):
    inputs = keras.Input((8, 8, 2))
    x = layers.SpectralConv2D(4, 3, activation=layers.GroupSort2())(inputs)
    model = _moved(Model(inputs, behind(x)))
    exported = stock_model(model, folds_sorts=True)
    x = normal(5, 8, 8, 2)
    found, expected = (
        keras.tree.flatten(m.predict(x, verbose=0)) for m in (exported, model)
    )
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, **WITHIN)


def test_wide_layers_sort_so_where_they_read_little():
    inputs = x = keras.Input((6, 6, 3))
    for filters in (64, 64):
        x = layers.SpectralConv2D(filters, 3, activation=layers.GroupSort2())(x)
        x = layers.ScaledGlobalAveragePooling2D(keepdims=True)(x)
    x = layers.SpectralDense(2)(x)
    kinds = _kinds(stock_model(keras.Model(inputs, x), folds_sorts=True))
    assert (kinds.count("Conv2D"), kinds.count("Maximum")) == (3, 1)


def test_formats_have_it_whose_runtimes_are_faster_so():
    model = _network()
    folded = {
        name
        for name, form in FORMATS.items()
        if "Maximum" not in _kinds(form.stock_model(model))
    }
    expected = {
        "tensorflow": {"onnx", "openvino"},
        "jax": set(),
        "torch": {"onnx"},
    }
    assert folded == expected[keras.backend.backend()]


def _sum(plain, fold, plain_weights, fold_weights):
    inputs = keras.Input((1, 5, plain_weights[0].shape[-2]))
    made = [layer and layer(inputs) for layer in (plain, fold)]
    fold.set_weights(fold_weights)
    if plain is None:
        return keras.Model(inputs, inputs + made[1])
    plain.set_weights(plain_weights)
    return keras.Model(inputs, made[1] + made[0])


def _jacobian_norm(model, x):
    """The norm at a sample, around which the model is linear."""
    moves = np.eye(x.size, dtype="float32").reshape(-1, *x.shape[1:]) / 8
    moved = to_numpy(model(x + moves)) - to_numpy(model(x))
    return np.linalg.norm(8 * moved.reshape(x.size, -1), 2)


def _convolution(size=1, **kwargs):
    return keras.layers.Conv2D(2, (1, size), padding="same", **kwargs)


@pytest.mark.parametrize("reads_itself", [True, False])
def test_the_rest_of_a_sum_that_nearly_sorts_counts(reads_itself):
    rest = 1e-4 / np.sqrt(2)
    kernel = -np.full((1, 1, 2, 2), 1 + rest, "float32")
    plain = None if reads_itself else _convolution(use_bias=False)
    eye = np.eye(2, dtype="float32")[None, None]
    fold = _convolution(activation="relu", use_bias=False)
    model = _sum(plain, fold, [eye], [kernel])
    reached = _jacobian_norm(model, -np.ones((1, 1, 5, 2), "float32"))
    assert reached == pytest.approx(1 + 2 * rest, rel=1e-6)
    assert lipschitz_bound(model) == pytest.approx(1 + 2 * rest, rel=1e-6)
    assert lipschitz_bound(model) >= -2 * float(kernel[0, 0, 0, 0]) - 1


def _halves(first, second, size=1):
    """Kernel of taps that read one channel, for each of two outputs."""
    kernel = np.zeros((1, size, 2, 2), "float32")
    for output, taps in enumerate((first, second)):
        for (tap, channel), value in taps.items():
            kernel[0, tap, channel, output] = value
    return kernel


BOTH = {(0, 0): -1.0, (0, 1): -1.0}
WIDE = {(1, 0): -1.0, (2, 0): -1.0}
NOT_SORTS = {
    "one half": (
        {},
        _halves({(0, 0): 1.0}, {(0, 1): 1.0}),
        _halves(BOTH, {}),
        [0.0, 0.0],
        {},
    ),
    "other places": (
        {},
        _halves({(0, 0): 1.0}, {(0, 1): 1.0}),
        _halves(BOTH, BOTH),
        [0.0, -9.0],
        {},
    ),
    "other windows": (
        {"size": 3},
        _halves({(1, 0): 1.0}, {(2, 0): 1.0}, 3),
        _halves(WIDE, WIDE, 3),
        [0.0, 0.0],
        {"dilation_rate": (1, 2)},
    ),
}


@pytest.mark.parametrize("name", NOT_SORTS)
def test_what_does_not_sort_is_bounded_as_a_sum(name):
    sizes, kernel, fold_kernel, bias, windows = NOT_SORTS[name]
    plain = _convolution(**sizes, use_bias=False)
    fold = _convolution(**sizes, activation="relu", **windows)
    weights = [fold_kernel, np.array(bias, "float32")]
    model = _sum(plain, fold, [kernel], weights)
    reached = _jacobian_norm(model, -np.ones((1, 1, 5, 2), "float32"))
    alone = lipschitz_bound(keras.Sequential([model.inputs[0], plain]))
    assert reached > 1.1 * alone
    assert lipschitz_bound(model) >= reached
