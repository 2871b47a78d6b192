"""Resampling that loses nothing: pixels become channels, and back."""

import math

import keras
from keras import ops

from deel.lip._backend.gradient import custom_gradient
from deel.lip._backend.tensors import sliced
from deel.lip._numerics.windows import channel_axis
from deel.lip._numerics.windows import check_data_format
from deel.lip._numerics.windows import first_spatial_axis
from deel.lip._numerics.windows import spatial_shape
from deel.lip._register import register
from deel.lip._validation import positive_int
from deel.lip._validation import share


class _InvertibleSampling(keras.layers.Layer):
    """Base of both directions: arguments, shapes and config.

    An isometry, since it only reorders values, so it takes no Lipschitz
    constant.
    """

    def __init__(
        self,
        pool_size,
        data_format="channels_last",
        name=None,
        dtype=None,
        **kwargs,
    ):
        super().__init__(name=name, dtype=dtype, **kwargs)
        if not isinstance(pool_size, (tuple, list)):
            pool_size = (pool_size, pool_size)
        if len(pool_size) != 2:
            raise ValueError(
                "Argument `pool_size` must be an integer or a pair of "
                f"integers. Received: pool_size={pool_size}"
            )
        self.pool_size = tuple(positive_int("pool_size", p) for p in pool_size)
        check_data_format(data_format)
        self.data_format = data_format

    def build(self, input_shape):
        self.compute_output_shape(input_shape)

    def compute_output_shape(self, input_shape):
        lengths = spatial_shape(input_shape, self.data_format)
        channels = input_shape[channel_axis(self.data_format)]
        channels = self._new_channels(channels)
        spatial = tuple(map(self._new_length, lengths, self.pool_size))
        if self.data_format == "channels_first":
            return (input_shape[0], channels, *spatial)
        return (input_shape[0], *spatial, channels)

    def call(self, inputs):
        # The permutation is written for channels first.
        if self.data_format == "channels_first":
            return self._permute(inputs)
        outputs = self._permute(ops.transpose(inputs, (0, 3, 1, 2)))
        return ops.transpose(outputs, (0, 2, 3, 1))

    def get_config(self):
        return {
            **super().get_config(),
            "pool_size": self.pool_size,
            "data_format": self.data_format,
        }


@register("InvertibleDownSampling")
class InvertibleDownSampling(_InvertibleSampling):
    """Moves the pixels of each window to the channels; pixel-unshuffle.

    Reduces the image and loses nothing, where pooling would:
    `y[b, i, j, (c * p_h + a) * p_w + e] = x[b, i * p_h + a, j * p_w + e, c]`.

    Args:
        pool_size: Integer or pair of integers `(p_h, p_w)`.
        data_format: `"channels_last"` or `"channels_first"`.
        name, dtype, kwargs: What all Keras layers take.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first;
        `height` and `width` multiples of the window.

    Output shape:
        Tensor `(batch_size, height / p_h, width / p_w, channels * p_h * p_w)`,
        or channels first.

    Raises:
        ValueError: If `pool_size` is not a pair, or does not divide the image.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import InvertibleDownSampling
    >>> x = np.arange(32.0).reshape(1, 4, 4, 2)
    >>> y = InvertibleDownSampling(2)(x)
    >>> print(keras.ops.convert_to_numpy(y)[0, 0, 0])
    [ 0.  2.  8. 10.  1.  3.  9. 11.]
    """

    def _new_length(self, length, pool):
        if length is None:
            return None
        if length % pool:
            raise ValueError(
                "The height and width must be multiples of `pool_size`. "
                f"Received: length={length}, pool_size={self.pool_size}"
            )
        return length // pool

    def _new_channels(self, channels):
        return channels * math.prod(self.pool_size)

    def _permute(self, x):
        _, channels, height, width = ops.shape(x)
        p_h, p_w = self.pool_size
        shape = (-1, channels, height // p_h, p_h, width // p_w, p_w)
        x = ops.transpose(ops.reshape(x, shape), (0, 1, 3, 5, 2, 4))
        channels = self._new_channels(channels)
        return ops.reshape(x, (-1, channels, height // p_h, width // p_w))


@register("InvertibleUpSampling")
class InvertibleUpSampling(_InvertibleSampling):
    """The exact inverse of `InvertibleDownSampling`; pixel-shuffle.

    Takes the same arguments.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first;
        `channels` a multiple of `p_h * p_w`.

    Output shape:
        Tensor `(batch_size, height * p_h, width * p_w,
        channels / (p_h * p_w))`, or channels first.

    Raises:
        ValueError: If `pool_size` is not a pair, or if the channels cannot be
            split.
    """

    def _new_length(self, length, pool):
        return None if length is None else length * pool

    def _new_channels(self, channels):
        window = math.prod(self.pool_size)
        if channels % window:
            raise ValueError(
                "The number of channels must be a multiple of the size of the "
                f"window. Received: channels={channels}, "
                f"pool_size={self.pool_size}"
            )
        return channels // window

    def _permute(self, x):
        _, channels, height, width = ops.shape(x)
        p_h, p_w = self.pool_size
        channels = self._new_channels(channels)
        shape = (-1, channels, p_h, p_w, height, width)
        x = ops.transpose(ops.reshape(x, shape), (0, 1, 4, 2, 5, 3))
        return ops.reshape(x, (-1, channels, height * p_h, width * p_w))


def _rolled(x, step, axis):
    """`ops.roll` by one place, as parts that change places."""
    place = -1 if step > 0 else 1
    parts = sliced(x, axis, place, None), sliced(x, axis, None, place)
    return ops.concatenate(parts, axis=axis)


@register("SpatialShift2D")
class SpatialShift2D(keras.layers.Layer):
    """Shifts a part of the channels by one pixel, each quarter its own way.

    Down, up, right and left, around the border: an isometry without weights.
    Followed by a layer that mixes the channels of each pixel and keeps norms
    (`SpectralConv2D(filters, 1)` with as many filters as channels, or
    `SpectralDense`), it takes the place of a convolution, without what a window
    costs: shifts are the only convolutions of single channels that keep every
    norm.

    Args:
        fraction: Float in ]0, 1], the share of the channels that is shifted.
        data_format: `"channels_last"` or `"channels_first"`.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.
        The output has the same.

    Raises:
        ValueError: If `fraction` is out of its range, or leaves less than one
            channel for each direction.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import SpatialShift2D
    >>> x = np.zeros((1, 2, 3, 4), "float32")
    >>> x[0, 0, 0] = [1.0, 2.0, 3.0, 4.0]
    >>> y = keras.ops.convert_to_numpy(SpatialShift2D()(x))
    >>> print(y.sum(axis=-1)[0])
    [[0. 3. 4.]
     [3. 0. 0.]]

    Reference:
        - [LipNeXt, 2026](https://arxiv.org/abs/2601.18513).
    """

    def __init__(self, fraction=1.0, data_format="channels_last", **kwargs):
        super().__init__(**kwargs)
        self.fraction = share("fraction", fraction)
        check_data_format(data_format)
        self.data_format = data_format

    def build(self, input_shape):
        channels = input_shape[channel_axis(self.data_format)]
        self._quarter = int(channels * self.fraction) // 4
        if self._quarter == 0:
            raise ValueError(
                "Each of the four directions needs a channel. Received: "
                f"channels={channels}, fraction={self.fraction}"
            )

    def call(self, inputs):
        # What the backends derive from so many slices takes twice as long.
        @custom_gradient
        def shifted(x):
            def gradient(upstream):
                return self._shifted(upstream, -1)

            return self._shifted(x, 1), gradient

        return shifted(inputs)

    def _shifted(self, x, step):
        first = first_spatial_axis(self.data_format)
        channels = channel_axis(self.data_format)
        ways = [(1, first), (-1, first), (1, first + 1), (-1, first + 1)]
        parts = []
        for number, (sign, axis) in enumerate(ways):
            start = number * self._quarter
            part = sliced(x, channels, start, start + self._quarter)
            parts.append(_rolled(part, sign * step, axis))
        if 4 * self._quarter < x.shape[channels]:
            parts.append(sliced(x, channels, 4 * self._quarter, None))
        return ops.concatenate(parts, axis=channels)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "fraction": self.fraction,
            "data_format": self.data_format,
        }
