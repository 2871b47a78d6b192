"""Constrained convolutions that may continue the image with its own values."""

from deel.lip.layers.unconstrained import ExplicitPadding
from deel.lip.layers.unconstrained import PadConv1D
from deel.lip.layers.unconstrained import PadConv2D
from deel.lip.layers.unconstrained import PadConv3D

_PADDING_LAYERS = {1: PadConv1D, 2: PadConv2D, 3: PadConv3D}


class PaddedConvolution(ExplicitPadding):
    """Mixin, before a `ConstrainedKernel` class: padding, also of the export.

    A subclass sets `_spatial_rank`.
    """

    def _set_explicit_padding(self, mode):
        if mode is not None and any(n % 2 == 0 for n in self.kernel_size):
            raise ValueError(
                "Padding with values of the image keeps its size for odd "
                "windows only. Expected odd numbers, or padding with zeros. "
                f"Received: kernel_size={self.kernel_size}, padding={mode}"
            )
        super()._set_explicit_padding(mode)

    def call(self, inputs, training=True):
        return super().call(self._padded(inputs), training=training)

    def _linear_output_shape(self, input_shape):
        return super()._linear_output_shape(self._padded_shape(input_shape))

    def _stock_equivalent(self):
        stock_class, config = super()._stock_equivalent()
        if self._pad_mode is not None:
            stock_class = _PADDING_LAYERS[self._spatial_rank]
            config["padding"] = self._pad_mode
        return stock_class, config
