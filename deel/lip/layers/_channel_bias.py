"""A bias for each channel, where layers are shifted or centered."""

import keras
from keras import ops

from deel.lip._backend.tensors import cast
from deel.lip._backend.tensors import is_symbolic
from deel.lip._backend.variables import float32_at_least
from deel.lip._backend.variables import host


class ChannelBias(keras.layers.Layer):
    """Base of the layers here: a bias for each channel, and float32 inside.

    A subclass calls `_add_bias` when it is built, which records the channel
    axis, and returns `_biased` of what it computed.
    """

    def __init__(self, use_bias, bias_initializer, **kwargs):
        super().__init__(**kwargs)
        self.use_bias = use_bias
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.bias = None

    def _add_bias(self, input_shape, axis):
        rank = len(input_shape)
        channel_axis = axis + rank if axis < 0 else axis
        if not 0 < channel_axis < rank:
            raise ValueError(
                "The channels must be an axis of the input, and not that of "
                f"the batch. Received: axis={axis} for an input of rank {rank}"
            )
        self._channel_axis = channel_axis
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(input_shape[channel_axis],),
                initializer=self.bias_initializer,
                autocast=False,
            )

    def _by_channel(self, values, x):
        """Reshapes one value for each channel, to broadcast over `x`."""
        shape = [1] * len(x.shape)
        shape[self._channel_axis] = -1
        if is_symbolic(x):
            return host(values).reshape(shape)
        return ops.reshape(ops.convert_to_tensor(values), shape)

    def _biased(self, x):
        if self.bias is not None:
            x = x + self._by_channel(float32_at_least(self.bias), x)
        return cast(x, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "use_bias": self.use_bias,
            "bias_initializer": keras.initializers.serialize(
                self.bias_initializer
            ),
        }
