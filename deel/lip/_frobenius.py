"""The Frobenius parametrization: kernels divided by their Euclidean norm."""

import numpy as np
from keras import ops

from deel.lip import _orthogonal
from deel.lip._constrained import ConstrainedKernel
from deel.lip._parametrization import Parametrization
from deel.lip._slices import reshaped


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
        columns = _orthogonal.as_matrix(kernel)
        if not self.by_column:
            columns = ops.reshape(kernel, (-1, 1))
        unit, _ = _orthogonal.unit_scale(columns, axis=0)
        squares = _orthogonal.accurate_sum(ops.square(unit))
        constrained = unit / ops.sqrt(_orthogonal.one_for_zero(squares))
        return reshaped(constrained, kernel.shape)

    def expansion(self, kernel):
        axis = tuple(range(kernel.ndim - 1)) if self.by_column else None
        squares = np.sum(np.square(kernel.astype("float64")), axis=axis)
        return np.sqrt(np.max(squares))


class FrobeniusKernel(ConstrainedKernel):
    """Mixin of the `Frobenius*` layers.

    See `deel.lip.layers.FrobeniusDense` for the arguments.
    """

    def __init__(self, *args, by_column=False, **kwargs):
        super().__init__(*args, parametrization=Frobenius(by_column), **kwargs)
