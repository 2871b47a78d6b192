"""Kernels of convolutions, composed of orthogonal factors."""

import keras
import numpy as np
from keras import ops

from deel.lip._backend.retraction import store
from deel.lip._backend.variables import float32_at_least
from deel.lip._backend.variables import host
from deel.lip._numerics.orthogonal_factors import Factors
from deel.lip._numerics.orthogonal_factors import convolution_bound
from deel.lip._numerics.polar import SCALES
from deel.lip._numerics.polar import nearest_factor
from deel.lip._numerics.polar import with_tangent_gradient
from deel.lip.parametrizations.base import SLACK
from deel.lip.parametrizations.base import Parametrization

# Closeness of the factors to orthogonal ones, and the limit of steps to it.
_EXACT = 1e-7

_MAX_STEPS = 30


class BlockConvolution(Parametrization):
    """Convolution kernels composed of orthogonal factors.

    The free variable holds the factors, see `Factors`. Between training steps
    each of them is a multiple of a (semi-)orthogonal matrix, as the kernels of
    `deel.lip.parametrizations.spectral.Spectral` are and for the same reasons.

    Args:
        strides: Tuple of integers.
        groups: Integer.
    """

    def __init__(self, strides, groups=1, **kwargs):
        super().__init__(**kwargs)
        self.strides = strides
        self.groups = groups
        self.factors = None

    def free_variable(self, shape, initializer):
        super().free_variable(shape, initializer)
        self.factors = Factors(shape, self.strides, self.groups)

        def orthogonal(shape, dtype):
            # Not every backend decomposes matrices of half precision.
            precise = keras.backend.result_type(dtype, "float32")
            parts, _ = self._nearest(initializer(shape, dtype=precise))
            return ops.cast(self.factors.join(parts), dtype)

        return self.factors.free_shape, orthogonal

    def constrain(self, kernel):
        given = self.factors.split(kernel)
        nearest, _ = self._nearest(ops.stop_gradient(kernel))
        parts = [
            None if part is None else with_tangent_gradient(part, factor, 1)
            for part, factor in zip(given, nearest, strict=True)
        ]
        return self.factors.compose(parts)

    def _nearest(self, array):
        """The factors nearest to those in the array, and their scales."""
        found = [
            (None, None)
            if part is None
            else nearest_factor(part, _EXACT, _MAX_STEPS, 1)
            for part in self.factors.split(array)
        ]
        return tuple(zip(*found, strict=True))

    def retract(self, kernel):
        nearest, scales = self._nearest(float32_at_least(kernel))
        constrained = self._scaled(self.factors.compose(nearest))
        store(self.wbar, constrained)
        parts = [
            # The scale has no effect; see `Spectral`.
            None if factor is None else ops.clip(scale, *SCALES) * factor
            for factor, scale in zip(nearest, scales, strict=True)
        ]
        return ops.cast(self.factors.join(parts), kernel.dtype)

    def condense(self, kernel):
        """Leaves the factors as they are, but for what keeps them precise."""
        kernel.assign(ops.copy(self.retract(kernel)))

    def expansion(self, kernel):
        blocks = np.split(kernel, self.groups, axis=-1)
        return max(convolution_bound(block, self.strides) for block in blocks)

    def _is_sound(self, value, kernel):
        # Most values from outside are those that the factors give: seen at
        # once, while a norm is decomposed frequency by frequency. The operator
        # of a difference has at most the sum of the norms of its taps. Other
        # values are valid, too (on JAX, `wbar` is a step behind the factors),
        # so equality is not asked for.
        own = self._scaled(self.constrain(float32_at_least(kernel)))
        if np.all(np.isfinite(value)):
            taps = value.astype("float64") - host(own)
            taps = taps.reshape(-1, *value.shape[-2:])
            distance = np.sum(np.linalg.norm(taps, axis=(-2, -1)))
            if distance <= 0.5 * self.coefficient * SLACK:
                return True
        return super()._is_sound(value, kernel)
