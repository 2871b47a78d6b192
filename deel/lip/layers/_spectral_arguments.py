"""The arguments that the `Spectral*` layers share."""

from deel.lip._constrained import ConstrainedKernel
from deel.lip._defaults import check_RKO_params
from deel.lip._validation import positive_int
from deel.lip.parametrizations.spectral import Spectral

_OPTIONS = (
    "eps_spectral",
    "eps_bjorck",
    "beta_bjorck",
    "maxiter_spectral",
    "maxiter_bjorck",
)


class SpectralKernel(ConstrainedKernel):
    """Mixin of the `Spectral*` layers: their options, and their state.

    Args:
        *args: Positional arguments of the layer.
        parametrization: Function of the options and of `groups` that returns
            the `Parametrization`.
        **kwargs: The five options, see `deel.lip.layers.SpectralDense`, and
            further arguments of the layer.
    """

    def __init__(self, *args, parametrization=Spectral, **kwargs):
        options = {name: kwargs.pop(name) for name in _OPTIONS}
        check_RKO_params(*(options[name] for name in _OPTIONS[:3]))
        for name in _OPTIONS[3:]:
            options[name] = positive_int(name, options[name])
        groups = kwargs.get("groups", 1)
        super().__init__(
            *args,
            parametrization=parametrization(groups=groups, **options),
            **kwargs,
        )
        for name, value in options.items():
            setattr(self, name, value)

    @property
    def u(self):
        """The power-iteration vector, variable `sn`."""
        return self.parametrization.sn

    @property
    def sig(self):
        """The last largest singular value of the free kernel, `sigma`."""
        return self.parametrization.sigma

    def get_config(self):
        options = {name: getattr(self, name) for name in _OPTIONS}
        return {**super().get_config(), **options}
