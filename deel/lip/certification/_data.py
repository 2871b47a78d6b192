"""Data of certificates and attacks: labels, distances, batches."""

import keras
import numpy as np
from keras import ops

from deel.lip._graph import last_layer
from deel.lip._validation import positive_int
from deel.lip._validation import received
from deel.lip._validation import require_built
from deel.lip.certification._walk import start


def checked_epsilons(epsilons):
    """Returns radii as a float array; they are zero or greater."""
    values = np.atleast_1d(np.asarray(epsilons, "float64"))
    if values.ndim != 1 or not np.all(values >= 0):
        raise ValueError(
            "Radii must be numbers that are zero or greater. "
            f"{received('epsilons', epsilons)}"
        )
    return values


def share_beyond(epsilons, correct, distances):
    """Share of samples that are right, and stay so within each radius.

    A prediction that is right counts for the radius 0, proven or not: there is
    no other point.

    Args:
        epsilons: As of `checked_epsilons`.
        correct: Boolean array `(samples,)`.
        distances: Array `(samples,)`, how far each prediction holds.
    """
    return np.array(
        [
            np.mean(correct & ((distances > epsilon) | (epsilon == 0)))
            for epsilon in checked_epsilons(epsilons)
        ]
    )


def checked_labels(y, classes):
    """Returns labels as class numbers.

    Args:
        y: Array: class numbers of shape `(samples,)` or `(samples, 1)`, or
            one-hot; with one score, 0 or -1 and 1.
        classes: Integer, the number of scores.
    """
    labels = np.asarray(y if isinstance(y, list) else ops.convert_to_numpy(y))
    shown = f"Received: labels of shape {labels.shape}"
    if labels.dtype.kind not in "biuf":
        raise ValueError(
            f"Labels must be numbers. {shown}, of dtype {labels.dtype}"
        )
    if labels.ndim == 2 and labels.shape[1] == classes > 1:
        is_one_hot = np.isin(labels, (0, 1)).all() and np.all(
            labels.sum(axis=1) == 1
        )
        if not is_one_hot:
            raise ValueError(f"Labels of this shape must be one-hot. {shown}")
        return np.argmax(labels, axis=1)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(
            "Labels must be class numbers `(samples,)`, or one-hot "
            f"`(samples, {classes})`. {shown}"
        )
    if classes == 1:
        allowed = np.isin(labels, (-1, 0, 1)).all()
        numbers, described = labels > 0, "0 or -1, and 1"
    else:
        allowed = np.all(labels == np.floor(labels)) and np.all(
            (labels >= 0) & (labels < classes)
        )
        numbers, described = labels, f"whole numbers from 0 to {classes - 1}"
    if not allowed:
        raise ValueError(
            f"Labels must be {described}. "
            f"Received: values {np.unique(labels)[:10]}"
        )
    return numbers.astype("int64")


def require_labels(y, call):
    """Raises ValueError for None, in place of labels that the call needs."""
    if y is None:
        raise ValueError(
            f"Labels are needed. Expected `{call}`, or a data set that has "
            "them. Received: y=None"
        )


def require_one_each(x, y):
    """Raises ValueError unless there are as many labels as samples."""
    if len(y) != len(x):
        raise ValueError(
            "Each sample needs one label. "
            f"Received: {len(x)} samples and {len(y)} labels"
        )


# The label of a position that does not count.
IGNORED = -1


def checked_pixel_labels(y, shape, classes, ignore_class=None):
    """Returns labels of positions as class numbers, or `IGNORED`.

    Args:
        y: Array: class numbers of shape `(samples, positions...)`, also with a
            last axis of one, or one-hot; with one score, 0 or -1 and 1.
        shape: Tuple `(samples, positions...)`.
        classes: Integer, the number of scores.
        ignore_class: Integer or None, the class number that does not count.
    """
    labels = np.asarray(y if isinstance(y, list) else ops.convert_to_numpy(y))
    if labels.shape == (*shape, classes) and classes > 1:
        labels = checked_labels(labels.reshape(-1, classes), classes)
    elif labels.shape not in (shape, (*shape, 1)):
        raise ValueError(
            "Each position needs one label. Expected class numbers of shape "
            f"{shape}, or one-hot ones of shape {(*shape, classes)}. "
            f"Received: labels of shape {labels.shape}"
        )
    labels = labels.ravel()
    counts = np.ones(labels.shape, bool)
    if ignore_class is not None:
        counts = labels != ignore_class
    found = np.full(labels.shape, IGNORED, "int64")
    found[counts] = checked_labels(labels[counts], classes)
    return found.reshape(shape)


def check_precision(model):
    for layer in model._flatten_layers():
        dtype = layer.compute_dtype
        if dtype not in ("float32", "float64", None):
            raise ValueError(
                "Scores in half precision are too coarse to be certified. Load "
                "the weights in a model with the dtype policy 'float32'. "
                f"Received: layer '{layer.name}', which computes in {dtype}"
            )


# Functions that are never negative: the sign of their value says nothing.
_ONE_SIGN = {
    getattr(keras.activations, name)
    for name in (
        "hard_sigmoid",
        "relu",
        "relu6",
        "sigmoid",
        "softmax",
        "softplus",
    )
}


def check_model(model, name, has_positions=False):
    """Raises ValueError if a model is not one of a vector, of one real input.

    Args:
        model: What a user passed as a model.
        name: String, the name of the function that it was passed to.
        has_positions: Boolean, whether there is a vector for each position of
            an image, or one.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Expected a Keras model. "
            f"Received: model={model} (of type {type(model).__name__})"
        )
    require_built(model, name)
    try:
        shapes = [tuple(x.shape) for x in model.inputs], model.output_shape
    except (AttributeError, ValueError, TypeError):
        # A model without a graph; the bound says so.
        start(model)
        raise
    inputs, output = shapes
    is_tensor = isinstance(model, keras.Sequential) or isinstance(
        model.output, keras.KerasTensor
    )
    is_tensor = is_tensor and isinstance(output, tuple)
    is_vector = is_tensor and isinstance(output[-1], int)
    rank = len(output)
    fits = rank > 2 if has_positions else rank == 2
    if len(inputs) != 1 or not is_vector or not fits:
        expected, hint = "(batch, outputs)", ""
        if is_vector and rank > 2:
            hint = "Scores of each position are for `certify_pixels`. "
        if has_positions:
            expected, hint = "(batch, positions..., classes)", ""
            if is_vector and rank == 2:
                hint = "Scores without positions are for `certify`. "
        raise ValueError(
            f"`{name}` needs one input, and one output `{expected}`. {hint}"
            f"Received: inputs of shapes {inputs}, outputs of shapes {output}"
        )
    _check_input(model)


def check_classifier(model, name, has_positions=False):
    """As `check_model`, and a single score has to take both signs."""
    check_model(model, name, has_positions)
    last = last_layer(model)
    if has_positions and getattr(last, "data_format", "") == "channels_first":
        raise ValueError(
            "Scores of classes must be along the last axis. Expected a last "
            "layer with data_format='channels_last'. Received: layer "
            f"'{last.name}' with data_format='channels_first'"
        )
    if (
        model.output_shape[-1] == 1
        and getattr(last, "activation", None) in _ONE_SIGN
    ):
        raise ValueError(
            "The sign of a single score is the prediction, so it must take "
            "both signs. Expected a last layer without activation. "
            f"Received: layer '{last.name}' with "
            f"activation={last.activation.__name__}"
        )


def check_single_score(model, name, noun):
    """As `check_model`, and there is one score.

    Args:
        model: As of `check_model`.
        name: As of `check_model`.
        noun: String, what such a model is called, such as "A detector".
    """
    check_model(model, name)
    if model.output_shape[-1] != 1:
        raise ValueError(
            f"{noun} has a single score. Expected an output `(batch, 1)`. "
            f"Received: an output of shape {model.output_shape}"
        )


def _check_input(model):
    """Raises ValueError where distances of inputs mean nothing."""
    embeddings = [
        layer.name
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.Embedding)
    ]
    if embeddings:
        raise ValueError(
            "A certificate is a distance between inputs, and token numbers "
            "have none that means anything. Expected a model of the vectors "
            "that the embedding returns, such as "
            "`keras.Sequential(model.layers[1:])`. "
            f"Received: a model with the layer '{embeddings[0]}' of type "
            "Embedding"
        )
    (dtype,) = (x.dtype for x in model.inputs)
    if dtype not in ("float32", "float64"):
        raise ValueError(
            "Inputs must not be rounded. Expected an input of dtype float32. "
            f"Received: dtype={dtype}"
        )


def check_samples(model, x):
    """Raises ValueError for an array that is no batch of inputs of a model.

    Args:
        model: A model that `check_classifier` has seen.
        x: Array or tensor.
    """
    expected = tuple(model.inputs[0].shape)
    found = tuple(x.shape)
    hint = ""
    if _fits(found[1:], expected[1:]):
        return
    if _fits(found, expected[1:]):
        hint = "A single sample is a batch of one, `x[np.newaxis]`. "
    raise ValueError(
        f"Samples need the shape {expected}. {hint}Received: x of shape {found}"
    )


def _fits(shape, expected):
    return len(shape) == len(expected) and all(
        wanted in (None, length)
        for length, wanted in zip(shape, expected, strict=True)
    )


def require_finite(x):
    """Raises ValueError for samples that are no numbers, an array."""
    if not np.all(np.isfinite(x)):
        raise ValueError(
            "Samples must be finite. Received: NaN or infinite values"
        )


def float_type(x):
    x = np.asarray(ops.convert_to_numpy(x))
    return x if x.dtype in ("float32", "float64") else x.astype("float32")


def in_batches(model, x, y, batch_size, check_labels=None):
    """Iterator over pairs `(x, y)`, and the number of samples, or None.

    Args:
        model: A model.
        x: See `certify`.
        y: See `certify`.
        batch_size: Integer.
        check_labels: Function of the labels of all samples, or None: raises
            an error for bad ones, before anything is computed.
    """
    if isinstance(x, keras.utils.PyDataset):
        _refuse_labels(y)
        return (_as_pair(x[i]) for i in range(x.num_batches or len(x))), None
    if not isinstance(x, (list, tuple, np.ndarray)) and not ops.is_tensor(x):
        if not hasattr(x, "__iter__"):
            raise ValueError(
                "Expected an array or an iterable of batches. "
                f"Received: x of type {type(x).__name__}"
            )
        _refuse_labels(y)
        return map(_as_pair, x), None
    x = _as_samples(x)
    if len(x) == 0:
        raise ValueError(
            "There is nothing to certify. "
            f"Received: x of shape {x.shape}, without samples"
        )
    check_samples(model, x)
    if y is not None:
        y = np.asarray(y if isinstance(y, list) else ops.convert_to_numpy(y))
        if y.ndim == 0 or len(y) != len(x):
            raise ValueError(
                "Each sample needs one label. "
                f"Received: {len(x)} samples and labels of shape {y.shape}"
            )
        if check_labels is not None:
            check_labels(y)
    return (
        (
            x[first : first + batch_size],
            None if y is None else y[first : first + batch_size],
        )
        for first in range(0, len(x), batch_size)
    ), len(x)


def _as_samples(x):
    """Array or tensor, or a list of samples, as an array of floats."""
    try:
        return float_type(x)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "Expected an array of numbers, a list of samples of one shape, or "
            "an iterable of batches that is no list, such as `iter(batches)`. "
            f"Received: x of type {type(x).__name__} and length {len(x)}"
        ) from error


def _refuse_labels(y):
    if y is not None:
        raise ValueError(
            "A data set has its labels with it. Expected `y=None`. "
            f"Received: y of type {type(y).__name__}"
        )


def _as_pair(batch):
    if isinstance(batch, (tuple, list)):
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


def by_rows(function, count, batch_size):
    """Joins what a function returns for the rows of each batch.

    All batches have one shape, for which functions are compiled once.

    Args:
        function: Takes an array of row numbers, and returns an array with an
            entry for each of them.
        count: Integer, the number of rows.
        batch_size: Integer, rows in a batch.
    """
    batch_size = min(positive_int("batch_size", batch_size), count)
    found = []
    for first in range(0, count, batch_size):
        rows = np.arange(first, first + batch_size)
        found.append(function(rows % count)[: count - first])
    return np.concatenate(found)
