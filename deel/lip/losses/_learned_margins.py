"""Losses whose margins are trained."""

import warnings

import keras
from keras import ops

from deel.lip._backend.control_flow import has_values
from deel.lip._backend.control_flow import is_recorded
from deel.lip._backend.replicas import summed_over_replicas
from deel.lip._backend.retraction import AfterUpdate
from deel.lip._backend.variables import host
from deel.lip._labels import aligned
from deel.lip._register import register
from deel.lip._validation import positive_float
from deel.lip.losses._base import LipschitzLoss
from deel.lip.losses._base import parameter
from deel.lip.losses._hinges import hinge_margin
from deel.lip.losses._hinges import multiclass_soft_hinge
from deel.lip.losses._hkr import HingeKR
from deel.lip.losses._kantorovich import KR
from deel.lip.losses._kantorovich import MulticlassKR


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

    _arguments = ("min_margin", "max_margin", "alpha_margin")
    margins = None
    # Whether somebody has asked for the margins, or was told of them.
    _is_trained = False

    def __init__(
        self,
        min_margin=1.0,
        max_margin=200.0,
        alpha_margin=0.1,
        reduction="sum_over_batch_size",
        name=None,
    ):
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
        """Creates the variable `margins`, `(outputs,)`, unless it exists.

        Models that train them do so before the first step.
        """
        self._is_trained = True
        self._create_margins(outputs)

    def _create_margins(self, outputs):
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
        self._is_trained = True
        return [] if self.margins is None else [self.margins]

    def save_own_variables(self, store):
        if self.margins is not None:
            store["margins"] = host(self.margins)

    def load_own_variables(self, store):
        # Stores of older Keras versions do not know `in`.
        names = store.keys()
        if "margins" in names:
            self._create_margins(len(store["margins"]))
            self.margins.assign(store["margins"])

    def _clipped(self, margins):
        return ops.clip(margins, *self._bounds)

    def _current_margins(self, y_pred):
        outputs = y_pred.shape[-1]
        if not self._is_trained and is_recorded(y_pred):
            self._warn_of_constant_margins()
        if self.margins is None and not has_values(y_pred):
            # A compiled step is no place to create variables in.
            return ops.tile(ops.reshape(self.min_margin, (1,)), (outputs,))
        self._create_margins(outputs)
        return ops.convert_to_tensor(self.margins)

    def _warn_of_constant_margins(self):
        """Warns once that nobody has asked for what is to be trained."""
        self._is_trained = True
        warnings.warn(
            f"The margins of loss '{self.name}' are not learned and stay at "
            f"`min_margin`. Expected `deel.lip.model.LossVariableSequential` "
            "or `LossVariableModel`, or a loop that trains "
            "`get_trainable_variables()` of the loss. Received: a step of "
            "another model",
            UserWarning,
            stacklevel=2,
        )


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
        reduction, name: As for `keras.losses.Loss`.
    """

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
        min_margin, max_margin, alpha_margin: See `HingeMarginAuto`.
        soft_hinge_tau: Float, see `MulticlassHinge`.
        reduction, name: As for `keras.losses.Loss`.
    """

    _arguments = (*_LearnedMargins._arguments, "soft_hinge_tau")

    def __init__(
        self,
        min_margin=1.0,
        max_margin=200.0,
        alpha_margin=0.1,
        soft_hinge_tau=0.0,
        reduction="sum_over_batch_size",
        name=None,
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


class _AutoHKR(HingeKR):
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
        alpha, multi_gpu: See `HKR`.
        min_margin, max_margin, alpha_margin: See `HingeMarginAuto`.
        reduction, name: As for `keras.losses.Loss`.
    """

    _arguments = ("alpha", *HingeMarginAuto._arguments, "multi_gpu")

    def __init__(
        self,
        alpha,
        min_margin=1.0,
        max_margin=200.0,
        alpha_margin=0.1,
        multi_gpu=False,
        reduction="sum_over_batch_size",
        name=None,
    ):
        hinge = HingeMarginAuto(min_margin, max_margin, alpha_margin)
        super().__init__(alpha, KR(multi_gpu), hinge, reduction, name)


@register("MulticlassHKRauto")
class MulticlassHKRauto(_AutoHKR):
    """`MulticlassHKR` with learned margins, one for each class.

    `-MulticlassKR + alpha * MulticlassHingeAuto`.

    Args:
        alpha, multi_gpu: See `HKR`.
        min_margin, max_margin, alpha_margin: See `HingeMarginAuto`.
        soft_hinge_tau: Float, see `MulticlassHinge`.
        reduction, name: As for `keras.losses.Loss`.

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

    _arguments = ("alpha", *MulticlassHingeAuto._arguments, "multi_gpu")

    def __init__(
        self,
        alpha=10.0,
        min_margin=1.0,
        max_margin=200.0,
        alpha_margin=0.1,
        soft_hinge_tau=0.0,
        multi_gpu=False,
        reduction="sum_over_batch_size",
        name=None,
    ):
        hinge = MulticlassHingeAuto(
            min_margin, max_margin, alpha_margin, soft_hinge_tau
        )
        super().__init__(alpha, MulticlassKR(multi_gpu), hinge, reduction, name)
        self.soft_hinge_tau = hinge.soft_hinge_tau


HKRAuto = HKRauto

MulticlassHKRAuto = MulticlassHKRauto
