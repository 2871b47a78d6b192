"""Kernels of convolutions, composed of orthogonal factors."""

import keras
import numpy as np
from keras import ops

from deel.lip._backend.variables import float32_at_least
from deel.lip._backend.variables import host
from deel.lip._numerics.orthogonal_factors import Factors
from deel.lip._numerics.orthogonal_factors import convolution_bound
from deel.lip._numerics.polar import SCALES
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
            parts, _ = _nearest(factors.split(drawn))
            return ops.cast(factors.join(parts), dtype)

        return factors.free_shape, orthogonal

    def add_state(self, input_shape):
        self.factors = Factors(self.kernel_shape, self.strides, self.groups)

    def constrain(self, kernel):
        given = self.factors.split(kernel)
        nearest, _ = _nearest(self.factors.split(ops.stop_gradient(kernel)))
        parts = [
            None if part is None else with_tangent_gradient(part, factor, 1)
            for part, factor in zip(given, nearest, strict=True)
        ]
        return self.factors.compose(parts)

    def retract(self, kernel):
        nearest, scales = _nearest(self.factors.split(kernel))
        parts = [
            # The scale has no effect; see `Spectral`.
            None if factor is None else ops.clip(scale, *SCALES) * factor
            for factor, scale in zip(nearest, scales, strict=True)
        ]
        return self.factors.join(parts), self.factors.compose(nearest)

    def free_kernel_of(self, constrained, kernel):
        # The factors as they are, but for what keeps them precise.
        return self.retract(kernel)[0]

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


def _nearest(parts):
    """The orthogonal factors nearest to given ones, and their scales."""
    found = [
        (None, None)
        if part is None
        else nearest_factor(part, _EXACT, _MAX_STEPS, 1)
        for part in parts
    ]
    return tuple(zip(*found, strict=True))
