"""Callbacks: condensing, monitoring, loss parameters."""

import sys

import keras
import numpy as np
import pytest
from harness import assert_all_equal
from harness import assert_close
from harness import normal
from harness import to_numpy
from keras import ops

from deel.lip import callbacks
from deel.lip import losses
from deel.lip.layers import SpectralConv2D
from deel.lip.layers import SpectralDense
from deel.lip.model import Sequential

CALLBACKS = [
    callbacks.CondenseCallback(on_epoch=False, on_batch=True),
    callbacks.LossParamScheduler("alpha", fp=[1.0, 2.0], xp=[0, 10], step=3),
    callbacks.LossParamLog("alpha", rate=2),
]


def _data():
    x = normal(64, 6)
    return x, np.sign(x[:, :1])


@pytest.mark.parametrize("callback", CALLBACKS, ids=lambda x: type(x).__name__)
def test_config_rebuilds_the_callback(callback):
    # C20: Keras' own attributes are there as well.
    callback.set_params({"epochs": 3})
    assert callback.params == {"epochs": 3}
    config = callback.get_config()
    assert type(callback)(**config).get_config() == config


@pytest.mark.parametrize("when", ["on_epoch", "on_batch"])
def test_condense_reaches_kernels_of_nested_models(when):
    inner = keras.Sequential(
        [
            keras.Input((6,)),
            # The constraint of the user takes the place of the retraction.
            SpectralDense(5, kernel_constraint="non_neg"),
        ]
    )
    model = keras.Sequential([keras.Input((6,)), inner, SpectralDense(1)])
    model.compile(keras.optimizers.SGD(0.5), losses.HKR(10.0))
    layer = inner.layers[0]

    def distance():
        return np.max(
            np.abs(
                to_numpy(ops.copy(layer.kernel))
                - to_numpy(ops.copy(layer.wbar))
            )
        )

    model.fit(*_data(), verbose=0)
    assert distance() > 1e-3
    arguments = {"on_epoch": False, "on_batch": False, when: True}
    callback = callbacks.CondenseCallback(**arguments)
    model.fit(*_data(), callbacks=[callback], verbose=0)
    assert distance() == 0


@pytest.mark.parametrize("make", [Sequential, keras.Sequential])
def test_scheduled_parameter_acts_on_the_compiled_step(make):
    # Hinge of margin m and a network of outputs 0: the loss of a batch is
    # alpha * m / 2, whatever the labels.
    model = make([keras.Input((6,)), SpectralDense(1)])
    model.set_weights([np.zeros(w.shape) for w in model.get_weights()])
    optimizer = keras.optimizers.SGD(0.0)
    model.compile(optimizer, losses.HKR(alpha=1.0, min_margin=2.0))
    values = []

    class Recorder(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs):
            values.append(logs["loss"])

    schedule = callbacks.LossParamScheduler("alpha", [1.0, 5.0], [0, 4])
    x, y = _data()
    model.fit(
        x[:6],
        y[:6],
        batch_size=1,
        callbacks=[schedule, Recorder()],
        shuffle=False,
        verbose=0,
    )
    assert schedule.step == 6
    # The log is the mean of the batches so far.
    alphas = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 5.0])
    expected = np.cumsum(alphas) / np.arange(1, 7)
    assert_close(values, expected, rtol=1e-5)
    assert_close(model.loss.alpha, 5.0)
    assert set(model.get_metrics_result()) == {"loss"}


def test_scheduled_parameter_is_the_one_of_the_loss_in_use():
    model = Sequential([keras.Input((6,)), SpectralDense(1)])
    for _ in range(2):
        model.compile("sgd", losses.HKR(alpha=1.0, min_margin=2.0))
        schedule = callbacks.LossParamScheduler("alpha", [3.0], [0])
        model.fit(*_data(), callbacks=[schedule], verbose=0)
        assert to_numpy(model.loss.alpha) == 3.0


@pytest.mark.parametrize(
    "arguments",
    [([1.0], [0, 1]), ([], []), ([1.0, 2.0], [1, 1]), ([1.0, 2.0], [2, 1])],
    ids=["lengths", "empty", "equal", "falling"],
)
def test_schedule_without_increasing_points_is_refused(arguments):
    with pytest.raises(ValueError, match="xp"):
        callbacks.LossParamScheduler("alpha", *arguments)


@pytest.mark.parametrize(
    "callback",
    [
        callbacks.LossParamLog("nothing"),
        callbacks.LossParamScheduler("nothing", [1.0], [0]),
        callbacks.LossParamScheduler("name", [1.0], [0]),
    ],
    ids=["log", "schedule", "no variable"],
)
def test_parameter_that_the_loss_lacks_is_refused_before_training(callback):
    model = Sequential([keras.Input((6,)), SpectralDense(1)])
    model.compile("sgd", losses.HKR(alpha=1.0))
    before = model.get_weights()
    with pytest.raises(ValueError, match=callback.param_name):
        model.fit(*_data(), callbacks=[callback], verbose=0)
    assert_all_equal(before, model.get_weights())


def test_log_prints_numbers_at_its_rate(capsys):
    # C20
    model = Sequential([keras.Input((6,)), SpectralDense(10)])
    model.compile("sgd", losses.MulticlassHKRauto(min_margin=0.01))
    labels = np.eye(10)[np.arange(64) % 10]
    model.loss.create_margins(10)
    log = callbacks.LossParamLog("hinge_margins", rate=4)
    model.fit(_data()[0], labels, epochs=6, callbacks=[log], verbose=0)
    line = "MulticlassHKRauto hinge_margins [0.01 0.01 0.01 ... 0.01 0.01 0.01]"
    assert capsys.readouterr().out == f"\n{line}\n\n{line}\n"


def test_log_refuses_a_rate_of_zero():
    with pytest.raises(ValueError, match="rate"):
        callbacks.LossParamLog("alpha", rate=0)


def _events(logdir):
    """Values written for TensorBoard: `{tag: {step: tensor}}`."""
    tf = pytest.importorskip("tensorflow")
    found = {}
    for path in sorted((logdir / "metrics").iterdir()):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                tensor = tf.make_ndarray(value.tensor)
                found.setdefault(value.tag, {})[event.step] = tensor
    return found


def _monitored(logdir, **arguments):
    pytest.importorskip("tensorboard")
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            SpectralConv2D(3, 3, name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(1, name="stock"),
        ]
    )
    model.compile("sgd", "mse")
    callback = callbacks.MonitorCallback(logdir=logdir, **arguments)
    x = np.random.default_rng(0).standard_normal((8, 4, 4, 1))
    model.fit(
        x, x[:, 0, 0], epochs=2, batch_size=2, callbacks=[callback], verbose=0
    )
    return model, _events(logdir)


@pytest.mark.parametrize("target", ["kernel", "wbar"])
@pytest.mark.parametrize("what", ["max", "all"])
def test_monitor_writes_singular_values_of_each_epoch(tmp_path, target, what):
    # C16: a convolution, whose shape is a tuple, and all values.
    model, events = _monitored(
        tmp_path, monitored_layers=["conv"], target=target, what=what
    )
    assert set(events) == {f"conv_{target}_sigmas"}
    written = events[f"conv_{target}_sigmas"]
    # Four batches for each of two epochs, plus the number of the epoch.
    assert sorted(written) == [4, 9]
    layer = model.get_layer("conv")
    kernel = to_numpy(ops.copy(getattr(layer, target)))
    expected = np.linalg.svd(kernel.reshape(9, 3), compute_uv=False)
    if what == "max":
        assert_close(written[9], expected[0], rtol=1e-2)
    else:
        assert np.sum(written[9][:, 2]) == 3
        assert np.min(written[9][:, 0]) <= np.min(expected) + 1e-6
        assert np.max(written[9][:, 1]) >= np.max(expected) - 1e-6


def test_monitor_of_batches_writes_no_epochs(tmp_path):
    _, events = _monitored(
        tmp_path, monitored_layers=["stock"], on_batch=True, on_epoch=True
    )
    assert sorted(events["stock_kernel_sigmas"]) == list(range(8))


def test_monitor_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(AssertionError, match="target"):
        callbacks.MonitorCallback(["conv"], tmp_path, target="bias")
    with pytest.raises(AssertionError, match="what"):
        callbacks.MonitorCallback(["conv"], tmp_path, what="mean")
    with pytest.raises(RuntimeWarning, match="stock"):
        _monitored(tmp_path, monitored_layers=["stock"], target="wbar")


def test_monitor_without_tensorboard_says_what_to_install(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match="pip install"):
        callbacks.MonitorCallback(["conv"], tmp_path)


def test_monitor_config_holds_all_arguments(tmp_path):
    pytest.importorskip("tensorboard")
    arguments = {
        "monitored_layers": ["conv"],
        "logdir": str(tmp_path),
        "target": "wbar",
        "what": "all",
        "on_epoch": False,
        "on_batch": True,
    }
    assert callbacks.MonitorCallback(**arguments).get_config() == arguments
