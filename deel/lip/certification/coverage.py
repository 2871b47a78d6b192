"""How often conformal sets have the true class under attack.

Note [Coverage under attack]

The threshold of a classifier that was calibrated is a number. Of samples that
are drawn independently, of each other and of those for calibration, count those
of which the true class is certainly in the set of each point within r, and
those of which it may be in the set of some such point. The first are at most as
many as those for which it is so, the second at least, so the shares of all
samples to come for which it is so lie beyond the bounds of [Clopper-Pearson]
with a probability of at most the error of each bound. With R radii there are 2
R bounds, and each gets 1 / (2 R) of what the confidence leaves. So all hold
together, with that confidence.
"""

import dataclasses

import numpy as np

from deel.lip.certification._binomial import largest_probability
from deel.lip.certification._binomial import least_probability
from deel.lip.certification._curves import BLUE
from deel.lip.certification._curves import GREY
from deel.lip.certification._curves import RED
from deel.lip.certification._curves import axes_or_new
from deel.lip.certification._networks import ROUNDINGS


@dataclasses.dataclass(frozen=True, repr=False)
class CoverageBounds:
    """How often conformal sets have the true class under attack.

    What `ConformalClassifier.coverage_bounds` returns. All bounds hold
    together, with the confidence.

    Attributes:
        epsilons: Array of the radii that samples are moved by.
        lower: Array, what the probability is at least that the true class is
            in the set of every point within each radius.
        upper: Array, what the probability is at most that it is in the set of
            some point within each radius.
        certain: Array, the share of the samples of which the first is proven.
        possible: Array, the share of the samples of which the second is not
            excluded.
        confidence: Float.
        samples: Integer.
        radius: Float, that of the classifier.
        arithmetic: String, the argument `rounding` of the classifier.
    """

    epsilons: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    certain: np.ndarray
    possible: np.ndarray
    confidence: float
    samples: int
    radius: float = 0.0
    arithmetic: str = "exact"

    @classmethod
    def of_counts(
        cls, certain, possible, samples, epsilons, confidence, **rest
    ):
        """Makes bounds of counts; see the note of this module.

        Args:
            certain: Integer array, for each radius.
            possible: Integer array, for each radius.
            samples: Integer.
            epsilons: Array of radii.
            confidence: Float between 0 and 1.
            **rest: Other attributes.
        """
        error = (1 - confidence) / (2 * len(epsilons))
        lower = [least_probability(int(n), samples, error) for n in certain]
        upper = [largest_probability(int(n), samples, error) for n in possible]
        return cls(
            epsilons=epsilons,
            certain=certain / samples,
            possible=possible / samples,
            confidence=confidence,
            samples=samples,
            lower=np.array(lower),
            upper=np.array(upper),
            **rest,
        )

    def to_dict(self):
        """Returns a summary as plain Python values, which `json` can write."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    def __repr__(self):
        rows = zip(self.epsilons, self.lower, self.upper, strict=True)
        return "\n".join(
            [
                f"Coverage of sets of radius {self.radius:g}, from "
                f"{self.samples} samples, with confidence {self.confidence:g}",
                f"  scores                     {ROUNDINGS[self.arithmetic]}",
                *(
                    f"  moved by {epsilon:<18g}{lower:.4f} to {upper:.4f}"
                    for epsilon, lower, upper in rows
                ),
            ]
        )

    def plot(self, axes=None, attacked=None):
        """Draws the bounds of the coverage as functions of the radius.

        Args:
            axes: Matplotlib axes; None makes a new figure.
            attacked: None, or the coverage under attack at each of the
                `epsilons`, which is drawn between them.

        Returns:
            The axes.
        """
        axes = axes_or_new(axes)
        label = f"proven, with confidence {self.confidence:g}"
        axes.fill_between(self.epsilons, self.lower, self.upper, color=GREY)
        axes.plot(self.epsilons, self.lower, color=BLUE, label=label)
        axes.plot(self.epsilons, self.upper, color=BLUE)
        if attacked is not None:
            axes.plot(self.epsilons, attacked, color=RED, label="under attack")
        axes.set(xlabel="Euclidean radius", ylabel="coverage", ylim=(0.0, 1.02))
        axes.margins(x=0.0)
        axes.grid(alpha=0.3)
        axes.legend()
        return axes
