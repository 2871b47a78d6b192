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

import functools

import numpy as np
from keras import ops

from deel.lip._backend.compilation import traced_once
from deel.lip._backend.control_flow import cond
from deel.lip._backend.control_flow import while_loop
from deel.lip._backend.gradient import custom_gradient
from deel.lip._backend.linear_algebra import TINY
from deel.lip._backend.linear_algebra import added_product
from deel.lip._backend.linear_algebra import length_of
from deel.lip._backend.products import product
from deel.lip._backend.tensors import reshaped
from deel.lip._backend.variables import array_where_eager_is_slow
from deel.lip._defaults import DEFAULT_MAXITER_BJORCK
from deel.lip._numerics.norm_bounds import as_matrix
from deel.lip._numerics.norm_bounds import axes_of_one
from deel.lip._numerics.norm_bounds import divide_by_norm
from deel.lip._numerics.norm_bounds import frobenius_norm
from deel.lip._numerics.norm_bounds import gram_of
from deel.lip._numerics.norm_bounds import identity_of
from deel.lip._numerics.norm_bounds import one_for_zero
from deel.lip._numerics.norm_bounds import sum_of_entries
from deel.lip._numerics.norm_bounds import transposed
from deel.lip._numerics.norm_bounds import unit_scale
from deel.lip._numerics.one_step import steps
from deel.lip._numerics.polar_on_host import factor_on_host

# Below this residual no division is needed; see the first note.
NEAR = 0.75

# Below this mean square, products of entries may lose digits to underflow.
_LEAST_SQUARE = 1e-10

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
    identity = identity_of(gram)
    mean_square = sum_of_entries(gram * identity) / w.shape[-1]
    defect = identity - gram / mean_square
    residual = frobenius_norm(defect)
    near = (mean_square > _LEAST_SQUARE) & (residual < NEAR)
    near = _of_all(ops.all, near)

    def nearby():
        scale = ops.sqrt(mean_square)
        predicted = _predicted(defect, residual)
        return _cubic_step(w / scale, defect), scale, predicted

    def distant():
        # In two steps, since the scale of finite entries may be infinite.
        unit, _ = unit_scale(w, axes_of_one(w))
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
    residual = ops.stop_gradient(frobenius_norm(identity_of(gram) - gram))
    square = ops.where(residual < NEAR, ops.ones_like(residual), 1 + residual)
    return _cubic_step(w / ops.sqrt(square), identity_of(gram) - gram / square)


def nearer(w):
    """A cubic step alone, where singular values of two are out of reach.

    Differentiable. Unlike `finished`, this divides by nothing: singular values
    that are far from one cost the others nothing.

    Args:
        w: Tensor `(n, m)`.
    """
    return _cubic_step(w, identity_of(w) - gram_of(w))


def mean_scale(w):
    """Root mean square of the singular values, 1 for zeros."""
    unit, largest = unit_scale(w, axes_of_one(w))
    mean = (
        ops.sqrt(sum_of_entries(ops.square(unit)) / min(w.shape[-2:])) * largest
    )
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
    defect = identity_of(w) - gram_of(w)
    predicted = _predicted(defect, frobenius_norm(defect))
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


def _of_all(quantifier, truth):
    """What decides about a stack: `ops.any` or `ops.all` of its matrices."""
    return quantifier(truth) if len(truth.shape) else truth


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
        ops.sum(ops.square(once), axis=-2), TINY
    )
    if len(defect.shape) == 2:
        largest = ops.max(ratios)
    else:
        largest = ops.max(ratios, axis=-1, keepdims=True)[..., None]
    return ops.minimum(1.5 * ops.sqrt(largest), residual)


def project_on_tangent(value, gradient, multiple=1.0):
    """Gradient of a function of a multiple of the polar factor.

    For W = Q H the exact derivative is dW = Q Y + (I - Q Q^T) G H^-1 with
    H Y + Y H = Q^T G - G^T Q. At H = I it is G - Q sym(Q^T G), the projection
    on the tangent space of the Stiefel manifold at Q (rows instead of columns
    where Q is wide). It is also the exact derivative of one cubic step at Q.
    Away from H = I it stays a descent direction: its inner product with the
    exact derivative is positive, H being positive definite.

    It is a gradient, so its products have the digits of those of the network.

    Args:
        value: Tensor of shape `(n, m)`, `multiple * Q`.
        gradient: Tensor of shape `(n, m)`, the gradient with respect to
            `value`.
        multiple: Float, or tensor `(1, 1)`.

    Returns:
        Tensor of shape `(n, m)`.
    """
    is_tall = value.shape[-2] >= value.shape[-1]
    factors = (transposed(value), gradient)
    mixed = ops.matmul(*(factors if is_tall else (gradient, factors[0])))
    twice = mixed + transposed(mixed)
    weights = multiple, -0.5 / multiple
    if not isinstance(multiple, float):
        gradient, twice, weights = (
            multiple * gradient,
            twice / multiple,
            (1.0, -0.5),
        )
    factors = (value, twice) if is_tall else (twice, value)
    return added_product(gradient, *factors, *weights, all_digits=False)


# Closeness to 1 that is asked for outside of training steps: a second pass
# then changes nothing that float32 can tell.
_EXACT = 1e-7

# Least and largest multiple of an orthogonal matrix that a retraction leaves.
SCALES = (1e-2, 1e4)


def spectral_constraint(
    kernel, orthogonal=True, max_steps=DEFAULT_MAXITER_BJORCK, groups=1
):
    """Kernel whose matrix has norm at most one; a pure function.

    With `groups`, the matrix is made of as many blocks of columns, each with
    inputs of its own, and each block is constrained by itself.

    Args:
        kernel: Tensor, float32 at least; reshaped to `(-1, last dimension)`.
        orthogonal: Boolean. Whether all singular values are brought to one.
            If not, all are divided by a proven bound of the largest.
        max_steps: Integer, limit of the orthogonalisation.
        groups: Integer, the number of blocks.

    Returns:
        Tensor of the shape of `kernel`.
    """
    matrix = as_matrix(kernel)
    if orthogonal:
        known = ops.stop_gradient(matrix)
        nearest, _ = nearest_factor(known, _EXACT, max_steps, groups)
        constrained = with_tangent_gradient(matrix, nearest, groups)
    else:
        constrained = by_group(divide_by_norm, groups, matrix)
    return reshaped(constrained, kernel.shape)


def by_group(function, groups, *matrices):
    """Applies a function of matrices to each block of their columns."""
    if groups == 1:
        return function(*matrices)
    blocks = zip(*(_blocks(groups, x) for x in matrices), strict=True)
    return ops.concatenate([function(*block) for block in blocks], axis=1)


def _blocks(groups, matrix):
    return [matrix] if groups == 1 else ops.split(matrix, groups, axis=1)


def nearest_factor(matrix, tolerance, max_steps, groups):
    """The (semi-)orthogonal matrix nearest to each group of columns.

    Without groups also of each matrix of a stack, see `_orthogonal`.

    Returns:
        A tensor like `matrix`, and the scale of `matrix`, `(1, 1)`; see
        `polar`.
    """
    array = array_where_eager_is_slow(matrix)
    # Fewer steps than usual were asked for, to leave it less near.
    if array is not None and max_steps >= DEFAULT_MAXITER_BJORCK:
        blocks = np.split(array.astype("float64"), groups, axis=-1)
        factors, scales = zip(*map(factor_on_host, blocks), strict=True)
        found = np.concatenate(factors, axis=-1), np.mean(scales, axis=0)
        return tuple(ops.convert_to_tensor(x, matrix.dtype) for x in found)
    # A tensor: one graph serves each tolerance.
    tolerance = ops.convert_to_tensor(tolerance, dtype=matrix.dtype)
    return _nearest_of(matrix, tolerance, max_steps=max_steps, groups=groups)


def stepped(matrix, groups):
    """`step` of each group of columns, or of each matrix of a stack.

    Returns:
        A tensor like `matrix`, and the scale of `matrix`, `(..., 1, 1)`.
    """
    return _joined(steps(_blocks(groups, matrix)))


def _joined(parts):
    """Factors of all groups side by side, and one scale, `(1, 1)`."""
    if len(parts) == 1:
        return parts[0]
    factors, scales = zip(*parts, strict=True)
    # Only to be of their size: the mean cannot overflow.
    scale = ops.mean(ops.concatenate(scales), axis=0, keepdims=True)
    return ops.concatenate(factors, axis=1), scale


# Closeness to 1 of kernels that nobody has retracted, in training steps:
# inference, which uses a kernel normalised at another moment, then gives the
# same values within 1e-4.
_FORWARD = 1e-5


def factor_in_training(
    matrix, is_retracted, groups=1, max_steps=DEFAULT_MAXITER_BJORCK
):
    """What a training step uses of a kernel: of one retracted, one step.

    Any other may be far from orthogonal, and drifts from there if nobody
    retracts it: it is normalised to the end, with questions to the host.

    Args:
        matrix: Tensor `(n, m)`, or a stack, not differentiated.
        is_retracted: Boolean, whether an optimizer has retracted it.
        groups: Integer, as of `nearest_factor`.
        max_steps: Integer, likewise.
    """
    if is_retracted:
        return stepped(matrix, groups)[0]
    return nearest_factor(matrix, _FORWARD, max_steps, groups)[0]


def residual_of(factor):
    """`||I - W^T W||_F`, which bounds `|1 - s^2|`, as `(..., 1, 1)`."""
    if factor.shape[-2] < factor.shape[-1]:
        factor = transposed(factor)
    return length_of(identity_of(factor) - gram_of(factor))


@traced_once
def _nearest_of(matrix, tolerance, max_steps, groups):
    parts = [
        polar(block, tolerance, max_steps) for block in _blocks(groups, matrix)
    ]
    return _joined(parts)


def with_tangent_gradient(matrix, value, groups, multiple_of=None):
    """`value` with its gradient sent to `matrix`, not through the steps.

    The derivative of Q with respect to a matrix s Q is inverse to s. That is
    left out: what reaches the optimizer stays finite for the tiniest kernel.

    Args:
        matrix: Tensor, the free matrix.
        value: Tensor, a multiple of a (semi-)orthogonal matrix.
        groups: Integer.
        multiple_of: Function of `value` that returns the multiple, a float or a
            tensor; None for one.
    """

    @custom_gradient
    def pass_on(matrix, value):
        def gradient(upstream):
            multiple = multiple_of(value) if multiple_of else 1.0
            projected = functools.partial(project_on_tangent, multiple=multiple)
            return by_group(projected, groups, value, upstream), None

        return value, gradient

    return pass_on(matrix, value)
