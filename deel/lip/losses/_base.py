"""What all losses have in common: reductions, configs, parameters, classes."""

import keras
from keras import ops

from deel.lip._backend.variables import host
from deel.lip._validation import nonnegative_float
from deel.lip._validation import positive_float


class LipschitzLoss(keras.losses.Loss):
    """Base of the losses: one spelling of reductions, names and configs.

    Args:
        reduction: As for `keras.losses.Loss`; also `"auto"`.
        name: String; None means the name of the class.
    """

    # Names of the constructor arguments that the config adds to Keras' own.
    _arguments = ()

    def __init__(self, reduction="sum_over_batch_size", name=None):
        if reduction == "auto":
            reduction = "sum_over_batch_size"
        super().__init__(reduction=reduction, name=name or type(self).__name__)

    @property
    def variables(self):
        """The variables of the loss and of its parts, each once."""
        found = {}
        for value in vars(self).values():
            if isinstance(value, keras.Variable):
                found[id(value)] = value
            elif isinstance(value, LipschitzLoss):
                found.update((id(v), v) for v in value.variables)
        return list(found.values())

    def check_labels(self, y_true):
        """Raises ValueError for labels that the loss would misread.

        Called where labels are at hand before they enter compiled steps: with
        arrays, by `fit` of the models of this library and by a call of the
        loss.

        Args:
            y_true: Labels as a user gave them.
        """

    def __call__(self, y_true, y_pred, sample_weight=None):
        self.check_labels(y_true)
        return super().__call__(y_true, y_pred, sample_weight)

    def get_config(self):
        config = super().get_config()
        return {**config, **{key: self._plain(key) for key in self._arguments}}

    def _plain(self, key):
        value = getattr(self, key)
        if isinstance(value, keras.Variable):
            return float(host(value))
        return value


def parameter(name, value):
    """A loss parameter as a variable, which callbacks can change."""
    value = nonnegative_float(name, float(value))
    return keras.Variable(value, dtype="float32", trainable=False, name=name)


def positive_parameter(name, value):
    """A `parameter` that is greater than zero at first."""
    return parameter(name, positive_float(name, value))


def true_score(is_true, scores, keepdims=False):
    """The score of the true class of each sample."""
    scores = ops.where(is_true, scores, ops.zeros_like(scores))
    return ops.sum(scores, axis=-1, keepdims=keepdims)


def other_scores(is_true, scores):
    """Scores with that of the true class out of reach for a softmax."""
    return ops.where(is_true, -1e30, scores)


def number_of_classes(y_pred):
    classes = y_pred.shape[-1]
    if classes < 2:
        raise ValueError(
            "Multi-class losses need scores of two classes or more; use the "
            "binary loss for a single output. "
            f"Received: y_pred.shape={y_pred.shape}"
        )
    return classes
