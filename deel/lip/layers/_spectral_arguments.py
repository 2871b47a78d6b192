"""The arguments that the `Spectral*` layers share."""

from deel.lip._constrained import ConstrainedKernel
from deel.lip._defaults import DEFAULT_BETA_BJORCK
from deel.lip._defaults import DEFAULT_EPS_BJORCK
from deel.lip._defaults import DEFAULT_EPS_SPECTRAL
from deel.lip._defaults import DEFAULT_MAXITER_BJORCK
from deel.lip._defaults import DEFAULT_MAXITER_SPECTRAL
from deel.lip._defaults import check_RKO_params
from deel.lip._validation import positive_int
from deel.lip.parametrizations.spectral import Spectral


class SpectralKernel(ConstrainedKernel):
    """Mixin of the `Spectral*` layers: their six arguments, and their state.

    See `deel.lip.layers.SpectralDense` for the arguments.
    """

    def __init__(
        self,
        *args,
        eps_spectral=DEFAULT_EPS_SPECTRAL,
        eps_bjorck=DEFAULT_EPS_BJORCK,
        beta_bjorck=DEFAULT_BETA_BJORCK,
        maxiter_spectral=DEFAULT_MAXITER_SPECTRAL,
        maxiter_bjorck=DEFAULT_MAXITER_BJORCK,
        parametrization=Spectral,
        **kwargs,
    ):
        check_RKO_params(eps_spectral, eps_bjorck, beta_bjorck)
        options = {
            "groups": kwargs.get("groups", 1),
            "eps_spectral": eps_spectral,
            "eps_bjorck": eps_bjorck,
            "beta_bjorck": beta_bjorck,
            "maxiter_spectral": positive_int(
                "maxiter_spectral", maxiter_spectral
            ),
            "maxiter_bjorck": positive_int("maxiter_bjorck", maxiter_bjorck),
        }
        super().__init__(
            *args, parametrization=parametrization(**options), **kwargs
        )
        self.eps_spectral = eps_spectral
        self.eps_bjorck = eps_bjorck
        self.beta_bjorck = beta_bjorck
        self.maxiter_spectral = options["maxiter_spectral"]
        self.maxiter_bjorck = options["maxiter_bjorck"]

    @property
    def u(self):
        """The power-iteration vector, variable `sn`."""
        return self.parametrization.sn

    @property
    def sig(self):
        """The last largest singular value of the free kernel, `sigma`."""
        return self.parametrization.sigma

    def get_config(self):
        return {
            **super().get_config(),
            "eps_spectral": self.eps_spectral,
            "eps_bjorck": self.eps_bjorck,
            "beta_bjorck": self.beta_bjorck,
            "maxiter_spectral": self.maxiter_spectral,
            "maxiter_bjorck": self.maxiter_bjorck,
        }
