"""How well a detector separates two classes, whatever moves the samples.

Note [Pairs of a detector]

The area under the ROC curve is the share of the pairs of a positive and a
negative sample in which the positive one has the larger score; equal scores
count as half. Within the radius r, the score of a sample moves by at most
`L r`, and what floating point adds is counted as for classes, see [What is
certified]. A pair counts as certified where the least score of the positive
sample, among all points it may be moved to, is larger than the largest score of
the negative one. All other pairs count as lost, those with equal scores
included, so the share of the certified pairs is at most the area under any
attack.
"""

import dataclasses

import numpy as np

from deel.lip._validation import require_one_of
from deel.lip.certification._curves import draw_bracket
from deel.lip.certification._curves import radii_to_draw
from deel.lip.certification._data import check_single_score
from deel.lip.certification._data import checked_epsilons
from deel.lip.certification._data import checked_labels
from deel.lip.certification._data import require_labels
from deel.lip.certification._networks import ROUNDINGS
from deel.lip.certification._networks import Networks
from deel.lip.certification._scores import Ranges

_MOVED = ("both", "positive", "negative")


@dataclasses.dataclass(frozen=True, repr=False)
class DetectorCertificates:
    """Certified scores of a detector; what `certify_detector` returns.

    Attributes:
        ranges: How far each score can be from that of its sample, which
            `certified_auroc` reads.
        label: Integer array `(samples,)`: 1 for positive samples, 0 for others.
        lipschitz_constant: Float, the proven bound of the score; with images of
            several sizes, the largest.
        arithmetic: String, what scores hold for: the argument `rounding` of
            `certify_detector`.
    """

    ranges: Ranges
    label: np.ndarray
    lipschitz_constant: float
    arithmetic: str = "exact"

    def __len__(self):
        return len(self.label)

    @property
    def score(self):
        """Array `(samples,)`: the scores of the samples, in float64.

        With `rounding="estimated"`, in float32.
        """
        return self.ranges.values[:, 0]

    @property
    def auroc(self):
        """The area under the ROC curve, a float; equal scores count as half."""
        positive, negative = self._by_class(self.score, self.score)
        below, upto = (
            np.searchsorted(np.sort(negative), positive, side)
            for side in ("left", "right")
        )
        return float(np.mean(below + upto)) / 2 / len(negative)

    def certified_auroc(self, epsilons, moved="both"):
        """What the area under the ROC curve is at least, within each radius.

        A lower bound under any attack that moves each sample by as much. Equal
        scores, and those that rounding could exchange, count as lost: at the
        radius 0 it is less than `auroc` by half the share of equal pairs, or
        more.

        Args:
            epsilons: Float or sequence of floats, zero or greater.
            moved: `"both"`, or `"positive"` or `"negative"` where samples of
                that class alone are moved.

        Returns:
            Array with a value for each radius.
        """
        require_one_of("moved", moved, _MOVED, ValueError)
        return np.array(
            [self._certified(e, moved) for e in checked_epsilons(epsilons)]
        )

    def _certified(self, epsilon, moved):
        least, largest = self._by_class(
            self.ranges.lower(0.0 if moved == "negative" else epsilon)[:, 0],
            self.ranges.upper(0.0 if moved == "positive" else epsilon)[:, 0],
        )
        won = np.searchsorted(np.sort(largest), least, "left")
        return float(np.mean(won)) / len(largest)

    def _by_class(self, positive, negative):
        """The first of positive samples, the second of others."""
        return positive[self.label == 1], negative[self.label == 0]

    def to_dict(self, epsilons=(0.1, 0.25, 0.5, 1.0), moved="both"):
        """Returns a summary as plain Python values, which `json` can write.

        Args:
            epsilons: Sequence of floats, the radii of the certified area.
            moved: See `certified_auroc`.
        """
        return {
            "samples": len(self),
            "positive": int(np.sum(self.label)),
            "arithmetic": self.arithmetic,
            "lipschitz_constant": float(self.lipschitz_constant),
            "largest_rounding": float(np.max(self.ranges.error)),
            "auroc": self.auroc,
            "moved": moved,
            "epsilons": [float(x) for x in epsilons],
            "certified_auroc": self.certified_auroc(epsilons, moved).tolist(),
        }

    def __repr__(self):
        summary = self.to_dict()
        pairs = zip(
            summary["epsilons"], summary["certified_auroc"], strict=True
        )
        return "\n".join(
            [
                f"Certificates of a detector, of {len(self)} samples, positive:"
                f" {summary['positive']}",
                f"  proven Lipschitz constant  {self.lipschitz_constant:.6g}",
                f"  certified                  {ROUNDINGS[self.arithmetic]}",
                f"  area under the ROC curve   {self.auroc:.4f}",
                *(
                    f"  certified within {epsilon:<10g}{area:.4f}"
                    for epsilon, area in pairs
                ),
            ]
        )

    def plot(self, axes=None, epsilons=None, attacked=None, moved="both"):
        """Draws the certified area under the ROC curve against the radius.

        Args:
            axes: Matplotlib axes; None makes a new figure.
            epsilons: Sequence of floats; None covers all radii.
            attacked: None, or the area under attack at each of the `epsilons`,
                which is drawn as an upper curve.
            moved: See `certified_auroc`.

        Returns:
            The axes.
        """
        positive, negative = self._by_class(self.score, self.score)
        lead = max(np.max(positive) - np.min(negative), 0.0)
        both = 2.0 if moved == "both" else 1.0
        slope = both * self.lipschitz_constant
        furthest = 1.1 * lead / slope if slope else 1.0
        epsilons = radii_to_draw(epsilons, attacked, furthest)
        certified = self.certified_auroc(epsilons, moved)
        return draw_bracket(
            epsilons, certified, attacked, axes, "area under the ROC curve"
        )


def certify_detector(
    model,
    x,
    y=None,
    batch_size=256,
    constants=None,
    verbose="auto",
    rounding="exact",
    method="chain",
    refine=False,
):
    """Certifies the scores of a detector: of anomalies, of one class, of fakes.

    A detector has a single score, larger for positive samples, and no threshold
    yet. How well it separates them is the area under its ROC curve, and this is
    what that is at least when samples are moved.

    Args:
        model: A built model with one input and one output `(batch, 1)`. The
            score before a sigmoid has the larger certificates.
        x: See `certify`.
        y: Labels of an array `x`: 1 for positive samples, those of which high
            scores are expected, such as anomalies, and 0 or -1 for the others.
            A `DistanceField` has high scores for its data: there, what is
            normal is positive.
        batch_size: See `certify`.
        constants: See `lipschitz_bound`.
        verbose: See `certify`.
        rounding: Whose scores are meant: `"exact"`, those of real numbers;
            `"float32"`, those of the network as it runs; `"estimated"`, those
            with their rounding estimated. See `certify`.
        method: See `lipschitz_bound`.
        refine: See `lipschitz_bound`.

    Returns:
        A `DetectorCertificates`.

    Raises:
        ValueError: As `certify`, and for a model with several scores, or data
            without labels or with one class only.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import certify_detector
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.set_weights([np.array([[3.0], [4.0]]), np.zeros(1)])
    >>> x = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    >>> found = certify_detector(model, x, [1, 0, 0])
    >>> [float(a) for a in found.certified_auroc([0.0, 0.5, 1.0])]
    [1.0, 0.5, 0.0]
    """
    check_single_score(model, "certify_detector", "A detector")
    networks = Networks(model, constants, rounding, method, refine)
    ranges, labels = zip(
        *networks.ranges(x, y, batch_size, verbose, _checked), strict=True
    )
    label = np.concatenate(labels)
    if len(np.unique(label)) < 2:
        raise ValueError(
            "The area under the ROC curve needs positive and negative samples. "
            f"Received: labels that are all {label[0]}"
        )
    return DetectorCertificates(
        ranges=Ranges.joined(ranges),
        label=label,
        lipschitz_constant=float(networks.score_constants[0]),
        arithmetic=rounding,
    )


def _checked(y):
    require_labels(y, "certify_detector(model, x, y)")
    return checked_labels(y, 1)


def certified_auroc(model, x, y=None, epsilons=(0.0,), moved="both", **kwargs):
    """What the area under the ROC curve is at least, within each radius.

    A lower bound under any attack; see `DetectorCertificates`.

    Args:
        model: See `certify_detector`.
        x: See `certify_detector`.
        y: See `certify_detector`.
        epsilons: Float or sequence of floats, zero or greater.
        moved: `"both"`, or `"positive"` or `"negative"` where samples of that
            class alone are moved.
        **kwargs: What else `certify_detector` takes.

    Returns:
        Array with a value for each radius.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import certified_auroc
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.set_weights([np.ones((1, 1)), np.zeros(1)])
    >>> x, y = np.array([[3.0], [2.0], [0.0]]), [1, 1, 0]
    >>> [float(a) for a in certified_auroc(model, x, y, [0.5, 1.2])]
    [1.0, 0.5]
    >>> [float(a) for a in certified_auroc(model, x, y, 1.2, "positive")]
    [1.0]
    """
    checked_epsilons(epsilons)
    require_one_of("moved", moved, _MOVED, ValueError)
    found = certify_detector(model, x, y, **kwargs)
    return found.certified_auroc(epsilons, moved)
