"""Scaled means and norms of whole images."""

import math

import keras
from keras import ops

from deel.lip._backend.tensors import cast
from deel.lip._backend.tensors import scaled
from deel.lip._backend.variables import float32_at_least
from deel.lip._lipschitz import LipschitzLayer
from deel.lip._numerics.window_norms import largest_square
from deel.lip._numerics.window_norms import square_root
from deel.lip._numerics.window_norms import unmasked
from deel.lip._numerics.windows import spatial_axes
from deel.lip._numerics.windows import spatial_shape
from deel.lip._register import register
from deel.lip._stock_only.orders import keeps_order
from deel.lip._validation import ArgumentError
from deel.lip._validation import int_tuple
from deel.lip._validation import nonnegative_float


class _GlobalPooling(LipschitzLayer):
    """Mixin of the pooling layers with one window, of any rank."""

    def __init__(self, data_format=None, k_coef_lip=1.0, **kwargs):
        super().__init__(data_format=data_format, **kwargs)
        self.set_klip_factor(k_coef_lip)

    def get_config(self):
        return {**super().get_config(), "k_coef_lip": self.k_coef_lip}


class _GlobalAverage(_GlobalPooling):
    """Mixin: the mean of all positions, scaled."""

    def build(self, input_shape):
        self._init_lip_coef(input_shape)

    def _compute_lip_coef(self, input_shape=None):
        if input_shape is None:
            return None
        lengths = spatial_shape(input_shape, self.data_format)
        return None if None in lengths else math.sqrt(math.prod(lengths))

    def call(self, inputs):
        lengths = spatial_shape(ops.shape(inputs), self.data_format)
        size = math.prod(lengths)
        if isinstance(size, int):
            root = math.sqrt(size)
        else:
            root = ops.sqrt(ops.cast(size, inputs.dtype))
        return super().call(inputs) * (root * self.k_coef_lip)

    def _stock_call(self, inputs, convert):
        mean = convert.stock(self)(inputs)
        lengths = spatial_shape(inputs.shape, self.data_format)
        if None not in lengths:
            root = math.sqrt(math.prod(lengths))
            return convert.scaled(mean, root * self.k_coef_lip)
        axes = spatial_axes(inputs, self.data_format)
        size = ops.sum(ops.ones_like(inputs), axis=axes, keepdims=self.keepdims)
        return scaled(mean * ops.sqrt(size), self.k_coef_lip)


class _GlobalL2Norm(_GlobalPooling):
    """Mixin: the Euclidean norm of all positions."""

    def __init__(
        self, data_format=None, k_coef_lip=1.0, eps_grad_sqrt=1e-6, **kwargs
    ):
        super().__init__(data_format, k_coef_lip, **kwargs)
        self.eps_grad_sqrt = nonnegative_float(
            "eps_grad_sqrt", eps_grad_sqrt, ArgumentError
        )
        self._init_lip_coef(None)

    def _compute_lip_coef(self, input_shape=None):
        return 1.0

    def call(self, inputs):
        axes = spatial_axes(inputs, self.data_format)
        # In float16 the square of 256 is infinite.
        values = float32_at_least(inputs)
        squares = ops.sum(ops.square(values), axis=axes, keepdims=self.keepdims)
        squares = ops.minimum(squares, largest_square(values))
        norms = square_root(squares + self.eps_grad_sqrt) * self.k_coef_lip
        return cast(norms, inputs.dtype)

    def get_config(self):
        return {**super().get_config(), "eps_grad_sqrt": self.eps_grad_sqrt}


class _Adaptive:
    """Mixin that spells a global pooling by the size of its output."""

    def __init__(self, output_size=(1, 1), *args, **kwargs):
        if int_tuple(output_size, 2) not in ((1, 1), [1, 1]):
            raise ArgumentError(
                f"{type(self).__name__} pools the whole image: windows of "
                "several sizes have no common constant. Expected "
                f"`output_size=(1, 1)`. Received: output_size={output_size}"
            )
        super().__init__(*args, keepdims=True, **kwargs)
        self.output_size = (1, 1)

    def get_config(self):
        config = {**super().get_config(), "output_size": self.output_size}
        del config["keepdims"]
        return config


@keeps_order(negated=True)
@register("ScaledGlobalAveragePooling2D")
class ScaledGlobalAveragePooling2D(
    _GlobalAverage, keras.layers.GlobalAveragePooling2D
):
    """Global average pooling multiplied by the root of the image size.

    The output is `k_coef_lip * sum(image) / sqrt(height * width)` for each
    channel. The size is that of the image at hand, so the constant holds for
    images of any size.

    Args:
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        k_coef_lip: Float, the Lipschitz constant.
        **kwargs: `keepdims`, `name`, `dtype` and what else the stock layer
            takes.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, channels)`; with `keepdims=True` the spatial axes
        are kept with length 1.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledGlobalAveragePooling2D
    >>> image = np.array([[1., 2.], [3., 4.]]).reshape(1, 2, 2, 1)
    >>> float(ScaledGlobalAveragePooling2D()(image)[0, 0])
    5.0
    """


@keeps_order(negated=True)
@register("ScaledGlobalAveragePooling1D")
class ScaledGlobalAveragePooling1D(
    _GlobalAverage, keras.layers.GlobalAveragePooling1D
):
    """Like `ScaledGlobalAveragePooling2D`, for sequences.

    Takes the same arguments. Steps that a mask leaves out count neither in the
    sum nor in the size.

    Input shape:
        Tensor `(batch_size, steps, channels)`, or channels first.
    """

    def call(self, inputs, mask=None):
        if mask is None:
            return super().call(inputs)
        # The stock mean of n steps would need the factor sqrt(n), not that of
        # all steps, with which it can expand.
        kept, share = unmasked(inputs, mask, self.data_format)
        share = ops.reshape(share, (-1, 1, 1) if self.keepdims else (-1, 1))
        return super().call(kept) / ops.sqrt(share)


@keeps_order(negated=True)
@register("ScaledGlobalAveragePooling3D")
class ScaledGlobalAveragePooling3D(
    _GlobalAverage, keras.layers.GlobalAveragePooling3D
):
    """Like `ScaledGlobalAveragePooling2D`, for volumes.

    Takes the same arguments.

    Input shape:
        Tensor `(batch_size, depth, height, width, channels)`, or channels
        first.
    """


@keeps_order(negated=False)
@register("ScaledGlobalL2NormPooling2D")
class ScaledGlobalL2NormPooling2D(
    _GlobalL2Norm, keras.layers.GlobalAveragePooling2D
):
    """Euclidean norm of each channel over the whole image.

    The output is `k_coef_lip * sqrt(sum(image ** 2) + eps_grad_sqrt)`. Norms
    beyond 1.3e19 are cut off, as by `ScaledL2NormPooling2D`. Shapes are those
    of `ScaledGlobalAveragePooling2D`.

    Args:
        data_format, k_coef_lip: As for `ScaledGlobalAveragePooling2D`.
        eps_grad_sqrt: Float, zero or more, see `ScaledL2NormPooling2D`.
        **kwargs: `keepdims`, `name`, `dtype` and what else the stock layer
            takes.

    Raises:
        ValueError: If `eps_grad_sqrt` is negative.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledGlobalL2NormPooling2D
    >>> image = np.array([[1., 2.], [3., 4.]]).reshape(1, 2, 2, 1)
    >>> round(float(ScaledGlobalL2NormPooling2D()(image)[0, 0]), 4)
    5.4772
    """


@keeps_order(negated=False)
@register("ScaledGlobalL2NormPooling1D")
class ScaledGlobalL2NormPooling1D(
    _GlobalL2Norm, keras.layers.GlobalAveragePooling1D
):
    """Like `ScaledGlobalL2NormPooling2D`, for sequences.

    Takes the same arguments. Steps that a mask leaves out do not count.

    Input shape:
        Tensor `(batch_size, steps, channels)`, or channels first.
    """

    def call(self, inputs, mask=None):
        if mask is not None:
            inputs, _ = unmasked(inputs, mask, self.data_format)
        return super().call(inputs)


@keeps_order(negated=False)
@register("ScaledGlobalL2NormPooling3D")
class ScaledGlobalL2NormPooling3D(
    _GlobalL2Norm, keras.layers.GlobalAveragePooling3D
):
    """Like `ScaledGlobalL2NormPooling2D`, for volumes.

    Takes the same arguments.

    Input shape:
        Tensor `(batch_size, depth, height, width, channels)`, or channels
        first.
    """


@register("ScaledAdaptiveAveragePooling2D")
class ScaledAdaptiveAveragePooling2D(
    _Adaptive, _GlobalAverage, keras.layers.GlobalAveragePooling2D
):
    """`ScaledGlobalAveragePooling2D` that keeps the spatial axes.

    For networks written with adaptive pooling, of which the output size 1 is
    supported.

    Args:
        output_size: Must be `(1, 1)`, or 1.
        **kwargs: As for `ScaledGlobalAveragePooling2D`, but `keepdims`.

    Output shape:
        Tensor `(batch_size, 1, 1, channels)`, or channels first.

    Raises:
        ValueError: For another output size.
    """


@register("ScaledAdaptiveL2NormPooling2D")
class ScaledAdaptiveL2NormPooling2D(
    _Adaptive, _GlobalL2Norm, keras.layers.GlobalAveragePooling2D
):
    """`ScaledGlobalL2NormPooling2D` that keeps the spatial axes.

    Like `ScaledAdaptiveAveragePooling2D`, with the arguments of the former.

    Output shape:
        Tensor `(batch_size, 1, 1, channels)`, or channels first.
    """
