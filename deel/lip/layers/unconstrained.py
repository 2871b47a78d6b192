"""Convolutions that pad with values of the image; no Lipschitz constant."""

import keras

from deel.lip._lipschitz import Condensable
from deel.lip._padding import pad
from deel.lip._register import register
from deel.lip._validation import int_tuple
from deel.lip._validation import positive_int
from deel.lip._validation import require_built
from deel.lip.layers.conv_factor import first_spatial_axis
from deel.lip.layers.conv_factor import same_padding

__all__ = ["PadConv1D", "PadConv2D", "PadConv3D"]


def __dir__():
    return __all__


# What each name of a padding means: a mode of `deel.lip._padding`, or None
# where the stock convolution pads by itself.
PADDINGS = {
    "same": None,
    "valid": None,
    "constant": "zeros",
    "reflect": "reflect",
    "replicate": "replicate",
    "symmetric": "symmetric",
    "circular": "circular",
}


class ExplicitPadding:
    """Mixin of the convolutions that pad their input before they run.

    The stock layer below is one with `padding="valid"`.

    Attributes:
        padding_size: Tuple, what is added on both sides of each spatial axis;
            zeros where the stock layer pads by itself.
    """

    def _set_explicit_padding(self, mode):
        """Chooses one of the modes of `deel.lip._padding`, or None."""
        self._pad_mode = mode
        self.padding_size = [0] * len(self.kernel_size)
        if mode is not None:
            axes = zip(self.kernel_size, self.dilation_rate, strict=True)
            self.padding_size = [same_padding(*axis) for axis in axes]

    def _padded(self, inputs):
        if self._pad_mode is None:
            return inputs
        first = first_spatial_axis(self.data_format)
        return pad(inputs, self.padding_size, self._pad_mode, first)

    def _padded_shape(self, input_shape):
        shape = list(input_shape)
        first = first_spatial_axis(self.data_format)
        for axis, size in enumerate(self.padding_size, start=first):
            if shape[axis] is not None:
                shape[axis] += 2 * size
        return tuple(shape)


class _PadConvolution(ExplicitPadding, Condensable):
    """Base of the `PadConv*` layers."""

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        padding="same",
        data_format=None,
        dilation_rate=1,
        activation=None,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        **kwargs,
    ):
        name = padding.lower() if isinstance(padding, str) else padding
        if name not in PADDINGS:
            raise ValueError(
                f"Argument `padding` must be one of {tuple(PADDINGS)}. "
                f"Received: padding={padding}"
            )
        mode = PADDINGS[name]
        super().__init__(
            filters=positive_int("filters", filters),
            kernel_size=int_tuple(kernel_size, self._spatial_rank),
            strides=int_tuple(strides, self._spatial_rank),
            padding=name if mode is None else "valid",
            data_format=data_format,
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            **kwargs,
        )
        self.old_padding = name
        self._set_explicit_padding(mode)

    def call(self, inputs):
        return super().call(self._padded(inputs))

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(self._padded_shape(input_shape))

    def condense(self):
        """Does nothing: the kernel is not constrained."""

    def vanilla_export(self):
        """Returns a copy, of the stock class if that one can pad so."""
        require_built(self, "vanilla_export")
        stock = next(
            base
            for base in type(self).__mro__
            if not issubclass(base, ExplicitPadding)
            and issubclass(base, keras.layers.Layer)
        )
        exported_class = stock if self._pad_mode is None else type(self)
        exported = exported_class.from_config(self.get_config())
        exported.build(self._build_shapes_dict["input_shape"])
        exported.set_weights(self.get_weights())
        return exported

    def get_config(self):
        return {**super().get_config(), "padding": self.old_padding}


@register("PadConv1D")
class PadConv1D(_PadConvolution, keras.layers.Conv1D):
    """A `keras.layers.Conv1D` with more kinds of padding; not Lipschitz.

    See `PadConv2D`.
    """

    _spatial_rank = 1


@register("PadConv2D")
class PadConv2D(_PadConvolution, keras.layers.Conv2D):
    """A `keras.layers.Conv2D` with more kinds of padding; not Lipschitz.

    The kernel is not constrained: it is what `SpectralConv2D` with a
    `padding_mode` is exported to, and a baseline to compare with.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair of integers, the window.
        strides: Integer or pair of integers.
        padding: `"same"` or `"valid"` as in Keras; or, in any case,
            `"constant"` (zeros), `"reflect"`, `"replicate"`, `"symmetric"` or
            `"circular"`, which add `kernel_size // 2` values on both sides.
        **kwargs: What else `keras.layers.Conv2D` takes.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, new_height, new_width, filters)`, or channels
        first. With an odd kernel and stride 1, padding keeps the size.

    Raises:
        ValueError: If `padding` is none of those above.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers.unconstrained import PadConv2D
    >>> layer = PadConv2D(4, 3, padding="circular")
    >>> tuple(layer(np.ones((2, 5, 5, 1), "float32")).shape)
    (2, 5, 5, 4)
    """

    _spatial_rank = 2


@register("PadConv3D")
class PadConv3D(_PadConvolution, keras.layers.Conv3D):
    """A `keras.layers.Conv3D` with more kinds of padding; not Lipschitz.

    See `PadConv2D`.
    """

    _spatial_rank = 3
