"""What several operations of a graph are together; see [Pieces].

Note [Folds]

With u for each pair of channels, `x - c relu(u . x)` has the Jacobian
`I - c u^T s`, s from 0 to 1, with a kink and no jump at the line `u . x = 0`.
For `c = 2 u` and unit vectors u this reflects one side of the line. In general
`I - 2 s u u^T` is symmetric with the eigenvalues 1 and `1 - 2 s ||u||^2`, so the
norm is at most `max(1, 2 ||u||^2 - 1) + ||c - 2 u|| ||u||`.

Note [Symmetric steps]

`k x - W g(V x + b)`, slopes of g from 0 to 1, with `W = c V^T + E`: the
Jacobian is `k I - c V^T D V - E D V`, of which the first part is symmetric, with
eigenvalues from `k - c ||V||^2` to k. So the norm is at most
`max(k, c ||V||^2 - k) + ||E|| ||V||`.
"""

import math

import keras
import numpy as np

from deel.lip._numerics.activations import MONOTONE
from deel.lip._numerics.activations import facts_of
from deel.lip._numerics.windows import NUMPY_MODES
from deel.lip.certification._flow import scaled
from deel.lip.certification._pieces import Piece
from deel.lip.certification._pieces import arguments_of
from deel.lip.certification._pieces import as_array
from deel.lip.certification._pieces import pattern
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import Later
from deel.lip.certification._registry import size_of
from deel.lip.certification._rounding import Chain
from deel.lip.certification._rounding import Step
from deel.lip.certification.rules._linear import LinearMap
from deel.lip.certification.rules._linear import of_convolution
from deel.lip.certification.rules._linear import of_matrix
from deel.lip.certification.rules._linear import scaling
from deel.lip.certification.rules._linear import stepped
from deel.lip.certification.rules._steps import FACTORS
from deel.lip.certification.rules._steps import count_inexact
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules._steps import inference_kernel
from deel.lip.certification.rules._steps import magnitude
from deel.lip.certification.rules.convolutions import axes_of
from deel.lip.certification.rules.convolutions import convolved
from deel.lip.certification.rules.operations import copies
from deel.lip.certification.rules.operations import evened
from deel.lip.certification.rules.operations import positions
from deel.lip.certification.rules.operations import pulled_bound
from deel.lip.certification.rules.operations import reduced_axes
from deel.lip.certification.rules.pooling import pooled_rounding
from deel.lip.certification.rules.pooling import pooling_axes


def _operands(node):
    arguments = arguments_of(node)
    return arguments["x1"], arguments["x2"]


def _is_tensor(x):
    return isinstance(x, keras.KerasTensor)


def _scaled_tensor(x, graph):
    """The tensor and the constant of `tensor * constant`; None otherwise."""
    node = graph.maker(x, "Multiply")
    if node is None:
        return None
    a, b = _operands(node)
    if _is_tensor(a) == _is_tensor(b):
        return None
    tensor, constant = (a, b) if _is_tensor(a) else (b, a)
    if tuple(tensor.shape) != tuple(x.shape):
        return None
    return tensor, as_array(constant), node


@pattern("Maximum", "Minimum")
def _slopes(node, graph):
    """`maximum(x, c x)`, whose slopes are one and c."""
    for x, other in (_operands(node), _operands(node)[::-1]):
        found = _scaled_tensor(other, graph) if _is_tensor(x) else None
        if found is not None and found[0] is x:
            return Piece([found[2], node], [x], node.outputs, _slopes_rule)
    return None


def _slopes_rule(piece, input_shapes, context):
    (constant,) = piece.constants()
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
    operands = _operands(node)
    shapes = {tuple(x.shape) for x in operands if _is_tensor(x)}
    if not all(map(_is_tensor, operands)) or len(shapes) > 1:
        return None
    both = {id(x) for x in operands}
    kinds = {"Maximum", "Minimum"}
    (other,) = kinds - {type(node.operation).__name__}
    for partner in graph.alike(other):
        if {id(x) for x in _operands(partner)} == both and len(both) == 2:
            nodes = sorted((node, partner), key=graph.nodes.index)
            outputs = [x for n in nodes for x in n.outputs]
            return Piece(nodes, list(operands), outputs, _pair_rule)
    return None


def _pair_rule(piece, input_shapes, context):
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


@pattern("Subtract")
def _centering(node, graph):
    """`x - mean(x)`, an orthogonal projection."""
    x, mean = _operands(node)
    maker = graph.maker(mean, "Mean")
    if maker is None or maker.input_tensors[0] is not x:
        return None
    if not maker.operation.keepdims:
        return None
    return Piece([maker, node], [x], node.outputs, _centering_rule)


def _centering_rule(piece, input_shapes, context):
    (shape,) = input_shapes
    axes, count = reduced_axes(piece, shape, piece.nodes[0].operation.axis)
    return pulled_bound(
        piece,
        input_shapes,
        lambda amplitudes: [evened(amplitudes[0], axes)],
        terms=count + FACTORS,
        # The mean and what it is subtracted from, both at most the input.
        magnified=2.0,
        partial=math.sqrt(count),
    )


_POOLING = (
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
)
_GLOBAL_POOLING = (
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
)


def _with_constant(x, graph, name):
    """What `name(tensor, constant)` makes a tensor of: tensor, constant, node.

    The tensor itself, None and None, where it is not made so.
    """
    node = graph.maker(x, name)
    operands = _operands(node) if node is not None else ()
    for tensor, other in (operands, operands[::-1]) if operands else ():
        if _is_tensor(tensor) and not _is_tensor(other):
            constant = as_array(other)
            if constant.size == 1:
                return tensor, float(constant.flat[0]), node
    return x, None, None


@pattern("Sqrt")
def _norms(node, graph):
    """The root of sums or means of squares, and of a constant."""
    (x,) = node.input_tensors
    x, epsilon, added = _with_constant(x, graph, "Add")
    x, limit, limited = _with_constant(x, graph, "Minimum")
    is_sound = (epsilon or 0.0) >= 0.0 and (limit is None or limit > 0.0)
    sums = graph.maker(x, "Sum", "Mean") or graph.layer_call(
        x, *_POOLING, *_GLOBAL_POOLING
    )
    if not is_sound or sums is None:
        return None
    if getattr(sums.operation, "padding", "valid") != "valid":
        return None
    squares = graph.maker(sums.input_tensors[0], "Square", "Multiply")
    if squares is None or len({id(x) for x in squares.input_tensors}) > 1:
        return None
    if list(_constants_of(squares)):
        return None
    nodes = [n for n in (squares, sums, limited, added, node) if n is not None]
    inputs = [squares.input_tensors[0]]
    return Piece(nodes, inputs, node.outputs, _norms_rule)


def _constants_of(node):
    return Piece([node], node.input_tensors, node.outputs, None).constants()


def _norms_rule(piece, input_shapes, context):
    # The gradient of the root of the sum of `m x^2` has the norm sqrt(m) at
    # most, and a value is read by `overlap` windows.
    (shape,) = input_shapes
    sums = piece.nodes[1].operation
    overlap = 1
    if isinstance(sums, _POOLING):
        overlap = math.prod(a.overlap() for a in pooling_axes(sums, shape))
        size = math.prod(sums.pool_size)
    elif isinstance(sums, _GLOBAL_POOLING):
        _, size = reduced_axes(piece, shape, _image_axes(sums, shape))
    else:
        _, size = reduced_axes(piece, shape, sums.axis)
    is_sum = type(sums).__name__ == "Sum"
    value = math.sqrt(overlap if is_sum else overlap / size) * (1 + 1e-12)
    value *= (1 + half_unit(piece)) ** 2
    epsilon = 0.0
    for node in piece.nodes[2:]:
        if type(node.operation).__name__ == "Add":
            (epsilon,) = (float(np.max(c)) for c in _constants_of(node))
    rounding = pooled_rounding(
        piece,
        input_shapes,
        value,
        size,
        # Of sums, it counts as that of a mean.
        epsilon / size if is_sum else epsilon,
    )
    return Bound(value, "formula", rounding=rounding)


def _image_axes(layer, shape):
    is_first = layer.data_format == "channels_first"
    return range(2, len(shape)) if is_first else range(1, len(shape) - 1)


_RESIDUAL = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D)


@pattern("Subtract")
def _symmetric_step(node, graph):
    """`k x - W g(V x + b)` with W near to a multiple of the adjoint of V."""
    passed, step = _operands(node)
    if not _is_tensor(passed) or not _is_tensor(step):
        return None
    back = graph.layer_call(step, *_RESIDUAL)
    there = back and graph.layer_call(back.input_tensors[0], *_RESIDUAL)
    if there is None or _adjoint(there.operation, back.operation) is None:
        return None
    (x,) = there.input_tensors
    nodes = [there, back, node]
    if passed is not x:
        passed, factor, scaled_by = _with_constant(passed, graph, "Multiply")
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
    if not isinstance(there, keras.layers.Dense):
        for layer in (there, back):
            rank = len(layer.kernel_size)
            ones = (1,) * rank
            is_plain = (
                layer.padding == "same"
                and layer.groups == 1
                and tuple(layer.strides) == ones
                and tuple(layer.dilation_rate) == ones
                and all(size % 2 for size in layer.kernel_size)
                and layer.data_format == there.data_format
            )
            if not is_plain:
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
    k = 1.0
    if len(piece.nodes) == 4:
        (k,) = (magnitude(piece, c) for c in _constants_of(piece.nodes[0]))

    def linear_of(values):
        if isinstance(there, keras.layers.Dense):
            return of_matrix(values)
        axes = axes_of(there, shape, "same")
        return of_convolution(values[..., None, :, :], axes)

    linear, others = linear_of(kernel), linear_of(rest)
    # What `rest` loses to the rounding of a float64 difference.
    lost = 4 * float(np.finfo("float64").eps) * factor * linear.magnified()
    value = max(k, factor * linear.norm**2 - k)
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
        _scaled_tensor(y, graph) if _is_tensor(y) else None
        for y in _operands(side)
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
    x, other = _operands(node)
    found = _scaled_tensor(other, graph) if _is_tensor(other) else None
    relu = found and graph.maker(found[0], "Relu")
    if not relu or not _is_tensor(x) or tuple(x.shape) != tuple(other.shape):
        return None
    return x, found[2], relu


def _fold_rule(piece, input_shapes, context):
    first, second, side, _, *products = piece.nodes[:6]
    read = {}
    for node, sign in (
        (first, 1),
        (second, -1 if type(side.operation).__name__ == "Subtract" else 1),
    ):
        (constant,) = _constants_of(node)
        read[id(node.input_tensors[0])] = sign * constant
    u, c = [], []
    for x, product, end in zip(
        piece.inputs, products, piece.nodes[6:], strict=True
    ):
        (constant,) = _constants_of(product)
        is_sum = type(end.operation).__name__ == "Add"
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


@pattern(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
def _padded_convolution(node, graph):
    """A convolution of an image that is padded with its own values."""
    if node.operation.padding != "valid" or len(node.input_tensors) != 1:
        return None
    copying, leaves = [], {}
    waiting = list(node.input_tensors)
    while waiting:
        x = waiting.pop()
        maker = graph.maker(x, "Concatenate", "Flip", "GetItem", "Repeat")
        if maker is None:
            leaves[id(x)] = x
        elif maker not in copying:
            copying.append(maker)
            waiting += maker.input_tensors
    if len(leaves) != 1 or not copying:
        return None
    copying.sort(key=graph.nodes.index)
    nodes, inputs = [*copying, node], list(leaves.values())
    return Piece(nodes, inputs, node.outputs, _padded_convolution_rule)


def _padded_convolution_rule(piece, input_shapes, context):
    (shape,) = input_shapes
    layer = piece.nodes[-1].operation
    (padded,) = piece.nodes[-1].input_tensors
    padding = Piece(piece.nodes[:-1], piece.inputs, [padded], None)
    (read,) = positions(padding, input_shapes)
    padded_shape = (shape[0], *read.shape)
    for mode in NUMPY_MODES:
        axes = axes_of(layer, shape, mode)
        if np.array_equal(read, _padded_positions(layer, shape, axes, mode)):
            return convolved(layer, axes, padded_shape, context)
    axes = axes_of(layer, padded_shape, "valid")
    bound = convolved(layer, axes, padded_shape, context)
    constant = copies(padding, input_shapes).value
    first = Step(constant, entries=max(size_of(shape), read.size))
    return Bound(
        constant * bound.value, bound.method, rounding=Chain(first, bound.rounding)
    )


def _padded_positions(layer, shape, axes, mode):
    widths = [axis.widths() for axis in axes]
    is_first = layer.data_format == "channels_first"
    widths = [(0, 0), *widths] if is_first else [*widths, (0, 0)]
    positions = np.arange(size_of(shape)).reshape(shape[1:])
    try:
        return np.pad(positions, widths, mode=NUMPY_MODES[mode])
    except ValueError:
        # An image that is too small to be padded so.
        return None
