"""Losses with learned margins, and the models that train them."""

import keras
import numpy as np
import pytest
from golden_scores import BINARY
from golden_scores import CLASSES
from harness import assert_all_close
from harness import assert_close
from harness import assert_equal
from harness import normal
from harness import reloaded
from harness import to_numpy
from keras import ops

from deel.lip import losses
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import SpectralDense
from deel.lip.model import LossVariableModel
from deel.lip.model import LossVariableSequential
from deel.lip.model import Model

LEARNED = [
    lambda **kwargs: losses.HKRauto(10.0, **kwargs),
    losses.HingeMarginAuto,
]
LEARNED_MULTICLASS = [losses.MulticlassHKRauto, losses.MulticlassHingeAuto]


@pytest.mark.parametrize(
    ("loss", "data", "expected"),
    [
        (losses.HingeMarginAuto(), BINARY, 0.2333333),
        (losses.HKRauto(10.0), BINARY, 1.3333333),
        (losses.MulticlassHingeAuto(), CLASSES, 0.6277778),
        (losses.MulticlassHingeAuto(soft_hinge_tau=20.0), CLASSES, 1.5999961),
        (losses.MulticlassHKRauto(), CLASSES, 5.8550000),
        (losses.MulticlassHKRauto(soft_hinge_tau=20.0), CLASSES, 15.5771835),
    ],
    ids=["hinge", "hkr", "multi-hinge", "soft", "multi-hkr", "soft-hkr"],
)
def test_golden_values_of_fresh_losses(loss, data, expected):
    assert_close(loss(*data), expected, atol=1e-6)


def test_golden_value_with_margins_of_their_own():
    loss = losses.MulticlassHingeAuto()
    assert loss.margins is None
    assert loss.get_trainable_variables() == []
    loss(*CLASSES)
    loss.margins.assign([0.5, 1.0, 2.0])
    assert_close(loss(*CLASSES), 0.6, atol=1e-6)
    assert loss.get_trainable_variables() == [loss.margins]
    assert loss.margins.name == "margin_loss"


def test_classes_without_sample_leave_the_margin_term_finite():
    loss = losses.MulticlassHingeAuto(min_margin=0.5, alpha_margin=1.0)
    nobody = np.zeros((2, 3), "float32")
    assert np.isfinite(to_numpy(loss(nobody, np.ones((2, 3), "float32"))))


@pytest.mark.parametrize("make", LEARNED + LEARNED_MULTICLASS)
def test_config_holds_plain_values_of_the_arguments(make):
    loss = make(min_margin=0.5, max_margin=3.0, alpha_margin=0.2)
    config = loss.get_config()
    assert config["min_margin"] == 0.5
    assert config["max_margin"] == 3.0
    assert_close(config["alpha_margin"], 0.2, rtol=1e-6)
    assert type(loss).from_config(config).get_config() == config
    assert "margins" not in config


def test_bounds_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="max_margin"):
        losses.HingeMarginAuto(min_margin=2.0, max_margin=1.0)


def test_margins_of_another_number_of_outputs_are_refused():
    loss = losses.MulticlassHingeAuto()
    loss(*CLASSES)
    with pytest.raises(ValueError, match="outputs=4"):
        loss(np.eye(4), np.eye(4))


def _data(count=256):
    x = normal(count, 8)
    return x, np.eye(3, dtype="float32")[np.argmax(x[:, :3], axis=-1)]


def _functional(**kwargs):
    inputs = keras.Input((8,))
    hidden = SpectralDense(16, activation="relu")(inputs)
    outputs = FrobeniusDense(3)(hidden)
    return LossVariableModel(inputs=inputs, outputs=outputs, **kwargs)


def _sequential(**kwargs):
    layers = [SpectralDense(16, activation="relu"), FrobeniusDense(3)]
    return LossVariableSequential(layers, **kwargs)


def _loss(**kwargs):
    arguments = {"alpha": 10.0, "min_margin": 0.05, "alpha_margin": 0.5}
    return losses.MulticlassHKRauto(**{**arguments, **kwargs})


def _margins(model):
    return to_numpy(ops.copy(model.loss.hinge_margins))


def _value(model, x, y):
    """The loss of the predictions, without a training step."""
    loss = model.loss(y, model.predict(x, verbose=0))
    return float(to_numpy(loss))


@pytest.mark.parametrize("make", [_functional, _sequential])
def test_fit_trains_the_margins_within_their_bounds(make):
    x, y = _data()
    model = make()
    model.compile(keras.optimizers.Adam(0.02), _loss(max_margin=0.2))
    model.fit(x, y, epochs=1, batch_size=64, verbose=0)
    first = _margins(model)
    assert np.any(first > 0.05)
    assert np.all((first >= np.float32(0.05)) & (first < 0.2))
    model.fit(x, y, epochs=8, batch_size=64, verbose=0)
    assert_close(_margins(model), 0.2)


def test_step_moves_margins_by_their_gradient_and_nothing_twice():
    # SGD by hand: the gradient of the loss with respect to the margins, for
    # scores before the step. On a second step nothing of the first is left.
    x, y = _data(32)
    model = _functional()
    model.compile(keras.optimizers.SGD(0.01), _loss())
    own, margins = y.argmax(axis=-1), np.full(3, 0.05)
    for _ in range(2):
        scores = to_numpy(model(x, training=True))
        inside = (y @ margins)[:, None] / 2 - (2 * y - 1) * scores > 0
        slope = 10.0 * np.mean(np.where(y > 0, 2.0, 1.0) * inside / 2, axis=-1)
        gradient = np.bincount(own, slope, 3) / len(own) - 10.0 * 0.5 / 3
        model.train_on_batch(x, y)
        expected = np.clip(margins - 0.01 * gradient, 0.05, 200.0)
        assert_close(_margins(model), expected, atol=1e-6)
        margins = _margins(model)


@pytest.mark.parametrize("make", [_functional, _sequential])
def test_margins_are_no_weights_of_the_model(make):
    x, y = _data()
    model = make()
    model.compile("adam", _loss())
    model.fit(x, y, verbose=0)
    shapes = [tuple(v.shape) for v in model.trainable_weights]
    assert shapes == [(8, 16), (16,), (16, 3), (3,)]
    assert model.count_params() == sum(
        int(np.prod(v.shape)) for v in model.weights
    )
    assert len(model.weights) == 8
    exported = model.vanilla_export()
    assert_close(
        exported.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )


def test_margins_stay_without_optim_margin_and_with_stock_models():
    x, y = _data()
    frozen = _functional(optim_margin=False)
    frozen.compile("adam", _loss())
    frozen.fit(x, y, verbose=0)
    assert_equal(_margins(frozen), np.float32(0.05))
    stock = keras.Model(frozen.input, frozen.output)
    stock.compile("adam", _loss())
    with pytest.warns(UserWarning, match="not learned"):
        stock.fit(x, y, verbose=0)
    stock.loss(y, stock(x))
    assert_equal(_margins(stock), np.float32(0.05))


@pytest.mark.parametrize("make", [_functional, _sequential])
def test_margins_and_their_optimizer_state_survive_saving(make, tmp_path):
    x, y = _data()
    model = make()
    model.compile(keras.optimizers.Adam(0.02), _loss(), metrics=["accuracy"])
    model.fit(x, y, epochs=2, verbose=0)
    loaded = reloaded(model, tmp_path)
    assert type(loaded) is type(model)
    assert loaded.optim_margin
    assert_equal(_margins(loaded), _margins(model))
    assert loaded.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)
    # The next step is the same with both, so no slot was lost.
    for trained in (model, loaded):
        trained.train_on_batch(x, y)
    assert_close(_margins(loaded), _margins(model), atol=1e-6)
    assert_all_close(model.get_weights(), loaded.get_weights(), atol=1e-6)


def test_fit_takes_all_that_keras_takes():
    x, y = _data()
    model = _functional()
    model.compile(
        "adam",
        _loss(),
        metrics=["accuracy", losses.MulticlassKR()],
        weighted_metrics=["mse"],
    )
    epochs = []
    history = model.fit(
        x,
        y,
        sample_weight=np.linspace(0, 1, len(x)),
        epochs=2,
        steps_per_epoch=3,
        batch_size=16,
        validation_data=(x, y),
        callbacks=keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: epochs.append(epoch)
        ),
        verbose=0,
    ).history
    names = {"loss", "accuracy", "MulticlassKR", "mse"}
    assert set(history) == names | {f"val_{name}" for name in names}
    assert epochs == [0, 1]


def test_evaluation_uses_the_margins_of_the_moment():
    x, y = _data()
    model = _functional()
    model.compile(keras.optimizers.Adam(0.02), _loss())
    for _ in range(2):
        model.fit(x, y, verbose=0)
        expected = _value(model, x, y)
        value = model.evaluate(x, y, batch_size=len(x), verbose=0)
        assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_regularization_counts_as_in_any_model():
    x, y = _data()
    inputs = keras.Input((8,))
    outputs = SpectralDense(3, bias_regularizer="l2")(inputs)
    model = LossVariableModel(inputs=inputs, outputs=outputs)
    model.layers[-1].bias.assign([10.0, 10.0, 10.0])
    model.compile("adam", _loss())
    value = model.test_on_batch(x, y)
    plain = _value(model, x, y)
    assert_close(value - plain, 3.0, atol=1e-3)


def test_a_loss_without_variables_warns_and_trains():
    x, y = _data()
    model = _functional()
    with pytest.warns(UserWarning, match="get_trainable_variables"):
        model.compile("adam", losses.MulticlassHKR(10.0, 0.5))
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, epochs=2, verbose=0)
    assert model.evaluate(x, y, verbose=0) < before


def test_each_output_has_margins_of_its_own():
    x, y = _data()
    inputs = keras.Input((8,))
    model = LossVariableModel(
        inputs=inputs,
        outputs={
            "many": SpectralDense(3, name="many")(inputs),
            "one": SpectralDense(1, name="one")(inputs),
        },
    )
    model.compile(
        keras.optimizers.Adam(0.02),
        {"one": losses.HKRauto(10.0, 0.05, alpha_margin=1.0), "many": _loss()},
    )
    assert model.loss["many"].hinge_margins.shape == (3,)
    assert model.loss["one"].hinge_margins.shape == (1,)
    model.fit(x, {"many": y, "one": y[:, :1]}, verbose=0)
    margin = to_numpy(ops.copy(model.loss["one"].hinge_margins))
    assert margin[0] > 0.05


def test_stock_functional_model_with_the_loss_of_the_seed_stays_plain():
    inputs = keras.Input((8,))
    model = Model(inputs=inputs, outputs=SpectralDense(3)(inputs))
    model.compile("adam", losses.MulticlassHKRauto())
    x, y = _data()
    with pytest.warns(UserWarning, match="not learned"):
        model.fit(x, y, verbose=0)
    assert len(model.trainable_weights) == 2


@pytest.mark.parametrize("found", [keras.Variable(0.0), [0.0]])
def test_what_is_no_list_of_variables_is_refused(found):
    class Own(keras.losses.MeanSquaredError):
        def get_trainable_variables(self):
            return found

    x, y = _data()
    model = _functional()
    model.compile("adam", Own())
    with pytest.raises(ValueError, match=r"list of `keras\.Variable`"):
        model.fit(x, y, verbose=0)
