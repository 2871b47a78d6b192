"""Hinge and Kantorovich-Rubinstein losses in one."""

import math
import warnings

from keras import ops

from deel.lip._backend.guarded_variable import known_or_tensor
from deel.lip._backend.replicas import summed_over_replicas
from deel.lip._backend.retraction import store
from deel.lip._labels import aligned
from deel.lip._labels import require_binary
from deel.lip._labels import signs
from deel.lip._register import register
from deel.lip.losses._base import LipschitzLoss
from deel.lip.losses._base import number_of_classes
from deel.lip.losses._base import other_scores
from deel.lip.losses._base import parameter
from deel.lip.losses._base import positive_parameter
from deel.lip.losses._base import true_score
from deel.lip.losses._hinges import HingeMargin
from deel.lip.losses._hinges import MulticlassHinge
from deel.lip.losses._kantorovich import KR
from deel.lip.losses._kantorovich import MulticlassKR


class HingeKR(LipschitzLoss):
    """Base of the losses `-KR + alpha * hinge`.

    Attributes:
        KRloss: The loss object of the KR term.
        hingeloss: The loss object of the hinge term.
        alpha: Variable, the weight of the hinge term.
        min_margin: Variable, the margin of the hinge term.
    """

    def __init__(self, alpha, kr, hinge, reduction, name):
        super().__init__(reduction, name)
        self.alpha = parameter("alpha", alpha)
        self.KRloss = kr
        self.hingeloss = hinge
        self.min_margin = hinge.min_margin
        self.multi_gpu = kr.multi_gpu

    def check_labels(self, y_true):
        # The KR term takes 1 for the positive class, the hinge what is above 0.
        # Labels that hold the weights of a whole batch are other numbers.
        if not self.multi_gpu:
            require_binary(y_true)

    def call(self, y_true, y_pred):
        kr = self.KRloss.call(y_true, y_pred)
        hinge = self.hingeloss.call(y_true, y_pred)
        alpha = known_or_tensor(self.alpha)
        # An infinite alpha stands for the hinge term alone.
        if isinstance(alpha, float):
            return alpha * hinge - kr if math.isfinite(alpha) else hinge
        is_finite = ops.isfinite(alpha)
        hinge_weight = ops.where(is_finite, alpha, 1.0)
        return hinge_weight * hinge - ops.cast(is_finite, kr.dtype) * kr


@register("HKR")
class HKR(HingeKR):
    """Hinge-regularised Kantorovich-Rubinstein loss, for two classes.

    `-KR + alpha * HingeMargin`. A large `alpha` favours accuracy, a large
    `min_margin` robustness.

    Labels are 0 or -1, and 1. Others are refused where they come as an array
    to a call of the loss or to `fit` of a model of this library; elsewhere, as
    in a `tf.data.Dataset`, they would have to be read in each step, and are not
    looked at. With several columns, the value is the mean of those of each; a
    warning says so of two, which may be one-hot labels for `MulticlassHKR`.

    Args:
        alpha: Float, zero or more, the weight of the hinge term. 0 leaves the
            KR term alone, `float("inf")` the hinge term alone.
        min_margin: Float, see `HingeMargin`.
        multi_gpu: Boolean, see `KR`.
        reduction, name: As for `keras.losses.Loss`.

    Raises:
        ValueError: If labels have another shape than scores, or if positive
            labels are not 1.

    Example:

    >>> from deel.lip.losses import HKR
    >>> round(float(HKR(alpha=10.0)([[1], [0]], [[0.25], [-2.0]])), 4)
    -1.0
    """

    _arguments = ("alpha", "min_margin", "multi_gpu")

    def __init__(
        self,
        alpha,
        min_margin=1.0,
        multi_gpu=False,
        reduction="sum_over_batch_size",
        name=None,
    ):
        hinge = HingeMargin(min_margin)
        super().__init__(alpha, KR(multi_gpu), hinge, reduction, name)

    def call(self, y_true, y_pred):
        y_pred = ops.convert_to_tensor(y_pred)
        if len(y_pred.shape) == 2 and y_pred.shape[-1] == 2:
            warnings.warn(
                "Each of two columns is a problem of its own for this loss. "
                "Expected one column, or `MulticlassHKR` if the labels are "
                f"one-hot. Received: y_pred.shape={tuple(y_pred.shape)}",
                UserWarning,
                stacklevel=2,
            )
        return super().call(y_true, y_pred)


@register("MulticlassHKR")
class MulticlassHKR(HingeKR):
    """Hinge-regularised Kantorovich-Rubinstein loss, for several classes.

    `-MulticlassKR + alpha * MulticlassHinge`, for one-hot labels and a network
    without activation at the end.

    Args:
        alpha, multi_gpu: See `HKR`.
        min_margin, soft_hinge_tau: See `MulticlassHinge`.
        reduction, name: As for `keras.losses.Loss`.
    """

    _arguments = ("alpha", "min_margin", "multi_gpu", "soft_hinge_tau")

    def __init__(
        self,
        alpha=10.0,
        min_margin=1.0,
        multi_gpu=False,
        reduction="sum_over_batch_size",
        name=None,
        soft_hinge_tau=0.0,
    ):
        hinge = MulticlassHinge(min_margin, soft_hinge_tau=soft_hinge_tau)
        super().__init__(alpha, MulticlassKR(multi_gpu), hinge, reduction, name)
        self.soft_hinge_tau = hinge.soft_hinge_tau


@register("MulticlassSoftHKR")
class MulticlassSoftHKR(LipschitzLoss):
    """HKR of the true class and of those that compete, at a set temperature.

    The other classes are weighed by a softmax F of `T * y_pred`, the true class
    by 1. The value is `a / alpha + b`, with the signed scores
    `a = -sum(F * sign * y_pred)` and the hinge
    `b = sum(F * relu(min_margin / 2 - sign * y_pred))`.

    The temperature follows the scores: `T = temperature * min_margin / m`, with
    m a moving mean of their magnitude, at least `min_margin`, so that the
    softmax does not harden as the scores grow. Each call of the loss moves m,
    in evaluation too. On JAX the models of `deel.lip.model` carry it through
    their compiled steps; in stock models m keeps its initial value there, from
    which each batch finds its own temperature.

    Divided by `1 + 1 / alpha`, the value is `(1 - w) * a + w * b` with
    `w = alpha / (1 + alpha)`.

    Args:
        alpha: Float greater than zero, the weight of the hinge.
            `float("inf")` leaves the hinge term alone.
        min_margin: Float greater than zero, see `HingeMargin`.
        alpha_mean: Float in [0, 1], the momentum of m.
        temperature: Float greater than zero.
        reduction, name: As for `keras.losses.Loss`.

    Example:

    >>> from deel.lip.losses import MulticlassSoftHKR
    >>> loss = MulticlassSoftHKR(alpha=10.0)
    >>> round(float(loss([[1, 0, 0]], [[2.0, 0.0, 0.0]])), 4)
    0.3
    """

    _arguments = ("alpha", "min_margin", "alpha_mean", "temperature")

    def __init__(
        self,
        alpha=10.0,
        min_margin=1.0,
        alpha_mean=0.99,
        temperature=1.0,
        reduction="sum_over_batch_size",
        name=None,
    ):
        super().__init__(reduction, name)
        if alpha == 0:
            raise ValueError(
                "Argument `alpha` must be greater than zero, as it divides. "
                f"Received: alpha={alpha}"
            )
        self.alpha = parameter("alpha", alpha)
        self.min_margin = positive_parameter("min_margin", min_margin)
        self.temperature = positive_parameter("temperature", temperature)
        if not 0 <= alpha_mean <= 1:
            raise ValueError(
                "Argument `alpha_mean` must be in [0, 1]. "
                f"Received: alpha_mean={alpha_mean}"
            )
        self.alpha_mean = float(alpha_mean)
        self.m = parameter("m", min_margin)

    def call(self, y_true, y_pred):
        y_true, y_pred = aligned(y_true, y_pred)
        number_of_classes(y_pred)
        is_true = y_true > 0
        inverse_temperature = ops.cast(self._follow(y_pred), y_pred.dtype)
        weights = ops.softmax(
            other_scores(is_true, inverse_temperature * y_pred), axis=-1
        )
        weights = ops.where(is_true, ops.ones_like(weights), weights)
        signed = signs(y_true) * y_pred
        hinge = ops.relu(self.min_margin / 2.0 - signed)
        mean = -ops.sum(weights * signed, axis=-1)
        # An infinite alpha makes the first term 0.
        return mean / self.alpha + ops.sum(weights * hinge, axis=-1)

    def _follow(self, y_pred):
        """Moves m by a batch of scores; returns T, without gradient."""
        scores = ops.cast(ops.stop_gradient(y_pred), "float32")
        margin = ops.convert_to_tensor(self.min_margin)
        size = ops.cast(ops.size(scores), "float32")
        total, size = summed_over_replicas(ops.sum(ops.abs(scores)), size)
        magnitude = self.alpha_mean * ops.convert_to_tensor(self.m) + (
            1 - self.alpha_mean
        ) * (total / size)
        store(self.m, ops.clip(magnitude, 0.005, 1000.0))
        magnitude = ops.minimum(ops.maximum(magnitude, margin), 20000.0)
        temperature = ops.convert_to_tensor(self.temperature)
        return ops.clip(temperature * margin / magnitude, 0.005, 250.0)


@register("MulticlassLseHKR")
class MulticlassLseHKR(LipschitzLoss):
    """HKR of the true class against a smooth maximum of the others.

    The value is `(1 - alpha) * -kr + alpha * hinge`, with
    `kr = z_true - q` and
    `hinge = relu(min_margin / 2 - z_true) + relu(min_margin / 2 + q)`, for the
    scores `z = temperature * y_pred` and the smooth maximum
    `q = logsumexp(t * z_others) / t`. The sharpness
    `t = log(classes - 1) / (min_margin * penalty / 2)` is such that q is at
    most `min_margin * penalty / 2` above the maximum. With two classes, q is
    the score of the other one.

    Args:
        alpha: Float in [0, 1], the weight of the hinge; the other losses here
            take the ratio of both weights. A greater value is taken for such
            a ratio and replaced by `alpha / (1 + alpha)`, with a warning.
        temperature: Float greater than zero, multiplies the scores.
        penalty: Float greater than zero, how far the smooth maximum may exceed
            the maximum, in units of half a margin.
        min_margin: Float greater than zero, see `HingeMargin`.
        reduction, name: As for `keras.losses.Loss`.

    Example:

    >>> from deel.lip.losses import MulticlassLseHKR
    >>> loss = MulticlassLseHKR(alpha=0.5)
    >>> round(float(loss([[1, 0]], [[2.0, -1.0]])), 4)
    -1.5
    """

    _arguments = ("alpha", "temperature", "penalty", "min_margin")

    def __init__(
        self,
        alpha=1.0,
        temperature=1.0,
        penalty=1.0,
        min_margin=1.0,
        reduction="sum_over_batch_size",
        name=None,
    ):
        super().__init__(reduction, name)
        self.alpha = parameter("alpha", _weight(alpha))
        self.temperature = positive_parameter("temperature", temperature)
        self.penalty = positive_parameter("penalty", penalty)
        self.min_margin = positive_parameter("min_margin", min_margin)

    def call(self, y_true, y_pred):
        y_true, y_pred = aligned(y_true, y_pred)
        others = number_of_classes(y_pred) - 1
        is_true = y_true > 0
        scores = ops.convert_to_tensor(self.temperature) * y_pred
        half = ops.convert_to_tensor(self.min_margin) / 2.0
        own = true_score(is_true, scores)
        if others == 1:
            best = ops.sum(scores, axis=-1) - own
        else:
            sharpness = math.log(others) / (half * self.penalty)
            others = other_scores(is_true, sharpness * scores)
            best = ops.logsumexp(others, axis=-1) / sharpness
        hinge = ops.relu(half - own) + ops.relu(half + best)
        alpha = ops.convert_to_tensor(self.alpha)
        return (1.0 - alpha) * (best - own) + alpha * hinge


def _weight(alpha):
    """The weight of the hinge in [0, 1], from a weight or a ratio."""
    if not alpha > 1:
        return alpha
    weight = 1.0 if math.isinf(alpha) else alpha / (1.0 + alpha)
    warnings.warn(
        "Argument `alpha` of this loss is a weight in [0, 1]. A greater value "
        "is taken for the ratio of the weights of the hinge and of the KR "
        f"term, and replaced by alpha/(1+alpha)={weight}. "
        f"Received: alpha={alpha}",
        UserWarning,
        stacklevel=3,
    )
    return weight
