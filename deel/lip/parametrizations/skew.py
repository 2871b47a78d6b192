"""Kernels that maps of skew matrices give."""

from deel.lip._numerics.orthogonal_maps import of_any_shape
from deel.lip.parametrizations.base import Parametrization


class Mapped(Parametrization):
    """Base of the maps whose result is no free kernel that gives it again.

    They make the identity of zero.
    """

    def condense(self, kernel):
        """Leaves the free kernel: the map gives another one of its result."""
        self.refresh(kernel)


class OfSkew(Mapped):
    """Kernels that a map of skew matrices gives, of free kernels of any kind.

    Args:
        function: `cayley` or `exponential`.
    """

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def constrain(self, kernel):
        return of_any_shape(self.function, kernel)
