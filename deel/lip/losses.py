"""Losses for networks with a known Lipschitz constant.

The Kantorovich-Rubinstein (KR) term is the dual of the Wasserstein-1 distance:
the largest `E[f | positive] - E[f | negative]` over all 1-Lipschitz functions f
is the distance between the two classes. The hinge term asks for a margin, which
a 1-Lipschitz network turns into a robustness radius. HKR is their sum.

All losses take raw scores, `(batch_size, 1)` or `(batch_size, classes)`.

Reference:
    - [Serrurier et al., 2021](https://arxiv.org/abs/2006.06520), "Achieving
      robustness in classification using optimal transport with hinge
      regularization".
"""

import math
import warnings

import keras
from keras import ops

from deel.lip._control_flow import is_known
from deel.lip._crossentropies import EMMA
from deel.lip._crossentropies import LogitAnnealing
from deel.lip._crossentropies import OffsetCategoricalCrossentropy
from deel.lip._crossentropies import TauBinaryCrossentropy
from deel.lip._crossentropies import TauCategoricalCrossentropy
from deel.lip._crossentropies import TauSparseCategoricalCrossentropy
from deel.lip._labels import EPSILON
from deel.lip._labels import aligned
from deel.lip._labels import kr_weights
from deel.lip._labels import lead
from deel.lip._labels import signs
from deel.lip._loss import LipschitzLoss
from deel.lip._loss import number_of_classes
from deel.lip._loss import parameter
from deel.lip._register import register
from deel.lip._replicas import summed_over_replicas
from deel.lip._validation import positive_float
from deel.lip._variables import AfterUpdate
from deel.lip._variables import host
from deel.lip._variables import store

__all__ = [
    "EMMA",
    "HKR",
    "KR",
    "CategoricalHinge",
    "HKRAuto",
    "HKRauto",
    "HingeMargin",
    "HingeMarginAuto",
    "LogitAnnealing",
    "MultiMargin",
    "MulticlassHKR",
    "MulticlassHKRAuto",
    "MulticlassHKRauto",
    "MulticlassHinge",
    "MulticlassHingeAuto",
    "MulticlassKR",
    "MulticlassLseHKR",
    "MulticlassSoftHKR",
    "NegKR",
    "OffsetCategoricalCrossentropy",
    "TauBinaryCrossentropy",
    "TauCategoricalCrossentropy",
    "TauSparseCategoricalCrossentropy",
    "hinge_margin",
    "multiclass_hinge",
    "multiclass_soft_hinge",
]


def __dir__():
    return __all__


@register("_kr")
def _kr(y_true, y_pred, epsilon=EPSILON):
    """KR term of each sample, from labels of a whole batch.

    The mean over the batch is, for each output and averaged over them, the
    mean score of the positive samples minus that of the others. A class that
    is absent from the batch contributes 0.

    Args:
        y_true: Labels; positive are those equal to 1.
        y_pred: Scores, of the same shape.
        epsilon: Float, keeps the counts of absent classes from dividing by 0.

    Returns:
        Tensor `(batch_size,)`.
    """
    y_true, y_pred = aligned(y_true, y_pred)
    positive = ops.cast(ops.equal(y_true, 1), y_pred.dtype)
    return ops.mean(y_pred * kr_weights(positive, epsilon), axis=-1)


@register("_kr_multi_gpu")
def _kr_multi_gpu(y_true, y_pred):
    """KR term of each sample, from labels that already hold the weights.

    Args:
        y_true: Labels made by `deel.lip.utils.process_labels_for_multi_gpu`
            from a whole batch, before it was split over devices.
        y_pred: Scores, of the same shape.

    Returns:
        Tensor `(batch_size,)`.
    """
    y_true, y_pred = aligned(y_true, y_pred)
    return ops.mean(y_pred * y_true, axis=-1)


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


@register("KR")
class KR(LipschitzLoss):
    """Kantorovich-Rubinstein estimate of the Wasserstein-1 distance.

    The difference of the mean scores of two classes, to be maximised: as a
    metric it grows, and `HKR` subtracts it.

    Args:
        multi_gpu: Boolean. True if the labels were made by
            `process_labels_for_multi_gpu`, so that the value does not depend
            on how a batch is split over devices.
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.

    Example:

    >>> from deel.lip.losses import KR
    >>> round(float(KR()([[1], [1], [0]], [[1.0], [3.0], [0.5]])), 4)
    1.5
    """

    _arguments = ("multi_gpu",)

    def __init__(
        self, multi_gpu=False, reduction="sum_over_batch_size", name="KR"
    ):
        super().__init__(reduction, name)
        self.multi_gpu = multi_gpu
        self.eps = EPSILON

    def call(self, y_true, y_pred):
        if self.multi_gpu:
            return _kr_multi_gpu(y_true, y_pred)
        return _kr(y_true, y_pred, self.eps)


@register("MulticlassKR")
class MulticlassKR(KR):
    """`KR` of each class against the others, averaged over the classes.

    Args:
        multi_gpu: Boolean, see `KR`.
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.
    """

    def __init__(
        self,
        multi_gpu=False,
        reduction="sum_over_batch_size",
        name="MulticlassKR",
    ):
        super().__init__(multi_gpu, reduction, name)


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


class _HingeKR(LipschitzLoss):
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

    def call(self, y_true, y_pred):
        kr = self.KRloss.call(y_true, y_pred)
        hinge = self.hingeloss.call(y_true, y_pred)
        alpha = ops.convert_to_tensor(self.alpha)
        # An infinite alpha stands for the hinge term alone.
        hinge_only = ops.isinf(alpha)
        kr_weight = ops.where(hinge_only, 0.0, 1.0)
        hinge_weight = ops.where(hinge_only, 1.0, alpha)
        return hinge_weight * hinge - kr_weight * kr


@register("HKR")
class HKR(_HingeKR):
    """Hinge-regularised Kantorovich-Rubinstein loss, for two classes.

    `-KR + alpha * HingeMargin`. A large `alpha` favours accuracy, a large
    `min_margin` robustness.

    Args:
        alpha: Float, zero or more, the weight of the hinge term. 0 leaves the
            KR term alone, `float("inf")` the hinge term alone.
        min_margin: Float, see `HingeMargin`.
        multi_gpu: Boolean, see `KR`.
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.

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
        name="HKR",
    ):
        hinge = HingeMargin(min_margin)
        super().__init__(alpha, KR(multi_gpu), hinge, reduction, name)


@register("MulticlassHKR")
class MulticlassHKR(_HingeKR):
    """Hinge-regularised Kantorovich-Rubinstein loss, for several classes.

    `-MulticlassKR + alpha * MulticlassHinge`, for one-hot labels and a network
    without activation at the end.

    Args:
        alpha: Float, zero or more, see `HKR`.
        min_margin: Float, see `MulticlassHinge`.
        multi_gpu: Boolean, see `KR`.
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.
        soft_hinge_tau: Float, see `MulticlassHinge`.
    """

    _arguments = ("alpha", "min_margin", "multi_gpu", "soft_hinge_tau")

    def __init__(
        self,
        alpha=10.0,
        min_margin=1.0,
        multi_gpu=False,
        reduction="sum_over_batch_size",
        name="MulticlassHKR",
        soft_hinge_tau=0.0,
    ):
        hinge = MulticlassHinge(min_margin, soft_hinge_tau=soft_hinge_tau)
        super().__init__(alpha, MulticlassKR(multi_gpu), hinge, reduction, name)
        self.soft_hinge_tau = hinge.soft_hinge_tau


class _LearnedMargins(LipschitzLoss):
    """Base of the hinge losses with one learned margin for each output.

    The hinge asks for margins that are as large as `alpha_margin` pays for:
    the gradient of `-alpha_margin * margin` and that of the hinge, which
    counts the samples inside of the margin, cancel when the share of those
    samples is about `alpha_margin`.

    Attributes:
        margins: Variable of shape `(outputs,)`, None until the number of
            outputs is known. `deel.lip.model.LossVariableModel` trains it; it
            stays between `min_margin` and `max_margin`.
    """

    margins = None

    def __init__(self, min_margin, max_margin, alpha_margin, reduction, name):
        super().__init__(reduction, name)
        self.min_margin = parameter("min_margin", min_margin)
        self.max_margin = positive_float("max_margin", max_margin)
        self.alpha_margin = parameter("alpha_margin", alpha_margin)
        # The bounds of training are plain numbers: JAX cannot read variables
        # of the loss while the optimizer runs.
        self._bounds = (float(min_margin), self.max_margin)
        if self._bounds[0] > self._bounds[1]:
            raise ValueError(
                "Argument `max_margin` must not be less than `min_margin`. "
                f"Received: min_margin={min_margin}, max_margin={max_margin}"
            )

    def create_margins(self, outputs):
        """Creates the variable `margins` unless it exists.

        Args:
            outputs: Integer, the number of outputs of the network.
        """
        if self.margins is None:
            self.margins = keras.Variable(
                keras.initializers.Constant(self._bounds[0]),
                shape=(outputs,),
                dtype="float32",
                trainable=True,
                name="margin_loss",
            )
            self.margins.constraint = AfterUpdate(self._clipped)
        elif self.margins.shape != (outputs,):
            raise ValueError(
                f"Loss '{self.name}' has learned one margin for each of "
                f"{self.margins.shape[0]} outputs. Use a new loss for a "
                f"network with another number. Received: outputs={outputs}"
            )

    def get_trainable_variables(self):
        """Returns `[margins]`, or an empty list before they are created."""
        return [] if self.margins is None else [self.margins]

    def save_own_variables(self, store):
        if self.margins is not None:
            store["margins"] = host(self.margins)

    def load_own_variables(self, store):
        # Stores of older Keras versions do not know `in`.
        names = store.keys()
        if "margins" in names:
            self.create_margins(len(store["margins"]))
            self.margins.assign(store["margins"])

    def _clipped(self, margins):
        return ops.clip(margins, *self._bounds)

    def _current_margins(self, y_pred):
        outputs = y_pred.shape[-1]
        if self.margins is None and not is_known(y_pred):
            # A compiled step is no place to create variables in.
            return ops.tile(ops.reshape(self.min_margin, (1,)), (outputs,))
        self.create_margins(outputs)
        return ops.convert_to_tensor(self.margins)


@register("HingeMarginAuto")
class HingeMarginAuto(_LearnedMargins):
    """`HingeMargin` with a margin that is learned for each output.

    `mean(relu(margins / 2 - sign * y_pred)) - alpha_margin * sum(margins)`.
    The margins are trained by `deel.lip.model.LossVariableModel` and
    `LossVariableSequential`; with other models they stay at `min_margin`.

    Args:
        min_margin: Float, the initial and smallest margin.
        max_margin: Float, the largest margin.
        alpha_margin: Float, about the share of the samples that are left
            inside of the margin.
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.
    """

    _arguments = ("min_margin", "max_margin", "alpha_margin")

    def __init__(
        self,
        min_margin=1.0,
        max_margin=200.0,
        alpha_margin=0.1,
        reduction="sum_over_batch_size",
        name="HingeMarginAuto",
    ):
        super().__init__(min_margin, max_margin, alpha_margin, reduction, name)

    def call(self, y_true, y_pred):
        y_true, y_pred = aligned(y_true, y_pred)
        margins = self._current_margins(y_pred)
        hinge = hinge_margin(y_true, y_pred, margins)
        return hinge - self.alpha_margin * ops.sum(margins)


@register("MulticlassHingeAuto")
class MulticlassHingeAuto(_LearnedMargins):
    """`MulticlassHinge` with a margin that is learned for each class.

    A sample is asked for the margin of its true class. The mean margin of the
    classes that occur in the batch, times `alpha_margin`, is subtracted. See
    `HingeMarginAuto` for how the margins are trained.

    Args:
        min_margin: Float, the initial and smallest margin.
        max_margin: Float, the largest margin.
        alpha_margin: Float, about the share of the samples that are left
            inside of the margin.
        soft_hinge_tau: Float, see `MulticlassHinge`.
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.
    """

    _arguments = ("min_margin", "max_margin", "alpha_margin", "soft_hinge_tau")

    def __init__(
        self,
        min_margin=1.0,
        max_margin=200.0,
        alpha_margin=0.1,
        soft_hinge_tau=0.0,
        reduction="sum_over_batch_size",
        name="MulticlassHingeAuto",
    ):
        super().__init__(min_margin, max_margin, alpha_margin, reduction, name)
        self.soft_hinge_tau = parameter("soft_hinge_tau", soft_hinge_tau)

    def call(self, y_true, y_pred):
        y_true, y_pred = aligned(y_true, y_pred)
        margins = self._current_margins(y_pred)
        is_true = ops.cast(y_true > 0, y_pred.dtype)
        own = ops.sum(is_true * margins, axis=-1, keepdims=True)
        hinge = multiclass_soft_hinge(y_true, y_pred, own, self.soft_hinge_tau)
        # In the whole batch, where replicas see a part of it each.
        (number,) = summed_over_replicas(ops.sum(is_true, axis=0))
        present = ops.cast(number > 0, y_pred.dtype)
        count = ops.maximum(ops.sum(present), 1.0)
        mean_margin = ops.sum(present * margins) / count
        return hinge - self.alpha_margin * mean_margin


class _AutoHKR(_HingeKR):
    """Base of the losses `-KR + alpha * hinge` with learned margins."""

    def __init__(self, alpha, kr, hinge, reduction, name):
        super().__init__(alpha, kr, hinge, reduction, name)
        self.max_margin = hinge.max_margin
        self.alpha_margin = hinge.alpha_margin

    @property
    def hinge_margins(self):
        """The learned margins, a variable; None before they are created."""
        return self.hingeloss.margins

    def create_margins(self, outputs):
        """See `HingeMarginAuto`."""
        self.hingeloss.create_margins(outputs)

    def get_trainable_variables(self):
        """Returns `[margins]`, or an empty list before they are created."""
        return self.hingeloss.get_trainable_variables()


@register("HKRauto")
class HKRauto(_AutoHKR):
    """`HKR` with a learned margin: `-KR + alpha * HingeMarginAuto`.

    Args:
        alpha: Float, zero or more, see `HKR`.
        min_margin: Float, see `HingeMarginAuto`.
        max_margin: Float, see `HingeMarginAuto`.
        alpha_margin: Float, see `HingeMarginAuto`.
        multi_gpu: Boolean, see `KR`.
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.
    """

    _arguments = (
        "alpha",
        "min_margin",
        "max_margin",
        "alpha_margin",
        "multi_gpu",
    )

    def __init__(
        self,
        alpha,
        min_margin=1.0,
        max_margin=200.0,
        alpha_margin=0.1,
        multi_gpu=False,
        reduction="sum_over_batch_size",
        name="HKRauto",
    ):
        hinge = HingeMarginAuto(min_margin, max_margin, alpha_margin)
        super().__init__(alpha, KR(multi_gpu), hinge, reduction, name)


@register("MulticlassHKRauto")
class MulticlassHKRauto(_AutoHKR):
    """`MulticlassHKR` with learned margins, one for each class.

    `-MulticlassKR + alpha * MulticlassHingeAuto`.

    Args:
        alpha: Float, zero or more, see `HKR`.
        min_margin: Float, see `MulticlassHingeAuto`.
        max_margin: Float, see `MulticlassHingeAuto`.
        alpha_margin: Float, see `MulticlassHingeAuto`.
        soft_hinge_tau: Float, see `MulticlassHinge`.
        multi_gpu: Boolean, see `KR`.
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.

    Example:

    >>> import keras
    >>> from deel.lip.layers import SpectralDense
    >>> from deel.lip.losses import MulticlassHKRauto
    >>> from deel.lip.model import LossVariableModel
    >>> inputs = keras.Input((8,))
    >>> model = LossVariableModel(
    ...     inputs=inputs, outputs=SpectralDense(3)(inputs)
    ... )
    >>> model.compile("adam", MulticlassHKRauto(alpha=10.0, min_margin=0.5))
    >>> model.loss.hinge_margins.numpy().tolist()
    [0.5, 0.5, 0.5]
    """

    _arguments = (
        "alpha",
        "min_margin",
        "max_margin",
        "alpha_margin",
        "soft_hinge_tau",
        "multi_gpu",
    )

    def __init__(
        self,
        alpha=10.0,
        min_margin=1.0,
        max_margin=200.0,
        alpha_margin=0.1,
        soft_hinge_tau=0.0,
        multi_gpu=False,
        reduction="sum_over_batch_size",
        name="MulticlassHKRauto",
    ):
        hinge = MulticlassHingeAuto(
            min_margin, max_margin, alpha_margin, soft_hinge_tau
        )
        super().__init__(alpha, MulticlassKR(multi_gpu), hinge, reduction, name)
        self.soft_hinge_tau = hinge.soft_hinge_tau


HKRAuto = HKRauto
MulticlassHKRAuto = MulticlassHKRauto


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


@register("NegKR")
class NegKR(KR):
    """`-KR`, to be minimised: the KR term as a loss of its own.

    Args:
        multi_gpu: Boolean, see `KR`.
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.

    Example:

    >>> from deel.lip.losses import NegKR
    >>> round(float(NegKR()([[1], [1], [0]], [[1.0], [3.0], [0.5]])), 4)
    -1.5
    """

    def __init__(
        self, multi_gpu=False, reduction="sum_over_batch_size", name="NegKR"
    ):
        super().__init__(multi_gpu, reduction, name)

    def call(self, y_true, y_pred):
        return -super().call(y_true, y_pred)


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
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.

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
        name="MulticlassSoftHKR",
    ):
        super().__init__(reduction, name)
        if alpha == 0:
            raise ValueError(
                "Argument `alpha` must be greater than zero, as it divides. "
                f"Received: alpha={alpha}"
            )
        self.alpha = parameter("alpha", alpha)
        self.min_margin = parameter(
            "min_margin", positive_float("min_margin", min_margin)
        )
        self.temperature = parameter(
            "temperature", positive_float("temperature", temperature)
        )
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
            _others(is_true, inverse_temperature * y_pred), axis=-1
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
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String.

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
        name="MulticlassLseHKR",
    ):
        super().__init__(reduction, name)
        self.alpha = parameter("alpha", _weight(alpha))
        self.temperature = parameter(
            "temperature", positive_float("temperature", temperature)
        )
        self.penalty = parameter("penalty", positive_float("penalty", penalty))
        self.min_margin = parameter(
            "min_margin", positive_float("min_margin", min_margin)
        )

    def call(self, y_true, y_pred):
        y_true, y_pred = aligned(y_true, y_pred)
        others = number_of_classes(y_pred) - 1
        is_true = y_true > 0
        scores = ops.convert_to_tensor(self.temperature) * y_pred
        half = ops.convert_to_tensor(self.min_margin) / 2.0
        own = ops.sum(
            ops.where(is_true, scores, ops.zeros_like(scores)), axis=-1
        )
        if others == 1:
            best = ops.sum(scores, axis=-1) - own
        else:
            sharpness = math.log(others) / (half * self.penalty)
            best = (
                ops.logsumexp(_others(is_true, sharpness * scores), axis=-1)
                / sharpness
            )
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


def _others(is_true, scores):
    """Scores with that of the true class out of reach for a softmax."""
    return ops.where(is_true, ops.full_like(scores, -1e30), scores)
