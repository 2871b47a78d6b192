"""Scores of samples, and how far a point has to be to change their order."""

import dataclasses
import math

import numpy as np

from deel.lip._backend.variables import host
from deel.lip.certification._flow import joint_gain
from deel.lip.certification.bounds import images_of

_LARGEST_DISTANCE = float(np.finfo("float32").max)


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Outputs of some samples, and how far they can be at a distance.

    At a point at the distance r from sample i, up to `reach`, output j is
    within `error[i, j] + growth[j] r` of `values[i, j]`.

    Attributes:
        values: Array `(samples, outputs)`, float64.
        error: Array `(samples, outputs)`.
        growth: Array `(outputs,)`, or `(samples, outputs)`.
        reach: Float or array `(samples,)`; where it is zero, nothing is known
            of the sample itself.
    """

    values: np.ndarray
    error: np.ndarray
    growth: np.ndarray
    reach: float | np.ndarray

    @classmethod
    def joined(cls, parts):
        """The `Ranges` of all samples, from those of batches."""
        columns = [
            (
                part.values,
                part.error,
                np.broadcast_to(part.growth, part.values.shape),
                np.broadcast_to(part.reach, part.values.shape[:1]),
            )
            for part in parts
        ]
        return cls(*map(np.concatenate, zip(*columns, strict=True)))

    def width(self, radius):
        """How far each output is from `values` at most, infinite if unknown.

        Args:
            radius: Float, the distance.
        """
        width = self.error + self.growth * (radius * (1 + 1e-12))
        reach = np.reshape(self.reach, (-1, 1))
        width = np.where(
            (radius <= reach) & (reach > 0), width * (1 + 1e-12), np.inf
        )
        return np.nan_to_num(width, nan=np.inf, posinf=np.inf)

    def lower(self, radius):
        """What each output is at least, within a radius; see `width`."""
        # The sum itself is rounded.
        return np.nextafter(self.values - self.width(radius), -np.inf)

    def upper(self, radius):
        """What each output is at most, within a radius; see `width`."""
        return np.nextafter(self.values + self.width(radius), np.inf)


class Scores:
    """Scores of some samples, and the leads that a prediction stands on.

    Each class that is predicted, a member, leads over each other one. A single
    score leads over one that is always zero, or that one over it.

    Args:
        values: Array `(samples, classes)`.
        outcome: What is predicted, of `_outcomes`.
        seen: Array `(samples, classes)`, the scores that decide what is
            predicted; None for `values`.
    """

    def __init__(self, values, outcome, seen=None):
        self.is_single = values.shape[1] == 1
        values, seen = (
            _with_zero(values),
            _with_zero(values if seen is None else seen),
        )
        rows = np.arange(len(values))[:, None]
        self.members = outcome.members(seen)
        self.outcome = outcome
        self.leads = values[rows, self.members][..., None] - values[:, None]
        is_member = np.zeros(values.shape, bool)
        is_member[rows, self.members] = True
        self.leads[np.broadcast_to(is_member[:, None], self.leads.shape)] = (
            np.inf
        )
        # The difference of two scores is a product with (1, -1).
        self.root = 1.0 if self.is_single else math.sqrt(2) * (1 + 1e-12)

    @property
    def prediction(self):
        return self.outcome.prediction(self.members)

    @property
    def margin(self):
        return np.min(self.outcome.over_each(self.leads), axis=1)

    def radius(self, errors, slopes):
        """The distance up to which the prediction stays, zero if none.

        Args:
            errors: Array of the shape of `leads`, what is taken off each.
            slopes: Array of that shape, how fast each can change.
        """
        leads = self.leads - errors
        # Where nothing changes, no distance is too far; see the last note.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            radii = np.where(leads > 0, leads / slopes, 0.0)
        radii = np.nan_to_num(radii, nan=0.0, posinf=np.inf)
        radius = np.min(self.outcome.over_each(radii), axis=1)
        return np.minimum(radius * (1 - 1e-12), _LARGEST_DISTANCE)


def _with_zero(values):
    """A score of zero, and the only score."""
    if values.shape[1] > 1:
        return values
    return np.concatenate([np.zeros_like(values), values], axis=1)


@dataclasses.dataclass(frozen=True)
class Leads:
    """Leads of some samples, and what floating point makes of them.

    There is a row for each sample, or for each position of each sample. Errors
    are those of the leads, arrays of their shape.

    Attributes:
        scores: `Scores`, in float64.
        shape: Tuple, what the rows are: `(samples, positions...)`.
        own: Array, errors of float64.
        errors: Array, errors of float32 at the samples.
        growth: Array, errors of float32 for each unit of distance.
        reach: Array `(rows,)`, the distance up to which these hold.
    """

    scores: Scores
    shape: tuple
    own: np.ndarray
    errors: np.ndarray
    growth: np.ndarray
    reach: np.ndarray

    def radius(self, slopes):
        """Radii of the network of real numbers.

        Args:
            slopes: Array, how fast each lead can change.
        """
        return self.scores.radius(self.own, slopes)

    def float32_radius(self, slopes):
        """Radii of the network in float32; arguments as of `radius`."""
        radius = self.scores.radius(
            self.own + self.errors, slopes + self.growth
        )
        return np.minimum(radius, self.reach)

    def rounding(self, arithmetic):
        """What the margin of each row may be wrong by.

        Args:
            arithmetic: String, `"exact"` or `"float32"`.
        """
        errors = self.own
        if arithmetic == "float32":
            errors = errors + self.errors
        is_other = np.isfinite(self.scores.leads)
        return np.max(np.where(is_other, errors, 0.0), axis=(1, 2))


class LastLayer:
    """A last Dense layer without activation; see [What is certified].

    Args:
        layer: The layer.
        kernel: Its kernel, float64.
        flow: The `Flow` that enters it.
        spreads: List of what is known of the directions that it moves in.
    """

    def __init__(self, layer, kernel, flow, spreads):
        self.flow = flow
        self.terms = len(kernel) + (layer.bias is not None)
        columns = kernel.T
        bias = np.zeros(len(columns))
        if layer.bias is not None:
            bias = np.abs(host(layer.bias).astype("float64"))
        self.is_single = len(columns) == 1
        if self.is_single:
            columns = np.concatenate([np.zeros_like(columns), columns])
            bias = np.concatenate([np.zeros_like(bias), bias])
        self.columns = columns
        self._distances = _distances(columns) * (1 + 1e-12)
        self._leads = self._distances * joint_gain([flow]) * (1 + 1e-9)
        for within, lost in images_of(spreads, columns):
            pairs = _distances(within) * (1 + 1e-9) + lost[:, None] + lost
            self._leads = np.minimum(self._leads, pairs)
        self.largest_lead = float(np.max(self._leads))
        self._norms = np.linalg.norm(columns, axis=-1) * (1 + 1e-12)
        self._bias = bias

    def lead_constants(self, scores):
        """How fast the lead of a member over each class can change."""
        return self._leads[scores.members]

    def errors(self, entering, scores, arithmetic):
        """See `Network._lead_errors`.

        Args:
            entering: `Computed` of what enters the layer.
            scores: `Scores`.
            arithmetic: `Arithmetic`.
        """
        members = scores.members
        distances = self._distances[members]
        norms = self._norms[members][..., None] + self._norms
        bias = self._bias[members][..., None] + self._bias
        return self._errors(entering, distances, norms, bias, arithmetic)

    def score_errors(self, entering, arithmetic):
        """See `Network._score_errors`; arguments as of `errors`."""
        norms, bias = self._norms, self._bias
        if self.is_single:
            norms, bias = norms[1:], bias[1:]
        return self._errors(entering, norms, norms, bias, arithmetic)

    def _errors(self, entering, distances, norms, bias, arithmetic):
        """Errors of combinations of outputs.

        Args:
            entering: `Computed` of what enters the layer.
            distances: Array, the norm of the combined columns.
            norms: Array, the sum of the norms of these columns.
            bias: Array, the sum of the magnitudes of their biases.
            arithmetic: `Arithmetic`.
        """
        gamma = arithmetic.gamma(self.terms, is_product=True)
        tiny = 2 * arithmetic.smallest
        magnified = gamma * norms + 2 * tiny * math.sqrt(self.terms)
        lost = tiny * (distances * math.sqrt(self.terms) + 4 * self.terms + 4)
        # The axis of the samples is the first one.
        shape = (-1, *[1] * max(np.ndim(distances) - 1, 1))
        absolute = np.reshape(entering.absolute, shape)
        size = np.reshape(entering.zero, shape) + absolute
        return (
            distances * absolute + magnified * size + gamma * bias + lost,
            distances * entering.relative
            + magnified * (entering.constant + entering.relative),
        )


def _distances(rows):
    """The distance of each row from each other."""
    return np.sqrt([np.sum((rows - one) ** 2, axis=-1) for one in rows])
