"""Functions of tensors, compiled the way each backend does."""

import keras
from keras import ops


def compiled(function):
    """Returns the function as a graph (TensorFlow, JAX), as it is on torch."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function


def with_gradient(function):
    """Returns a compiled function that gives its gradient.

    The gradient is that of the sum of squares of the result, with respect to
    the first argument.
    """
    backend = keras.backend.backend()

    def total(*tensors):
        return ops.sum(ops.square(function(*tensors)))

    if backend == "tensorflow":
        import tensorflow as tf

        def gradient(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors[0])
                value = total(*tensors)
            return tape.gradient(value, tensors[0])

    elif backend == "jax":
        import jax

        gradient = jax.grad(total)
    else:

        def gradient(*tensors):
            first = tensors[0].detach().requires_grad_(True)
            total(first, *tensors[1:]).backward()
            return first.grad

    return compiled(gradient)
