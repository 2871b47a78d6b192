"""Certified predictions of pixels."""

import dataclasses

import numpy as np

from deel.lip.certification._budgets import least_iou
from deel.lip.certification._budgets import most_spoiled
from deel.lip.certification._curves import draw_bracket
from deel.lip.certification._curves import draw_map
from deel.lip.certification._curves import radii_to_draw
from deel.lip.certification._data import IGNORED
from deel.lip.certification._data import checked_epsilons
from deel.lip.certification._networks import ROUNDINGS
from deel.lip.certification._summaries import constant_lines
from deel.lip.certification._summaries import float32_line
from deel.lip.certification._summaries import float32_summary
from deel.lip.certification._summaries import range_lines


@dataclasses.dataclass(frozen=True, repr=False)
class PixelCertificates:
    """Certified predictions of pixels; what `certify_pixels` returns.

    "Pixels" are positions of any kind: of images, series or volumes. Arrays
    have the shape `(samples, positions...)` if nothing else is said.

    Attributes:
        radius: Array, the Euclidean distance, in the units of the inputs,
            within which the prediction of a pixel provably stays. Zero where
            nothing can be proven.
        prediction: Integer array, the class. With a single score, 1 where it is
            positive and 0 elsewhere.
        margin: Array, the lead of the best score over the second; with a single
            score, its magnitude.
        label: Integer array, -1 where the label is ignored; None if no labels
            were given.
        lipschitz_constant: Float, the proven bound of all scores together.
        rounding: Array, what the margin may be wrong by.
        joint_radius: Array `(samples, rules, positions...)`, radii of which
            the squares add up, see `certified_accuracy`; usually of one rule,
            and then `radius` itself.
        joint_excess: Array `(samples, rules)`, by how much rounding lowers
            these for each unit of distance beyond them.
        reach: Array `(samples,)`, the distance up to which they hold.
        arithmetic: String, what is certified: the argument `rounding` of
            `certify_pixels`.
        float32_radius: Array, the radii of `rounding="float32"`, zero where
            that proves nothing.
        score_constant: Float, the proven bound of the score that changes
            fastest by itself.
        lead_constant: Float, the proven bound of the lead of one score over
            another at one pixel, the largest of all pairs.
        input_range: Pair of floats, the least and the largest value of the
            samples, which tells the units of radii; None if it is not known.
    """

    radius: np.ndarray
    prediction: np.ndarray
    margin: np.ndarray
    label: np.ndarray | None
    lipschitz_constant: float
    rounding: np.ndarray
    joint_radius: np.ndarray
    joint_excess: np.ndarray
    reach: np.ndarray
    arithmetic: str
    float32_radius: np.ndarray
    score_constant: float
    lead_constant: float
    input_range: tuple[float, float] | None = None

    def __len__(self):
        return len(self.radius)

    @property
    def counted(self):
        """Boolean array: whether a pixel has a label that counts."""
        if self.label is None:
            raise ValueError(
                "Accuracy needs labels. Expected `certify_pixels(model, x, y)`."
                " Received: y=None"
            )
        return self.label != IGNORED

    @property
    def correct(self):
        """Boolean array: whether a prediction is the label, which counts."""
        return self.counted & (self.prediction == self.label)

    @property
    def accuracy(self):
        """Share of the pixels that count whose prediction is the label."""
        return float(self.certified_accuracy(0.0)[0])

    def certified_accuracy(self, epsilons, jointly=True, by_sample=False):
        """Share of the pixels that are right whatever an attack does.

        A lower bound of the pixel accuracy if each sample is moved by up to a
        radius, in the way that is worst for it. Pixels whose label is ignored
        do not count.

        Args:
            epsilons: Float or sequence of floats, zero or greater.
            jointly: Boolean. False counts the pixels whose own radius is
                larger, as if each of them were attacked by itself: never more.
            by_sample: Boolean, whether each sample has a share of its own, NaN
                where no pixel counts. Otherwise it is that of all pixels.

        Returns:
            Array with a value for each radius, or `(epsilons, samples)`; for
            radius 0, the accuracy.
        """
        epsilons = checked_epsilons(epsilons)
        correct, counted = self.correct, self.counted
        left = np.empty((len(epsilons), len(self)))
        for i in range(len(self)):
            find = self._jointly_left if jointly else self._left
            left[:, i] = find(i, correct[i], epsilons)
        pixels = np.sum(counted.reshape(len(self), -1), axis=1)
        if by_sample:
            with np.errstate(invalid="ignore"):
                return left / pixels
        return np.sum(left, axis=1) / np.sum(pixels)

    def _left(self, index, correct, epsilons):
        """How many correct pixels of a sample keep their prediction."""
        radius = self.radius[index][correct]
        # There is no other point within the radius zero, proven or not.
        return np.array(
            [np.sum(radius > e) if e else len(radius) for e in epsilons]
        )

    def _jointly_left(self, index, correct, epsilons):
        """The same, of all of them under one attack."""
        left = self._left(index, correct, epsilons)
        total = np.sum(correct)
        rules = zip(
            self.joint_radius[index], self.joint_excess[index], strict=True
        )
        for radius, excess in rules:
            radii = np.sort(radius[correct])
            spoiled = [
                most_spoiled(radii, epsilon, excess)
                if epsilon <= self.reach[index]
                else total
                for epsilon in epsilons
            ]
            left = np.maximum(left, total - spoiled)
        return left

    def certified_iou(self, epsilons, by_class=False):
        """Intersection over union, whatever an attack does.

        A lower bound of the IoU of all samples together, if each is moved by up
        to a radius, in the way that is worst for the class. That of the mean is
        the mean of these bounds, of the classes that labels have.

        Args:
            epsilons: Float or sequence of floats, zero or greater.
            by_class: Boolean, whether each class has a value of its own, NaN
                where no label has it.

        Returns:
            Array with a value for each radius, or `(epsilons, classes)`; for
            radius 0, the IoU.
        """
        epsilons = checked_epsilons(epsilons)
        classes = 1 + int(np.max(self.label, where=self.counted, initial=0))
        found = np.full((len(epsilons), classes), np.nan)
        for number in np.unique(self.label[self.counted]):
            found[:, number] = [self._iou(number, e) for e in epsilons]
        return found if by_class else np.nanmean(found, axis=1)

    def _iou(self, number, epsilon):
        """Lower bound of the IoU of a class within a radius."""
        is_class = self.counted & (self.label == number)
        is_seen = self.counted & (self.prediction == number)
        hits, others = is_class & is_seen, self.counted & ~is_class & ~is_seen
        union = np.sum((is_class | is_seen).reshape(len(self), -1), axis=1)
        bounds = []
        for rule in range(self.joint_radius.shape[1]):
            samples = [
                (
                    np.sort(self.joint_radius[i, rule][hits[i]]),
                    np.sort(self.joint_radius[i, rule][others[i]]),
                    union[i],
                    self.joint_excess[i, rule],
                    epsilon <= self.reach[i],
                )
                for i in range(len(self))
            ]
            bounds.append(least_iou(samples, epsilon))
        return max(bounds)

    def to_dict(self, epsilons=(0.1, 0.25, 0.5, 1.0)):
        """Returns a summary as plain Python values, which `json` can write.

        Args:
            epsilons: Sequence of floats, the radii of the certified accuracy.
        """
        summary = {
            "samples": len(self),
            "positions": list(self.radius.shape[1:]),
            "arithmetic": self.arithmetic,
            "lipschitz_constant": float(self.lipschitz_constant),
            "score_constant": self.score_constant,
            "lead_constant": self.lead_constant,
            "input_range": self.input_range and list(self.input_range),
            "mean_radius": float(np.mean(self.radius)),
            "median_radius": float(np.median(self.radius)),
            "largest_rounding": float(np.max(self.rounding)),
            **float32_summary(self.radius, self.float32_radius),
        }
        if self.label is not None:
            summary["accuracy"] = self.accuracy
            summary["epsilons"] = [float(x) for x in epsilons]
            for name, jointly in (
                ("certified_accuracy", True),
                ("certified_by_pixel", False),
            ):
                shares = self.certified_accuracy(epsilons, jointly)
                summary[name] = shares.tolist()
            summary["mean_iou"] = float(self.certified_iou(0.0)[0])
            summary["certified_iou"] = self.certified_iou(epsilons).tolist()
        return summary

    def __repr__(self):
        summary = self.to_dict()
        positions = " x ".join(map(str, summary["positions"]))
        lines = [
            f"Certificates of {positions} pixels of {len(self)} samples",
            *constant_lines(
                self.lipschitz_constant, self.score_constant, self.lead_constant
            ),
            *range_lines(self.input_range),
            f"  mean radius                {summary['mean_radius']:.4g}",
            f"  median radius              {summary['median_radius']:.4g}",
            f"  certified                  {ROUNDINGS[self.arithmetic]}",
        ]
        if self.arithmetic == "exact":
            lines.append(float32_line(summary))
        if self.label is not None:
            lines += [
                f"  pixel accuracy             {self.accuracy:.4f}, "
                f"mean IoU {summary['mean_iou']:.4f}"
            ]
            rows = zip(
                summary["epsilons"],
                summary["certified_accuracy"],
                summary["certified_iou"],
                summary["certified_by_pixel"],
                strict=True,
            )
            lines += [
                f"  certified within {epsilon:<10g}{jointly:.4f}, "
                f"mean IoU {iou:.4f}, pixel by pixel {alone:.4f}"
                for epsilon, jointly, iou, alone in rows
            ]
        return "\n".join(lines)

    def plot(self, axes=None, epsilons=None, attacked=None):
        """Draws the certified pixel accuracy as a function of the radius.

        Args:
            axes: Matplotlib axes; None makes a new figure.
            epsilons: Sequence of floats; None goes on to where the pixels that
                are certified by themselves end.
            attacked: None, or the pixel accuracy under attack at each of the
                `epsilons`, which is drawn as an upper curve.

        Returns:
            The axes.
        """
        largest = np.max(self.radius, initial=0.0, where=self.correct)
        epsilons = radii_to_draw(epsilons, attacked, 1.1 * largest)
        certified = self.certified_accuracy(epsilons)
        alone = self.certified_accuracy(epsilons, jointly=False)
        axes = draw_bracket(
            epsilons, certified, attacked, axes, "pixel accuracy"
        )
        axes.plot(epsilons, alone, "--", color="0.4", label="pixel by pixel")
        axes.legend()
        return axes

    def plot_map(self, index=0, axes=None):
        """Draws the radius of each pixel of an image.

        Pixels whose prediction is wrong are red; those whose label is ignored
        are left out.

        Args:
            index: Integer, which of the samples.
            axes: Matplotlib axes; None makes a new figure.

        Returns:
            The axes.
        """
        count = len(self.radius)
        if not -count <= index < count:
            raise ValueError(
                f"Argument `index` must be that of one of {count} samples. "
                f"Received: index={index}"
            )
        radius = self.radius[index]
        if radius.ndim != 2:
            raise ValueError(
                "Maps are drawn of images. Expected positions of two axes. "
                f"Received: positions of shape {radius.shape}"
            )
        if self.label is None:
            return draw_map(radius, ax=axes)
        counted = self.counted[index]
        wrong = counted & ~self.correct[index]
        return draw_map(radius, wrong, counted & ~wrong, axes)
