"""Sets of classes that have the true one, whatever moves the sample.

Note [Conformal sets]

Let f_k be the scores, and (X_1, Y_1), ..., (X_n, Y_n) samples for calibration
that are exchangeable with the sample (X, Y) to come: any order of all of them
is as likely as any other, as it is where they are drawn independently. Let t,
the threshold, be the m-th smallest of the scores `f_{Y_i}(X_i)` of the true
classes, with `m = floor((n + 1) alpha)`. Where the score f_Y(X) is below t, at
least n - m + 1 of the n + 1 scores are larger than it. That is so for m of the
n + 1 scores at most, equal ones or not: above the largest of those for which it
is so there are n - m + 1 others, and it is so for none of them. By symmetry,
it is so for (X, Y) with a probability of at most `m / (n + 1) <= alpha`. For
m = 0 there is no threshold: at least `1 / alpha - 1` samples are needed.

The robust set of a point x' has all k with `f_k(x') + L_k r >= t`, with L_k the
bound of that score by itself. If x' is within r of X, then
`f_Y(x') + L_Y r >= f_Y(X)`, so the set of x' has Y wherever `f_Y(X) >= t`: with
a probability of at least 1 - alpha, for all x' within r of X at once. So it
does not matter what moves the sample and what that knows.

The scores that are compared are those of the function that `rounding` names,
see [What is certified], at calibration and later. Of these, the threshold is
taken from what they are at least, and a class is in a set where what its score
is at most suffices. That adds classes to sets, and takes none away.

Papers put scores through a sigmoid, with a temperature and a bias, before they
compare them. That is increasing, and the same for all classes: it changes the
threshold with the scores, and no set.

Reference:
    - Vovk, Gammerman, Shafer, "Algorithmic learning in a random world", 2005.
    - Massena et al., "Efficient robust conformal prediction via
      Lipschitz-bounded networks", ICML 2025.
"""

import fractions
import hashlib
import math
import numbers

import numpy as np

from deel.lip._validation import nonnegative_float
from deel.lip.certification._data import check_model
from deel.lip.certification._data import checked_epsilons
from deel.lip.certification._data import checked_labels
from deel.lip.certification._data import require_labels
from deel.lip.certification._networks import ROUNDINGS
from deel.lip.certification._networks import Networks
from deel.lip.certification.coverage import CoverageBounds


class ConformalClassifier:
    """Predicts sets of classes that have the true one with a probability.

    The set of a sample has the true class with a probability of at least
    `1 - alpha`, also where the sample was moved by up to `radius` before, by
    whatever means: noise, or an attack that knows the network, the threshold
    and the label. The probability is that over the draw of the samples for
    calibration and of the one to come, which have to be exchangeable (drawn
    independently from one distribution, for instance), before anything is
    moved. It is no promise for each class, each sample or each draw of the
    calibration samples by itself. The network may be any one, but must not
    have seen the calibration samples in training.

    It follows from the bound of each score by itself (`lipschitz_bound`). What
    floating point adds is counted: sets can only become larger by it.

    Args:
        model: A built model with one input and one output `(batch, classes)`.
            The outputs should be scores: after a softmax, sets become large.
        alpha: Float between 0 and 1, how often the true class may be missing.
        radius: Float, the Euclidean distance that a sample may be moved by, in
            the units of the inputs. With 0, sets are ordinary conformal sets.
        constants: See `lipschitz_bound`.
        rounding: Whose scores are compared: `"exact"`, those of real numbers;
            `"float32"`, those of the network as it runs, in any order of
            summation, so that sets have whatever class is in a set of its
            scores; `"estimated"`, those with their rounding estimated, not
            proven. See `certify`.
        method: See `lipschitz_bound`.
        refine: See `lipschitz_bound`.

    Attributes:
        threshold: Float, the least score of a class in an ordinary set; None
            before `calibrate`.
        coverage: Float, what the probability is at least, `1 - alpha` or a
            little more; None before `calibrate`.

    Raises:
        ValueError: As `lipschitz_bound`; and for `alpha` out of range, a radius
            that is negative or not finite, or a model with a single score.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import ConformalClassifier
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(2, use_bias=False)]
    ... )
    >>> model.set_weights([np.eye(2)])
    >>> x = np.array([[3.0, 0.0], [2.0, 0.0], [0.0, 4.0], [0.0, 1.0]])
    >>> classifier = ConformalClassifier(model, alpha=0.2, radius=0.5)
    >>> classifier = classifier.calibrate(x, [0, 0, 1, 1])
    >>> round(classifier.threshold, 6)
    1.0
    >>> classifier.predict_sets(np.array([[2.0, 0.0], [2.0, 0.75]])).tolist()
    [[True, False], [True, True]]

    Reference:
        - Massena et al., "Efficient robust conformal prediction via
          Lipschitz-bounded networks", ICML 2025.
    """

    def __init__(
        self,
        model,
        alpha=0.1,
        radius=0.0,
        constants=None,
        rounding="exact",
        method="chain",
        refine=False,
    ):
        check_model(model, "ConformalClassifier")
        if model.output_shape[-1] == 1:
            raise ValueError(
                "Sets are of several classes. Expected an output "
                "`(batch, classes)`. Received: a model with a single score"
            )
        self.model = model
        self.alpha = _between("alpha", alpha)
        self.radius = _distance(radius)
        self.constants = constants
        self.rounding = rounding
        self.method = method
        self.refine = refine
        self._networks()
        self.threshold = None
        self.coverage = None
        self._calibrated_weights = None

    def _networks(self):
        """Anew for each use: the weights may be others."""
        return Networks(
            self.model,
            self.constants,
            self.rounding,
            self.method,
            self.refine,
        )

    def calibrate(self, x, y=None, batch_size=256, verbose="auto"):
        """Finds the threshold of the scores.

        Args:
            x: Samples that the network was not trained on, and that nobody has
                moved; see `certify`.
            y: See `certify`.
            batch_size: See `certify`.
            verbose: See `certify`.

        Returns:
            The classifier itself.

        Raises:
            ValueError: As `certify`; and if there are fewer samples than
                `1 / alpha - 1`, or no labels.
        """
        call = "calibrate(x, y)"
        scores = np.concatenate(
            [
                ranges.lower(0.0)[np.arange(len(labels)), labels]
                for ranges, labels in self._labelled(
                    x, y, batch_size, verbose, call
                )
            ]
        )
        # The decimal fraction that was meant, not the float next to it.
        alpha, count = fractions.Fraction(repr(self.alpha)), len(scores)
        rank = math.floor((count + 1) * alpha)
        if rank == 0:
            raise ValueError(
                f"With alpha={self.alpha}, sets need at least "
                f"{math.ceil(1 / alpha) - 1} samples for calibration. "
                f"Received: {count} samples"
            )
        self.threshold = float(np.sort(scores)[rank - 1])
        self.coverage = float(1 - fractions.Fraction(rank, count + 1))
        self._calibrated_weights = _digest(self.model)
        return self

    def predict_sets(self, x, radius=None, batch_size=256, verbose="auto"):
        """Returns the set of each sample.

        Args:
            x: Samples, moved or not; see `certify`. Labels of a data set are
                not looked at.
            radius: Float, or None for that of the classifier. What is promised
                holds for all radii at once.
            batch_size: See `certify`.
            verbose: See `certify`.

        Returns:
            Boolean array `(samples, classes)`. A set may be empty.

        Raises:
            ValueError: As `certify`; and before `calibrate`, or if the weights
                have changed since.
        """
        radius = self.radius if radius is None else _distance(radius)
        self._require_calibrated()
        sets = [
            ranges.upper(radius) >= self.threshold
            for ranges, _ in self._networks().ranges(
                x, None, batch_size, verbose, lambda labels: None
            )
        ]
        return np.concatenate(sets)

    def coverage_bounds(
        self,
        x,
        y=None,
        epsilons=(0.0,),
        confidence=0.95,
        batch_size=256,
        verbose="auto",
    ):
        """How often these sets have the true class under attack.

        Robust sets keep their promise up to their radius. This tells of any
        radius, and of ordinary sets: how often the true class is in the set of
        every point within a radius, at least, and how often in that of any
        point there, at most. Whatever moves the samples, the coverage is
        between the two.

        It is about the classifier as it was calibrated, and about samples that
        are drawn independently of each other and of those for calibration. The
        sets are those of all classes k with `f_k(x) + L_k radius >= threshold`,
        of scores in the arithmetic of `rounding`; those of `predict_sets` can
        have more classes, by rounding, and so only a larger coverage.

        Args:
            x: Samples that were seen neither in training nor by `calibrate`;
                see `certify`.
            y: See `certify`.
            epsilons: Float or sequence of floats, how far samples are moved.
            confidence: Float between 0 and 1, with which all bounds hold
                together, over the draw of these samples.
            batch_size: See `certify`.
            verbose: See `certify`.

        Returns:
            A `CoverageBounds`.

        Raises:
            ValueError: As `predict_sets`; and for data without labels.
        """
        self._require_calibrated()
        epsilons = checked_epsilons(epsilons)
        confidence = _between("confidence", confidence)
        call = "coverage_bounds(x, y)"
        certain = np.zeros(len(epsilons), "int64")
        possible = np.zeros(len(epsilons), "int64")
        count = 0
        for ranges, labels in self._labelled(x, y, batch_size, verbose, call):
            own = np.arange(len(labels)), labels
            growth = np.broadcast_to(ranges.growth, ranges.values.shape)[own]
            added = growth * self.radius
            for index, epsilon in enumerate(epsilons):
                least = ranges.lower(epsilon)[own] + added * (1 - 1e-12)
                most = ranges.upper(epsilon)[own] + added * (1 + 1e-12)
                # These sums are rounded, too; what is unknown is possible.
                least = np.nextafter(least, -np.inf)
                most = np.nextafter(most, np.inf)
                certain[index] += np.sum(least >= self.threshold)
                possible[index] += np.sum(~(most < self.threshold))
            count += len(labels)
        return CoverageBounds.of_counts(
            certain,
            possible,
            count,
            epsilons=epsilons,
            confidence=confidence,
            radius=self.radius,
            arithmetic=self.rounding,
        )

    def _labelled(self, x, y, batch_size, verbose, call):
        """Iterator over `Ranges` and class numbers of batches."""

        def checked(labels):
            require_labels(labels, call)
            return checked_labels(labels, self.model.output_shape[-1])

        return self._networks().ranges(x, y, batch_size, verbose, checked)

    def _require_calibrated(self):
        if self.threshold is None:
            raise ValueError(
                "Sets need a threshold. Expected `calibrate(x, y)` before. "
                "Received: threshold=None"
            )
        if _digest(self.model) != self._calibrated_weights:
            raise ValueError(
                "The threshold is that of the weights at calibration. Expected "
                "`calibrate(x, y)` after they have changed. Received: a model "
                "with other weights"
            )

    def __repr__(self):
        text = (
            f"ConformalClassifier of model '{self.model.name}'\n"
            f"  alpha                      {self.alpha:g}\n"
            f"  radius                     {self.radius:g}\n"
            f"  scores                     {ROUNDINGS[self.rounding]}\n"
        )
        if self.threshold is None:
            return f"{text}  not calibrated"
        return (
            f"{text}"
            f"  threshold                  {self.threshold:.6g}\n"
            f"  coverage at least          {self.coverage:.4f}"
        )


def _between(name, value):
    """Returns `value` as a float if it is between 0 and 1."""
    if not isinstance(value, numbers.Real) or not 0 < value < 1:
        raise ValueError(
            f"Argument `{name}` must be a number between 0 and 1, and neither. "
            f"Received: {name}={value}"
        )
    return float(value)


def _distance(value):
    """Returns a radius as a float."""
    value = nonnegative_float("radius", value)
    if math.isinf(value):
        raise ValueError(
            f"Argument `radius` must be finite. Received: radius={value}"
        )
    return value


def _digest(model):
    """What tells the weights of a model from others."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.digest()
