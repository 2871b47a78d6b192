"""Hinge losses, with margins that are given."""

from keras import ops

from deel.lip._backend.guarded_variable import known_or_tensor
from deel.lip._backend.tensors import chosen
from deel.lip._labels import aligned
from deel.lip._labels import lead
from deel.lip._labels import signs
from deel.lip._register import register
from deel.lip.losses._base import LipschitzLoss
from deel.lip.losses._base import number_of_classes
from deel.lip.losses._base import other_scores
from deel.lip.losses._base import parameter
from deel.lip.losses._base import true_score


def hinge_margin(y_true, y_pred, min_margin):
    """Hinge of each sample, `relu(min_margin / 2 - sign * y_pred)`.

    Args:
        y_true: Labels; positive are those greater than 0.
        y_pred: Scores, of the same shape.
        min_margin: Float, wanted distance between the scores of both classes;
            half of it is asked for on each side.

    Returns:
        Tensor `(batch_size,)`, the mean over the outputs.
    """
    y_true, y_pred = aligned(y_true, y_pred)
    return ops.mean(_hinge(signs(y_true), y_pred, min_margin), axis=-1)


def multiclass_hinge(y_true, y_pred, min_margin):
    """Hinge of each sample, where the true class weighs as all the others.

    Args:
        y_true: One-hot labels; the true class is the one greater than 0.
        y_pred: Scores, of the same shape.
        min_margin: Float, see `hinge_margin`.

    Returns:
        Tensor `(batch_size,)`, the mean over the classes.
    """
    return multiclass_soft_hinge(y_true, y_pred, min_margin, 0.0)


def multiclass_soft_hinge(y_true, y_pred, min_margin, soft_hinge_tau):
    """Hinge of each sample, centred on the classes that compete most.

    The other classes are weighed by a softmax of their scores instead of all
    alike, which makes the value independent of the number of classes.

    Args:
        y_true: See `multiclass_hinge`.
        y_pred: See `multiclass_hinge`.
        min_margin: Float, see `hinge_margin`.
        soft_hinge_tau: Float, the inverse temperature of the softmax. Zero or
            less selects `multiclass_hinge`.

    Returns:
        Tensor `(batch_size,)`.
    """
    y_true, y_pred = aligned(y_true, y_pred)
    classes = number_of_classes(y_pred)
    is_true = y_true > 0
    as_number = ops.cast(is_true, y_pred.dtype)
    hinge = _hinge(chosen(as_number, 1.0, -1.0), y_pred, min_margin)
    # The mean over classes, where the true one counts as all the others.
    plain = chosen(as_number, (classes - 1) / classes, 1 / classes)
    tau = known_or_tensor(soft_hinge_tau)
    if isinstance(tau, (int, float)) and tau <= 0:
        return ops.sum(plain * hinge, axis=-1)
    weights = ops.softmax(other_scores(is_true, tau * y_pred), axis=-1)
    weights = ops.where(is_true, 1.0, weights)
    # Not a Python branch: a callback may move the parameter away from zero.
    if not isinstance(tau, (int, float)):
        weights = ops.where(tau > 0, weights, plain)
    return ops.sum(weights * hinge, axis=-1)


def _hinge(sign, y_pred, min_margin):
    return ops.relu(known_or_tensor(min_margin) / 2.0 - sign * y_pred)


class _MarginLoss(LipschitzLoss):
    """Base of the losses with a margin and nothing else."""

    _arguments = ("min_margin",)

    def __init__(
        self, min_margin=1.0, reduction="sum_over_batch_size", name=None
    ):
        super().__init__(reduction, name)
        self.min_margin = parameter("min_margin", min_margin)


@register("HingeMargin")
class HingeMargin(_MarginLoss):
    """Mean of `relu(min_margin / 2 - sign * y_pred)`.

    Args:
        min_margin: Float, wanted distance between the scores of both classes.
        reduction, name: As for `keras.losses.Loss`.

    Example:

    >>> from deel.lip.losses import HingeMargin
    >>> float(HingeMargin(1.0)([[1], [0]], [[0.25], [-2.0]]))
    0.125
    """

    def call(self, y_true, y_pred):
        return hinge_margin(y_true, y_pred, self.min_margin)


@register("MulticlassHinge")
class MulticlassHinge(_MarginLoss):
    """Multi-class `HingeMargin`; the true class weighs as all the others.

    Args:
        min_margin: Float, wanted distance between the score of the true class
            and those of the others.
        reduction, name: As for `keras.losses.Loss`.
        soft_hinge_tau: Float. Greater than zero, weighs the other classes by a
            softmax with this inverse temperature (`multiclass_soft_hinge`).
    """

    _arguments = ("min_margin", "soft_hinge_tau")

    def __init__(
        self,
        min_margin=1.0,
        reduction="sum_over_batch_size",
        name=None,
        soft_hinge_tau=0.0,
    ):
        super().__init__(min_margin, reduction, name)
        self.soft_hinge_tau = parameter("soft_hinge_tau", soft_hinge_tau)

    def call(self, y_true, y_pred):
        return multiclass_soft_hinge(
            y_true, y_pred, self.min_margin, self.soft_hinge_tau
        )


@register("MultiMargin")
class MultiMargin(_MarginLoss):
    """Sum of `relu(min_margin - lead over each other class)`, by classes.

    The lead is the score of the true class minus that of the other one. The
    sum is divided by the number of classes.

    Args:
        min_margin: Float, the wanted lead.
        reduction, name: As for `keras.losses.Loss`.
    """

    def call(self, y_true, y_pred):
        y_true, y_pred = aligned(y_true, y_pred)
        is_true = y_true > 0
        own = true_score(is_true, y_pred, keepdims=True)
        hinge = ops.relu(self.min_margin - own + y_pred)
        hinge = ops.where(is_true, ops.zeros_like(hinge), hinge)
        return ops.sum(hinge, axis=-1) / float(number_of_classes(y_pred))


@register("CategoricalHinge")
class CategoricalHinge(_MarginLoss):
    """`relu(min_margin - lead)`, with the lead over the best other class.

    Args:
        min_margin: Float, the wanted lead.
        reduction, name: As for `keras.losses.Loss`.
    """

    def __init__(self, min_margin, reduction="sum_over_batch_size", name=None):
        super().__init__(min_margin, reduction, name)

    def call(self, y_true, y_pred):
        y_true, y_pred = aligned(y_true, y_pred)
        number_of_classes(y_pred)
        return ops.relu(self.min_margin - lead(y_true, y_pred))
