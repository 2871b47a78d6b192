"""How far a vector can move in which direction, through dense layers.

Note [Chain]

A product of norms forgets in which directions each layer stretches. So the
differences u of a vector are known to lie in an ellipsoid: `u = R v`, with
`||v||` at most the distance d of the inputs. For a ball, R is a number.

- A matrix W makes `W R` of it, with `t = ||W R||^2` the squared constant.
- An activation f, on each value by itself, with slopes from 0 to 1: let b be
  the difference before it and a the one after it. Then `a_i (b_i - a_i) >= 0`,
  so `a^T a <= a^T b`. With `b = B v` and `B B^T = M`, for any t > 0,
  `2/t a^T a <= 2/t a^T B v <= 1/t^2 a^T M a + v^T v`, hence
  `a^T (2/t I - M / t^2) a <= d^2`. With t not below the largest eigenvalue of
  M, this is an ellipsoid: `a = R v` with `R R^T = t (2 I - M / t)^-1`.

The eigenvalues of `2 I - M / t` are from 1 to 2, so those of `R R^T` from t / 2
to t: never worse than the product of norms. Slopes from 0 to c are c times
slopes from 0 to 1.

Any diagonal T > 0 takes the place of t, if `2 T - M` is positive, with
`R R^T = (2 T^-1 - T^-1 M T^-1)^-1`. A good one tightens deep networks; see
`deel.lip.certification._refined`.

Note [Slopes of some values]

Of the values of `b = B v`, let A be some that do not change, and U those with
slopes from 0 to 1 behind them: `a_A = B_A v`, and for any t > 0,

    v^T v >= v^T v - 2/t a_U^T (B_U v - a_U).

The least of the right side over all v with `B_A v = a_A` is, with M = B B^T and
`e = a_A - M_AU a_U / t`,

    e^T M_AA^-1 e + a_U^T (2/t I - M_UU / t^2) a_U.

So `a_U = R_U g` and `a_A = B_A f + M_AU a_U / t`, where f and g together are as
short as v, and `R_U R_U^T = t (2 I - M_UU / t)^-1`, with t not below the
largest eigenvalue of M_UU. The values of A may be what a branch starts from,
to which its end is added: see `deel.lip.certification._branches`.

Note [Rounding of the chain]

A sum of n products is wrong by at most n eps times the sum of their magnitudes.
So `W R` is wrong by a matrix of the norm `n eps ||W||_F ||R||_F` at most, which
is added to the radius; where that is no small part of it, as where `W R` nearly
cancels, a ball remains. Behind an activation it counts twice. The Gram matrix
of m columns, of norm one together, is wrong by at most `m eps min(n, m)`;
Cholesky's factor and its inverse by at most 8 n^2 eps and as much again, each
times the condition of `2 I - M / t`, which is two. All of that counts against
eigenvalues that are one at least: `excess`. With a diagonal, these are a tenth
at least, and an error E of R stays by itself: with D the slopes, `D (R + E) v`
is in the ellipsoid of `D R v`, but for `||E||`. So it is with slopes of some
values, where products add what they are wrong by. A triangular factor of R is
wrong by at most 16 m n eps times its norm. The map from one ellipsoid to
the next is monotone, so a larger one is sound.

Reference:
    - Xu and Sivaranjani, "ECLipsE: efficient compositional Lipschitz constant
      estimation for deep neural networks", NeurIPS 2024.
"""

import dataclasses
import math

import numpy as np

from deel.lip.certification._norms import matrix_norm

_EPS = float(np.finfo("float64").eps)

# More than all that is rounded in matrices of usual sizes.
_SLACK = 1e-9
_LARGEST = 4096

# Radii below this lose digits of what is much smaller, or vanish.
SMALLEST_RADIUS = 1e-200

# Of the radius.
_MOST_ERROR = 1e-3

# By what the radius of a matrix may exceed the product of norms: a torus is
# larger than its image, and layers behind may gain that back.
MOST_EXCESS = 1.1

# Of `T^-1/2 M T^-1/2`, where T is any diagonal.
_MOST_EIGENVALUE = 1.9

# Matrices with more entries than this are not kept.
_MOST_ENTRIES = 2**24


@dataclasses.dataclass(frozen=True, eq=False)
class Ellipsoid:
    """Where the differences of a vector are, for inputs at the distance one.

    Attributes:
        radius: Float, the largest norm, not below that of R.
        matrix: Array `(values, directions)`, the matrix R; None for a ball.
        error: Float, the norm of what R may be wrong by.
        start: The `Ellipsoid` that the steps start from.
        steps: Tuple of pairs, of the name of a method and its arguments.
    """

    radius: float
    matrix: np.ndarray | None = None
    error: float = 0.0
    start: "Ellipsoid | None" = None
    steps: tuple = ()

    def _behind(self, after, name, *arguments):
        """What a method returns, with the steps that led to it."""
        if after.matrix is None:
            return after
        start = self if self.start is None else self.start
        steps = (*self.steps, (name, arguments))
        return dataclasses.replace(after, start=start, steps=steps)

    @classmethod
    def made(cls, radius, matrix, error):
        """The ellipsoid of a matrix; a ball where that is inexact, or larger.

        Args:
            radius: Float, a norm that is known not to be exceeded.
            matrix: Array `(values, directions)`.
            error: Float, the norm of what it may be wrong by.
        """
        found = matrix_norm(matrix)[0] + error
        is_exact = error <= _MOST_ERROR * found
        if not is_exact or not found <= MOST_EXCESS * radius:
            return cls(min(radius, found))
        # Not less than that of the matrix, which activations divide by.
        return cls(found, matrix, error)

    def image(self, rows):
        """Images of R under a matrix, and by how much each row may be wrong.

        Args:
            rows: Array `(outputs, values)`, the matrix.

        Returns:
            Pair of arrays, `(outputs, directions)` and `(outputs,)`; None where
            it is a ball.
        """
        if self.matrix is None:
            return None
        return image_of(self.matrix, self.error, rows)[:2]

    def through_matrix(self, kernel, norm):
        """The ellipsoid behind a matrix.

        Args:
            kernel: Array `(inputs, outputs)`.
            norm: Float, a bound of its norm.
        """
        radius = self.radius * norm
        if not SMALLEST_RADIUS < radius < 1 / SMALLEST_RADIUS:
            return Ellipsoid(radius)
        if self.matrix is None:
            if kernel.size > _MOST_ENTRIES:
                return Ellipsoid(radius)
            after = Ellipsoid(radius, self.radius * kernel.T)
        else:
            within, _, error = image_of(self.matrix, self.error, kernel.T)
            after = Ellipsoid.made(radius, within, error)
        return self._behind(after, "through_matrix", kernel, norm)

    def through_factors(self, factors):
        """The ellipsoid behind a product with a factor for each value."""
        largest = float(np.max(np.abs(factors)))
        if self.matrix is None:
            return Ellipsoid(self.radius * largest)
        if np.all(factors == 1.0):
            return self
        within = factors[:, None] * self.matrix * (1 + _SLACK)
        error = largest * self.error * (1 + _SLACK)
        after = Ellipsoid(matrix_norm(within)[0] + error, within, error)
        return self._behind(after, "through_factors", factors)

    def through_slopes(self, slope=1.0, roots=None):
        """The ellipsoid behind an activation with slopes from 0 to `slope`.

        Args:
            slope: Float.
            roots: Array `(values,)` of positive numbers, the roots of the
                diagonal T of [Chain]; None for the radius.
        """
        if roots is not None:
            return self._through_diagonal(slope, roots)
        radius = self.radius * slope
        if self.matrix is None or not 0 < self.radius < np.inf:
            return Ellipsoid(radius)
        if len(self.matrix) > _LARGEST:
            return Ellipsoid(radius)
        # The radius has the error of R, twice of which is that of R R^T.
        unit = self.matrix / self.radius
        error = 2 * self.error / self.radius
        grown = radius * (1 + excess(unit.shape) + error)
        after = Ellipsoid(radius, grown * behind_slopes(unit))
        return self._behind(after, "through_slopes", slope)

    def _through_diagonal(self, slope, roots):
        if self.matrix is None:
            return Ellipsoid(self.radius * slope)
        roots = roots[:, None]
        unit = self.matrix / roots
        norm = matrix_norm(unit)[0]
        # Larger where it has to be, and where a proof would be ill-conditioned.
        grown = max(1.0, norm / math.sqrt(_MOST_EIGENVALUE))
        unit = unit / grown
        slack = excess(unit.shape) / (2 - _MOST_EIGENVALUE)
        factor = slope * grown * (1 + slack)
        matrix = factor * roots * behind_slopes(unit)
        error = slope * self.error * (1 + _SLACK)
        return Ellipsoid(matrix_norm(matrix)[0] + error, matrix, error)

    def flattened(self):
        """As of `Spectrum`: of an image, no more than the radius is known."""
        return Ellipsoid(self.radius)

    def largest(self, doublings):
        """As of `Spectrum`."""
        return Ellipsoid(self.radius)

    def framed(self, lengths):
        """As of `Spectrum`."""
        return Ellipsoid(self.radius)

    def mean(self, norm):
        """As of `Spectrum`."""
        return Ellipsoid(self.radius * norm)


def excess(shape):
    """By how much R may be wrong behind an activation, in relative terms."""
    return _SLACK + 32 * max(shape) ** 2 * _EPS


def behind_slopes(unit):
    """`(2 I - U U*)^-1/2`, up to a rotation; see [Chain].

    Args:
        unit: Array `(..., values, directions)`, U, of a norm below the root of
            two, real or complex.

    Returns:
        Array `(..., values, values)`.
    """
    gram = unit @ np.conj(np.swapaxes(unit, -1, -2))
    lower = np.linalg.cholesky(2 * np.eye(gram.shape[-1]) - gram)
    return np.conj(np.swapaxes(np.linalg.inv(lower), -1, -2))


def image_of(rows, error, matrix):
    """Rows of R behind a matrix, what each may be wrong by, and all of them."""
    terms = len(rows) + 2
    lost = terms * _EPS * np.linalg.norm(rows) + error
    lost = lost * np.linalg.norm(matrix, axis=1)
    return matrix @ rows, lost, float(np.linalg.norm(lost))


def behind_some_slopes(rows, error, count):
    """R behind an activation that is linear, but for the last values.

    Args:
        rows: Array `(values, directions)`.
        error: Float, what it may be wrong by.
        count: Integer, how many values have slopes from 0 to 1.
    """
    if not count:
        return rows, error
    linear, changing = rows[: len(rows) - count], rows[len(rows) - count :]
    norm = matrix_norm(changing)[0]
    if norm == 0:
        return rows, error
    unit = changing / norm
    factor = (1 + excess(unit.shape)) * behind_slopes(unit)
    mixed = (linear @ unit.T) @ factor
    terms = 4 * (rows.shape[1] + count + 16)
    sizes = np.linalg.norm(linear) * np.linalg.norm(factor) * math.sqrt(count)
    error += terms * _EPS * sizes
    zeros = np.zeros_like(changing)
    rows = np.block([[linear, mixed], [zeros, norm * factor]])
    return shortened(rows, float(error))


def shortened(rows, error):
    """R with no more directions than values, where it has many more."""
    values, directions = rows.shape
    if not values or directions <= 2 * values:
        return rows, error
    error += 16 * values * directions * _EPS * float(np.linalg.norm(rows))
    return np.linalg.qr(rows.T, mode="r").T, error
