"""Spectral kernels, divided by the norm of their convolution."""

import math

import keras

from deel.lip._numerics.convolution_norm import ConvolutionNorm
from deel.lip._numerics.norm_bounds import as_matrix
from deel.lip._numerics.polar import mean_scale
from deel.lip._numerics.windows import Axis
from deel.lip._numerics.windows import spatial_shape
from deel.lip._validation import int_tuple
from deel.lip.parametrizations.polar import Polar

# What the retracted matrix is, as multiples of the constrained one.
_USUAL_FACTORS = (1e-12, 1e12)


class SpectralOperator(Polar):
    """Orthogonal kernels, divided by the norm of their convolution. Final.

    Where `Spectral` leaves it to the coefficient to make up for windows that
    overlap, the norm of the operator is bounded anew for each kernel. The
    multiple of the orthogonal matrix then differs from kernel to kernel; it is
    read off the kernel itself.

    Args:
        strides: Integer or tuple of integers.
        dilation_rate: Integer or tuple of integers.
        padding_mode: `"zeros"` or `"circular"`.
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        **kwargs: Further arguments of `Spectral`.

    Attributes:
        operator: The `ConvolutionNorm`; None before it is built.
    """

    operator = None

    def __init__(
        self,
        strides=1,
        dilation_rate=1,
        padding_mode="zeros",
        data_format=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.strides = strides
        self.dilation_rate = dilation_rate
        self.padding_mode = padding_mode
        self.data_format = data_format or keras.config.image_data_format()

    def add_state(self, input_shape):
        super().add_state(input_shape)
        sizes = self.kernel_shape[:-2]
        strides = int_tuple(self.strides, len(sizes))
        dilations = int_tuple(self.dilation_rate, len(sizes))
        lengths = spatial_shape(input_shape, self.data_format)
        padding = "same" if self.padding_mode == "zeros" else self.padding_mode
        axes = zip(lengths, sizes, strides, dilations, strict=True)
        self.operator = ConvolutionNorm(
            self.kernel_shape,
            strides,
            self.groups,
            math.prod(Axis(*axis, padding).coverage() for axis in axes),
            lengths,
            self.padding_mode == "circular",
        )

    def expansion(self, array):
        return self.operator.expansion(array)

    def bounded_kernel(self, kernel):
        return kernel / self.operator.bound(kernel)

    def multiple_of(self, matrix):
        return mean_scale(matrix)

    def with_norm_gradient(self, kernel):
        scale = self.multiple_of(as_matrix(kernel))
        return kernel * self.operator.gradient_path(kernel, scale)
