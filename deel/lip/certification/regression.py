"""How far the outputs of a regression can move, and what its error is then.

Note [Intervals of outputs]

Within the radius r of a sample, output j of a network moves by at most `L_j r`,
with L_j the bound of that output by itself. What floating point adds is counted
as for classes, see [What is certified]: with `rounding="exact"`, the error of
the output in float64; with "float32", that of the network as it runs, at any
point of the ball, as well.

So the absolute error of an output is at most the distance of its label from the
end of the interval that is further away. Each sample may be moved by itself, so
the mean of these is a bound of the mean absolute error.
"""

import dataclasses

import numpy as np
from keras import ops

from deel.lip._validation import nonnegative_float
from deel.lip.certification._curves import draw_bracket
from deel.lip.certification._curves import radii_to_draw
from deel.lip.certification._data import check_model
from deel.lip.certification._data import checked_epsilons
from deel.lip.certification._networks import ROUNDINGS
from deel.lip.certification._networks import Networks
from deel.lip.certification._scores import Ranges


@dataclasses.dataclass(frozen=True, repr=False)
class RegressionCertificates:
    """Certified outputs of some samples; what `certify_regression` returns.

    Attributes:
        ranges: How far each output can be from what is predicted, which
            `interval` reads.
        label: Array `(samples, outputs)`, or None if no labels were given.
        lipschitz_constant: Float, the proven bound of the vector of all
            outputs; with images of several sizes, the largest, as of the next.
        output_constants: Array `(outputs,)`, the proven bound of each output by
            itself.
        arithmetic: String, what intervals hold for: the argument `rounding` of
            `certify_regression`.
    """

    ranges: Ranges
    label: np.ndarray | None
    lipschitz_constant: float
    output_constants: np.ndarray
    arithmetic: str = "exact"

    def __len__(self):
        return len(self.prediction)

    @property
    def prediction(self):
        """Array `(samples, outputs)`: the outputs at the samples, in float64.

        With `rounding="estimated"`, in float32.
        """
        return self.ranges.values

    @property
    def rounding(self):
        """Array `(samples, outputs)`: what a prediction may be wrong by."""
        return self.ranges.error

    def interval(self, radius):
        """What the outputs are at least, and at most, within a radius.

        Args:
            radius: Float, zero or greater.

        Returns:
            Pair of arrays `(samples, outputs)`. Infinite where nothing can be
            proven.
        """
        radius = nonnegative_float("radius", radius)
        return self.ranges.lower(radius), self.ranges.upper(radius)

    @property
    def error(self):
        """Mean absolute error of the predictions, a float."""
        return float(np.mean(np.abs(self.prediction - self._known_label())))

    def certified_error(self, epsilons):
        """What the mean absolute error is at most, within each radius.

        An upper bound under any attack that moves each sample by as much.

        Args:
            epsilons: Float or sequence of floats, zero or greater.

        Returns:
            Array with a value for each radius.
        """
        label = self._known_label()
        return np.array(
            [
                # Its differences and their mean are rounded, too.
                np.mean(np.maximum(upper - label, label - lower)) * (1 + 1e-12)
                for lower, upper in map(
                    self.interval, checked_epsilons(epsilons)
                )
            ]
        )

    def _known_label(self):
        if self.label is None:
            raise ValueError(
                "Errors need labels. Expected "
                "`certify_regression(model, x, y)`. Received: y=None"
            )
        return self.label

    def to_dict(self, epsilons=(0.1, 0.25, 0.5, 1.0)):
        """Returns a summary as plain Python values, which `json` can write.

        Args:
            epsilons: Sequence of floats, the radii of widths and errors.
        """
        intervals = [self.interval(x) for x in checked_epsilons(epsilons)]
        summary = {
            "samples": len(self),
            "arithmetic": self.arithmetic,
            "lipschitz_constant": float(self.lipschitz_constant),
            "output_constants": self.output_constants.tolist(),
            "largest_rounding": float(np.max(self.rounding)),
            "epsilons": [float(x) for x in epsilons],
            "mean_width": [
                float(np.mean(upper - lower)) for lower, upper in intervals
            ],
        }
        if self.label is not None:
            summary["error"] = self.error
            summary["certified_error"] = self.certified_error(epsilons).tolist()
        return summary

    def __repr__(self):
        summary = self.to_dict()
        constants = summary["output_constants"]
        lines = [
            f"Certificates of {len(self)} samples, outputs: {len(constants)}",
            f"  proven Lipschitz constant  {self.lipschitz_constant:.6g}",
            f"  certified                  {ROUNDINGS[self.arithmetic]}",
        ]
        if len(constants) > 1:
            lines[1] += (
                f" of the vector of outputs\n{'':29}{max(constants):.6g} of "
                "the output that changes fastest"
            )
        if self.label is not None:
            lines.append(f"  mean absolute error        {self.error:.4g}")
        columns = {
            "width of an interval": summary["mean_width"],
            "certified error": summary.get("certified_error", ()),
        }
        for name, values in columns.items():
            pairs = zip(summary["epsilons"], values, strict=False)
            lines += [
                f"  {name} within {epsilon:<6g}{value:.4g}"
                for epsilon, value in pairs
            ]
        return "\n".join(lines)

    def plot(self, axes=None, epsilons=None, attacked=None):
        """Draws the certified error as a function of the radius.

        Args:
            axes: Matplotlib axes; None makes a new figure.
            epsilons: Sequence of floats; None goes up to where the error has
                grown by the spread of the labels.
            attacked: None, or the error under attack at each of the
                `epsilons`, which is drawn as a lower curve.

        Returns:
            The axes.
        """
        constant = np.max(self.output_constants)
        spread = np.std(self._known_label()) / constant if constant else 0.0
        epsilons = radii_to_draw(epsilons, attacked, spread or 1.0)
        return draw_bracket(
            epsilons,
            self.certified_error(epsilons),
            attacked,
            axes,
            "mean absolute error",
            at_most=True,
        )


def certify_regression(
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
    """Certifies the outputs of a regression.

    For each sample and each output, an interval that no point within a radius
    leaves. It follows from the proven bound of each output by itself
    (`lipschitz_bound`), made from the weights as they are, and from outputs in
    float64, with a proven bound of their own error. With labels, it says what
    the mean absolute error is at most.

    Args:
        model: A built model with one input and one output `(batch, outputs)`.
        x: See `certify`.
        y: Labels of an array `x`: an array `(samples, outputs)`; of a single
            output also `(samples,)`.
        batch_size: See `certify`.
        constants: See `lipschitz_bound`.
        verbose: See `certify`.
        rounding: Which function never leaves the intervals: `"exact"`, that of
            real numbers; `"float32"`, the network as it runs; `"estimated"`,
            that network with its rounding estimated. See `certify`.
        method: See `lipschitz_bound`.
        refine: See `lipschitz_bound`.

    Returns:
        A `RegressionCertificates`.

    Raises:
        ValueError: As `certify`, and for labels that are no finite numbers, or
            not as many as outputs.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import certify_regression
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.set_weights([np.array([[3.0], [4.0]]), np.zeros(1)])
    >>> found = certify_regression(model, np.array([[1.0, 1.0]]), [8.0])
    >>> lower, upper = found.interval(0.5)
    >>> [round(float(v), 3) for v in (lower[0, 0], upper[0, 0])]
    [4.5, 9.5]
    >>> [round(float(v), 3) for v in found.certified_error([0.0, 0.5])]
    [1.0, 3.5]
    """
    check_model(model, "certify_regression")
    networks = Networks(model, constants, rounding, method, refine)
    outputs = model.output_shape[-1]
    ranges, labels = zip(
        *networks.ranges(
            x, y, batch_size, verbose, lambda y: _checked(y, outputs)
        ),
        strict=True,
    )
    is_unknown = any(label is None for label in labels)
    return RegressionCertificates(
        ranges=Ranges.joined(ranges),
        label=None if is_unknown else np.concatenate(labels),
        lipschitz_constant=networks.constant,
        output_constants=networks.score_constants,
        arithmetic=rounding,
    )


def _checked(y, outputs):
    """Returns labels as a float64 array `(samples, outputs)`, or None."""
    if y is None:
        return None
    labels = np.asarray(y if isinstance(y, list) else ops.convert_to_numpy(y))
    if labels.ndim == 1 and outputs == 1:
        labels = labels[:, None]
    if labels.ndim != 2 or labels.shape[1] != outputs:
        raise ValueError(
            f"Labels need the shape (samples, {outputs}), that of the outputs. "
            f"Received: labels of shape {labels.shape}"
        )
    if labels.dtype.kind not in "biuf" or not np.all(np.isfinite(labels)):
        raise ValueError(
            "Labels must be finite numbers. Received: labels of dtype "
            f"{labels.dtype}, or NaN or infinite values among them"
        )
    return labels.astype("float64")
