"""Constants of the activations that layers apply to their own output.

`k_coef_lip` of a layer with a constrained kernel is that of its affine part.
What follows inside of the layer may have another constant than one.
"""

import warnings

import keras

from deel.lip._lipschitz import KnownConstant

# Upper bounds of the slope of functions of one number, and of the norm of the
# Jacobian of softmax: by Gershgorin at most max 2 p (1 - p) = 1/2.
SLOPES = {
    "elu": 1.0,
    "gelu": 1.13,
    "hard_sigmoid": 0.1667,
    "hard_silu": 1.5,
    "leaky_relu": 1.0,
    "linear": 1.0,
    "log_sigmoid": 1.0,
    "mish": 1.09,
    "relu": 1.0,
    "relu6": 1.0,
    "selu": 1.7581,
    "sigmoid": 0.25,
    "silu": 1.1,
    "softmax": 0.5,
    "softplus": 1.0,
    "softsign": 1.0,
    "tanh": 1.0,
}


def activation_constant(activation):
    """Lipschitz constant of what layers take as `activation`.

    Args:
        activation: A function, a layer or None.

    Returns:
        Float, an upper bound; None if none is known.
    """
    if activation is None:
        return 1.0
    if isinstance(activation, KnownConstant):
        return activation._whole_constant()
    if isinstance(activation, keras.layers.Activation):
        return activation_constant(activation.activation)
    if isinstance(activation, keras.layers.ReLU):
        # Elsewhere it jumps.
        is_continuous = activation.threshold == 0
        slope = max(1.0, abs(float(activation.negative_slope)))
        return slope if is_continuous else None
    if isinstance(activation, keras.layers.LeakyReLU):
        return max(1.0, abs(float(activation.negative_slope)))
    if isinstance(activation, keras.layers.ELU):
        return max(1.0, abs(float(activation.alpha)))
    if isinstance(activation, keras.layers.Softmax):
        return 0.5
    for name, slope in SLOPES.items():
        # Not all are in the oldest Keras.
        if activation is getattr(keras.activations, name, None):
            return slope
    return None


def warn_of_activation(layer):
    """Warns if the constant of a `LipschitzLayer` is that of a part only."""
    if layer._whole_constant() is None:
        warnings.warn(
            f"The activation of layer '{layer.name}' has no Lipschitz constant "
            "that is known: the constant of what holds the layer does not "
            f"account for it. Received: activation={layer.activation}",
            UserWarning,
            stacklevel=3,
        )
