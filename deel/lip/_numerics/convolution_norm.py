"""Norms of convolutions, bounded from above within a training step.

Note [Frequencies of a convolution]

A convolution with zero padding is a restriction of the one on an endless
image. With stride s, the s positions of a pixel modulo s count as channels, and
the taps are dealt out to them: `ceil(k / s)` taps remain, and no stride. In the
Fourier basis that operator is block diagonal, with the blocks
`K(w) = sum_t K[t] exp(i w t)`, one matrix (channels in, channels out) for each
frequency w. So the largest singular value of all blocks bounds the layer, for
images of every size. The distance of dilated taps changes which w comes where,
and nothing else. Padding an image of L pixels with itself ("circular") leaves
the frequencies that are multiples of `2 pi / L`; if a stride does not divide L,
the layer without it, whose outputs contain those of the layer, is bounded.

Note [Few frequencies are enough]

For unit vectors u and v that reach the largest singular value, at w0, the real
part q of `e^(i a) e^(-i d w) u* K(w) v` is a real trigonometric polynomial of
degree d = (taps - 1) / 2 with its maximum at w0, for the right a. By a theorem
of M. Riesz, `q(w) >= q(w0) cos(d (w - w0))` as long as `d |w - w0| <= pi`
(half-integer d: the same, as a polynomial in w / 2 of degree 2 d). Of N
equidistant frequencies one is within `pi / N` of w0. So the largest singular
value on the grid, divided by `cos(pi d / N)`, bounds that of all frequencies;
along several axes, one after the other, the factors multiply (Ehlich and
Zeller). N = 16 d costs 2 % for each axis, N = 8 d 8 %.

The largest singular value of each block is bounded by the Gram iteration, as in
`norm_bounds.gram_bound`, never by a power iteration. Kernels are real, so half
of the frequencies is enough.

References:
    - Ehlich and Zeller, "Schwankung von Polynomen zwischen Gitterpunkten",
      Math. Z. 86 (1964).
    - Delattre et al., "Efficient bound of Lipschitz constant for convolutional
      layers by Gram iteration", ICML 2023 (arXiv:2305.16173).
    - Sedghi et al., "The singular values of convolutional layers", ICLR 2019
      (arXiv:1805.10408).
"""

import itertools
import math

import numpy as np
from keras import ops

from deel.lip._backend.compilation import traced_once
from deel.lip._backend.products import product
from deel.lip._numerics.norm_bounds import hermitian_bound
from deel.lip._numerics.norm_bounds import hermitian_gram
from deel.lip._numerics.norm_bounds import hermitian_square

# Frequencies along an axis, as multiples of the degree: the most of them that
# the products of `_PRODUCTS` entries allow.
_DENSITIES = (16, 12, 8)

_PRODUCTS = 4e8

# Rounding of the waves and of the sums over the taps, in relative terms.
_SLACK = 4e-6


class ConvolutionNorm:
    """An upper bound of the norm of a convolution, as a function of its kernel.

    Args:
        kernel_shape: Tuple, the shape of the kernel of a Keras convolution.
        strides: Tuple of integers.
        groups: Integer.
        overlap: Integer, how often windows read one value at most.
        lengths: Tuple of integers or Nones, the spatial shape of the image.
        circular: Boolean, whether the image is padded with itself; else with
            zeros.

    Attributes:
        fixed_axes: Tuple of Booleans: the spatial axes for which the bound
            holds for their length only.
    """

    def __init__(
        self, kernel_shape, strides, groups, overlap, lengths, circular
    ):
        if circular:
            strides = tuple(
                s if n is not None and n % s == 0 else 1
                for n, s in zip(lengths, strides, strict=True)
            )
        self._strides = strides
        self._groups = groups
        self._overlap = overlap
        *sizes, inputs, outputs = kernel_shape
        taps = [-(-k // s) for k, s in zip(sizes, strides, strict=True)]
        side = min(inputs * math.prod(strides), outputs // groups)
        grid = [
            n // s if circular and n is not None else None
            for n, s in zip(lengths, strides, strict=True)
        ]
        for density in _DENSITIES:
            points = [max(1, math.ceil(density * (t - 1) / 2)) for t in taps]
            pairs = list(zip(grid, points, strict=True))
            is_exact = [n is not None and n <= p for n, p in pairs]
            chosen = [p if n is None else min(n, p) for n, p in pairs]
            frequencies = _frequencies(chosen)
            if len(frequencies) * groups * side**3 <= _PRODUCTS:
                break
        # Another length may not be a multiple of the stride.
        folds = [circular and s > 1 for s in strides]
        self.fixed_axes = tuple(map(max, is_exact, folds))
        self._factor = 1.0
        for t, n, exact in zip(taps, chosen, is_exact, strict=True):
            if not exact:
                self._factor /= math.cos(math.pi * (t - 1) / 2 / n)
        places = np.array(list(itertools.product(*map(range, taps))))
        turns = frequencies / np.array(chosen) @ places.T
        self._waves = np.exp(2j * np.pi * turns)

    def bound(self, kernel):
        """A bound, a differentiable scalar tensor; never near zero.

        Args:
            kernel: Tensor whose matrix has norm at most one.
        """
        return self._limited(self._of_blocks(*self._blocks(kernel)), 1.0)

    def gradient_path(self, kernel, scale):
        """One, with the gradient of `bound(kernel) / bound(x)` at x = kernel.

        For a kernel whose bound is known, this costs less than the bound: the
        frequency that expands most is chosen by a guess.

        Args:
            kernel: Tensor, a multiple of one whose matrix has norm one.
            scale: Scalar tensor, that multiple.
        """
        real, imaginary = self._blocks(kernel)
        guess = _guesses(ops.stop_gradient(real), ops.stop_gradient(imaginary))
        norm = self._limited(_norm_of(real, imaginary, guess), scale)
        return ops.stop_gradient(norm) / norm

    def expansion(self, kernel):
        """The bound of a NumPy array, each block by its singular values."""
        kernel = kernel.astype("float64")
        taps = by_phase(kernel, self._strides, self._groups, np)
        blocks = np.tensordot(self._waves, taps, 1)
        sides = blocks.shape[-2:]
        adjoint = np.conj(np.swapaxes(blocks, -1, -2))
        wide = sides[0] < sides[1]
        gram = blocks @ adjoint if wide else adjoint @ blocks
        largest = max(0.0, float(np.max(np.linalg.eigvalsh(gram))))
        columns = np.split(kernel, self._groups, axis=-1)
        patches = max(
            np.linalg.norm(x.reshape(-1, x.shape[-1]), 2) for x in columns
        )
        return min(
            self._factor * math.sqrt(largest),
            math.sqrt(self._overlap) * patches,
        )

    def _blocks(self, kernel):
        """Real and imaginary parts of all blocks, `(number, rows, columns)`.

        There are as many rows as columns, or more.
        """
        taps = by_phase(kernel, self._strides, self._groups, ops)
        shape = taps.shape[1:]
        taps = ops.reshape(taps, (taps.shape[0], -1))
        parts = []
        for waves in (self._waves.real, self._waves.imag):
            waves = ops.convert_to_tensor(waves, dtype=taps.dtype)
            part = ops.reshape(product(waves, taps), (-1, *shape[1:]))
            if shape[1] < shape[2]:
                part = ops.transpose(part, (0, 2, 1))
            parts.append(part)
        return parts

    def _of_blocks(self, real, imaginary):
        known = ops.stop_gradient(real), ops.stop_gradient(imaginary)
        bounds = _all_bounds(*known)
        top = _norm_of(real, imaginary, bounds)
        # The gradient is that of the block which expands most.
        return ops.max(bounds) + top - ops.stop_gradient(top)

    def _limited(self, norm, scale):
        """At most the bound by coverage; see `deel.lip._numerics.windows`.

        And no less than half of the norm of the matrix, which is smaller than
        that of the operator but for zero, and for images smaller than the
        window. Too large a bound is a bound.
        """
        norm = self._factor * (1 + _SLACK) * norm
        scale = ops.stop_gradient(ops.cast(scale, norm.dtype))
        return ops.clip(norm, 0.5 * scale, math.sqrt(self._overlap) * scale)


def _frequencies(points):
    """Array of frequencies, as numbers of grid steps, without conjugates."""
    axes = [range(n) for n in points]
    axes[-1] = range(points[-1] // 2 + 1)
    return np.array(list(itertools.product(*axes)))


def by_phase(kernel, strides, groups, xp):
    """Taps `(number, groups, channels in, channels out)` without a stride.

    Args:
        kernel: Tensor or array, the kernel of a Keras convolution.
        strides: Tuple of integers.
        groups: Integer.
        xp: The module of its functions: `keras.ops`, or NumPy.
    """
    *sizes, inputs, outputs = kernel.shape
    rank = len(sizes)
    widths = [(0, -k % s) for k, s in zip(sizes, strides, strict=True)]
    kernel = xp.pad(kernel, [*widths, (0, 0), (0, 0)])
    shape = []
    for size, stride in zip(sizes, strides, strict=True):
        shape += [-(-size // stride), stride]
    kernel = xp.reshape(kernel, (*shape, inputs, groups, outputs // groups))
    taps = range(0, 2 * rank, 2)
    phases = range(1, 2 * rank, 2)
    last = 2 * rank
    kernel = xp.transpose(kernel, (*taps, last + 1, *phases, last, last + 2))
    channels = inputs * math.prod(strides)
    return xp.reshape(kernel, (-1, groups, channels, outputs // groups))


def _norm_of(real, imaginary, scores):
    """Bound of the block with the highest score, a scalar."""
    top = ops.reshape(ops.argmax(scores), (1,))
    picked = [ops.take(part, top, axis=0) for part in (real, imaginary)]
    return ops.squeeze(_bounds(*picked), axis=0)


@traced_once
def _all_bounds(real, imaginary):
    return _bounds(real, imaginary)


@traced_once
def _guesses(real, imaginary):
    gram = hermitian_gram(real, imaginary)
    square = hermitian_square(gram)
    return ops.sum(ops.square(square), axis=(1, 2, 3))


def _bounds(real, imaginary):
    gram = hermitian_gram(real, imaginary)
    return ops.sqrt(hermitian_bound(gram))
