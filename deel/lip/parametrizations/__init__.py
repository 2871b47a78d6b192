"""Maps from free kernels to kernels of norm at most one.

`Parametrization` is the contract: subclass it to constrain a kernel in a way of
your own. The other classes are final, and what the layers of the library use;
`ConstrainedVariable` is what holds the result.
"""

from deel.lip.parametrizations.almost_orthogonal import AlmostOrthogonal
from deel.lip.parametrizations.base import Parametrization
from deel.lip.parametrizations.block_convolution import BlockConvolution
from deel.lip.parametrizations.block_reflector import BlockReflector
from deel.lip.parametrizations.cholesky_qr import CholeskyQR
from deel.lip.parametrizations.constrained_variable import ConstrainedVariable
from deel.lip.parametrizations.frobenius import Frobenius
from deel.lip.parametrizations.skew import Skew
from deel.lip.parametrizations.spectral import Spectral
from deel.lip.parametrizations.spectral_operator import SpectralOperator

__all__ = [
    "AlmostOrthogonal",
    "BlockConvolution",
    "BlockReflector",
    "CholeskyQR",
    "ConstrainedVariable",
    "Frobenius",
    "Parametrization",
    "Skew",
    "Spectral",
    "SpectralOperator",
]


def __dir__():
    return __all__
