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

Note [Rounding of the chain]

Sums of n products are wrong by n eps in relative terms, and Cholesky's factor
and its inverse by as little times the condition, which is two at most. Against
the smallest eigenvalue, t / 2, all of that is below `_SLACK` for n up to
`_LARGEST`. The map from one ellipsoid to the next is monotone, so a larger one
is sound.

Reference:
    - Xu and Sivaranjani, "ECLipsE: efficient compositional Lipschitz constant
      estimation for deep neural networks", NeurIPS 2024.
"""

import dataclasses

import numpy as np

from deel.lip.certification._norms import matrix_norm

_SLACK = 1e-9
_LARGEST = 4096

# Matrices with more entries than this are not kept.
_MOST_ENTRIES = 2**24


@dataclasses.dataclass(frozen=True, eq=False)
class Ellipsoid:
    """Where the differences of a vector are, for inputs at the distance one.

    Attributes:
        radius: Float, the largest norm.
        matrix: Array `(values, directions)`, the matrix R; None for a ball.
    """

    radius: float
    matrix: np.ndarray | None = None

    def through_matrix(self, kernel, norm):
        """The ellipsoid behind a matrix.

        Args:
            kernel: Array `(inputs, outputs)`.
            norm: Float, a bound of its norm.
        """
        if self.matrix is None:
            if kernel.size > _MOST_ENTRIES:
                return Ellipsoid(self.radius * norm)
            return Ellipsoid(self.radius * norm, self.radius * kernel.T)
        within = (kernel.T @ self.matrix) * (1 + _SLACK)
        # Both hold; what is measured may be the larger one by its slack.
        radius = min(matrix_norm(within)[0], self.radius * norm)
        return Ellipsoid(radius, within)

    def through_factors(self, factors):
        """The ellipsoid behind a product with a positive factor each."""
        if self.matrix is None:
            return Ellipsoid(self.radius * float(np.max(factors)))
        if np.all(factors == 1.0):
            return self
        within = factors[:, None] * self.matrix * (1 + _SLACK)
        return Ellipsoid(matrix_norm(within)[0], within)

    def through_slopes(self, slope=1.0):
        """The ellipsoid behind an activation with slopes from 0 to `slope`."""
        radius = self.radius * slope
        if self.matrix is None or not 0 < self.radius < np.inf:
            return Ellipsoid(radius)
        if len(self.matrix) > _LARGEST:
            return Ellipsoid(radius)
        unit = self.matrix / self.radius
        gram = unit @ unit.T
        lower = np.linalg.cholesky(2 * np.eye(len(gram)) - gram)
        inverse = np.linalg.inv(lower)
        return Ellipsoid(radius, radius * (1 + _SLACK) * inverse.T)
