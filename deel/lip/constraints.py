"""Constraints for the weights of stock layers, applied after each update."""

import math

import keras
import numpy as np
from keras import ops

from deel.lip._backend.variables import float32_at_least
from deel.lip._defaults import DEFAULT_BETA_BJORCK
from deel.lip._defaults import DEFAULT_EPS_BJORCK
from deel.lip._defaults import DEFAULT_EPS_SPECTRAL
from deel.lip._defaults import check_RKO_params
from deel.lip._numerics.polar import spectral_constraint
from deel.lip._register import register
from deel.lip._validation import positive_float

__all__ = [
    "AutoWeightClipConstraint",
    "FrobeniusConstraint",
    "SpectralConstraint",
    "WeightClipConstraint",
]


def __dir__():
    return __all__


@register("WeightClipConstraint")
class WeightClipConstraint(keras.constraints.Constraint):
    """Clips each weight to `[-c, c]`.

    Args:
        c: Float, zero or more.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.constraints import WeightClipConstraint
    >>> clipped = WeightClipConstraint(2)(np.array([[3.0, 0.0], [4.0, 2.0]]))
    >>> print(keras.ops.convert_to_numpy(clipped))
    [[2. 0.]
     [2. 2.]]
    """

    def __init__(self, c=2):
        self.c = c

    def __call__(self, w):
        return ops.clip(w, -self.c, self.c)

    def get_config(self):
        return {"c": self.c}


@register("AutoWeightClipConstraint")
class AutoWeightClipConstraint(keras.constraints.Constraint):
    """Clips each weight to `[-v, v]` with `v = 1 / (sqrt(size) * scale)`.

    The Frobenius norm of the weights is then at most `1 / scale`.

    Args:
        scale: Float greater than zero.
    """

    def __init__(self, scale=1):
        self.scale = scale

    def __call__(self, w):
        limit = 1.0 / (math.sqrt(math.prod(w.shape)) * self.scale)
        return ops.clip(w, -limit, limit)

    def get_config(self):
        return {"scale": self.scale}


@register("FrobeniusConstraint")
class FrobeniusConstraint(keras.constraints.Constraint):
    """Divides weights by their Frobenius norm.

    Args:
        eps: Float, added to the norm.
    """

    def __init__(self, eps=1e-7):
        self.eps = eps

    def __call__(self, w):
        return w / (ops.sqrt(ops.sum(ops.square(w))) + self.eps)

    def get_config(self):
        return {"eps": self.eps}


@register("SpectralConstraint")
class SpectralConstraint(keras.constraints.Constraint):
    """Brings the singular values of a kernel to `k_coef_lip`.

    The kernel is reshaped to `(-1, last dimension)`. The largest singular
    value is at most `k_coef_lip`, whatever the kernel; no coefficient for
    convolutions is applied.

    Args:
        k_coef_lip: Float, the wanted singular value.
        eps_spectral: Float greater than zero; accepted for compatibility.
        eps_bjorck: Float greater than zero, or None to bound the singular
            values without making them equal.
        beta_bjorck: Float in `]0, 0.5]`, or None, which has the effect of
            `eps_bjorck=None`.
        u: Array or None; accepted for compatibility, since no power iteration
            is needed.
    """

    def __init__(
        self,
        k_coef_lip=1.0,
        eps_spectral=DEFAULT_EPS_SPECTRAL,
        eps_bjorck=DEFAULT_EPS_BJORCK,
        beta_bjorck=DEFAULT_BETA_BJORCK,
        u=None,
    ):
        check_RKO_params(eps_spectral, eps_bjorck, beta_bjorck)
        self.k_coef_lip = positive_float("k_coef_lip", k_coef_lip)
        self.eps_spectral = eps_spectral
        self.eps_bjorck = eps_bjorck
        self.beta_bjorck = beta_bjorck
        self.u = u

    def __call__(self, w):
        kernel = float32_at_least(w)
        orthogonal = None not in (self.eps_bjorck, self.beta_bjorck)
        constrained = self.k_coef_lip * spectral_constraint(kernel, orthogonal)
        return ops.cast(constrained, w.dtype)

    def get_config(self):
        u = self.u if self.u is None else np.asarray(self.u).tolist()
        return {
            "k_coef_lip": self.k_coef_lip,
            "eps_spectral": self.eps_spectral,
            "eps_bjorck": self.eps_bjorck,
            "beta_bjorck": self.beta_bjorck,
            "u": u,
        }
