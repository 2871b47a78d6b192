"""Kernels replaced by a factor of their QR decomposition."""

from deel.lip._numerics.orthogonal_maps import at_scale_of
from deel.lip._numerics.orthogonal_maps import cholesky_qr
from deel.lip._numerics.orthogonal_maps import of_any_shape
from deel.lip.parametrizations.base import Parametrization


class CholeskyQR(Parametrization):
    """Kernels replaced by the factor Q of their QR decomposition. Final.

    Q is its own factor, so a retraction changes nothing but the condition of
    the free kernel, which it keeps at one; see `Spectral` for its scale.
    """

    def constrain(self, kernel):
        return of_any_shape(cholesky_qr, kernel)

    def retract(self, kernel):
        factor = self.constrain(kernel)
        return at_scale_of(kernel, factor), factor
