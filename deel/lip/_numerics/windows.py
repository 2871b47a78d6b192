"""How windows read the axes of an image, and what a bound follows from that.

Note [Coverage]

A convolution is a matrix product with the patches of its input,
`y = patches(x) W`. If each value of `x` stands in at most `n` places of the
patches, `||patches(x)||^2 <= n ||x||^2`, with equality when every value is read
that often. Hence `||conv(x)|| <= sqrt(n) ||W|| ||x||`, and the matrix has to be
divided by `sqrt(n)`. Over several axes, n is the product of those of the axes.

"Same" zero padding, window of k values that are d apart, stride s: the value
at x is read by the tap t of the window at p when `p s + t d = x + padding`. So
`t d` is fixed modulo s, which leaves one tap out of `s / gcd(s, d)`; and a
window reads a value at most once. Over an axis of length L there are at most
`min(ceil(k gcd(s, d) / s), ceil(L / s))` of them, wherever the windows start.

Padding with values of the image: the copies count as well. They are counted
one by one.

In both cases the *maximum* over positions bounds the operator. The mean, which
many implementations use, does not.
"""

import dataclasses
import math

import numpy as np

from deel.lip._numerics.padding import check_length
from deel.lip._numerics.padding import shortest_length
from deel.lip._validation import ArgumentError
from deel.lip._validation import require_one_of

DATA_FORMATS = ("channels_last", "channels_first")

# What NumPy calls the modes of padding with values of the image.
NUMPY_MODES = {
    "reflect": "reflect",
    "replicate": "edge",
    "symmetric": "symmetric",
    "circular": "wrap",
}


def check_data_format(data_format, error=ArgumentError):
    """Raises an error of that class for an unknown `data_format`."""
    require_one_of("data_format", data_format, DATA_FORMATS, error)


def spatial_shape(input_shape, data_format):
    """Returns the spatial lengths of an input shape, None where unknown."""
    check_data_format(data_format)
    if data_format == "channels_first":
        return tuple(input_shape[2:])
    return tuple(input_shape[1:-1])


def first_spatial_axis(data_format):
    """Returns the number of the first axis of the image itself."""
    return 2 if data_format == "channels_first" else 1


def spatial_axes(x, data_format):
    """The numbers of the axes of the image itself, a list."""
    first = first_spatial_axis(data_format)
    return list(range(first, first + len(x.shape) - 2))


def channel_axis(data_format):
    """Returns the number of the axis of the channels, 1 or -1."""
    return 1 if data_format == "channels_first" else -1


def coverage_coefficient(axes):
    """Returns `1 / sqrt(n_1 * ... * n_d)`, a float, for a list of `Axis`."""
    return 1.0 / math.sqrt(math.prod(axis.coverage() for axis in axes))


@dataclasses.dataclass(frozen=True)
class Axis:
    """How the windows of a convolution or pooling read one spatial axis.

    Attributes:
        length: Integer or None, the number of values.
        size: Integer, the number of taps of the window.
        stride: Integer.
        dilation: Integer, the distance of the taps.
        padding: `"valid"`, `"same"` or `"causal"`, as in Keras; or a mode of
            `padding.MODES`, which adds `size // 2 * dilation` values on both
            sides: with an odd size and stride 1, this keeps the length.
    """

    length: int | None
    size: int
    stride: int = 1
    dilation: int = 1
    padding: str = "valid"

    @property
    def span(self):
        return (self.size - 1) * self.dilation + 1

    @property
    def pads_with_image(self):
        return self.padding in NUMPY_MODES

    def widths(self):
        """How many values are added before and after the axis."""
        if self.padding == "valid":
            return 0, 0
        if self.padding == "causal":
            return self.span - 1, 0
        if self.padding == "same":
            windows = -(-self.length // self.stride)
            total = (windows - 1) * self.stride + self.span - self.length
            total = max(total, 0)
            return total // 2, total - total // 2
        return (self.size // 2 * self.dilation,) * 2

    def windows(self):
        """How many windows there are."""
        before, after = self.widths()
        padded = before + self.length + after
        return max(0, (padded - self.span) // self.stride + 1)

    def reads(self, repeats_border=False):
        """Array `(windows, taps)` of positions, -1 for zeros that are padded.

        With `repeats_border`, the border stands in place of those.
        """
        settings = {"mode": "constant", "constant_values": -1}
        if self.pads_with_image:
            settings = {"mode": NUMPY_MODES[self.padding]}
        elif repeats_border:
            settings = {"mode": "edge"}
        padded = np.pad(np.arange(self.length), self.widths(), **settings)
        starts = np.arange(0, len(padded) - self.span + 1, self.stride)
        return padded[starts[:, None] + self.dilation * np.arange(self.size)]

    def selection(self, repeats_border=False):
        """Array `(windows, taps, length)` of zeros and ones: what is read."""
        reads = self.reads(repeats_border)
        return (reads[..., None] == np.arange(self.length)) * 1.0

    def overlap(self):
        """How often the windows read one value at most.

        Counted; where the length is not known, the `coverage`.
        """
        if self.length is None:
            return self.coverage()
        reads = self.reads()
        counts = np.bincount(reads[reads >= 0], minlength=1)
        return int(np.max(counts))

    def coverage(self):
        """Upper bound of the overlap, which layers are divided by.

        Wherever the windows start, with zeros around the axis; counted where
        it is padded with its own values. For every length if it is not known.
        """
        if not self.pads_with_image:
            taps = self.size * math.gcd(self.stride, self.dilation)
            often = math.ceil(taps / self.stride)
            return often if self.length is None else min(often, self.windows())
        padding, _ = self.widths()
        if self.length is not None:
            check_length(self.length, padding, self.padding)
            return self.overlap()
        # On longer axes the two borders are on their own, and where the windows
        # end depends on the length modulo the stride: nothing new is found.
        shortest = max(1, shortest_length(padding, self.padding))
        lengths = range(shortest, 2 * self.span + 2 * self.stride + 1)
        return max(self._with_length(length).overlap() for length in lengths)

    def needs_length(self):
        """Whether an axis of another length may have a larger `coverage`."""
        return self.coverage() < self._with_length(None).coverage()

    def _with_length(self, length):
        return dataclasses.replace(self, length=length)

    def has_full_window(self):
        """Whether some window reads values of the axis with all its taps."""
        return self.length is not None and bool(
            np.any(np.all(self.reads() >= 0, axis=1))
        )

    def torus(self):
        """See [Convolutions as matrices of frequencies].

        A tuple `(N, stride, dilation, factor)`: the length of a torus, stride
        and dilation on it, and what its norm is multiplied by. None where the
        length is not known.
        """
        if self.length is None:
            return None
        if self.padding == "circular":
            # Without the stride, the outputs contain those of the layer.
            folds = self.length % self.stride == 0
            stride = self.stride if folds else 1
            return self.length, stride, self.dilation, self._repetition()
        length = self.length
        factor = 1.0
        before, after = self.widths()
        if self.pads_with_image:
            padded = np.pad(
                np.arange(length), before, mode=NUMPY_MODES[self.padding]
            )
            factor = math.sqrt(np.max(np.bincount(padded)))
            length += before + after
            before = after = 0
        # Whole numbers of strides, with a place for each output.
        steps = -(-(length + max(before, after)) // self.stride)
        length = max(steps, self.windows()) * self.stride
        return length, self.stride, self.dilation, factor

    def _repetition(self):
        """Root of how often an output of circular padding may come."""
        return 1.0 if self.size % 2 else math.sqrt(2)

    def coarse(self, excess, known_image):
        """A grid of frequencies that holds for an axis of any length.

        As `torus`, or None if the padding has no such bound, which may exceed
        that of all frequencies by a factor `excess`. The length of the axis is
        used where `known_image` allows for it.
        """
        factor = 1.0
        if self.pads_with_image and self.padding != "circular":
            if not known_image or self.length is None:
                return None
            factor = self.torus()[-1]
        elif self.padding == "circular":
            factor = self._repetition()
        # All multiples of a frequency are taken, so that the distance of the
        # taps does not matter, but for where a stride folds them.
        stride = 1 if self.padding == "circular" else self.stride
        dilation = 1 if stride == 1 else self.dilation
        degree = dilation * (self.size // 2)
        if degree == 0:
            return stride, stride, dilation, factor
        points = math.ceil(math.pi * degree / math.acos(1 / excess))
        points = max(points, 2 * degree + 1)
        points = -(-points // stride) * stride
        factor /= math.cos(math.pi * degree / points)
        return points, stride, dilation, factor
