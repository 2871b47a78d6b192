"""Callbacks for training with `fit`."""

from pathlib import Path

import keras
import numpy as np

from deel.lip._backend.variables import host
from deel.lip._export import condense_layers
from deel.lip._loss_variables import hand_over_loss_parameters
from deel.lip._register import register
from deel.lip._validation import positive_int
from deel.lip._validation import require_one_of
from deel.lip.model import averages_weights

__all__ = [
    "CondenseCallback",
    "LossParamLog",
    "LossParamScheduler",
    "MonitorCallback",
]


def __dir__():
    return __all__


class _Callback(keras.callbacks.Callback):
    """Base of the callbacks: a config of their arguments."""

    _arguments = ()

    def get_config(self):
        return {name: getattr(self, name) for name in self._arguments}


@register("CondenseCallback")
class CondenseCallback(_Callback):
    """Overwrites free kernels with the constrained ones during training.

    The layers of this library keep their kernels on the constraint by
    themselves when a Keras optimizer trains them; this is for layers whose
    kernel drifts away from it, such as those with a `kernel_constraint`. And
    for stock Keras models that are trained with `use_ema`: the averages that
    Keras puts in place when training ends are condensed, too.

    Args:
        on_epoch: Boolean, whether to condense at the end of each epoch.
        on_batch: Boolean, whether to condense after each training batch.

    Example:

    >>> from deel.lip.callbacks import CondenseCallback
    >>> CondenseCallback(on_batch=True).get_config()
    {'on_epoch': True, 'on_batch': True}
    """

    _arguments = ("on_epoch", "on_batch")

    def __init__(self, on_epoch=True, on_batch=False):
        super().__init__()
        self.on_epoch = on_epoch
        self.on_batch = on_batch

    def on_train_batch_end(self, batch, logs=None):
        if self.on_batch:
            condense_layers(self.model)

    def on_epoch_end(self, epoch, logs=None):
        if self.on_epoch:
            condense_layers(self.model)

    def on_train_end(self, logs=None):
        # An optimizer with `use_ema` has replaced the kernels once more.
        if averages_weights(self.model.optimizer):
            condense_layers(self.model)


@register("LossParamScheduler")
class LossParamScheduler(_Callback):
    """Changes a parameter of the loss from batch to batch.

    Piecewise linear in the number of batches seen, constant before the first
    and after the last given point.

    Args:
        param_name: String, the attribute of the loss (`"alpha"`,
            `"min_margin"`, ...).
        fp: List of floats, the values at `xp`.
        xp: Increasing list of numbers of batches, as long as `fp`.
        step: Integer, the number of batches seen before.

    Raises:
        ValueError: If `xp` does not increase or differs from `fp` in length;
            when training begins, if the loss has no such parameter.

    Example:

    >>> from deel.lip.callbacks import LossParamScheduler
    >>> # From 1 to 100 over the first 500 batches.
    >>> schedule = LossParamScheduler("alpha", fp=[1.0, 100.0], xp=[0, 500])
    """

    _arguments = ("param_name", "fp", "xp", "step")

    def __init__(self, param_name, fp, xp, step=0):
        super().__init__()
        if len(fp) != len(xp) or len(xp) == 0 or np.any(np.diff(xp) <= 0):
            raise ValueError(
                "Arguments `fp` and `xp` must have the same length, at least "
                f"one, and `xp` must increase. Received: fp={fp}, xp={xp}"
            )
        self.param_name = param_name
        self.fp = [float(value) for value in fp]
        self.xp = [float(value) for value in xp]
        self.step = int(step)

    def set_model(self, model):
        super().set_model(model)
        hand_over_loss_parameters(model)

    def on_train_begin(self, logs=None):
        parameter = _loss_parameter(self.model, self.param_name)
        if not isinstance(parameter, keras.Variable):
            raise ValueError(
                f"The parameter `{self.param_name}` of the loss is not a "
                f"variable, so it cannot change. Received: {parameter!r}"
            )

    def on_train_batch_begin(self, batch, logs=None):
        value = np.interp(self.step, self.xp, self.fp)
        _loss_parameter(self.model, self.param_name).assign(value)
        self.step += 1


@register("LossParamLog")
class LossParamLog(_Callback):
    """Prints a parameter of the loss at the end of epochs.

    Args:
        param_name: String, the attribute of the loss (`"hinge_margins"`,
            `"alpha"`, ...).
        rate: Integer, prints at every `rate`-th epoch, from the first on.

    Raises:
        ValueError: If `rate` is not a positive integer; when training begins,
            if the loss has no such parameter.
    """

    _arguments = ("param_name", "rate")

    def __init__(self, param_name, rate=1):
        super().__init__()
        self.param_name = param_name
        self.rate = positive_int("rate", rate)

    def on_train_begin(self, logs=None):
        _loss_parameter(self.model, self.param_name)

    def on_epoch_end(self, epoch, logs=None):
        if epoch % self.rate:
            return
        loss = self.model.loss
        value = getattr(loss, self.param_name)
        if isinstance(value, keras.Variable):
            value = np.array2string(host(value), threshold=6, edgeitems=3)
        print(f"\n{loss.name} {self.param_name} {value}")


def _loss_parameter(model, name):
    """The attribute of that name of the loss that a model is compiled with."""
    if not hasattr(model.loss, name):
        raise ValueError(
            "Expected the name of a parameter of the loss that the model is "
            f"compiled with. Received: param_name={name!r}, loss={model.loss}"
        )
    return getattr(model.loss, name)


@register("MonitorCallback")
class MonitorCallback(_Callback):
    """Logs singular values of kernels for TensorBoard.

    The values are written below `<logdir>/metrics`, under the name
    `<layer>_<target>_sigmas`. Needs TensorFlow and TensorBoard, whatever the
    backend.

    Args:
        monitored_layers: List of layer names.
        logdir: String, where TensorBoard looks for logs.
        target: `"kernel"` or `"wbar"`, the free or the constrained kernel.
        what: `"max"` writes the largest singular value as a scalar, `"all"` a
            histogram of all.
        on_epoch: Boolean, whether to write at the end of each epoch. Ignored
            if `on_batch` is True.
        on_batch: Boolean, whether to write after each training batch.

    Raises:
        AssertionError: If `target` or `what` is not one of those above.
        ImportError: If TensorFlow or TensorBoard is not installed.
        RuntimeWarning: When training begins, if a layer has no such target.
    """

    _arguments = (
        "monitored_layers",
        "logdir",
        "target",
        "what",
        "on_epoch",
        "on_batch",
    )

    def __init__(
        self,
        monitored_layers,
        logdir,
        target="kernel",
        what="max",
        on_epoch=True,
        on_batch=False,
    ):
        super().__init__()
        require_one_of("target", target, ("kernel", "wbar"), AssertionError)
        require_one_of("what", what, ("max", "all"), AssertionError)
        try:
            # The writer is TensorFlow's, on any backend.
            import tensorboard  # noqa: F401
            import tensorflow as tf
        except ImportError as error:
            raise ImportError(
                "MonitorCallback writes files for TensorBoard. Install it by "
                "`pip install tensorflow tensorboard`."
            ) from error
        self._summary = tf.summary
        self._writer = None
        self.monitored_layers = list(monitored_layers)
        self.logdir = str(logdir)
        self.target = target
        self.what = what
        self.on_batch = on_batch
        self.on_epoch = on_epoch and not on_batch
        self._finished_epochs = 0

    def on_train_begin(self, logs=None):
        for name in self.monitored_layers:
            layer = self.model.get_layer(name)
            if getattr(layer, self.target, None) is None:
                raise RuntimeWarning(
                    f"Layer '{name}' of type {type(layer).__name__} has no "
                    f"weights to monitor. Received: target={self.target}"
                )
        if self._writer is None:
            self._writer = self._summary.create_file_writer(
                str(Path(self.logdir) / "metrics")
            )

    def on_train_batch_end(self, batch, logs=None):
        if self.on_batch:
            self._write(batch)

    def on_epoch_end(self, epoch, logs=None):
        self._finished_epochs += 1
        if self.on_epoch:
            self._write(epoch)

    def on_train_end(self, logs=None):
        self._writer.flush()

    def _write(self, index):
        model = self.model
        step = self.params["steps"] * self._finished_epochs + index
        with self._writer.as_default():
            for name in self.monitored_layers:
                tag = f"{name}_{self.target}_sigmas"
                layer = model.get_layer(name)
                if self.what == "all":
                    values = _singular_values(getattr(layer, self.target))
                    self._summary.histogram(tag, values, step=step)
                else:
                    self._summary.scalar(tag, self._largest(layer), step=step)

    def _largest(self, layer):
        estimate = getattr(layer, "sig", None)
        if self.target == "kernel" and estimate is not None:
            return host(estimate)[0, 0]
        return _singular_values(getattr(layer, self.target))[0]


def _singular_values(kernel):
    kernel = host(kernel)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return np.linalg.svd(matrix, compute_uv=False)
