"""Recurrent layers in NumPy: their states, and the Jacobian of these."""

import numpy as np

# Each returns the values, and the matrix that differences are multiplied by.
ACTIVATIONS = {
    "linear": lambda z: (z, np.eye(len(z))),
    "relu": lambda z: (np.maximum(z, 0.0), np.diag((z > 0) * 1.0)),
    "tanh": lambda z: (np.tanh(z), np.diag(1 - np.tanh(z) ** 2)),
}


def states_and_jacobian(kernels, x, activation="linear", mask=None):
    """States of all steps, and how they depend on the sequence.

    Args:
        kernels: Tuple of arrays: `(channels, units)`, `(units, units)`, and a
            bias `(units,)` or None.
        x: Array `(steps, channels)`.
        activation: String, of `ACTIVATIONS`.
        mask: Boolean array `(steps,)`, the steps that count; None for all.

    Returns:
        Arrays `(steps, units)` and `(steps * channels, steps * units)`.
    """
    kernel, recurrent, bias = (
        None if w is None else np.asarray(w, "float64") for w in kernels
    )
    steps, channels = x.shape
    state = np.zeros(recurrent.shape[0])
    slopes = np.zeros((steps * channels, len(state)))
    states, jacobian = [], []
    for t, inputs in enumerate(np.asarray(x, "float64")):
        if mask is None or mask[t]:
            driven = np.zeros_like(slopes)
            driven[t * channels : (t + 1) * channels] = kernel
            z = state @ recurrent + inputs @ kernel
            z = z if bias is None else z + bias
            state, matrix = ACTIVATIONS[activation](z)
            slopes = (slopes @ recurrent + driven) @ matrix
        states.append(state)
        jacobian.append(slopes)
    return np.array(states), np.concatenate(jacobian, axis=1)


def expansion(kernels, x, sequences=False, **arguments):
    """Norm of the Jacobian of the last state, or of all of them."""
    _, jacobian = states_and_jacobian(kernels, x, **arguments)
    units = np.shape(kernels[1])[0]
    if not sequences:
        jacobian = jacobian[:, -units:]
    return np.linalg.norm(jacobian, 2)
