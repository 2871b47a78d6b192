"""Sums of a tensor and what a branch makes of it.

Note [Branches]

The norm of `x + f(x)` is at most the sum of the norms, and mostly less: the
branch moves in directions of its own. What is known of the directions of x and
of what the branch has made of it so far, side by side, tells how far their sum
can move. Linear layers change the rows of the branch; behind an activation, the
rows of x are values without slopes; see [Slopes of some values]. On a torus, so
it is for the blocks of each frequency, as long as no stride folds them. The sum
is never worse than the sum of the norms: that is a bound, too.
"""

import dataclasses
import math

import numpy as np

from deel.lip.certification._chain import MOST_EXCESS
from deel.lip.certification._chain import Ellipsoid
from deel.lip.certification._chain import behind_some_slopes
from deel.lip.certification._chain import image_of
from deel.lip.certification._image_steps import identity_of
from deel.lip.certification._spectrum import Spectrum
from deel.lip.certification._spectrum import behind_convolution

# Vectors of up to so many values are held beside a branch.
_LARGEST = 2048

# A ball, where nothing is known of the directions of a branch.
_UNKNOWN = Ellipsoid(math.inf)


@dataclasses.dataclass(frozen=True, eq=False)
class _Branch:
    """A vector that branches off, and what became of it.

    Attributes:
        rows: Array `(values, directions)`, those of the start, then the others.
        held: Integer, how many values the start has.
        error: Float, the norm of what the rows may be wrong by.
        radius: Float, infinite: how far the branch moves is not looked at.
    """

    rows: np.ndarray
    held: int
    error: float
    radius: float = math.inf

    def through_matrix(self, kernel, norm):
        held, moved = np.split(self.rows, [self.held])
        moved, _, error = image_of(moved, self.error, kernel.T)
        return self._with(np.concatenate([held, moved]), self.error + error)

    def through_factors(self, factors):
        held, moved = np.split(self.rows, [self.held])
        moved = np.broadcast_to(factors, len(moved))[:, None] * moved
        error = float(np.max(np.abs(factors))) * self.error
        rows = np.concatenate([held, moved])
        rounding = 4 * _EPS * float(np.linalg.norm(moved))
        return self._with(rows, self.error + error + rounding)

    def through_slopes(self, slope=1.0):
        rows = self.rows.copy()
        rows[self.held :] *= slope
        if len(rows) > _LARGEST or not np.all(np.isfinite(rows)):
            return _UNKNOWN
        error = self.error * max(1.0, slope) * (1 + 1e-12)
        count = len(rows) - self.held
        return self._with(*behind_some_slopes(rows, error, count))

    def joined(self):
        held, moved = np.split(self.rows, [self.held])
        matrix = held + moved
        error = 2 * self.error + 4 * _EPS * float(np.linalg.norm(self.rows))
        return Ellipsoid.made(math.inf, matrix, error)

    def _with(self, rows, error):
        return _Branch(rows, self.held, error)


_EPS = float(np.finfo("float64").eps)


def sum_of(inputs, limit):
    """What is known of the sum of two tensors, or None.

    Args:
        inputs: List of `Flow`.
        limit: Float, a bound of the sum.

    Returns:
        An `Ellipsoid` or `Spectrum`; None where one of the tensors is not made
        of the other one by layers that the chain knows.
    """
    if len(inputs) != 2 or inputs[0].shape[1:] != inputs[1].shape[1:]:
        return None
    for start, end in (inputs, inputs[::-1]):
        calls = _calls_between(start, end)
        if calls:
            found = _along(start, calls)
            is_tight = found.radius <= MOST_EXCESS * limit
            return found if is_tight else None
    return None


def _calls_between(start, end):
    """The calls that make one flow of another; None for anything else."""
    calls = []
    while end is not start:
        call = end.call
        if call is None or call.bound.chain is None or len(call.inputs) != 1:
            return None
        calls.insert(0, call)
        (end,) = call.inputs
    return calls


def _along(start, calls):
    spread = start.spread or Ellipsoid(float(start.gain[0, 0]))
    if not 1e-100 < spread.radius < 1e100:
        return _UNKNOWN
    spread = _held(spread, start.shape)
    for call in calls:
        spread = call.bound.chain(spread)
    if not isinstance(spread, (_Branch, Spectrum)):
        return _UNKNOWN
    return spread.joined()


def _held(spread, shape):
    """A tensor, beside itself."""
    if len(shape) == 2:
        if not isinstance(spread, Ellipsoid) or shape[-1] > _LARGEST // 2:
            return _UNKNOWN
        matrix, error = spread.matrix, spread.error
        if matrix is None:
            matrix = spread.radius * np.eye(shape[-1])
        return _Branch(np.concatenate([matrix, matrix]), shape[-1], 2 * error)
    if None in shape[1:]:
        return _UNKNOWN
    if isinstance(spread, Ellipsoid):
        spread = behind_convolution(spread, identity_of(shape[1:]), 1.0)
    return spread.forked()
