"""Accuracy and robustness of Lipschitz networks, as Keras metrics.

A score that is L-Lipschitz keeps its sign within a distance of its magnitude
divided by L. The metrics of provable robustness count such certificates on the
samples they are given, from the network's constant and without looking at the
network. `BinaryAccuracy` is what they say of the sample itself.
"""

import math

import keras
from keras import ops

from deel.lip._labels import aligned
from deel.lip._labels import lead
from deel.lip._register import register
from deel.lip._validation import nonnegative_float
from deel.lip._validation import positive_float
from deel.lip._validation import require_one_of

__all__ = [
    "BinaryAccuracy",
    "BinaryProvableAvgRobustness",
    "BinaryProvableRobustAccuracy",
    "CategoricalProvableAvgRobustness",
    "CategoricalProvableRobustAccuracy",
]


def __dir__():
    return __all__


_REDUCTIONS = {
    "auto": ops.mean,
    "sum_over_batch_size": ops.mean,
    "mean": ops.mean,
    "sum": ops.sum,
    "none": lambda values: values,
    None: lambda values: values,
}


def _aligned_column(y_true, y_pred):
    """`aligned`, where there is one score for each sample."""
    y_true, y_pred = aligned(y_true, y_pred)
    if y_pred.shape[-1] != 1:
        raise ValueError(
            "Binary metrics need one score for each sample. "
            f"Received: y_pred.shape={y_pred.shape}"
        )
    return y_true, y_pred


def _is_right(y_true, y_pred):
    """1 for each sample whose score has the sign of its label, 0 elsewhere."""
    y_true, y_pred = _aligned_column(y_true, y_pred)
    is_right = ops.equal(y_true > 0, y_pred > 0)
    return ops.squeeze(ops.cast(is_right, y_pred.dtype), axis=-1)


@register("BinaryAccuracy")
class BinaryAccuracy(keras.metrics.MeanMetricWrapper):
    """Share of the samples whose score has the sign of their label.

    For networks with a single score, whose sign is the class, such as those
    that `HKR` trains. Labels are 0 or -1, and 1, as a column or flat. Keras'
    own `"accuracy"` compares scores with 0.5, as if they were probabilities,
    and never takes a label -1 for right.

    A score of zero counts for the class 0 or -1, as in
    `deel.lip.certification.certify`, so the value is the certified accuracy at
    radius 0.

    Args:
        name: String.
        dtype: As for `keras.metrics.Metric`.

    Example:

    >>> from deel.lip.metrics import BinaryAccuracy
    >>> metric = BinaryAccuracy()
    >>> metric.update_state([[1], [1], [0]], [[2.0], [0.1], [-0.3]])
    >>> float(metric.result())
    1.0
    >>> metric.update_state([1, 1, -1], [[-2.0], [-0.1], [0.3]])
    >>> float(metric.result())
    0.5
    """

    def __init__(self, name="binary_accuracy", dtype=None):
        super().__init__(fn=_is_right, name=name, dtype=dtype)
        self._direction = "up"

    def get_config(self):
        return {"name": self.name, "dtype": self.dtype}


class _ProvableMetric(keras.metrics.Mean):
    """Base: a mean over samples that can also be called as a function.

    In `compile(metrics=[...])` it accumulates over an epoch, as every metric.
    Called on labels and predictions it returns their value alone and leaves
    the accumulated state untouched, so it also serves as a loss to evaluate.
    """

    def __init__(self, lip_const, certificate_factor, reduction, name):
        require_one_of("reduction", reduction, _REDUCTIONS)
        super().__init__(name=name)
        self.lip_const = positive_float("lip_const", lip_const)
        self.certificate_factor = certificate_factor * self.lip_const
        self.reduction = reduction

    def _values(self, y_true, y_pred):
        """Value of each sample, a tensor `(batch_size,)`."""
        raise NotImplementedError

    def update_state(self, y_true, y_pred, sample_weight=None):
        values = self._values(y_true, y_pred)
        return super().update_state(values, sample_weight)

    def __call__(self, y_true, y_pred, sample_weight=None):
        values = self._values(y_true, y_pred)
        if sample_weight is None:
            return _REDUCTIONS[self.reduction](values)
        weights = ops.reshape(ops.cast(sample_weight, values.dtype), (-1,))
        if self.reduction in ("sum", "none", None):
            return _REDUCTIONS[self.reduction](values * weights)
        return ops.sum(values * weights) / ops.sum(weights)

    def get_config(self):
        return {
            "name": self.name,
            "lip_const": self.lip_const,
            "reduction": self.reduction,
        }


class _Categorical(_ProvableMetric):
    """Mixin: the lead of the true class over the best other one."""

    def __init__(self, lip_const, disjoint_neurons, reduction, name):
        factor = 2.0 if disjoint_neurons else math.sqrt(2.0)
        super().__init__(lip_const, factor, reduction, name)
        self.disjoint_neurons = disjoint_neurons

    def _certificate(self, y_true, y_pred):
        y_true, y_pred = aligned(y_true, y_pred)
        return lead(y_true, y_pred) / self.certificate_factor

    def get_config(self):
        config = super().get_config()
        return {**config, "disjoint_neurons": self.disjoint_neurons}


class _Binary(_ProvableMetric):
    """Mixin: the score, with the sign of the label."""

    def __init__(self, lip_const, reduction, name):
        super().__init__(lip_const, 1.0, reduction, name)

    def _certificate(self, y_true, y_pred):
        y_true, y_pred = _aligned_column(y_true, y_pred)
        signed = ops.sign(y_true - 1e-3) * y_pred
        return ops.squeeze(signed, axis=-1) / self.certificate_factor


class _RobustAccuracy:
    """Mixin: whether the certificate exceeds `epsilon`."""

    def __init__(self, epsilon, *args):
        super().__init__(*args)
        self.epsilon = nonnegative_float("epsilon", float(epsilon))

    def _values(self, y_true, y_pred):
        certificate = self._certificate(y_true, y_pred)
        return ops.cast(certificate > self.epsilon, certificate.dtype)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


class _AvgRobustness:
    """Mixin: the certificate itself, 0 for errors unless asked otherwise."""

    def __init__(self, negative_robustness, *args):
        super().__init__(*args)
        self.negative_robustness = negative_robustness

    def _values(self, y_true, y_pred):
        certificate = self._certificate(y_true, y_pred)
        if self.negative_robustness:
            return certificate
        return ops.relu(certificate)

    def get_config(self):
        config = super().get_config()
        return {**config, "negative_robustness": self.negative_robustness}


@register("CategoricalProvableRobustAccuracy")
class CategoricalProvableRobustAccuracy(_RobustAccuracy, _Categorical):
    """Share of the samples that are right at any point within `epsilon`.

    Args:
        epsilon: Float, the Euclidean radius, in the units of the inputs.
        lip_const: Float, the Lipschitz constant of the network.
        disjoint_neurons: Boolean. True if each score is `lip_const`-Lipschitz
            by itself (`FrobeniusDense(disjoint_neurons=True)` at the end), so
            that the difference of two changes twice as fast. False if the
            vector of scores is, for which the factor is the root of two.
        reduction: Of a call on a single batch: `"sum_over_batch_size"`,
            `"sum"` or `"none"`.
        name: String.

    Example:

    >>> from deel.lip.metrics import CategoricalProvableRobustAccuracy
    >>> metric = CategoricalProvableRobustAccuracy(epsilon=0.25)
    >>> float(metric([[1, 0], [0, 1]], [[1.0, 0.0], [0.0, 0.1]]))
    0.5
    """

    def __init__(
        self,
        epsilon=36 / 255,
        lip_const=1.0,
        disjoint_neurons=True,
        reduction="sum_over_batch_size",
        name="CategoricalProvableRobustAccuracy",
    ):
        super().__init__(epsilon, lip_const, disjoint_neurons, reduction, name)


@register("BinaryProvableRobustAccuracy")
class BinaryProvableRobustAccuracy(_RobustAccuracy, _Binary):
    """Like `CategoricalProvableRobustAccuracy`, for a single score.

    Takes the same arguments, but for `disjoint_neurons`.
    """

    def __init__(
        self,
        epsilon=36 / 255,
        lip_const=1.0,
        reduction="sum_over_batch_size",
        name="BinaryProvableRobustAccuracy",
    ):
        super().__init__(epsilon, lip_const, reduction, name)


@register("CategoricalProvableAvgRobustness")
class CategoricalProvableAvgRobustness(_AvgRobustness, _Categorical):
    """Mean certified radius of the samples.

    Args:
        lip_const, disjoint_neurons, reduction, name: See
            `CategoricalProvableRobustAccuracy`.
        negative_robustness: Boolean. Whether errors count with a negative
            radius, instead of zero.
    """

    def __init__(
        self,
        lip_const=1.0,
        disjoint_neurons=True,
        negative_robustness=False,
        reduction="sum_over_batch_size",
        name="CategoricalProvableAvgRobustness",
    ):
        super().__init__(
            negative_robustness, lip_const, disjoint_neurons, reduction, name
        )


@register("BinaryProvableAvgRobustness")
class BinaryProvableAvgRobustness(_AvgRobustness, _Binary):
    """Like `CategoricalProvableAvgRobustness`, for a single score.

    Takes the same arguments, but for `disjoint_neurons`.
    """

    def __init__(
        self,
        lip_const=1.0,
        negative_robustness=False,
        reduction="sum_over_batch_size",
        name="BinaryProvableAvgRobustness",
    ):
        super().__init__(negative_robustness, lip_const, reduction, name)
