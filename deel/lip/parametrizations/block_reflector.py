"""Kernels that are reflections."""

from keras import ops

from deel.lip._backend.retraction import store
from deel.lip._backend.variables import float32_at_least
from deel.lip._numerics.norm_bounds import transposed
from deel.lip._numerics.orthogonal_maps import at_scale_of
from deel.lip._numerics.orthogonal_maps import cholesky_qr
from deel.lip._numerics.orthogonal_maps import reflected
from deel.lip._numerics.polar import finished
from deel.lip._numerics.polar import nearer
from deel.lip.parametrizations.skew import Mapped


class BlockReflector(Mapped):
    """Reflections at the space that the columns of a free matrix leave out.

    Only the space that the columns span counts. So a retraction to an
    orthonormal basis of it changes nothing but the condition.

    Args:
        rank: Integer, the number of columns; None means a quarter of the larger
            side of the kernel.
    """

    def __init__(self, rank, **kwargs):
        super().__init__(**kwargs)
        self.rank = rank

    def free_variable(self, shape, initializer):
        super().free_variable(shape, initializer)
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
        return self._kernel_of(self._basis(kernel))

    def retract(self, kernel):
        moved = float32_at_least(kernel)
        basis = self._basis(moved)
        store(self.wbar, self._scaled(self._kernel_of(basis)))
        return ops.cast(at_scale_of(moved, basis), kernel.dtype)

    def _basis(self, kernel):
        # A reflection would feel twice what the shifts have taken away.
        return nearer(cholesky_qr(kernel))

    def _kernel_of(self, basis):
        rows, columns = self._kernel_shape
        found = finished(reflected(basis, min(rows, columns)))
        return found if rows >= columns else transposed(found)
