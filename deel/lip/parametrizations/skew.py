"""Kernels that maps of skew matrices give."""

from deel.lip._numerics.orthogonal_maps import cayley
from deel.lip._numerics.orthogonal_maps import exponential
from deel.lip._numerics.orthogonal_maps import of_any_shape
from deel.lip.parametrizations.base import Parametrization

_MAPS = {"cayley": cayley, "exponential": exponential}


class Skew(Parametrization):
    """Kernels that a map of skew matrices gives, of any free kernel. Final.

    The identity, of zero. What is trained is a plain vector space.

    Args:
        method: `"cayley"` or `"exponential"`.
    """

    def __init__(self, method, **kwargs):
        if method not in _MAPS:
            raise ValueError(
                f"Argument `method` must be one of {tuple(_MAPS)}. "
                f"Received: method={method}"
            )
        super().__init__(**kwargs)
        self.method = method

    def constrain(self, kernel):
        return of_any_shape(_MAPS[self.method], kernel)

    def free_kernel_of(self, constrained, kernel):
        # The map gives another kernel of its result.
        return kernel
