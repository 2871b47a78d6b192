"""Constants of the activations that layers apply to their own output.

`k_coef_lip` of a layer with a constrained kernel is that of its affine part.
What follows inside of the layer may have another constant than one.
"""

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
