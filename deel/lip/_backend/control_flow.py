"""Branches and loops that depend on data, eager or compiled.

`keras.ops.cond` and `while_loop` compile their branches on JAX even when it
computes eagerly, anew at each call since the branches are closures: a fifth of
a second for what takes a millisecond. Where the condition is a known value,
plain Python decides instead.
"""

import keras
from keras import ops


def cond(predicate, if_true, if_false):
    """Calls one of two functions without arguments, as `keras.ops.cond`."""
    decided = value_now(predicate)
    if decided is None:
        return ops.cond(predicate, if_true, if_false)
    return if_true() if decided else if_false()


def while_loop(condition, body, state):
    """Repeats `state = body(*state)`, as `keras.ops.while_loop`.

    Numbers in the state become tensors where a graph is being traced.
    """
    while (decided := value_now(condition(*state))) is not None:
        if not decided:
            return state
        state = body(*state)
    return ops.while_loop(
        condition, body, tuple(map(ops.convert_to_tensor, state))
    )


def value_now(predicate):
    """The value of a Boolean scalar, None while a graph is being traced."""
    try:
        return bool(predicate)
    except TypeError:
        return None


def has_values(tensor):
    """Whether a tensor has values by now: False while a graph is traced.

    Nothing is read for it, which a GPU would have to finish its work for.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return not torch.compiler.is_compiling()
    if backend == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.executing_eagerly()
    return True


def is_recorded(tensor):
    """Whether steps are compiled from what is computed of a tensor now.

    On PyTorch, whose steps are not compiled, whether gradients will be.
    """
    if keras.backend.backend() == "torch":
        return tensor.requires_grad or tensor.is_meta
    return not has_values(tensor)
