"""Shapes, parts and mirror images of tensors, in words that all of Keras knows.

All versions, that is, and all formats that models are exported to.
"""

import keras
from keras import ops


def reshaped(x, shape):
    """Reshapes what does not have the shape, with few calls.

    On PyTorch, which computes eagerly, `ops.reshape` takes ten times as long
    as the method that tensors have everywhere but on TensorFlow.
    """
    if None not in x.shape and tuple(x.shape) == tuple(shape):
        return x
    return x.reshape(shape) if hasattr(x, "reshape") else ops.reshape(x, shape)


def in_rows(initializer, factor=1.0):
    """An initializer whose tensors are stored row by row, times a factor.

    Decompositions of PyTorch return columns. A variable keeps that, and each
    gradient is then copied to the order of its variable.
    """
    is_torch = keras.backend.backend() == "torch"
    if not is_torch and factor == 1.0:
        return initializer

    def drawn(shape, dtype=None):
        value = initializer(shape, dtype=dtype)
        value = value if factor == 1.0 else float(factor) * value
        return value.contiguous() if is_torch else value

    return drawn


def chosen(is_first, first, second):
    """One of two numbers, by a tensor of ones and zeros.

    By arithmetic: on PyTorch, Keras sends what `ops.where` takes to the device.
    """
    return is_first * (first - second) + second


def cast(x, dtype):
    """`ops.cast`, but nothing at all where the dtype is there already."""
    own = keras.backend.standardize_dtype(x.dtype)
    dtype = keras.backend.standardize_dtype(dtype)
    return x if own == dtype else ops.cast(x, dtype)


def is_symbolic(x):
    """Whether Keras records what is computed of `x`, in place of computing it.

    What is recorded can be saved, so numbers in it are those of NumPy.
    """
    return isinstance(x, keras.KerasTensor)


def scaled(x, factor):
    """`factor * x`; `x` itself for the number one."""
    return x if factor == 1.0 else x * factor


def scaled_sum(x, y, factor):
    """`factor * (x + y)`.

    Where XLA compiles, as the sum of two products. A sum that is only
    multiplied afterwards is computed anew for each reader of the product, and a
    chain of residual blocks then from its beginning for each block: with 24 of
    them, a step on JAX took three times as long.
    """
    if keras.backend.backend() == "torch":
        return scaled(x + y, factor)
    return scaled(x, factor) + scaled(y, factor)


def sliced(x, axis, start, stop):
    """The entries of `x` from `start` up to `stop` along one axis.

    `ops.split` would do, but on PyTorch its sizes are unknown to
    `torch.export`.

    Args:
        x: Tensor.
        axis: Integer, negative ones count from the end.
        start: Integer or None, as in a slice.
        stop: Integer or None, as in a slice.
    """
    index = [slice(None)] * len(x.shape)
    index[axis] = slice(start, stop)
    return x[tuple(index)]


def mirrored_kernel(kernel):
    """The kernel of the transposed convolution, as one of a convolution.

    Args:
        kernel: Tensor `(height, width, in, out)`.

    Returns:
        Tensor `(height, width, out, in)`, flipped along both spatial axes.
    """
    # Axis by axis: Keras 3.4 cannot flip two at once.
    mirrored = ops.flip(ops.flip(kernel, axis=0), axis=1)
    return ops.transpose(mirrored, (0, 1, 3, 2))
