"""What a layer stores when an optimizer has moved its kernel.

On TensorFlow and PyTorch that is an assignment. On JAX an optimizer is a
function of the trained variables alone, which drops all other state: there
constraints are applied after it, by `train_step`, where all state is at hand.

Note [who moves a kernel]

A training step that knows that its kernels have been retracted has nothing to
ask them. It is known without a look at any value:

* PyTorch: tensors count what is written to them. Optimizers of Keras call the
  constraint of a variable; those of PyTorch have a hook, which is used here.
* TensorFlow and JAX: a step is traced before it is run, by `keras.Model`, whose
  optimizer is one of Keras. In programs of others nothing is known.

It only decides what is computed, never whether it is valid. So a kernel that
somebody writes to between two steps is used one step late; on PyTorch only if
it is written by `.data`, which counts nothing.
"""

import contextlib
import functools
import sys
import threading
import weakref

import keras
from keras import ops

from deel.lip._backend.guarded_variable import GuardedVariable
from deel.lip._backend.guarded_variable import is_compiling


class AfterUpdate(keras.constraints.Constraint):
    """Hands a function to Keras optimizers, which call it after each update.

    Args:
        function: Maps the value of a variable to the one that replaces it.
        bounds_matrix: Boolean, see `Parametrization`.
    """

    def __init__(self, function, bounds_matrix=False):
        self._function = function
        self.bounds_matrix = bounds_matrix

    def __call__(self, value):
        if _retractions.moved is not None and isinstance(value, keras.Variable):
            _retractions.moved[id(value)] = value
            return value
        return self._function(value)


class _Retractions(threading.local):
    """What is left to do after the update of an optimizer.

    Attributes:
        moved: Dictionary by id of variables whose constraint `AfterUpdate` is
            applied later; None where it is applied at once.
        postponed: Dictionary by family of dictionaries by kind of lists of
            those that `retract_together`; None where nobody waits.
    """

    moved = None
    postponed = None


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
    backend = keras.backend.backend()
    if backend == "jax":
        return _jax_train_step(model, step, *args)
    if backend == "torch" and not is_compiling():
        with together():
            return step(*args)
    return step(*args)


def _jax_train_step(model, step, *args):
    before, _retractions.moved = _retractions.moved, {}
    try:
        logs, (trainable, others, *rest) = step(*args)
        moved = _retractions.moved.values()
    finally:
        _retractions.moved = before
    variables = model.trainable_variables + model.non_trainable_variables
    values = zip(variables, [*trainable, *others], strict=True)
    with keras.StatelessScope(list(values)) as scope, together():
        for variable in moved:
            variable.assign(variable.constraint(variable))
    values = list(map(scope.get_current_value, variables))
    count = len(trainable)
    return logs, (values[:count], values[count:], *rest)


@contextlib.contextmanager
def together():
    """Has all kernels that are moved inside retracted at the end.

    Kernels of one shape are one operand there: on PyTorch each operation is a
    launch of its own, and on JAX one more to compile.
    """
    if _retractions.postponed is not None:
        yield
        return
    _retractions.postponed = {}
    try:
        yield
    finally:
        families, _retractions.postponed = _retractions.postponed, None
        for kinds in families.values():
            groups = list(kinds.values())
            groups[0][0].retract_together(groups)


def postpone(retracted, family, kind):
    """Has something retracted together with others of its family.

    Args:
        retracted: Object with a static method `retract_together`, which takes
            the whole family: a list of lists of objects of one kind.
        family: Hashable, what those have in common whose scalars may be one
            tensor.
        kind: Hashable, what those have in common that may be one operand; None
            for what cannot wait.

    Returns:
        Boolean, whether that will be done.
    """
    if _retractions.postponed is None or kind is None:
        return False
    kinds = _retractions.postponed.setdefault(family, {})
    kinds.setdefault(kind, []).append(retracted)
    return True


def is_retracted(variable):
    """Whether an optimizer of Keras retracts a kernel after each step.

    That is, in the step that is running, or being traced: one of Keras' own or
    of this library, with an optimizer that applies constraints as Keras does.
    See [who moves a kernel].
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is keras.Model.train_step.__code__:
            model = frame.f_locals["self"]
            return (
                _is_known(type(model).train_step)
                and _applies_constraints(model.optimizer)
                and any(own is variable for own in model.trainable_variables)
            )
        frame = frame.f_back
    return False


def _applies_constraints(optimizer):
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return False
    names = ("apply", "apply_gradients", "stateless_apply")
    return all(_is_known(getattr(type(optimizer), name)) for name in names)


def _is_known(function):
    """Whether a method is that of Keras or of this library."""
    return function.__module__.split(".")[0] in ("keras", "deel")


def is_carried(variable):
    """Whether what a retraction has stored is there in the next step, too."""
    if keras.backend.backend() == "jax" and _retractions.moved is None:
        return False
    return is_retracted(variable)


# Layers by the id of the parameter of PyTorch that is their kernel.
_layers = weakref.WeakValueDictionary()


def follow_torch_optimizers(layer):
    """Has the optimizers of PyTorch, too, retract the kernel of a layer.

    Not those of a layer with a `kernel_constraint`, which they do not apply.

    Args:
        layer: Layer with the variable `kernel` and a method `_after_update`,
            from the value of the kernel to the one that replaces it.
    """
    if keras.backend.backend() != "torch" or is_compiling():
        return
    if layer.kernel_constraint is None and layer.kernel._value is not None:
        _layers[id(layer.kernel._value)] = layer
        _listen_to_torch()


@functools.lru_cache
def _listen_to_torch():
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def retract(optimizer, *_):
        with together(), torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    layer = _layers.get(id(parameter))
                    if layer is None or layer.kernel._value is not parameter:
                        continue
                    moved = parameter.detach()
                    retracted = layer._after_update(moved)
                    if retracted is not moved:
                        parameter.copy_(retracted)

    register_optimizer_step_post_hook(retract)


def value_or_none(variable):
    """Value of a variable that is not trained, or None where it has none.

    On JAX, variables have no values of their own during `fit`.
    """
    try:
        return ops.convert_to_tensor(variable)
    except TypeError:
        return None


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
    current = value_or_none(variable)
    # Keras takes the values away for the time of `fit`.
    return current is not None and not isinstance(current, jax.core.Tracer)
