"""Convolutional layers with a constrained kernel."""

import keras

from deel.lip._frobenius import FrobeniusKernel
from deel.lip._register import register
from deel.lip._spectral import SpectralKernel
from deel.lip._validation import int_tuple
from deel.lip._validation import positive_int
from deel.lip.constraints import SpectralConstraint
from deel.lip.initializers import SpectralInitializer
from deel.lip.layers.conv_factor import coverage_coefficient
from deel.lip.layers.conv_factor import spatial_shape
from deel.lip.layers.conv_factor import window_overlap
from deel.lip.normalizers import DEFAULT_BETA_BJORCK
from deel.lip.normalizers import DEFAULT_EPS_BJORCK
from deel.lip.normalizers import DEFAULT_EPS_SPECTRAL
from deel.lip.normalizers import DEFAULT_MAXITER_BJORCK
from deel.lip.normalizers import DEFAULT_MAXITER_SPECTRAL


class CoveredConvolution:
    """Mixin of the convolutions that are bounded by their window overlap.

    See `deel.lip.layers.conv_factor` for the bound.
    """

    def __init__(self, *args, padding, dilation_rate, groups, **kwargs):
        if not isinstance(padding, str) or padding.lower() != "same":
            raise RuntimeError(
                f"{type(self).__name__} bounds convolutions with "
                f'`padding="same"` only. Received: padding={padding}'
            )
        if int_tuple(dilation_rate, 2) not in ((1, 1), [1, 1]):
            raise RuntimeError(
                f"{type(self).__name__} bounds convolutions with "
                "`dilation_rate=(1, 1)` only. "
                f"Received: dilation_rate={dilation_rate}"
            )
        if groups != 1:
            raise ValueError(
                f"{type(self).__name__} bounds convolutions with `groups=1` "
                f"only. Received: groups={groups}"
            )
        super().__init__(*args, padding=padding.lower(), **kwargs)

    def _compute_lip_coef(self, input_shape=None):
        lengths = (None,) * self.rank
        if input_shape is not None:
            lengths = spatial_shape(input_shape, self.data_format)
        return coverage_coefficient(self.kernel_size, self.strides, lengths)

    def build(self, input_shape):
        super().build(input_shape)
        # Where the coefficient counts on a short axis, a longer one would
        # break the bound: Keras is told to refuse it.
        first = 2 if self.data_format == "channels_first" else 1
        axes = dict(self.input_spec.axes)
        sizes = zip(self.kernel_size, self.strides, strict=True)
        for axis, size in enumerate(sizes, start=first):
            length = input_shape[axis]
            if window_overlap(*size, length) < window_overlap(*size):
                axes[axis] = length
        self.input_spec = keras.layers.InputSpec(
            min_ndim=self.rank + 2, axes=axes
        )


@register("SpectralConv2D")
class SpectralConv2D(CoveredConvolution, SpectralKernel, keras.layers.Conv2D):
    """A 2-D convolution that is `k_coef_lip`-Lipschitz.

    It takes the place of `keras.layers.Conv2D` and takes its arguments, in the
    same order. The kernel, reshaped to the matrix
    `(height * width * channels, filters)` that multiplies the patches, gets
    equal singular values, divided by the root of the number of windows that
    read one pixel. The bound holds for every kernel; it is reached when the
    layer has as many filters as a patch has values, and loose otherwise.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair of integers, the window.
        strides: Integer or pair of integers.
        padding: Must be `"same"`, in any case.
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        dilation_rate: Must be 1.
        groups: Must be 1.
        activation: Activation function, or an activation layer such as
            `GroupSort2()`.
        use_bias: Boolean, whether the layer has a bias.
        kernel_initializer: Initializer of the kernel; None means a new
            `SpectralInitializer()` for each layer.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the free kernel.
        bias_regularizer: Regularizer of the bias.
        activity_regularizer: Regularizer of the output.
        kernel_constraint: Constraint of the free kernel.
        bias_constraint: Constraint of the bias.
        k_coef_lip: Float, the Lipschitz constant of the affine part.
        eps_spectral: See `SpectralDense`.
        eps_bjorck: See `SpectralDense`.
        beta_bjorck: See `SpectralDense`.
        maxiter_spectral: See `SpectralDense`.
        maxiter_bjorck: See `SpectralDense`.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or
        `(batch_size, channels, height, width)` with `"channels_first"`.

    Output shape:
        Tensor `(batch_size, ceil(height / strides[0]),
        ceil(width / strides[1]), filters)`, or channels first.

    Raises:
        RuntimeError: If `padding` or `dilation_rate` is not the one supported.
        ValueError: If another argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import SpectralConv2D
    >>> layer = SpectralConv2D(16, 3)
    >>> tuple(layer(np.ones((2, 8, 8, 3), "float32")).shape)
    (2, 8, 8, 16)
    >>> round(layer.coef_lip, 6)
    0.333333

    Reference:
        - [Serrurier et al., 2021](https://arxiv.org/abs/2006.06520),
          "Achieving robustness in classification using optimal transport with
          hinge regularization". The coefficient used here is a bound for every
          kernel, which the mean coverage of that text is not.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=(1, 1),
        padding="same",
        data_format=None,
        dilation_rate=(1, 1),
        groups=1,
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
        super().__init__(
            positive_int("filters", filters),
            int_tuple(kernel_size, 2),
            strides=int_tuple(strides, 2),
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
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


@register("FrobeniusConv2D")
class FrobeniusConv2D(CoveredConvolution, FrobeniusKernel, keras.layers.Conv2D):
    """A 2-D convolution whose kernel is divided by its Frobenius norm.

    Meant for one filter, for which it is the same as `SpectralConv2D` and
    cheaper. With several, the bound holds but is loose.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair of integers, the window.
        strides: Must be 1.
        padding: Must be `"same"`, in any case.
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        dilation_rate: Must be 1.
        groups: Must be 1.
        activation: Activation function or layer.
        use_bias: Boolean, whether the layer has a bias.
        kernel_initializer: Initializer of the kernel; None means a new
            `SpectralInitializer()` for each layer.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the free kernel.
        bias_regularizer: Regularizer of the bias.
        activity_regularizer: Regularizer of the output.
        kernel_constraint: None or a `SpectralConstraint`.
        bias_constraint: Constraint of the bias.
        k_coef_lip: Float, the Lipschitz constant of the affine part.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, height, width, filters)`, or channels first.

    Raises:
        RuntimeError: If `padding`, `dilation_rate`, `strides` or
            `kernel_constraint` is not one of those supported.
        ValueError: If another argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import FrobeniusConv2D
    >>> layer = FrobeniusConv2D(1, 3)
    >>> tuple(layer(np.ones((2, 8, 8, 1), "float32")).shape)
    (2, 8, 8, 1)
    >>> layer.count_params()
    19
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=(1, 1),
        padding="same",
        data_format=None,
        dilation_rate=(1, 1),
        groups=1,
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
        **kwargs,
    ):
        if int_tuple(strides, 2) not in ((1, 1), [1, 1]):
            raise RuntimeError(
                "FrobeniusConv2D bounds convolutions with `strides=1` only. "
                f"Received: strides={strides}"
            )
        kernel_constraint = keras.constraints.get(kernel_constraint)
        if not isinstance(kernel_constraint, SpectralConstraint | None):
            raise RuntimeError(
                "FrobeniusConv2D takes no `kernel_constraint` but None or a "
                "`SpectralConstraint`. "
                f"Received: kernel_constraint={kernel_constraint}"
            )
        super().__init__(
            positive_int("filters", filters),
            int_tuple(kernel_size, 2),
            strides=int_tuple(strides, 2),
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
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
            **kwargs,
        )
