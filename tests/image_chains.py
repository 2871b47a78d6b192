"""Random chains of images, and the norms of all that they may be."""

import dataclasses
import itertools
import math

import numpy as np

from deel.lip._numerics.windows import Axis
from deel.lip.certification._chain import Ellipsoid
from deel.lip.certification._image_steps import Convolution
from deel.lip.certification._image_steps import on_torus
from deel.lip.certification._norms import explicit_matrix
from deel.lip.certification._spectrum import Spectrum
from deel.lip.certification._spectrum import behind_convolution

# A product of norms that is of no help: what is left is the torus.
_HUGE = 1e6

# Patterns are two to the power of so many values.
_MOST_VALUES = 9

_KINDS = (
    "convolution",
    "slopes",
    "largest",
    "frame",
    "means",
    "factors",
    "branch",
)


def numbers(random, shape):
    """Random numbers, or signs, which add up and cancel exactly."""
    kind = random.integers(4)
    if kind == 0:
        return random.standard_normal(shape)
    if kind == 1:
        return random.choice([-1.0, 1.0], shape)
    if kind == 2:
        return random.choice([-1.0, 0.0, 1.0], shape)
    return np.ones(shape)


class RandomChain:
    """Steps of images, as a `Spectrum` and as all Jacobians there can be.

    Args:
        seed: Integer.

    Attributes:
        spread: What is known of the image.
        jacobians: Array `(patterns, outputs, inputs)`.
        steps: List of strings.
    """

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.lengths = (self.random.integers(1, 9),)
        if self.random.random() < 1 / 3:
            self.lengths = tuple(self.random.integers(1, 5, 2))
        self.lengths = tuple(int(n) for n in self.lengths)
        self.channels = int(self.random.integers(1, 3))
        self.spread = Ellipsoid(1.0)
        self.jacobians = np.eye(self.size)[None]
        self.steps = []
        self._free = _MOST_VALUES
        count = self.random.integers(7)
        weights = np.array([3, 1, 1, 1, 1, 1, 1]) / 9
        for kind in [
            "convolution",
            *self.random.choice(_KINDS, count, p=weights),
        ]:
            if kind == "convolution" or isinstance(self.spread, Spectrum):
                getattr(self, f"_add_{kind}")()

    @property
    def size(self):
        return math.prod(self.lengths) * self.channels

    def _axes(self, padding):
        axes = []
        for length in self.lengths:
            size = int(self.random.integers(1, 5))
            stride = int(self.random.choice([1, 1, 2, 3]))
            dilation = int(self.random.integers(1, 3)) if stride == 1 else 1
            if padding == "circular" and (
                size % 2 == 0
                or length % stride
                or size // 2 * dilation > length
            ):
                size, stride = 1, 1
            axes.append(Axis(length, size, stride, dilation, padding))
        return axes

    def _add_convolution(self):
        paddings = ["same", "valid", "causal", "circular"]
        axes = self._axes(str(self.random.choice(paddings)))
        groups = self.channels if self.random.random() < 0.2 else 1
        outputs = int(self.random.integers(1, 3))
        shape = [axis.size for axis in axes]
        shape += [groups, self.channels // groups, outputs]
        convolution = on_torus(numbers(self.random, shape), axes)
        windows = math.prod(axis.windows() for axis in axes)
        if convolution is not None and windows * groups * outputs <= 24:
            self._add(convolution, convolution.kernel, groups * outputs)

    def _add_branch(self):
        before = self.spread, self.jacobians, self.lengths, self.channels
        self.spread = self.spread.forked()
        padding = str(self.random.choice(["same", "causal", "circular"]))
        for step in range(2):
            axes = [
                dataclasses.replace(axis, stride=1)
                for axis in self._axes(padding)
            ]
            outputs = int(self.random.integers(1, 3)) if not step else before[3]
            shape = [axis.size for axis in axes]
            shape += [1, self.channels, outputs]
            convolution = on_torus(numbers(self.random, shape), axes)
            if convolution is None:
                self.spread, self.jacobians = before[:2]
                self.lengths, self.channels = before[2:]
                return
            self._add(convolution, convolution.kernel, outputs)
            if self.random.random() < 0.7:
                self._add_slopes()
        joined = self.spread.joined()
        if not isinstance(joined, Spectrum):
            self.spread, self.jacobians = before[:2]
            self.lengths, self.channels = before[2:]
            return
        self.spread = joined
        repeats = len(self.jacobians) // len(before[1])
        held = np.repeat(before[1], repeats, axis=0)
        self._put(held + self.jacobians, "branch")

    def _add_means(self):
        axes = [
            Axis(axis.length, axis.size, axis.stride)
            for axis in self._axes("valid")
        ]
        if any(axis.windows() < 1 for axis in axes):
            return
        shape = [axis.size for axis in axes]
        taps = np.full([*shape, 1, 1], 1 / math.prod(shape))
        means = Convolution(taps, axes, by_channel=True)
        self._add(means, taps * np.eye(self.channels), self.channels)

    def _add(self, convolution, kernel, channels):
        matrix = explicit_matrix(kernel[..., None, :, :], convolution.axes)[0]
        self.spread = behind_convolution(self.spread, convolution, _HUGE)
        self.lengths, self.channels = convolution.lengths, channels
        self._put(matrix.T @ self.jacobians, "convolution")

    def _add_slopes(self):
        if self.size > self._free:
            return
        self._free -= self.size
        slope = float(self.random.choice([1.0, 1.0, 0.5, 2.0]))
        patterns = itertools.product([0.0, slope], repeat=self.size)
        patterns = np.array(list(patterns))[None, :, :, None]
        jacobians = patterns * self.jacobians[:, None]
        self.spread = self.spread.through_slopes(slope)
        self._put(jacobians.reshape(-1, *jacobians.shape[2:]), "slopes")

    def _add_largest(self):
        axis = int(self.random.integers(len(self.lengths)))
        pairs = self.lengths[axis] // 2
        if not pairs:
            return
        places = np.arange(self.size).reshape(*self.lengths, self.channels)
        evens = np.take(places, range(0, 2 * pairs, 2), axis=axis)
        odds = np.take(places, range(1, 2 * pairs, 2), axis=axis)
        if evens.size > self._free:
            return
        self._free -= evens.size
        chosen = itertools.product([False, True], repeat=evens.size)
        jacobians = [
            self.jacobians[:, np.where(odd, odds.ravel(), evens.ravel())]
            for odd in chosen
        ]
        rank = len(self.lengths)
        self.spread = self.spread.largest([int(i == axis) for i in range(rank)])
        self.lengths = evens.shape[:-1]
        self._put(np.concatenate(jacobians), "largest")

    def _add_factors(self):
        factors = numbers(self.random, self.channels)
        if np.any(factors):
            self.spread = self.spread.through_factors(factors)
            repeated = np.tile(factors, math.prod(self.lengths))
            self._put(repeated[:, None] * self.jacobians, "factors")

    def _add_frame(self):
        places = np.arange(self.size).reshape(*self.lengths, self.channels)
        for axis, length in enumerate(self.lengths):
            if length > 1 and self.random.random() < 0.5:
                first = int(self.random.integers(2))
                kept = range(first, first + length - 1)
                places = np.take(places, kept, axis=axis)
            else:
                widths = [(0, 0)] * places.ndim
                widths[axis] = tuple(self.random.integers(0, 3, 2))
                places = np.pad(places, widths, constant_values=-1)
        if places.size > 24:
            return
        self.lengths = places.shape[:-1]
        self.spread = self.spread.framed(self.lengths)
        places = places.ravel()
        jacobians = self.jacobians[:, places]
        jacobians[:, places < 0] = 0.0
        self._put(jacobians, "frame")

    def _put(self, jacobians, step):
        self.jacobians = jacobians
        self.steps.append(step)


def largest_norm(jacobians):
    return float(np.max(np.linalg.norm(jacobians, 2, axis=(1, 2))))
