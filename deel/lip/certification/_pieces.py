"""Operations of `keras.ops` in functional graphs, and what to bound together.

Note [Pieces]

A rule for each operation would lose what several of them are together: the
maximum and the minimum of two tensors are a permutation, `x - mean(x)` is a
projection, the root of a mean of squares has a gradient although the square
has none that is bounded. So the nodes of a graph are read from the outputs to
the inputs, and where a pattern fits, the nodes that make it are one `Piece`,
with a rule of its own. A node that others read, too, is there for them as well.
"""

import dataclasses
import typing

import keras
import numpy as np

from deel.lip._graph import require_plain_call
from deel.lip.certification._nodes import Graph
from deel.lip.certification._nodes import as_array
from deel.lip.certification._nodes import is_number
from deel.lip.certification._nodes import is_operation
from deel.lip.certification._nodes import kind_of
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import check_finite
from deel.lip.certification._registry import checked_constant
from deel.lip.certification._registry import rounded_like_a_product

# By the name of the class of an operation: it has no public one.
_RULES = {}
_PATTERNS = {}


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """Nodes of a graph that are bounded together; see [Pieces].

    Attributes:
        nodes: List of nodes, in their order.
        inputs: List of symbolic tensors.
        outputs: List of symbolic tensors, made by some of the nodes.
        rule: Function `(piece, input_shapes, context)` that returns a `Bound`;
            `context` is a `Context`.
    """

    nodes: list
    inputs: list
    outputs: list
    rule: typing.Callable

    @property
    def name(self):
        return self.nodes[-1].operation.name

    @property
    def type_name(self):
        return (
            kind_of(self.nodes[-1]) or type(self.nodes[-1].operation).__name__
        )

    @property
    def operations(self):
        return [node.operation for node in self.nodes]

    @property
    def compute_dtype(self):
        return keras.backend.standardize_dtype(self.outputs[0].dtype)

    def constants(self):
        """Arrays of the numbers that the operations take, but for integers."""
        for node in self.nodes:
            given = (node.arguments.args, node.arguments.kwargs)
            for value in keras.tree.flatten(given):
                if is_number(value):
                    yield as_array(value)

    def __call__(self, inputs, training=False):
        """The outputs for tensors in place of the inputs."""
        return self.run(inputs, lambda operation: operation)

    def run(self, inputs, used):
        """The outputs, where other operations are used in place of its own.

        Args:
            inputs: A tensor, or list of tensors.
            used: Function from an operation to a function.
        """
        inputs = keras.tree.flatten(inputs)
        values = {id(x): v for x, v in zip(self.inputs, inputs, strict=True)}
        for node in self.nodes:
            args, kwargs = node.arguments.fill_in(values)
            made = used(node.operation)(*args, **kwargs)
            for x, value in zip(
                node.outputs, keras.tree.flatten(made), strict=True
            ):
                values[id(x)] = value
        return [values[id(x)] for x in self.outputs]

    def output_shapes(self, input_shapes):
        """Shapes of the outputs, a list of tuples."""
        tensors = [
            keras.KerasTensor(shape, x.dtype)
            for shape, x in zip(input_shapes, self.inputs, strict=True)
        ]
        made = self.run(tensors, lambda x: x.compute_output_spec)
        return [tuple(x.shape) for x in made]


def pieces_of(model, is_given):
    """The nodes of a functional model, in their order, as they are bounded.

    Args:
        model: A functional model.
        is_given: Function of an operation or layer: whether its constant is
            given, so that no pattern may take it in.

    Returns:
        List of nodes of layers, and of `Piece`.
    """
    graph = Graph(model)
    order = {node: i for i, node in enumerate(graph.nodes)}
    needed = {id(x) for x in graph.outputs}
    found, waiting = [], {}
    for node in reversed(graph.nodes):
        if node in waiting:
            found += waiting.pop(node)
            continue
        if not any(id(x) in needed for x in node.outputs):
            continue
        piece = _piece_at(node, graph, is_given)
        if piece is None:
            found.append(node)
            needed.update(id(x) for x in node.input_tensors)
            continue
        needed.update(id(x) for x in piece.inputs)
        # Each output of a pattern needs all of its inputs.
        first = min(
            (n for n in piece.nodes if _makes_one(n, piece.outputs)),
            key=order.get,
        )
        if first is node:
            found.append(piece)
        else:
            waiting.setdefault(first, []).append(piece)
    return found[::-1]


def _makes_one(node, tensors):
    return any(x is y for x in node.outputs for y in tensors)


def _piece_at(node, graph, is_given):
    """The `Piece` that makes the outputs of a node; None for a layer."""
    operation = node.operation
    if is_given(operation):
        return _single(node, _unknown) if is_operation(node) else None
    if is_operation(node):
        kind = kind_of(node)
        patterns = _PATTERNS.get(kind, ())
        own = _single(node, _RULES.get(kind, _unknown))
    else:
        patterns, own = _PATTERNS.get(type(operation), ()), None
    for pattern in patterns:
        piece = pattern(node, graph)
        if piece is None:
            continue
        is_free = not any(is_given(x) for x in piece.operations)
        if is_free and all(map(_is_plain, piece.nodes)):
            return piece
    return own


def _is_plain(node):
    """Whether a layer of a pattern is called as it has to be alone."""
    if is_operation(node):
        return True
    try:
        require_plain_call(node)
    except ValueError:
        return False
    return True


_WHY = {
    **dict.fromkeys(
        ["Exp", "Power", "Square"], "is not bounded: its slope grows"
    ),
    **dict.fromkeys(
        ["Log", "Reciprocal", "Rsqrt", "Sqrt"],
        "is not bounded: its slope grows towards zero",
    ),
    "Normalize": "is not bounded: it divides by a norm, which can be zero",
    "Matmul": "is not known: use a `Dense` layer without bias",
    "Einsum": "is not known: use an `EinsumDense` layer without bias",
    "Softmax": "is not known: use a `Softmax` layer",
    "Where": "is not known: where a choice changes, it may jump",
}


def _single(node, rule):
    inputs = {id(x): x for x in node.input_tensors}
    return Piece([node], list(inputs.values()), node.outputs, rule)


def _unknown(piece, input_shapes, context):
    raise ValueError(
        f"The Lipschitz constant of operation '{piece.name}' of type "
        f"{piece.type_name} {_WHY.get(piece.type_name, 'is not known')}. If "
        "you can prove one where it stands, pass "
        f"`constants={{'{piece.name}': value}}`. "
        f"Received: operation '{piece.name}'"
    )


def operation_rule(*names):
    """Decorator: the function gives the bound of operations of these classes.

    Args:
        *names: Strings, names of classes of `keras.ops`.
    """

    def decorate(function):
        _RULES.update(dict.fromkeys(names, function))
        return function

    return decorate


def pattern(*ends):
    """Decorator: the function finds pieces that end with one of these.

    It takes a node and a `Graph` and returns a `Piece` or None.

    Args:
        *ends: Names of classes of `keras.ops`, or classes of layers.
    """

    def decorate(function):
        for end in ends:
            _PATTERNS.setdefault(end, []).append(function)
        return function

    return decorate


def piece_bound(piece, input_shapes, context):
    """Returns the `Bound` of a `Piece`; as `layer_bound`."""
    for operation in piece.operations:
        if isinstance(operation, keras.layers.Layer):
            check_finite(operation)
    attributes = [
        vars(node.operation) for node in piece.nodes if is_operation(node)
    ]
    values = [x for part in attributes for x in part.values()]
    is_nan = any(isinstance(x, float) and np.isnan(x) for x in values)
    for array in (*piece.constants(), *[np.nan] * is_nan):
        if not np.all(np.isfinite(array)):
            raise ValueError(
                "A network with NaN or infinite constants has no Lipschitz "
                f"constant. Received: operation '{piece.name}'"
            )
    constant = context.given(piece.nodes[-1].operation)
    if constant is not None:
        bound = Bound(checked_constant(piece.name, constant), "given")
        return rounded_like_a_product(piece, bound, input_shapes)
    batches = {x.shape[:1] for x in (*piece.inputs, *piece.outputs)}
    if len(batches) > 1 or () in batches:
        raise ValueError(
            "Expected operations whose tensors have the samples on their first "
            f"axis. Received: operation '{piece.name}' with tensors of shapes "
            f"{[tuple(x.shape) for x in (*piece.inputs, *piece.outputs)]}"
        )
    for x in (*piece.inputs, *piece.outputs):
        dtype = keras.backend.standardize_dtype(x.dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise ValueError(
                "Comparisons and rounding to whole numbers jump, so they have "
                "no Lipschitz constant. Expected tensors of floats, and "
                "`maximum`, `relu` or `clip` in place of a choice. "
                f"Received: operation '{piece.name}', with a tensor of {dtype}"
            )
    return piece.rule(piece, input_shapes, context)
