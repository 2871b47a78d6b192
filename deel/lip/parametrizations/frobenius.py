"""The Frobenius parametrization: kernels divided by their Euclidean norm."""

import numpy as np
from keras import ops

from deel.lip._backend.tensors import reshaped
from deel.lip._numerics.norm_bounds import accurate_sum
from deel.lip._numerics.norm_bounds import as_matrix
from deel.lip._numerics.norm_bounds import one_for_zero
from deel.lip._numerics.norm_bounds import unit_scale
from deel.lip.parametrizations.base import Parametrization


class Frobenius(Parametrization):
    """Kernels divided by their Frobenius norm, or each column by its own.

    Args:
        by_column: Boolean. True makes each column a unit vector, which bounds
            each output alone but not the vector of outputs.
    """

    def __init__(self, by_column=False, **kwargs):
        super().__init__(**kwargs)
        self.by_column = by_column

    def constrain(self, kernel):
        columns = as_matrix(kernel)
        if not self.by_column:
            columns = ops.reshape(kernel, (-1, 1))
        unit, _ = unit_scale(columns, axis=0)
        squares = accurate_sum(ops.square(unit))
        constrained = unit / ops.sqrt(one_for_zero(squares))
        return reshaped(constrained, kernel.shape)

    def expansion(self, kernel):
        axis = tuple(range(kernel.ndim - 1)) if self.by_column else None
        squares = np.sum(np.square(kernel.astype("float64")), axis=axis)
        return np.sqrt(np.max(squares))
