"""The accuracy of a single score, whose sign is the class."""

import warnings

import harness
import keras
import numpy as np
import pytest
from harness import normal
from harness import reloaded
from small_networks import linear_classifier

from deel.lip import losses
from deel.lip.certification import certify
from deel.lip.layers import FrobeniusDense
from deel.lip.metrics import BinaryAccuracy
from deel.lip.model import LossVariableSequential
from deel.lip.model import Model
from deel.lip.model import Sequential

# Right are all but the second and the last.
SCORES = np.array([[2.0], [-0.1], [0.2], [-0.6], [0.7]], "float32")
POSITIVE = np.array([True, True, True, False, False])
RIGHT = np.array([1, 0, 1, 1, 0])

LABELS = [
    POSITIVE,
    POSITIVE.astype("int32"),
    2 * POSITIVE.astype("int64") - 1,
    2.0 * POSITIVE - 1.0,
]


@pytest.mark.parametrize("labels", LABELS, ids=str)
@pytest.mark.parametrize("is_column", [True, False])
@pytest.mark.parametrize("is_score_column", [True, False])
def test_labels_of_each_convention_and_rank_agree(
    labels, is_column, is_score_column
):
    metric = BinaryAccuracy()
    metric.update_state(
        labels[:, None] if is_column else labels,
        SCORES if is_score_column else SCORES[:, 0],
    )
    assert float(metric.result()) == pytest.approx(RIGHT.mean())


def test_it_accumulates_and_is_reset():
    metric = BinaryAccuracy()
    for part in (slice(0, 1), slice(1, 4), slice(4, None)):
        metric.update_state(LABELS[2][part], SCORES[part])
    assert float(metric.result()) == pytest.approx(RIGHT.mean())
    metric.reset_state()
    metric.update_state(LABELS[2][:1], SCORES[:1])
    assert float(metric.result()) == 1.0


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_samples_are_weighted(shape):
    weights = np.array([1.0, 2.0, 0.0, 3.0, 4.0])
    metric = BinaryAccuracy()
    metric.update_state(LABELS[2], SCORES, sample_weight=weights.reshape(shape))
    expected = np.average(RIGHT, weights=weights)
    assert float(metric.result()) == pytest.approx(expected)


def test_it_is_rebuilt_from_its_config():
    metric = BinaryAccuracy(name="right")
    rebuilt = harness.rebuilt(metric)
    assert type(rebuilt) is BinaryAccuracy
    assert rebuilt.name == "right"
    name = keras.saving.get_registered_name(BinaryAccuracy)
    assert name == "deel-lip>BinaryAccuracy"


@pytest.mark.parametrize("shape", [(5, 2), (4, 1), (5, 1, 1)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="Received: "):
        BinaryAccuracy().update_state(np.ones(5), np.ones(shape))


def test_it_is_the_certified_accuracy_at_radius_0():
    model = linear_classifier(np.array([[1.0], [-2.0]]))
    # The first has a score of zero.
    x = np.concatenate([np.zeros((1, 2)), normal(30, 2)]).astype("float32")
    for first in (0, 1):
        y = np.concatenate([[first], np.arange(30) % 2])
        certified = certify(model, x, y).certified_accuracy(0.0)
        for labels in (y, 2 * y - 1):
            metric = BinaryAccuracy()
            metric.update_state(labels, model.predict(x, verbose=0))
            assert float(metric.result()) == pytest.approx(certified[0])


@pytest.mark.parametrize("labels", LABELS[1:3], ids=["01", "signs"])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_compiled_model_reports_and_saves_it(labels, rank, tmp_path):
    model = Sequential([keras.Input((1,)), FrobeniusDense(1, use_bias=False)])
    model.layers[-1].set_weights([np.ones((1, 1))] * 2)
    model.compile("sgd", losses.HKR(10.0), metrics=[BinaryAccuracy()])
    y = labels if rank == 1 else labels[:, None]
    options = {"batch_size": 2, "verbose": 0, "return_dict": True}
    found = model.evaluate(SCORES, y, **options)
    assert found["binary_accuracy"] == pytest.approx(RIGHT.mean())
    again = reloaded(model, tmp_path).evaluate(SCORES, y, **options)
    assert again == pytest.approx(found)


def _model(outputs=1, container=Sequential):
    return container([keras.Input((3,)), FrobeniusDense(outputs)])


WRONG = [
    "accuracy",
    "acc",
    "binary_accuracy",
    keras.metrics.BinaryAccuracy(),
    keras.metrics.binary_accuracy,
    keras.metrics.Precision(),
    "recall",
]
RIGHT_METRICS = [
    BinaryAccuracy(),
    keras.metrics.BinaryAccuracy(threshold=0.0),
    keras.metrics.Precision(thresholds=0),
    losses.KR(),
    "mse",
    lambda y_true, y_pred: y_pred,
]
SCORE_LOSSES = [
    losses.HKR(10.0),
    losses.KR,
    losses.NegKR(),
    losses.HingeMargin(),
]


def _name(value):
    """A name that is the same in each process, as addresses are not."""
    named = value if hasattr(value, "__name__") else type(value)
    return value if isinstance(value, str) else named.__name__


def _compile(model, loss, **metrics):
    """Warnings of `compile`, of which each must be told of this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.compile("sgd", loss, **metrics)
    return [str(x.message) for x in caught if x.category is UserWarning]


@pytest.mark.parametrize("metric", WRONG, ids=_name)
@pytest.mark.parametrize("loss", SCORE_LOSSES, ids=_name)
def test_stock_accuracy_of_a_score_is_warned_of(metric, loss):
    (message,) = _compile(_model(), loss, metrics=[losses.KR(), metric])
    assert "deel.lip.metrics.BinaryAccuracy" in message
    (message,) = _compile(_model(), loss, weighted_metrics=[metric])
    assert "Received: metrics=" in message


@pytest.mark.parametrize("metric", RIGHT_METRICS, ids=_name)
def test_metrics_that_are_right_are_not_warned_of(metric):
    assert _compile(_model(), losses.HKR(10.0), metrics=[metric]) == []


def test_other_losses_and_several_classes_are_not_warned_of():
    stock = {"metrics": ["accuracy"]}
    assert _compile(_model(), "binary_crossentropy", **stock) == []
    assert _compile(_model(3), losses.MulticlassHKR(), **stock) == []
    assert _compile(_model(3), losses.HKR(1.0), **stock) == []


def test_models_of_each_kind_warn():
    inputs = keras.Input((3,))
    functional = Model(inputs, FrobeniusDense(1)(inputs))
    unbuilt = Sequential([FrobeniusDense(1)])
    for model in (functional, unbuilt):
        assert _compile(model, losses.HKR(1.0), metrics=["accuracy"])
    learning = _model(container=LossVariableSequential)
    assert _compile(learning, losses.HKRauto(1.0), metrics=["accuracy"])


@pytest.mark.parametrize("is_dict", [True, False])
def test_each_output_has_its_own_loss_and_metrics(is_dict):
    inputs = keras.Input((3,))
    outputs = [
        FrobeniusDense(1, name="sign")(inputs),
        FrobeniusDense(4, name="classes")(inputs),
    ]
    of_sign, of_classes = losses.HKR(1.0), losses.MulticlassHKR()

    def compiled(sign, classes):
        model = Model(inputs, outputs)
        if is_dict:
            loss = {"sign": of_sign, "classes": of_classes}
            metrics = {"sign": sign, "classes": classes}
            return _compile(model, loss, metrics=metrics)
        return _compile(model, [of_sign, of_classes], metrics=[sign, classes])

    assert compiled(None, ["accuracy"]) == []
    assert len(compiled(["accuracy"], None)) == 1


def test_the_warning_points_to_the_call_of_compile():
    with pytest.warns(UserWarning, match="BinaryAccuracy") as caught:
        _model().compile("sgd", losses.HKR(10.0), metrics=["accuracy"])
    assert [x.filename for x in caught] == [__file__]
