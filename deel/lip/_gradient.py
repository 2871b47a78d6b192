"""Hand-written gradients, the same way on every backend."""

import functools

from keras import ops


def custom_gradient(function):
    """Decorator: a function of tensors that comes with its own gradient.

    Backends differ in how `keras.ops.custom_gradient` calls the gradient: some
    pass the incoming gradient alone, torch passes the inputs before it.

    Args:
        function: Takes tensors, and returns its value and a function that maps
            the gradient with respect to the value to the gradient with respect
            to the input, or to a tuple of them for several inputs.
    """

    @ops.custom_gradient
    @functools.wraps(function)
    def differentiable(*tensors):
        value, pull_back = function(*tensors)

        def gradient(*args, upstream=None):
            return pull_back(args[0] if upstream is None else upstream)

        return value, gradient

    return differentiable
