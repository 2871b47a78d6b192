"""Diagonals that make the chain of a network as tight as they can.

Note [Optimised diagonals]

The chain is sound for any diagonal T behind each activation. Here their
logarithms are optimised, by steps of Adam in float32, from the t of the chain
on. Nothing of that is proven, nor has to be: the chain is then followed with
the diagonals that were found, in float64, with all its slacks.

With `D = T^-1` and `Y = S^-1`, `S = 2 D - D M D`, a change of Y is
`-Y dS Y`. So a gradient G by Y is `H = -Y G Y` by S, `-D H D` by M, and
`2 diag(H) - 2 diag(H D M)` by the diagonal of D.

Reference:
    - Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015.
"""

import math

import numpy as np

from deel.lip.certification._chain import Ellipsoid

_STEPS = 100
_RATE = 0.2
_POWER = 16
_FIRST, _SECOND = 0.9, 0.99


def refined(ellipsoid, rows=None):
    """The ellipsoid behind the same steps, with better diagonals.

    Args:
        ellipsoid: `Ellipsoid`, or anything else, for which nothing is done.
        rows: Array `(outputs, values)` of which the mean norm of the images
            should be small; None for the norm of the ellipsoid.

    Returns:
        An `Ellipsoid`, which may be worse.
    """
    if not isinstance(ellipsoid, Ellipsoid):
        return ellipsoid or Ellipsoid(math.inf)
    if ellipsoid.start is None or (rows is not None and not np.any(rows)):
        return ellipsoid
    names = [name for name, _ in ellipsoid.steps]
    if "through_slopes" not in names:
        return ellipsoid
    roots = iter(_optimised(ellipsoid, rows))
    after = ellipsoid.start
    for name, arguments in ellipsoid.steps:
        if name == "through_slopes":
            arguments = (*arguments, next(roots))
        after = getattr(after, name)(*arguments)
    return after


def _optimised(ellipsoid, rows):
    """Roots of diagonals for each activation, the best that were found."""
    chain = _Chain(ellipsoid, rows)
    logarithms = chain.logarithms
    best, least = logarithms, math.inf
    first = [np.zeros_like(x) for x in logarithms]
    second = [np.zeros_like(x) for x in logarithms]
    rate = _RATE
    for step in range(1, _STEPS + 1):
        value, gradients = chain.value_and_gradients(logarithms)
        if not value < 1.5 * least:
            # Where the chain ends, or is about to: back, and slower.
            logarithms, rate = best, rate / 2
            first = [np.zeros_like(x) for x in first]
            continue
        if value < least:
            best, least = logarithms, value
        moved = []
        for i, gradient in enumerate(gradients):
            first[i] = _FIRST * first[i] + (1 - _FIRST) * gradient
            second[i] = _SECOND * second[i] + (1 - _SECOND) * gradient**2
            mean = first[i] / (1 - _FIRST**step)
            size = np.sqrt(second[i] / (1 - _SECOND**step)) + 1e-30
            decay = 0.5 + 0.5 * math.cos(math.pi * step / _STEPS)
            moved.append(logarithms[i] - rate * decay * mean / size)
        logarithms = moved
    return [
        scale * np.exp(x.astype("float64") / 2)
        for scale, x in zip(chain.scales, best, strict=True)
    ]


class _Chain:
    """Forward and backward pass of the chain, in float32.

    Each step is divided by how much it grows the radius, so that all numbers
    are near one.

    Args:
        ellipsoid: `Ellipsoid`.
        rows: As of `refined`.

    Attributes:
        scales: List of floats, the radii before each activation, to whose
            squares the diagonals are relative.
        logarithms: List of arrays, of the diagonals of the chain itself.
    """

    def __init__(self, ellipsoid, rows):
        self.scales, self.logarithms = [], []
        self._rows = rows
        if rows is not None:
            self._rows = (rows / np.linalg.norm(rows)).astype("float32")
        self._steps = []
        after = ellipsoid.start
        self._start = None
        for name, arguments in ellipsoid.steps:
            before, after = after, getattr(after, name)(*arguments)
            if name == "through_slopes":
                if self._start is None:
                    unit = before.matrix / before.radius
                    self._start = (unit @ unit.T).astype("float32")
                self.scales.append(before.radius)
                size = len(before.matrix)
                self.logarithms.append(np.zeros(size, "float32"))
                self._steps.append((name, None))
            elif self._start is not None:
                factor = arguments[0] * (before.radius / after.radius)
                self._steps.append((name, factor.T.astype("float32")))

    def value_and_gradients(self, logarithms):
        """The objective and its gradients; infinity where there is no chain."""
        entered = []
        known = iter(logarithms)
        y = self._start
        for name, factor in self._steps:
            if name == "through_slopes":
                d = np.exp(-next(known))
                product = d[:, None] * y * d
                try:
                    lower = np.linalg.cholesky(np.diag(2 * d) - product)
                except np.linalg.LinAlgError:
                    return math.inf, None
                inverse = np.linalg.inv(lower)
                entered.append((d, y))
                y = inverse.T @ inverse
            elif name == "through_factors":
                y = factor[:, None] * y * factor
            else:
                y = factor @ y @ factor.T
            entered.append(y)
        value, gradient = self._objective(y)
        if not math.isfinite(value):
            return math.inf, None
        gradients = []
        for name, factor in reversed(self._steps):
            y = entered.pop()
            if name == "through_slopes":
                d, m = entered.pop()
                inner = -y @ gradient @ y
                by_d = 2 * np.diag(inner) - 2 * np.sum(
                    inner * (d[:, None] * m).T, 1
                )
                gradients.insert(0, -d * by_d)
                gradient = -d[:, None] * inner * d
            elif name == "through_factors":
                gradient = factor[:, None] * gradient * factor
            else:
                gradient = factor.T @ gradient @ factor
        return value, gradients

    def _objective(self, y):
        if self._rows is None:
            # A power mean of the eigenvalues: the largest one has corners.
            values, vectors = np.linalg.eigh(y)
            if not values[-1] > 0:
                return math.inf, None
            shares = np.maximum(values / values[-1], 0.0)
            total = float(np.sum(shares**_POWER))
            weights = shares ** (_POWER - 1) * total ** (1 / _POWER - 1)
            value = float(values[-1]) * total ** (1 / _POWER)
            return value, (vectors * weights) @ vectors.T
        images = self._rows @ y
        norms = np.sqrt(np.sum(images * self._rows, axis=1))
        weights = 0.5 / (np.maximum(norms, 1e-30) * len(norms))
        gradient = (self._rows * weights[:, None]).T @ self._rows
        return float(np.mean(norms)), gradient
