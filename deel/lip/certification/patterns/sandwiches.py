"""Linear layers whose hidden values are multiplied by positive numbers.

What `SandwichDense` and `SandwichConv2D` are in stock Keras. The note of
`deel.lip.layers.sandwich` has the proof; the factors say how what the two
kernels expand is shared.
"""

import functools

import keras
import numpy as np

from deel.lip._numerics.activations import MONOTONE
from deel.lip._numerics.activations import facts_of
from deel.lip.certification._nodes import constant_of
from deel.lip.certification._nodes import scaled_tensor
from deel.lip.certification._pieces import Piece
from deel.lip.certification._pieces import pattern
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import Later
from deel.lip.certification._registry import size_of
from deel.lip.certification._rounding import Chain
from deel.lip.certification._rounding import Step
from deel.lip.certification.rules._linear import between
from deel.lip.certification.rules._linear import of_convolution
from deel.lip.certification.rules._linear import of_matrix
from deel.lip.certification.rules._linear import sandwich_norm
from deel.lip.certification.rules._pulled import magnitudes
from deel.lip.certification.rules._steps import count_inexact
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules._steps import inference_kernel
from deel.lip.certification.rules.convolutions import axes_of
from deel.lip.certification.rules.convolutions import keeps_images


@pattern(keras.layers.Dense, keras.layers.Conv2D)
def _sandwich(node, graph):
    """`B f(A x + b) * c`, with c > 0, if that says more than a product."""
    back = node.operation
    scaled = scaled_tensor(node.input_tensors[0], graph)
    if scaled is None or back.activation is not keras.activations.linear:
        return None
    hidden, factors, scaled_by = scaled
    there = graph.layer_call(hidden, type(back))
    facts = facts_of(there.operation.activation) if there else None
    if facts is None or facts.name not in MONOTONE:
        return None
    layers = there.operation, back
    if not isinstance(back, keras.layers.Dense) and not keeps_images(*layers):
        return None
    # For each unit, not for each place along another axis.
    factors = _by_unit(factors, back, len(hidden.shape))
    if factors is None or not np.all(factors > 0):
        return None
    first, second = _kernels(*layers)
    if first.shape[:-2] != second.shape[:-2]:
        return None
    if not all(np.all(np.isfinite(x)) for x in (first, second, factors)):
        return None
    (x,) = there.input_tensors
    map_of = functools.partial(_map_of, layer=back, shape=tuple(x.shape))
    apart = np.max(factors) * map_of(first).norm * map_of(second).norm
    if sandwich_norm(first * factors, second, map_of)[0] >= apart:
        return None
    nodes = [there, scaled_by, node]
    return Piece(nodes, there.input_tensors, node.outputs, _sandwich_rule)


def _by_unit(factors, back, rank):
    """The factors as a vector, or one number; None where they are neither."""
    shape = [1] * (rank - factors.ndim) + list(factors.shape)
    if getattr(back, "data_format", None) == "channels_first":
        shape = [shape[i] for i in (0, 2, 3, 1)]
    return np.ravel(factors) if factors.size in (1, shape[-1]) else None


def _kernels(there, back):
    """That of a layer, and that of the adjoint of the layer behind it."""
    first, second = inference_kernel(there), inference_kernel(back)
    taps = tuple(range(second.ndim - 2))
    return first, np.swapaxes(np.flip(second, taps), -1, -2)


def _map_of(kernel, layer, shape):
    if isinstance(layer, keras.layers.Dense):
        return of_matrix(kernel)
    return of_convolution(
        kernel[..., None, :, :], axes_of(layer, shape, "same")
    )


def _sandwich_rule(piece, input_shapes, context):
    (shape,) = input_shapes
    there, _, back = piece.operations
    first, second = _kernels(there, back)
    _, factors = magnitudes(piece, constant_of(piece.nodes[1]))
    factors = np.ravel(factors)
    map_of = functools.partial(_map_of, layer=back, shape=shape)
    value, method = sandwich_norm(first * factors, second, map_of)
    value *= (1 + half_unit(there)) ** 2

    def make():
        hidden = tuple(there.compute_output_shape(shape))
        outputs = tuple(back.compute_output_shape(hidden))
        scaled = Step(
            float(np.max(factors)),
            2,
            entries=size_of(hidden),
            inexact=count_inexact(factors),
        )
        terms = second[..., 0, :].size
        linear = map_of(second).step(back.bias, hidden, outputs, terms)
        step = Chain(scaled, linear)
        return between(there, map_of(first), step, shape, hidden, context)

    return Bound(value, method, rounding=Later(make))
