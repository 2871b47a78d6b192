"""Upper bounds of norms, and sums that keep their digits."""

import math

from keras import ops

from deel.lip._backend.linear_algebra import BLOCK
from deel.lip._backend.linear_algebra import TINY
from deel.lip._backend.linear_algebra import in_blocks
from deel.lip._backend.linear_algebra import largest_magnitude
from deel.lip._backend.linear_algebra import one_for_tiny
from deel.lip._backend.linear_algebra import sum_of_rows
from deel.lip._backend.products import digits_of_products
from deel.lip._backend.products import product
from deel.lip._backend.tensors import reshaped

# The upper bound is rounded up by this much, in relative terms. The rounding
# of a float32 Gram matrix stays one order of magnitude below.
_SLACK = 4e-6

# Sums of more terms than `_LONG` are made in blocks of `BLOCK`; see
# `products_of_columns`.
_LONG = 1024

# Squarings of the Gram iteration: the bound is within m^(1/2^(t+1)) of sigma.
_SQUARINGS = 6


def as_matrix(kernel):
    """Reshapes a kernel to the matrix that multiplies the input patches."""
    columns = kernel.shape[-1]
    return reshaped(kernel, (math.prod(kernel.shape[:-1]), columns))


def unit_scale(w, axis=None):
    """Divides by the largest magnitude, which is returned too (0 stays 0).

    Squares of the result neither overflow nor all vanish, unless no entry is a
    normal number of float32, which is left as it is. The scale counts as
    a constant for differentiation, which is exact in every function that does
    not depend on the scale of its argument.
    """
    scale = largest_magnitude(ops.stop_gradient(w), axis)
    # Compilers divide by multiplying with the reciprocal, which has to be a
    # normal number. So the largest of what is left is four at most, not one.
    scale = ops.minimum(one_for_tiny(scale), 1.0 / TINY)
    return w / scale, scale


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
    spread = mean + frobenius_norm(gram - mean * identity_of(gram))
    iterated = _iterated(
        gram, lambda power: product(power, power), frobenius_norm
    )
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
    mean = ops.sum(real * identity_of(gram), axis=_PARTS, keepdims=True)
    mean = mean / gram.shape[-1]
    centered = [real - mean * identity_of(gram), gram[:, 1:]]
    spread = mean + _norm_of_parts(ops.concatenate(centered, axis=1))
    iterated = _iterated(gram, hermitian_square, _norm_of_parts)
    bound = _rounded_up(ops.minimum(spread, iterated))
    return ops.reshape(bound, (-1,))


# Axes of one matrix in a stack of them, both parts.
_PARTS = (1, 2, 3)


def _norm_of_parts(x):
    squares = ops.sum(ops.square(x), axis=_PARTS, keepdims=True)
    return ops.sqrt(ops.maximum(squares, TINY))


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
    return ops.maximum(bound, TINY) * (1 + _SLACK)


def divide_by_norm(w):
    """Divides a matrix by an upper bound of its largest singular value.

    Differentiable. A zero matrix stays zero.

    Args:
        w: Tensor of shape `(n, m)`.

    Returns:
        Tensor of shape `(n, m)` whose largest singular value is at most 1,
        and within 1% of it unless very many singular values nearly agree.
    """
    w, _ = unit_scale(w, axes_of_one(w))
    tall = w if w.shape[-2] >= w.shape[-1] else transposed(w)
    bound = gram_bound(gram_of(tall))
    return w / ops.sqrt(bound)


def identity_of(w):
    """Identity matrix of the columns of `w`."""
    return ops.eye(w.shape[-1], dtype=w.dtype)


def transposed(w):
    """Exchanges the last two axes."""
    # Tensors have it everywhere but on TensorFlow; PyTorch is faster with it.
    if hasattr(w, "mT"):
        return w.mT
    rank = len(w.shape)
    return ops.transpose(w, (*range(rank - 2), rank - 1, rank - 2))


def axes_of_one(w):
    """The axes of one matrix; None, which is all, if it is the only one."""
    return None if len(w.shape) == 2 else (-2, -1)


def sum_of_entries(x):
    """Sum of the entries of each matrix."""
    return ops.sum(x, axis=axes_of_one(x), keepdims=len(x.shape) > 2)


def _trace(gram):
    return sum_of_entries(gram * identity_of(gram))


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
    size = BLOCK if columns <= BLOCK else _LONG
    exact = columns > BLOCK and digits_of_products(w) is None
    if rows <= _LONG or exact:
        return product(transposed(w), z)
    first = _blocks_of_rows(w, size)
    second = first if z is w else _blocks_of_rows(z, size)
    return sum_of_rows(product(transposed(first), second))


def _blocks_of_rows(w, size):
    """Splits the rows of matrices in blocks, along a new first axis."""
    if len(w.shape) == 2:
        return in_blocks(w, size)
    # What is split comes first.
    blocks = in_blocks(ops.moveaxis(w, -2, 0), size)
    return ops.moveaxis(blocks, 1, -2)


def frobenius_norm(x):
    """Frobenius norm, kept from zero, where its gradient is not finite."""
    return ops.sqrt(sum_of_entries(x * x) + TINY)
