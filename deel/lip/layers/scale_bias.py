"""What normalisations are at inference."""

from keras import ops

from deel.lip._backend.variables import float32_at_least
from deel.lip._lipschitz import KnownConstant
from deel.lip._register import register
from deel.lip.layers._channel_bias import ChannelBias


@register("ScaleBiasLayer")
class ScaleBiasLayer(KnownConstant, ChannelBias):
    """`(x - mean) * scalar + bias`: a constant scalar, the others by channel.

    What `BatchCentering` and `BatchLipNorm` are at inference, and what they
    export to.

    Args:
        scalar: Float, the factor, which is not trained.
        use_bias, axis, bias_initializer: As for `BatchCentering`.
        mean: List of floats, one for each channel, which are subtracted before
            all else and not trained; None for none.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, ..., channels)`, or with channels on `axis`.
        The output has the same.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import ScaleBiasLayer
    >>> layer = ScaleBiasLayer(2.0, bias_initializer="ones")
    >>> print(keras.ops.convert_to_numpy(layer(np.array([[1., 3.]]))))
    [[3. 7.]]
    """

    def __init__(
        self,
        scalar=1.0,
        use_bias=True,
        axis=-1,
        bias_initializer="zeros",
        mean=None,
        **kwargs,
    ):
        super().__init__(use_bias, bias_initializer, **kwargs)
        self.scalar = float(scalar)
        self.axis = axis
        self.mean = None if mean is None else [float(x) for x in mean]

    def build(self, input_shape):
        self._add_bias(input_shape, self.axis)
        channels = input_shape[self._channel_axis]
        if self.mean is not None and len(self.mean) != channels:
            raise ValueError(
                f"Argument `mean` must have a number for each of {channels} "
                f"channels. Received: mean={self.mean}"
            )

    def call(self, inputs):
        x = float32_at_least(inputs)
        if self.mean is not None:
            mean = ops.convert_to_tensor(self.mean, dtype=x.dtype)
            x = x - self._by_channel(mean, x)
        return self._biased(x * self.scalar)

    def _whole_constant(self):
        return abs(self.scalar)

    def get_config(self):
        return {
            **super().get_config(),
            "scalar": self.scalar,
            "axis": self.axis,
            "mean": None if self.mean is None else list(self.mean),
        }
