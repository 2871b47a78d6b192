"""Hinge losses, with margins that are given."""

from keras import ops

from deel.lip._labels import aligned
from deel.lip._labels import lead
from deel.lip._labels import signs
from deel.lip._register import register
from deel.lip.losses._base import LipschitzLoss
from deel.lip.losses._base import number_of_classes
from deel.lip.losses._base import parameter


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
    hinge = ops.relu(min_margin / 2.0 - signs(y_true) * y_pred)
    return ops.mean(hinge, axis=-1)


def multiclass_hinge(y_true, y_pred, min_margin):
    """Hinge of each sample, where the true class weighs as all the others.

    Args:
        y_true: One-hot labels; the true class is the one greater than 0.
        y_pred: Scores, of the same shape.
        min_margin: Float, see `hinge_margin`.

    Returns:
        Tensor `(batch_size,)`, the mean over the classes.
    """
    y_true, y_pred = aligned(y_true, y_pred)
    others = float(number_of_classes(y_pred) - 1)
    hinge = ops.relu(min_margin / 2.0 - signs(y_true) * y_pred)
    return ops.mean(ops.where(y_true > 0, others * hinge, hinge), axis=-1)


def multiclass_soft_hinge(y_true, y_pred, min_margin, soft_hinge_tau):
    """Hinge of each sample, centred on the classes that compete most.

    The other classes are weighed by a softmax of their scores instead of all
    alike, which makes the value independent of the number of classes.

    Args:
        y_true: One-hot labels; the true class is the one greater than 0.
        y_pred: Scores, of the same shape.
        min_margin: Float, see `hinge_margin`.
        soft_hinge_tau: Float, the inverse temperature of the softmax. Zero or
            less selects `multiclass_hinge`.

    Returns:
        Tensor `(batch_size,)`.
    """
    classical = multiclass_hinge(y_true, y_pred, min_margin)
    y_true, y_pred = aligned(y_true, y_pred)
    is_true = y_true > 0
    hinge = ops.relu(min_margin / 2.0 - signs(y_true) * y_pred)
    own = ops.sum(ops.where(is_true, hinge, ops.zeros_like(hinge)), axis=-1)
    lowest = ops.full_like(y_pred, -1e30)
    others = ops.where(is_true, lowest, soft_hinge_tau * y_pred)
    weights = ops.softmax(others, axis=-1)
    weights = ops.where(is_true, ops.zeros_like(weights), weights)
    soft = own + ops.sum(weights * hinge, axis=-1)
    # Not a Python branch: a callback may move the parameter away from zero.
    return ops.where(soft_hinge_tau > 0, soft, classical)


@register("HingeMargin")
class HingeMargin(LipschitzLoss):
    """Mean of `relu(min_margin / 2 - sign * y_pred)`.

    Args:
        min_margin: Float, wanted distance between the scores of both classes.
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.

    Example:

    >>> from deel.lip.losses import HingeMargin
    >>> float(HingeMargin(1.0)([[1], [0]], [[0.25], [-2.0]]))
    0.125
    """

    _arguments = ("min_margin",)

    def __init__(
        self,
        min_margin=1.0,
        reduction="sum_over_batch_size",
        name="HingeMargin",
    ):
        super().__init__(reduction, name)
        self.min_margin = parameter("min_margin", min_margin)

    def call(self, y_true, y_pred):
        return hinge_margin(y_true, y_pred, self.min_margin)


@register("MulticlassHinge")
class MulticlassHinge(LipschitzLoss):
    """Multi-class `HingeMargin`; the true class weighs as all the others.

    Args:
        min_margin: Float, wanted distance between the score of the true class
            and those of the others.
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.
        soft_hinge_tau: Float. Greater than zero, weighs the other classes by a
            softmax with this inverse temperature (`multiclass_soft_hinge`).
    """

    _arguments = ("min_margin", "soft_hinge_tau")

    def __init__(
        self,
        min_margin=1.0,
        reduction="sum_over_batch_size",
        name="MulticlassHinge",
        soft_hinge_tau=0.0,
    ):
        super().__init__(reduction, name)
        self.min_margin = parameter("min_margin", min_margin)
        self.soft_hinge_tau = parameter("soft_hinge_tau", soft_hinge_tau)

    def call(self, y_true, y_pred):
        return multiclass_soft_hinge(
            y_true, y_pred, self.min_margin, self.soft_hinge_tau
        )


@register("MultiMargin")
class MultiMargin(LipschitzLoss):
    """Sum of `relu(min_margin - lead over each other class)`, by classes.

    The lead is the score of the true class minus that of the other one. The
    sum is divided by the number of classes.

    Args:
        min_margin: Float, the wanted lead.
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.
    """

    _arguments = ("min_margin",)

    def __init__(
        self,
        min_margin=1.0,
        reduction="sum_over_batch_size",
        name="MultiMargin",
    ):
        super().__init__(reduction, name)
        self.min_margin = parameter("min_margin", min_margin)

    def call(self, y_true, y_pred):
        y_true, y_pred = aligned(y_true, y_pred)
        is_true = y_true > 0
        zeros = ops.zeros_like(y_pred)
        own = ops.sum(ops.where(is_true, y_pred, zeros), axis=-1, keepdims=True)
        hinge = ops.relu(self.min_margin - own + y_pred)
        hinge = ops.where(is_true, zeros, hinge)
        return ops.sum(hinge, axis=-1) / float(number_of_classes(y_pred))


@register("CategoricalHinge")
class CategoricalHinge(LipschitzLoss):
    """`relu(min_margin - lead)`, with the lead over the best other class.

    Args:
        min_margin: Float, the wanted lead.
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.
    """

    _arguments = ("min_margin",)

    def __init__(
        self,
        min_margin,
        reduction="sum_over_batch_size",
        name="CategoricalHinge",
    ):
        super().__init__(reduction, name)
        self.min_margin = parameter("min_margin", min_margin)

    def call(self, y_true, y_pred):
        y_true, y_pred = aligned(y_true, y_pred)
        number_of_classes(y_pred)
        return ops.relu(self.min_margin - lead(y_true, y_pred))


def other_scores(is_true, scores):
    """Scores with that of the true class out of reach for a softmax."""
    return ops.where(is_true, ops.full_like(scores, -1e30), scores)
