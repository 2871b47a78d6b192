"""Reading and writing the values of variables."""

import contextlib
import threading

import keras
from keras import ops


def full(variable):
    """Value of a variable, or a tensor, in float32 at least."""
    tensor = ops.convert_to_tensor(variable)
    own = keras.backend.standardize_dtype(tensor.dtype)
    dtype = keras.backend.result_type(own, "float32")
    # On TensorFlow a variable is still one until it is cast; on PyTorch a cast
    # that changes nothing takes time.
    if own == dtype and keras.backend.backend() == "torch":
        return tensor
    return ops.cast(tensor, dtype)


def host(variable):
    """Value of a variable as a NumPy array; of bfloat16, in float32."""
    # A copy first: NumPy 2 deprecates how TensorFlow converts its variables.
    tensor = ops.copy(variable)
    # NumPy has no bfloat16, and not every version takes that of TensorFlow.
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        tensor = ops.cast(tensor, "float32")
    return ops.convert_to_numpy(tensor)


class AfterUpdate(keras.constraints.Constraint):
    """Hands a function to Keras optimizers, which call it after each update.

    Args:
        function: Maps the value of a variable to the one that replaces it.
    """

    def __init__(self, function):
        self._function = function

    def __call__(self, value):
        return self._function(value)


class _Retractions(threading.local):
    """What is stored after the update of an optimizer, by id of variable.

    Attributes:
        values: Dictionary to add to; None where nobody asks for it.
        known: Dictionary of what other variables hold, by id.
        running: Whether an optimizer has just moved the kernel at hand.
    """

    values = None
    known = None
    running = False


_retractions = _Retractions()


@contextlib.contextmanager
def gathered_retractions(known):
    """Gathers what retractions store, in a dictionary by id of the variable.

    On JAX an optimizer is a function of the trained variables alone, which
    drops all other state.

    Args:
        known: Dictionary of the other state before the step, by id of the
            variable.
    """
    _retractions.values, _retractions.known = {}, known
    try:
        yield _retractions.values
    finally:
        _retractions.values = _retractions.known = None


def value_or_none(variable):
    """Value of a variable that is not trained, or None where it has none.

    On JAX, variables have no values of their own during `fit`.
    """
    if _retractions.running and _retractions.known is not None:
        return _retractions.known.get(id(variable))
    try:
        return ops.convert_to_tensor(variable)
    except TypeError:
        return None


@contextlib.contextmanager
def retracting():
    """Surrounds what a layer does after an optimizer has moved its kernel."""
    _retractions.running = True
    try:
        yield
    finally:
        _retractions.running = False


def store(variable, value):
    """Assigns a tensor to a variable that belongs to this library.

    On JAX a function that the user compiles with `jax.jit` has no place for
    new state: a traced value, assigned to a variable outside of Keras'
    stateless scope, would make the variable useless. There it is dropped. And
    a copy is assigned, since two variables with one buffer cannot both be
    donated to a compiled step.
    """
    if keras.backend.backend() == "jax":
        if _retractions.running and _retractions.values is not None:
            copied = ops.copy(ops.cast(value, variable.dtype))
            _retractions.values[id(variable)] = copied
        if _leaks(variable, value):
            return
        value = ops.copy(value)
    # What has just been proven is not to be proven again.
    getattr(variable, "take", variable.assign)(value)


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
