"""Loss parameters that can change while a compiled model trains.

On TensorFlow and torch a training step reads the variables of a loss when it
runs. On JAX it reads the state that it is handed, and everything else is a
constant from the moment that it was compiled. Keras hands over the variables
of the model, the optimizer and the metrics, and does not know those of losses:
so there they travel as the state of a metric that measures nothing.
"""

import functools
import warnings

import keras


class _LossParameters(keras.metrics.Metric):
    """Carries the variables of losses through the steps of a model."""

    def __init__(self, variables):
        super().__init__(name="loss_parameters")
        self._parameters = variables

    def update_state(self, *args, **kwargs):
        pass

    def result(self):
        return {}

    def reset_state(self):
        pass


def hand_over_loss_parameters(model):
    """Lets the compiled steps of a model see the loss parameters change.

    Margins that are trained are left out: they travel with the weights.

    Args:
        model: A compiled `keras.Model`.
    """
    if keras.backend.backend() != "jax":
        return
    parameters = {
        id(variable): variable
        for loss in keras.tree.flatten(model.loss)
        if isinstance(loss, keras.losses.Loss)
        for variable in getattr(loss, "variables", ())
        if not variable.trainable
    }
    # Keras tracks metrics set as attributes, but not once a model is built.
    model._metrics[:] = [
        metric
        for metric in model._metrics
        if not isinstance(metric, _LossParameters)
    ]
    if parameters:
        model._metrics.append(_LossParameters(list(parameters.values())))


def _counts_loss_variables(method):
    """Decorator: during the method, loss variables are weights of the model."""

    @functools.wraps(method)
    def counting(self, *args, **kwargs):
        before = self._in_training
        self._in_training = True
        try:
            return method(self, *args, **kwargs)
        finally:
            self._in_training = before

    return counting


class TrainsLossVariables:
    """Mixin of the models that train the variables of their loss.

    While Keras trains or evaluates, the variables count as weights of the
    model. So the optimizer, the steps of each backend, metrics and callbacks
    treat them like any other, and no step is written anew. At other times they
    belong to the loss alone: `weights`, `summary` and the exported model do
    not show them.
    """

    _in_training = False

    def __init__(self, *args, optim_margin=True, **kwargs):
        super().__init__(*args, **kwargs)
        self.optim_margin = optim_margin

    @property
    def trainable_variables(self):
        return super().trainable_variables + self._loss_variables()

    @property
    def trainable_weights(self):
        return super().trainable_weights + self._loss_variables()

    def compile(self, optimizer="rmsprop", loss=None, *args, **kwargs):
        if not any(_trains_variables(x) for x in keras.tree.flatten(loss)):
            warnings.warn(
                f"{type(self).__name__} trains the variables of its loss, and "
                "this loss has none: it lacks `get_trainable_variables`. The "
                f"model is trained like any other. Received: loss={loss}",
                UserWarning,
                stacklevel=2,
            )
        super().compile(optimizer, loss, *args, **kwargs)
        if self.built:
            self._create_margins()

    def build(self, input_shape=None):
        super().build(input_shape)
        # A list of layers may be compiled before it knows its input.
        if self.compiled:
            self._create_margins()

    @_counts_loss_variables
    def fit(self, *args, **kwargs):
        return super().fit(*args, **kwargs)

    @_counts_loss_variables
    def evaluate(self, *args, **kwargs):
        return super().evaluate(*args, **kwargs)

    @_counts_loss_variables
    def train_on_batch(self, *args, **kwargs):
        return super().train_on_batch(*args, **kwargs)

    @_counts_loss_variables
    def test_on_batch(self, *args, **kwargs):
        return super().test_on_batch(*args, **kwargs)

    @_counts_loss_variables
    def compile_from_config(self, config):
        # The optimizer is built here, and has to know all that it will train.
        super().compile_from_config(config)

    def zero_grad(self, *args, **kwargs):
        # Called by Keras on torch, where gradients add up until cleared.
        super().zero_grad(*args, **kwargs)
        for variable in self._loss_variables():
            variable.value.grad = None

    def get_config(self):
        return {**super().get_config(), "optim_margin": self.optim_margin}

    def _loss_variables(self):
        if not self._in_training or not self.optim_margin or not self.trainable:
            return []
        return [
            variable
            for loss in keras.tree.flatten(self.loss)
            if _trains_variables(loss)
            for variable in _variables_of(loss)
        ]

    def _create_margins(self):
        """Tells the losses how many outputs they have."""
        losses = self.loss
        if isinstance(losses, dict):
            losses = [losses.get(name) for name in self.output_names]
        losses = keras.tree.flatten(losses)
        if len(losses) == 1:
            losses = losses * len(self.outputs)
        for loss, output in zip(losses, self.outputs, strict=True):
            if hasattr(loss, "create_margins"):
                loss.create_margins(output.shape[-1])


def _trains_variables(loss):
    return callable(getattr(loss, "get_trainable_variables", None))


def _variables_of(loss):
    variables = loss.get_trainable_variables()
    if not isinstance(variables, (list, tuple)) or not all(
        isinstance(variable, keras.Variable) for variable in variables
    ):
        raise ValueError(
            f"`get_trainable_variables` of {type(loss).__name__} returns a "
            f"list of `keras.Variable`. Received: {variables}"
        )
    return variables
