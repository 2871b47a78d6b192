"""One step towards the nearest orthogonal matrix, sound from anywhere.

A training step has no time to ask how near it is: each question is answered by
the host. So it takes one cubic step, and the next training step the next one,
which squares what is missing to one while updates are small.

W, with m columns, is divided by its Frobenius norm first. The eigenvalues of
its Gram matrix G have the sum 1 then, so their mean is a = 1 / m, and with
d = ||G - a I||_F, d^2 = ||G||_F^2 - a, none of them is above a + d. W is
divided by the root of (a + max(a, d)) / 2. Then s^2 <= 2 for every singular
value s. That is enough for a cubic step, which leaves at most one of s^2 <= 4
and no other sign of s^2 < 3: see the first note of `polar`. Where d is no more
than a, the scale is right for all of them: the mean.

The sum of the eigenvalues is 1 up to rounding. Where the norm is out of range
it is 0 below, and above it is greater: t. That is sound, too. In units of a,
s^2 > 4 means a largest eigenvalue L > 4 and d < L / 2 - 1. But d^2 is no less
than L^2 + (m t - L)^2 / (m - 1) - m, and this is at least (L - 1)^2 where
L <= m <= m t, and L^2 - m > L^2 / 2 where L > m: both exceed (L / 2 - 1)^2.
"""

import math

from keras import ops

from deel.lip._backend.linear_algebra import added_product
from deel.lip._backend.linear_algebra import jointly
from deel.lip._backend.linear_algebra import length_of
from deel.lip._backend.linear_algebra import limited
from deel.lip._backend.linear_algebra import one_for_tiny
from deel.lip._backend.linear_algebra import sum_of_squares
from deel.lip._backend.linear_algebra import units_of
from deel.lip._numerics.norm_bounds import gram_of
from deel.lip._numerics.norm_bounds import transposed


def step(w):
    """One step towards the nearest orthogonal matrix; see above.

    Args:
        w: Tensor of shape `(n, m)`, or a stack, float32 at least, any finite
            values.

    Returns:
        A tensor like `w` with singular values of at most 1, and what makes it
        as large as `w` in the Frobenius norm, `(..., 1, 1)`.
    """
    return steps([w])[0]


def steps(matrices):
    """`step` of several matrices, or stacks; their scalars are one tensor.

    Args:
        matrices: List of tensors of any shapes, each as for `step`.

    Returns:
        List of the pairs that `step` returns.
    """
    is_wide = [w.shape[-2] < w.shape[-1] for w in matrices]
    tall = [
        transposed(w) if wide else w
        for w, wide in zip(matrices, is_wide, strict=True)
    ]
    units, lengths = zip(*units_of(tall), strict=True)
    grams = [gram_of(unit) for unit in units]
    scales = jointly(
        _twice_the_divisor,
        [sum_of_squares(gram) for gram in grams],
        [1.0 / w.shape[-1] for w in tall],
    )
    factors, root = [], math.sqrt(2.0)
    for unit, gram, (twice, inverse) in zip(units, grams, scales, strict=True):
        start = unit * inverse
        factors.append(
            added_product(start, start, gram / twice, 1.5 * root, -root)
        )
    sizes = jointly(_size, lengths, list(map(length_of, factors)))
    return [
        (transposed(factor) if wide else factor, size)
        for factor, wide, size in zip(factors, is_wide, sizes, strict=True)
    ]


def _size(length, of_factor):
    """A multiple; of zeros, which have none, any number."""
    return length / one_for_tiny(of_factor)


def _twice_the_divisor(square, mean):
    """`a + max(a, d)`, from `||G||_F^2` and a, and one over its root."""
    spread = ops.sqrt(limited(square - mean, least=0.0))
    twice = mean + (
        limited(spread, least=mean)
        if isinstance(mean, float)
        else ops.maximum(spread, mean)
    )
    return twice, ops.rsqrt(twice)
