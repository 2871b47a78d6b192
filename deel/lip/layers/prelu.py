"""Activations with a trained slope for negative values."""

import keras
from keras import ops

from deel.lip._backend.variables import host
from deel.lip._lipschitz import KnownConstant
from deel.lip._lipschitz import changing_together
from deel.lip._lipschitz import tell_of_constant
from deel.lip._register import register
from deel.lip._stock_only.checks import without_training
from deel.lip._stock_only.kernels import with_weights
from deel.lip._validation import positive_float
from deel.lip.constraints import WeightClipConstraint


@register("PReLUlip")
def PReLUlip(k_coef_lip=1.0):
    """Returns a `keras.layers.PReLU` with slopes kept in `[-k, k]`.

    The slope of each channel is clipped by itself after each update of the
    optimizer, so the layer is `max(1, k_coef_lip)`-Lipschitz.

    Args:
        k_coef_lip: Float, the largest magnitude of a slope.
    """
    k_coef_lip = positive_float("k_coef_lip", k_coef_lip)
    return keras.layers.PReLU(alpha_constraint=WeightClipConstraint(k_coef_lip))


@register("LipschitzPReLU")
class LipschitzPReLU(KnownConstant, keras.layers.PReLU):
    """`keras.layers.PReLU` with slopes clipped to `[-k, k]` where it is used.

    The bound holds at any moment, whatever an optimizer or `set_weights` left
    in the variable; `PReLUlip` clips the variable after each update instead.
    Positive values pass unchanged, so the layer is `max(1, k_coef_lip)`-
    Lipschitz and takes no share of the constant of a
    `deel.lip.model.Sequential`. A slope beyond the bound has no gradient, as
    is usual for clipping.

    Args:
        k_coef_lip: Float, the largest magnitude of a slope.
        alpha_initializer: Initializer of the slopes; None means 0.25.
        alpha_regularizer, alpha_constraint: Of the slopes before clipping.
        shared_axes: Axes along which slopes are shared, as for
            `keras.layers.PReLU`: `[1, 2]` for one slope for each channel of an
            image.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, ...)`.
        The output has the same.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.activations import LipschitzPReLU
    >>> x = np.array([[3., -2.]])
    >>> layer = LipschitzPReLU(0.5, alpha_initializer="ones")
    >>> print(keras.ops.convert_to_numpy(layer(x)))
    [[ 3. -1.]]

    Reference:
        - [He et al., 2015](https://arxiv.org/abs/1502.01852), "Delving deep
          into rectifiers".
    """

    _free_alpha = None

    def __init__(
        self,
        k_coef_lip=1.0,
        alpha_initializer=None,
        alpha_regularizer=None,
        alpha_constraint=None,
        shared_axes=None,
        **kwargs,
    ):
        if alpha_initializer is None:
            alpha_initializer = keras.initializers.Constant(0.25)
        super().__init__(
            alpha_initializer,
            alpha_regularizer,
            alpha_constraint,
            shared_axes,
            **kwargs,
        )
        self.k_coef_lip = k_coef_lip

    @property
    def k_coef_lip(self):
        """The largest magnitude of a slope."""
        return self._k_coef_lip

    @k_coef_lip.setter
    def k_coef_lip(self, value):
        with changing_together():
            self._k_coef_lip = positive_float("k_coef_lip", value)
            tell_of_constant(self)

    def _whole_constant(self):
        return max(1.0, self.k_coef_lip)

    # The stock `call` reads the slopes here; the variable is in `weights`.
    @property
    def alpha(self):
        """The clipped slopes, a tensor."""
        if self._free_alpha is None:
            raise AttributeError(
                "You must build the layer before accessing `alpha`."
            )
        return ops.clip(
            ops.convert_to_tensor(self._free_alpha),
            -self.k_coef_lip,
            self.k_coef_lip,
        )

    @alpha.setter
    def alpha(self, variable):
        self._free_alpha = variable

    def _stock_call(self, inputs, convert):
        def make():
            config = keras.layers.PReLU.get_config(self)
            stock = keras.layers.PReLU.from_config(without_training(config))
            return with_weights(stock, [host(self.alpha)])

        return convert.once(self, make)(inputs)

    def get_config(self):
        return {**super().get_config(), "k_coef_lip": self.k_coef_lip}
