"""Which metrics of Keras are wrong for a single score, whose sign decides."""

import warnings

import keras

from deel.lip._graph import is_graph
from deel.lip.losses import HKR
from deel.lip.losses import KR
from deel.lip.losses import HingeMargin
from deel.lip.losses import HingeMarginAuto
from deel.lip.losses import HKRauto
from deel.lip.losses import NegKR
from deel.lip.losses import TauBinaryCrossentropy

# Not their subclasses, which take several classes.
_OF_ONE_SCORE = {
    HKR,
    HKRauto,
    HingeMargin,
    HingeMarginAuto,
    KR,
    NegKR,
    TauBinaryCrossentropy,
}

# Names that Keras resolves by the shape of the scores.
_ACCURACY = ("accuracy", "acc")

# What compares scores with a threshold: 0.5, unless told otherwise.
_WITH_THRESHOLD = (
    keras.metrics.BinaryAccuracy,
    keras.metrics.FalseNegatives,
    keras.metrics.FalsePositives,
    keras.metrics.Precision,
    keras.metrics.Recall,
    keras.metrics.TrueNegatives,
    keras.metrics.TruePositives,
)


def warn_of_stock_metrics(model, metrics, stacklevel):
    """Warns of metrics of Keras that take a score for a probability.

    Args:
        model: A compiled model.
        metrics: Metrics as `compile` takes them, or None.
        stacklevel: Integer, as of `warnings.warn`.
    """
    wrong = [
        metric
        for loss, given in _of_single_scores(model, metrics)
        if _class_of(loss) in _OF_ONE_SCORE
        for metric in keras.tree.flatten(given)
        if _takes_probability(metric)
    ]
    if wrong:
        names = [getattr(x, "name", getattr(x, "__name__", x)) for x in wrong]
        warnings.warn(
            "The sign of a score is its class here, and metrics that compare "
            "scores with 0.5 are wrong. Expected "
            "`metrics=[deel.lip.metrics.BinaryAccuracy()]`, which is right for "
            f"labels 0 or -1, and 1. Received: metrics={names}",
            UserWarning,
            stacklevel=stacklevel + 1,
        )


def _of_single_scores(model, metrics):
    """Yields pairs of the loss and the metrics of an output with one score."""
    if not model.built or not is_graph(model):
        # A list of layers, which has one output, or a `call` that is unknown.
        yield _only(model.loss), metrics
        return
    outputs = keras.tree.flatten(model.outputs)
    given = _only(model.loss), metrics
    for index, output in enumerate(outputs):
        if output.shape[-1] != 1:
            continue
        if len(outputs) == 1:
            yield given
        else:
            name = model.output_names[index]
            yield tuple(_entry(x, index, name) for x in given)


def _only(losses):
    flat = keras.tree.flatten(losses)
    return flat[0] if len(flat) == 1 else losses


def _entry(given, index, name):
    """What belongs to one of several outputs, None if nothing does."""
    if isinstance(given, dict):
        return given.get(name)
    if isinstance(given, (list, tuple)):
        return given[index] if index < len(given) else None
    return given


def _class_of(loss):
    return loss if isinstance(loss, type) else type(loss)


def _takes_probability(metric):
    if isinstance(metric, str):
        if metric in _ACCURACY:
            return True
        try:
            metric = keras.metrics.get(metric)
        except ValueError:
            # Keras says what is wrong with it.
            return False
    if metric in (keras.metrics.binary_accuracy, *_WITH_THRESHOLD):
        return True
    # A list of thresholds was chosen by someone.
    threshold = getattr(metric, "thresholds", getattr(metric, "threshold", 0.5))
    return type(metric) in _WITH_THRESHOLD and threshold in (0.5, [0.5])
