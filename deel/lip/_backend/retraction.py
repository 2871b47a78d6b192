"""What a layer stores when an optimizer has moved its kernel.

On TensorFlow and PyTorch that is an assignment. On JAX an optimizer is a
function of the trained variables alone, which drops all other state: there it
is gathered, by `train_step`, and handed on with the results of the step.
"""

import contextlib
import threading

import keras
from keras import ops

from deel.lip._backend.guarded_variable import GuardedVariable


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
        stored: Dictionary to add to; None where nobody asks for it.
        before: Dictionary of what other variables held before the step.
        trained: Ids of the variables that the step at hand trains.
        running: Whether an optimizer has just moved the kernel at hand.
    """

    stored = None
    before = None
    trained = frozenset()
    running = False


_retractions = _Retractions()


def train_step(model, step, *args):
    """The training step of a model, which keeps what retractions store.

    Args:
        model: A compiled `keras.Model`.
        step: The stock `train_step` of the model.
        *args: Arguments of the step.

    Returns:
        What the step returns.
    """
    # The update of this one is a branch, whose values must not leave it.
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    if keras.backend.backend() == "torch" or scaled:
        return step(*args)
    trained = {id(variable) for variable in model.trainable_variables}
    with _announced(trained):
        return _train_step(model, step, args)


@contextlib.contextmanager
def _announced(trained):
    _retractions.trained = trained
    try:
        yield
    finally:
        _retractions.trained = frozenset()


def will_be_retracted(variable):
    """Whether an optimizer is about to move a kernel, and then retract it.

    So what belongs to it was stored by the step before.
    """
    return id(variable) in _retractions.trained


def _train_step(model, step, args):
    if keras.backend.backend() != "jax":
        return step(*args)
    (_, before, *_), *_ = args
    names = [id(variable) for variable in model.non_trainable_variables]
    _retractions.stored = {}
    _retractions.before = dict(zip(names, before, strict=True))
    try:
        logs, (trainable, others, *rest) = step(*args)
        stored = _retractions.stored
    finally:
        _retractions.stored = _retractions.before = None
    others = [
        stored.get(name, value)
        for name, value in zip(names, others, strict=True)
    ]
    return logs, (trainable, others, *rest)


def value_or_none(variable):
    """Value of a variable that is not trained, or None where it has none.

    On JAX, variables have no values of their own during `fit`.
    """
    if _retractions.running and _retractions.before is not None:
        return _retractions.before.get(id(variable))
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
        if _retractions.running and _retractions.stored is not None:
            copied = ops.copy(ops.cast(value, variable.dtype))
            _retractions.stored[id(variable)] = copied
        if _leaks(variable, value):
            return
        value = ops.copy(value)
    if isinstance(variable, GuardedVariable):
        # What has just been proven is not to be proven again.
        variable.assign_proven(value)
    else:
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
