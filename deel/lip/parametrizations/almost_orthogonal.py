"""The almost-orthogonal parametrization: kernels rescaled, and no iteration.

Note [Why rescaled kernels never expand]

Let M be symmetric and T diagonal with `T_ii = sum_j |M_ij|`. T - M has rows
whose diagonal entry is no less than the others together, so it is positive
semi-definite (Gershgorin): `M <= T`. With M = P^T P this says that the columns
of P, divided by the roots of T, make a matrix of norm at most one, since
`T^(-1/2) P^T P T^(-1/2) <= 1`. It has norm one if the columns are orthogonal.

For a convolution, the columns of P are what single pixels of single channels
become. Without a stride, the products of two of them depend on their distance
d alone: `R_ij(d)`, the correlation of the taps of channels i and j. So T is the
same for all pixels of a channel i, the sum of |R_ij(d)| over all channels j and
distances d. A stride s first turns the s positions of a pixel modulo s into
channels (`by_phase`). Zero padding leaves out some rows and columns of P.
Padding with the image itself lets distances fall together, which does not add
to the sums of magnitudes.

Note [Weights of the channels]

With weights q_i > 0, `T_ii = sum_j |M_ij| q_j / q_i` bounds as well: it is what
a kernel has whose channels were multiplied by q_i before. So a free kernel
needs no weights that are trained, as the original has them. But a rescaled
kernel, rescaled once more, would become smaller still, unless q_i is divided by
the factor of its channel: then T is the identity. That is what condensing does,
after which the layer is the same function, and goes on from there.

A rescaled kernel passes the test of loaded files by its `expansion`: the root
of the largest eigenvalue of the matrix of sums `sum_d |R_ij(d)|`. It is an
upper bound of the norm (Perron), and at most one for what comes from here,
since no eigenvalue exceeds the row sums of a similar matrix.

References:
    - Prach and Lampert, "Almost-orthogonal layers for efficient general-purpose
      Lipschitz networks", ECCV 2022 (arXiv:2208.03160).
"""

import itertools
import math

import numpy as np
from keras import ops

from deel.lip._backend.retraction import value_or_none
from deel.lip._numerics.convolution_norm import by_phase
from deel.lip._numerics.norm_bounds import products_of_columns
from deel.lip._numerics.norm_bounds import unit_scale
from deel.lip.parametrizations.base import Parametrization

# Sums are rounded up by this much, more than what rounding takes from them.
_SLACK = 4e-6

# Less than the square of what a kernel of unit scale feels.
_NOTHING = 1e-30

# Least weight of a channel; the largest is one.
_LEAST_WEIGHT = 1e-6


class AlmostOrthogonal(Parametrization):
    """Kernels whose channels are divided by how much they overlap. Final.

    Args:
        strides: Tuple of integers, one for each axis of the window.
        by_output: Boolean: which channels are divided. None means those of
            the smaller side, which is cheaper; for matrices only.

    Attributes:
        q: Variable, not trained: a weight for each channel, see the note; None
            before it is built, which means ones.
    """

    q = None

    def __init__(self, strides=(), by_output=False, **kwargs):
        super().__init__(**kwargs)
        self.strides = strides
        self.by_output = by_output

    def constrain(self, kernel):
        unit, _ = unit_scale(kernel)
        return unit * self._on_taps(self._factors(unit), kernel.shape)

    def add_state(self, input_shape):
        *_, inputs, outputs = self.kernel_shape
        by_output = self._divides_outputs(self.kernel_shape)
        channels = inputs * math.prod(self.strides)
        self.q = self.add_weight(
            name="q",
            shape=(outputs if by_output else channels,),
            initializer="ones",
        )

    def free_kernel_of(self, constrained, kernel):
        unit, _ = unit_scale(kernel)
        weights = self._weights(unit) / self._factors(unit)
        self.store(self.q, weights / ops.max(weights))
        return constrained

    def _weights(self, kernel):
        """The weights, which a file may have set to anything at all."""
        weights = None if self.q is None else value_or_none(self.q)
        if weights is None:
            # Sound as well; where there are weights, nobody keeps the result.
            return ops.ones((1,), dtype=kernel.dtype)
        weights = ops.cast(weights, kernel.dtype)
        usual = ops.clip(weights, _LEAST_WEIGHT, 1.0)
        # False for what is not a number.
        return ops.where(weights > 0, usual, ops.ones_like(weights))

    def _factors(self, unit):
        """What each channel is multiplied by; see the first note."""
        weights = self._weights(unit)
        sums = 0.0
        for found, mirrored in self._correlations(
            unit, ops, products_of_columns
        ):
            magnitudes = ops.abs(found)
            sums = sums + ops.sum(magnitudes * weights, axis=1)
            if mirrored:
                weighted = magnitudes * ops.expand_dims(weights, -1)
                sums = sums + ops.sum(weighted, axis=0)
        sums = sums / weights
        sums = ops.where(sums > _NOTHING, sums, ops.ones_like(sums))
        return 1.0 / ops.sqrt(sums * (1.0 + _SLACK))

    def expansion(self, array):
        if not self.strides:
            return super().expansion(array)
        sums = 0.0
        array = array.astype("float64")
        for found, mirrored in self._correlations(
            array, np, lambda x, y: x.T @ y
        ):
            magnitudes = np.abs(found)
            sums = sums + magnitudes + (magnitudes.T if mirrored else 0.0)
        return np.sqrt(max(0.0, np.linalg.eigvalsh(sums)[-1]))

    def _divides_outputs(self, shape):
        return shape[0] > shape[1] if self.by_output is None else self.by_output

    def _correlations(self, kernel, xp, products):
        """Products of the channels at all distances, but for the mirrored.

        Args:
            kernel: Tensor or array.
            xp: The module of its functions: `keras.ops`, or NumPy.
            products: Function of two matrices, `x^T y`.

        Yields:
            Pairs: a matrix, and whether the opposite distance has its
            transpose.
        """
        by_output = self._divides_outputs(kernel.shape)
        strides = (1,) * len(self.strides) if by_output else self.strides
        sizes = kernel.shape[: len(strides)]
        sizes = [-(-k // s) for k, s in zip(sizes, strides, strict=True)]
        taps = by_phase(kernel, strides, 1, xp)
        taps = xp.reshape(taps, (*sizes, *taps.shape[2:]))
        if not by_output:
            taps = xp.swapaxes(taps, -1, -2)
        origin = (0,) * len(sizes)
        for shift in itertools.product(*(range(1 - n, n) for n in sizes)):
            if shift < origin:
                continue
            steps = list(zip(shift, sizes, strict=True))
            here = tuple(slice(max(0, -d), n - max(0, d)) for d, n in steps)
            there = tuple(slice(max(0, d), n - max(0, -d)) for d, n in steps)
            matrices = [
                xp.reshape(taps[part], (-1, taps.shape[-1]))
                for part in (here, there)
            ]
            yield products(*matrices), shift > origin

    def _on_taps(self, factors, shape):
        """Factors of channels as a tensor that multiplies the kernel."""
        if self._divides_outputs(shape):
            return factors
        factors = ops.reshape(factors, (*self.strides, -1))
        for axis, stride in enumerate(self.strides):
            phases = np.arange(shape[axis]) % stride
            factors = ops.take(factors, phases, axis=axis)
        return ops.expand_dims(factors, -1)
