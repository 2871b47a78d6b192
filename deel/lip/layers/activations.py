"""Activations that keep the norm of the gradient."""

import math

import keras
import numpy as np
from keras import ops

from deel.lip._backend.tensors import cast
from deel.lip._backend.tensors import is_symbolic
from deel.lip._backend.variables import host
from deel.lip._lipschitz import LipschitzLayer
from deel.lip._numerics.sorting import halves
from deel.lip._numerics.sorting import sort_groups
from deel.lip._numerics.sorting import sort_pairs
from deel.lip._numerics.sorting import sorted_halves
from deel.lip._numerics.windows import channel_axis
from deel.lip._numerics.windows import check_data_format
from deel.lip._register import register
from deel.lip._validation import ArgumentError
from deel.lip._validation import positive_int
from deel.lip._validation import share


class _Activation(LipschitzLayer, keras.layers.Layer):
    """Base of the activations: one constant, no structural coefficient."""

    def __init__(self, data_format="channels_last", k_coef_lip=1.0, **kwargs):
        super().__init__(**kwargs)
        check_data_format(data_format)
        self.data_format = data_format
        self.set_klip_factor(k_coef_lip)
        self._init_lip_coef(None)
        self.supports_masking = True

    def _compute_lip_coef(self, input_shape=None):
        return 1.0

    def _require_channels_last(self):
        if self.data_format != "channels_last":
            raise ArgumentError(
                f"The channels of {type(self).__name__} are the last axis. "
                'Expected `data_format="channels_last"`. '
                f"Received: data_format={self.data_format}"
            )

    def _scaled(self, outputs):
        return outputs if self.k_coef_lip == 1.0 else outputs * self.k_coef_lip

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "data_format": self.data_format,
            "k_coef_lip": self.k_coef_lip,
        }


@register("GroupSort")
class GroupSort(_Activation):
    """Sorts the channels in groups of `n` neighbours, in ascending order.

    A permutation of the channels, hence an isometry wherever it is
    differentiable: neither values nor gradients lose norm, which makes it the
    activation of choice of a Lipschitz network. `GroupSort2` costs least.

    Args:
        n: Integer, the size of a group; None sorts all channels, as does an
            `n` greater than their number.
        data_format: Must be `"channels_last"`: the last axis is sorted.
        k_coef_lip: Float, multiplies the output.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, ..., channels)`, `channels` a multiple of `n`.
        The output has the same.

    Raises:
        ValueError: If `data_format` is not `"channels_last"`, or if the
            channels cannot be split in groups of `n`.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.activations import GroupSort
    >>> x = np.array([[3., 1., -2., -5., 0., 4.]])
    >>> print(keras.ops.convert_to_numpy(GroupSort(3)(x)))
    [[-2.  1.  3. -5.  0.  4.]]

    Reference:
        - [Anil et al., 2019](https://arxiv.org/abs/1811.05381), "Sorting out
          Lipschitz function approximation".
    """

    def __init__(
        self, n=None, data_format="channels_last", k_coef_lip=1.0, **kwargs
    ):
        super().__init__(data_format, k_coef_lip, **kwargs)
        self._require_channels_last()
        self.n = None if n is None else positive_int("n", n)

    def build(self, input_shape):
        self._group_size(input_shape[-1])

    def call(self, inputs, training=False):
        size = self._group_size(inputs.shape[-1])
        if size == 1:
            return self._scaled(inputs)
        if size == 2:
            return self._scaled(sort_pairs(inputs, training))
        return self._scaled(sort_groups(inputs, size))

    _takes_orders = True

    def _sorts_pairs(self, channels):
        """Whether that is all it does to so many channels."""
        return self._group_size(channels) == 2

    def _stock_call(self, inputs, convert):
        channels = inputs.shape[-1]
        if not self._sorts_pairs(channels):
            return self.call(convert.restored(inputs))
        if (pairs := convert.sorted_before(inputs)) is not None:
            order, signs = convert.order_of(pairs), convert.signs_of(pairs)
            return convert.in_order(self._scaled(pairs), order, signs=signs)
        order = halves(channels)
        if not convert.is_in_order(inputs, order):
            inputs = ops.take(convert.restored(inputs), order, axis=-1)
        parts = [self._scaled(part) for part in sorted_halves(inputs)]
        outputs = ops.concatenate(parts, axis=-1)
        return convert.in_order(outputs, order, parts)

    def _group_size(self, channels):
        if self.n is None or self.n > channels:
            return channels
        if channels % self.n:
            raise ArgumentError(
                f"The number of channels must be a multiple of n={self.n}. "
                f"Received: channels={channels}"
            )
        return self.n

    def get_config(self):
        return {**super().get_config(), "n": self.n}


@register("GroupSort2")
class GroupSort2(GroupSort):
    """`GroupSort` with `n=2`: sorts each pair of neighbouring channels.

    Args:
        **kwargs: As for `GroupSort`; `n` is ignored.
    """

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "n": 2})


@register("FullSort")
class FullSort(GroupSort):
    """`GroupSort` of all channels at once.

    Args:
        **kwargs: As for `GroupSort`; `n` is ignored.
    """

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "n": None})


@register("Abs")
class Abs(_Activation):
    """The magnitude of the first channels; the others pass.

    Keeps the norm of its input and of the gradient, one channel at a time, and
    costs less than sorting. With `beta=1` the sign of all is lost; with less,
    channels that pass keep what a magnitude forgets.

    Args:
        beta: Float in ]0, 1], the share of the channels to take the magnitude
            of, rounded up.
        data_format: `"channels_last"` or `"channels_first"`.
        k_coef_lip: Float, multiplies the output.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, ..., channels)`, or `(batch_size, channels, ...)`.
        The output has the same.

    Raises:
        ValueError: If `data_format` is unknown, or if `beta` is out of its
            range.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.activations import Abs
    >>> x = np.array([[3., -2., -1., -4.]])
    >>> print(keras.ops.convert_to_numpy(Abs(beta=0.5)(x)))
    [[ 3.  2. -1. -4.]]

    Reference:
        - [LipNeXt, 2026](https://arxiv.org/abs/2601.18513).
    """

    def __init__(
        self, beta=1.0, data_format="channels_last", k_coef_lip=1.0, **kwargs
    ):
        super().__init__(data_format, k_coef_lip, **kwargs)
        self.beta = share("beta", beta)

    def call(self, inputs):
        axis = channel_axis(self.data_format)
        slopes = np.ones(inputs.shape[axis], "float32")
        slopes[: math.ceil(self.beta * len(slopes))] = -1.0
        shape = [1] * len(inputs.shape)
        shape[axis] = -1
        slopes = slopes.reshape(shape)
        if not is_symbolic(inputs):
            slopes = ops.cast(slopes, inputs.dtype)
        mirrored = cast(inputs * slopes, inputs.dtype)
        # The larger one of x and -x, or of x and x.
        return self._scaled(ops.maximum(inputs, mirrored))

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}


@register("MaxMin")
class MaxMin(_Activation):
    """`concatenate([relu(x), relu(-x)])` on the channels, whose number doubles.

    Keeps the norm of its input and of the gradient, as the sort activations
    do; the next layer has twice as many inputs.

    Args:
        data_format, k_coef_lip, kwargs: As for `Abs`, as the input shape is.

    Output shape:
        The input shape with twice the channels.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.activations import MaxMin
    >>> x = np.array([[3., -2.]])
    >>> print(keras.ops.convert_to_numpy(MaxMin()(x)))
    [[3. 0. 0. 2.]]
    """

    def call(self, inputs):
        parts = [ops.relu(inputs), ops.relu(-inputs)]
        axis = channel_axis(self.data_format)
        return self._scaled(ops.concatenate(parts, axis=axis))

    def compute_output_shape(self, input_shape):
        shape = list(input_shape)
        axis = channel_axis(self.data_format)
        if shape[axis] is not None:
            shape[axis] *= 2
        return tuple(shape)


@register("Householder")
class Householder(_Activation):
    """Reflects pairs of channels, with a learned angle for each pair.

    Channels are paired by halves: the first with the one in the middle, and so
    on. Points on one side of a line through the origin stay, those on the
    other side are reflected at it. The initial angle, pi/2, sorts each pair in
    ascending order.

    With `order=n` the plane of each pair is folded n times, each time at a line
    of its own: both pieces that a fold has made are reflected anew where the
    next line parts them, which makes up to 2^n pieces. A fold is continuous,
    since points on its line stay, and 1-Lipschitz, since points on different
    sides come closer when one of them is reflected. So is what folds make one
    after the other. Its Jacobian is a product of reflections, hence orthogonal,
    wherever there is one.

    Args:
        data_format: Must be `"channels_last"`.
        k_coef_lip: Float, multiplies the output.
        theta_initializer: Initializer of the angles; None means pi/2, and for
            each further fold the angle whose line halves what the folds before
            have left.
        order: Positive integer, the number of folds.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, ..., channels)`, an even number of channels.
        The output has the same.

    Raises:
        ValueError: If `data_format` is not `"channels_last"`, or if the
            number of channels is odd, or if `order` is not a positive integer.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.activations import Householder
    >>> x = np.array([[3., 1., -2., 5.]], "float32")
    >>> print(keras.ops.convert_to_numpy(Householder()(x)).round(4))
    [[-2.  1.  3.  5.]]
    >>> x = np.array([[-1., 1., -4., 2.]], "float32")
    >>> print(keras.ops.convert_to_numpy(Householder(order=2)(x)).round(4))
    [[1. 1. 4. 2.]]

    Reference:
        - [Singla et al., 2021](https://arxiv.org/abs/2108.04062), "Improved
          deterministic l2 robustness on CIFAR-10 and CIFAR-100".
    """

    def __init__(
        self,
        data_format="channels_last",
        k_coef_lip=1.0,
        theta_initializer=None,
        order=1,
        **kwargs,
    ):
        super().__init__(data_format, k_coef_lip, **kwargs)
        self._require_channels_last()
        self.theta_initializer = keras.initializers.get(theta_initializer)
        self.order = positive_int("order", order)

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % 2:
            raise ArgumentError(
                "Householder pairs the channels, so their number must be even. "
                f"Received: channels={channels}"
            )
        pairs = (channels // 2,)
        self.theta = self.add_weight(
            name="theta",
            shape=pairs if self.order == 1 else (self.order, *pairs),
            initializer=self.theta_initializer or _halving,
        )

    def call(self, inputs):
        functions = np if is_symbolic(inputs) else ops
        if functions is np:
            angles = host(self.theta)
        else:
            angles = ops.convert_to_tensor(self.theta)
        angles = functions.reshape(angles, (self.order, -1))
        fold = _symbolic_fold if functions is np else _folded
        parts = ops.split(inputs, 2, axis=-1)
        for i in range(self.order):
            parts = fold(*parts, angles[i])
        return self._scaled(ops.concatenate(parts, axis=-1))

    def get_config(self):
        initializer = keras.initializers.serialize(self.theta_initializer)
        return {
            **super().get_config(),
            "theta_initializer": self.theta_initializer and initializer,
            "order": self.order,
        }


def _halving(shape, dtype=None):
    """Angles of folds one after the other, each of which halves the plane left.

    The first leaves the half-plane above the diagonal, and each of the others
    the half of a sector that begins there.
    """
    folds = np.arange(1 if len(shape) == 1 else shape[0])
    angles = math.pi / 2 - 2 * math.pi * (1 - 2.0**-folds)
    angles = np.broadcast_to(angles[:, None], (len(folds), shape[-1]))
    return ops.convert_to_tensor(angles.reshape(shape), dtype=dtype)


def _folded(first, second, theta):
    """Reflects the points on one side of a line, which is at half the angle.

    Args:
        first: Tensor, a coordinate of the points.
        second: Tensor, the other one.
        theta: Tensor, the angles.
    """
    sin, cos = ops.sin, ops.cos
    side = first * sin(theta / 2) - second * cos(theta / 2)
    sine, cosine = sin(theta), cos(theta)
    reflected = (
        first * cosine + second * sine,
        first * sine - second * cosine,
    )
    stays = side <= 0
    return [
        ops.where(stays, first, reflected[0]),
        ops.where(stays, second, reflected[1]),
    ]


def _symbolic_fold(first, second, theta):
    """As `_folded`, for an export, whose sines are numbers that are rounded.

    A step along the normal of the line, as long as the point is off it: what
    rounding makes of it has no jump at the line, hence a constant.

    Args:
        first: Symbolic tensor.
        second: Symbolic tensor.
        theta: NumPy array.
    """
    sine, cosine = np.sin(theta / 2), np.cos(theta / 2)
    step = ops.relu(first * sine - second * cosine)
    return [first - step * (2 * sine), second + step * (2 * cosine)]
