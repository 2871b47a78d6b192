"""Dense layers whose hidden values are multiplied by positive numbers.

What `SandwichDense` is in stock Keras. The note of `deel.lip.layers.sandwich`
has the proof; the factors say how what the two kernels expand is shared.
"""

import keras
import numpy as np

from deel.lip._numerics.activations import MONOTONE
from deel.lip._numerics.activations import facts_of
from deel.lip.certification._nodes import constant_of
from deel.lip.certification._nodes import scaled_tensor
from deel.lip.certification._norms import matrix_norm
from deel.lip.certification._pieces import Piece
from deel.lip.certification._pieces import pattern
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import Later
from deel.lip.certification._registry import size_of
from deel.lip.certification._rounding import Chain
from deel.lip.certification._rounding import Step
from deel.lip.certification.rules._linear import between_matrices
from deel.lip.certification.rules._linear import of_matrix
from deel.lip.certification.rules._linear import sandwich_norm
from deel.lip.certification.rules._pulled import magnitudes
from deel.lip.certification.rules._steps import count_inexact
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules._steps import inference_kernel


@pattern(keras.layers.Dense)
def _sandwich(node, graph):
    """`f(x A + b) * c @ B`, with c > 0, if that says more than a product."""
    scaled = scaled_tensor(node.input_tensors[0], graph)
    if (
        scaled is None
        or node.operation.activation is not keras.activations.linear
    ):
        return None
    hidden, factors, scaled_by = scaled
    there = graph.layer_call(hidden, keras.layers.Dense)
    facts = facts_of(there.operation.activation) if there else None
    if facts is None or facts.name not in MONOTONE:
        return None
    # For each unit, not for each place along another axis.
    is_by_unit = factors.size in (1, *factors.shape[-1:])
    if not is_by_unit or not np.all(factors > 0):
        return None
    kernels = [inference_kernel(x.operation) for x in (there, node)]
    if not all(np.all(np.isfinite(x)) for x in (*kernels, factors)):
        return None
    first, second = kernels
    apart = np.max(factors) * matrix_norm(first)[0] * matrix_norm(second)[0]
    if sandwich_norm(first * np.ravel(factors), second) >= apart:
        return None
    nodes = [there, scaled_by, node]
    return Piece(nodes, there.input_tensors, node.outputs, _sandwich_rule)


def _sandwich_rule(piece, input_shapes, context):
    (shape,) = input_shapes
    there, _, back = piece.operations
    first, second = inference_kernel(there), inference_kernel(back)
    _, factors = magnitudes(piece, constant_of(piece.nodes[1]))
    factors = np.ravel(factors)
    value = sandwich_norm(first * factors, second)
    value *= (1 + half_unit(there)) ** 2

    def make():
        hidden = (*shape[:-1], first.shape[1])
        outputs = (*shape[:-1], second.shape[1])
        scaled = Step(
            float(np.max(factors)),
            2,
            entries=size_of(hidden),
            inexact=count_inexact(factors),
        )
        linear = of_matrix(second).step(back.bias, hidden, outputs)
        step = Chain(scaled, linear)
        return between_matrices(there, first, step, shape, 0, context)

    return Bound(value, "singular values", rounding=Later(make))
