"""Operations that copy values: slices, gathers, joins."""

import math

import keras
import numpy as np
from keras import ops

from deel.lip._backend.variables import host
from deel.lip.certification._nodes import arguments_of
from deel.lip.certification._nodes import as_array
from deel.lip.certification._nodes import is_tensor
from deel.lip.certification._nodes import kind_of
from deel.lip.certification._pieces import operation_rule
from deel.lip.certification.rules._pulled import plain
from deel.lip.certification.rules._pulled import pulled_bound
from deel.lip.certification.rules._pulled import refuse


@operation_rule(
    "BroadcastTo",
    "Concatenate",
    "Copy",
    "ExpandDims",
    "Flip",
    "GetItem",
    "Moveaxis",
    "Pad",
    "Repeat",
    "Reshape",
    "Roll",
    "Split",
    "Squeeze",
    "Stack",
    "Swapaxes",
    "Take",
    "Tile",
    "Transpose",
)
def _copying(piece, input_shapes, context):
    return copies(piece, input_shapes)


def copies(piece, input_shapes):
    """`Bound` of a piece whose outputs copy values of the inputs."""
    reads = positions(piece, input_shapes)
    sizes = [math.prod(shape[1:]) for shape in input_shapes]
    ends = np.cumsum(sizes)

    def pull(amplitudes):
        spread = [
            np.broadcast_to(a, read.shape).ravel()
            for a, read in zip(amplitudes, reads, strict=True)
        ]
        read = np.concatenate([read.ravel() for read in reads])
        found = _added(read, np.concatenate(spread), int(ends[-1]))
        parts = np.split(found, ends[:-1])
        return [
            plain(part.reshape(shape[1:]))
            for part, shape in zip(parts, input_shapes, strict=True)
        ]

    return pulled_bound(piece, input_shapes, pull)


def _refuse_constants(piece):
    """Raises ValueError where constants would be taken for positions."""
    given = list(piece.constants())
    for node in piece.nodes:
        arguments, kind = arguments_of(node), kind_of(node)
        if kind in ("Concatenate", "Stack"):
            parts = keras.tree.flatten(next(iter(arguments.values())))
            given += [x for x in parts if not is_tensor(x)]
        value = arguments.get("constant_values") if kind == "Pad" else None
        if value is not None and (is_tensor(value) or np.any(as_array(value))):
            given.append(value)
        # Samples that are moved by their number stay where they are.
        axes, rank = 1, len(node.outputs[0].shape)
        if kind == "Roll":
            axes = node.operation.axis
        if axes is None or any(a % rank == 0 for a in np.atleast_1d(axes)):
            refuse(piece, "axes behind that of the samples", axis=axes)
    if given:
        refuse(piece, "tensors without constants", constants=given)


def positions(piece, input_shapes):
    """For each output, which value of the inputs each of its values is.

    Found by what the operation makes of positions. The values of the inputs are
    counted one after the other from 0; a constant has the position -1.

    Raises:
        ValueError: If a shape is not known, or samples are mixed.
    """
    if any(None in shape[1:] for shape in input_shapes):
        refuse(
            piece,
            "inputs of known shapes: pass `input_shape`",
            shapes=input_shapes,
        )
    _refuse_constants(piece)
    batch = piece.inputs[0].shape[0]
    # What is cut off at a number of samples shows at one of two.
    found = [
        _positions_of(piece, input_shapes, samples)
        for samples in ([batch] if batch else [2, 3])
    ]
    return found[-1]


def _positions_of(piece, input_shapes, samples):
    """As `positions`, of that many samples."""
    sizes = [math.prod(shape[1:]) for shape in input_shapes]
    total, before = sum(sizes), 0
    inputs = []
    for shape, size in zip(input_shapes, sizes, strict=True):
        # Zero is what operations pad with.
        first = 1 + before + np.arange(size)
        counted = first + total * np.arange(samples)[:, None]
        counted = counted.reshape(samples, *shape[1:]).astype("int32")
        inputs.append(ops.convert_to_tensor(counted))
        before += size
    try:
        outputs = [host(x) for x in piece(inputs)]
    except Exception as error:  # Each backend has its own.
        raise ValueError(
            f"Operation '{piece.name}' of type {piece.type_name} cannot be run "
            f"for {samples} samples. Received: inputs of shapes {input_shapes}"
        ) from error
    found = []
    for output in outputs:
        first = output[0].astype("int64")
        others = first + total * np.arange(samples).reshape(
            -1, *[1] * first.ndim
        )
        is_apart = (
            len(output) == samples
            and np.all((output == others) | (output == 0))
            and np.all((output == 0) == (first == 0))
            and np.all(first <= total)
        )
        if not is_apart:
            refuse(
                piece,
                "one that handles each sample by itself",
                shape=output.shape,
            )
        found.append(first - 1)
    return found


def _added(read, amplitudes, size):
    """For each position, the root of the squares of those that read it."""
    amplitudes = amplitudes[read >= 0]
    read = read[read >= 0]
    counts = np.bincount(read, minlength=size)
    if len(counts) == 0 or np.max(counts) <= 1:
        found = np.zeros(size)
        found[read] = amplitudes
        return found
    # Squares vanish below 1e-154.
    unit = np.max(amplitudes) or 1.0
    squares = np.bincount(read, (amplitudes / unit) ** 2, minlength=size)
    # What vanishes beside the largest is at most this, times their number.
    squares += (counts > 0) * len(amplitudes) * 1e-300
    return unit * np.sqrt(squares) * (1 + 1e-12)
