"""The Wasserstein distance of two sets of samples, from below.

Note [Duality]

The Wasserstein-1 distance of two distributions is the largest
`(E f(x) - E f(y)) / L` of all functions f, with L the constant of f
(Kantorovich and Rubinstein). So any critic whose constant is proven gives a
lower bound, with means over the samples as they are: what is bounded is the
distance of the two sets, each sample with the same weight. The function is that
of real numbers, which has the constant; its values are computed in float64,
with a proven error.
"""

import dataclasses
import math

import numpy as np

from deel.lip.certification._data import check_single_score
from deel.lip.certification._networks import Networks


@dataclasses.dataclass(frozen=True, repr=False)
class WassersteinBound:
    """Proven lower bounds of a distance; what `wasserstein_distance` returns.

    Attributes:
        by_critic: Array `(critics,)`, the bound that each critic proves.
        lipschitz_constants: Array `(critics,)`, the proven constants.
        samples: Pair of integers, how many samples there are.
    """

    by_critic: np.ndarray
    lipschitz_constants: np.ndarray
    samples: tuple

    @property
    def distance(self):
        """The largest of all bounds, a float."""
        return float(np.max(self.by_critic))

    @property
    def spread(self):
        """By how much the bounds of the critics differ, a float.

        Critics that agree may all have missed the same: it proves nothing.
        """
        return float(np.max(self.by_critic) - np.min(self.by_critic))

    def to_dict(self):
        """Returns a summary as plain Python values, which `json` can write."""
        return {
            "samples": list(self.samples),
            "distance": self.distance,
            "spread": self.spread,
            "by_critic": self.by_critic.tolist(),
            "lipschitz_constants": self.lipschitz_constants.tolist(),
        }

    def __repr__(self):
        first, second = self.samples
        lines = [
            f"Wasserstein-1 distance of {first} and {second} samples",
            f"  proven to be at least      {self.distance:.6g}",
        ]
        if len(self.by_critic) > 1:
            lines.append(f"  spread over critics        {self.spread:.4g}")
        return "\n".join(lines)


def wasserstein_distance(
    critic,
    x,
    y,
    batch_size=256,
    constants=None,
    verbose="auto",
    method="chain",
    refine=False,
):
    """Proves how far two sets of samples are apart at least.

    For a critic that was trained with `HKR` or `KR` to have large scores for
    `x` and small ones for `y`. What it proves is the Wasserstein-1 distance,
    with the Euclidean distance between samples, of the two sets as they are,
    from below: the means of its scores differ by at most its constant times
    that distance. A critic that was trained on other samples of the same
    distributions proves it as well. That of the distributions themselves is
    another number, which sets of few samples in many dimensions are far from.

    Args:
        critic: A built model with one input and one output `(batch, 1)`, or a
            list of them, of which each proves a bound and the largest counts.
        x: Array of samples, or batches as of `certify`. With a list of critics
            it has to be one that can be read again.
        y: The same, of the other set.
        batch_size: See `certify`.
        constants: See `lipschitz_bound`.
        verbose: See `certify`.
        method: See `lipschitz_bound`.
        refine: See `lipschitz_bound`.

    Returns:
        A `WassersteinBound`.

    Raises:
        ValueError: As `certify`, and for a critic with several scores.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import wasserstein_distance
    >>> critic = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> critic.set_weights([np.array([[3.0], [4.0]]), np.zeros(1)])
    >>> x = np.array([[0.0, 0.0], [1.0, 1.0]])
    >>> found = wasserstein_distance(critic, x + [0.6, 0.8], x)
    >>> round(found.distance, 6)
    1.0

    Reference:
        - Villani, "Optimal transport: old and new", 2009, chapter 5.
    """
    critics = critic if isinstance(critic, (list, tuple)) else [critic]
    if not critics:
        raise ValueError(
            "Expected a critic, or a list of them. Received: an empty list"
        )
    found = []
    for one in critics:
        check_single_score(one, "wasserstein_distance", "A critic")
        networks = Networks(one, constants, "exact", method, refine)
        first, second = (
            _mean(networks, samples, batch_size, verbose) for samples in (x, y)
        )
        apart = max(first[0] - second[1], second[0] - first[1], 0.0)
        constant = float(networks.score_constants[0])
        found.append(
            (apart / constant * (1 - 1e-12) if apart else 0.0, constant)
        )
    bounds, of_critics = np.array(found).T
    return WassersteinBound(bounds, of_critics, (first[2], second[2]))


def _mean(networks, samples, batch_size, verbose):
    """Bounds of the mean score, from below and above, and the number of it."""
    lower, upper = [], []
    for ranges, _ in networks.ranges(
        samples, None, batch_size, verbose, lambda labels: None
    ):
        lower += ranges.lower(0.0)[:, 0].tolist()
        upper += ranges.upper(0.0)[:, 0].tolist()
    count = len(lower)
    # Sums that are right to the last digit, and one more.
    return (
        np.nextafter(math.fsum(lower) / count, -np.inf),
        np.nextafter(math.fsum(upper) / count, np.inf),
        count,
    )
