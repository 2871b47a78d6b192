"""Hand-written gradients, the same way on every backend."""

import functools

import keras
from keras import ops


def custom_gradient(function):
    """Decorator: a function of tensors that comes with its own gradient.

    Backends differ in how `keras.ops.custom_gradient` calls the gradient: some
    pass the incoming gradient alone, torch passes the inputs before it. And
    torch cannot trace it into other formats, where nothing is differentiated.

    Args:
        function: Takes tensors, and returns its value and a function that maps
            the gradient with respect to the value to the gradient with respect
            to the input, or to a tuple of them for several inputs.
    """

    @ops.custom_gradient
    def differentiable(*tensors):
        value, pull_back = function(*tensors)

        def gradient(*args, upstream=None):
            return pull_back(args[0] if upstream is None else upstream)

        return value, gradient

    @functools.wraps(function)
    def called(*tensors):
        if _is_traced_by_torch():
            return function(*tensors)[0]
        return differentiable(*tensors)

    return called


def _is_traced_by_torch():
    if keras.backend.backend() != "torch":
        return False
    import torch

    return torch.jit.is_tracing()
