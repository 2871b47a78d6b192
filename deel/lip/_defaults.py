"""Defaults of the arguments that normalise kernels, and their checks."""

#: Size of a Björck step.
DEFAULT_BETA_BJORCK = 0.5

#: Threshold at which a power iteration stops.
DEFAULT_EPS_SPECTRAL = 1e-3

#: Threshold at which a Björck iteration stops.
DEFAULT_EPS_BJORCK = 1e-3

#: Limit of the steps of a Björck iteration.
DEFAULT_MAXITER_BJORCK = 15

#: Limit of the steps of a power iteration.
DEFAULT_MAXITER_SPECTRAL = 10


def check_RKO_params(eps_spectral, eps_bjorck, beta_bjorck):
    """Raises ValueError where an argument of the normalisation is invalid."""
    if not eps_spectral > 0:
        raise ValueError(
            "Argument `eps_spectral` must be greater than zero. "
            f"Received: eps_spectral={eps_spectral}"
        )
    if eps_bjorck is not None and not eps_bjorck > 0:
        raise ValueError(
            "Argument `eps_bjorck` must be greater than zero, or None to "
            "disable the orthogonalisation. "
            f"Received: eps_bjorck={eps_bjorck}"
        )
    if beta_bjorck is not None and not 0 < beta_bjorck <= 0.5:
        raise ValueError(
            "Argument `beta_bjorck` must be in ]0, 0.5], or None to disable "
            f"the orthogonalisation. Received: beta_bjorck={beta_bjorck}"
        )
