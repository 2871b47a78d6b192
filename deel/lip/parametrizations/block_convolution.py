"""Kernels of convolutions, composed of orthogonal factors."""

import functools

import keras
import numpy as np
from keras import ops

from deel.lip._backend.variables import float32_at_least
from deel.lip._backend.variables import host
from deel.lip._numerics.one_step import step
from deel.lip._numerics.orthogonal_factors import Factors
from deel.lip._numerics.orthogonal_factors import convolution_bound
from deel.lip._numerics.polar import SCALES
from deel.lip._numerics.polar import factor_in_training
from deel.lip._numerics.polar import nearest_factor
from deel.lip._numerics.polar import with_tangent_gradient
from deel.lip.parametrizations.base import Parametrization
from deel.lip.parametrizations.constrained_variable import SLACK

# Closeness of the factors to orthogonal ones, and the limit of steps to it.
_EXACT = 1e-7

_MAX_STEPS = 30


class BlockConvolution(Parametrization):
    """Convolution kernels composed of orthogonal factors. Final.

    The free variable holds the factors, side by side. Between training steps
    each of them is a multiple of a (semi-)orthogonal matrix, as the kernels of
    `Spectral` are and for the same reasons.

    Args:
        strides: Tuple of integers.
        groups: Integer.

    Attributes:
        factors: The `Factors`, which knows what the free variable holds; None
            before it is built.
    """

    factors = None

    def __init__(self, strides, groups=1, **kwargs):
        super().__init__(**kwargs)
        self.strides = strides
        self.groups = groups

    def free_variable(self, shape, initializer):
        factors = Factors(shape, self.strides, self.groups)

        def orthogonal(shape, dtype):
            # Not every backend decomposes matrices of half precision.
            precise = keras.backend.result_type(dtype, "float32")
            drawn = initializer(shape, dtype=precise)
            parts = [
                None if part is None else _nearest(part)
                for part in factors.split(drawn)
            ]
            return ops.cast(factors.join(parts), dtype)

        return factors.free_shape, orthogonal

    def add_state(self, input_shape):
        self.factors = Factors(self.kernel_shape, self.strides, self.groups)

    def constrain(self, kernel):
        return self._composed(kernel, _nearest)

    def update(self, kernel):
        nearest = functools.partial(
            factor_in_training, is_retracted=self.wbar.is_retracted()
        )
        constrained = self._composed(float32_at_least(kernel), nearest)
        scaled = self.wbar.hold(constrained)
        self.wbar.note_use()
        return scaled

    def _composed(self, kernel, factor_of):
        """The kernel of factors made of the given ones, differentiable."""
        parts = [
            None
            if part is None
            else with_tangent_gradient(
                part, factor_of(ops.stop_gradient(part)), 1
            )
            for part in self.factors.split(kernel)
        ]
        return self.factors.compose(parts)

    def retract(self, kernel):
        found = [
            (None, None) if part is None else step(part)
            for part in self.factors.split(kernel)
        ]
        nearest, scales = zip(*found, strict=True)
        return self._free_kernel(nearest, scales), self.factors.compose(nearest)

    def free_kernel_of(self, constrained, kernel):
        # The factors as they are, but for what keeps them precise.
        found = [
            (None, None) if part is None else _nearest_and_scale(part)
            for part in self.factors.split(kernel)
        ]
        return self._free_kernel(*zip(*found, strict=True))

    def _free_kernel(self, factors, scales):
        return self.factors.join(
            # The scale has no effect; see `Polar`.
            None if factor is None else ops.clip(scale, *SCALES) * factor
            for factor, scale in zip(factors, scales, strict=True)
        )

    def expansion(self, array):
        blocks = np.split(array, self.groups, axis=-1)
        return max(convolution_bound(block, self.strides) for block in blocks)

    def admits(self, array, bound, kernel):
        # Most values from outside are those that the factors give: seen at
        # once, while a norm is decomposed frequency by frequency. The operator
        # of a difference has at most the sum of the norms of its taps. Other
        # values are valid, too (on JAX, `wbar` is a step behind the factors),
        # so equality is not asked for.
        own = self.wbar.scale(self.constrain(float32_at_least(kernel)))
        taps = array.astype("float64") - host(own)
        taps = taps.reshape(-1, *array.shape[-2:])
        distance = np.sum(np.linalg.norm(taps, axis=(-2, -1)))
        if distance <= 0.5 * SLACK * bound:
            return True
        return super().admits(array, bound, kernel)


def _nearest_and_scale(part):
    return nearest_factor(part, _EXACT, _MAX_STEPS, 1)


def _nearest(part):
    return _nearest_and_scale(part)[0]
