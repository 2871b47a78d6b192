"""Optimizers, for kernels whose norm is known. Any of Keras works as well.

Note [Steps of one length in all directions]

The norm of a kernel that is constrained to be orthogonal is its largest
singular value. Of all steps whose largest singular value is r, the one along
which a loss with the gradient G falls most, to first order, is `-r U V^T`,
where `G = U S V^T` is its singular value decomposition: the product of G with
any step of that norm is at most r times the sum of the singular values of G,
and this one reaches it. It moves all singular vectors alike, also those in
which the gradient is small. Adam divides each entry by its own size, which
means something for a table of numbers and nothing for a rotation.

`U V^T` is found nearly, by polynomials of odd degree, since nothing depends on
it being exact: the constraint follows each step.

References:
    - Jordan et al., "Muon: an optimizer for hidden layers in neural networks",
      2024 (https://kellerjordan.github.io/posts/muon), which has the
      polynomial.
    - Bernstein and Newhouse, "Old optimizer, new norm: an anthology", 2024
      (arXiv:2409.20325), who prove what is the steepest step.
    - Liu et al., "Muon is scalable for LLM training", 2025 (arXiv:2502.16982),
      by whom the length of a step is like those of Adam.
"""

import math

import keras
from keras import ops

from deel.lip._backend.retraction import AfterUpdate
from deel.lip._register import register
from deel.lip._validation import positive_float
from deel.lip._validation import positive_int

__all__ = ["Muon"]


def __dir__():
    return __all__


# Coefficients of `a s + b s^3 + c s^5`, steep at zero and never far from one.
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)


@register("Muon")
class Muon(keras.optimizers.Adam):
    """Muon for constrained kernels, and Adam for all else.

    A step moves a constrained kernel by the same length in all directions, a
    nearly orthogonal matrix along the average of gradients. With it, networks
    of this library learn more in the same time than with Adam. Biases, the
    kernels of layers without a constraint, and those of which each unit has a
    norm of its own (`FrobeniusDense`, the usual last layer), are left to Adam.

    `keras.optimizers.Muon` is the same for dense layers, if the last one is
    excluded by its name and weight decay is turned off; convolutions it leaves
    to Adam. Here all axes of a kernel but the last are rows of its matrix, as
    they are for the constraint.

    Rates are larger than usual: from 0.03 to 0.1, with a schedule that lets
    them fall to zero, and large batches.

    Args:
        learning_rate: Float, schedule, or function without arguments: see
            `keras.optimizers.Adam`. A step of a kernel of shape `(n, m)` has
            singular values near `0.2 * sqrt(max(n, m))` times that.
        momentum: Float from 0 to 1, the decay of the average of gradients of
            constrained kernels.
        nesterov: Boolean, whether the gradient counts once more than in the
            average.
        ns_steps: Positive integer, steps towards equal singular values.
        adam_lr_ratio: Float, the rate of Adam over `learning_rate`.
        **kwargs: What else `keras.optimizers.Adam` takes.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import SpectralDense
    >>> from deel.lip.optimizers import Muon
    >>> model = keras.Sequential([keras.Input((4,)), SpectralDense(4)])
    >>> schedule = keras.optimizers.schedules.CosineDecay(0.1, 50)
    >>> model.compile(Muon(schedule), "mse")
    >>> x = np.eye(4)
    >>> losses = model.fit(x, x[::-1], epochs=50, verbose=0).history["loss"]
    >>> bool(losses[-1] < losses[0])
    True

    Reference:
        - [Jordan et al., 2024](https://kellerjordan.github.io/posts/muon),
          "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(
        self,
        learning_rate=0.05,
        momentum=0.95,
        nesterov=True,
        ns_steps=3,
        adam_lr_ratio=1.0,
        name="muon",
        **kwargs,
    ):
        super().__init__(learning_rate, name=name, **kwargs)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(
                "Argument `momentum` must be in [0, 1[. "
                f"Received: momentum={momentum}"
            )
        self.momentum = momentum
        self.nesterov = nesterov
        self.ns_steps = positive_int("ns_steps", ns_steps)
        self.adam_lr_ratio = positive_float("adam_lr_ratio", adam_lr_ratio)

    def build(self, variables):
        if not self.built:
            # Here, for updates see variables of the backend.
            self._turns = [_is_matrix(variable) for variable in variables]
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        if not self._turns[index]:
            rate = learning_rate * self.adam_lr_ratio
            super().update_step(gradient, variable, rate)
            return
        gradient = ops.cast(gradient, variable.dtype)
        average = self._momentums[index]
        self.assign_add(average, gradient + (self.momentum - 1.0) * average)
        if self.nesterov:
            gradient = gradient + self.momentum * average
        else:
            gradient = ops.convert_to_tensor(average)
        matrix = ops.reshape(gradient, (-1, gradient.shape[-1]))
        length = 0.2 * math.sqrt(max(matrix.shape))
        step = (
            ops.cast(learning_rate, variable.dtype)
            * length
            * self._factor(matrix)
        )
        self.assign_sub(variable, ops.reshape(step, variable.shape))

    def _factor(self, matrix):
        """A matrix with those singular vectors and nearly equal values."""
        is_wide = matrix.shape[0] < matrix.shape[1]
        x = ops.transpose(matrix) if is_wide else matrix
        # First the largest entry: squares of tiny ones are zero.
        largest = ops.max(ops.abs(x))
        x = x / ops.where(largest > 0, largest, 1.0)
        x = x / ops.maximum(ops.sqrt(ops.sum(ops.square(x))), 1.0)
        a, b, c = _POLYNOMIAL
        for _ in range(self.ns_steps):
            gram = ops.matmul(ops.transpose(x), x)
            x = a * x + ops.matmul(x, b * gram + c * ops.matmul(gram, gram))
        return ops.transpose(x) if is_wide else x

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "ns_steps": self.ns_steps,
            "adam_lr_ratio": self.adam_lr_ratio,
        }


def _is_matrix(variable):
    constraint = variable.constraint
    return (
        isinstance(constraint, AfterUpdate)
        and constraint.bounds_matrix
        and len(variable.shape) > 1
    )
