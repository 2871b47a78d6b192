"""Pooling layers scaled to a Lipschitz constant.

Note [large norms]. The square of 2e19 is infinite in float32. So squares are
cut off at half of the largest number (divided by that of the values in a mean,
so that none of their sums is infinite below it): what is computed is
`min(norm, 1.3e19)`, which is 1-Lipschitz as the norm is, and finite. The exact
norm would take a scale, hence another pass over the image: on two cores it
makes inference of these layers slower by 30 % (JAX) to 60 % (TensorFlow,
PyTorch), while the limit is one operation on the small tensor. Values below
1e-19, whose squares vanish, count as zero, an error as small as they are.
"""

import functools
import math
import numbers

import keras
from keras import ops

from deel.lip._compilation import fused
from deel.lip._compilation import has_fast_strides
from deel.lip._gradient import custom_gradient
from deel.lip._lipschitz import LipschitzLayer
from deel.lip._register import register
from deel.lip._slices import reshaped
from deel.lip._slices import sliced
from deel.lip._validation import int_tuple
from deel.lip._validation import normal_range
from deel.lip._variables import full
from deel.lip.layers.conv_factor import first_spatial_axis
from deel.lip.layers.conv_factor import spatial_shape

# In relative terms: norms that have been cut off, and then rounded.
_NEAR_LIMIT = 1e-6


class _WindowPooling(LipschitzLayer):
    """Mixin of the pooling layers with disjoint windows, of any rank.

    The mean of p values is `1/sqrt(p)`-Lipschitz, hence the coefficient
    `sqrt(p)`. Overlapping windows would read a value several times, and
    padding would change the number of values behind a mean.

    A subclass names its rank and the stock layer of that rank as a base.
    """

    _spatial_rank = None

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


class _WindowAverage(_WindowPooling):
    """Mixin: the mean of each window, scaled."""

    def call(self, inputs):
        return super().call(inputs) * self._get_coef()


class _WindowL2Norm(_WindowPooling):
    """Mixin: the Euclidean norm of each window."""

    def __init__(self, *args, eps_grad_sqrt, **kwargs):
        super().__init__(*args, **kwargs)
        self.eps_grad_sqrt = _checked_epsilon(eps_grad_sqrt)

    def call(self, inputs, training=False):
        windows = self._windows(inputs.shape)
        # In float16 the square of 256 is infinite.
        values = full(inputs)
        scale = self._get_coef()
        if windows is not None and has_fast_strides(inputs, training):
            norms = _norms_of_windows(
                values, *windows, self.eps_grad_sqrt, scale
            )
        else:
            mean_square = super().call(ops.square(values))
            limit = _largest_square(values, math.prod(self.pool_size))
            mean_square = ops.minimum(mean_square, limit)
            norms = _root(mean_square + self.eps_grad_sqrt) * scale
        return ops.cast(norms, inputs.dtype)

    def _windows(self, shape):
        """The shape of inputs whose spatial axes are split, and the new axes.

        None if windows do not fill the image, or if its size is not known.
        """
        first = first_spatial_axis(self.data_format)
        split, axes = [-1, *shape[1:first]], []
        for length, size in zip(shape[first:], self.pool_size, strict=False):
            if length is None or length % size:
                return None
            axes.append(len(split) + 1)
            split += [length // size, size]
        return (*split, *shape[first + self._spatial_rank :]), tuple(axes)

    def get_config(self):
        return {**super().get_config(), "eps_grad_sqrt": self.eps_grad_sqrt}


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


class _GlobalL2Norm(_GlobalPooling):
    """Mixin: the Euclidean norm of all positions."""

    def __init__(
        self, data_format=None, k_coef_lip=1.0, eps_grad_sqrt=1e-6, **kwargs
    ):
        super().__init__(data_format, k_coef_lip, **kwargs)
        self.eps_grad_sqrt = _checked_epsilon(eps_grad_sqrt)
        self._init_lip_coef(None)

    def _compute_lip_coef(self, input_shape=None):
        return 1.0

    def call(self, inputs):
        first = first_spatial_axis(self.data_format)
        axes = list(range(first, first + len(inputs.shape) - 2))
        # In float16 the square of 256 is infinite.
        values = full(inputs)
        squares = ops.sum(ops.square(values), axis=axes, keepdims=self.keepdims)
        squares = ops.minimum(squares, _largest_square(values))
        norms = _root(squares + self.eps_grad_sqrt) * self.k_coef_lip
        return ops.cast(norms, inputs.dtype)

    def get_config(self):
        return {**super().get_config(), "eps_grad_sqrt": self.eps_grad_sqrt}


class _Adaptive:
    """Mixin that spells a global pooling by the size of its output."""

    def __init__(self, output_size=(1, 1), *args, **kwargs):
        if int_tuple(output_size, 2) not in ((1, 1), [1, 1]):
            raise RuntimeError(
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


@register("ScaledAveragePooling1D")
class ScaledAveragePooling1D(_WindowAverage, keras.layers.AveragePooling1D):
    """Average pooling multiplied by the root of the window size.

    The output is `k_coef_lip * sum(window) / sqrt(p)`, with p the size of the
    window. Takes the place of `keras.layers.AveragePooling1D`, which is
    needlessly contracting.

    Args:
        pool_size: Integer, the window.
        strides: None, or equal to `pool_size`.
        padding: Must be `"valid"`.
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        k_coef_lip: Float, the Lipschitz constant.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, steps, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, steps // pool_size, channels)`, or channels first.

    Raises:
        RuntimeError: If windows would overlap, or for another padding.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledAveragePooling1D
    >>> signal = np.array([1., 2., 3., 4.]).reshape(1, 4, 1)
    >>> round(float(ScaledAveragePooling1D()(signal)[0, 0, 0]), 4)
    2.1213
    """

    _spatial_rank = 1

    def __init__(
        self,
        pool_size=2,
        strides=None,
        padding="valid",
        data_format=None,
        k_coef_lip=1.0,
        **kwargs,
    ):
        super().__init__(
            pool_size, strides, padding, data_format, k_coef_lip, **kwargs
        )


@register("ScaledAveragePooling2D")
class ScaledAveragePooling2D(_WindowAverage, keras.layers.AveragePooling2D):
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


@register("ScaledAveragePooling3D")
class ScaledAveragePooling3D(_WindowAverage, keras.layers.AveragePooling3D):
    """Average pooling multiplied by the root of the window size.

    The output is `k_coef_lip * sum(window) / sqrt(p)`, with p the size of the
    window. Takes the place of `keras.layers.AveragePooling3D`, which is
    needlessly contracting.

    Args:
        pool_size: Integer or triple of integers, the window.
        strides: None, or equal to `pool_size`.
        padding: Must be `"valid"`.
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        k_coef_lip: Float, the Lipschitz constant.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, depth, height, width, channels)`, or channels
        first.

    Output shape:
        Tensor `(batch_size, depth // pool_size[0], height // pool_size[1],
        width // pool_size[2], channels)`, or channels first.

    Raises:
        RuntimeError: If windows would overlap, or for another padding.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledAveragePooling3D
    >>> volume = np.arange(8.).reshape(1, 2, 2, 2, 1)
    >>> round(float(ScaledAveragePooling3D()(volume)[0, 0, 0, 0, 0]), 4)
    9.8995
    """

    _spatial_rank = 3

    def __init__(
        self,
        pool_size=(2, 2, 2),
        strides=None,
        padding="valid",
        data_format=None,
        k_coef_lip=1.0,
        **kwargs,
    ):
        super().__init__(
            pool_size, strides, padding, data_format, k_coef_lip, **kwargs
        )


@register("ScaledL2NormPooling1D")
class ScaledL2NormPooling1D(_WindowL2Norm, keras.layers.AveragePooling1D):
    """Euclidean norm of each window: pooling that keeps the norm.

    The output is `k_coef_lip * sqrt(sum(window ** 2) + p * eps_grad_sqrt)`,
    with p the size of the window. Norms beyond 1.3e19, whose squares float32
    cannot hold, are cut off there, which is 1-Lipschitz as well.

    Args:
        pool_size: Integer, the window.
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
        Tensor `(batch_size, steps, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, steps // pool_size, channels)`, or channels first.

    Raises:
        RuntimeError: If windows would overlap, for another padding, or if
            `eps_grad_sqrt` is negative.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledL2NormPooling1D
    >>> signal = np.array([1., 2., 3., 4.]).reshape(1, 4, 1)
    >>> round(float(ScaledL2NormPooling1D()(signal)[0, 0, 0]), 4)
    2.2361

    Reference:
        - [Boureau et al., 2010](https://www.di.ens.fr/willow/pdfs/icml2010b.pdf),
          "A theoretical analysis of feature pooling in visual recognition".
    """

    _spatial_rank = 1

    def __init__(
        self,
        pool_size=2,
        strides=None,
        padding="valid",
        data_format=None,
        k_coef_lip=1.0,
        eps_grad_sqrt=1e-6,
        **kwargs,
    ):
        super().__init__(
            pool_size,
            strides,
            padding,
            data_format,
            k_coef_lip,
            eps_grad_sqrt=eps_grad_sqrt,
            **kwargs,
        )


@register("ScaledL2NormPooling2D")
class ScaledL2NormPooling2D(_WindowL2Norm, keras.layers.AveragePooling2D):
    """Euclidean norm of each window: pooling that keeps the norm.

    The output is `k_coef_lip * sqrt(sum(window ** 2) + p * eps_grad_sqrt)`,
    with p the size of the window. Norms beyond 1.3e19, whose squares float32
    cannot hold, are cut off there, which is 1-Lipschitz as well.

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
            pool_size,
            strides,
            padding,
            data_format,
            k_coef_lip,
            eps_grad_sqrt=eps_grad_sqrt,
            **kwargs,
        )


@register("ScaledL2NormPooling3D")
class ScaledL2NormPooling3D(_WindowL2Norm, keras.layers.AveragePooling3D):
    """Euclidean norm of each window: pooling that keeps the norm.

    The output is `k_coef_lip * sqrt(sum(window ** 2) + p * eps_grad_sqrt)`,
    with p the size of the window. Norms beyond 1.3e19, whose squares float32
    cannot hold, are cut off there, which is 1-Lipschitz as well.

    Args:
        pool_size: Integer or triple of integers, the window.
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
        Tensor `(batch_size, depth, height, width, channels)`, or channels
        first.

    Output shape:
        Tensor `(batch_size, depth // pool_size[0], height // pool_size[1],
        width // pool_size[2], channels)`, or channels first.

    Raises:
        RuntimeError: If windows would overlap, for another padding, or if
            `eps_grad_sqrt` is negative.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledL2NormPooling3D
    >>> volume = np.arange(8.).reshape(1, 2, 2, 2, 1)
    >>> round(float(ScaledL2NormPooling3D()(volume)[0, 0, 0, 0, 0]), 4)
    11.8322

    Reference:
        - [Boureau et al., 2010](https://www.di.ens.fr/willow/pdfs/icml2010b.pdf),
          "A theoretical analysis of feature pooling in visual recognition".
    """

    _spatial_rank = 3

    def __init__(
        self,
        pool_size=(2, 2, 2),
        strides=None,
        padding="valid",
        data_format=None,
        k_coef_lip=1.0,
        eps_grad_sqrt=1e-6,
        **kwargs,
    ):
        super().__init__(
            pool_size,
            strides,
            padding,
            data_format,
            k_coef_lip,
            eps_grad_sqrt=eps_grad_sqrt,
            **kwargs,
        )


@register("ScaledGlobalAveragePooling1D")
class ScaledGlobalAveragePooling1D(
    _GlobalAverage, keras.layers.GlobalAveragePooling1D
):
    """Global average pooling multiplied by the root of the sequence size.

    The output is `k_coef_lip * sum(sequence) / sqrt(steps)` for each channel.
    The size is that of the sequence at hand, so the constant holds for
    sequences of any length. Steps that a mask leaves out count neither in the
    sum nor in the size.

    Args:
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        k_coef_lip: Float, the Lipschitz constant.
        **kwargs: `keepdims`, `name`, `dtype` and what else the stock layer
            takes.

    Input shape:
        Tensor `(batch_size, steps, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, channels)`; with `keepdims=True` the steps axis
        is kept with length 1.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledGlobalAveragePooling1D
    >>> signal = np.array([1., 2., 3., 4.]).reshape(1, 4, 1)
    >>> float(ScaledGlobalAveragePooling1D()(signal)[0, 0])
    5.0
    """

    def call(self, inputs, mask=None):
        if mask is None:
            return super().call(inputs)
        # The stock mean of n steps would need the factor sqrt(n), not that of
        # all steps, with which it can expand.
        kept, share = _unmasked(inputs, mask, self.data_format)
        share = ops.reshape(share, (-1, 1, 1) if self.keepdims else (-1, 1))
        return super().call(kept) / ops.sqrt(share)


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


@register("ScaledGlobalAveragePooling3D")
class ScaledGlobalAveragePooling3D(
    _GlobalAverage, keras.layers.GlobalAveragePooling3D
):
    """Global average pooling multiplied by the root of the volume size.

    The output is `k_coef_lip * sum(volume) / sqrt(depth * height * width)` for
    each channel. The size is that of the volume at hand, so the constant holds
    for volumes of any size.

    Args:
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        k_coef_lip: Float, the Lipschitz constant.
        **kwargs: `keepdims`, `name`, `dtype` and what else the stock layer
            takes.

    Input shape:
        Tensor `(batch_size, depth, height, width, channels)`, or channels
        first.

    Output shape:
        Tensor `(batch_size, channels)`; with `keepdims=True` the spatial axes
        are kept with length 1.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledGlobalAveragePooling3D
    >>> volume = np.arange(8.).reshape(1, 2, 2, 2, 1)
    >>> round(float(ScaledGlobalAveragePooling3D()(volume)[0, 0]), 4)
    9.8995
    """


@register("ScaledGlobalL2NormPooling1D")
class ScaledGlobalL2NormPooling1D(
    _GlobalL2Norm, keras.layers.GlobalAveragePooling1D
):
    """Euclidean norm of each channel over the whole sequence.

    The output is `k_coef_lip * sqrt(sum(sequence ** 2) + eps_grad_sqrt)`. Steps
    that a mask leaves out do not count. Norms beyond 1.3e19 are cut off, as by
    `ScaledL2NormPooling1D`.

    Args:
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        k_coef_lip: Float, the Lipschitz constant.
        eps_grad_sqrt: Float, zero or more, see `ScaledL2NormPooling1D`.
        **kwargs: `keepdims`, `name`, `dtype` and what else the stock layer
            takes.

    Input shape:
        Tensor `(batch_size, steps, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, channels)`; with `keepdims=True` the steps axis
        is kept with length 1.

    Raises:
        RuntimeError: If `eps_grad_sqrt` is negative.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledGlobalL2NormPooling1D
    >>> signal = np.array([1., 2., 3., 4.]).reshape(1, 4, 1)
    >>> round(float(ScaledGlobalL2NormPooling1D()(signal)[0, 0]), 4)
    5.4772
    """

    def call(self, inputs, mask=None):
        if mask is not None:
            inputs, _ = _unmasked(inputs, mask, self.data_format)
        return super().call(inputs)


@register("ScaledGlobalL2NormPooling2D")
class ScaledGlobalL2NormPooling2D(
    _GlobalL2Norm, keras.layers.GlobalAveragePooling2D
):
    """Euclidean norm of each channel over the whole image.

    The output is `k_coef_lip * sqrt(sum(image ** 2) + eps_grad_sqrt)`. Norms
    beyond 1.3e19 are cut off, as by `ScaledL2NormPooling2D`.

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


@register("ScaledGlobalL2NormPooling3D")
class ScaledGlobalL2NormPooling3D(
    _GlobalL2Norm, keras.layers.GlobalAveragePooling3D
):
    """Euclidean norm of each channel over the whole volume.

    The output is `k_coef_lip * sqrt(sum(volume ** 2) + eps_grad_sqrt)`. Norms
    beyond 1.3e19 are cut off, as by `ScaledL2NormPooling3D`.

    Args:
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        k_coef_lip: Float, the Lipschitz constant.
        eps_grad_sqrt: Float, zero or more, see `ScaledL2NormPooling3D`.
        **kwargs: `keepdims`, `name`, `dtype` and what else the stock layer
            takes.

    Input shape:
        Tensor `(batch_size, depth, height, width, channels)`, or channels
        first.

    Output shape:
        Tensor `(batch_size, channels)`; with `keepdims=True` the spatial axes
        are kept with length 1.

    Raises:
        RuntimeError: If `eps_grad_sqrt` is negative.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledGlobalL2NormPooling3D
    >>> volume = np.arange(8.).reshape(1, 2, 2, 2, 1)
    >>> round(float(ScaledGlobalL2NormPooling3D()(volume)[0, 0]), 4)
    11.8322
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
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        k_coef_lip: Float, the Lipschitz constant.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, 1, 1, channels)`, or channels first.

    Raises:
        RuntimeError: For another output size.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledAdaptiveAveragePooling2D
    >>> image = np.array([[1., 2.], [3., 4.]]).reshape(1, 2, 2, 1)
    >>> float(ScaledAdaptiveAveragePooling2D((1, 1))(image)[0, 0, 0, 0])
    5.0
    """


@register("ScaledAdaptiveL2NormPooling2D")
class ScaledAdaptiveL2NormPooling2D(
    _Adaptive, _GlobalL2Norm, keras.layers.GlobalAveragePooling2D
):
    """`ScaledGlobalL2NormPooling2D` that keeps the spatial axes.

    For networks written with adaptive pooling, of which the output size 1 is
    supported.

    Args:
        output_size: Must be `(1, 1)`, or 1.
        data_format: `"channels_last"` or `"channels_first"`; None means the
            Keras setting.
        k_coef_lip: Float, the Lipschitz constant.
        eps_grad_sqrt: Float, zero or more, see `ScaledL2NormPooling2D`.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, 1, 1, channels)`, or channels first.

    Raises:
        RuntimeError: For another output size, or if
            `eps_grad_sqrt` is negative.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import ScaledAdaptiveL2NormPooling2D
    >>> image = np.array([[1., 2.], [3., 4.]]).reshape(1, 2, 2, 1)
    >>> pooled = ScaledAdaptiveL2NormPooling2D((1, 1))(image)
    >>> round(float(pooled[0, 0, 0, 0]), 4)
    5.4772
    """


def _unmasked(inputs, mask, data_format):
    """Sequences with zeros for masked steps, and the share of those kept.

    Where all steps are masked the share is that of one step, so that it can
    divide.
    """
    kept = ops.cast(mask, inputs.dtype)
    share = ops.maximum(ops.sum(kept, axis=1), 1) / ops.sum(
        ops.ones_like(kept), axis=1
    )
    channel_axis = 1 if data_format == "channels_first" else 2
    mask = ops.expand_dims(ops.cast(mask, "bool"), channel_axis)
    return ops.where(mask, inputs, ops.zeros_like(inputs)), share


def _checked_epsilon(eps_grad_sqrt):
    if not isinstance(eps_grad_sqrt, numbers.Real) or not eps_grad_sqrt >= 0:
        raise RuntimeError(
            "Argument `eps_grad_sqrt` must be zero or greater. "
            f"Received: eps_grad_sqrt={eps_grad_sqrt}"
        )
    return float(eps_grad_sqrt)


def _largest_square(values, size=1):
    """Limit of mean squares of `size` values; see the note on large norms."""
    return normal_range(keras.backend.standardize_dtype(values.dtype))[1] / (
        2.0 * size
    )


def _norms_of_windows(inputs, shape, axes, epsilon, scale):
    """Root of the mean square of each window, and of `epsilon`, times `scale`.

    With a gradient that reads and writes the image once.

    Args:
        inputs: Tensor.
        shape: Tuple, the shape of `inputs` with its spatial axes split.
        axes: Tuple of integers, the axes within windows.
        epsilon: Float.
        scale: Float.
    """
    settings = {"shape": shape, "axes": axes, "scale": scale}

    @custom_gradient
    def pooled(inputs):
        norms = _scaled_norms(inputs, epsilon=epsilon, **settings)

        def gradient(upstream):
            return _slopes_of_norms(inputs, norms, upstream, **settings)

        return norms, gradient

    return pooled(inputs)


# Whole, with the operations on the small tensors: one that TensorFlow does not
# vectorise, as `where`, takes as long as reading the image.
@fused
def _scaled_norms(inputs, shape, axes, epsilon, scale):
    size = math.prod(shape[axis] for axis in axes)
    result = [n for axis, n in enumerate(shape) if axis not in axes]
    # Rows are long enough for vector instructions once the last axis within
    # windows and the channels behind it are one, in blocks.
    rows = (*shape[: axes[-1]], math.prod(shape[axes[-1] :]))
    sums = ops.square(reshaped(inputs, rows))
    for axis in axes:
        block = sums.shape[axis] // shape[axis]
        starts = range(0, sums.shape[axis], block)
        parts = [sliced(sums, axis, i, i + block) for i in starts]
        sums = functools.reduce(ops.add, parts)
    squares = ops.minimum(sums / size, _largest_square(inputs, size))
    return ops.sqrt(reshaped(squares, result) + epsilon) * scale


@fused
def _slopes_of_norms(inputs, norms, upstream, shape, axes, scale):
    """Gradient of the norms, which at zero is zero instead of infinite."""
    size = math.prod(shape[axis] for axis in axes)
    # Neither zero nor cut off.
    limit = scale * math.sqrt(_largest_square(inputs, size)) * (1 - _NEAR_LIMIT)
    positive = ops.logical_and(norms > 0, norms < limit)
    safe = ops.where(positive, norms, ops.ones_like(norms))
    factors = ops.where(positive, scale / safe, ops.zeros_like(norms))
    factors = factors * upstream * (scale / size)
    ones = [1 if axis in axes else n for axis, n in enumerate(shape)]
    product = reshaped(inputs, shape) * reshaped(factors, ones)
    return reshaped(product, ops.shape(inputs))


def _root_and_slope(x):
    """Square root whose gradient at zero is zero instead of infinite."""
    root = ops.sqrt(x)

    def gradient(upstream):
        safe = ops.where(root > 0, root, ops.ones_like(root))
        slope = ops.where(root > 0, 0.5 / safe, ops.zeros_like(root))
        return upstream * slope

    return root, gradient


_root = custom_gradient(_root_and_slope)
