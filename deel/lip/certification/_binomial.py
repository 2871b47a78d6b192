"""Bounds of a probability, from how often something happened.

Note [Clopper-Pearson]

Let something happen in c of n independent trials, each with the probability p.
Let q be the largest number for which c or more of n happen with a probability
of at most d, were q the probability of each. Then q exceeds p with a
probability of at most d, whatever p is (Clopper and Pearson, 1934): q > p needs
a c that is so large that it has at most that probability under p.

The probabilities are computed from logarithms, each wrong by some units in the
last place of log n!, or of log d where that is larger. Their sum is compared
with what is less than d by far more than that.
"""

import math

import numpy as np

_HALVINGS = 100


def least_probability(successes, trials, error):
    """A number that exceeds a probability only with the probability `error`.

    Args:
        successes: Integer, how often it happened.
        trials: Integer.
        error: Float, between 0 and 1.
    """
    if successes == 0:
        return 0.0
    counts = np.arange(successes, trials + 1)
    factorials = [math.lgamma(n + 1) for n in range(trials + 1)]
    factorials = np.array(factorials)
    ways = factorials[-1] - factorials[counts] - factorials[trials - counts]
    slack = 1e-14 * (factorials[-1] - math.log(error)) + 1e-9
    limit = math.log(error) - slack

    def is_below(probability):
        """Whether so many successes would be that unlikely."""
        logs = ways + counts * math.log(probability)
        logs += (trials - counts) * math.log1p(-probability)
        largest = np.max(logs)
        return largest + math.log(np.sum(np.exp(logs - largest))) <= limit

    below, above = 0.0, successes / trials
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        if is_below(middle):
            below = middle
        else:
            above = middle
    return below


def largest_probability(successes, trials, error):
    """A number that a probability exceeds only with the probability `error`.

    Args:
        successes: See `least_probability`.
        trials: See `least_probability`.
        error: See `least_probability`.
    """
    failures = least_probability(trials - successes, trials, error)
    return min(float(np.nextafter(1.0 - failures, 2.0)), 1.0)
