"""Derivatives with respect to an input, on every backend.

`keras.ops` has no name for differentiation, so each backend is imported here,
inside the function that runs on it, and nowhere else.
"""

import keras
import numpy as np
from keras import ops

# Size of the finite differences on backends that do not differentiate.
STEP = 1e-4


def vector_jacobian(function, x, cotangent, step=STEP):
    """Gradient of `sum(function(x) * cotangent)` with respect to `x`.

    Args:
        function: Maps a tensor to a tensor.
        x: Array, a point.
        cotangent: Array of the shape of `function(x)`.
        step: Float, the size of the finite differences. They are taken, at
            two evaluations for each number in a sample, where the backend
            (NumPy) does not differentiate.

    Returns:
        NumPy array of the shape of `x`.
    """
    backend = keras.backend.backend()
    if backend == "numpy":
        return _by_differences(function, np.asarray(x), cotangent, step)
    x = ops.convert_to_tensor(x)
    cotangent = ops.convert_to_tensor(cotangent)
    pull_back = {
        "tensorflow": _on_tensorflow,
        "jax": _on_jax,
        "torch": _on_torch,
    }[backend]
    return ops.convert_to_numpy(pull_back(function, x, cotangent))


def _on_tensorflow(function, x, cotangent):
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        y = function(x)
    cotangent = tf.cast(cotangent, y.dtype)
    return tape.gradient(
        y, x, cotangent, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )


def _on_jax(function, x, cotangent):
    import jax

    y, pull_back = jax.vjp(function, x)
    return pull_back(cotangent.astype(y.dtype))[0]


def _on_torch(function, x, cotangent):
    import torch

    # The caller may compute without gradients, as `predict` does.
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        y = function(x)
        if not y.requires_grad:
            return torch.zeros_like(x)
        (slope,) = torch.autograd.grad(
            y, x, cotangent.to(y.dtype), allow_unused=True
        )
    return torch.zeros_like(x) if slope is None else slope


def _by_differences(function, x, cotangent, step):
    slope = np.empty(x.shape, x.dtype)
    for index in np.ndindex(*x.shape[1:]):
        moved = (slice(None), *index)
        values = []
        for sign in (1, -1):
            point = x.copy()
            point[moved] += sign * step
            y = np.asarray(function(point), "float64")
            values.append(np.sum(y * cotangent, axis=tuple(range(1, y.ndim))))
        slope[moved] = (values[0] - values[1]) / (2 * step)
    return slope
