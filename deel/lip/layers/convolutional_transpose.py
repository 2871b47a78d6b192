"""Transposed convolution with a constrained kernel."""

import keras

from deel.lip._defaults import DEFAULT_BETA_BJORCK
from deel.lip._defaults import DEFAULT_EPS_BJORCK
from deel.lip._defaults import DEFAULT_EPS_SPECTRAL
from deel.lip._defaults import DEFAULT_MAXITER_BJORCK
from deel.lip._defaults import DEFAULT_MAXITER_SPECTRAL
from deel.lip._register import register
from deel.lip._validation import int_tuple
from deel.lip._validation import positive_int
from deel.lip.initializers import SpectralInitializer
from deel.lip.layers._coverage import WindowCoverage
from deel.lip.layers._spectral_arguments import SpectralKernel


def require_plain(layer, dilation_rate, output_padding):
    """Raises ValueError for a transposed 2-D convolution that is not plain."""
    name = type(layer).__name__
    if tuple(int_tuple(dilation_rate, 2)) != (1, 1):
        raise ValueError(
            f"{name} has no dilation. Received: dilation_rate={dilation_rate}"
        )
    if output_padding is not None:
        raise ValueError(
            f"{name} computes the size of its output by itself. Expected "
            f"`output_padding=None`. Received: output_padding={output_padding}"
        )


@register("SpectralConv2DTranspose")
class SpectralConv2DTranspose(
    WindowCoverage, SpectralKernel, keras.layers.Conv2DTranspose
):
    """A transposed 2-D convolution that is `k_coef_lip`-Lipschitz.

    It takes the place of `keras.layers.Conv2DTranspose`, to enlarge images.
    The layer is the adjoint of a strided convolution from its output to its
    input, and has the norm of that one: so the kernel, of shape
    `(height, width, filters, channels)`, is normalised as the matrix
    `(height * width * filters, channels)`, and the coefficient is that of the
    output grid. With a window equal to the stride and at least
    `channels / filters` values in it, the layer is an isometry.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair of integers, the window.
        strides: Integer or pair of integers, the enlargement.
        padding: Must be `"same"`, in any case.
        **kwargs: The other arguments of `SpectralConv2D`, but for `groups`,
            `bound` and `padding_mode`; `output_padding` must be None.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, height * strides[0], width * strides[1],
        filters)`, or channels first.

    Raises:
        ValueError: If an argument is out of its range or not supported.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import SpectralConv2DTranspose
    >>> layer = SpectralConv2DTranspose(4, 2, strides=2)
    >>> tuple(layer(np.ones((2, 3, 5, 1), "float32")).shape)
    (2, 6, 10, 4)
    """

    _spatial_rank = 2

    def __init__(
        self,
        filters,
        kernel_size,
        strides=(1, 1),
        padding="same",
        data_format=None,
        dilation_rate=(1, 1),
        activation=None,
        use_bias=True,
        kernel_initializer=None,
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        k_coef_lip=1.0,
        eps_spectral=DEFAULT_EPS_SPECTRAL,
        eps_bjorck=DEFAULT_EPS_BJORCK,
        beta_bjorck=DEFAULT_BETA_BJORCK,
        maxiter_spectral=DEFAULT_MAXITER_SPECTRAL,
        maxiter_bjorck=DEFAULT_MAXITER_BJORCK,
        **kwargs,
    ):
        if not isinstance(padding, str) or padding.lower() != "same":
            raise ValueError(
                "SpectralConv2DTranspose bounds transposed convolutions with "
                f'`padding="same"` only. Received: padding={padding}'
            )
        output_padding = kwargs.pop("output_padding", None)
        require_plain(self, dilation_rate, output_padding)
        super().__init__(
            filters=positive_int("filters", filters),
            kernel_size=int_tuple(kernel_size, 2),
            strides=int_tuple(strides, 2),
            padding="same",
            data_format=data_format,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer or SpectralInitializer(),
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            k_coef_lip=k_coef_lip,
            eps_spectral=eps_spectral,
            eps_bjorck=eps_bjorck,
            beta_bjorck=beta_bjorck,
            maxiter_spectral=maxiter_spectral,
            maxiter_bjorck=maxiter_bjorck,
            **kwargs,
        )

    def _covered_lengths(self, input_shape):
        lengths = super()._covered_lengths(input_shape)
        return tuple(
            None if length is None else length * stride
            for length, stride in zip(lengths, self.strides, strict=True)
        )
