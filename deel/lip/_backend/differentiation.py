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
    return ops.convert_to_numpy(_PULL_BACKS[backend](function, x, cotangent))


def compiled(function):
    """Compiles a function of samples, and its gradient.

    Args:
        function: Takes tensors, the samples first, and returns one value for
            each sample.

    Returns:
        Two functions of the same arguments, as NumPy arrays: the values, and
        the gradient of each value with respect to its sample, both as arrays.
        They are fast for arguments of a shape that they have seen.
    """

    def gradient(x, *others):
        def values(x):
            return function(x, *others)

        backend = keras.backend.backend()
        ones = ops.ones(x.shape[:1], x.dtype)
        if backend == "numpy":
            return _by_differences(values, x, ones, STEP)
        return _PULL_BACKS[backend](values, x, ones)

    return _on_arrays(_compiled(function)), _on_arrays(_compiled(gradient))


def _on_arrays(function):
    def on_arrays(*arrays):
        tensors = [ops.convert_to_tensor(array) for array in arrays]
        return ops.convert_to_numpy(function(*tensors))

    return on_arrays


def _compiled(function):
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function


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


_PULL_BACKS = {
    "tensorflow": _on_tensorflow,
    "jax": _on_jax,
    "torch": _on_torch,
}
