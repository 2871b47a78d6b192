"""Spectral kernels, divided by the norm of their convolution."""

from keras import ops

from deel.lip._numerics.norm_bounds import as_matrix
from deel.lip._numerics.polar import mean_scale
from deel.lip.parametrizations.spectral import USUAL_FACTORS
from deel.lip.parametrizations.spectral import Spectral
from deel.lip.parametrizations.spectral import is_multiple


class SpectralOperator(Spectral):
    """`Spectral` kernels, divided by the norm of their convolution.

    Where `Spectral` leaves it to the coefficient to make up for windows that
    overlap, the norm of the operator is bounded anew for each kernel. The
    multiple of the orthogonal matrix then differs from kernel to kernel; it is
    read off the kernel itself.

    Attributes:
        operator: `ConvolutionNorm`, set before the state is added.
    """

    operator = None

    def constrain(self, kernel):
        constrained = super().constrain(kernel)
        return constrained / self.operator.bound(constrained)

    def expansion(self, kernel):
        return self.operator.expansion(kernel)

    def _used(self, nearest, shape):
        norm = self.operator.bound(ops.reshape(nearest, shape))
        return self._scaled(nearest / norm)

    def _coefficient_of(self, stored):
        return mean_scale(stored)

    def _differentiable(self, constrained):
        scale = self._coefficient_of(as_matrix(constrained))
        return constrained * self.operator.gradient_path(constrained, scale)

    def _proven(self, matrix, stored, sigma):
        # Largest values have no order of summation, which root mean squares
        # have. Anything is near zeros, and near infinities.
        largest = ops.max(ops.abs(stored))
        safe = ops.where(largest > 0, largest, ops.ones_like(largest))
        factor = ops.max(ops.abs(matrix)) / safe
        usual = ops.logical_and(
            factor > USUAL_FACTORS[0], factor < USUAL_FACTORS[1]
        )
        return ops.logical_and(usual, is_multiple(matrix, stored, factor))
