"""Initializers that give kernels of known norm."""

import math

import keras
import numpy as np
from keras import ops

from deel.lip._backend.drawing import normal
from deel.lip._defaults import DEFAULT_BETA_BJORCK
from deel.lip._defaults import DEFAULT_EPS_BJORCK
from deel.lip._defaults import DEFAULT_EPS_SPECTRAL
from deel.lip._defaults import DEFAULT_MAXITER_BJORCK
from deel.lip._defaults import check_RKO_params
from deel.lip._numerics.orthogonal_maps import whitened
from deel.lip._numerics.polar import nearest_factor
from deel.lip._numerics.polar import spectral_constraint
from deel.lip._register import register
from deel.lip._validation import positive_float

__all__ = ["DiracInitializer", "SpectralInitializer"]

# A normal matrix that is twice as tall as wide, and not small, has a condition
# below (1 + sqrt(1/2)) / (1 - sqrt(1/2)) = 5.9, but for the rarest of draws.
# Its Gram matrix then has a Cholesky factor to nearly all of its digits.
_TALL = 2
_LEAST_SIDE = 64


def __dir__():
    return __all__


@register("DiracInitializer")
class DiracInitializer(keras.initializers.Initializer):
    """Makes the kernel of a convolution that copies its input.

    The tap in the middle is the identity, all others are zero. A deep stack of
    convolutions starts as one layer does; trained from there, each of them is
    a linear residual `x + conv(x)`. Of the channels that input and output do
    not share, those of the input are dropped and those of the output zero.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.initializers import DiracInitializer
    >>> layer = keras.layers.Conv2D(
    ...     2, 3, padding="same", kernel_initializer=DiracInitializer()
    ... )
    >>> x = np.random.default_rng(0).normal(size=(1, 5, 5, 2))
    >>> y = keras.ops.convert_to_numpy(layer(x))
    >>> bool(np.allclose(y, x))
    True
    """

    def __call__(self, shape, dtype=None, **kwargs):
        *sizes, inputs, outputs = shape
        kernel = np.zeros(shape)
        kernel[tuple((size - 1) // 2 for size in sizes)] = np.eye(
            inputs, outputs
        )
        return ops.convert_to_tensor(kernel, dtype or keras.config.floatx())

    def get_config(self):
        return {}


@register("SpectralInitializer")
class SpectralInitializer(keras.initializers.Initializer):
    """Draws a kernel whose singular values are all `k_coef_lip`.

    The kernel is drawn by a base initializer, reshaped to a matrix with the
    last dimension as columns, and replaced by the nearest matrix with equal
    singular values. It is the default of the `Spectral*` layers, which start
    on the manifold that training keeps them on. No power iteration with a
    random start is involved: the draw depends on the base initializer alone.
    (On JAX, NumPy draws what Keras' `Orthogonal` stands for, from its seed.)

    Args:
        eps_spectral: Float greater than zero; accepted for compatibility.
        eps_bjorck: Float greater than zero, or None. With None the kernel is
            only divided by a bound of its largest singular value, so that its
            singular values are at most `k_coef_lip`.
        beta_bjorck: Float in `]0, 0.5]`, or None, which has the same effect as
            `eps_bjorck=None`.
        k_coef_lip: Float, the wanted singular value.
        base_initializer: Initializer (an instance, a name or a config) that
            draws the kernel.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.initializers import SpectralInitializer
    >>> kernel = SpectralInitializer(k_coef_lip=2.0)((8, 4))
    >>> kernel = keras.ops.convert_to_numpy(kernel)
    >>> values = np.linalg.svd(kernel, compute_uv=False)
    >>> bool(np.allclose(values, 2.0, atol=1e-5))
    True
    """

    def __init__(
        self,
        eps_spectral=DEFAULT_EPS_SPECTRAL,
        eps_bjorck=DEFAULT_EPS_BJORCK,
        beta_bjorck=DEFAULT_BETA_BJORCK,
        k_coef_lip=1.0,
        base_initializer="orthogonal",
    ):
        check_RKO_params(eps_spectral, eps_bjorck, beta_bjorck)
        self.eps_spectral = eps_spectral
        self.eps_bjorck = eps_bjorck
        self.beta_bjorck = beta_bjorck
        self.k_coef_lip = positive_float("k_coef_lip", k_coef_lip)
        self.base_initializer = keras.initializers.get(base_initializer)

    def __call__(self, shape, dtype=None, partition_info=None):
        dtype = dtype or keras.config.floatx()
        precise = keras.backend.result_type(dtype, "float32")
        orthogonal = None not in (self.eps_bjorck, self.beta_bjorck)
        kernel = spectral_constraint(self._drawn(shape, precise), orthogonal)
        return ops.cast(self.k_coef_lip * kernel, dtype)

    def _drawn(self, shape, dtype):
        """What the base initializer draws.

        Keras takes the factor Q of a normal matrix, by Householder reflections.
        The factor is unique, and for tall matrices Cholesky's method gives the
        same in a seventh of the time, up to rounding that is mended anyway. On
        JAX NumPy finds the polar factor: as random as Q is, and much sooner
        than a decomposition is compiled.
        """
        base = self.base_initializer
        sides = math.prod(shape[:-1]), shape[-1]
        rows, columns = max(sides), min(sides)
        is_known = type(base) is keras.initializers.Orthogonal
        on_host = keras.backend.backend() == "jax"
        is_tall = columns >= _LEAST_SIDE and rows >= _TALL * columns
        if not is_known or not (on_host or is_tall):
            return base(shape, dtype=dtype)
        drawn = normal((rows, columns), base.seed, dtype)
        if on_host:
            factor, _ = nearest_factor(drawn, 0.0, DEFAULT_MAXITER_BJORCK, 1)
        else:
            factor = whitened(drawn, 0.0)
        if sides[0] < sides[1]:
            factor = ops.transpose(factor)
        return base.gain * ops.reshape(factor, shape)

    def get_config(self):
        return {
            "eps_spectral": self.eps_spectral,
            "eps_bjorck": self.eps_bjorck,
            "beta_bjorck": self.beta_bjorck,
            "k_coef_lip": self.k_coef_lip,
            "base_initializer": keras.initializers.serialize(
                self.base_initializer
            ),
        }
