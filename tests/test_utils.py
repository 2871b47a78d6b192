"""Empirical Lipschitz constants, labels, and the small tensor functions."""

import harness
import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from harness import normal
from harness import to_numpy
from keras import ops

from deel.lip import layers
from deel.lip import losses
from deel.lip import utils
from deel.lip._backend.differentiation import vector_jacobian
from deel.lip.model import Sequential
from deel.lip.utils import _maybe_transpose_kernel
from deel.lip.utils import _padding_circular
from deel.lip.utils import _zero_upscale2D
from deel.lip.utils import evaluate_lip_const
from deel.lip.utils import evaluate_lip_const_gen

DIFFERENTIATES = keras.backend.backend() != "numpy"
# Finite differences of float32 numbers; see the docstring.
ROUNDING = 1e-4 if DIFFERENTIATES else 1e-2


def _dense(matrix):
    layer = keras.layers.Dense(matrix.shape[1], use_bias=False)
    layer.build((None, matrix.shape[0]))
    layer.set_weights([matrix])
    return layer


@pytest.mark.parametrize("shape", [(7, 3), (3, 7)])
def test_constant_of_a_matrix_is_its_spectral_norm(shape):
    # C6
    matrix = normal(*shape)
    found = evaluate_lip_const(_dense(matrix), normal(5, shape[0]))
    assert type(found) is float
    expected = harness.singular_values(matrix)[0]
    assert found == pytest.approx(expected, rel=ROUNDING)


def test_constant_is_the_largest_over_the_samples(monkeypatch):
    # C6
    # Each sample is a batch of its own; the largest is not the last.
    monkeypatch.setattr(utils, "_BATCH_SAMPLES", 2)

    def function(x):
        # The Jacobian at (a, b) is [[2 a, 0], [b, a]].
        return ops.stack([x[:, 0] ** 2, x[:, 0] * x[:, 1]], axis=1)

    x = np.array([[1, 0], [-3, 1], [0, 0], [2, 2]], "float32")
    expected = [np.linalg.norm([[2 * a, 0], [b, a]], 2) for a, b in x]
    found = evaluate_lip_const(function, x, eps=1e-2)
    assert found == pytest.approx(max(expected), rel=ROUNDING)
    disjoint = evaluate_lip_const(function, x, eps=1e-2, disjoint_neurons=True)
    assert disjoint == pytest.approx(6.0, rel=ROUNDING)


def test_small_batches_give_the_same_constant(monkeypatch):
    layer = keras.layers.Conv2D(3, 3)
    x = normal(5, 6, 5, 2)
    layer(x)
    expected = harness.operator_norm(layer, x.shape[1:])
    for limit in (1, 7, 100):
        monkeypatch.setattr(utils, "_BATCH_SAMPLES", limit)
        found = evaluate_lip_const(layer, x[: 1 + limit // 50], eps=1e-2)
        assert found == pytest.approx(expected, rel=ROUNDING)


def test_model_runs_in_inference_mode():
    # C6
    model = keras.Sequential(
        [keras.Input((4,)), _dense(normal(4, 3)), keras.layers.Dropout(0.9)]
    )
    found = evaluate_lip_const(model, normal(2, 4))
    expected = harness.singular_values(normal(4, 3))[0]
    assert found == pytest.approx(expected, rel=ROUNDING)
    batch_norm = keras.layers.BatchNormalization(epsilon=3.0)
    assert evaluate_lip_const(
        keras.Sequential([keras.Input((4,)), batch_norm]), normal(8, 4)
    ) == pytest.approx(0.5, rel=ROUNDING)
    assert_equal(batch_norm.moving_mean, np.zeros(4))


def _lipschitz_model(k):
    return Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.SpectralConv2D(4, 3, activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(2),
            keras.layers.Flatten(),
            layers.SpectralDense(6),
        ],
        k_coef_lip=k,
    )


@pytest.mark.parametrize("k", [1.0, 3.0])
@pytest.mark.parametrize(
    "evaluation_type", ["jacobian_norm", "noise_norm", "attack", "all"]
)
def test_constant_of_a_lipschitz_model_is_within_its_promise(
    k, evaluation_type
):
    # C6
    model = _lipschitz_model(k)
    found = evaluate_lip_const(
        model,
        normal(4, 6, 6, 1),
        evaluation_type=evaluation_type,
        num_iterations=3,
        eps=1e-2,
        expected_value=k,
    )
    assert 0.1 * k < found <= k * (1 + ROUNDING)


def test_types_of_evaluation_come_closer_to_the_norm():
    matrix = np.diag([3.0, 1, 1, 1, 1]).astype("float32")
    layer, x = _dense(matrix), normal(2, 5)
    noise, attack, double, jacobian = (
        evaluate_lip_const(
            layer, x, seed=0, num_iterations=80, step_size=0.05, **options
        )
        for options in (
            {"evaluation_type": "noise_norm", "num_noisy_samples": 1},
            {"evaluation_type": "attack"},
            {"evaluation_type": "attack", "double_attack": True},
            {"evaluation_type": "jacobian_norm"},
        )
    )
    assert 1 < noise < 2.9
    assert 2.99 < attack <= 3 * (1 + ROUNDING)
    assert 2.99 < double <= 3 * (1 + ROUNDING)
    assert jacobian == pytest.approx(3, rel=ROUNDING)
    listed = ["noise_norm", "jacobian_norm"]
    both = evaluate_lip_const(layer, x, seed=0, evaluation_type=listed)
    assert both == jacobian


def test_noise_far_from_a_sample_sees_what_its_jacobian_does_not():
    def function(x):
        return ops.relu(x - 1) * 5

    x = np.zeros((3, 2), "float32")
    assert evaluate_lip_const(function, x) == 0
    for kind in ("noise_norm", "attack"):
        far = {"epsilon_noise": 10.0, "seed": 0, "num_iterations": 2}
        near = {**far, "epsilon_noise": 1e-2}
        assert evaluate_lip_const(function, x, evaluation_type=kind, **far) > 1
        assert (
            evaluate_lip_const(function, x, evaluation_type=kind, **near) == 0
        )


@pytest.mark.parametrize("kind", ["jacobian_norm", "noise_norm", "attack"])
def test_disjoint_neurons_are_measured_one_by_one(kind):
    layer = layers.FrobeniusDense(16)
    x = normal(3, 4)
    layer(x)
    options = {"evaluation_type": kind, "step_size": 0.05, "seed": 0}
    jointly = evaluate_lip_const(layer, x, **options)
    alone = evaluate_lip_const(layer, x, disjoint_neurons=True, **options)
    assert jointly > 1.2
    assert 0.8 < alone <= 1 + ROUNDING


def test_samples_are_drawn_where_none_are_given():
    seen = []

    def function(x):
        seen.append(to_numpy(x) if len(seen) == 0 else None)
        return 2 * x

    found = evaluate_lip_const(function, input_shape=(None, 3), seed=1)
    assert found == pytest.approx(2, rel=ROUNDING)
    for shape in ((5, 4), (None, 4)):
        one, two = (
            evaluate_lip_const(
                _dense(normal(4, 3)),
                None,
                seed=7,
                input_shape=shape,
                evaluation_type="noise_norm",
            )
            for _ in range(2)
        )
        assert one == two
    with pytest.raises(ValueError, match="Received: x=None, input_shape=None"):
        evaluate_lip_const(function, None)


@pytest.mark.parametrize("wrong", ["norm", ["attack", "norm"], [], None])
def test_unknown_types_of_evaluation_are_refused(wrong):
    with pytest.raises(ValueError, match="Received: evaluation_type="):
        evaluate_lip_const(lambda x: x, np.ones((1, 1)), evaluation_type=wrong)


def test_constant_above_the_expected_one_is_an_error():
    layer, x = _dense(2 * np.eye(3, dtype="float32")), normal(2, 3)
    assert evaluate_lip_const(layer, x, eps=1e-1, expected_value=2.0) > 1.99
    with pytest.raises(AssertionError, match=r"Received: expected_value=1\.9"):
        evaluate_lip_const(layer, x, expected_value=1.9)


def test_generator_gives_its_first_batch():
    layer = _dense(np.eye(2, dtype="float32"))

    def batches():
        yield np.ones((3, 2)), np.ones(3)
        raise RuntimeError("One batch is enough.")

    found = evaluate_lip_const_gen(layer, batches(), eps=1e-4, seed=None)
    assert found == pytest.approx(1, rel=10 * ROUNDING)
    listed = [(np.ones((3, 2)), np.ones(3), np.ones(3))]
    with pytest.raises(AssertionError):
        evaluate_lip_const_gen(layer, listed, expected_value=0.5)


def test_cotangents_are_pulled_back_at_each_sample():
    # C6
    x, v = normal(4, 3, 2), normal(4, 3, 2, seed=1)
    found = vector_jacobian(lambda x: x**2, x, v, step=1e-2)
    assert_close(found, 2 * x * v, atol=1e-3)
    constant = vector_jacobian(lambda x: ops.ones((4, 3, 2)), x, v)
    assert_equal(constant, 0 * x)


def test_golden_value_of_the_labels_for_several_devices():
    y = np.array([[1], [0], [0], [0]])
    p = np.array([[1], [0.5], [-2], [-0.5]], "float32")
    for labels in (y, 2 * y - 1, y.astype("float32"), y > 0):
        found = utils.process_labels_for_multi_gpu(labels)
        assert keras.backend.standardize_dtype(found.dtype) == "float32"
        assert_close(
            found,
            [[3.9999995], [-1.3333334], [-1.3333334], [-1.3333334]],
            rtol=1e-7,
        )
    whole = float(losses.KR(multi_gpu=True)(found, p))
    assert whole == pytest.approx(1.6666665, rel=1e-6)
    hinges = [float(losses.HingeMargin()(labels, p)) for labels in (found, y)]
    assert hinges[0] == hinges[1]


def test_labels_are_counted_for_each_output_and_keep_their_dtype():
    y = np.array([[1, 0], [0, 0], [1, 1], [1, 0]], "float16")
    found = utils.process_labels_for_multi_gpu(y)
    assert keras.backend.standardize_dtype(found.dtype) == "float16"
    expected = np.array([[4 / 3, -4 / 3], [-4, -4 / 3], [4 / 3, 4]])
    assert_close(to_numpy(found)[:3], expected, rtol=1e-3)


@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
def test_l2_normalize_divides_by_the_norm(axis):
    x = normal(3, 4)
    expected = x / np.linalg.norm(x, axis=axis, keepdims=True)
    assert_close(utils.l2_normalize(x, axis), expected, rtol=1e-6)
    # The square of the norm is kept from zero by epsilon.
    small = utils.l2_normalize(1e-3 * x, axis, epsilon=100.0)
    assert_close(small, 1e-4 * x, rtol=1e-6)


@pytest.mark.parametrize("padding", [(1, 2), (0, 1), (3, 0), (3, 4), None])
def test_circular_padding_wraps_around(padding):
    x = normal(2, 3, 4, 2)
    p_h, p_w = padding or (0, 0)
    expected = np.pad(x, [(0, 0), (p_h, p_h), (p_w, p_w), (0, 0)], "wrap")
    assert_equal(_padding_circular(x, padding), expected)


def test_circular_padding_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="Received: length=3"):
        _padding_circular(normal(1, 3, 3, 1), (4, 1))


@pytest.mark.parametrize("strides", [(2, 3), (1, 2), (1, 1)])
def test_zeros_are_inserted_after_each_pixel(strides):
    x = normal(2, 3, 4, 2)
    found = to_numpy(_zero_upscale2D(x, strides))
    expected = np.zeros((2, 3 * strides[0], 4 * strides[1], 2), "float32")
    expected[:, :: strides[0], :: strides[1]] = x
    assert_equal(found, expected)


def test_kernel_of_the_transposed_convolution_is_flipped():
    w = normal(3, 2, 4, 5)
    assert _maybe_transpose_kernel(w) is w
    found = to_numpy(_maybe_transpose_kernel(w, transpose=True))
    assert_equal(found, np.swapaxes(w[::-1, ::-1], 2, 3))
