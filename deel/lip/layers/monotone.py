"""Functions that are monotone in some of their inputs.

Note [Monotone and Lipschitz]

Let g be b-Lipschitz with m outputs, and `f(x) = g(x) + a (s . x)`, where s has
n entries of -1 or 1 and zeros, and the same number is added to each output.

Moving x_i by t > 0 moves each output of g by b t at most, so those of f by at
least `(a - b) t` where s_i = 1, and by at most `-(a - b) t` where s_i = -1.
With a > b they increase, or decrease.

The matrix of what is added has m equal rows `a s^T`: its norm is
`a sqrt(m n)`, and f has the constant `b + a sqrt(m n)`. No smaller one holds
for every g: `g(x) = b (s . x) / sqrt(m n)`, the same for each output, reaches
it. The layer divides by it, which changes no sign.
"""

import math
import numbers

import keras
import numpy as np
from keras import ops

from deel.lip._backend.tensors import scaled
from deel.lip._backend.variables import float32_at_least
from deel.lip._register import register
from deel.lip._stock_only.kernels import with_weights
from deel.lip.layers._branched import Branched

# By how much the slope exceeds the constant of the branch, in relative terms.
# A kernel in float32 may exceed its promise by 1e-5, a hundred of them by this.
_MARGIN = 1e-3


@register("Monotone")
class Monotone(Branched):
    """A function that increases, or decreases, in the inputs that you name.

    `f(x) = c (g(x) + a sum_i s_i x_i)`, where g is the branch, any network of
    constant b, a is 0.1% more than b, and s are the directions. Each output
    increases in the inputs of direction 1, decreases in those of direction -1,
    and does as it likes in the others, whatever g learns. The factor c makes
    the whole `k_coef_lip`-Lipschitz: with n directions that are not 0 and m
    outputs, `c = k_coef_lip / (b + a sqrt(m n))`.

    For knowledge about a table: a risk that does not fall with the debt, a
    price that does not fall with the area. The layer takes the inputs
    themselves. What stands behind it has to increase as well, such as `sigmoid`
    or another `Monotone` with directions of 1.

    This holds for the function of real numbers. In floating point, outputs are
    rounded, so two of them may be equal, or out of order in their last digits,
    where inputs are nearly equal. In half precision, rounded kernels may exceed
    the constant by more than 0.1%: use float32. `lipschitz_bound(layer.layer)`
    proves the constant of the branch from its weights, to be compared with
    `layer.slope`. A model that `vanilla_export` returns is as it was trained;
    trained further, without constraints, it need not stay monotone.

    Args:
        layer: The branch: a layer or model with a constant `k_coef_lip`, or any
            other one with `k_branch`, for which you vouch.
        directions: Sequence of -1, 0 and 1, one for each input.
        k_coef_lip: Float, the Lipschitz constant of the whole.
        k_branch: Float, as of `PrescaledResidual`.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Attributes:
        slope: Float, what is added for each unit of an input of direction 1,
            before all is multiplied by c.

    Input shape:
        Tensor `(batch_size, inputs)`.

    Output shape:
        Tensor `(batch_size, outputs)`, that of the branch.

    Raises:
        ValueError: As for `PrescaledResidual`, but for the shape; if a
            direction is another number, or their number is not that of the
            inputs; or if input or output are no vectors.

    Example:

    >>> import numpy as np
    >>> from deel.lip.activations import GroupSort2
    >>> from deel.lip.layers import FrobeniusDense, Monotone, SpectralDense
    >>> from deel.lip.model import Sequential
    >>> branch = Sequential(
    ...     [SpectralDense(16, activation=GroupSort2()), FrobeniusDense(1)]
    ... )
    >>> price = Monotone(branch, directions=[1, 0, -1])  # Area, floor, noise.
    >>> x = np.array([[0.0, 0.5, 1.0], [1.0, 0.5, 1.0], [1.0, 0.5, 0.0]])
    >>> low, high, higher = price(x)[:, 0]
    >>> bool(low < high < higher)
    True

    Reference:
        - [Kitouni et al., 2023](https://arxiv.org/abs/2307.07512), "Expressive
          monotonic neural networks".
    """

    _outputs = None

    def __init__(
        self, layer, directions, k_coef_lip=1.0, k_branch=None, **kwargs
    ):
        super().__init__(
            layer, k_coef_lip=k_coef_lip, k_branch=k_branch, **kwargs
        )
        self.directions = _checked(directions)

    @property
    def slope(self):
        return (1.0 + _MARGIN) * self._branch_constant()

    def _compute_lip_coef(self, input_shape=None):
        # It depends on the number of outputs.
        return None if self._outputs is None else super()._compute_lip_coef()

    def joined_constant(self, k_branch):
        count = self._outputs * np.count_nonzero(self.directions)
        return k_branch + self.slope * math.sqrt(count)

    def weights_of_inputs(self):
        """What each input is multiplied by, an array."""
        return self._get_coef() * self.slope * np.array(self.directions, float)

    def branch_shape(self, input_shape):
        if len(input_shape) != 2 or input_shape[-1] != len(self.directions):
            raise ValueError(
                "Monotone takes vectors, with a direction for each value. "
                f"Expected inputs of shape (None, {len(self.directions)}). "
                f"Received: input_shape={tuple(input_shape)}, "
                f"directions={self.directions}"
            )
        return tuple(input_shape)

    def check_outputs(self, shape, outputs):
        if len(outputs) != 1 or len(outputs[0]) != 2 or outputs[0][-1] is None:
            raise ValueError(
                "The branch of Monotone must return a vector of known length "
                f"for each sample. Received: layer={self.layer}, with outputs "
                f"of shapes {outputs}"
            )
        self._outputs = outputs[0][-1]

    def compute_output_shape(self, input_shape):
        shape = self.branch_shape(input_shape)
        return tuple(self.layer.compute_output_shape(shape))

    def _joined(self, inputs, branch):
        x, y = float32_at_least(inputs), float32_at_least(branch(inputs))
        weights = ops.convert_to_tensor(self.weights_of_inputs(), dtype=x.dtype)
        directed = ops.sum(x * weights, axis=-1, keepdims=True)
        joined = scaled(y, self._get_coef()) + directed
        return ops.cast(joined, self.compute_dtype)

    def _stock_call(self, inputs, convert):
        def make():
            layer = keras.layers.Dense(
                self._outputs,
                use_bias=False,
                name=f"{self.name}_directions",
                dtype=self.dtype_policy,
            )
            column = self.weights_of_inputs()[:, None]
            return with_weights(layer, [np.repeat(column, self._outputs, 1)])

        directed = convert.once(self, make)(inputs)
        return scaled(convert(self.layer)(inputs), self._get_coef()) + directed

    def own_config(self):
        return {**super().own_config(), "directions": list(self.directions)}


def _checked(directions):
    """The directions as a list of integers, or the ValueError."""
    values = np.ravel(directions).tolist() if np.ndim(directions) == 1 else []
    is_sound = all(
        isinstance(x, numbers.Real)
        and not isinstance(x, bool)
        and x in (-1, 0, 1)
        for x in values
    )
    if not values or not is_sound:
        raise ValueError(
            "Argument `directions` must be a sequence of -1, 0 and 1, one for "
            f"each input. Received: directions={directions}"
        )
    return [int(x) for x in values]
