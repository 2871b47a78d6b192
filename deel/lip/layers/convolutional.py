"""Convolutional layers with a constrained kernel."""

import functools

import keras

from deel.lip._constrained import ConstrainedKernel
from deel.lip._defaults import DEFAULT_BETA_BJORCK
from deel.lip._defaults import DEFAULT_EPS_BJORCK
from deel.lip._defaults import DEFAULT_EPS_SPECTRAL
from deel.lip._defaults import DEFAULT_MAXITER_BJORCK
from deel.lip._defaults import DEFAULT_MAXITER_SPECTRAL
from deel.lip._register import register
from deel.lip._validation import ArgumentError
from deel.lip._validation import int_tuple
from deel.lip._validation import positive_int
from deel.lip.constraints import SpectralConstraint
from deel.lip.initializers import SpectralInitializer
from deel.lip.layers._coverage import CoveredConvolution
from deel.lip.layers._spectral_arguments import SpectralKernel
from deel.lip.parametrizations import Frobenius
from deel.lip.parametrizations import Spectral
from deel.lip.parametrizations import SpectralOperator

# What a layer divides by, and how its padding has to be for the second.
_BOUNDS = ("coverage", "operator")
_OPERATOR_MODES = ("zeros", "circular")


class _SpectralConvolution(CoveredConvolution, SpectralKernel):
    """Base of the `SpectralConv*` layers: their arguments, their bounds."""

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        padding="same",
        data_format=None,
        dilation_rate=1,
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
        bound="coverage",
        padding_mode="zeros",
        **kwargs,
    ):
        if bound not in _BOUNDS:
            raise ValueError(
                f"Argument `bound` must be one of {_BOUNDS}. "
                f"Received: bound={bound}"
            )
        parametrization = Spectral
        if bound == "operator":
            parametrization = functools.partial(
                SpectralOperator,
                strides=strides,
                dilation_rate=dilation_rate,
                padding_mode=padding_mode,
                data_format=data_format,
            )
        super().__init__(
            filters=positive_int("filters", filters),
            kernel_size=kernel_size,
            strides=strides,
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
            padding_mode=padding_mode,
            parametrization=parametrization,
            **kwargs,
        )
        self.bound = bound
        if bound == "operator" and padding_mode not in _OPERATOR_MODES:
            raise ValueError(
                "The norm of the operator is bounded where the image is padded "
                f"in one of the modes {_OPERATOR_MODES}. Expected one of them, "
                'or `bound="coverage"`. '
                f"Received: padding_mode={padding_mode}"
            )

    def _compute_lip_coef(self, input_shape=None):
        if self.bound == "operator":
            # Divided by with each kernel, and not once and for all.
            return 1.0
        return super()._compute_lip_coef(input_shape)

    def _fixed_axes(self, input_shape):
        fixed = super()._fixed_axes(input_shape)
        if self.bound == "operator":
            of_operator = self.parametrization.operator.fixed_axes
            fixed = [a or b for a, b in zip(fixed, of_operator, strict=True)]
        return fixed

    def get_config(self):
        return {**super().get_config(), "bound": self.bound}


@register("SpectralConv2D")
class SpectralConv2D(_SpectralConvolution, keras.layers.Conv2D):
    """A 2-D convolution that is `k_coef_lip`-Lipschitz.

    It takes the place of `keras.layers.Conv2D` and takes its arguments, in the
    same order. The kernel, reshaped to the matrix
    `(height * width * channels, filters)` that multiplies the patches, gets
    equal singular values, divided by the root of the number of windows that
    read one pixel. The bound holds for every kernel; it is reached when the
    layer has as many filters as a patch has values, and loose otherwise:
    `bound="operator"` then keeps more of the amplitude.

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
        bound: `"coverage"`: the kernel is divided by the root of the number of
            windows that read one pixel. `"operator"`: by an upper bound of the
            norm of the convolution itself, found anew for each kernel from a
            few of its frequencies, 2 % to 8 % too large for each axis. For
            `padding_mode` `"zeros"` and `"circular"`.
        **kwargs: `padding_mode`, `name`, `dtype` and what else Keras layers
            take. `padding_mode` says what the image is continued with:
            `"zeros"`, `"reflect"`, `"replicate"`, `"symmetric"` or
            `"circular"`. All but zeros need an odd window; their copies are
            counted in the coefficient.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or
        `(batch_size, channels, height, width)` with `"channels_first"`.

    Output shape:
        Tensor `(batch_size, ceil(height / strides[0]),
        ceil(width / strides[1]), filters)`, or channels first.

    Raises:
        ValueError: If `padding` or `dilation_rate` is not the one supported,
            or if another argument is out of its range.

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

    _spatial_rank = 2
    _takes_groups_and_dilation = False


@register("SpectralGroupedConv2D")
class SpectralGroupedConv2D(_SpectralConvolution, keras.layers.Conv2D):
    """A `SpectralConv2D` with groups and dilation.

    Each group of channels has a matrix of its own, which is normalised by
    itself: the layer as a whole expands as much as the group that expands
    most.

    Args:
        filters: Positive integer, a multiple of `groups`.
        kernel_size: Integer or pair of integers, the window.
        strides: Integer or pair of integers; 1 with a dilation.
        padding: Must be `"same"`, in any case.
        data_format: See `SpectralConv2D`.
        dilation_rate: Integer or pair of integers, the distance of the values
            that a window reads.
        groups: Positive integer, the number of groups that the channels are
            split in.
        **kwargs: The other arguments of `SpectralConv2D`.

    Input shape:
        As for `SpectralConv2D`; channels are a multiple of `groups`.

    Output shape:
        As for `SpectralConv2D`.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import SpectralGroupedConv2D
    >>> layer = SpectralGroupedConv2D(8, 3, dilation_rate=2, groups=4)
    >>> tuple(layer(np.ones((2, 8, 8, 4), "float32")).shape)
    (2, 8, 8, 8)
    """

    _spatial_rank = 2


@register("SpectralConv1D")
class SpectralConv1D(_SpectralConvolution, keras.layers.Conv1D):
    """A 1-D convolution that is `k_coef_lip`-Lipschitz.

    For time series and other sequences. Like `SpectralConv2D`, also with
    groups and dilation (see `SpectralGroupedConv2D`).

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer, the window.
        strides: Integer.
        padding: Must be `"same"`, in any case.
        **kwargs: The other arguments of `SpectralConv2D`.

    Input shape:
        Tensor `(batch_size, steps, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, ceil(steps / strides), filters)`, or channels
        first.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import SpectralConv1D
    >>> layer = SpectralConv1D(6, 3, padding_mode="circular")
    >>> tuple(layer(np.ones((2, 10, 4), "float32")).shape)
    (2, 10, 6)
    """

    _spatial_rank = 1


@register("SpectralConv3D")
class SpectralConv3D(_SpectralConvolution, keras.layers.Conv3D):
    """A 3-D convolution that is `k_coef_lip`-Lipschitz.

    For volumes and videos. Like `SpectralConv2D`, also with groups and
    dilation (see `SpectralGroupedConv2D`).

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or three integers, the window.
        strides: Integer or three integers.
        padding: Must be `"same"`, in any case.
        **kwargs: The other arguments of `SpectralConv2D`.

    Input shape:
        Tensor `(batch_size, depth, height, width, channels)`, or channels
        first.

    Output shape:
        Tensor of the same form; lengths are divided by `strides`, rounded up.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import SpectralConv3D
    >>> layer = SpectralConv3D(6, 3, strides=2)
    >>> tuple(layer(np.ones((1, 4, 6, 6, 2), "float32")).shape)
    (1, 2, 3, 3, 6)
    """

    _spatial_rank = 3


@register("FrobeniusConv2D")
class FrobeniusConv2D(
    CoveredConvolution, ConstrainedKernel, keras.layers.Conv2D
):
    """A 2-D convolution whose kernel is divided by its Frobenius norm.

    Meant for one filter, for which it is the same as `SpectralConv2D` and
    cheaper. With several, the bound holds but is loose.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair of integers, the window.
        strides: Must be 1.
        padding: Must be `"same"`, in any case.
        kernel_constraint: None or a `SpectralConstraint`.
        **kwargs: The other arguments of `SpectralConv2D`, but for the five of
            the orthogonalisation and `bound`.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, height, width, filters)`, or channels first.

    Raises:
        ValueError: If `padding`, `dilation_rate`, `strides` or
            `kernel_constraint` is not one of those supported, or if another
            argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import FrobeniusConv2D
    >>> layer = FrobeniusConv2D(1, 3)
    >>> tuple(layer(np.ones((2, 8, 8, 1), "float32")).shape)
    (2, 8, 8, 1)
    >>> layer.count_params()
    19
    """

    _spatial_rank = 2
    _takes_groups_and_dilation = False

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
        strides = int_tuple(strides, 2)
        if tuple(strides) != (1, 1):
            raise ArgumentError(
                "FrobeniusConv2D bounds convolutions with `strides=1` only. "
                f"Received: strides={strides}"
            )
        kernel_constraint = keras.constraints.get(kernel_constraint)
        if not isinstance(kernel_constraint, SpectralConstraint | None):
            raise ArgumentError(
                "FrobeniusConv2D takes no `kernel_constraint` but None or a "
                "`SpectralConstraint`. "
                f"Received: kernel_constraint={kernel_constraint}"
            )
        super().__init__(
            parametrization=Frobenius(),
            filters=positive_int("filters", filters),
            kernel_size=kernel_size,
            strides=strides,
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
