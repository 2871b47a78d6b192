"""What is known of the activations of Keras, for all who ask.

`k_coef_lip` of a layer with a constrained kernel is that of its affine part.
What follows inside of the layer may have another constant than one.
"""

import dataclasses

import keras


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of an activation, with its default arguments.

    Attributes:
        name: String, its name in `keras.activations`.
        smallest: Float, lower bound of the slope of a function of one number;
            None for functions of several.
        largest: Float, upper bound of the slope, or of the norm of the
            Jacobian. It bounds the magnitude of the slope, too.
        is_exact: Boolean, whether it copies, multiplies and compares only, so
            that nothing but products is rounded, and both slopes occur.
    """

    name: str
    smallest: float | None
    largest: float
    is_exact: bool = False


# Of softmax the norm is, by Gershgorin, at most max 2 p (1 - p) = 1/2.
_FACTS = (
    Facts("elu", 0.0, 1.0),
    Facts("gelu", -0.13, 1.13),
    Facts("hard_sigmoid", 0.0, 0.1667),
    Facts("hard_silu", -0.5, 1.5),
    Facts("leaky_relu", 0.2, 1.0, is_exact=True),
    Facts("linear", 1.0, 1.0, is_exact=True),
    Facts("log_sigmoid", 0.0, 1.0),
    Facts("mish", -0.113, 1.09),
    Facts("relu", 0.0, 1.0, is_exact=True),
    Facts("relu6", 0.0, 1.0, is_exact=True),
    Facts("selu", 0.0, 1.7581),
    Facts("sigmoid", 0.0, 0.25),
    Facts("silu", -0.1, 1.1),
    Facts("softmax", None, 0.5),
    Facts("softplus", 0.0, 1.0),
    Facts("softsign", 0.0, 1.0),
    Facts("tanh", 0.0, 1.0),
)

# By name. Not all are in the oldest Keras.
FACTS = {x.name: x for x in _FACTS if hasattr(keras.activations, x.name)}

# Functions of one number with slopes from 0 to 1.
MONOTONE = tuple(
    name
    for name, facts in FACTS.items()
    if facts.smallest is not None and 0 <= facts.smallest <= facts.largest <= 1
)


def facts_of(function):
    """Returns the `Facts` of a function of `keras.activations`, or None."""
    for name, facts in FACTS.items():
        if function is getattr(keras.activations, name):
            return facts
    return None


def require_monotone(activation):
    """Raises ValueError unless an activation is one of `MONOTONE`."""
    facts = facts_of(activation)
    if facts is None or facts.name not in MONOTONE:
        raise ValueError(
            "The block is bounded for functions of one number with slopes from "
            f"0 to 1. Expected one of {MONOTONE}. "
            f"Received: activation={activation}"
        )
