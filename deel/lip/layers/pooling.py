"""Pooling layers scaled to a Lipschitz constant."""

import math
import numbers

import keras
from keras import ops

from deel.lip._gradient import custom_gradient
from deel.lip._lipschitz import LipschitzLayer
from deel.lip._register import register
from deel.lip._validation import int_tuple
from deel.lip.layers.conv_factor import spatial_shape


class ScaledPooling(LipschitzLayer):
    """Mixin of the pooling layers with disjoint windows.

    The mean of p values is `1/sqrt(p)`-Lipschitz, hence the coefficient
    `sqrt(p)`. Overlapping windows would read a value several times, and
    padding would change the number of values behind a mean.
    """

    def __init__(
        self, pool_size, strides, padding, data_format, k_coef_lip, **kwargs
    ):
        pool_size = int_tuple(pool_size, self._spatial_rank)
        strides = int_tuple(strides, self._spatial_rank)
        if strides is not None and tuple(strides) != tuple(pool_size):
            raise RuntimeError(
                f"{type(self).__name__} needs windows that do not overlap: "
                "expected `strides=None` or equal to `pool_size`. "
                f"Received: pool_size={pool_size}, strides={strides}"
            )
        if padding != "valid":
            raise RuntimeError(
                f'{type(self).__name__} supports `padding="valid"` only. '
                f"Received: padding={padding}"
            )
        super().__init__(
            pool_size=pool_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            **kwargs,
        )
        self.set_klip_factor(k_coef_lip)
        self._init_lip_coef(None)

    def _compute_lip_coef(self, input_shape=None):
        return math.sqrt(math.prod(self.pool_size))

    def get_config(self):
        return {**super().get_config(), "k_coef_lip": self.k_coef_lip}


@register("ScaledAveragePooling2D")
class ScaledAveragePooling2D(ScaledPooling, keras.layers.AveragePooling2D):
    """Average pooling multiplied by the root of the window size.

    The output is `k_coef_lip * sum(window) / sqrt(height * width)`. Takes the
    place of `keras.layers.AveragePooling2D`, which is needlessly contracting.

    Args:
        pool_size: Integer or pair of integers, the window.
        strides: None, or equal to `pool_size`.
        padding: Must be `"valid"`.
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        k_coef_lip: Float, the Lipschitz constant.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, height // pool_size[0], width // pool_size[1],
        channels)`, or channels first.

    Raises:
        RuntimeError: If windows would overlap, or for another padding.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledAveragePooling2D
    >>> image = np.array([[1., 2.], [3., 4.]]).reshape(1, 2, 2, 1)
    >>> float(ScaledAveragePooling2D()(image)[0, 0, 0, 0])
    5.0
    """

    _spatial_rank = 2

    def __init__(
        self,
        pool_size=(2, 2),
        strides=None,
        padding="valid",
        data_format=None,
        k_coef_lip=1.0,
        **kwargs,
    ):
        super().__init__(
            pool_size, strides, padding, data_format, k_coef_lip, **kwargs
        )

    def call(self, inputs):
        return super().call(inputs) * self._get_coef()


@register("ScaledL2NormPooling2D")
class ScaledL2NormPooling2D(ScaledPooling, keras.layers.AveragePooling2D):
    """Euclidean norm of each window: pooling that keeps the norm.

    The output is `k_coef_lip * sqrt(sum(window ** 2) + p * eps_grad_sqrt)`,
    with p the size of the window.

    Args:
        pool_size: Integer or pair of integers, the window.
        strides: None, or equal to `pool_size`.
        padding: Must be `"valid"`.
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        k_coef_lip: Float, the Lipschitz constant.
        eps_grad_sqrt: Float, zero or more, added under the root, where the
            norm is not differentiable at zero. With zero, the gradient of a
            window of zeros is zero.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, height // pool_size[0], width // pool_size[1],
        channels)`, or channels first.

    Raises:
        RuntimeError: If windows would overlap, for another padding, or if
            `eps_grad_sqrt` is negative.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledL2NormPooling2D
    >>> image = np.array([[1., 2.], [3., 4.]]).reshape(1, 2, 2, 1)
    >>> round(float(ScaledL2NormPooling2D()(image)[0, 0, 0, 0]), 4)
    5.4772

    Reference:
        - [Boureau et al., 2010](https://www.di.ens.fr/willow/pdfs/icml2010b.pdf),
          "A theoretical analysis of feature pooling in visual recognition".
    """

    _spatial_rank = 2

    def __init__(
        self,
        pool_size=(2, 2),
        strides=None,
        padding="valid",
        data_format=None,
        k_coef_lip=1.0,
        eps_grad_sqrt=1e-6,
        **kwargs,
    ):
        super().__init__(
            pool_size, strides, padding, data_format, k_coef_lip, **kwargs
        )
        self.eps_grad_sqrt = _checked_epsilon(eps_grad_sqrt)

    def call(self, inputs):
        mean_square = super().call(ops.square(inputs))
        return _root(mean_square + self.eps_grad_sqrt) * self._get_coef()

    def get_config(self):
        return {**super().get_config(), "eps_grad_sqrt": self.eps_grad_sqrt}


@register("ScaledGlobalAveragePooling2D")
class ScaledGlobalAveragePooling2D(
    LipschitzLayer, keras.layers.GlobalAveragePooling2D
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

    def __init__(self, data_format=None, k_coef_lip=1.0, **kwargs):
        super().__init__(data_format=data_format, **kwargs)
        self.set_klip_factor(k_coef_lip)

    def build(self, input_shape):
        self._init_lip_coef(input_shape)

    def _compute_lip_coef(self, input_shape=None):
        if input_shape is None:
            return None
        lengths = spatial_shape(input_shape, self.data_format)
        return None if None in lengths else math.sqrt(math.prod(lengths))

    def call(self, inputs):
        lengths = spatial_shape(ops.shape(inputs), self.data_format)
        if all(isinstance(length, int) for length in lengths):
            root = math.sqrt(math.prod(lengths))
        else:
            root = ops.sqrt(ops.cast(lengths[0] * lengths[1], inputs.dtype))
        return super().call(inputs) * (root * self.k_coef_lip)

    def get_config(self):
        return {**super().get_config(), "k_coef_lip": self.k_coef_lip}


@register("ScaledGlobalL2NormPooling2D")
class ScaledGlobalL2NormPooling2D(
    LipschitzLayer, keras.layers.GlobalAveragePooling2D
):
    """Euclidean norm of each channel over the whole image.

    The output is `k_coef_lip * sqrt(sum(image ** 2) + eps_grad_sqrt)`.

    Args:
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        k_coef_lip: Float, the Lipschitz constant.
        eps_grad_sqrt: Float, zero or more, see `ScaledL2NormPooling2D`.
        **kwargs: `keepdims`, `name`, `dtype` and what else the stock layer
            takes.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, channels)`; with `keepdims=True` the spatial axes
        are kept with length 1.

    Raises:
        RuntimeError: If `eps_grad_sqrt` is negative.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledGlobalL2NormPooling2D
    >>> image = np.array([[1., 2.], [3., 4.]]).reshape(1, 2, 2, 1)
    >>> round(float(ScaledGlobalL2NormPooling2D()(image)[0, 0]), 4)
    5.4772
    """

    def __init__(
        self, data_format=None, k_coef_lip=1.0, eps_grad_sqrt=1e-6, **kwargs
    ):
        super().__init__(data_format=data_format, **kwargs)
        self.eps_grad_sqrt = _checked_epsilon(eps_grad_sqrt)
        self.set_klip_factor(k_coef_lip)
        self._init_lip_coef(None)

    def _compute_lip_coef(self, input_shape=None):
        return 1.0

    def call(self, inputs):
        axes = [2, 3] if self.data_format == "channels_first" else [1, 2]
        squares = ops.sum(ops.square(inputs), axis=axes, keepdims=self.keepdims)
        return _root(squares + self.eps_grad_sqrt) * self.k_coef_lip

    def get_config(self):
        return {
            **super().get_config(),
            "k_coef_lip": self.k_coef_lip,
            "eps_grad_sqrt": self.eps_grad_sqrt,
        }


def _checked_epsilon(eps_grad_sqrt):
    if not isinstance(eps_grad_sqrt, numbers.Real) or not eps_grad_sqrt >= 0:
        raise RuntimeError(
            "Argument `eps_grad_sqrt` must be zero or greater. "
            f"Received: eps_grad_sqrt={eps_grad_sqrt}"
        )
    return float(eps_grad_sqrt)


@custom_gradient
def _root(x):
    """Square root whose gradient at zero is zero instead of infinite."""
    root = ops.sqrt(x)

    def gradient(upstream):
        safe = ops.where(root > 0, root, ops.ones_like(root))
        slope = ops.where(root > 0, 0.5 / safe, ops.zeros_like(root))
        return upstream * slope

    return root, gradient
