"""Depthwise convolution with a constrained kernel."""

import keras

from deel.lip._constrained import ConstrainedKernel
from deel.lip._register import register
from deel.lip._validation import positive_int
from deel.lip.layers._coverage import CoveredConvolution
from deel.lip.parametrizations import Frobenius


@register("SpectralDepthwiseConv2D")
class SpectralDepthwiseConv2D(
    CoveredConvolution, ConstrainedKernel, keras.layers.DepthwiseConv2D
):
    """A depthwise 2-D convolution that is `k_coef_lip`-Lipschitz.

    Each channel has a kernel of its own, which is divided by its norm and by
    the root of the number of windows that read one pixel. The channels do not
    meet, so the layer expands as much as the channel that expands most.

    The kernels are not made orthogonal. The convolution of one channel with
    one kernel multiplies each frequency by the transfer function of the
    kernel: it keeps the norm of every image only if that function has modulus
    one everywhere, which leaves nothing but shifts. A bound is all that a
    depthwise layer can have, and it is loose: follow it by a 1x1
    `SpectralConv2D` to mix channels, and expect some loss of norm.

    Args:
        kernel_size: Integer or pair of integers, the window.
        strides: Integer or pair of equal integers.
        padding: Must be `"same"`, in any case.
        depth_multiplier: Positive integer, the outputs of each channel.
        dilation_rate: Integer or pair of integers.
        depthwise_initializer: Initializer of the kernel.
        depthwise_regularizer: Regularizer of the free kernel.
        depthwise_constraint: Constraint of the free kernel.
        **kwargs: `data_format`, `activation`, `use_bias`, those of the bias and
            `k_coef_lip`, as of `SpectralConv2D`.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, ceil(height / strides[0]),
        ceil(width / strides[1]), channels * depth_multiplier)`, or channels
        first.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import SpectralDepthwiseConv2D
    >>> layer = SpectralDepthwiseConv2D(3)
    >>> tuple(layer(np.ones((2, 8, 8, 4), "float32")).shape)
    (2, 8, 8, 4)
    """

    _spatial_rank = 2
    _padding_modes = ("zeros",)

    def __init__(
        self,
        kernel_size,
        strides=(1, 1),
        padding="same",
        depth_multiplier=1,
        data_format=None,
        dilation_rate=(1, 1),
        activation=None,
        use_bias=True,
        depthwise_initializer="glorot_uniform",
        bias_initializer="zeros",
        depthwise_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        depthwise_constraint=None,
        bias_constraint=None,
        k_coef_lip=1.0,
        **kwargs,
    ):
        super().__init__(
            parametrization=Frobenius(axis=-2),
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            depth_multiplier=positive_int("depth_multiplier", depth_multiplier),
            data_format=data_format,
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=use_bias,
            depthwise_initializer=depthwise_initializer,
            bias_initializer=bias_initializer,
            depthwise_regularizer=depthwise_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            depthwise_constraint=depthwise_constraint,
            bias_constraint=bias_constraint,
            k_coef_lip=k_coef_lip,
            **kwargs,
        )

    @property
    def kernel_constraint(self):
        """What Keras calls `depthwise_constraint` here."""
        return self.depthwise_constraint
