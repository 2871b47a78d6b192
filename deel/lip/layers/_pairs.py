"""Two linear layers with an activation between them, of one kernel."""

import math

import keras
import numpy as np
from keras import ops

from deel.lip._backend.variables import float32_at_least
from deel.lip._backend.variables import host
from deel.lip._register import register
from deel.lip.layers._both_ways import ConvBothWays
from deel.lip.layers._both_ways import DenseBothWays

# The scales of the hidden units are from exp(-4) to exp(4): far from where a
# number, or the inverse of it, could be too large for any dtype.
_LARGEST_LOG = 4.0


class _Pair:
    """Mixin: the stock layer of B, its activation, and the adjoint of A.

    The kernel has what A reads below what B reads, on the axis before the last.
    """

    def build(self, input_shape):
        axis = self._channel_axis
        joint = list(input_shape)
        channels = joint[axis]
        joint[axis] += self._width
        super().build(tuple(joint))
        self.input_spec = keras.layers.InputSpec(
            min_ndim=self.input_spec.min_ndim, axes={axis: channels}
        )
        # Half precision would round twice what cancels.
        self.psi = self.add_weight(
            name="psi",
            shape=(self._width,),
            initializer="zeros",
            autocast=False,
        )

    def factors(self):
        """What hidden units are multiplied by, before and after they are bent.

        Returns:
            Pair of tensors, with a number for each unit, as they are used.
        """
        psi = float32_at_least(self.psi)
        scales = ops.exp(_LARGEST_LOG * ops.tanh(psi / _LARGEST_LOG))
        root = math.sqrt(2.0)
        pair = root / scales, root / self.k_coef_lip * scales
        return tuple(ops.cast(x, self.compute_dtype) for x in pair)

    def call(self, inputs):
        before, after = map(self._per_channel, self.factors())
        kernel = ops.convert_to_tensor(self.kernel)
        channels = kernel.shape[-2] - kernel.shape[-1]
        there, back = kernel[..., :channels, :], kernel[..., channels:, :]
        hidden = self._linear(inputs, there) * before
        if self.bias is not None:
            hidden = ops.add(hidden, self._per_channel(self.bias))
        hidden = self.activation(hidden) * after
        return self._adjoint(hidden, back)

    def _stock_call(self, inputs, convert):
        # Both with the same norm as they are scaled, so that the kernel can
        # be put together again; see `deel.lip.certification.patterns`.
        before, after = (host(x).astype("float64") for x in self.factors())
        share = math.sqrt(2.0 / self.k_coef_lip)
        kernel = host(self.kernel)
        there, back = np.split(kernel, [-kernel.shape[-1]], axis=-2)
        bias = [] if self.bias is None else [host(self.bias)]

        def first():
            activation = keras.activations.serialize(self.activation)
            scaled = there * before
            return self._stock_layer("", scaled, *bias, activation=activation)

        def second():
            adjoint = share * self._adjoint_kernel(back)
            return self._stock_layer("_back", adjoint)

        hidden = convert.once(self, first)(inputs)
        dtype = keras.backend.result_type(self.compute_dtype, "float32")
        hidden = hidden * self._per_channel((after / share).astype(dtype))
        return convert.once(self, second)(hidden)

    # Stock layers read and write a kernel and a bias, and nothing else.
    def save_own_variables(self, store):
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)


@register("DensePair")
class DensePair(_Pair, DenseBothWays, keras.layers.Dense):
    """`act(x B * sqrt(2) / p + b) * sqrt(2) p / k @ A`; no constraint.

    What `SandwichDense` is exported to. The kernel is B, with the transpose of
    A below it. It is k-Lipschitz if the kernel has norm k or less; see there,
    also for the shapes. The scales p, one for each hidden unit, are
    `exp(4 tanh(psi / 4))` of a trained vector `psi`.

    Args:
        units: Positive integer, the number of hidden units, and of outputs.
        activation: Activation function with slopes from 0 to 1.
        k_coef_lip: Float, the factor k.
        **kwargs: What else `keras.layers.Dense` takes.

    Raises:
        ValueError: If the activation or `k_coef_lip` is out of its range.
    """

    def __init__(self, units, activation="relu", k_coef_lip=1.0, **kwargs):
        super().__init__(
            units, activation=activation, k_coef_lip=k_coef_lip, **kwargs
        )


@register("ConvPair2D")
class ConvPair2D(_Pair, ConvBothWays, keras.layers.Conv2D):
    """`convA^T(act(convB(x) * sqrt(2) / p + b) * sqrt(2) p / k)`.

    What `SandwichConv2D` is exported to; no constraint. It is k-Lipschitz if
    the convolution of both kernels together has norm k or less; see there, also
    for the shapes, and `DensePair` for the scales p.

    Args:
        filters: Positive integer, the number of hidden channels, and of output
            channels.
        kernel_size: Odd integer or pair of odd integers, the window.
        activation: Activation function with slopes from 0 to 1.
        k_coef_lip: Float, the factor k.
        **kwargs: What else `keras.layers.Conv2D` takes, but for what changes
            the image size.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self, filters, kernel_size, activation="relu", k_coef_lip=1.0, **kwargs
    ):
        super().__init__(
            filters,
            kernel_size,
            activation=activation,
            k_coef_lip=k_coef_lip,
            **kwargs,
        )
