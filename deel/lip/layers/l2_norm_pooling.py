"""Scaled norms of windows."""

import math

import keras
from keras import ops

from deel.lip._backend.compilation import has_fast_strides
from deel.lip._backend.tensors import cast
from deel.lip._backend.variables import float32_at_least
from deel.lip._numerics.window_norms import largest_square
from deel.lip._numerics.window_norms import norms_of_windows
from deel.lip._numerics.window_norms import square_root
from deel.lip._numerics.windows import first_spatial_axis
from deel.lip._register import register
from deel.lip._stock_only.orders import keeps_order
from deel.lip._validation import ArgumentError
from deel.lip._validation import nonnegative_float
from deel.lip.layers._window_pooling import WindowPooling


class _WindowL2Norm(WindowPooling):
    """Mixin: the Euclidean norm of each window."""

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
            pool_size, strides, padding, data_format, k_coef_lip, **kwargs
        )
        self.eps_grad_sqrt = nonnegative_float(
            "eps_grad_sqrt", eps_grad_sqrt, ArgumentError
        )

    def call(self, inputs, training=False):
        windows = self._windows(inputs.shape)
        # In float16 the square of 256 is infinite.
        values = float32_at_least(inputs)
        if windows is not None and has_fast_strides(inputs, training):
            norms = norms_of_windows(
                values, *windows, self.eps_grad_sqrt, self._get_coef()
            )
        else:
            norms = self._norms(values, super().call) * self._get_coef()
        return cast(norms, inputs.dtype)

    def _norms(self, values, mean_of_windows):
        mean_square = mean_of_windows(ops.square(values))
        limit = largest_square(values, math.prod(self.pool_size))
        mean_square = ops.minimum(mean_square, limit)
        return square_root(mean_square + self.eps_grad_sqrt)

    def _stock_call(self, inputs, convert):
        norms = self._norms(float32_at_least(inputs), convert.stock(self))
        return convert.scaled(cast(norms, inputs.dtype), self._get_coef())

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


@keeps_order(negated=False)
@register("ScaledL2NormPooling2D")
class ScaledL2NormPooling2D(_WindowL2Norm, keras.layers.AveragePooling2D):
    """Euclidean norm of each window: pooling that keeps the norm.

    The output is `k_coef_lip * sqrt(sum(window ** 2) + p * eps_grad_sqrt)`,
    with p the number of values in a window. Norms beyond 1.3e19, whose squares
    float32 cannot hold, are cut off there, which is 1-Lipschitz as well. Shapes
    are those of `ScaledAveragePooling2D`.

    Args:
        pool_size, strides, padding, data_format, k_coef_lip: As for
            `ScaledAveragePooling2D`.
        eps_grad_sqrt: Float, zero or more, added under the root, where the
            norm is not differentiable at zero. With zero, the gradient of a
            window of zeros is zero.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Raises:
        ValueError: If windows would overlap, for another padding, or if
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


@keeps_order(negated=False)
@register("ScaledL2NormPooling1D")
class ScaledL2NormPooling1D(_WindowL2Norm, keras.layers.AveragePooling1D):
    """Like `ScaledL2NormPooling2D`, for sequences.

    Takes the same arguments; `pool_size` is an integer.

    Input shape:
        Tensor `(batch_size, steps, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, steps // pool_size, channels)`, or channels first.
    """

    _spatial_rank = 1


@keeps_order(negated=False)
@register("ScaledL2NormPooling3D")
class ScaledL2NormPooling3D(_WindowL2Norm, keras.layers.AveragePooling3D):
    """Like `ScaledL2NormPooling2D`, for volumes.

    Takes the same arguments; `pool_size` is an integer or three integers.

    Input shape:
        Tensor `(batch_size, depth, height, width, channels)`, or channels
        first.

    Output shape:
        Tensor of the same form, each length divided by that of the window.
    """

    _spatial_rank = 3
