"""Sound normalisation of matrices: pure functions of tensors, `keras.ops` only.

All of them also take stacks `(..., n, m)`, whose matrices are handled each by
itself, and together in every step. What is a scalar for one matrix is then a
tensor `(..., 1, 1)`.

Note [Why the result never expands]

Write s for a singular value of the iterate and m for its smaller side. The
cubic Newton-Schulz (Björck) step maps s to f(s) = 1.5 s - 0.5 s^3. On [0, 2]
|f| is at most 1, reached at s = 1: *whatever comes before, an iterate with
s <= 2 leaves a cubic step with s <= 1.* Every path below ends with such a
step and proves s <= 2 before it:

* near the orthogonal matrices, r = ||I - W^T W||_F < `NEAR` gives
  s^2 <= 1 + r < 4, hence also no sign flip, since s^2 < 3;
* elsewhere W is divided by a proven upper bound of its largest singular value
  (`gram_bound`), which gives s <= 1. The minimax polynomials that follow stay
  below 2 on [0, 1], and a cubic step maps [0, 1] into itself.

A power iteration is never used for this: it bounds s from below only.

Note [Why few steps are enough]

With e = max |1 - s^2|, one cubic step leaves |1 - s| <= (3/8) e^2 (1 + e/3).
The iteration stops as soon as this predicts the wanted closeness, so the Gram
matrix of the result is never formed just to confirm what is known. e lies
between r / sqrt(m) and r; `_deviation` estimates it. The estimate decides
about closeness to 1 only, never about soundness.

References:
    - Björck and Bowie, "An iterative algorithm for computing the best estimate
      of an orthogonal matrix", SIAM J. Numer. Anal. 8 (1971).
    - Delattre et al., "Efficient bound of Lipschitz constant for convolutional
      layers by Gram iteration", ICML 2023 (arXiv:2305.16173).
    - Amsel et al., "The Polar Express: optimal matrix sign methods",
      arXiv:2505.16932.
"""

import math

import numpy as np
from keras import ops

from deel.lip._control_flow import cond
from deel.lip._control_flow import while_loop
from deel.lip._products import digits_of_products
from deel.lip._products import product
from deel.lip._slices import reshaped

# Below this residual no division is needed; see the first note.
NEAR = 0.75

# The upper bound is rounded up by this much, in relative terms. The rounding
# of a float32 Gram matrix stays one order of magnitude below.
_SLACK = 4e-6

# Sums of more terms than `_LONG` are made in blocks of `_BLOCK`; see
# `products_of_columns`.
_LONG = 1024
_BLOCK = 64

_TINY = float(np.finfo(np.float32).tiny)

# Below this mean square, products of entries may lose digits to underflow.
_LEAST_SQUARE = 1e-10

# Squarings of the Gram iteration: the bound is within m^(1/2^(t+1)) of sigma.
_SQUARINGS = 6

# Coefficients (a, b, c) of s -> a s + b s^3 + c s^5, minimax-optimal one after
# the other for singular values in [0.001, 1] (Amsel et al., table for l=1e-3).
# They grow steeply beyond the interval that they were made for, so the iterate
# is divided by a cushion before each: all stay below 2 even for s = 1.001.
_CUSHION = 1.01
_MINIMAX = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def as_matrix(kernel):
    """Reshapes a kernel to the matrix that multiplies the input patches."""
    columns = kernel.shape[-1]
    return reshaped(kernel, (math.prod(kernel.shape[:-1]), columns))


def unit_scale(w, axis=None):
    """Divides by the largest magnitude, which is returned too (0 stays 0).

    Squares of the result neither overflow nor all vanish. The scale counts as
    a constant for differentiation, which is exact in every function that does
    not depend on the scale of its argument.
    """
    scale = ops.stop_gradient(ops.max(abs(w), axis=axis, keepdims=True))
    scale = one_for_zero(scale)
    # Compilers divide by multiplying with the reciprocal, which is lost below
    # the smallest normal number if the scale is near the largest one.
    root = 1.0 / ops.sqrt(scale)
    return w * root * root, scale


def one_for_zero(x):
    """`x` with ones in place of zeros, to divide by."""
    return x + ops.cast(x == 0, x.dtype)


def gram_bound(gram):
    """Upper bound of the largest eigenvalue of a Gram matrix `W^T W`.

    The smaller of two proven bounds: the Gram iteration
    `||G^(2^t)||_F^(1/2^t)`, tight when few singular values dominate, and
    `mean + ||G - mean I||_F`, tight when they are all alike.

    Args:
        gram: Tensor of shape `(m, m)`, positive semi-definite, entries of
            magnitude one or less up to the size of the matrix.

    Returns:
        A scalar tensor, greater than zero also for a zero matrix.
    """
    mean = _trace(gram) / gram.shape[-1]
    spread = mean + _norm(gram - mean * _identity(gram))
    iterated = _iterated(gram, lambda power: product(power, power), _norm)
    return _rounded_up(ops.minimum(spread, iterated))


def hermitian_gram(real, imaginary):
    """Gram matrices of complex ones, `(stack, 2, m, m)`: both parts.

    Args:
        real: Tensor of shape `(stack, n, m)`.
        imaginary: Tensor, likewise.
    """
    parts = ops.concatenate([real, imaginary], axis=1)
    mixed = product(ops.transpose(real, (0, 2, 1)), imaginary)
    return ops.stack(
        [product(ops.transpose(parts, (0, 2, 1)), parts), _skew(mixed)], axis=1
    )


def hermitian_bound(gram):
    """`gram_bound` of each matrix of a stack made by `hermitian_gram`."""
    real = gram[:, :1]
    mean = ops.sum(real * _identity(gram), axis=_PARTS, keepdims=True)
    mean = mean / gram.shape[-1]
    centered = [real - mean * _identity(gram), gram[:, 1:]]
    spread = mean + _norm_of_parts(ops.concatenate(centered, axis=1))
    iterated = _iterated(gram, hermitian_square, _norm_of_parts)
    bound = _rounded_up(ops.minimum(spread, iterated))
    return ops.reshape(bound, (-1,))


# Axes of one matrix in a stack of them, both parts.
_PARTS = (1, 2, 3)


def _norm_of_parts(x):
    squares = ops.sum(ops.square(x), axis=_PARTS, keepdims=True)
    return ops.sqrt(ops.maximum(squares, _TINY))


def hermitian_square(x):
    """`(A + iB)^2`, where A is symmetric and B skew: three real products."""
    a, b = x[:, 0], x[:, 1]
    both = ops.concatenate([a, b], axis=-1)
    real = product(both, ops.transpose(both, (0, 2, 1)))
    return ops.stack([real, _skew(product(a, b))], axis=1)


def _skew(x):
    return x - ops.transpose(x, (0, 2, 1))


def _iterated(power, squared, norm):
    """`||G^(2^t)||^(1/2^t)`: an upper bound of an eigenvalue at each t."""
    log_scale = 0.0
    for _ in range(_SQUARINGS):
        size = norm(power)
        power = squared(power / size)
        log_scale = 2.0 * (log_scale + ops.log(size))
    log_bound = log_scale + ops.log(norm(power))
    return ops.exp(log_bound / 2.0**_SQUARINGS)


def _rounded_up(bound):
    return ops.maximum(bound, _TINY) * (1 + _SLACK)


def divide_by_norm(w):
    """Divides a matrix by an upper bound of its largest singular value.

    Differentiable. A zero matrix stays zero.

    Args:
        w: Tensor of shape `(n, m)`.

    Returns:
        Tensor of shape `(n, m)` whose largest singular value is at most 1,
        and within 1% of it unless very many singular values nearly agree.
    """
    w, _ = unit_scale(w, _each(w))
    tall = w if w.shape[-2] >= w.shape[-1] else transposed(w)
    bound = gram_bound(gram_of(tall))
    return w / ops.sqrt(bound)


def polar(w, tolerance, max_steps):
    """Semi-orthogonal factor of the polar decomposition, never expanding.

    Not meant to be differentiated: pair it with `project_on_tangent`.

    Args:
        w: Tensor of shape `(n, m)`, float32 at least, any finite values.
        tolerance: Float. How far from 1 singular values may stay.
        max_steps: Integer. Upper limit of the number of steps. Fewer steps
            cost closeness to 1, never soundness.

    Returns:
        A tensor of shape `(n, m)` with the singular vectors of `w`; singular
        values are at most 1, and within `tolerance` of 1 unless they were
        below about a thousandth of the largest one. And the scale of `w`, a
        tensor `(..., 1, 1)`: the root mean square of its singular values, 1 if
        they are all zero.
    """
    if w.shape[-2] < w.shape[-1]:
        factor, scale = polar(transposed(w), tolerance, max_steps)
        return transposed(factor), scale
    # The common case first, with nothing but its Gram matrix: a multiple of a
    # nearly orthogonal one. What overflows is NaN or infinite, hence not near.
    gram = gram_of(w)
    identity = _identity(gram)
    mean_square = _sum(gram * identity) / w.shape[-1]
    defect = identity - gram / mean_square
    residual = _norm(defect)
    near = (mean_square > _LEAST_SQUARE) & (residual < NEAR)
    near = _of_all(ops.all, near)

    def nearby():
        scale = ops.sqrt(mean_square)
        predicted = _predicted(defect, residual)
        return _cubic_step(w / scale, defect), scale, predicted

    def distant():
        # In two steps, since the scale of finite entries may be infinite.
        unit, _ = unit_scale(w, _each(w))
        start, predicted = _improved(_approach(unit, max_steps - 1))
        return start, mean_scale(w), predicted

    # Both end with a cubic step, so any tolerance at all is sound.
    start, scale, predicted = cond(near, nearby, distant)
    factor = _iterate(start, predicted, tolerance, max_steps)
    return factor, scale[None, None] if len(w.shape) == 2 else scale


def finished(w):
    """A last cubic step, for a matrix that is meant to be orthogonal already.

    Differentiable. Whatever rounding or an early end have left of the matrix,
    the result does not expand: r = ||I - w^T w||_F gives s^2 <= 1 + r, by which
    it is divided where r is not small; see the first note. Singular values near
    one come closer to it.

    Args:
        w: Tensor `(n, m)` with n >= m, no entry NaN.
    """
    # No orthogonal matrix has larger entries. So nothing overflows.
    w = ops.clip(w, -2.0, 2.0)
    gram = gram_of(w)
    residual = ops.stop_gradient(_norm(_identity(gram) - gram))
    square = ops.where(residual < NEAR, ops.ones_like(residual), 1 + residual)
    return _cubic_step(w / ops.sqrt(square), _identity(gram) - gram / square)


def nearer(w):
    """A cubic step alone, where singular values of two are out of reach.

    Differentiable. Unlike `finished`, this divides by nothing: singular values
    that are far from one cost the others nothing.

    Args:
        w: Tensor `(n, m)`.
    """
    return _cubic_step(w, _identity(w) - gram_of(w))


def mean_scale(w):
    """Root mean square of the singular values, 1 for zeros."""
    unit, largest = unit_scale(w, _each(w))
    mean = ops.sqrt(_sum(ops.square(unit)) / min(w.shape[-2:])) * largest
    return one_for_zero(ops.squeeze(mean) if len(w.shape) == 2 else mean)


def _iterate(w, predicted, tolerance, max_steps):
    """More cubic steps, until the last is predicted to be close enough to 1."""

    def unfinished(w, predicted, step):
        return _of_all(ops.any, predicted > tolerance) & (step < max_steps)

    def improve(w, predicted, step):
        return *_improved(w), step + 1

    return while_loop(unfinished, improve, (w, predicted, 1))[0]


def _improved(w):
    """A cubic step, and the predicted distance of its result from 1."""
    defect = _identity(w) - gram_of(w)
    predicted = _predicted(defect, _norm(defect))
    return _cubic_step(w, defect), predicted


def _approach(w, max_steps):
    """Brings any matrix to singular values below 2, most of them near 1."""
    w = divide_by_norm(w)
    for a, b, c in _MINIMAX[: max(0, max_steps)]:
        w = w / _CUSHION
        gram = gram_of(w)
        factor = b * gram + c * product(gram, gram)
        w = a * w + product(w, factor)
    return w


def _cubic_step(w, defect):
    return w + 0.5 * product(w, defect)


def _identity(w):
    """Identity matrix of the columns of `w`."""
    return ops.eye(w.shape[-1], dtype=w.dtype)


def transposed(w):
    """Exchanges the last two axes."""
    # Tensors have it everywhere but on TensorFlow; PyTorch is faster with it.
    if hasattr(w, "mT"):
        return w.mT
    rank = len(w.shape)
    return ops.transpose(w, (*range(rank - 2), rank - 1, rank - 2))


def _each(w):
    """The axes of one matrix; None, which is all, if it is the only one."""
    return None if len(w.shape) == 2 else (-2, -1)


def _sum(x):
    """Sum of the entries of each matrix."""
    return ops.sum(x, axis=_each(x), keepdims=len(x.shape) > 2)


def _of_all(quantifier, truth):
    """What decides about a stack: `ops.any` or `ops.all` of its matrices."""
    return quantifier(truth) if len(truth.shape) else truth


def _trace(gram):
    return _sum(gram * _identity(gram))


def gram_of(w):
    """`w^T w`; see `products_of_columns`."""
    return products_of_columns(w, w)


def products_of_columns(w, z):
    """`w^T z`, with sums that do not lose digits where they are long.

    Products with few columns add their terms one after the other, which is
    wrong by 3e-4 for a hundred thousand terms of one sign. Summing blocks, and
    the sums of blocks, keeps the error at that of a single block.

    So do all products of the units that multiply fewer digits: what does not
    fit into their sums is cut off, not rounded. There, blocks are longer, since
    each takes as much memory as the result.
    """
    rows, columns = w.shape[-2:]
    size = _BLOCK if columns <= _BLOCK else _LONG
    exact = columns > _BLOCK and digits_of_products(w) is None
    if rows <= _LONG or exact:
        return product(transposed(w), z)
    first = _blocks_of_rows(w, size)
    second = first if z is w else _blocks_of_rows(z, size)
    return accurate_sum(product(transposed(first), second))


def _blocks_of_rows(w, size):
    """Splits the rows of matrices in blocks, along a new first axis."""
    if len(w.shape) == 2:
        return _in_blocks(w, size)
    # What is split comes first.
    blocks = _in_blocks(ops.moveaxis(w, -2, 0), size)
    return ops.moveaxis(blocks, 1, -2)


def accurate_sum(x):
    """Sum over the first axis, in blocks; see `products_of_columns`."""
    while x.shape[0] > _BLOCK:
        x = ops.sum(_in_blocks(x), axis=1)
    return ops.sum(x, axis=0)


def _in_blocks(x, size=_BLOCK):
    """Splits the first axis in blocks, filled up with zeros."""
    missing = -x.shape[0] % size
    x = ops.pad(x, [[0, missing]] + [[0, 0]] * (len(x.shape) - 1))
    return ops.reshape(x, (-1, size, *x.shape[1:]))


def _norm(x):
    """Frobenius norm, kept from zero, where its gradient is not finite."""
    return ops.sqrt(_sum(x * x) + _TINY)


def _predicted(defect, residual):
    """Predicts |1 - s| after a cubic step; see the second note."""
    deviation = _deviation(defect, residual)
    return 0.375 * deviation * deviation * (1.0 + deviation / 3.0)


def _deviation(defect, residual):
    """Estimates the spectral norm of a symmetric matrix.

    A few steps of a block power iteration from fixed vectors, with a margin,
    never more than the Frobenius norm `residual`.
    """
    size = defect.shape[-1]
    if size <= 64:
        return residual
    angles = np.outer(np.arange(1, size + 1), np.arange(1, 9)) * 2.399963
    block = ops.convert_to_tensor(np.cos(angles), dtype=defect.dtype)
    once = product(defect, block)
    twice = product(defect, once)
    ratios = ops.sum(ops.square(twice), axis=-2) / ops.maximum(
        ops.sum(ops.square(once), axis=-2), _TINY
    )
    if len(defect.shape) == 2:
        largest = ops.max(ratios)
    else:
        largest = ops.max(ratios, axis=-1, keepdims=True)[..., None]
    return ops.minimum(1.5 * ops.sqrt(largest), residual)


def project_on_tangent(q, gradient):
    """Gradient of a function of the polar factor, at an orthogonal point.

    For W = Q H the exact derivative is dW = Q Y + (I - Q Q^T) G H^-1 with
    H Y + Y H = Q^T G - G^T Q. At H = I it is G - Q sym(Q^T G), the projection
    on the tangent space of the Stiefel manifold at Q (rows instead of columns
    where Q is wide). It is also the exact derivative of one cubic step at Q.
    Away from H = I it stays a descent direction: its inner product with the
    exact derivative is positive, H being positive definite.

    Args:
        q: Tensor of shape `(n, m)`.
        gradient: Tensor of shape `(n, m)`, the gradient with respect to `q`.

    Returns:
        Tensor of shape `(n, m)`.
    """
    if q.shape[-2] >= q.shape[-1]:
        mixed = ops.matmul(transposed(q), gradient)
        symmetric = 0.5 * (mixed + transposed(mixed))
        return gradient - ops.matmul(q, symmetric)
    mixed = ops.matmul(gradient, transposed(q))
    symmetric = 0.5 * (mixed + transposed(mixed))
    return gradient - ops.matmul(symmetric, q)
