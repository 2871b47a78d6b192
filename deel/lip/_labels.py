"""How losses and metrics read labels: {0, 1}, {-1, 1}, Boolean, weighted."""

import keras
import numpy as np
from keras import ops

from deel.lip._backend.linear_algebra import limited
from deel.lip._backend.replicas import summed_over_replicas
from deel.lip._backend.tensors import chosen

EPSILON = 1e-7


def aligned(y_true, y_pred):
    """Returns labels and predictions as tensors of one shape and dtype.

    Both are given as `(batch_size,)` or `(batch_size, outputs)`, labels of any
    dtype, and returned as `(batch_size, outputs)`. They are never broadcast,
    which would compare each label with every prediction.

    Raises:
        ValueError: If the shapes do not fit each other.
    """
    y_pred = ops.convert_to_tensor(y_pred)
    y_true = ops.convert_to_tensor(y_true)
    if not _has_rank(y_true):
        y_true = ops.reshape(y_true, ops.shape(y_pred))
    received = y_true.shape, y_pred.shape
    if len(y_pred.shape) == 1:
        y_pred = ops.expand_dims(y_pred, -1)
    if len(y_true.shape) == 1:
        y_true = ops.expand_dims(y_true, -1)
    if len(y_true.shape) != 2 or len(y_pred.shape) != 2:
        raise ValueError(
            "Labels and predictions must have the shape (batch_size, outputs). "
            f"Received: {_shapes(*received)}"
        )
    pairs = list(zip(y_true.shape, y_pred.shape, strict=True))
    if any(a != b for a, b in pairs if a is not None and b is not None):
        hint = ""
        if y_true.shape[-1] == 1:
            hint = "Are the labels class numbers instead of one-hot vectors? "
        if y_pred.shape[-1] == 1:
            hint = "A single score takes one label, 0 or -1, and 1. "
        raise ValueError(
            f"Labels and predictions must have the same shape. {hint}"
            f"Received: {_shapes(*received)}"
        )
    return ops.cast(y_true, y_pred.dtype), y_pred


def _shapes(y_true, y_pred):
    return f"y_true.shape={y_true}, y_pred.shape={y_pred}"


def _has_rank(tensor):
    """False for labels that TensorFlow traces with any number of axes.

    It does so where one model is given labels `(batch_size,)` and
    `(batch_size, 1)` in turn. Reshaping cannot broadcast them either.
    """
    try:
        len(tensor.shape)
    except ValueError:
        return False
    return True


def lead(y_true, y_pred):
    """Score of the true class minus the best of the others, for each sample.

    Positive where the prediction is right. Labels and scores are aligned, with
    several classes, of which the true one is that greater than 0.
    """
    is_true = y_true > 0
    lowest = -float("inf")
    own = ops.max(ops.where(is_true, y_pred, lowest), axis=-1)
    others = ops.max(ops.where(is_true, lowest, y_pred), axis=-1)
    return own - others


def signs(y_true):
    """Returns 1 where a label is positive and -1 elsewhere, a tensor."""
    return chosen(ops.cast(y_true > 0, y_true.dtype), 1.0, -1.0)


def require_binary(y_true):
    """Raises ValueError for arrays whose positive labels are not 1.

    What is no NumPy array may be on a device, or have no values yet, and is not
    looked at.
    """
    is_array = isinstance(y_true, np.ndarray) and y_true.dtype.kind in "iuf"
    if is_array and np.any((y_true > 0) & (y_true != 1)):
        raise ValueError(
            "Expected labels 0 or -1, and 1; for several classes, one-hot "
            "vectors, as of `keras.utils.to_categorical`. "
            f"Received: y_true with the values {np.unique(y_true)[:10]}"
        )


def kr_weights(positive, dtype, epsilon=EPSILON):
    """Weights of the samples of a whole batch in the KR term.

    Replicas of a strategy of TensorFlow hold a part of the batch each, and the
    weights are those that the samples have in the whole.

    Args:
        positive: Boolean tensor `(batch_size, outputs)`: the positive samples
            of each output.
        dtype: String, that of the result.
        epsilon: Float, keeps the counts of absent classes from dividing by 0.

    Returns:
        Tensor of the same shape: `batch_size / positives` for positive samples,
        `-batch_size / others` for the others.
    """
    is_positive = ops.cast(positive, dtype)
    batch_size, count = positive.shape[0], ops.sum(is_positive, axis=0)
    # A number, where it is one for all replicas.
    if batch_size is None or keras.backend.backend() == "tensorflow":
        batch_size, count = summed_over_replicas(
            ops.cast(ops.shape(positive)[0], dtype), count
        )
    # Compilers may add epsilon to the batch size first, where it is lost to
    # rounding: without the limit, batches of one class would divide by zero.
    size = ops.where(positive, count, batch_size - count) + epsilon
    size = limited(size, least=epsilon)
    return chosen(is_positive, batch_size, -batch_size) / size
