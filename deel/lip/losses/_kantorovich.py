"""The Kantorovich-Rubinstein losses."""

from keras import ops

from deel.lip._labels import EPSILON
from deel.lip._labels import aligned
from deel.lip._labels import kr_weights
from deel.lip._register import register
from deel.lip.losses._base import LipschitzLoss


@register("_kr")
def _kr(y_true, y_pred, epsilon=EPSILON):
    """KR term of each sample, from labels of a whole batch.

    The mean over the batch is, for each output and averaged over them, the
    mean score of the positive samples minus that of the others. A class that
    is absent from the batch contributes 0.

    Positive are labels equal to 1. `epsilon` keeps the counts of absent classes
    from dividing by 0.
    """
    y_true, y_pred = aligned(y_true, y_pred)
    weights = kr_weights(ops.equal(y_true, 1), y_pred.dtype, epsilon)
    return ops.mean(y_pred * weights, axis=-1)


@register("_kr_multi_gpu")
def _kr_multi_gpu(y_true, y_pred):
    """KR term of each sample, from labels that already hold the weights.

    Those are made by `deel.lip.utils.process_labels_for_multi_gpu` from a whole
    batch, before it was split over devices.
    """
    y_true, y_pred = aligned(y_true, y_pred)
    return ops.mean(y_pred * y_true, axis=-1)


@register("KR")
class KR(LipschitzLoss):
    """Kantorovich-Rubinstein estimate of the Wasserstein-1 distance.

    The difference of the mean scores of two classes, to be maximised: as a
    metric it grows, and `HKR` subtracts it.

    Args:
        multi_gpu: Boolean. True if the labels were made by
            `process_labels_for_multi_gpu`, so that the value does not depend
            on how a batch is split over devices.
        reduction, name: As for `keras.losses.Loss`.

    Example:

    >>> from deel.lip.losses import KR
    >>> round(float(KR()([[1], [1], [0]], [[1.0], [3.0], [0.5]])), 4)
    1.5
    """

    _arguments = ("multi_gpu",)

    def __init__(
        self, multi_gpu=False, reduction="sum_over_batch_size", name=None
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

    Takes the arguments of `KR`.
    """


@register("NegKR")
class NegKR(KR):
    """`-KR`, to be minimised: the KR term as a loss of its own.

    Takes the arguments of `KR`.

    Example:

    >>> from deel.lip.losses import NegKR
    >>> round(float(NegKR()([[1], [1], [0]], [[1.0], [3.0], [0.5]])), 4)
    -1.5
    """

    def call(self, y_true, y_pred):
        return -super().call(y_true, y_pred)
