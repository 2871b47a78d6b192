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
            to the input, or to a tuple of them for several inputs, with None
            for those that have no gradient.
    """

    differentiable = (
        _by_torch(function)
        if keras.backend.backend() == "torch"
        else _by_keras(function)
    )

    @functools.wraps(function)
    def called(*tensors):
        # What Keras records, for a file, has the gradients of its operations.
        if isinstance(tensors[0], keras.KerasTensor):
            return function(*tensors)[0]
        return differentiable(*tensors)

    return called


def _by_keras(function):
    @ops.custom_gradient
    def differentiable(*tensors):
        value, pull_back = function(*tensors)

        def gradient(*args, upstream=None):
            slopes = pull_back(args[0] if upstream is None else upstream)
            if not isinstance(slopes, tuple):
                return slopes
            return tuple(
                ops.zeros_like(tensor) if slope is None else slope
                for tensor, slope in zip(tensors, slopes, strict=True)
            )

        return value, gradient

    return differentiable


def _by_torch(function):
    """The same on PyTorch; `ops.custom_gradient` keeps all arguments there.

    And takes three times as long to call. Nothing is differentiated where a
    function is traced into another format.
    """

    def called(*tensors):
        if torch.jit.is_tracing():
            return function(*tensors)[0]
        return _Differentiable.apply(function, *tensors)

    return called


# Here, since TorchDynamo does not follow what makes a class.
if keras.backend.backend() == "torch":
    import torch

    class _Differentiable(torch.autograd.Function):
        """A function whose gradient comes with its value."""

        @staticmethod
        def forward(ctx, function, *tensors):
            value, ctx.pull_back = function(*tensors)
            return value

        @staticmethod
        def backward(ctx, upstream):
            slopes = ctx.pull_back(upstream)
            slopes = slopes if isinstance(slopes, tuple) else (slopes,)
            return None, *slopes
