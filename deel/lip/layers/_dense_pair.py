"""Two dense layers with an activation between them, of one kernel."""

import math

import keras
import numpy as np
from keras import ops

from deel.lip._backend.variables import float32_at_least
from deel.lip._backend.variables import host
from deel.lip._numerics.activations import require_monotone
from deel.lip._register import register
from deel.lip._stock_only.kernels import with_weights
from deel.lip._validation import positive_float
from deel.lip._validation import positive_int

# The scales of the hidden units are from exp(-4) to exp(4): far from where a
# number, or the inverse of it, could be too large for any dtype.
_LARGEST_LOG = 4.0


@register("DensePair")
class DensePair(keras.layers.Dense):
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
            positive_int("units", units), activation=activation, **kwargs
        )
        require_monotone(self.activation)
        self.k_coef_lip = positive_float("k_coef_lip", k_coef_lip)

    def build(self, input_shape):
        *leading, channels = input_shape
        # A stands below B, in a kernel of one weight.
        super().build((*leading, channels + self.units))
        self.input_spec = keras.layers.InputSpec(
            min_ndim=2, axes={-1: channels}
        )
        # Half precision would round twice what cancels.
        self.psi = self.add_weight(
            name="psi",
            shape=(self.units,),
            initializer="zeros",
            autocast=False,
        )

    def factors(self):
        """What hidden units are multiplied by, before and after they are bent.

        Returns:
            Pair of tensors `(units,)`, as they are used.
        """
        psi = float32_at_least(self.psi)
        scales = ops.exp(_LARGEST_LOG * ops.tanh(psi / _LARGEST_LOG))
        root = math.sqrt(2.0)
        pair = root / scales, root / self.k_coef_lip * scales
        return tuple(ops.cast(x, self.compute_dtype) for x in pair)

    def call(self, inputs):
        before, after = self.factors()
        kernel = ops.convert_to_tensor(self.kernel)
        channels = kernel.shape[0] - self.units
        hidden = ops.matmul(inputs, kernel[:channels]) * before
        if self.bias is not None:
            hidden = ops.add(hidden, self.bias)
        hidden = self.activation(hidden) * after
        # The axes are named, for the ONNX exporter of PyTorch knows no `.T`.
        return ops.matmul(hidden, ops.transpose(kernel[channels:], (1, 0)))

    def _stock_call(self, inputs, convert):
        def dense(name, kernel, *bias, **arguments):
            layer = keras.layers.Dense(
                self.units,
                use_bias=bool(bias),
                name=f"{self.name}{name}",
                dtype=self.dtype_policy,
                **arguments,
            )
            return with_weights(layer, [kernel, *bias])

        # Both with the same norm as they are scaled, so that the kernel can
        # be put together again; see `deel.lip.certification.patterns`.
        before, after = (host(x).astype("float64") for x in self.factors())
        share = math.sqrt(2.0 / self.k_coef_lip)
        there, back = np.split(host(self.kernel), [-self.units])
        bias = [] if self.bias is None else [host(self.bias)]

        def first():
            activation = keras.activations.serialize(self.activation)
            return dense("", there * before, *bias, activation=activation)

        def second():
            return dense("_back", share * back.T)

        hidden = convert.once(self, first)(inputs)
        dtype = keras.backend.result_type(self.compute_dtype, "float32")
        hidden = hidden * (after / share).astype(dtype)
        return convert.once(self, second)(hidden)

    # Dense layers read and write a kernel and a bias, and nothing else.
    def save_own_variables(self, store):
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)

    def get_config(self):
        return {**super().get_config(), "k_coef_lip": self.k_coef_lip}
