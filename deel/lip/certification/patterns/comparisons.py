"""Maxima and minima, of which several together move no more than one."""

import numpy as np

from deel.lip.certification._flow import scaled
from deel.lip.certification._nodes import constant_of
from deel.lip.certification._nodes import is_tensor
from deel.lip.certification._nodes import kind_of
from deel.lip.certification._nodes import operands
from deel.lip.certification._nodes import scaled_tensor
from deel.lip.certification._pieces import Piece
from deel.lip.certification._pieces import pattern
from deel.lip.certification.rules._pulled import pulled_bound
from deel.lip.certification.rules._pulled import require_one_shape
from deel.lip.certification.rules._steps import count_inexact
from deel.lip.certification.rules._steps import magnitude


@pattern("Maximum", "Minimum")
def _slopes(node, graph):
    """`maximum(x, c x)`, whose slopes are one and c."""
    for x, other in (operands(node), operands(node)[::-1]):
        if not is_tensor(x) or not is_tensor(other):
            return None
        negated = graph.maker(other, "Negative")
        tensor, _, maker = scaled_tensor(other, graph) or (None, None, None)
        if negated is not None:
            (tensor,), maker = negated.input_tensors, negated
        if tensor is x:
            return Piece([maker, node], [x], node.outputs, _slopes_rule)
    return None


def _slopes_rule(piece, input_shapes, context):
    first = piece.nodes[0]
    is_negation = kind_of(first) == "Negative"
    constant = np.asarray(-1.0) if is_negation else constant_of(first)
    most = max(1.0, magnitude(piece, constant))
    return pulled_bound(
        piece,
        input_shapes,
        lambda amplitudes: [scaled(most, amplitudes[0])],
        terms=0 if np.all(np.isin(constant, (-1.0, 0.0, 1.0))) else 2,
        inexact=count_inexact(constant),
        method="slopes",
    )


@pattern("Maximum", "Minimum")
def _pair(node, graph):
    """The maximum and the minimum of two tensors, a permutation of them."""
    pair = operands(node)
    if not all(map(is_tensor, pair)):
        return None
    both = {id(x) for x in pair}
    if len(both) == 1 or len({tuple(x.shape) for x in pair}) > 1:
        return None
    is_maximum = kind_of(node) == "Maximum"
    for partner in graph.alike("Minimum" if is_maximum else "Maximum"):
        if {id(x) for x in operands(partner)} == both:
            nodes = sorted((node, partner), key=graph.nodes.index)
            outputs = [x for n in nodes for x in n.outputs]
            return Piece(nodes, list(pair), outputs, _pair_rule)
    return None


def _pair_rule(piece, input_shapes, context):
    require_one_shape(piece, input_shapes)

    def pull(amplitudes):
        most = np.maximum(*amplitudes)
        return [most, most]

    return pulled_bound(piece, input_shapes, pull)


@pattern("Relu")
def _signs(node, graph):
    """`relu(x)` and `relu(-x)`, of which one is zero."""
    (x,) = node.input_tensors
    negated = graph.maker(x, "Negative")
    inner = x if negated is None else negated.input_tensors[0]
    for partner in graph.alike("Relu"):
        (y,) = partner.input_tensors
        other = graph.maker(y, "Negative")
        if negated is None:
            is_pair = other is not None and other.input_tensors[0] is inner
        else:
            is_pair = y is inner
        if is_pair:
            first = negated or other
            nodes = [first, *sorted((node, partner), key=graph.nodes.index)]
            outputs = [x for n in nodes[1:] for x in n.outputs]
            return Piece(nodes, [inner], outputs, _signs_rule)
    return None


def _signs_rule(piece, input_shapes, context):
    # Between points of one sign, one of the two changes by as much as x does;
    # between others, both by parts that x changes by the sum of.
    return pulled_bound(
        piece, input_shapes, lambda amplitudes: [np.maximum(*amplitudes)]
    )
