"""Ranges of an axis, by slices, which all formats and exporters can hold."""


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
