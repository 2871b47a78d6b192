"""Residual connections that keep the Lipschitz constant."""

import keras
from keras import ops

from deel.lip._backend.variables import host
from deel.lip._lipschitz import KnownConstant
from deel.lip._register import register


@register("LipResidual")
class LipResidual(KnownConstant, keras.layers.Layer):
    """Learned average of two branches: `w * x + (1 - w) * y`.

    The sum of two 1-Lipschitz branches, as in a residual network, can be
    2-Lipschitz. This is 1-Lipschitz if both branches are, whatever the weight
    `w = sigmoid(alpha)`, with one trained scalar `alpha` that starts at 0.

    Args:
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        List of two tensors of the same shape.

    Output shape:
        The shape of the inputs.

    Raises:
        ValueError: If the input is not a list of two tensors of one shape.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import LipResidual
    >>> x, y = np.array([[1., 2.]]), np.array([[3., 0.]])
    >>> print(keras.ops.convert_to_numpy(LipResidual()([x, y])))
    [[2. 1.]]
    """

    def build(self, input_shape):
        _check_pair(input_shape)
        self.alpha = self.add_weight(
            name="alpha", shape=(), initializer="zeros"
        )

    def call(self, inputs):
        x, y = inputs
        weight = ops.sigmoid(ops.convert_to_tensor(self.alpha))
        return weight * x + (1 - weight) * y

    def _stock_call(self, inputs, convert):
        x, y = inputs
        weight = float(host(ops.sigmoid(ops.convert_to_tensor(self.alpha))))
        return x * weight + y * (1 - weight)

    def _whole_constant(self):
        return 1.0

    def compute_output_shape(self, input_shape):
        _check_pair(input_shape)
        return tuple(input_shape[0])


def _check_pair(shapes):
    is_pair = len(shapes) == 2 and all(
        isinstance(shape, (tuple, list)) for shape in shapes
    )
    if not is_pair or not _agree(*shapes):
        raise ValueError(
            "LipResidual joins two branches. Expected a list of two tensors of "
            f"the same shape. Received: input_shape={shapes}"
        )


def _agree(first, second):
    """Whether two shapes are equal where both are known."""
    return len(first) == len(second) and all(
        a == b or None in (a, b) for a, b in zip(first, second, strict=True)
    )
