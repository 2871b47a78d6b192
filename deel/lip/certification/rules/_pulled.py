"""What rules of operations share."""

import math

import numpy as np
from keras import ops

from deel.lip._backend.variables import host
from deel.lip.certification._registry import Bound
from deel.lip.certification.rules._steps import step_of


def pulled_bound(
    piece, input_shapes, pull, terms=0, method="formula", **kwargs
):
    """`Bound` of a piece of which more than a constant is known.

    Args:
        piece: `Piece`.
        input_shapes: List of tuples.
        pull: As of `Bound`.
        terms: As of `Step`.
        method: As of `Bound`.
        **kwargs: What else `step_of` takes.
    """
    pulled = pull([1.0] * len(piece.outputs))
    weights = tuple(float(np.max(a, initial=0.0)) for a in pulled)
    value = max(weights)
    rounding = step_of(piece, input_shapes, value, terms, **kwargs)
    return Bound(value, method, weights=weights, rounding=rounding, pull=pull)


def refuse(piece, expected, **received):
    """Raises ValueError for an operation that has no constant as it is."""
    received = ", ".join(f"{key}={value}" for key, value in received.items())
    raise ValueError(
        f"Operation '{piece.name}' of type {piece.type_name} has no known "
        f"Lipschitz constant as it is used. Expected {expected}. If you can "
        f"prove one, pass `constants={{'{piece.name}': value}}`. "
        f"Received: {received}"
    )


def require_one_shape(piece, input_shapes):
    """Raises ValueError where lengths that were not known are not the same."""
    if len({tuple(shape) for shape in input_shapes}) > 1:
        refuse(piece, "tensors of one shape", shapes=input_shapes)


def magnitudes(piece, values):
    """Magnitudes of a constant, exact or rounded: the smaller, the larger."""
    rounded = ops.convert_to_tensor(values, dtype=piece.compute_dtype)
    both = np.abs(values), np.abs(host(rounded))
    return np.minimum(*both), np.maximum(*both)


def plain(amplitudes):
    """A float for an array whose values are all the same."""
    if amplitudes.size and np.min(amplitudes) == np.max(amplitudes):
        return float(amplitudes.flat[0])
    return amplitudes


def reduced_axes(piece, shape, axis):
    """The axes of a reduction, a tuple, and how many values it takes.

    Raises:
        ValueError: If samples are mixed, or a length is not known.
    """
    rank = len(shape)
    axes = range(rank) if axis is None else np.atleast_1d(axis)
    axes = tuple(sorted(int(a) % rank for a in axes))
    if 0 in axes:
        refuse(piece, "axes behind that of the samples", axis=axis)
    if 0 in shape[1:]:
        refuse(piece, "an input that is not empty", shape=shape)
    if any(shape[a] is None for a in axes):
        refuse(
            piece, "an input of known shape: pass `input_shape`", shape=shape
        )
    return axes, math.prod(shape[a] for a in axes)


def evened(amplitudes, axes):
    """The largest along some axes, for all values on them.

    Args:
        amplitudes: Float or array.
        axes: Tuple of axes of the tensor, with that of the samples.
    """
    if np.ndim(amplitudes) == 0:
        return amplitudes
    along = tuple(axis - 1 for axis in axes)
    most = np.max(amplitudes, axis=along, keepdims=True)
    return plain(np.broadcast_to(most, np.shape(amplitudes)))
