"""The textbook functions: golden values, gradients, exact adjoints."""

import functools

import harness
import keras
import numpy as np
import pytest
from harness import assert_close
from harness import normal
from harness import to_numpy
from keras import ops

from deel.lip import normalizers
from deel.lip.normalizers import bjorck_normalization
from deel.lip.normalizers import get_conv_operators
from deel.lip.normalizers import reshaped_kernel_orthogonalization
from deel.lip.normalizers import spectral_normalization
from deel.lip.normalizers import spectral_normalization_conv
from deel.lip.utils import _padding_circular

W = np.diag([4.0, 1.0]).astype("float32")
ONES = np.ones((1, 2), "float32")


def _compiled(function):
    """The function, compiled where the backend does so by itself."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function


def test_golden_values_of_spectral_normalization():
    w, u, sigma = spectral_normalization(W, ONES)
    assert_close(sigma, [[4.0]], rtol=1e-6)
    assert_close(w, np.diag([0.9997501, 0.2499375]), atol=1e-6)
    # Four steps: three give 2.4e-4, five give 9.5e-7.
    assert_close(u, [[1.0, 1.5259e-5]], rtol=1e-4)


def test_power_iteration_stops_at_its_limit_and_makes_one_step_at_least():
    for limit in (0, 1):
        _, u, _ = spectral_normalization(W, ONES, maxiter=limit)
        assert_close(u, [[0.9980526, 0.0623783]], rtol=1e-5)


def test_power_iteration_normalises_each_vector_along_the_axis():
    u = normalizers._power_iteration(
        lambda u: ops.matmul(u, W), lambda v: ops.matmul(v, W), ONES + W, axis=1
    )
    assert_close(to_numpy(u)[:, 0], 1.0, atol=1e-5)
    assert u.shape == (2, 2)


def test_vector_is_drawn_where_none_is_given():
    _, u, sigma = spectral_normalization(W, None)
    assert tuple(u.shape) == (1, 2)
    assert_close(sigma, [[4.0]], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_scales_neither_overflow_nor_vanish(scale):
    w, u, sigma = spectral_normalization(scale * W, ONES)
    assert_close(sigma, [[4.0 * scale]], rtol=1e-5)
    assert_close(to_numpy(u)[0, 0], 1.0, rtol=1e-5)
    assert np.all(np.isfinite(to_numpy(w)))


def test_golden_values_of_bjorck_normalization():
    w = np.diag([0.9, 0.5]).astype("float32")
    once = bjorck_normalization(w, maxiter=1)
    assert_close(once, np.diag([0.9855, 0.6875]), 1e-6)
    # The fifth step is the first to change less than eps.
    for limit in (5, 15):
        found = bjorck_normalization(w, maxiter=limit)
        assert_close(np.diag(to_numpy(found)), [1, 0.9999988], 1e-7)
    fourth = bjorck_normalization(w, maxiter=4)
    assert to_numpy(fourth)[1, 1] < 0.9995


def test_golden_value_of_the_reshaped_kernel():
    w, u, sigma = reshaped_kernel_orthogonalization(W, ONES, 2.0)
    assert_close(w, np.diag([2, 2]), atol=1e-5)
    assert tuple(u.shape) == (1, 2)
    assert_close(sigma, [[4.0]], rtol=1e-6)


@pytest.mark.elsewhere
@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (3, 3, 2, 5), (3, 2, 1, 9)])
def test_rectangular_kernels_become_semi_orthogonal(shape):
    kernel = normal(*shape)
    u = np.ones((1, shape[-1]), "float32")
    w, _, _ = reshaped_kernel_orthogonalization(kernel, u, 1.0)
    assert tuple(w.shape) == shape
    assert_close(harness.singular_values(harness.as_matrix(w)), 1.0, atol=1e-3)


@pytest.mark.parametrize("switch", [{"eps_bjorck": None}, {"beta": None}])
def test_without_orthogonalisation_kernels_are_only_divided(switch):
    w, _, _ = reshaped_kernel_orthogonalization(W, ONES, 2.0, **switch)
    expected = 2 * np.diag([0.9997501, 0.2499375])
    assert_close(w, expected, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"eps_spectral": 0}, {"eps_bjorck": -1}, {"beta": 0.6}]
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="Received: "):
        reshaped_kernel_orthogonalization(W, ONES, 1.0, **wrong)


# Few steps: compilers take seconds for many.
def _rko(kernel):
    u = np.ones((1, kernel.shape[-1]), "float32")
    limits = {"maxiter_spectral": 4, "maxiter_bjorck": 5}
    return reshaped_kernel_orthogonalization(kernel, u, 1.0, **limits)[0]


def _conv(kernel):
    u = np.ones((1, 5, 5, kernel.shape[2]), "float32")
    return spectral_normalization_conv(kernel, u, stride=2, maxiter=4)[0]


@pytest.mark.parametrize("function", [_rko, _conv, bjorck_normalization])
def test_zero_stays_zero_with_a_finite_gradient(function):
    # C2
    shape = (3, 2) if function is bjorck_normalization else (3, 3, 2, 4)
    zero = np.zeros(shape, "float32")
    assert np.all(to_numpy(function(zero)) == 0)
    (slope,) = harness.gradient(lambda w: ops.sum(function(w)), zero)
    assert np.all(np.isfinite(slope))


def test_zero_kernel_does_not_destroy_the_vector():
    # C2
    _, u, sigma = spectral_normalization(0 * W, np.array([[3.0, 4.0]], "f4"))
    assert_close(u, [[0.6, 0.8]], rtol=1e-6)
    assert to_numpy(sigma) == 0


@pytest.mark.parametrize("function", [_rko, _conv])
def test_loops_are_differentiable_and_compiled_to_the_same_values(function):
    # C23
    # Of one sign: four steps find the largest singular value, beyond which
    # the gradient is that of finite differences.
    kernel = np.abs(normal(3, 3, 2, 4))
    weights = normal(*kernel.shape, seed=1)

    value = harness.weighted(function, weights)
    assert_close(
        _compiled(function)(ops.convert_to_tensor(kernel)),
        function(kernel),
        atol=1e-5,
    )
    (slope,) = harness.gradient(value, kernel)
    (compiled_slope,) = harness.gradient(_compiled(value), kernel)
    assert_close(compiled_slope, slope, atol=1e-4)
    assert_close(
        harness.assert_slopes(value, kernel, 1e-2, [2], rel=2e-2), slope
    )


def test_gradient_reaches_the_vector_unless_it_is_stopped():
    def value(kernel):
        _, u, _ = spectral_normalization(kernel, ONES, maxiter=1)
        return ops.sum(u)

    assert normalizers.STOP_GRAD_SPECTRAL
    kernel = W + 0.5
    try:
        normalizers.set_stop_grad_spectral(False)
        (slope,) = harness.gradient(value, kernel)
    finally:
        normalizers.set_stop_grad_spectral(True)
    assert np.any(slope != 0)
    # The sum keeps a dependence, which all backends need, of slope zero.
    (slope,) = harness.gradient(lambda w: value(w) + 0.0 * ops.sum(w), kernel)
    assert np.all(slope == 0)


def _zeros(x):
    return ops.pad(x, [[0, 0], [1, 1], [2, 0], [0, 0]])


def _circular(x):
    return _padding_circular(x, (1, 2))


def _reflected(x):
    rows = [x[:, 1:2], x, x[:, -2:-1]]
    x = ops.concatenate(rows, axis=1)
    return ops.concatenate([x[:, :, 1:2], x, x[:, :, -2:-1]], axis=2)


def _replicated(x):
    x = ops.concatenate([x[:, :1], x, x[:, -1:]], axis=1)
    return ops.concatenate([x[:, :, :1]] * 2 + [x], axis=2)


def _weighed(x):
    """Half of each side, as the ends of a longer image."""
    return ops.concatenate([0.5 * x[:, :1], -x, 0.5 * x[:, -1:]], axis=1)


@pytest.mark.elsewhere
@pytest.mark.parametrize("conv_first", [True, False])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize(
    "pad_func", [None, _zeros, _circular, _reflected, _replicated, _weighed]
)
@pytest.mark.parametrize("window", [(3, 2), (1, 1)], ids=str)
def test_adjoint_is_exact(conv_first, stride, pad_func, window):
    kernel = normal(*window, 2, 3)
    image = (6, 7)
    operators = functools.partial(
        get_conv_operators, kernel, stride=stride, pad_func=pad_func
    )
    shape = (2, *image, 2)
    if not conv_first:
        # Images of the size that the convolution makes, if it makes it.
        image = tuple(stride * n for n in image)
        padded = np.zeros((1, *image, 1), "float32")
        padded = padded if pad_func is None else pad_func(padded)
        convolved = [
            (n - k) // stride + 1 if pad_func else length // stride
            for n, k, length in zip(
                padded.shape[1:3], window, image, strict=True
            )
        ]
        shape = (2, *(length // stride for length in image), 3)
        if list(shape[1:3]) != convolved:
            with pytest.raises(ValueError, match="Received: u_shape"):
                operators(u_shape=shape, conv_first=False)
            return
    linear, adjoint = operators(u_shape=shape, conv_first=conv_first)
    a = normal(*shape)
    image_of_a = to_numpy(linear(a))
    if not conv_first:
        assert image_of_a.shape == (2, *image, 2)
    b = normal(*image_of_a.shape, seed=1)
    back = to_numpy(adjoint(b))
    assert back.shape == shape
    left = np.sum(image_of_a.astype("float64") * b)
    right = np.sum(a.astype("float64") * back)
    size = np.linalg.norm(image_of_a) * np.linalg.norm(b)
    assert abs(left - right) <= 1e-6 * size


@pytest.mark.elsewhere
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("image", [(6, 7), (2, 3)], ids=str)
def test_convolution_is_the_padded_one_of_keras(stride, image):
    kernel = normal(3, 2, 2, 3)
    x = normal(2, *image, 2)
    linear, _ = get_conv_operators(kernel, x.shape, stride)
    expected = ops.conv(
        x, kernel, stride, padding="same", data_format="channels_last"
    )
    assert_close(linear(x), expected, atol=1e-5)


def _constant(x):
    return ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=1.0)


def _turned(x):
    return ops.concatenate([ops.transpose(x, (0, 2, 1, 3)), x], axis=1)


@pytest.mark.parametrize("pad_func", [_constant, _turned])
def test_paddings_that_cannot_be_transposed_are_refused(pad_func):
    with pytest.raises(ValueError, match="Received: pad_func"):
        get_conv_operators(normal(3, 3, 1, 1), (1, 4, 4, 1), 1, True, pad_func)


@pytest.mark.elsewhere
@pytest.mark.parametrize("conv_first", [True, False])
@pytest.mark.parametrize("pad_func", [None, _circular])
def test_convolution_is_divided_by_the_norm_of_its_operator(
    conv_first, pad_func
):
    # Of one sign: the largest singular value stands well apart.
    kernel = np.abs(normal(3, 5, 2, 3))
    image = (1, 5, 6, 2)
    u = normal(*image if conv_first else (1, 5, 6, 3))
    w, u, sigma = spectral_normalization_conv(
        kernel, u, 1, conv_first, pad_func, eps=1e-6, maxiter=30
    )
    convolution, _ = get_conv_operators(kernel, image, 1, True, pad_func)
    impulses = np.eye(60, dtype="float32").reshape(60, *image[1:])
    operator = to_numpy(convolution(impulses)).reshape(60, -1)
    expected = harness.singular_values(operator)[0]
    assert tuple(sigma.shape) == (1, 1)
    assert_close(sigma, [[expected]], rtol=1e-4)
    assert_close(w, kernel / expected, rtol=1e-3)
    assert np.linalg.norm(to_numpy(u)) == pytest.approx(1.0, rel=1e-5)


def test_negative_eps_leaves_the_convolution_alone():
    kernel, u = normal(3, 3, 1, 1), normal(1, 4, 4, 1)
    assert spectral_normalization_conv(kernel, u, eps=-1) == (kernel, u, 1.0)


def _reference(w, u, coefficient):
    """The definition, step by step, in float64."""
    w, u = w.astype("float64"), u / np.linalg.norm(u)
    change, steps = np.inf, 0
    while change >= 1e-3 and steps < 10:
        renewed = u @ w.T @ w
        renewed /= np.linalg.norm(renewed)
        change, steps, u = np.linalg.norm(renewed - u), steps + 1, renewed
    w = w / (np.linalg.norm(u @ w.T) + 1e-3)
    change, steps = np.inf, 0
    while change >= 1e-3 and steps < 15:
        renewed = 1.3 * w - 0.3 * w @ w.T @ w
        change, steps, w = np.linalg.norm(renewed - w), steps + 1, renewed
    return coefficient * w


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 1)], ids=str)
def test_every_backend_computes_the_definition(shape):
    kernel = normal(*shape)
    u = np.ones((1, shape[1]), "float32")
    found, _, _ = reshaped_kernel_orthogonalization(kernel, u, 2.0, beta=0.3)
    assert_close(found, _reference(kernel, u, 2.0), atol=1e-5)
