"""Dense layers."""

import math

import keras
import numpy as np

from deel.lip import layers
from deel.lip.certification._registry import rule
from deel.lip.certification.rules._linear import activated
from deel.lip.certification.rules._linear import of_matrix
from deel.lip.certification.rules._linear import paired
from deel.lip.certification.rules._linear import symmetric
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


@rule(layers.SandwichDense, unconstrained.DensePair)
def _dense_pair(layer, input_shapes, context):
    (shape,) = input_shapes
    hidden = (*shape[:-1], layer.units)
    return paired(layer, of_matrix, shape, hidden, context)
