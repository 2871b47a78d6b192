"""Dense layers."""

import dataclasses
import math

import keras
import numpy as np

from deel.lip import layers
from deel.lip._backend.variables import host
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import Later
from deel.lip.certification._registry import rule
from deel.lip.certification._rounding import ELEMENTARY
from deel.lip.certification.rules._linear import activated
from deel.lip.certification.rules._linear import between_matrices
from deel.lip.certification.rules._linear import of_matrix
from deel.lip.certification.rules._linear import sandwich_norm
from deel.lip.certification.rules._linear import symmetric
from deel.lip.certification.rules._steps import FACTORS
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules._steps import inference_kernel
from deel.lip.layers import unconstrained

# Dense layers, which may be the last one; see `final_dense`.
DENSE = (
    keras.layers.Dense,
    layers.AOLDense,
    layers.FrobeniusDense,
    layers.OrthogonalDense,
    layers.SpectralDense,
)


@rule(*DENSE)
def _dense(layer, input_shapes, context):
    linear = of_matrix(inference_kernel(layer))
    return activated(layer, linear, input_shapes[0], context)


@rule(keras.layers.EinsumDense)
def _einsum_dense(layer, input_shapes, context):
    operands, output = layer.equation.replace(" ", "").split("->")
    inputs, kernel = operands.replace("...", "").split(",")
    output = output.replace("...", "")
    summed = [c for c in kernel if c in inputs and c not in output]
    free = [c for c in kernel if c not in inputs]
    common = [c for c in kernel if c in inputs and c in output]
    is_matrix = all(
        len(set(labels)) == len(labels) for labels in (inputs, kernel, output)
    ) and set(output) == (set(inputs) - set(summed)) | set(free)
    if not is_matrix:
        raise ValueError(
            f"Layer '{layer.name}' is not a matrix product: each index must "
            "be summed in both operands, or be kept. "
            f"Received: equation={layer.equation}"
        )
    order = [kernel.index(c) for c in (*common, *summed, *free)]
    values = np.transpose(inference_kernel(layer), order)
    shape = values.shape
    blocks = math.prod(shape[: len(common)])
    rows = math.prod(shape[len(common) : len(common) + len(summed)])
    stack = values.reshape(blocks, rows, -1)
    return activated(layer, of_matrix(stack), input_shapes[0], context)


@rule(layers.SLLDense, unconstrained.ResidualDense)
def _residual_dense(layer, input_shapes, context):
    kernel = inference_kernel(layer)
    linear, hidden = of_matrix(kernel), kernel.shape[1]
    return symmetric(layer, linear, hidden, input_shapes[0], context)


# Roundings behind `exp(4 tanh(psi / 4))`: a hyperbolic tangent of a number that
# is not large, four times; an exponential of one up to four.
_OF_SCALES = FACTORS + (4 * 2 + 5) * ELEMENTARY


@rule(layers.SandwichDense, unconstrained.DensePair)
def _dense_pair(layer, input_shapes, context):
    (shape,) = input_shapes
    kernel = inference_kernel(layer)
    before, after = (host(x).astype("float64") for x in layer.factors())
    # Only products of the two count; see the note of the layer.
    there, back = np.split(kernel * np.sqrt(before * after), [-layer.units])
    value = sandwich_norm(there, back.T)
    value *= (1 + half_unit(layer)) ** 2

    def make():
        first, second = np.split(kernel, [-layer.units])
        hidden = (*shape[:-1], layer.units)
        linear = of_matrix(after[:, None] * second.T)
        terms = linear.terms + _OF_SCALES
        step = linear.step(None, hidden, hidden, terms)
        # Roots of two are other numbers in float32.
        step = dataclasses.replace(step, inexact=2)
        return between_matrices(
            layer, first * before, step, shape, _OF_SCALES, context
        )

    return Bound(value, "singular values", rounding=Later(make))
