"""What constrained layers are exported to; no Lipschitz constant."""

import keras
from keras import ops

from deel.lip._backend.tensors import scaled
from deel.lip._backend.variables import host
from deel.lip._lipschitz import Condensable
from deel.lip._numerics.padding import MODES
from deel.lip._numerics.padding import pad
from deel.lip._numerics.windows import Axis
from deel.lip._numerics.windows import first_spatial_axis
from deel.lip._register import register
from deel.lip._stock_only.conversion import stock_class_of
from deel.lip._validation import int_tuple
from deel.lip._validation import positive_int
from deel.lip._validation import require_built
from deel.lip._validation import require_one_of
from deel.lip.layers._both_ways import ConvBothWays
from deel.lip.layers._both_ways import DenseBothWays
from deel.lip.layers._pairs import ConvPair2D
from deel.lip.layers._pairs import DensePair

__all__ = [
    "ConvPair2D",
    "DensePair",
    "PadConv1D",
    "PadConv2D",
    "PadConv3D",
    "ResidualConv2D",
    "ResidualDense",
]


def __dir__():
    return __all__


# What each name of a padding means: one of `padding.MODES`, or None where the
# stock convolution pads by itself.
PADDINGS = {"same": None, "valid": None, "constant": "zeros"}
PADDINGS |= {mode: mode for mode in MODES if mode != "zeros"}


class ExplicitPadding:
    """Mixin of the convolutions that pad their input before they run.

    The stock layer below is one with `padding="valid"`.

    Attributes:
        padding_size: Tuple, what is added on both sides of each spatial axis;
            zeros where the stock layer pads by itself.
    """

    def _set_explicit_padding(self, mode):
        """Chooses one of the modes of `deel.lip._numerics.padding`, or None."""
        self._pad_mode = mode
        windows = zip(self.kernel_size, self.dilation_rate, strict=True)
        axes = [Axis(None, k, 1, d, mode or "valid") for k, d in windows]
        self.padding_size = [axis.widths()[0] for axis in axes]

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
        require_one_of("padding", name, PADDINGS)
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

    def _stock_call(self, inputs, convert):
        return convert.built(self, self._padded(inputs))

    def condense(self):
        """Does nothing: the kernel is not constrained."""

    def vanilla_export(self):
        """Returns a copy, of the stock class if that one can pad so."""
        require_built(self, "vanilla_export")
        stock = stock_class_of(self)
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


class _Residual:
    """Mixin: `k x - 2/k A^T(activation(A(x) + b))`, A the stock layer."""

    def call(self, inputs):
        kernel = ops.convert_to_tensor(self.kernel)
        step = self._adjoint(super().call(inputs), kernel)
        return self.k_coef_lip * inputs - (2.0 / self.k_coef_lip) * step

    def _stock_call(self, inputs, convert):
        def make():
            kernel = self._adjoint_kernel(host(self.kernel))
            kernel = (2.0 / self.k_coef_lip) * kernel
            return self._stock_layer("_adjoint", kernel)

        step = convert.once(self, make)(convert.built(self, inputs))
        return scaled(inputs, self.k_coef_lip) - step

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)


@register("ResidualDense")
class ResidualDense(_Residual, DenseBothWays, keras.layers.Dense):
    """`k x - 2/k act(x W + b) W^T`; the kernel is not constrained.

    What `SLLDense` is exported to. It is k-Lipschitz if W has norm k or less;
    see there, also for the shapes.

    Args:
        units: Positive integer, the number of hidden units.
        activation: Activation function with slopes from 0 to 1.
        **kwargs: `k_coef_lip`, the factor k, and what else
            `keras.layers.Dense` takes.

    Raises:
        ValueError: If the activation or `k_coef_lip` is out of its range.
    """

    def __init__(self, units, activation="relu", **kwargs):
        super().__init__(units, activation=activation, **kwargs)


@register("ResidualConv2D")
class ResidualConv2D(_Residual, ConvBothWays, keras.layers.Conv2D):
    """`k x - 2/k conv^T(act(conv(x) + b))`; the kernel is not constrained.

    What `SLLConv2D` is exported to. It is k-Lipschitz if the convolution has
    norm k or less; see there, also for the shapes.

    Args:
        filters: Positive integer, the number of hidden channels.
        kernel_size: Odd integer or pair of odd integers, the window.
        activation: Activation function with slopes from 0 to 1.
        **kwargs: `k_coef_lip`, the factor k, and what else
            `keras.layers.Conv2D` takes, but for what changes the image size.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, filters, kernel_size, activation="relu", **kwargs):
        super().__init__(filters, kernel_size, activation=activation, **kwargs)
