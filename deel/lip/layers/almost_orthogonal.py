"""Dense and convolutional layers whose channels are rescaled."""

import keras

from deel.lip._constrained import ConstrainedKernel
from deel.lip._register import register
from deel.lip._validation import int_tuple
from deel.lip._validation import positive_int
from deel.lip.initializers import SpectralInitializer
from deel.lip.layers._coverage import CoveredConvolution
from deel.lip.parametrizations import AlmostOrthogonal


@register("AOLDense")
class AOLDense(ConstrainedKernel, keras.layers.Dense):
    """A dense layer whose kernel is rescaled, row by row, to norm one at most.

    Each input is divided by the root of how much it overlaps with all inputs
    (each output, if there are fewer of them). One product and no iteration;
    training itself then brings the kernel near an orthogonal one, where it
    loses least.

    Args:
        units: Positive integer, dimension of the output.
        activation: Activation function, or an activation layer such as
            `GroupSort2()`.
        use_bias: Boolean, whether the layer has a bias.
        kernel_initializer: Initializer of the kernel; None means a new
            `SpectralInitializer()` for each layer.
        k_coef_lip: Float, the Lipschitz constant of the affine part.
        **kwargs: What else `keras.layers.Dense` takes, but for `lora_rank`.

    Input shape:
        Tensor `(batch_size, ..., input_dim)`.

    Output shape:
        Tensor `(batch_size, ..., units)`.

    Raises:
        ValueError: If an argument is out of its range, or `lora_rank` is given.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import AOLDense
    >>> layer = AOLDense(2, use_bias=False)
    >>> layer.build((None, 2))
    >>> _ = layer.kernel.assign([[3.0, 4.0], [8.0, -6.0]])
    >>> _ = layer(np.eye(2, dtype="float32"), training=True)
    >>> print(layer.wbar.numpy().round(4))
    [[ 0.6  0.8]
     [ 0.8 -0.6]]

    Reference:
        - [Prach and Lampert, 2022](https://arxiv.org/abs/2208.03160),
          "Almost-orthogonal layers for efficient general-purpose Lipschitz
          networks".
    """

    def __init__(
        self,
        units,
        activation=None,
        use_bias=True,
        kernel_initializer=None,
        k_coef_lip=1.0,
        **kwargs,
    ):
        super().__init__(
            positive_int("units", units),
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer or SpectralInitializer(),
            parametrization=AlmostOrthogonal(by_output=None),
            k_coef_lip=k_coef_lip,
            **kwargs,
        )


@register("AOLConv2D")
class AOLConv2D(CoveredConvolution, ConstrainedKernel, keras.layers.Conv2D):
    """A 2-D convolution whose channels are rescaled to norm one at most.

    Each input channel is divided by the root of how much it overlaps, at all
    distances of two pixels, with all channels. That bounds the operator itself,
    for images of any size, so nothing is lost to windows that overlap; what is
    lost is how far the kernel is from an orthogonal one.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair of integers, the window.
        strides: Integer or pair of integers.
        padding: Must be `"same"`, in any case.
        activation: Activation function, or an activation layer such as
            `GroupSort2()`.
        use_bias: Boolean, whether the layer has a bias.
        kernel_initializer: Initializer of the kernel; None means a new
            `SpectralInitializer()` for each layer.
        k_coef_lip: Float, the Lipschitz constant of the affine part.
        padding_mode: `"zeros"` or `"circular"`; the others copy values, which
            adds to the norm.
        **kwargs: What else `keras.layers.Conv2D` takes; `dilation_rate` and
            `groups` must be 1.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, ceil(height / strides[0]),
        ceil(width / strides[1]), filters)`, or channels first.

    Raises:
        ValueError: If `padding` or `dilation_rate` is not the one supported,
            or if another argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import AOLConv2D
    >>> layer = AOLConv2D(16, 3)
    >>> tuple(layer(np.ones((2, 8, 8, 3), "float32")).shape)
    (2, 8, 8, 16)
    >>> layer.coef_lip
    1.0

    Reference:
        - [Prach and Lampert, 2022](https://arxiv.org/abs/2208.03160),
          "Almost-orthogonal layers for efficient general-purpose Lipschitz
          networks".
    """

    _spatial_rank = 2
    _takes_groups_and_dilation = False
    _padding_modes = ("zeros", "circular")

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        padding="same",
        activation=None,
        use_bias=True,
        kernel_initializer=None,
        k_coef_lip=1.0,
        padding_mode="zeros",
        dilation_rate=1,
        **kwargs,
    ):
        strides = int_tuple(strides, 2)
        # A torus has no phases unless the stride divides its length.
        phases = strides if padding_mode == "zeros" else (1, 1)
        super().__init__(
            filters=positive_int("filters", filters),
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer or SpectralInitializer(),
            parametrization=AlmostOrthogonal(phases),
            k_coef_lip=k_coef_lip,
            padding_mode=padding_mode,
            **kwargs,
        )

    def _compute_lip_coef(self, input_shape=None):
        return 1.0

    def _fixed_axes(self, input_shape):
        return [False] * self._spatial_rank
