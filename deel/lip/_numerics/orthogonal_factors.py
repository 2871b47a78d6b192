"""Orthogonal convolutions: kernels composed of orthogonal blocks.

Note [Why the composed kernel is orthogonal]

Write a kernel as the polynomial K(z) = sum_t K[t] z^t of its taps, z one
complex number of modulus one for each axis. On images that are continued
periodically the convolution multiplies each frequency by K(z), so it is
(semi-)orthogonal if K(z) is for each z, and it never expands if no K(z) does.
Both are kept by products, and the product of polynomials is the kernel of one
convolution after the other. The factors here:

* B(z) = (I - P) + P z with P = U U^T, along one axis. With orthonormal columns
  in U it is unitary: it shifts the range of P by one place and leaves the rest.
  If the singular values of U are s <= 1 instead, its own are
  |1 - s^2 + s^2 z| <= 1, with equality at z = 1: *whatever U is, as long as
  s <= 1, a block does not expand.* (A block may shift the rest instead of the
  range, which changes nothing.)
* A matrix between channels, at one place, with singular values of at most one.
* For a stride s, a kernel of s taps on windows that do not overlap: the values
  of a window are one vector, multiplied by one such matrix.

A window of k taps needs k - s blocks on each axis, after which the windows of s
taps are taken. What is padded with zeros is a part of the operator on a large
enough periodic image, restricted to some inputs and outputs, and so its norm is
at most that one's. A dilation replaces z by a power of it.

Note [How exact it is]

The factors are as close to orthogonal as `polar` makes them, a few
units of 1e-7. U is made smaller by `_MARGIN`, which is more than rounding can
have left above one. Its block has singular values of at least 2 s^2 - 1, that
is 1 - 4 `_MARGIN`, less what is left below one. The products keep all digits
of float32; see `deel.lip._backend.products`.

In training, factors may be less near to orthogonal ones. The kernel does not
expand then either, but `convolution_bound`, by which it is checked, may see
more than there is. With singular values of the factors of 1 - d <= s^2 <= 1,
the squared ones of a block are at least 1 - 4 d, and those of the kernel at
least 1 - D, D being the sum of 4 d of the blocks and d of the other matrices.
The bound enlarges half of that range, so the kernel is divided by the root of
1 + (1 / cos(pi / 6)^axes - 1) D / 2, with one for D if that is more.

References:
    - Li et al., "Preventing gradient attenuation in Lipschitz constrained
      convolutional networks", NeurIPS 2019 (arXiv:1911.00937).
    - Boissin et al., "An adaptive orthogonal convolution scheme for efficient
      and flexible CNN architectures", ICML 2025 (arXiv:2501.07930).
    - Xiao et al., "Dynamical isometry and a mean field theory of CNNs", ICML
      2018 (arXiv:1806.05393), for the blocks of two taps.
    - Ehlich and Zeller, "Schwankung von Polynomen zwischen Gitterpunkten",
      Math. Z. 86 (1964), for `convolution_bound`.
"""

import dataclasses
import math

import numpy as np
from keras import ops

from deel.lip._backend.products import product
from deel.lip._numerics.norm_bounds import transposed
from deel.lip._numerics.polar import residual_of

_MARGIN = 5e-7

# Of what a trigonometric polynomial is on a grid, to what it is between.
_COSINE = math.cos(math.pi / 6)


@dataclasses.dataclass(frozen=True)
class Factors:
    """The factors of a kernel, and how one array holds them.

    The array has the shape `(groups, channels, width)`: side by side, the
    matrices below with `channels` rows each. A group of channels has a kernel
    of its own.

    Attributes:
        shape: Tuple, the shape `(taps of each axis..., inputs, outputs)` of the
            kernel, with the outputs of all groups.
        strides: Tuple of integers.
        groups: Integer.
    """

    shape: tuple
    strides: tuple
    groups: int = 1

    @property
    def window(self):
        """Taps along each axis that no other window reads."""
        return tuple(map(min, self.shape, self.strides))

    @property
    def _steps(self):
        """Windows that a kernel spans along each axis."""
        pairs = zip(self.shape, self.window, strict=False)
        return [-(-taps // size) for taps, size in pairs]

    @property
    def inputs(self):
        return self.shape[-2]

    @property
    def outputs(self):
        return self.shape[-1] // self.groups

    @property
    def channels(self):
        """Channels that the blocks mix: as many as keep it orthogonal."""
        return max(self.inputs, self.outputs // math.prod(self.window))

    @property
    def entry(self):
        """Columns of the matrix from the inputs to the channels, or 0."""
        needed = self.channels > self.inputs or not self.exit
        return self.inputs if needed else 0

    @property
    def exit(self):
        """Columns of the matrix from windows of channels to outputs, or 0."""
        size = math.prod(self.window)
        needed = size > 1 or self.channels > self.outputs
        return size * self.outputs if needed else 0

    @property
    def axes(self):
        """The axis of each block; the axes take turns."""
        spans = zip(self.shape, self.window, strict=False)
        counts = [taps - size for taps, size in spans]
        turns = range(max(counts))
        return [
            axis
            for turn in turns
            for axis, count in enumerate(counts)
            if turn < count
        ]

    @property
    def rank(self):
        """Columns of the matrix U of a block."""
        return self.channels // 2

    @property
    def free_shape(self):
        width = self.entry + len(self.axes) * self.rank + self.exit
        return self.groups, self.channels, width

    def split(self, array):
        """Stacks of the matrices `(groups, ..., rows, columns)` in the array.

        Returns:
            List of the entry, the blocks and the exit; None for what there is
            none of.
        """
        size = math.prod(self.window)
        first = self.entry
        last = first + len(self.axes) * self.rank
        entry = array[:, :, :first] if first else None
        blocks = exit_ = None
        if last > first:
            shape = (self.groups, self.channels, -1, self.rank)
            blocks = ops.reshape(array[:, :, first:last], shape)
            blocks = ops.transpose(blocks, (0, 2, 1, 3))
        if self.exit:
            shape = (self.groups, self.channels, size, self.outputs)
            exit_ = ops.reshape(array[:, :, last:], shape)
            exit_ = ops.transpose(exit_, (0, 2, 1, 3))
            shape = (self.groups, size * self.channels, self.outputs)
            exit_ = ops.reshape(exit_, shape)
        return [entry, blocks, exit_]

    def join(self, parts):
        """The array that `split` makes these parts of."""
        entry, blocks, exit_ = parts
        size = math.prod(self.window)
        shape = (self.groups, self.channels, -1)
        joined = [] if entry is None else [entry]
        if blocks is not None:
            blocks = ops.transpose(blocks, (0, 2, 1, 3))
            joined.append(ops.reshape(blocks, shape))
        if exit_ is not None:
            split = (self.groups, size, self.channels, self.outputs)
            exit_ = ops.transpose(ops.reshape(exit_, split), (0, 2, 1, 3))
            joined.append(ops.reshape(exit_, shape))
        return ops.concatenate(joined, axis=-1)

    def compose(self, parts):
        """The kernel of all factors, one after the other.

        Blocks are symmetric, so the product may be made from either end. It
        starts with the matrix that has the fewest rows to carry along.
        """
        entry, blocks, exit_ = parts
        dimensions = len(self.shape) - 2
        backwards = exit_ is not None
        if backwards:
            shape = (self.groups, *self.window, self.channels, self.outputs)
            kernel = transposed(ops.reshape(exit_, shape))
        else:
            shape = (self.groups, *(1,) * dimensions, -1, self.channels)
            kernel = ops.reshape(transposed(entry), shape)
        for index, axis in enumerate(self.axes):
            u = None if blocks is None else (1 - _MARGIN) * blocks[:, index]
            # Every second block shifts the rest, so that half of it all is
            # shifted even where the number of channels is odd.
            shifts_rest = self.axes[:index].count(axis) % 2 == 1
            kernel = _with_block(kernel, u, 1 + axis, shifts_rest)
        if backwards:
            if entry is not None:
                kernel = _on_channels(kernel, entry)
            kernel = transposed(kernel)
        # The groups, side by side in the outputs.
        kernel = ops.moveaxis(kernel, 0, -2)
        kernel = ops.reshape(kernel, self.shape)
        return kernel / ops.stop_gradient(self._seen_above_one(parts))

    def _seen_above_one(self, parts):
        """What to divide a kernel by; see [How exact it is]."""
        most = 0.0
        for part, weight in zip(parts, (1.0, 4.0, 1.0), strict=True):
            if part is not None:
                most += weight * ops.sum(residual_of(part))
        axes = sum(n > 1 for n in self._steps)
        excess = (1 / _COSINE**axes - 1) / 2
        return ops.sqrt(1 + excess * ops.minimum(most, 1.0))


def _on_channels(kernel, matrix):
    """Multiplies `(groups, taps..., rows, n)` by `(groups, n, m)`."""
    groups, *taps, rows, _ = kernel.shape
    flat = ops.reshape(kernel, (groups, -1, kernel.shape[-1]))
    shape = (groups, *taps, rows, matrix.shape[-1])
    return ops.reshape(product(flat, matrix), shape)


def _with_block(kernel, u, axis, shifts_rest):
    """Multiplies a kernel by a block of two taps along an axis.

    Args:
        kernel: Tensor `(groups, taps..., rows, channels)`.
        u: Tensor `(groups, channels, rank)`, None for rank zero.
        axis: Integer, the axis of the tensor.
        shifts_rest: Boolean, which part is shifted by one place.
    """
    if u is None:
        ranged = ops.zeros_like(kernel)
    else:
        ranged = _on_channels(_on_channels(kernel, u), transposed(u))
    stays, moves = kernel - ranged, ranged
    if shifts_rest:
        stays, moves = moves, stays
    behind = [[0, 0]] * len(kernel.shape)
    ahead = list(behind)
    behind[axis], ahead[axis] = [0, 1], [1, 0]
    return ops.pad(stays, behind) + ops.pad(moves, ahead)


def convolution_bound(kernel, strides):
    """Upper bound of the norm of a convolution, for images of every size.

    Exact where the kernel is orthogonal, which the bounds of
    `deel.lip.certification` by a grid of frequencies are not: those are
    larger by what a kernel may do between the frequencies. Here only the
    *deviation* D(z) = E(z)* E(z) - c I is enlarged, with E the kernel for s
    places at a time and c in the middle of the eigenvalues that were seen. For
    a unit vector u, u* D(z) u is a trigonometric polynomial whose degree d is
    the number of taps of E less one. On 6 d points for each axis its magnitude
    somewhere is at least cos(pi / 6) times the largest (Ehlich and Zeller).

    Args:
        kernel: Array `(taps..., inputs, outputs)`.
        strides: Tuple of integers.

    Returns:
        Float, never below the norm.
    """
    *taps, inputs, outputs = kernel.shape
    rank = len(taps)
    window = [min(pair) for pair in zip(taps, strides, strict=True)]
    missing = [-n % w for n, w in zip(taps, window, strict=True)]
    widths = [(0, n) for n in missing] + [(0, 0)] * 2
    kernel = np.pad(kernel.astype("float64"), widths)
    steps = [n // w for n, w in zip(kernel.shape, window, strict=False)]
    split = [n for pair in zip(steps, window, strict=True) for n in pair]
    kernel = kernel.reshape(*split, inputs, outputs)
    # First the steps of all axes, then the places within one.
    order = [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)]
    kernel = kernel.transpose(*order, 2 * rank, 2 * rank + 1)
    kernel = kernel.reshape(*steps, -1, outputs)
    grid = [max(1, 6 * (n - 1)) for n in steps]
    # Of a real kernel, half of the frequencies say all.
    waves = np.fft.rfftn(kernel, grid, axes=range(rank))
    low, high = np.inf, 0.0
    for wave in waves.reshape(-1, *kernel.shape[-2:]):
        adjoint = wave.conj().T
        is_wide = len(wave) <= len(adjoint)
        gram = wave @ adjoint if is_wide else adjoint @ wave
        values = np.linalg.eigvalsh(gram)
        low, high = min(low, values[0]), max(high, values[-1])
    between = _COSINE ** sum(n > 1 for n in steps)
    middle, half = (high + low) / 2, (high - low) / 2
    return math.sqrt(middle + half / between)
