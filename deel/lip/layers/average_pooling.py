"""Scaled means of windows."""

import keras

from deel.lip._register import register
from deel.lip._stock_only.orders import keeps_order
from deel.lip.layers._window_pooling import WindowPooling


class _WindowAverage(WindowPooling):
    """Mixin: the mean of each window, scaled."""

    def call(self, inputs):
        return super().call(inputs) * self._get_coef()

    def _stock_call(self, inputs, convert):
        return convert.scaled(convert.stock(self)(inputs), self._get_coef())


@keeps_order(negated=True)
@register("ScaledAveragePooling2D")
class ScaledAveragePooling2D(_WindowAverage, keras.layers.AveragePooling2D):
    """Average pooling multiplied by the root of the window size.

    The output is `k_coef_lip * sum(window) / sqrt(p)`, with p the number of
    values in a window. Takes the place of `keras.layers.AveragePooling2D`,
    which is needlessly contracting.

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
        ValueError: If windows would overlap, or for another padding.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledAveragePooling2D
    >>> image = np.array([[1., 2.], [3., 4.]]).reshape(1, 2, 2, 1)
    >>> float(ScaledAveragePooling2D()(image)[0, 0, 0, 0])
    5.0
    """

    _spatial_rank = 2


@keeps_order(negated=True)
@register("ScaledAveragePooling1D")
class ScaledAveragePooling1D(_WindowAverage, keras.layers.AveragePooling1D):
    """Like `ScaledAveragePooling2D`, for sequences.

    Takes the same arguments; `pool_size` is an integer.

    Input shape:
        Tensor `(batch_size, steps, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, steps // pool_size, channels)`, or channels first.
    """

    _spatial_rank = 1


@keeps_order(negated=True)
@register("ScaledAveragePooling3D")
class ScaledAveragePooling3D(_WindowAverage, keras.layers.AveragePooling3D):
    """Like `ScaledAveragePooling2D`, for volumes.

    Takes the same arguments; `pool_size` is an integer or three integers.

    Input shape:
        Tensor `(batch_size, depth, height, width, channels)`, or channels
        first.

    Output shape:
        Tensor of the same form, each length divided by that of the window.
    """

    _spatial_rank = 3
