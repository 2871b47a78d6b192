"""Reflections of pairs of channels, as an export of `Householder` writes them.

Note [Folds]

With u for each pair of channels, `x - c relu(u . x)` has the Jacobian
`I - c u^T s`, s from 0 to 1, with a kink and no jump at the line `u . x = 0`.
For `c = 2 u` and unit vectors u this reflects one side of the line. In general
`I - 2 s u u^T` is symmetric with the eigenvalues 1 and `1 - 2 s ||u||^2`, so
the norm is at most `max(1, 2 ||u||^2 - 1) + ||c - 2 u|| ||u||`.
"""

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
from deel.lip.certification.rules._steps import half_unit


@pattern("Add", "Subtract")
def _fold(node, graph):
    """Reflections of pairs of channels; see [Folds]."""
    found = _folded_channel(node, graph)
    if found is None:
        return None
    x, product, relu = found
    side = graph.maker(relu.input_tensors[0], "Add", "Subtract")
    if side is None:
        return None
    terms = [
        scaled_tensor(y, graph) if is_tensor(y) else None
        for y in operands(side)
    ]
    if None in terms or not any(x is y for y, _, _ in terms):
        return None
    for partner in graph.alike("Add", "Subtract"):
        other = _folded_channel(partner, graph)
        if other is None or other[2] is not relu or other[0] is x:
            continue
        if {id(y) for y, _, _ in terms} != {id(x), id(other[0])}:
            continue
        ends = sorted(
            [(node, x, product), (partner, other[0], other[1])],
            key=lambda end: graph.nodes.index(end[0]),
        )
        nodes = [n for _, _, n in terms] + [side, relu]
        nodes += [n for _, _, n in ends] + [n for n, _, _ in ends]
        outputs = [y for n, _, _ in ends for y in n.outputs]
        return Piece(nodes, [y for _, y, _ in ends], outputs, _fold_rule)
    return None


def _folded_channel(node, graph):
    """Tensor, product and relu of `x + c relu(...)` or of the difference."""
    x, other = operands(node)
    found = scaled_tensor(other, graph) if is_tensor(other) else None
    relu = found and graph.maker(found[0], "Relu")
    if not relu or not is_tensor(x) or tuple(x.shape) != tuple(other.shape):
        return None
    return x, found[2], relu


def _fold_rule(piece, input_shapes, context):
    require_one_shape(piece, input_shapes)
    first, second, side, _, *products = piece.nodes[:6]
    read = {}
    for node, sign in (
        (first, 1),
        (second, -1 if kind_of(side) == "Subtract" else 1),
    ):
        constant = constant_of(node)
        read[id(node.input_tensors[0])] = sign * constant
    u, c = [], []
    for x, product, end in zip(
        piece.inputs, products, piece.nodes[6:], strict=True
    ):
        constant = constant_of(product)
        is_sum = kind_of(end) == "Add"
        u.append(read[id(x)])
        c.append(-constant if is_sum else constant)
    length = np.hypot(*u)
    excess = np.hypot(*(b - 2 * a for a, b in zip(u, c, strict=True)))
    values = np.maximum(1.0, 2 * length**2 - 1) + excess * length
    values *= (1 + 1e-12) * (1 + half_unit(piece)) ** 4
    most = float(np.max(values))

    def pull(amplitudes):
        largest = scaled(most, np.maximum(*amplitudes))
        return [largest, largest]

    return pulled_bound(
        piece,
        input_shapes,
        pull,
        terms=8,
        # The step is at most twice as long as what is folded.
        magnified=4.0 * most,
        inexact=count_inexact(*u, *c),
    )
