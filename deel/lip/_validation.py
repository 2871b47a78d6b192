"""Checks of arguments, with errors in the form that Keras uses."""

import math
import numbers

import numpy as np

# Constants of layers whose squares, and the inverses of them, are normal
# numbers in float32 (1e-38 to 3e38), with a margin for what they multiply.
# Gradients of small batches and residual blocks compute such squares.
_CONSTANTS = (1e-18, 1e18)


class ArgumentError(ValueError, RuntimeError):
    """A value that is refused, where former releases raised RuntimeError.

    Keras raises ValueError for values; programs that catch the other one still
    do.
    """


# Arrays and lists of more values are told by their shape.
_FEW = 10


def received(name, value):
    """What an error says of an argument: strings in quotes, no long arrays."""
    if isinstance(value, str):
        value = repr(value)
    elif isinstance(value, (list, tuple, np.ndarray)):
        try:
            shape = np.shape(value)
        except ValueError:
            shape = (len(value),)
        if math.prod(shape) > _FEW:
            value = f"{type(value).__name__} of shape {shape}"
    return f"Received: {name}={value}"


def positive_int(name, value):
    """Returns `value` as an int; accepts floats that are whole (`128.0`)."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or value != value or value <= 0 or value != int(value):
        raise ValueError(
            f"Argument `{name}` must be a positive integer. "
            f"{received(name, value)}"
        )
    return int(value)


def positive_float(name, value):
    """Returns `value` as a float if it is finite and greater than zero."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise ValueError(
            f"Argument `{name}` must be a finite number greater than zero. "
            f"{received(name, value)}"
        )
    return float(value)


def share(name, value):
    """Returns `value` as a float if it is in ]0, 1]."""
    value = positive_float(name, value)
    if value > 1:
        raise ValueError(
            f"Argument `{name}` must be in ]0, 1]. {received(name, value)}"
        )
    return value


def nonnegative_float(name, value, error=ValueError):
    """Returns `value` as a float if it is a number, zero or greater."""
    if not isinstance(value, numbers.Real) or not value >= 0:
        raise error(
            f"Argument `{name}` must be zero or greater. "
            f"{received(name, value)}"
        )
    return float(value)


def require_one_of(name, value, options, error=ValueError):
    """Raises an error of that class unless `value` is one of the options."""
    if value not in options:
        raise error(
            f"Argument `{name}` must be one of {tuple(options)}. "
            f"{received(name, value)}"
        )


def lipschitz_constant(name, value):
    """Returns `value` as a float if float32 has all of its digits to spare."""
    value = positive_float(name, value)
    least, largest = _CONSTANTS
    if not least <= value <= largest:
        raise ValueError(
            f"Argument `{name}` must be from {least} to {largest}, the range "
            "in which float32 keeps the digits of kernels and gradients. "
            f"{received(name, value)}"
        )
    return value


def normal_range(dtype):
    """Smallest and largest positive normal number of a floating dtype."""
    # bfloat16, which NumPy has no name for, has the exponents of float32.
    limits = np.finfo("float32" if dtype == "bfloat16" else dtype)
    return float(limits.tiny), float(limits.max)


def int_tuple(value, rank):
    """Returns `value` as a tuple of ints where floats are whole.

    Anything else is returned as it came, for the Keras layer to refuse with
    its own message. An int stands for `rank` equal entries.
    """
    values = (value,) * rank if isinstance(value, numbers.Real) else value
    try:
        if all(float(v) == int(v) for v in values):
            return tuple(int(v) for v in values)
    except (TypeError, ValueError, OverflowError):
        pass
    return value


def require_instance(name, value):
    """Raises ValueError for a class where one of its objects belongs."""
    if isinstance(value, type):
        raise ValueError(
            f"Argument `{name}` must be a function, a name or an object. "
            f"Expected `{value.__name__}()` in place of the class. "
            f"{received(name, value)}"
        )


def require_built(layer, method):
    """Raises ValueError for a Keras layer or model without weights yet."""
    if not layer.built:
        raise ValueError(
            f"`{method}` needs weights, which exist once an object is built. "
            "Call it on data or `build` it first. Received: unbuilt "
            f"{type(layer).__name__} '{layer.name}'"
        )
