"""Padding of images with their own values, on every backend.

Made of slices, whose lengths may be unknown while a graph is traced, because
not every backend has all of these modes.
"""

from keras import ops

from deel.lip._backend.tensors import sliced

# By mode, the entries that `size` values before the first one repeat. Those
# after the last are their mirror image, but for "circular".
MODES = ("zeros", "reflect", "replicate", "symmetric", "circular")


def pad(x, sizes, mode, first_axis=1):
    """Pads consecutive axes on both sides.

    Args:
        x: Tensor.
        sizes: Tuple of integers, one for each axis to pad.
        mode: One of `MODES`. On the axis `a b c d`, the two values before `a`
            are `0 0` for `"zeros"`, `c b` for `"reflect"`, `a a` for
            `"replicate"`, `b a` for `"symmetric"`, `c d` for `"circular"`.
        first_axis: Integer, the axis that the first size belongs to.

    Returns:
        Tensor, larger by twice the sizes.

    Raises:
        ValueError: If an axis is known to be too short to be padded.
    """
    if mode == "zeros":
        widths = [[0, 0]] * len(x.shape)
        for axis, size in enumerate(sizes, start=first_axis):
            widths[axis] = [size, size]
        return ops.pad(x, widths)
    for axis, size in enumerate(sizes, start=first_axis):
        if size > 0:
            check_length(x.shape[axis], size, mode)
            before, after = _borders(x, size, mode, axis)
            x = ops.concatenate([before, x, after], axis=axis)
    return x


def shortest_length(size, mode):
    """The least number of values that an axis needs for such a padding."""
    return {"reflect": size + 1, "replicate": 1, "zeros": 1}.get(mode, size)


def check_length(length, size, mode):
    """Raises ValueError if an axis of that length cannot be padded so far."""
    needed = shortest_length(size, mode)
    if length is not None and length < needed:
        raise ValueError(
            f'Padding of mode "{mode}" by {size} needs at least {needed} '
            f"values on an axis. Received: length={length}"
        )


def _borders(x, size, mode, axis):
    """The values that stand before the first and after the last one."""

    def part(start, stop):
        return sliced(x, axis, start, stop)

    if mode == "circular":
        return part(-size, None), part(None, size)
    if mode == "replicate":
        return (
            ops.repeat(part(None, 1), size, axis=axis),
            ops.repeat(part(-1, None), size, axis=axis),
        )
    # The border itself is repeated too, or not.
    skip = 1 if mode == "reflect" else 0
    last = -skip or None
    return (
        ops.flip(part(skip, size + skip), axis=axis),
        ops.flip(part(-size - skip, last), axis=axis),
    )
