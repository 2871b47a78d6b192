"""Convolutions that are orthogonal as operators on images."""

import keras

from deel.lip._constrained import ConstrainedKernel
from deel.lip._numerics.windows import first_spatial_axis
from deel.lip._numerics.windows import spatial_shape
from deel.lip._register import register
from deel.lip._validation import int_tuple
from deel.lip._validation import positive_int
from deel.lip.layers._padded import PaddedConvolution
from deel.lip.layers.convolutional_transpose import require_plain
from deel.lip.layers.unconstrained import PADDINGS
from deel.lip.parametrizations import BlockConvolution


def _checked_padding(name, padding, accepted):
    """Returns one of the accepted names of a padding, in lower case."""
    lower = padding.lower() if isinstance(padding, str) else padding
    if lower not in accepted:
        raise ValueError(
            f"Argument `padding` of {name} must be one of {accepted}. "
            f"Received: padding={padding}"
        )
    return lower


class BlockKernel(ConstrainedKernel):
    """Mixin of the orthogonal convolutions: their parametrization.

    It stands before a stock convolution, whose strides and groups it needs
    before that one has them.
    """

    def __init__(self, *args, strides, groups=1, **kwargs):
        groups = positive_int("groups", groups)
        if groups != 1:
            kwargs["groups"] = groups
        super().__init__(
            *args,
            strides=strides,
            parametrization=BlockConvolution(strides, groups),
            **kwargs,
        )


class _OrthogonalConvolution(PaddedConvolution, BlockKernel):
    """Base of the `OrthogonalConv*` layers: their arguments."""

    _paddings = ("same", "valid", "circular")

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
        kernel_initializer="orthogonal",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        k_coef_lip=1.0,
        **kwargs,
    ):
        padding = _checked_padding(type(self).__name__, padding, self._paddings)
        mode = PADDINGS[padding]
        super().__init__(
            filters=positive_int("filters", filters),
            kernel_size=int_tuple(kernel_size, self._spatial_rank),
            strides=int_tuple(strides, self._spatial_rank),
            padding=padding if mode is None else "valid",
            data_format=data_format,
            dilation_rate=int_tuple(dilation_rate, self._spatial_rank),
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            k_coef_lip=k_coef_lip,
            **kwargs,
        )
        self._set_explicit_padding(mode)

    def build(self, input_shape):
        super().build(input_shape)
        if self._pad_mode is None:
            return
        # A stride that does not divide the length of a circle takes a shorter
        # step at its end, where windows then read a value twice.
        axes = dict(self.input_spec.axes)
        lengths = spatial_shape(input_shape, self.data_format)
        first = first_spatial_axis(self.data_format)
        for axis, length in enumerate(lengths, first):
            stride = self.strides[axis - first]
            if stride == 1:
                continue
            if length is None or length % stride:
                raise ValueError(
                    f"{type(self).__name__} with circular padding needs images "
                    "whose lengths are known and multiples of the stride. "
                    f"Received: input_shape={tuple(input_shape)}, "
                    f"strides={self.strides}"
                )
            axes[axis] = length
        self.input_spec = keras.layers.InputSpec(
            min_ndim=self._spatial_rank + 2, axes=axes
        )

    def get_config(self):
        padding = self._pad_mode or self.padding
        return {**super().get_config(), "padding": padding}


@register("OrthogonalConv2D")
class OrthogonalConv2D(_OrthogonalConvolution, keras.layers.Conv2D):
    """A 2-D convolution that keeps distances, not only bounds them.

    It takes the place of `keras.layers.Conv2D` and takes its arguments, in the
    same order. The layer as a whole is an orthogonal map between images, times
    `k_coef_lip`: with circular padding it keeps the norm of every image if it
    has at least as many outputs as inputs (`filters * strides[0] * strides[1]`
    divided by them no smaller than the channels), and else loses the directions
    that do not fit and no others. Padding with zeros is a part of that map:
    what leaves the image at its border is lost.

    Prefer it to `SpectralConv2D` wherever windows overlap: that one divides by
    the number of windows that read a value, which takes amplitude from each
    layer unless it has very many filters. What it costs is a product of small
    matrices in each training step, which does not depend on the image, and at
    inference nothing: the kernel is cached in `wbar`, of the ordinary size.

    The trained variable `kernel` holds the factors of the convolution, side by
    side: a matrix between channels and `kernel_size - 1` blocks of two taps for
    each axis. They are kept orthogonal by a retraction after each update, like
    the kernels of `SpectralDense`. Not every orthogonal convolution is a
    product of this kind, but a rich family of them.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair of integers, the window. With circular
            padding, odd.
        strides: Integer or pair of integers.
        padding: `"same"` or `"valid"`, both with zeros as in Keras, or
            `"circular"`, in any case.
        dilation_rate: Integer or pair of integers; 1 with a stride.
        groups: Positive integer, the number of groups that the channels are
            split in; each has factors of its own.
        kernel_initializer: Initializer of the factors. Whatever it draws, each
            factor starts as the orthogonal matrix that is nearest to it.
        kernel_regularizer: Regularizer of the variable with the factors.
        kernel_constraint: Constraint of the variable with the factors.
        **kwargs: The other arguments of `SpectralConv2D`, but for the five of
            the orthogonalisation, `bound` and `padding_mode`.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or
        `(batch_size, channels, height, width)` with `"channels_first"`.

    Output shape:
        That of `keras.layers.Conv2D`; circular padding has the one of `"same"`.

    Raises:
        ValueError: If an argument is out of its range; when built, if padding
            is circular and a stride does not divide the length of its axis.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import OrthogonalConv2D
    >>> layer = OrthogonalConv2D(8, 3, padding="circular")
    >>> x = np.random.default_rng(0).normal(size=(1, 6, 6, 4))
    >>> y = keras.ops.convert_to_numpy(layer(x))
    >>> ratio = np.linalg.norm(y) / np.linalg.norm(x)
    >>> print(f"{ratio:.4f}")
    1.0000

    Reference:
        - [Li et al., 2019](https://arxiv.org/abs/1911.00937), "Preventing
          gradient attenuation in Lipschitz constrained convolutional networks".
        - [Boissin et al., 2025](https://arxiv.org/abs/2501.07930), "An adaptive
          orthogonal convolution scheme for efficient and flexible CNN
          architectures".
    """

    _spatial_rank = 2


@register("OrthogonalConv1D")
class OrthogonalConv1D(_OrthogonalConvolution, keras.layers.Conv1D):
    """A 1-D convolution that keeps distances, not only bounds them.

    For time series and other sequences. See `OrthogonalConv2D`. On one axis,
    every orthogonal convolution without stride is a product of such blocks, of
    possibly other ranks.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer, the window.
        strides: Integer.
        padding: `"same"`, `"valid"` or `"circular"`, in any case.
        **kwargs: The other arguments of `OrthogonalConv2D`.

    Input shape:
        Tensor `(batch_size, steps, channels)`, or channels first.

    Output shape:
        That of `keras.layers.Conv1D`; circular padding has the one of `"same"`.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import OrthogonalConv1D
    >>> layer = OrthogonalConv1D(8, 4, strides=2)
    >>> tuple(layer(np.ones((2, 10, 4), "float32")).shape)
    (2, 5, 8)
    """

    _spatial_rank = 1


@register("OrthogonalConv3D")
class OrthogonalConv3D(_OrthogonalConvolution, keras.layers.Conv3D):
    """A 3-D convolution that keeps distances, not only bounds them.

    For volumes and videos. See `OrthogonalConv2D`.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or three integers, the window.
        strides: Integer or three integers.
        padding: `"same"`, `"valid"` or `"circular"`, in any case.
        **kwargs: The other arguments of `OrthogonalConv2D`.

    Input shape:
        Tensor `(batch_size, depth, height, width, channels)`, or channels
        first.

    Output shape:
        That of `keras.layers.Conv3D`; circular padding has the one of `"same"`.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import OrthogonalConv3D
    >>> layer = OrthogonalConv3D(6, 3, strides=(1, 2, 2))
    >>> tuple(layer(np.ones((1, 4, 6, 6, 2), "float32")).shape)
    (1, 4, 3, 3, 6)
    """

    _spatial_rank = 3


@register("OrthogonalConv2DTranspose")
class OrthogonalConv2DTranspose(BlockKernel, keras.layers.Conv2DTranspose):
    """A transposed 2-D convolution that keeps distances.

    The adjoint of an `OrthogonalConv2D` from its output to its input, to
    enlarge images: it takes the place of `keras.layers.Conv2DTranspose`. It
    keeps the norm of each image, but for what it writes beyond the border, if
    the output has at least as many values as the input.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair of integers, the window.
        strides: Integer or pair of integers, the enlargement.
        padding: `"same"`, which enlarges each axis by the stride and cuts off
            what lies beyond, or `"valid"`, which keeps it, in any case.
        **kwargs: The other arguments of `OrthogonalConv2D`, but for `groups`;
            `dilation_rate` must be 1 and `output_padding` None.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        That of `keras.layers.Conv2DTranspose`.

    Raises:
        ValueError: If an argument is out of its range or not supported.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import OrthogonalConv2DTranspose
    >>> layer = OrthogonalConv2DTranspose(4, 4, strides=2, padding="valid")
    >>> x = np.random.default_rng(0).normal(size=(1, 3, 5, 8))
    >>> y = keras.ops.convert_to_numpy(layer(x))
    >>> ratio = np.linalg.norm(y) / np.linalg.norm(x)
    >>> print(f"{ratio:.4f}")
    1.0000

    Reference:
        - [Boissin et al., 2025](https://arxiv.org/abs/2501.07930), "An adaptive
          orthogonal convolution scheme for efficient and flexible CNN
          architectures".
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
        kernel_initializer="orthogonal",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        k_coef_lip=1.0,
        **kwargs,
    ):
        output_padding = kwargs.pop("output_padding", None)
        require_plain(self, dilation_rate, output_padding)
        accepted = ("same", "valid")
        super().__init__(
            filters=positive_int("filters", filters),
            kernel_size=int_tuple(kernel_size, 2),
            strides=int_tuple(strides, 2),
            padding=_checked_padding(type(self).__name__, padding, accepted),
            data_format=data_format,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            k_coef_lip=k_coef_lip,
            **kwargs,
        )
