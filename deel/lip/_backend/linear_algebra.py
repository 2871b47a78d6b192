"""Operations on matrices that PyTorch, computing eagerly, has as one.

There each operation that `keras.ops` is made of is a launch of its own. The
other backends compile.
"""

import functools

import keras
import numpy as np
from keras import ops

from deel.lip._backend.gradient import custom_gradient
from deel.lip._backend.products import digits_of_products
from deel.lip._backend.products import in_own_dtype
from deel.lip._backend.products import product

# The smallest normal number of float32; so is its reciprocal.
TINY = float(np.finfo(np.float32).tiny)

# Terms of a sum that are added one after the other.
BLOCK = 64

# The axes of one matrix in a stack.
_MATRIX = (-2, -1)


def largest_magnitude(x, axis):
    """Largest absolute value along some axes, which are kept."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.linalg.vector_norm(x, float("inf"), axis, keepdim=True)
    return ops.max(ops.abs(x), axis=axis, keepdims=True)


def one_for_tiny(x):
    """`x`, which is not negative, with ones where it is no normal number.

    To divide by: zeros then stay zeros.
    """
    if keras.backend.backend() == "torch":
        import torch

        return torch.nn.functional.threshold(x, TINY, 1.0)
    return ops.where(x > TINY, x, ops.ones_like(x))


def sum_of_rows(x):
    """Sum over the first axis, without a loss of digits where it is long.

    PyTorch adds in blocks by itself. The others may add one after the other,
    which is wrong by 3e-4 for a hundred thousand terms of one sign.
    """
    if keras.backend.backend() != "torch":
        while x.shape[0] > BLOCK:
            x = ops.sum(in_blocks(x), axis=1)
    return ops.sum(x, axis=0)


def in_blocks(x, size=BLOCK):
    """Splits the first axis in blocks, filled up with zeros."""
    missing = -x.shape[0] % size
    x = ops.pad(x, [[0, missing]] + [[0, 0]] * (len(x.shape) - 1))
    return ops.reshape(x, (-1, size, *x.shape[1:]))


def limited(x, least=None, most=None):
    """`x` within limits that are Python numbers.

    PyTorch takes them as they are: as tensors they would be sent to the device.
    """
    if keras.backend.backend() == "torch":
        return x.clamp(least, most)
    if None not in (least, most):
        return ops.clip(x, least, most)
    x = x if least is None else ops.maximum(x, least)
    return x if most is None else ops.minimum(x, most)


def length_of(x):
    """Frobenius norm of each matrix, `(..., 1, 1)`. Not differentiated."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.linalg.vector_norm(x, 2, _MATRIX, keepdim=True)
    return ops.sqrt(sum_of_squares(x))


def units_of(matrices):
    """Matrices, or stacks, of any finite entries, divided by their lengths.

    Squares neither overflow nor vanish on the way: PyTorch counts in float64,
    but on the GPUs of Apple, which have none. Elsewhere the largest entry is
    made one before, or four at most, since compilers divide by multiplying with
    the reciprocal, which has to be a normal number. Not differentiated.

    Returns:
        List of pairs: a tensor like the matrix, of length one, or zero for
        zeros (and where no entry is a normal number, it may be); and the
        length, `(..., 1, 1)`, which may be infinite.
    """
    if has_wider(matrices[0]):
        import torch

        norm = functools.partial(
            torch.linalg.vector_norm, dim=_MATRIX, keepdim=True
        )
        wide = [norm(x, dtype=torch.float64) for x in matrices]
        divide = functools.partial(_divisor, dtype=matrices[0].dtype)
        lengths = jointly(divide, wide)
        return [(x / y, y) for x, y in zip(matrices, lengths, strict=True)]

    def unit_of(x):
        scale = limited(largest_magnitude(x, _MATRIX), TINY, 1.0 / TINY)
        x = x / scale
        length = length_of(x)
        return x / limited(length, least=TINY), scale * length

    return list(map(unit_of, matrices))


def _divisor(length, dtype):
    """What to divide by in place of a length of float64, in another dtype.

    A length that is no normal number counts as zero, for which there is one;
    one whose reciprocal is none is said to be `1 / TINY`.
    """
    return ops.cast(limited(one_for_tiny(length), most=1.0 / TINY), dtype)


def has_wider(x):
    """Whether PyTorch can count with float64 in place of the dtype of `x`."""
    if keras.backend.backend() != "torch":
        return False
    import torch

    return x.dtype == torch.float32 and x.device.type != "mps"


@custom_gradient
def divided_by_length(columns):
    """Each column divided by its length, where there `has_wider`.

    In half the operations of what `keras.ops` would take.
    """
    import torch

    def lengths():
        # In float64, which holds them all; and so what is divided by them.
        return one_for_tiny(
            torch.linalg.vector_norm(columns, 2, 0, True, dtype=torch.float64)
        )

    length = lengths()
    unit = (columns / length).to(columns.dtype)

    def gradient(upstream):
        own, size = unit, length
        if torch.is_grad_enabled():
            # It is going to be differentiated in turn.
            size = lengths()
            own = columns / size
        along = (own * upstream).sum(0, keepdim=True)
        return ((upstream - along * own) / size).to(columns.dtype)

    return unit, gradient


def jointly(function, *columns):
    """Applies a function of scalars to those of many matrices.

    PyTorch computes with all of them at once, since each operation is a launch.

    Args:
        function: Of as many arguments as there are lists, entry by entry;
            returns a tensor, or a tuple of them.
        *columns: Lists of the same length. Tensors `(..., 1, 1)` in the first
            one, and in each other one tensors of the same shapes, or numbers.

    Returns:
        List of what the function returns of the first entries, of the second
        ones, and so on.
    """
    first = columns[0]
    if not _launches_each(first):
        return [function(*row) for row in zip(*columns, strict=True)]
    import torch

    sizes = tuple(x.numel() for x in first)

    def joined(column):
        if ops.is_tensor(column[0]):
            return torch.cat([x.reshape(-1) for x in column])
        like = first[0]
        return _repeated(tuple(column), sizes, like.dtype, like.device)

    found = function(*map(joined, columns))

    def entries(joint):
        parts = zip(joint.split(sizes), first, strict=True)
        return [part.reshape(x.shape) for part, x in parts]

    if not isinstance(found, tuple):
        return entries(found)
    return list(zip(*map(entries, found), strict=True))


def _launches_each(parts):
    """Whether PyTorch computes with several tensors, one after the other."""
    if keras.backend.backend() != "torch" or len(parts) == 1:
        return False
    import torch

    return not torch.compiler.is_compiling()


@functools.lru_cache
def _repeated(numbers, sizes, dtype, device):
    """Each number as often as its size says, kept on the device."""
    import torch

    repeated = np.repeat(numbers, sizes)
    return torch.as_tensor(repeated, dtype=dtype, device=device)


def sum_of_squares(x):
    """Sum of the squares of the entries of each matrix, `(..., 1, 1)`."""
    if keras.backend.backend() == "torch":
        import torch

        if len(x.shape) > 2:
            return ops.square(length_of(x))
        entries = x.reshape(-1)
        return torch.dot(entries, entries).reshape(1, 1)
    return ops.sum(ops.square(x), axis=_MATRIX, keepdims=True)


def added_product(x, a, b, weight, product_weight, all_digits=True):
    """`weight * x + product_weight * a @ b`.

    Args:
        x: Tensor `(..., n, m)`.
        a: Tensor `(..., n, k)`.
        b: Tensor `(..., k, m)`.
        weight: Float.
        product_weight: Float.
        all_digits: Boolean, see `product`.
    """
    is_torch = keras.backend.backend() == "torch"
    if not is_torch or (all_digits and digits_of_products(a)):
        multiplied = (product if all_digits else ops.matmul)(a, b)
        weighted = x if weight == 1.0 else weight * x
        return weighted + product_weight * multiplied
    import torch

    # Stacks of more axes are a few small matrices.
    if len(x.shape) > 3:
        multiplied = in_own_dtype(lambda: a @ b, x)
        return torch.add(weight * x, multiplied, alpha=product_weight)
    add = torch.addmm if len(x.shape) == 2 else torch.baddbmm
    return in_own_dtype(
        lambda: add(x, a, b, beta=weight, alpha=product_weight), x
    )


def cholesky(x):
    """Lower triangular factor of a positive definite matrix.

    PyTorch would read the outcome on the host to raise an error.
    """
    if keras.backend.backend() != "torch":
        return ops.cholesky(x)
    import torch

    return torch.linalg.cholesky_ex(x).L


def inverse(x):
    """Inverse of a matrix that has one; see `cholesky`."""
    if keras.backend.backend() != "torch":
        return ops.inv(x)
    import torch

    return torch.linalg.inv_ex(x).inverse
