"""How many pixels of an image an attack can spoil at once.

Note [Many pixels]

Each pixel p has a radius r_p, as a sample of a classifier has, see [Radius of a
sample]. An attack that is longer than some of them need not spoil all of these
pixels: what moves the scores of one is not left to move those of another.

Let the input move by d, and the scores by D_p at pixel p. The squares of
`||D_p||` add up to at most `(L ||d||)^2`, with L the bound of the map to all
scores. For another class to win at p, its lead m has to be made up for, so
`||D_p|| >= m / sqrt(2)`: at the least by `r_p = m / (sqrt(2) L)` with m the
smallest lead. Hence, for the set S of pixels whose prediction changed,

    sum over S of r_p^2 <= ||d||^2.

Where the last layer is Dense along the last axis, or a convolution with one
tap, without activation, pixel p depends on the vector h_p that enters there.
The lead of i over j changes by at most `||w_i - w_j|| ||dh_p||`, and the
squares of `||dh_p||` add up to at most `(L ||d||)^2` with L the bound of what
enters. So the same holds with `r_p = min over j of m_pj / (||w_i - w_j|| L)`.
One or the other rule holds for a set, and not the better one for each pixel.

The largest set that fits is that of the smallest radii: sorted, and summed up
until the budget is spent. Only pixels that are right can be lost, so what is
left of them is a lower bound of the accuracy under any attack of that length.

Rounding. `"exact"`: leads are those of real numbers, lowered by the proven
error of float64. `"float32"`: at a distance r, a lead is wrong by `a + b r`,
and r_p is `(m - a) / (s + b)` with the slope s, or less. A lead that is lost at
r <= e moved by `m - a - b r` at the least, which is `s (r_p - (b / s) (e -
r_p))` or more. So what pixel p pays for is `r_p - k (e - r_p)`, with k the
largest `b / s`.

Intersection over union of a class, that is hits over the union of what has the
label and what has the prediction. An attack lowers it by hits that it spoils,
and by pixels outside of the union whose prediction it makes that of the class.
Both pay by their radii; all else that may change makes it larger. For a number
of hits, the most others follow from what is left of the budget.
"""

import numpy as np

_EPS = float(np.finfo("float64").eps)


def most_spoiled(radii, epsilon, excess=0.0):
    """How many pixels an attack can spoil at most.

    Args:
        radii: Array of joint radii of a sample, sorted.
        epsilon: Float, the length of the attack.
        excess: Float, what rounding takes off for each unit of distance.
    """
    return int(np.sum(_costs(radii, epsilon, excess) <= 1.0))


def _costs(radii, epsilon, excess):
    """What it takes to spoil one, two, ... pixels, as shares of the budget."""
    if epsilon == 0:
        # There is no other point, whatever is proven.
        return np.zeros(0)
    # Shares, so that no square vanishes that counts.
    share = radii[: np.searchsorted(radii, epsilon, "right")] / epsilon
    with np.errstate(invalid="ignore"):
        paid = share - excess * (1.0 - share)
    squares = np.maximum(np.nan_to_num(paid, nan=0.0), 0.0) ** 2
    # Less than the sum itself may be wrong by; radii have digits to spare.
    return np.cumsum(squares) * (1 - (len(squares) + 8) * _EPS)


def least_iou(samples, epsilon):
    """The least intersection over union of a class, of all samples together.

    Args:
        samples: List of tuples, for each sample: the joint radii of the hits
            and of the pixels outside of the union, sorted; the size of the
            union; what rounding takes off; and whether the radii hold.
        epsilon: Float, the length of each attack.
    """
    choices = [_choices(*sample, epsilon) for sample in samples]
    ratio = np.inf
    while True:
        # The choice of each sample that lowers the ratio below `ratio` most;
        # each step is lower than the last one, until there is none.
        slope = min(ratio, 1.0)
        best = [np.argmin(hits - slope * union) for hits, union in choices]
        hits, union = (
            sum(int(part[i]) for part, i in zip(parts, best, strict=True))
            for parts in zip(*choices, strict=True)
        )
        if hits / union >= ratio:
            return ratio
        ratio = hits / union


def _choices(hits, others, union, excess, holds, epsilon):
    """Hits that are left, and the union, of each way to spend the budget."""
    if not holds:
        return np.zeros(1), np.array([union + len(others)])
    spent = np.concatenate([[0.0], _costs(hits, epsilon, excess)])
    spent = spent[spent <= 1.0]
    costs = _costs(others, epsilon, excess)
    more = np.searchsorted(costs, 1.0 - spent, "right")
    return len(hits) - np.arange(len(spent)), union + more
