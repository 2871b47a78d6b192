"""The Frobenius parametrization: kernels divided by their Euclidean norm."""

import numpy as np
from keras import ops

from deel.lip._backend.linear_algebra import divided_by_length
from deel.lip._backend.linear_algebra import has_wider
from deel.lip._backend.linear_algebra import one_for_tiny
from deel.lip._backend.linear_algebra import sum_of_rows
from deel.lip._backend.tensors import reshaped
from deel.lip._numerics.norm_bounds import as_matrix
from deel.lip._numerics.norm_bounds import unit_scale
from deel.lip.parametrizations.base import Parametrization


class Frobenius(Parametrization):
    """Kernels divided by their Frobenius norm, or each part by its own. Final.

    The Frobenius norm is never below the largest singular value, and equal to
    it for a single column.

    Args:
        axis: None for one norm of the whole kernel. -1 makes each column a unit
            vector, which bounds each output alone but not the vector of
            outputs; -2 does so with the kernel of each channel of a depthwise
            convolution, whose channels do not meet.
    """

    bounds_matrix = False

    def __init__(self, axis=None, **kwargs):
        super().__init__(**kwargs)
        self.axis = axis

    def constrain(self, kernel):
        if self.axis == -2:
            kernel = ops.swapaxes(kernel, -1, -2)
        whole = self.axis is None
        columns = reshaped(kernel, (-1, 1)) if whole else as_matrix(kernel)
        constrained = reshaped(_of_length_one(columns), kernel.shape)
        if self.axis == -2:
            constrained = ops.swapaxes(constrained, -1, -2)
        return constrained

    def expansion(self, array):
        squares = np.square(array.astype("float64"))
        if self.axis is None:
            return np.sqrt(np.sum(squares))
        parts = np.moveaxis(squares, self.axis, 0)
        return np.sqrt(np.max(np.sum(parts.reshape(len(parts), -1), axis=1)))


def _of_length_one(columns):
    """Each column divided by its length; zeros stay zeros."""
    if has_wider(columns):
        return divided_by_length(columns)
    unit, _ = unit_scale(columns, axis=0)
    # The largest square is one, or that of zeros.
    squares = one_for_tiny(sum_of_rows(ops.square(unit)))
    return unit * ops.rsqrt(squares)
