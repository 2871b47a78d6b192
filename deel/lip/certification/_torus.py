"""Blocks of a torus, a matrix for each frequency.

Proofs are in `deel.lip.certification._spectrum`.
"""

import dataclasses
import functools
import math

import numpy as np

from deel.lip.certification._chain import SMALLEST_RADIUS
from deel.lip.certification._chain import behind_slopes
from deel.lip.certification._chain import excess
from deel.lip.certification._norms import blocks_norm

_EPS = float(np.finfo("float64").eps)

# Complex numbers that are kept at a time, and products of one step.
MOST_NUMBERS = 2**25
_MOST_PRODUCTS = 2**33


class TooLargeError(Exception):
    """What blocks are not made for; a ball remains."""


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """Differences on a torus, for inputs at the distance one.

    Attributes:
        points: Tuple, the positions of each axis.
        matrices: Array `(frequencies..., channels, directions)`, R(w); half of
            the frequencies of the last axis, the others are conjugates. None
            for a ball.
        error: Float, the norm of what R may be wrong by.
        is_zero_outside: Boolean, whether differences vanish off the image.
        held: None, or the `Blocks` that a branch started from, for the same
            directions; `error` is that of both together.
    """

    points: tuple
    matrices: np.ndarray | None = None
    error: float = 0.0
    is_zero_outside: bool = True
    held: "Blocks | None" = None

    @functools.cached_property
    def norm(self):
        """A bound of the norm of R, without its error."""
        norm = blocks_norm(self.matrices)
        if not SMALLEST_RADIUS < norm < 1 / SMALLEST_RADIUS:
            raise TooLargeError
        return norm

    @property
    def reach(self):
        """A bound of the norm of R with its error."""
        return self.norm + self.error

    @property
    def numbers(self):
        """How many numbers there are."""
        held = 0 if self.held is None else self.held.numbers
        return self.matrices.size + held

    @functools.cached_property
    def size(self):
        """Float, the largest Frobenius norm of a block."""
        return float(np.max(np.linalg.norm(self.matrices, axis=(-2, -1))))

    def behind_slopes(self, slope):
        """Behind an activation with slopes from 0 to `slope`."""
        if self.held is not None:
            return self._beside_slopes(slope)
        # As in `Ellipsoid`.
        unit = self.matrices / self.reach
        error = 4 * excess(unit.shape[-2:]) + 2 * self.error / self.reach
        grown = slope * self.reach * (1 + error)
        return Blocks(self.points, grown * behind_slopes(unit))

    def _beside_slopes(self, slope):
        """The same, with what is held; see [Slopes of some values]."""
        unit = self.matrices / self.norm
        factor = (1 + 4 * excess(unit.shape[-2:])) * behind_slopes(unit)
        mixed = (self.held.matrices @ _adjoint(unit)) @ factor
        held = np.concatenate([self.held.matrices, mixed], axis=-1)
        changed = slope * self.norm * factor
        zeros = np.zeros(self.matrices.shape)
        channels, directions = unit.shape[-2:]
        terms = 8 * (directions + 2 * channels + 16)
        # The norms of a factor and of a unit are at most the root of two.
        lost = terms * _EPS * 2 * channels * self.held.size
        return Blocks(
            self.points,
            np.concatenate([zeros, changed], axis=-1),
            max(1.0, slope) * self.error + lost,
            held=dataclasses.replace(self.held, matrices=held),
        )

    def alone(self):
        """These, or an error where something is held that cannot follow."""
        if self.held is not None:
            raise TooLargeError
        return self

    def behind_pairs(self, axis):
        """Behind the larger one of two neighbours along an axis."""
        stride = [1] * len(self.points)
        stride[axis] = 2
        points = list(self.points)
        points[axis] //= 2
        *_, channels, directions = self.matrices.shape
        require_small(points, channels, channels, 2 * directions)
        require_small(points, *[2 * directions] * 3)
        if self.error > _POSITIVE / 100 * self.norm:
            raise TooLargeError
        # The frequencies that fall together, and the pairs made of them.
        matrices = folded(self.matrices, self.points, stride)
        first, second = np.split(matrices / self.reach, 2, axis=-1)
        waves = np.arange(matrices.shape[axis]) / self.points[axis]
        shape = [1] * matrices.ndim
        shape[axis] = -1
        phases = np.exp(2j * np.pi * waves).reshape(shape)
        evens = np.concatenate([first, second], axis=-1)
        odds = phases * np.concatenate([first, -second], axis=-1)
        _, directions = evens.shape[-2:]
        scale = math.sqrt(1 + _POSITIVE)
        evens, odds = evens / scale, odds / scale
        inner = _adjoint(evens) @ odds
        positive = np.eye(directions) + inner + _adjoint(inner)
        sums = evens + odds
        solved = np.linalg.solve(np.linalg.cholesky(positive), _adjoint(sums))
        error = 4 * excess(evens.shape[-2:]) + 8 * self.error / self.reach
        grown = scale * self.reach * (1 + error / _POSITIVE)
        unit = _adjoint(solved)
        return Blocks(tuple(points), grown * behind_slopes(unit))


# See the note on pairs: how much larger t is than it has to be.
_POSITIVE = 1e-3


def require_small(points, *sides):
    """Raises an error where blocks of so many channels take too long."""
    frequencies = math.prod(half(points))
    numbers = frequencies * math.prod(sorted(sides)[-2:])
    products = frequencies * math.prod(sides)
    if numbers > MOST_NUMBERS or products > _MOST_PRODUCTS:
        raise TooLargeError


def half(points):
    """How many frequencies of each axis are kept."""
    return (*points[:-1], points[-1] // 2 + 1)


def waves_of(count, points, positions):
    """Values of the first waves of a torus, `(count, positions)`."""
    phases = np.outer(np.arange(count), positions) % points
    return np.exp(2j * np.pi / points * phases)


def transformed(kernel, waves):
    """Sums over the first axes with a wave for each."""
    for index, wave in enumerate(waves):
        kernel = np.tensordot(wave, kernel, ([1], [index]))
        kernel = np.moveaxis(kernel, 0, index)
    return kernel


def folded(matrices, points, strides):
    """Blocks of frequencies that fall together, side by side."""
    matrices = _all_frequencies(matrices, points)
    rank = len(points)
    shape = []
    for n, stride in zip(points, strides, strict=True):
        shape += [stride, n // stride]
    *_, channels, directions = matrices.shape
    matrices = matrices.reshape(*shape, channels, directions)
    kept = [2 * i + 1 for i in range(rank)]
    folded = [2 * i for i in range(rank)]
    order = (*kept, 2 * rank, *folded, 2 * rank + 1)
    matrices = np.transpose(matrices, order)
    behind = tuple(n // s for n, s in zip(points, strides, strict=True))
    matrices = matrices.reshape(*behind, channels, -1)
    matrices = matrices[..., : behind[-1] // 2 + 1, :, :]
    return matrices / math.sqrt(math.prod(strides))


def _all_frequencies(matrices, points):
    """Blocks of all frequencies, from those that are kept."""
    rank = len(points)
    last = rank - 1
    mirrored = matrices.take(range(1, (points[-1] + 1) // 2), axis=last)
    mirrored = np.conj(np.flip(mirrored, axis=last))
    for axis in range(last):
        mirrored = np.roll(np.flip(mirrored, axis=axis), 1, axis=axis)
    return np.concatenate([matrices, mirrored], axis=last)


def joint_factor(within, points):
    """A square matrix F with `F F^T` at least the sum of `W(w) W(w)*`.

    Args:
        within: Array `(frequencies..., outputs, directions)`, W(w).
        points: Tuple.
    """
    rank = len(points)
    weights = np.full(points[-1] // 2 + 1, 2.0)
    weights[0] = 1.0
    if points[-1] % 2 == 0:
        weights[-1] = 1.0
    within = within * np.sqrt(weights)[:, None, None]
    outputs = within.shape[-2]
    within = np.moveaxis(within, -2, 0).reshape(outputs, -1)
    # The imaginary parts of conjugates cancel.
    within = np.concatenate([within.real, within.imag], axis=1)
    scale = float(np.max(np.abs(within)))
    if not SMALLEST_RADIUS < scale < 1 / SMALLEST_RADIUS:
        raise TooLargeError
    gram = (within / scale) @ (within / scale).T
    terms = within.shape[1] + outputs + 16 * rank
    added = 8 * terms * _EPS * np.trace(gram)
    factor = np.linalg.cholesky(gram + added * np.eye(outputs))
    return scale * factor * (1 + excess(factor.shape))


def _adjoint(matrices):
    return np.conj(np.swapaxes(matrices, -1, -2))
