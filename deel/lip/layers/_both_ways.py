"""Stock layers whose kernel is applied there and back: A, then its adjoint."""

import keras
import numpy as np
from keras import ops

from deel.lip._backend.tensors import mirrored_kernel
from deel.lip._numerics.activations import require_monotone
from deel.lip._stock_only.kernels import with_weights
from deel.lip._validation import int_tuple
from deel.lip._validation import positive_float
from deel.lip._validation import positive_int


class _BothWays:
    """Mixin of what is divided by k once, whose kernel has norm k."""

    _channel_axis = -1

    def __init__(self, *args, k_coef_lip=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        require_monotone(self.activation)
        self.k_coef_lip = positive_float("k_coef_lip", k_coef_lip)

    def _per_channel(self, values):
        """A vector as it multiplies what a linear layer returns."""
        return values

    def get_config(self):
        return {**super().get_config(), "k_coef_lip": self.k_coef_lip}


class DenseBothWays(_BothWays):
    """Mixin of dense layers: the adjoint is the transpose."""

    def __init__(self, units, **kwargs):
        super().__init__(positive_int("units", units), **kwargs)

    @property
    def _width(self):
        """The number of hidden channels."""
        return self.units

    def _linear(self, inputs, kernel):
        return ops.matmul(inputs, kernel)

    def _adjoint(self, hidden, kernel):
        # The axes are named, for the ONNX exporter of PyTorch knows no `.T`.
        return ops.matmul(hidden, ops.transpose(kernel, (1, 0)))

    def _adjoint_kernel(self, kernel):
        """The array of the adjoint, as the kernel of a stock layer."""
        return kernel.T

    def _stock_layer(self, suffix, kernel, *bias, activation=None):
        """The stock layer of a kernel, with its weights: a form."""
        layer = keras.layers.Dense(
            kernel.shape[-1],
            activation=activation,
            use_bias=bool(bias),
            name=f"{self.name}{suffix}",
            dtype=self.dtype_policy,
        )
        return with_weights(layer, [kernel, *bias])


class ConvBothWays(_BothWays):
    """Mixin of convolutions that keep the size of the image.

    Odd windows and no stride: the adjoint is a convolution as well. See
    `DenseBothWays`.
    """

    def __init__(self, filters, kernel_size, **kwargs):
        kwargs = {"padding": "same", **kwargs}
        super().__init__(
            positive_int("filters", filters),
            int_tuple(kernel_size, 2),
            **kwargs,
        )
        keeps_size = (
            self.padding == "same"
            and set(self.strides) == {1}
            and set(self.dilation_rate) == {1}
            and self.groups == 1
            and all(size % 2 for size in self.kernel_size)
        )
        if not keeps_size:
            raise ValueError(
                "An adjoint needs a convolution that keeps the image. Expected "
                'an odd `kernel_size`, `padding="same"`, and strides, dilation '
                f"and groups of 1. Received: kernel_size={self.kernel_size}, "
                f"padding={self.padding}, strides={self.strides}, "
                f"dilation_rate={self.dilation_rate}, groups={self.groups}"
            )

    @property
    def _width(self):
        return self.filters

    @property
    def _channel_axis(self):
        return -1 if self.data_format == "channels_last" else 1

    def _linear(self, inputs, kernel):
        return ops.conv(
            inputs, kernel, padding="same", data_format=self.data_format
        )

    def _adjoint(self, hidden, kernel):
        return self._linear(hidden, mirrored_kernel(kernel))

    def _adjoint_kernel(self, kernel):
        return np.swapaxes(np.flip(kernel, (0, 1)), -1, -2)

    def _per_channel(self, values):
        is_last = self._channel_axis == -1
        return values if is_last else ops.reshape(values, (-1, 1, 1))

    def _stock_layer(self, suffix, kernel, *bias, activation=None):
        layer = keras.layers.Conv2D(
            kernel.shape[-1],
            self.kernel_size,
            padding="same",
            data_format=self.data_format,
            activation=activation,
            use_bias=bool(bias),
            name=f"{self.name}{suffix}",
            dtype=self.dtype_policy,
        )
        return with_weights(layer, [kernel, *bias])
