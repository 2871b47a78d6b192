"""Radii within which a prediction provably does not change.

Note [Radius of a sample]

Let f_j be the largest score and f_i another one. Where the last layer is a
Dense layer without activation, f = g(x) W + b, the lead f_j - f_i changes by at
most `L ||w_j - w_i||` for each unit that x moves, with L the bound of g and w
the columns of W. Otherwise it changes by at most sqrt(2) times the bound of f,
since it is the product of f with a vector of norm sqrt(2). It stays positive
up to the lead divided by that slope, and the smallest of these radii over all i
is the certificate. The first rule is never worse than the second, because
`||w_j - w_i|| <= sqrt(2) ||W||`. A single score keeps its sign up to its
magnitude divided by the bound. Of several classes that are predicted together,
each has such leads: see `deel.lip.certification._outcomes`.

Note [What is certified]

A certificate is a statement on a function, and there are two. Let s be the
scores of the real network, the one of real numbers whose weights are those of
the model, and e how far scores computed in float64 can be from it, which is
proven (`deel.lip.certification._rounding`).

`rounding="exact"`: the real network keeps its prediction within
`(lead - e) / slope`, with the lead of the scores in float64.

`rounding="float32"`: so does the network as it runs in float32, in any batch,
on any backend, with any order of summation. Its lead at a point at the distance
r is wrong by at most `a + b r`, so the radius is
`(lead - e - a) / (slope + b)`: rounding counts once, since the lead at the
sample is that of float64. For a last Dense layer without activation, errors of
what enters it move a lead by at most `||w_j - w_i||` times their size, and
each of its own sums is wrong by at most `gamma_n (||w|| ||h|| + |b|)`.

`rounding="estimated"`: what was certified before there were proofs of rounding.
Scores are those of float32, the lead is lowered by what rounding usually does,
at both ends, and nothing is proven of that.

Distances are at most the largest number of float32: no input is further away.
"""

import dataclasses

import numpy as np

from deel.lip.certification._curves import draw_bracket
from deel.lip.certification._curves import radii_to_draw
from deel.lip.certification._data import check_classifier
from deel.lip.certification._data import checked_epsilons
from deel.lip.certification._data import checked_labels
from deel.lip.certification._data import share_beyond
from deel.lip.certification._networks import ROUNDINGS
from deel.lip.certification._networks import Networks
from deel.lip.certification._networks import joined
from deel.lip.certification._outcomes import outcome_of
from deel.lip.certification._summaries import constant_lines
from deel.lip.certification._summaries import float32_line
from deel.lip.certification._summaries import float32_summary
from deel.lip.certification._summaries import range_lines


@dataclasses.dataclass(frozen=True, repr=False)
class Certificates:
    """Certified predictions of some samples; what `certify` returns.

    Attributes:
        radius: Array `(samples,)`, the Euclidean distance, in the units of the
            inputs, within which the prediction provably stays. Zero where
            nothing can be proven.
        prediction: Integer array `(samples,)`, the class. With a single score,
            1 where it is positive and 0 elsewhere; with `groups`, the number
            of the group. With `top_k`, an array `(samples, top_k)` of classes,
            the best first: their set stays, not their order.
        margin: Array `(samples,)`, the lead of the best score over the second;
            with a single score, its magnitude. With `top_k`, that of the last
            score of the set over the next one; with `groups`, of the best
            score over the best of the other groups.
        label: Integer array `(samples,)`, with `groups` of the groups of the
            labels; or None if no labels were given.
        lipschitz_constant: Float, the proven bound of the vector of all
            scores; with images of several sizes, the largest, as of the others.
        rounding: Array `(samples,)`, what the margin may be wrong by.
        arithmetic: String, what the radii hold for: the argument `rounding` of
            `certify`.
        float32_radius: Array `(samples,)`, the radii of `rounding="float32"`,
            zero where that proves nothing; None with `rounding="estimated"`.
        score_constant: Float, the proven bound of the score that changes
            fastest by itself, which `FrobeniusDense` with disjoint neurons
            promises; None if it is not known.
        lead_constant: Float, the constant that counts: the proven bound of the
            lead of one score over another, the largest of all pairs. With a
            single score, that of the score. None if it is not known.
        local: Boolean, whether each sample has constants of its own besides.
        input_range: Pair of floats, the least and the largest value of the
            samples, which tells the units of radii; None if it is not known.
    """

    radius: np.ndarray
    prediction: np.ndarray
    margin: np.ndarray
    label: np.ndarray | None
    lipschitz_constant: float
    rounding: np.ndarray
    arithmetic: str = "exact"
    float32_radius: np.ndarray | None = None
    score_constant: float | None = None
    lead_constant: float | None = None
    local: bool = False
    input_range: tuple[float, float] | None = None

    def __len__(self):
        return len(self.radius)

    @property
    def correct(self):
        """Boolean array: whether a prediction is the label, or has it."""
        if self.label is None:
            raise ValueError(
                "Accuracy needs labels. Expected `certify(model, x, y)`. "
                "Received: y=None"
            )
        if self.prediction.ndim == 2:
            return np.any(self.prediction == self.label[:, None], axis=1)
        return self.prediction == self.label

    @property
    def accuracy(self):
        """Share of the samples whose prediction is the label, a float."""
        return float(np.mean(self.correct))

    def certified_accuracy(self, epsilons):
        """Share of the samples that are right at any point within a radius.

        Args:
            epsilons: Float or sequence of floats, zero or greater.

        Returns:
            Array with a value for each radius; for radius 0, the accuracy.
        """
        return share_beyond(epsilons, self.correct, self.radius)

    def to_dict(self, epsilons=(0.1, 0.25, 0.5, 1.0)):
        """Returns a summary as plain Python values, which `json` can write.

        Args:
            epsilons: Sequence of floats, the radii of the certified accuracy.
        """
        summary = {
            "samples": len(self),
            "arithmetic": self.arithmetic,
            "lipschitz_constant": float(self.lipschitz_constant),
            "score_constant": self.score_constant,
            "lead_constant": self.lead_constant,
            "local": self.local,
            "input_range": self.input_range and list(self.input_range),
            "mean_radius": float(np.mean(self.radius)),
            "median_radius": float(np.median(self.radius)),
            "largest_rounding": float(np.max(self.rounding)),
        }
        if self.prediction.ndim == 2:
            summary["top_k"] = self.prediction.shape[1]
        if self.float32_radius is not None:
            summary |= float32_summary(self.radius, self.float32_radius)
        if self.label is not None:
            certified = self.certified_accuracy(epsilons)
            summary["accuracy"] = self.accuracy
            summary["epsilons"] = [float(x) for x in epsilons]
            summary["certified_accuracy"] = certified.tolist()
        return summary

    def __repr__(self):
        summary = self.to_dict()
        sets = ""
        if "top_k" in summary:
            sets = f", of the set of the {summary['top_k']} best classes"
        lines = [
            f"Certificates of {summary['samples']} samples{sets}",
            *constant_lines(
                self.lipschitz_constant, self.score_constant, self.lead_constant
            ),
            *(["  near each sample           at most that"] * self.local),
            *range_lines(self.input_range),
            f"  mean radius                {summary['mean_radius']:.4g}",
            f"  median radius              {summary['median_radius']:.4g}",
            f"  certified                  {ROUNDINGS[self.arithmetic]}",
        ]
        if self.arithmetic == "exact" and self.float32_radius is not None:
            lines.append(float32_line(summary))
        if self.label is not None:
            lines.append(f"  accuracy                   {self.accuracy:.4f}")
            pairs = zip(
                summary["epsilons"], summary["certified_accuracy"], strict=True
            )
            lines += [
                f"  certified within {epsilon:<10g}{share:.4f}"
                for epsilon, share in pairs
            ]
        return "\n".join(lines)

    def plot(self, axes=None, epsilons=None, attacked=None):
        """Draws the certified accuracy as a function of the radius.

        Args:
            axes: Matplotlib axes; None makes a new figure.
            epsilons: Sequence of floats; None covers all radii.
            attacked: None, or the accuracy under attack at each of the
                `epsilons`, which is drawn as an upper curve.

        Returns:
            The axes.
        """
        furthest = 1.1 * np.max(self.radius)
        epsilons = radii_to_draw(epsilons, attacked, furthest)
        certified = self.certified_accuracy(epsilons)
        return draw_bracket(epsilons, certified, attacked, axes)


def certify(
    model,
    x,
    y=None,
    batch_size=256,
    constants=None,
    verbose="auto",
    rounding="exact",
    method="chain",
    top_k=None,
    groups=None,
    refine=False,
    local=False,
):
    """Certifies the predictions of a classifier.

    For each sample, a radius within which no point has another prediction. It
    follows from a proven bound of the network (`lipschitz_bound`), made from
    its weights as they are, and from scores that are computed in float64, with
    a proven bound of their own error. With a last Dense layer without
    activation, each pair of classes has its own constant, which is never worse
    than that of the whole network.

    What a radius is proven for is up to `rounding`:

    - `"exact"`: the network of real numbers with these weights. An attack that
      computes in float64 finds nothing within the radius. The summary says how
      many of the certificates hold in float32 as well.
    - `"float32"`: the network as it runs in float32, in batches of any size, on
      any backend, whatever order its sums are computed in. Rounding is counted
      in its worst case, which grows with the number of terms of each sum: deep
      and wide networks with small leads lose most of their certificates. On a
      device that rounds factors of products to fewer digits (TensorFloat-32),
      that is counted.
    - `"estimated"`: scores in float32, lowered by what rounding usually does.
      Nothing is proven of that part.

    Args:
        model: A built model with one input and one output `(batch, classes)`,
            or `(batch, 1)` for two classes. The outputs should be scores: after
            a softmax, certificates hold and are small. The sign of a single
            score decides, so a sigmoid at the end is refused.
        x: Array of samples, or a `tf.data.Dataset`, `keras.utils.PyDataset` or
            another iterable of batches `(x, y)` or `x`.
        y: Labels of an array `x`: class numbers, or one-hot. With one score, 0
            or -1 and 1.
        batch_size: Integer, samples in a batch, for an array.
        constants: See `lipschitz_bound`.
        verbose: `"auto"`, 0 or 1: whether a progress bar is shown. "auto" does
            for many samples.
        rounding: `"exact"`, `"float32"` or `"estimated"`, see above.
        method: See `lipschitz_bound`.
        top_k: Integer, or None: certifies that the set of so many best classes
            stays. A prediction is right where it has the label.
        groups: List of lists of class numbers, each class once, or None:
            certifies that the best class stays in its group. A prediction is
            right where it is the group of the label.
        refine: See `lipschitz_bound`.
        local: Boolean, whether each sample has constants of its own: near it,
            some ReLU of the Dense layers at the end are constant, others
            linear. For small networks: it takes some products of matrices for
            each sample.

    Returns:
        A `Certificates`.

    Raises:
        ValueError: As `lipschitz_bound`; and for half precision, several
            inputs or outputs, empty data, labels out of range, samples or
            scores that are not finite, `top_k` or `groups` that do not fit the
            classes, a layer that cannot be copied by its config, scores of the
            model that are further from those of float64 than float32 can be,
            or `local=True` for a network that does not end with Dense layers
            and ReLU.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import certify
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(2, use_bias=False)]
    ... )
    >>> model.set_weights([np.eye(2)])
    >>> certificates = certify(model, np.array([[3.0, 1.0]]), [0])
    >>> [round(float(r), 3) for r in certificates.radius]
    [1.414]
    """
    check_classifier(model, "certify")
    networks = Networks(model, constants, rounding, method, refine, local)
    classes = model.output_shape[-1]
    outcome = outcome_of(top_k, groups, classes)
    parts = [
        networks.of(x_batch).certify(x_batch, y_batch, outcome)
        for x_batch, y_batch in networks.batches(
            x,
            y,
            batch_size,
            verbose,
            lambda labels: checked_labels(labels, classes),
        )
    ]
    return Certificates(
        **joined(parts),
        lipschitz_constant=networks.constant,
        score_constant=networks.score_constant,
        lead_constant=networks.lead_constant,
        arithmetic=rounding,
        local=bool(local),
        input_range=networks.input_range,
    )


def certified_accuracy(model, x, y=None, epsilons=(0.0,), **kwargs):
    """Share of the samples that are provably right within each radius.

    A lower bound of the accuracy under any attack.

    Args:
        model: See `certify`.
        x: See `certify`.
        y: See `certify`.
        epsilons: Float or sequence of floats, zero or greater.
        **kwargs: What else `certify` takes.

    Returns:
        Array with a value for each radius; for radius 0, the accuracy.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import certified_accuracy
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(2, use_bias=False)]
    ... )
    >>> model.set_weights([np.eye(2)])
    >>> x, y = np.array([[3.0, 1.0], [0.0, 1.0]]), np.array([0, 1])
    >>> [float(a) for a in certified_accuracy(model, x, y, [0.5, 1.0])]
    [1.0, 0.5]
    """
    checked_epsilons(epsilons)
    return certify(model, x, y, **kwargs).certified_accuracy(epsilons)
