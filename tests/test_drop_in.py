"""Constrained layers take the place of `Dense` in an ordinary Keras program."""

import importlib.util

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from harness import built
from harness import to_numpy
from keras import ops

from deel.lip import layers

UNITS = 6
CLASSES = 3


def functional(layer=layers.SpectralDense, activation="relu", output="softmax"):
    """A functional model on 8 features, like one of `Dense` layers."""
    inputs = keras.Input((8,))
    hidden = layer(UNITS, activation=activation)(inputs)
    return keras.Model(inputs, layer(CLASSES, activation=output)(hidden))


def compiled(model, loss="categorical_crossentropy", rate=0.1):
    model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"])
    return model


def samples(count=40):
    """Features, and classes that can be told from them."""
    random = np.random.default_rng(0)
    x = random.normal(size=(count, 8)).astype("float32")
    return x, keras.utils.to_categorical(np.argmax(x[:, :CLASSES], axis=-1))


def values(model):
    """Copies of all variables, by their path."""
    return {
        variable.path: np.array(to_numpy(variable))
        for variable in model.variables
    }


def assert_same(before, after):
    assert before.keys() == after.keys()
    for path, value in before.items():
        assert_equal(after[path], value, err_msg=path)


def number_of_parameters(layer, inputs, units):
    layer = built(layer(units), inputs)
    return layer.count_params()


@pytest.mark.parametrize(
    ("layer", "inputs", "units", "expected"),
    [
        (layers.SpectralDense, 784, 128, 200_961),
        (layers.SpectralDense, 128, 10, 2_581),
        (layers.FrobeniusDense, 128, 10, 2_570),
        (layers.SpectralDense, 784, 512, 803_841),
        (layers.SpectralDense, 512, 256, 262_657),
        (layers.SpectralDense, 256, 128, 65_793),
        (layers.SpectralDense, 128, 64, 16_513),
        (layers.SpectralDense, 64, 10, 1_301),
    ],
)
def test_dense_layers_have_the_known_number_of_parameters(
    layer, inputs, units, expected
):
    assert number_of_parameters(layer, inputs, units) == expected


@pytest.mark.parametrize("layer", [layers.SpectralDense, layers.FrobeniusDense])
@pytest.mark.parametrize("name", ["sigmoid", "relu", "softmax"])
def test_activations_are_taken_by_name(layer, name):
    x, _ = samples()
    layer = layer(UNITS, activation=name)
    outputs = layer(x)
    expected = keras.activations.get(name)(ops.matmul(x, layer.wbar))
    assert_close(outputs, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "activation", "optimizer", "loss"),
    [
        (layers.SpectralDense, "sigmoid", "sgd", "mse"),
        (layers.SpectralDense, "sort", "adam", "categorical_crossentropy"),
        (layers.FrobeniusDense, "relu", "rmsprop", "categorical_hinge"),
    ],
)
def test_losses_and_optimizers_of_keras_train_the_layers(
    layer, activation, optimizer, loss
):
    activation = layers.GroupSort2() if activation == "sort" else activation
    model = functional(layer, activation)
    model.compile(optimizer, loss)
    history = model.fit(*samples(), epochs=10, batch_size=8, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


def test_compiling_again_keeps_every_variable_and_prediction():
    x, y = samples()
    model = compiled(functional(), "mse", 0.1)
    model.fit(x, y, verbose=0)
    before, predicted = values(model), model.predict(x, verbose=0)
    names = {path.split("/")[-1] for path in before}
    assert names == {"kernel", "bias", "sn", "sigma", "wbar"}

    compiled(model, "categorical_crossentropy", 0.01)
    assert_same(before, values(model))
    assert_equal(model.predict(x, verbose=0), predicted)


class Watch(keras.callbacks.Callback):
    """Copies the variables when validation begins and ends."""

    def __init__(self):
        super().__init__()
        self.begin, self.end = [], []

    def on_test_begin(self, logs=None):
        self.begin.append(values(self.model))

    def on_test_end(self, logs=None):
        self.end.append(values(self.model))


def without_metrics(variables):
    """Those of the model itself: metrics count what they have seen."""
    return {
        path: value
        for path, value in variables.items()
        if path.split("/")[-1] in {"kernel", "bias", "sn", "sigma", "wbar"}
    }


@pytest.mark.parametrize("way", ["validation_split", "validation_data"])
def test_validation_changes_no_variable(way):
    x, y = samples()
    validation = {
        "validation_split": {"validation_split": 0.2},
        "validation_data": {"validation_data": (x, y)},
    }[way]
    watch = Watch()
    model = compiled(functional())
    model.fit(x, y, epochs=2, callbacks=[watch], verbose=0, **validation)
    assert len(watch.begin) == len(watch.end) == 2
    for begin, end in zip(watch.begin, watch.end, strict=True):
        assert len(without_metrics(begin)) == 10
        assert_same(without_metrics(begin), without_metrics(end))


def test_evaluation_and_prediction_change_no_variable():
    x, y = samples()
    model = compiled(functional())
    model.fit(x, y, verbose=0)
    before = values(model)
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    model(x, training=False)
    assert_same(without_metrics(before), without_metrics(values(model)))


def test_validation_and_prediction_use_the_kernel_of_the_last_step():
    x, y = samples()
    model = compiled(functional())
    kept = slice(32, None)
    history = model.fit(
        x, y, validation_split=0.2, epochs=3, batch_size=8, verbose=0
    ).history
    loss, accuracy = model.evaluate(x[kept], y[kept], verbose=0)
    assert_close(history["val_loss"][-1], loss, rtol=1e-6)
    assert history["val_accuracy"][-1] == pytest.approx(accuracy)

    hidden, output = model.layers[1:]
    predicted = model.predict(x, verbose=0)
    features = ops.relu(ops.matmul(x, hidden.wbar) + hidden.bias)
    expected = ops.softmax(ops.matmul(features, output.wbar) + output.bias)
    assert_close(predicted, expected, atol=1e-6)
    # On JAX the stored kernel is that of the last forward pass, one update
    # before the free one.
    if keras.backend.backend() != "jax":
        assert_close(predicted, model(x, training=True), atol=1e-4)


def test_history_has_the_keys_of_keras_however_verbose():
    x, y = samples()
    model = compiled(functional())
    for verbose in (0, 1, 2):
        history = model.fit(x, y, validation_split=0.2, verbose=verbose).history
        assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}


def test_a_single_callback_needs_no_list():
    watch = Watch()
    x, y = samples()
    model = compiled(functional())
    model.fit(x, y, validation_split=0.2, callbacks=watch, verbose=0)
    assert len(watch.begin) == 1


def test_tensorboard_gets_scalars_and_histograms_of_each_variable(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras writes these logs with TensorFlow")
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    import tensorflow as tf

    x, y = samples()
    model = compiled(functional())
    model.fit(
        x,
        y,
        epochs=2,
        validation_split=0.2,
        callbacks=keras.callbacks.TensorBoard(str(tmp_path), histogram_freq=1),
        verbose=0,
    )
    tags = {
        value.tag
        for path in tmp_path.rglob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert {"epoch_loss", "epoch_accuracy"} <= tags
    for name in ("kernel", "bias", "sn", "sigma", "wbar"):
        assert any(f"{name}/histogram" in tag for tag in tags), name
