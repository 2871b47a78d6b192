"""Loss parameters that can change while a compiled model trains.

On TensorFlow and torch a training step reads the variables of a loss when it
runs. On JAX it reads the state that it is handed, and everything else is a
constant from the moment that it was compiled. Keras hands over the variables
of the model, the optimizer and the metrics, and does not know those of losses:
so there they travel as the state of a metric that measures nothing.
"""

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
