"""Subtracting the mean of each sample."""

import keras
from keras import ops

from deel.lip._backend.variables import float32_at_least
from deel.lip._lipschitz import LipschitzLayer
from deel.lip._numerics.windows import channel_axis
from deel.lip._numerics.windows import check_data_format
from deel.lip._register import register
from deel.lip.layers._channel_bias import ChannelBias


@register("LayerCentering")
class LayerCentering(LipschitzLayer, ChannelBias):
    """Subtracts from each channel its mean over space, for each sample.

    The output is `k_coef_lip * (x - mean(x)) + bias`. Centering is an
    orthogonal projection, hence 1-Lipschitz, in training as in inference: the
    part of layer normalisation that a Lipschitz network can afford.

    Args:
        axis: Integer or list of integers, the axes of the mean; None means all
            but the batch and the channels. Pass -1 for inputs without space.
        use_bias: Boolean, whether a trained bias for each channel is added.
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        k_coef_lip: Float, the Lipschitz constant.
        bias_initializer: Initializer of the bias.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, ..., channels)`, or channels first.
        The output has the same.

    Raises:
        ValueError: If the mean would be over the batch, or over no axis.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import LayerCentering
    >>> x = np.array([[[1., 10.], [3., 20.]]])
    >>> print(keras.ops.convert_to_numpy(LayerCentering()(x)))
    [[[-1. -5.]
      [ 1.  5.]]]
    """

    def __init__(
        self,
        axis=None,
        use_bias=True,
        data_format=None,
        k_coef_lip=1.0,
        bias_initializer="zeros",
        **kwargs,
    ):
        super().__init__(use_bias, bias_initializer, **kwargs)
        self.axis = list(axis) if isinstance(axis, tuple) else axis
        self.data_format = keras.config.image_data_format()
        if data_format is not None:
            self.data_format = data_format
        check_data_format(self.data_format, ValueError)
        self.set_klip_factor(k_coef_lip)
        self._init_lip_coef(None)

    def _compute_lip_coef(self, input_shape=None):
        return 1.0

    def build(self, input_shape):
        self._add_bias(input_shape, channel_axis(self.data_format))
        self._axes = self._mean_axes(len(input_shape))

    def _mean_axes(self, rank):
        if self.axis is None:
            axes = [i for i in range(1, rank) if i != self._channel_axis]
        else:
            listed = [self.axis] if isinstance(self.axis, int) else self.axis
            axes = [i + rank if i < 0 else i for i in listed]
        if not axes or not all(0 < i < rank for i in axes):
            raise ValueError(
                "LayerCentering needs the mean over one axis or more, none of "
                "them the batch axis. "
                f"Received: axis={self.axis} for an input of rank {rank}"
            )
        return axes

    def call(self, inputs):
        x = float32_at_least(inputs)
        x = x - ops.mean(x, axis=self._axes, keepdims=True)
        return self._biased(x * self.k_coef_lip)

    def get_config(self):
        return {
            **super().get_config(),
            "axis": self.axis,
            "data_format": self.data_format,
            "k_coef_lip": self.k_coef_lip,
        }
