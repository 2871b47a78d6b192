"""How far a recurrence moves its states, and what its steps round.

Note [Bounds of a recurrence]

Let `h_t = f(h_{t-1} W + x_t U + b)` for t = 1 ... T, where f is 1-Lipschitz; a
larger constant of f is a factor of both kernels. Two sequences from the same
state differ by e_t at each step, and their states by d_t. Of the bounds that
follow the least counts, since each of them holds.

By norms: with `u = ||U||` and `w = ||W||`, d_t is at most `u ||e_t|| + w
||d_{t-1}||` in norm. So d_T is at most u times the sum of all
`w^(T-t) ||e_t||`, which by Cauchy and Schwarz is `u sqrt(1 + w^2 + ... +
w^(2 T - 2)) ||e||` or less. The norms of all states are at most u times those
of a triangular matrix of powers of w and the vector of all ||e_t||. Its norm is
at most the sum of its first column (Young), and that of a triangle of ones
times the largest power. Where it is small, its norm is computed.

Jointly: for any s > 0 let m be the norm of the matrix of `U / s` above W. It
maps `[s e_t, d_{t-1}]`, so `||d_t||^2 <= m^2 (s^2 ||e_t||^2 + ||d_{t-1}||^2)`.
Hence `||d_T||^2` is at most `s^2` times the sum of all `m^(2 (T - t + 1))
||e_t||^2`: the last state is `s max(m, m^T)`-Lipschitz, and all of them are
`s sqrt(m^2 + m^4 + ... + m^(2 T))`. This is where kernels help each other: what
the inputs write, the state forgets. A good s is searched, and m proven for it.

If T is not known, all of it holds with an infinite T, where that is finite.

Note [Errors of a recurrence]

Let each step be computed with an error of at most `p n + q`, where n is the
norm of what it takes, an input and a state, and let states of sequences of norm
r be at most `G r + z_t`. The error e_t of the state is multiplied by w in the
next step and gets a new part: `e_t <= w e_{t-1} + p (r + G r + z_{t-1} +
e_{t-1}) + q`, for what is computed starts from the computed state. Both sides
are linear in r, and so are the errors.
"""

import math

import numpy as np

from deel.lip.certification._norms import matrix_norm
from deel.lip.certification._norms import slack
from deel.lip.certification._rounding import Computed

# Sums of more powers than these are bounded by their number, and matrices of
# them by their columns.
_MOST_POWERS = 10**5
_MOST_ROWS = 256

# How many numbers s are tried at once, and how often, nearer to the best one
# each time; once for larger matrices.
_GRID = 12
_ROUNDS = 9
_MOST_UNITS = 512

# Of larger kernels no square is computed.
_LARGEST = 1e100


def state_bounds(kernel, recurrent, steps, scale=None):
    """Bounds of the last state and of all states, see the first note.

    Args:
        kernel: Array `(channels, units)`, U.
        recurrent: Array `(units, units)`, W.
        steps: Integer, or None where it is not known.
        scale: Float, a number s that is worth a try; None if there is none.

    Returns:
        Pair of floats, infinity where there is no bound.
    """
    u, w = matrix_norm(kernel)[0], matrix_norm(recurrent)[0]
    if u == 0:
        return 0.0, 0.0
    steps = math.inf if steps is None else steps
    with np.errstate(over="ignore"):
        found = [_by_norms(u, w, steps)]
        scales = [] if scale is None else [scale]
        for objective in (0, 1):
            scales.append(_searched(kernel, recurrent, u, steps, objective))
        for s in scales:
            joint = np.concatenate([kernel / s, recurrent])
            found.append(_jointly(s, matrix_norm(joint)[0], steps))
        last, every = np.min(found, axis=0) * (1 + 1e-9)
    return float(last), float(every)


def _by_norms(u, w, steps):
    last = u * math.sqrt(_sum_of_powers(w * w, steps))
    every = _sum_of_powers(w, steps)
    if not math.isfinite(every) or math.isinf(steps):
        return last, u * every
    # Magnitudes below those of a matrix of ones, times the largest power; see
    # `deel.lip.layers.recurrent`.
    ones = 0.5 / math.sin(math.pi / (4 * steps + 2))
    every = min(every, ones * _power(w, steps - 1))
    if steps <= _MOST_ROWS:
        distances = np.subtract.outer(np.arange(steps), np.arange(steps))
        powers = np.tril(float(w) ** np.maximum(distances, 0))
        every = min(every, matrix_norm(powers)[0])
    return last, u * every


def _jointly(s, m, steps):
    largest = m if m <= 1 else _power(m, steps)
    return s * largest, s * m * math.sqrt(_sum_of_powers(m * m, steps))


def _power(q, steps):
    """`max(1, q)^steps`; infinity where it is nearly too large for a float."""
    if q <= 1:
        return 1.0
    return float(q) ** steps if steps * math.log(q) < 300 else math.inf


def _sum_of_powers(q, steps):
    """Upper bound of `1 + q + ... + q^(steps - 1)`."""
    endless = 1 / (1 - q) if q < 1 else math.inf
    largest = _power(q, steps)
    if steps > _MOST_POWERS or math.isinf(largest):
        return min(endless, steps * largest)
    return min(endless, float(np.sum(float(q) ** np.arange(steps))))


def _searched(kernel, recurrent, u, steps, objective):
    """A number s for which the joint bound is small; nothing is proven."""
    units = len(recurrent)
    if np.max(np.abs(recurrent)) > _LARGEST:
        return u
    inputs = (kernel / u).T @ (kernel / u)
    states = recurrent.T @ recurrent
    rounding = 1 + 2 * slack(len(kernel) + units, units)

    def bounds(logs):
        factors = np.exp(2 * (math.log(u) - logs))[:, None, None]
        squares = np.linalg.eigvalsh(inputs * factors + states)[:, -1]
        norms = np.sqrt(np.maximum(squares, 0.0)) * rounding
        pairs = zip(np.exp(logs), norms, strict=True)
        return [_jointly(s, m, steps)[objective] for s, m in pairs]

    span = math.log(min(steps, 10**4)) / 2 + math.log(10)
    logs = math.log(u) + np.linspace(-math.log(4), span, _GRID)
    for _ in range(_ROUNDS if units <= _MOST_UNITS else 1):
        best, step = logs[int(np.argmin(bounds(logs)))], logs[1] - logs[0]
        logs = best + np.linspace(-step, step, _GRID)
    return math.exp(best)


class Recurrence:
    """The steps of a recurrence, what `Bound.rounding` takes.

    See [Errors of a recurrence].

    Args:
        step: Function from an `Arithmetic` to the `Computed` of one step, of
            an input and a state side by side.
        factor: Float, the constant of a step in the state alone.
        bounds: Pair of floats, those of the last state and of all states.
        steps: Integer, or None where it is not known.
        outputs: Pair of Booleans: whether all states are returned, or the last
            one; and whether the last one is returned besides.
    """

    def __init__(self, step, factor, bounds, steps, outputs):
        self.step = step
        self.factor = factor
        self.bounds = bounds
        self.steps = steps
        self.outputs = outputs

    def __call__(self, arithmetic):
        last, every = self.bounds
        returns_all, returns_state = self.outputs
        constant = every if returns_all else last
        if returns_state:
            constant = math.hypot(constant, last) * (1 + 1e-12)
        step = self.step(arithmetic)
        p, q = step.relative, step.absolute
        if self.steps is None or not math.isfinite(p + q):
            return Computed(constant, math.inf, math.inf, math.inf, 0.0)
        zero, relative, absolute = np.zeros((3, self.steps + 1))
        with np.errstate(over="ignore", invalid="ignore"):
            for t in range(1, self.steps + 1):
                passed = self.factor + p
                zero[t] = self.factor * zero[t - 1] + step.zero
                relative[t] = passed * relative[t - 1] + p * (1 + last)
                absolute[t] = passed * absolute[t - 1] + p * zero[t - 1] + q
            slope = 1 + last + relative[-1]
            room = step.reach - np.max(zero) - absolute[-1]
            reach = max(room, 0.0) / slope

        def returned(values):
            parts = list(values[1:] if returns_all else values[-1:])
            parts += [values[-1]] * returns_state
            # Sums of many parts round, too.
            return float(np.hypot.reduce(parts)) * (1 + 1e-9)

        return Computed(
            constant,
            returned(zero),
            returned(relative),
            returned(absolute),
            reach,
        )
