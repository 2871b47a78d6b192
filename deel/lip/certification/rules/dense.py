"""Dense layers."""

import math

import keras
import numpy as np

from deel.lip import layers
from deel.lip.certification._norms import matrix_norm
from deel.lip.certification._norms import nonnegative_norm
from deel.lip.certification._registry import rule
from deel.lip.certification.rules._linear import activated
from deel.lip.certification.rules._steps import inference_kernel
from deel.lip.certification.rules.symmetric import symmetric_bound
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
    kernel = inference_kernel(layer)
    return activated(
        layer,
        decomposed(kernel),
        lambda: nonnegative_norm(np.abs(kernel)),
        kernel.shape[0],
        input_shapes[0],
        context,
    )


def decomposed(matrices):
    norm, exact = matrix_norm(matrices)
    return norm, "singular values" if exact else "Cholesky", exact


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
    return activated(
        layer,
        decomposed(stack),
        lambda: nonnegative_norm(np.abs(stack)),
        rows,
        input_shapes[0],
        context,
    )


@rule(layers.SLLDense, unconstrained.ResidualDense)
def _residual_dense(layer, input_shapes, context):
    kernel = inference_kernel(layer)
    return symmetric_bound(
        layer,
        decomposed(kernel),
        lambda: nonnegative_norm(np.abs(kernel)),
        kernel.shape[0],
        kernel.shape[1],
        input_shapes[0],
        context,
    )
