"""What rules share: weights as they are used, and the steps of layers."""

import math

import keras
import numpy as np
from keras import ops

from deel.lip._backend.variables import host
from deel.lip._constrained import ConstrainedKernel
from deel.lip.certification._registry import Later
from deel.lip.certification._registry import output_shapes
from deel.lip.certification._registry import size_of
from deel.lip.certification._rounding import Step


def step_of(layer, input_shapes, constant, terms, offset=0.0, **kwargs):
    """The step of a layer that is no product.

    Args:
        layer: The layer.
        input_shapes: List of tuples.
        constant: Float.
        terms: Integer.
        offset: Float, or function without arguments that returns one.
        **kwargs: As of `Step`.
    """

    def make():
        shapes = [*input_shapes, *output_shapes(layer, input_shapes)]
        return Step(
            constant,
            terms,
            offset=offset() if callable(offset) else offset,
            entries=max(size_of(shape) for shape in shapes),
            **kwargs,
        )

    return Later(make)


def spread_norm(values, shape, factors=1.0):
    """Norm of values that are broadcast to a shape, a function to call later.

    Args:
        values: Variable or array, or None for nothing.
        shape: Tuple, with the batch axis.
        factors: Float or array that multiplies the values.
    """

    def norm():
        if values is None:
            return 0.0
        array = np.asarray(host(values), "float64") * factors
        norm = np.linalg.norm(array) * math.sqrt(size_of(shape) / array.size)
        # Some backends read a float64 array as float32.
        return float(norm) * (1 + 1e-6)

    return norm


def count_inexact(*constants):
    """How many constants are other numbers in float32; see `Step`."""
    arrays = [np.asarray(x, "float64") for x in constants]
    return sum(bool(np.any(x != x.astype("float32"))) for x in arrays)


def half_unit(layer):
    """The rounding unit of a layer in half precision, 0 for any other."""
    dtype = layer.compute_dtype
    units = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
    return units.get(dtype, 0.0)


def as_used(layer, weight):
    """A weight as the inference of a layer uses it, in float64."""
    policy = keras.dtype_policies.QuantizedDTypePolicy
    if isinstance(layer.dtype_policy, policy):
        raise ValueError(
            "Quantized layers have no bound. "
            f"Received: layer '{layer.name}' with {layer.dtype_policy}"
        )
    # Half precision rounds, which can make a norm larger.
    weight = ops.cast(ops.convert_to_tensor(weight), layer.compute_dtype)
    return host(weight).astype("float64")


def magnitude(layer, value):
    """Magnitude of constants as a layer uses them, which may round them up."""
    rounded = ops.convert_to_tensor(value, dtype=layer.compute_dtype)
    rounded = host(rounded).astype("float64")
    return float(max(np.max(np.abs(value)), np.max(np.abs(rounded))))


def inference_kernel(layer):
    """The kernel of inference, in float64: `wbar` where there is one."""
    if isinstance(layer, ConstrainedKernel):
        layer.wbar.require_sound(layer.name)
        # What runs, where a write to the variable was not seen.
        return as_used(layer, layer.wbar.proven())
    return as_used(layer, layer.kernel)


# Roundings behind what a layer does besides sums: constants that it makes, such
# as roots and reciprocals, and products with them.
FACTORS = 16


def copied(layer, input_shapes, constant=1.0):
    """The step of a layer that only copies and compares."""
    return step_of(layer, input_shapes, constant, 0)
