"""What layers do to the blocks of a torus, one after another.

Each step says how many positions an axis has behind it, and what it makes of
blocks. Proofs are in `deel.lip.certification._spectrum`.
"""

import dataclasses
import math

import numpy as np

from deel.lip._numerics.windows import Axis
from deel.lip.certification._torus import MOST_NUMBERS
from deel.lip.certification._torus import Blocks
from deel.lip.certification._torus import TooLargeError
from deel.lip.certification._torus import folded
from deel.lip.certification._torus import half
from deel.lip.certification._torus import require_small
from deel.lip.certification._torus import transformed
from deel.lip.certification._torus import waves_of

_EPS = float(np.finfo("float64").eps)


@dataclasses.dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution, or a mean over windows.

    Attributes:
        kernel: Array `(taps of each axis..., inputs, outputs)`; with one input
            and one output, what each channel is convolved with.
        axes: List of `Axis`, one for each axis of taps.
        by_channel: Boolean, whether it is the latter.
    """

    kernel: np.ndarray
    axes: list
    by_channel: bool = False

    @property
    def lengths(self):
        return tuple(axis.windows() for axis in self.axes)

    @property
    def pads_with_zeros(self):
        return any(
            any(axis.widths()) and not axis.pads_with_image
            for axis in self.axes
        )

    def points_behind(self, index, points):
        """Positions of an axis behind it, None if it does not fit."""
        axis = self.axes[index]
        if axis.pads_with_image:
            fits = points == axis.length
        else:
            fits = points >= axis.length + max(axis.widths())
        behind = points // axis.stride
        if not fits or points % axis.stride or behind < axis.windows():
            return None
        return behind

    def apply(self, blocks):
        if self.pads_with_zeros and not blocks.is_zero_outside:
            blocks = blocks.behind_slopes(1.0)
        *taps, inputs, outputs = self.kernel.shape
        waves = [
            waves_of(
                count,
                points,
                axis.dilation * np.arange(axis.size) - axis.widths()[0],
            )
            for count, points, axis in zip(
                half(blocks.points), blocks.points, self.axes, strict=True
            )
        ]
        strides = [axis.stride for axis in self.axes]
        folds = math.prod(strides)
        # A ball has as many directions as channels.
        wide = inputs if blocks.matrices is None else blocks.matrices.shape[-1]
        require_small(blocks.points, inputs, wide, outputs)
        require_small(blocks.points, outputs, outputs, outputs)
        kernel = transformed(self.kernel, waves)
        magnitudes = np.sum(np.abs(self.kernel), axis=tuple(range(len(taps))))
        size = float(np.linalg.norm(magnitudes))
        if blocks.matrices is None:
            matrices = np.swapaxes(kernel, -1, -2)
            entering = math.sqrt(inputs)
        else:
            entering = blocks.size
            if self.by_channel:
                matrices = kernel * blocks.matrices
            else:
                matrices = np.swapaxes(kernel, -1, -2) @ blocks.matrices
        terms = math.prod(taps) + inputs + 16
        error = size * (8 * terms * _EPS * entering + blocks.error)
        points = tuple(
            n // s for n, s in zip(blocks.points, strides, strict=True)
        )
        if folds > 1:
            matrices = folded(matrices, blocks.alone().points, strides)
        if blocks.held is not None:
            error += blocks.error
        reads_itself = math.prod(taps) == 1 and not self.pads_with_zeros
        return Blocks(
            points,
            matrices,
            error,
            self.lengths == points or (reads_itself and blocks.is_zero_outside),
            blocks.held,
        )


def on_torus(kernel, axes):
    """The `Convolution` of a layer, or None where no torus is known for it.

    Args:
        kernel: Array `(taps of each axis..., groups, inputs, outputs)`.
        axes: List of `Axis`.
    """
    for axis in axes:
        if axis.length is None or axis.windows() < 1:
            return None
        if axis.pads_with_image:
            repeats = axis.size % 2 == 0 or axis.length % axis.stride
            if axis.padding != "circular" or repeats:
                return None
    *taps, groups, inputs, outputs = kernel.shape
    if groups * inputs * groups * outputs * math.prod(taps) > MOST_NUMBERS:
        return None
    whole = np.zeros((*taps, groups, inputs, groups, outputs))
    for group in range(groups):
        whole[..., group, :, group, :] = kernel[..., group, :, :]
    whole = whole.reshape(*taps, groups * inputs, groups * outputs)
    return Convolution(whole, axes)


def identity_of(shape):
    """The `Convolution` that changes nothing of images of a shape."""
    *lengths, channels = shape
    ones = [1] * len(lengths)
    kernel = np.eye(channels).reshape(*ones, channels, channels)
    return Convolution(kernel, [Axis(length, 1) for length in lengths])


@dataclasses.dataclass(frozen=True, eq=False)
class Slopes:
    """An activation; the product with zeros off the image follows."""

    slope: float

    def points_behind(self, index, points):
        return points

    def apply(self, blocks):
        return blocks.behind_slopes(self.slope)


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """The larger one of two neighbours along an axis."""

    axis: int
    lengths: tuple

    def points_behind(self, index, points):
        if index != self.axis:
            return points
        return None if points % 2 else points // 2

    def apply(self, blocks):
        made = blocks.alone().behind_pairs(self.axis)
        is_whole = self.lengths[self.axis] % 2 == 0
        closed = blocks.is_zero_outside and is_whole
        return dataclasses.replace(made, is_zero_outside=closed)


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """A product with a factor for each channel."""

    factors: np.ndarray

    def points_behind(self, index, points):
        return points

    def apply(self, blocks):
        factors = self.factors[:, None]
        largest = float(np.max(np.abs(factors)))
        error = largest * (blocks.error + 4 * _EPS * blocks.size)
        if blocks.held is not None:
            error += blocks.error
        return dataclasses.replace(
            blocks, matrices=factors * blocks.matrices, error=error
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Fork:
    """The start of a branch, beside which its input is held."""

    def points_behind(self, index, points):
        return points

    def apply(self, blocks):
        return dataclasses.replace(blocks, held=blocks.alone())


@dataclasses.dataclass(frozen=True, eq=False)
class Join:
    """The sum of a branch and its input."""

    def points_behind(self, index, points):
        return points

    def apply(self, blocks):
        held = blocks.held
        if held is None or held.points != blocks.points:
            raise TooLargeError
        return Blocks(
            blocks.points,
            held.matrices + blocks.matrices,
            2 * blocks.error + 4 * _EPS * (held.size + blocks.size),
            held.is_zero_outside and blocks.is_zero_outside,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """Zeros around an image, or an image that is cut off.

    Attributes:
        before: Tuple of lengths.
        behind: Tuple of lengths.
    """

    before: tuple
    behind: tuple

    def points_behind(self, index, points):
        return points if points >= self.behind[index] else None

    def apply(self, blocks):
        blocks.alone()
        lengths = list(zip(self.before, self.behind, strict=True))
        grows = any(before < behind for before, behind in lengths)
        if grows and not blocks.is_zero_outside:
            blocks = blocks.behind_slopes(1.0)
        is_cut = any(before > behind for before, behind in lengths)
        closed = blocks.is_zero_outside and not is_cut
        return dataclasses.replace(blocks, is_zero_outside=closed)
