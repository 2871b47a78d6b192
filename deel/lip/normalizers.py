"""The textbook normalisations of kernels: pure functions of tensors.

Power iteration divides a kernel by an estimate of its largest singular value;
the Björck iteration then brings all singular values to one. Both are used as
the literature states them, with a stop threshold and a limit of steps, and are
differentiated through their steps. The loops have a fixed number of steps, of
which those after the stop change nothing: every backend can differentiate and
compile them.

The layers of this library do not use these functions. A power iteration bounds
the largest singular value from below, so a kernel that is divided by it may
expand by a little more than one; `deel.lip._numerics.polar` has what the layers
use, with a proof. These are for experiments, and for comparison.

References:
    - [Miyato et al., 2018](https://arxiv.org/abs/1802.05957), "Spectral
      normalization for generative adversarial networks".
    - [Anil et al., 2019](https://arxiv.org/abs/1811.05381), "Sorting out
      Lipschitz function approximation".
"""

import keras
import numpy as np
from keras import ops

from deel.lip._backend.control_flow import value_now
from deel.lip._backend.products import product
from deel.lip._backend.tensors import mirrored_kernel
from deel.lip._defaults import DEFAULT_BETA_BJORCK
from deel.lip._defaults import DEFAULT_EPS_BJORCK
from deel.lip._defaults import DEFAULT_EPS_SPECTRAL
from deel.lip._defaults import DEFAULT_MAXITER_BJORCK
from deel.lip._defaults import DEFAULT_MAXITER_SPECTRAL
from deel.lip._defaults import check_RKO_params as _check_RKO_params
from deel.lip._numerics.norm_bounds import one_for_zero
from deel.lip._numerics.windows import Axis

__all__ = [
    "DEFAULT_BETA_BJORCK",
    "DEFAULT_EPS_BJORCK",
    "DEFAULT_EPS_SPECTRAL",
    "DEFAULT_MAXITER_BJORCK",
    "DEFAULT_MAXITER_SPECTRAL",
    "STOP_GRAD_SPECTRAL",
    "bjorck_normalization",
    "get_conv_operators",
    "reshaped_kernel_orthogonalization",
    "set_stop_grad_spectral",
    "spectral_normalization",
    "spectral_normalization_conv",
]


def __dir__():
    return __all__


#: Whether the vector of a power iteration counts as a constant.
STOP_GRAD_SPECTRAL = True


def set_stop_grad_spectral(value):
    """Chooses whether the vector of a power iteration counts as a constant.

    The gradient of the singular value is the same at convergence, and cheaper
    with a constant vector. To be called before anything is compiled.

    Args:
        value: Boolean; True at first.
    """
    global STOP_GRAD_SPECTRAL
    STOP_GRAD_SPECTRAL = bool(value)


def spectral_normalization(
    kernel, u, eps=DEFAULT_EPS_SPECTRAL, maxiter=DEFAULT_MAXITER_SPECTRAL
):
    """Divides a matrix by an estimate of its largest singular value.

    Args:
        kernel: Tensor `(m, n)`.
        u: Tensor `(1, n)`, the vector to start from, or None to draw one,
            which compiled functions cannot do.
        eps: Float, the change of the vector below which the iteration stops;
            also added to the divisor.
        maxiter: Integer, limit of the number of steps.

    Returns:
        The matrix `kernel / (sigma + eps)`, the vector `(1, n)` to start from
        next time, and `sigma`, of shape `(1, 1)`.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.normalizers import spectral_normalization
    >>> w = np.diag([4.0, 1.0]).astype("float32")
    >>> _, _, sigma = spectral_normalization(w, np.ones((1, 2), "float32"))
    >>> print(keras.ops.convert_to_numpy(sigma).round(4))
    [[4.]]
    """
    kernel = ops.convert_to_tensor(kernel)
    if u is None:
        u = keras.random.uniform((1, kernel.shape[-1]), dtype=kernel.dtype)

    def linear(u):
        return product(u, ops.transpose(kernel))

    def adjoint(v):
        return product(v, kernel)

    u = _power_iteration(linear, adjoint, u, eps, maxiter)
    sigma = _norm(linear(u))
    return kernel / (sigma + eps), u, sigma


def _power_iteration(
    linear_operator,
    adjoint_operator,
    u,
    eps=DEFAULT_EPS_SPECTRAL,
    maxiter=DEFAULT_MAXITER_SPECTRAL,
    axis=None,
):
    """Power iteration for the largest singular value of a linear operator.

    From `u` on, with as many steps as `spectral_normalization`, at least one.
    The axes `axis`, None for all, make up one vector. A vector that the
    operator maps to zero is kept, not replaced by zero.
    """
    u = _normalised(ops.convert_to_tensor(u), axis)
    done = False
    for _ in range(max(1, maxiter)):
        # The norm between the two operators cancels; it avoids overflow.
        image = adjoint_operator(_normalised(linear_operator(u), axis))
        renewed = _normalised(image, axis)
        is_zero = _norm(renewed, axis) == 0
        renewed = ops.where(ops.logical_or(done, is_zero), u, renewed)
        done = ops.logical_or(done, ops.squeeze(_norm(renewed - u)) < eps)
        u = renewed
    return ops.stop_gradient(u) if STOP_GRAD_SPECTRAL else u


def _norm(x, axis=None):
    """Euclidean norm, with axes of length one; its gradient at 0 is 0.

    Scaled before it is squared, so that squares neither overflow nor vanish.
    The scale cancels, also from the derivative.
    """
    if axis is None:
        # Written out: Keras' max and sum drop all axes on PyTorch otherwise.
        axis = tuple(range(len(x.shape)))
    scale = ops.stop_gradient(ops.max(ops.abs(x), axis=axis, keepdims=True))
    divisor = one_for_zero(scale)
    squares = ops.sum(ops.square(x / divisor), axis=axis, keepdims=True)
    # Replaced before the root too: no path has an infinite slope. Behind it,
    # the scale is zero.
    return scale * ops.sqrt(one_for_zero(squares))


def _normalised(x, axis=None):
    """Divides by the norm; zero stays zero."""
    norm = _norm(x, axis)
    return x / ops.where(norm > 0, norm, ops.ones_like(norm))


def bjorck_normalization(
    w,
    eps=DEFAULT_EPS_BJORCK,
    beta=DEFAULT_BETA_BJORCK,
    maxiter=DEFAULT_MAXITER_BJORCK,
):
    """Brings the singular values of a matrix to one.

    Repeats `w = (1 + beta) w - beta w w^T w`, which converges to the nearest
    matrix with orthonormal rows or columns where all singular values are in
    `]0, 1]` before.

    Args:
        w: Tensor `(m, n)`.
        eps: Float, the change in Frobenius norm below which the iteration
            stops.
        beta: Float in `]0, 0.5]`.
        maxiter: Integer, limit of the number of steps; one is made in any
            case.

    Returns:
        Tensor `(m, n)`.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.normalizers import bjorck_normalization
    >>> w = bjorck_normalization(np.diag([0.9, 0.5]).astype("float32"))
    >>> print(keras.ops.convert_to_numpy(w).round(4))
    [[1. 0.]
     [0. 1.]]
    """
    w = ops.convert_to_tensor(w)
    is_wide = w.shape[0] < w.shape[1]
    done = False
    for _ in range(max(1, maxiter)):
        transposed = ops.transpose(w)
        # The smaller of the two Gram matrices.
        if is_wide:
            cubic = product(product(w, transposed), w)
        else:
            cubic = product(w, product(transposed, w))
        renewed = ops.where(done, w, (1 + beta) * w - beta * cubic)
        change = ops.squeeze(_norm(ops.stop_gradient(renewed - w)))
        done = ops.logical_or(done, change < eps)
        w = renewed
    return w


def reshaped_kernel_orthogonalization(
    kernel,
    u,
    adjustment_coef,
    eps_spectral=DEFAULT_EPS_SPECTRAL,
    eps_bjorck=DEFAULT_EPS_BJORCK,
    beta=DEFAULT_BETA_BJORCK,
    maxiter_spectral=DEFAULT_MAXITER_SPECTRAL,
    maxiter_bjorck=DEFAULT_MAXITER_BJORCK,
):
    """Brings the singular values of a reshaped kernel to one coefficient.

    The kernel is reshaped to `(-1, last dimension)`, divided by its largest
    singular value, orthogonalised, multiplied, and reshaped back.

    Args:
        kernel: Tensor `(..., n)`.
        u: Tensor `(1, n)` or None, see `spectral_normalization`.
        adjustment_coef: Float, the wanted singular value.
        eps_spectral, maxiter_spectral: See `spectral_normalization`.
        eps_bjorck, beta, maxiter_bjorck: See `bjorck_normalization`. None for
            one of the first two skips the orthogonalisation.

    Returns:
        The constrained kernel, the vector to start from next time, and the
        estimated singular value, of shape `(1, 1)`.

    Raises:
        ValueError: If `eps_spectral`, `eps_bjorck` or `beta` is out of range.
    """
    _check_RKO_params(eps_spectral, eps_bjorck, beta)
    kernel = ops.convert_to_tensor(kernel)
    w = ops.reshape(kernel, (-1, kernel.shape[-1]))
    w, u, sigma = spectral_normalization(w, u, eps_spectral, maxiter_spectral)
    if eps_bjorck is not None and beta is not None:
        w = bjorck_normalization(w, eps_bjorck, beta, maxiter_bjorck)
    return ops.reshape(w * adjustment_coef, kernel.shape), u, sigma


def get_conv_operators(
    kernel, u_shape, stride=1, conv_first=True, pad_func=None
):
    """The linear operator of a convolution, and its exact adjoint.

    Args:
        kernel: Tensor `(height, width, in, out)`.
        u_shape: Shape of a vector that the linear operator takes, as
            `(batch_size, height, width, channels)`.
        stride: Integer.
        conv_first: Boolean. If True the linear operator is the convolution. If
            False it is the transposed convolution, to images larger by
            `stride`, and the convolution is its adjoint.
        pad_func: Function that pads images, or None for zeros as in
            `padding="same"`. It must be linear, treat all images and channels
            alike, and pad one axis as the other, so that it can be transposed:
            zero, circular, reflected and replicated borders are of this kind.

    Returns:
        Two functions of a tensor, such that
        `sum(linear(a) * b) == sum(a * adjoint(b))`.

    Raises:
        ValueError: If `u_shape` and the padding do not fit, or `pad_func` is
            not of the kind that can be transposed; the latter is not noticed
            inside compiled functions.
    """
    kernel = ops.convert_to_tensor(kernel)
    window = tuple(kernel.shape[:2])
    lengths = tuple(u_shape[1:3])
    if not conv_first:
        lengths = tuple(length * stride for length in lengths)
    if pad_func is None:
        pad, crop, padded = _same_padding(window, lengths, stride)
    else:
        pad = pad_func
        crop, padded = _transposed_padding(pad_func, lengths, kernel.dtype)
    sizes = [
        (length - size) // stride + 1
        for length, size in zip(padded, window, strict=True)
    ]
    if not conv_first and sizes != list(u_shape[1:3]):
        raise ValueError(
            "The padded convolution must lead from images larger by `stride` "
            f"to images of `u_shape`. Received: u_shape={tuple(u_shape)}, "
            f"stride={stride}, which leads to images of {tuple(sizes)}"
        )

    def convolution(x):
        return ops.conv(
            pad(x),
            kernel,
            strides=stride,
            padding="valid",
            data_format="channels_last",
        )

    def transposed(y):
        # Each output value, times the window, goes back where it was read.
        y = _zero_upscale2D(y, (stride, stride))
        ends = [
            [size - 1, max(length - stride * n, 0)]
            for size, length, n in zip(window, padded, sizes, strict=True)
        ]
        x = ops.conv(
            ops.pad(y, [[0, 0], *ends, [0, 0]]),
            _maybe_transpose_kernel(kernel, transpose=True),
            padding="valid",
            data_format="channels_last",
        )
        return crop(x[:, : padded[0], : padded[1]])

    if conv_first:
        return convolution, transposed
    return transposed, convolution


def _same_padding(window, lengths, stride):
    """Zero padding as in `padding="same"`, its adjoint, and padded lengths."""
    height, width = lengths
    ends = [
        Axis(length, size, stride, padding="same").widths()
        for length, size in zip(lengths, window, strict=True)
    ]
    (top, bottom), (left, right) = ends

    def pad(x):
        return ops.pad(x, [[0, 0], *map(list, ends), [0, 0]])

    def crop(x):
        return x[:, top : top + height, left : left + width]

    return pad, crop, (top + height + bottom, left + width + right)


def _transposed_padding(pad_func, lengths, dtype):
    """The adjoint of any padding, and the padded lengths.

    A padding that treats rows and columns independently is `P x Q^T`, with one
    matrix for each axis; its adjoint is `P^T y Q`. Images that are constant
    along one axis, `e_i 1^T` and `1 e_j^T`, show `P e_i (Q 1)^T` and
    `(P 1) (Q e_j)^T`. One column of the former is P times a number, one row of
    the latter is Q times another; their product is read off where the padded
    image of ones is largest.
    """
    height, width = lengths
    flat = ops.ones((1, height, width, 1), dtype=dtype)
    eyes = ops.eye(height, dtype=dtype), ops.eye(width, dtype=dtype)
    rows = pad_func(ops.reshape(eyes[0], (height, height, 1, 1)) * flat)
    columns = pad_func(ops.reshape(eyes[1], (width, 1, width, 1)) * flat)
    ones = pad_func(flat)[0, :, :, 0]
    padded = tuple(ones.shape)

    place = ops.argmax(ops.abs(ops.reshape(ones, (-1,))))
    scale = ops.take(ops.reshape(ones, (-1,)), place)
    p = ops.take(rows[:, :, :, 0], place % padded[1], axis=2) / scale
    q = ops.take(columns[:, :, :, 0], place // padded[1], axis=1)

    def crop(y):
        y = ops.einsum("ih,bhwc->biwc", p, y)
        return ops.einsum("jw,biwc->bijc", q, y)

    probe = np.cos(np.arange(1.0, height * width + 1) ** 2)
    probe = ops.convert_to_tensor(probe.reshape(height, width), dtype=dtype)
    expected = ops.matmul(ops.transpose(p), ops.matmul(probe, q))
    found = pad_func(ops.reshape(probe, (1, height, width, 1)))[0, :, :, 0]
    error = ops.max(ops.abs(found - expected))
    if value_now(error <= 1e-2 * ops.max(ops.abs(found))) is False:
        raise ValueError(
            "Argument `pad_func` must be linear, and pad rows and columns "
            "independently of each other, to have an adjoint that is known. "
            f"Received: pad_func={pad_func}"
        )
    return crop, padded


def spectral_normalization_conv(
    kernel,
    u,
    stride=1,
    conv_first=True,
    pad_func=None,
    eps=DEFAULT_EPS_SPECTRAL,
    maxiter=DEFAULT_MAXITER_SPECTRAL,
):
    """Divides a kernel by the norm of its convolution, estimated.

    Args:
        kernel: Tensor `(height, width, in, out)`.
        u: Tensor, the image to start from: of the input side if `conv_first`,
            else of the output side.
        stride, conv_first, pad_func: See `get_conv_operators`.
        eps, maxiter: See `spectral_normalization`. With a negative `eps`,
            nothing is done.

    Returns:
        The kernel `kernel / (sigma + eps)`, the image to start from next time,
        and `sigma`, of shape `(1, 1)`; or `(kernel, u, 1.0)` if `eps` is
        negative.
    """
    if eps < 0:
        return kernel, u, 1.0
    kernel = ops.convert_to_tensor(kernel)
    linear, adjoint = get_conv_operators(
        kernel, u.shape, stride, conv_first, pad_func
    )
    u = _power_iteration(linear, adjoint, u, eps, maxiter)
    sigma = ops.reshape(_norm(linear(u)), (1, 1))
    return kernel / (sigma + eps), u, sigma


def _zero_upscale2D(x, strides):
    """Inserts zeros after each pixel of images, channels last.

    The images grow by the pair of factors `strides`.
    """
    s_h, s_w = strides
    if (s_h, s_w) == (1, 1):
        return x
    _, height, width, channels = ops.shape(x)
    x = ops.reshape(x, (-1, height, 1, width, 1, channels))
    zeros = [[0, 0], [0, 0], [0, s_h - 1], [0, 0], [0, s_w - 1], [0, 0]]
    x = ops.pad(x, zeros)
    return ops.reshape(x, (-1, height * s_h, width * s_w, channels))


def _maybe_transpose_kernel(w, transpose=False):
    """Kernel of the transposed convolution, or the kernel itself."""
    return mirrored_kernel(w) if transpose else w
