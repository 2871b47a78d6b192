"""Kernels that are reflections."""

from deel.lip._numerics.norm_bounds import transposed
from deel.lip._numerics.orthogonal_maps import at_scale_of
from deel.lip._numerics.orthogonal_maps import cholesky_qr
from deel.lip._numerics.orthogonal_maps import reflected
from deel.lip._numerics.polar import finished
from deel.lip._numerics.polar import nearer
from deel.lip.parametrizations.base import Parametrization


class BlockReflector(Parametrization):
    """Reflections at the space that the columns of a matrix leave out. Final.

    Only the space that the columns span counts. So a retraction to an
    orthonormal basis of it changes nothing but the condition. Zero gives the
    identity.

    Args:
        rank: Integer, the number of columns; None means a quarter of the larger
            side of the kernel.
    """

    def __init__(self, rank=None, **kwargs):
        super().__init__(**kwargs)
        self.rank = rank

    def free_variable(self, shape, initializer):
        side = max(shape)
        rank = self.rank or max(1, side // 4)
        # A single number has no room for less than all of it.
        if rank > max(1, side - 1):
            raise ValueError(
                "Argument `rank` must be less than the larger side of the "
                f"kernel, {side}. Received: rank={rank}"
            )
        return (side, rank), initializer

    def constrain(self, kernel):
        return self.kernel_of(self._basis(kernel))

    def retract(self, kernel):
        basis = self._basis(kernel)
        return at_scale_of(kernel, basis), self.kernel_of(basis)

    def free_kernel_of(self, constrained, kernel):
        # A reflection is no basis of what it reflects.
        return kernel

    def kernel_of(self, basis):
        """The kernel of an orthonormal basis; of any other, a sound one."""
        rows, columns = self.kernel_shape
        found = finished(reflected(basis, min(rows, columns)))
        return found if rows >= columns else transposed(found)

    def _basis(self, kernel):
        # A reflection would feel twice what the shifts have taken away.
        return nearer(cholesky_qr(kernel))
