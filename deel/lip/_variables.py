"""Reading the value of a variable."""

import keras
from keras import ops


def full(variable):
    """Value of a variable, or a tensor, in float32 at least."""
    tensor = ops.convert_to_tensor(variable)
    dtype = keras.backend.result_type(tensor.dtype, "float32")
    return ops.cast(tensor, dtype)


def host(variable):
    """Value of a variable as a NumPy array."""
    # A copy first: NumPy 2 deprecates how TensorFlow converts its variables.
    return ops.convert_to_numpy(ops.copy(variable))


def store(variable, value):
    """Assigns a tensor to a variable that belongs to this library.

    On JAX a function that the user compiles with `jax.jit` has no place for
    new state: a traced value, assigned to a variable outside of Keras'
    stateless scope, would make the variable useless. There it is dropped. And
    a copy is assigned, since two variables with one buffer cannot both be
    donated to a compiled step.
    """
    if keras.backend.backend() == "jax":
        if _leaks(variable, value):
            return
        value = ops.copy(value)
    variable.assign(value)


def _leaks(variable, value):
    """Whether a traced value is about to replace one that is not traced."""
    # Keras has no name for the difference, so this asks JAX, which is loaded.
    import jax

    if not isinstance(value, jax.core.Tracer):
        return False
    try:
        current = ops.convert_to_tensor(variable)
    except TypeError:
        # Keras takes the values away for the time of `fit`.
        return False
    return not isinstance(current, jax.core.Tracer)
