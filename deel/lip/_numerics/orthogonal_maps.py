"""Ways to make a matrix orthogonal, besides `polar`.

Note [Why these kernels never expand]

In exact arithmetic each map below gives an orthogonal matrix, or one that is
less. In float32 it does so up to what a factorisation loses, which grows with
the condition of its argument. So the argument is kept within limits that lose a
few digits only, and the result goes through `finished`: its cubic
step is sound whatever it is given, and squares what is missing to one.

References:
    - Cholesky-QR with a shift: Fukaya et al., "Shifted Cholesky QR for
      computing the QR factorization of ill-conditioned matrices", SIAM J. Sci.
      Comput. 42 (2020), arXiv:1809.11085.
    - Cayley: Trockman and Kolter, "Orthogonalizing convolutional layers with
      the Cayley transform", ICLR 2021 (arXiv:2104.07167).
    - Block reflectors: Lai et al., "Enhancing certified robustness via block
      reflector orthogonal layers and logit annealing loss", ICML 2025
      (arXiv:2505.15174).
    - Exponential: Lezcano-Casado and Martinez-Rubio, "Cheap orthogonal
      constraints in neural networks", ICML 2019 (arXiv:1901.08428).
"""

import numpy as np
from keras import ops

from deel.lip._backend.linear_algebra import cholesky
from deel.lip._backend.linear_algebra import inverse
from deel.lip._backend.products import product
from deel.lip._numerics.norm_bounds import gram_of
from deel.lip._numerics.norm_bounds import transposed
from deel.lip._numerics.norm_bounds import unit_scale
from deel.lip._numerics.polar import SCALES
from deel.lip._numerics.polar import finished

_ROUNDING = float(np.finfo("float32").eps)

# Shifts of the Gram matrix in the second of two passes, and at least in the
# first. The last cubic step leaves 1e-6 of what the second takes from one.
_SECOND_SHIFT = 1e-3

_LEAST_SHIFT = 1e-6

# Largest Frobenius norm of free kernels, which are made smaller beyond. The
# matrix that Cayley's map inverts then has a condition of at most 1e3.
_LARGEST_CAYLEY = 30.0

_LARGEST_EXPONENT = 64.0

# The exponential of A is the one of A / 2^n, n times squared. With n as below
# that has a norm of at most 1/4, where the terms left out are below 1e-8.
_SQUARINGS = 9

_TERMS = 6


def cholesky_qr(w):
    """The factor Q of the QR decomposition, with a positive diagonal of R.

    `W^T W + shift I = L L^T`, `Q = W L^-T`, twice. The shift is what keeps the
    factorisation of any matrix from breaking down; it only makes singular
    values smaller. In the first pass it is the bound of Fukaya et al. Values
    that are as small as its root, about a hundredth of the largest and less
    for large matrices, are not brought to one; nor are those of columns that
    depend on each other.

    Args:
        w: Tensor `(n, m)` with n >= m.
    """
    unit, scale = unit_scale(w)
    w = _with_slope(unit, w, 1 / ops.clip(scale, *SCALES))
    columns = w.shape[1]
    shift = ops.sum(ops.square(ops.stop_gradient(w)))
    shift = 4 * (columns + 2) * _ROUNDING * shift
    w = whitened(w, ops.maximum(shift, _LEAST_SHIFT))
    return whitened(w, _SECOND_SHIFT)


def whitened(w, shift):
    """`W L^-T` with `W^T W + shift I = L L^T`: one pass of `cholesky_qr`.

    Args:
        w: Tensor `(n, m)` with n >= m.
        shift: Float, or scalar tensor, not negative.
    """
    gram = gram_of(w)
    identity = ops.eye(w.shape[1], dtype=w.dtype)
    factor = cholesky(_finite(gram + shift * identity))
    return transposed(ops.solve_triangular(factor, transposed(w), lower=True))


def cayley(w):
    """Cayley's map of a skew matrix, and of what completes it.

    With W = [U; V], U square, and A = U - U^T + V^T V, the columns of
    `[(I - A); -2 V] (I + A)^-1` are orthonormal. The symmetric part of I + A is
    at least I, so the inverse exists.

    Args:
        w: Tensor `(n, m)` with n >= m.
    """
    w = _limited(w, _LARGEST_CAYLEY)
    columns = w.shape[1]
    top, rest = w[:columns], w[columns:]
    skew = top - transposed(top)
    identity = ops.eye(columns, dtype=w.dtype)
    if w.shape[0] > columns:
        skew = skew + product(transposed(rest), rest)
        images = ops.concatenate([identity - skew, -2 * rest], axis=0)
    else:
        images = identity - skew
    # Keras 3.4 has no `solve` in graphs, and for so many right sides it is no
    # cheaper. What the inverse loses, `finished` mends.
    return product(images, inverse(_finite(identity + skew)))


def exponential(w):
    """The first columns of the exponential of the skew matrix `[W, 0]` less
    its transpose.

    Args:
        w: Tensor `(n, m)` with n >= m.
    """
    rows, columns = w.shape
    w = _limited(w, _LARGEST_EXPONENT)
    w = ops.pad(w, [[0, 0], [0, rows - columns]])
    power = (w - transposed(w)) / 2.0**_SQUARINGS
    identity = ops.eye(rows, dtype=w.dtype)
    # Horner's scheme.
    result = identity
    for term in range(_TERMS, 0, -1):
        result = identity + product(power, result) / term
    for _ in range(_SQUARINGS):
        result = product(result, result)
    return result[:, :columns]


def reflected(basis, columns):
    """The first columns of `I - 2 Q Q^T`, for any Q that does not expand.

    Its eigenvalues are `1 - 2 q^2` for the singular values q of Q, hence
    between -1 and 1, and -1 or 1 where Q is orthonormal.

    Args:
        basis: Tensor `(n, rank)`, the matrix Q.
        columns: Integer, n at most.
    """
    identity = ops.eye(basis.shape[0], columns, dtype=basis.dtype)
    return identity - 2 * product(basis, transposed(basis[:columns]))


def _finite(matrix):
    """The identity instead of a matrix that is not finite.

    Some backends raise an error of their own otherwise. NaN passes through what
    the matrix is applied to, for this library to report.
    """
    is_finite = ops.all(ops.isfinite(matrix))
    identity = ops.eye(matrix.shape[0], dtype=matrix.dtype)
    return ops.where(is_finite, matrix, identity)


def _limited(w, largest):
    """Makes a matrix smaller if its Frobenius norm exceeds a limit."""
    unit, scale = unit_scale(w)
    norm = ops.sqrt(ops.sum(ops.square(unit)))
    norm = ops.where(norm > 0, norm, ops.ones_like(norm))
    # Not `norm * scale`, which may overflow.
    scaled = unit * ops.minimum(scale, largest / norm)
    return _with_slope(scaled, w, ops.minimum(1.0, largest / norm / scale))


def _with_slope(value, w, slope):
    """A value that depends on `w` for differentiation by a constant factor.

    Kernels of any size then have finite gradients.
    """
    value, slope = ops.stop_gradient(value), ops.stop_gradient(slope)
    return value + slope * (w - ops.stop_gradient(w))


def at_scale_of(kernel, factor):
    """A factor of a kernel, as large as the kernel itself."""
    _, scale = unit_scale(kernel)
    _, largest = unit_scale(factor)
    return ops.clip(scale / largest, *SCALES) * factor


def of_any_shape(function, kernel):
    """Applies a map of tall matrices, and the last cubic step."""
    if kernel.shape[0] < kernel.shape[1]:
        return transposed(of_any_shape(function, transposed(kernel)))
    return finished(function(kernel))
