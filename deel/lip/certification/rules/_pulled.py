"""What rules of operations share."""

import math

import numpy as np

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
        f"Lipschitz constant as it is used. Expected {expected}. "
        f"Received: {received}"
    )


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
