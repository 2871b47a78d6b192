"""Residual blocks whose step is symmetric.

Note [Symmetric steps]

`k x - W g(V x + b)`, slopes of g from 0 to 1, with `W = c V^T + E`: the
Jacobian is `k I - c V^T D V - E D V`. What comes before E is symmetric, with
eigenvalues from `k - c ||V||^2` to k. So the norm is at most
`max(k, c ||V||^2 - k) + ||E|| ||V||`.
"""

import keras
import numpy as np

from deel.lip._numerics.activations import MONOTONE
from deel.lip._numerics.activations import facts_of
from deel.lip.certification._nodes import constant_of
from deel.lip.certification._nodes import is_tensor
from deel.lip.certification._nodes import operands
from deel.lip.certification._nodes import with_constant
from deel.lip.certification._pieces import Piece
from deel.lip.certification._pieces import pattern
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import Later
from deel.lip.certification._registry import size_of
from deel.lip.certification.rules._linear import LinearMap
from deel.lip.certification.rules._linear import of_convolution
from deel.lip.certification.rules._linear import of_matrix
from deel.lip.certification.rules._linear import scaling
from deel.lip.certification.rules._linear import stepped
from deel.lip.certification.rules._pulled import magnitudes
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules._steps import inference_kernel
from deel.lip.certification.rules.convolutions import axes_of
from deel.lip.certification.rules.convolutions import keeps_images

_RESIDUAL = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D)


@pattern("Subtract")
def _symmetric_step(node, graph):
    """`k x - W g(V x + b)` with W near to a multiple of the adjoint of V."""
    passed, step = operands(node)
    if not is_tensor(passed) or not is_tensor(step):
        return None
    back = graph.layer_call(step, *_RESIDUAL)
    there = back and graph.layer_call(back.input_tensors[0], *_RESIDUAL)
    if there is None or _adjoint(there.operation, back.operation) is None:
        return None
    (x,) = there.input_tensors
    nodes = [there, back, node]
    if passed is not x:
        passed, factor, scaled_by = with_constant(passed, graph, "Multiply")
        if passed is not x or factor <= 0:
            return None
        nodes.insert(0, scaled_by)
    return Piece(nodes, [x], node.outputs, _symmetric_step_rule)


def _adjoint(there, back):
    """The kernel of a layer, and that of the other one as one of its adjoint.

    None where the one is not nearly a multiple of the adjoint of the other.
    """
    if type(there) is not type(back):
        return None
    if back.activation is not keras.activations.linear:
        return None
    facts = facts_of(there.activation)
    if facts is None or facts.name not in MONOTONE:
        return None
    is_dense = isinstance(there, keras.layers.Dense)
    if not is_dense and not keeps_images(there, back):
        return None
    first, second = inference_kernel(there), inference_kernel(back)
    taps = tuple(range(first.ndim - 2))
    second = np.swapaxes(np.flip(second, taps), -1, -2)
    if first.shape != second.shape or not np.any(first):
        return None
    unit = np.max(np.abs(first))
    factor = np.sum(first / unit * second) / np.sum((first / unit) ** 2) / unit
    rest = second - factor * first
    is_near = np.linalg.norm(rest) <= 1e-3 * np.linalg.norm(second)
    if not np.isfinite(factor) or factor <= 0 or not is_near:
        return None
    return first, factor, rest


def _symmetric_step_rule(piece, input_shapes, context):
    (shape,) = input_shapes
    there, back, _ = piece.operations[-3:]
    kernel, factor, rest = _adjoint(there, back)
    k = least = 1.0
    if len(piece.nodes) == 4:
        least, k = magnitudes(piece, constant_of(piece.nodes[0]))
        least, k = float(least.flat[0]), float(k.flat[0])

    def linear_of(values):
        if isinstance(there, keras.layers.Dense):
            return of_matrix(values)
        axes = axes_of(there, shape, "same")
        return of_convolution(values[..., None, :, :], axes)

    linear, others = linear_of(kernel), linear_of(rest)
    # What `rest` loses to the rounding of a float64 difference.
    lost = 4 * float(np.finfo("float64").eps) * factor * linear.magnified()
    value = max(k, factor * linear.norm**2 - least)
    value += (others.norm + lost) * linear.norm
    value *= (1 + 1e-12) * (1 + half_unit(there)) ** 2

    def make():
        hidden = tuple(there.compute_output_shape(shape))
        way_back = LinearMap(
            factor * linear.norm + others.norm + lost,
            "",
            False,
            lambda: factor * linear.magnified() + others.magnified() + lost,
            inference_kernel(back)[..., 0].size,
        )
        return stepped(
            there,
            linear,
            scaling(k, 2 if k != 1.0 else 0, size_of(shape)),
            way_back.step(back.bias, hidden, shape),
            shape,
            hidden,
            context,
        )

    return Bound(value, linear.method, rounding=Later(make))
