"""Golden values of the pooling layers, and gradients at zero."""

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import built
from harness import normal
from harness import to_numpy
from keras import ops

from deel.lip import layers
from deel.lip._backend import compilation as _compilation
from deel.lip._backend.differentiation import compiled
from deel.lip.layers import ScaledAdaptiveAveragePooling2D
from deel.lip.layers import ScaledAdaptiveL2NormPooling2D
from deel.lip.layers import ScaledAveragePooling2D
from deel.lip.layers import ScaledGlobalAveragePooling1D
from deel.lip.layers import ScaledGlobalAveragePooling2D
from deel.lip.layers import ScaledGlobalL2NormPooling1D
from deel.lip.layers import ScaledGlobalL2NormPooling2D
from deel.lip.layers import ScaledL2NormPooling2D
from deel.lip.model import Sequential

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
        (ScaledAdaptiveAveragePooling2D((1, 1)), WINDOW, 5.0),
        (ScaledAdaptiveL2NormPooling2D([1, 1]), WINDOW, 5.477226),
        (ScaledAdaptiveL2NormPooling2D(1, k_coef_lip=2.0), WINDOW, 10.954452),
    ],
)
def test_golden_values(layer, x, expected):
    assert to_numpy(layer(x)).item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
# Windows that fill the image, and windows that leave a column out.
@pytest.mark.parametrize("columns", [4, 5])
def test_gradient_of_the_norm_is_right_and_finite_at_zero(epsilon, columns):
    layer = ScaledL2NormPooling2D(2, eps_grad_sqrt=epsilon)
    x = normal(2, 4, columns, 3)
    x[0, :2, :2] = 0.0
    (found,) = harness.gradient(lambda z: ops.sum(layer(z)), x)
    assert np.all(found[0, :2, :2] == 0)
    assert np.all(found[:, :, 4:] == 0)
    windows = x[:, :, :4].reshape(2, 2, 2, 2, 2, 3)
    norm = np.sqrt(np.sum(windows**2, axis=(2, 4), keepdims=True) + 4 * epsilon)
    expected = np.divide(
        windows, norm, out=np.zeros_like(windows), where=norm > 0
    )
    assert_close(found[:, :, :4], expected.reshape(2, 4, 4, 3), atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(
    ("rank", "shape", "size"),
    [
        (1, (12, 3), 4),
        (2, (4, 6, 3), (2, 3)),
        (2, (4, 7, 2), 2),
        (3, (2, 4, 6, 2), (1, 2, 3)),
    ],
)
def test_norms_are_the_same_in_training_and_inference(
    rank, shape, size, data_format, epsilon, monkeypatch
):
    # Training takes another way with large tensors, so all are large here.
    monkeypatch.setattr(_compilation, "_LARGE", 0)
    backend = keras.backend.backend()
    if backend == "tensorflow" and data_format == "channels_first":
        pytest.skip("TensorFlow pools channels last on a CPU")
    layer_class = getattr(layers, f"ScaledL2NormPooling{rank}D")
    layer = layer_class(size, data_format=data_format, eps_grad_sqrt=epsilon)
    x = normal(2, *shape)
    x[0] = 0.0
    if data_format == "channels_first":
        x = np.moveaxis(x, -1, 1)
    results = []
    for training in (True, False):

        def norms(x, training=training):
            return layer(x, training=training)

        def sums(x, norms=norms):
            return ops.sum(norms(x), axis=tuple(range(1, len(x.shape))))

        results.append((compiled(norms)[0](x), compiled(sums)[1](x)))
    for trained, inferred in zip(*results, strict=True):
        assert_close(trained, inferred, rtol=1e-6, atol=1e-6)
    assert np.all(results[0][1][0] == 0)


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
    layer = built(ScaledGlobalAveragePooling2D(), 8, 8, 1)
    for size in (2, 3, 8):
        x = np.ones((1, size, size, 1), "float32")
        for function in (model, layer):
            assert to_numpy(function(x)).item() == pytest.approx(size)


def test_data_formats_agree():
    x = normal(2, 4, 6, 3)
    first = np.transpose(x, (0, 3, 1, 2))
    for layer_class in (
        ScaledGlobalAveragePooling2D,
        ScaledGlobalL2NormPooling2D,
    ):
        last_result = layer_class()(x)
        first_result = layer_class(data_format="channels_first")(first)
        assert_close(last_result, first_result, rtol=1e-5)


def _of_rank(name, rank, **arguments):
    return getattr(layers, f"Scaled{name}Pooling{rank}D")(**arguments)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_value_is_the_scaled_sum_or_norm_of_the_window(rank, data_format):
    x = normal(2, *[4] * rank, 3)
    # Halves of each axis, spread over axes of their own.
    windows = x.reshape(2, *[2, 2] * rank, 3)
    inner = tuple(range(2, 2 * rank + 1, 2))
    outer = tuple(range(1, rank + 1))
    expected = {
        "Average": windows.sum(inner) / 2 ** (rank / 2),
        "L2Norm": np.sqrt(np.square(windows).sum(inner)),
        "GlobalAverage": x.sum(outer) / 2**rank,
        "GlobalL2Norm": np.sqrt(np.square(x).sum(outer)),
    }
    first = data_format == "channels_first"
    for name, value in expected.items():
        norm = {"eps_grad_sqrt": 0.0} if "L2" in name else {}
        layer = _of_rank(name, rank, data_format=data_format, **norm)
        found = layer(np.moveaxis(x, -1, 1) if first else x)
        found = to_numpy(found)
        if first:
            found = np.moveaxis(found, 1, -1)
        assert_close(found, value, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_defaults_and_errors_are_those_of_the_rank(rank):
    for name in ("Average", "L2Norm"):
        layer = _of_rank(name, rank)
        assert layer.pool_size == layer.strides == (2,) * rank
        assert layer._get_coef() == pytest.approx(2 ** (rank / 2))
        stock = getattr(keras.layers, f"AveragePooling{rank}D")
        assert isinstance(layer, stock)
        for arguments in (
            {"pool_size": 3, "strides": 2},
            {"pool_size": (2,) * rank, "strides": (1,) * rank},
            {"padding": "same"},
        ):
            with pytest.raises(RuntimeError, match="Received: "):
                _of_rank(name, rank, **arguments)
    for name in ("L2Norm", "GlobalL2Norm"):
        with pytest.raises(RuntimeError, match="Received: eps_grad_sqrt"):
            _of_rank(name, rank, eps_grad_sqrt=-1.0)


@pytest.mark.parametrize("size", [2, (1, 2), (None, None), (1, 1, 1), "1", 0])
def test_adaptive_pooling_has_one_output_size(size):
    for layer_class in (
        ScaledAdaptiveAveragePooling2D,
        ScaledAdaptiveL2NormPooling2D,
    ):
        with pytest.raises(RuntimeError, match="Received: output_size="):
            layer_class(size)
        assert "keepdims" not in layer_class(1).get_config()


def test_masked_steps_count_neither_in_the_sum_nor_in_the_size():
    x = normal(3, 5, 2)
    mask = np.arange(5) < np.array([[5], [2], [0]])
    kept = np.where(mask[:, :, None], x, 0)
    steps = np.array([[5], [2], [1]])
    expected = {
        ScaledGlobalAveragePooling1D: kept.sum(axis=1) / np.sqrt(steps),
        ScaledGlobalL2NormPooling1D: np.sqrt(np.sum(kept**2, axis=1) + 1e-6),
    }
    for layer_class, value in expected.items():
        found = to_numpy(layer_class()(x, mask=mask))
        assert_close(found, value, atol=1e-5)
        first = layer_class(data_format="channels_first", keepdims=True)
        found = first(np.transpose(x, (0, 2, 1)), mask=mask)
        assert_close(found, value[:, :, None], atol=1e-5)


def test_masked_mean_does_not_expand():
    # With the root of all steps, a mean of the two kept would, by sqrt(5 / 2).
    mask = np.array([[True, True, False, False, False]])
    x = np.ones((1, 5, 1), "float32")
    layer = ScaledGlobalAveragePooling1D()
    gap = layer(x, mask=mask) - layer(0 * x, mask=mask)
    assert float(ops.max(gap)) <= np.sqrt(2) * (1 + 1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_networks_of_other_ranks_are_trained_and_exported(rank):
    model = Sequential(
        [
            keras.Input((*[4] * rank, 2)),
            _of_rank("L2Norm", rank),
            _of_rank("Average", rank, pool_size=(1,) * rank),
            _of_rank("GlobalAverage", rank, keepdims=True),
            _of_rank("GlobalL2Norm", rank),
            layers.SpectralDense(2),
        ],
        k_coef_lip=32.0,
    )
    assert [x.k_coef_lip for x in model.layers] == pytest.approx([2.0] * 5)
    x = np.random.default_rng(0).standard_normal((8, *[4] * rank, 2))
    y = np.ones((8, 2))
    model.compile("adam", "mse", jit_compile=JIT)
    losses = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert_close(
        model.vanilla_export().predict(x, verbose=0),
        model.predict(x, verbose=0),
        atol=1e-4,
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("columns", [4, 5])
def test_norms_of_huge_values_are_finite_and_do_not_expand(
    training, columns, monkeypatch
):
    # Training takes another way with large tensors, so all are large here.
    monkeypatch.setattr(_compilation, "_LARGE", 0)
    scales = np.array([0.0, 1e-30, 1.0, 1e17, 6e18, 7e18, 1e19, 2e19, 1e37])
    x = np.ones((len(scales), 4, columns, 1)) * scales[:, None, None, None]
    x = x.astype("float32")
    for layer in (
        ScaledL2NormPooling2D(eps_grad_sqrt=0.0),
        ScaledL2NormPooling2D((4, columns), k_coef_lip=2.0, eps_grad_sqrt=0.0),
        ScaledGlobalL2NormPooling2D(eps_grad_sqrt=0.0),
        ScaledAdaptiveL2NormPooling2D(eps_grad_sqrt=0.0),
        layers.ScaledL2NormPooling1D(eps_grad_sqrt=0.0),
        layers.ScaledGlobalL2NormPooling3D(eps_grad_sqrt=0.0),
    ):
        flat = x[:, 0] if "1D" in type(layer).__name__ else x
        flat = x[:, None] if "3D" in type(layer).__name__ else flat
        arguments = (
            {"training": training} if hasattr(layer, "pool_size") else {}
        )
        found = to_numpy(layer(flat, **arguments)).astype("float64")
        assert np.all(np.isfinite(found)), layer.name
        flat = flat.astype("float64")
        moved = np.diff(flat.reshape(len(scales), -1), axis=0)
        changed = np.diff(found.reshape(len(scales), -1), axis=0)
        bound = layer.k_coef_lip * np.linalg.norm(moved, axis=1)
        # What is below 1e-19 may count as zero.
        assert np.all(
            np.linalg.norm(changed, axis=1) <= bound * (1 + 1e-6) + 1e-18
        ), layer.name
        # The norm itself, up to a limit that no square exceeds.
        assert found[3].max() >= 1e17 * layer.k_coef_lip
        assert found[-1].max() >= 1.2e19 * layer.k_coef_lip


@pytest.mark.parametrize("columns", [4, 5])
def test_gradient_is_zero_where_a_norm_is_cut_off(columns, monkeypatch):
    monkeypatch.setattr(_compilation, "_LARGE", 0)
    layer = ScaledL2NormPooling2D(2)
    x = np.ones((1, 4, columns, 1), "float32")
    x[0, :2, :2] = 1e20
    (found,) = harness.gradient(lambda z: ops.sum(layer(z, training=True)), x)
    assert np.all(found[0, :2, :2] == 0)
    assert_close(found[0, 2:, :2], 0.5, rtol=1e-5)
