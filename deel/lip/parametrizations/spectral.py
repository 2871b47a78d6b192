"""The spectral parametrization: kernels with singular values of one."""

import numpy as np

from deel.lip.parametrizations.polar import Polar


class Spectral(Polar):
    """Kernels whose matrix `(-1, last dimension)` is orthogonal. Final.

    Newton-Schulz (Björck) steps find the (semi-)orthogonal matrix nearest to
    the free one: products of matrices alone. For the arguments see
    `deel.lip.layers.SpectralDense`.

    Args:
        groups: Integer, the number of blocks of columns, each constrained by
            itself.
        **kwargs: `eps_spectral`, `eps_bjorck`, `beta_bjorck`,
            `maxiter_spectral`, `maxiter_bjorck`.
    """

    def expansion(self, array):
        blocks = np.split(array, self.groups, axis=-1)
        return max(super(Spectral, self).expansion(block) for block in blocks)

    def kind(self):
        if self.orthogonal and self.groups == 1:
            return type(self), self.kernel_shape
        return None

    def multiple_of(self, matrix):
        return self.wbar.coefficient
