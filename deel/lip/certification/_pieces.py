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
import inspect
import typing

import keras
import numpy as np

from deel.lip._backend.variables import host
from deel.lip._graph import nodes_in_order
from deel.lip._graph import require_plain_call
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
    def arguments(self):
        """Dictionary of the arguments of the last operation, by their names."""
        return arguments_of(self.nodes[-1])

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


def is_number(value):
    """Whether an argument is a number or an array, not an index or a shape."""
    if isinstance(value, (bool, str, slice, keras.KerasTensor)):
        return False
    if hasattr(value, "dtype"):
        return keras.backend.is_float_dtype(
            keras.backend.standardize_dtype(value.dtype)
        )
    return isinstance(value, float)


def as_array(value):
    """A number or tensor among the arguments of an operation, in float64."""
    if isinstance(value, (int, float, np.ndarray, np.generic)):
        return np.asarray(value, "float64")
    return host(value).astype("float64")


def arguments_of(node):
    """Dictionary of the arguments of a node, by their names."""
    signature = inspect.signature(node.operation.call)
    arguments = node.arguments
    return signature.bind(*arguments.args, **arguments.kwargs).arguments


def operands(node):
    """The two arguments of an operation such as `add`."""
    arguments = arguments_of(node)
    return arguments["x1"], arguments["x2"]


def is_tensor(x):
    """Whether an argument is a symbolic tensor."""
    return isinstance(x, keras.KerasTensor)


def scaled_tensor(x, graph):
    """The tensor and the constant of `tensor * constant`; None otherwise."""
    node = graph.maker(x, "Multiply")
    constant = None if node is None else constant_of(node)
    if constant is None:
        return None
    (tensor,) = node.input_tensors
    if tuple(tensor.shape) != tuple(x.shape):
        return None
    return tensor, constant, node


def with_constant(x, graph, name):
    """What `name(tensor, constant)` makes a tensor of: tensor, constant, node.

    The tensor itself, None and None, where it is not made so.
    """
    node = graph.maker(x, name)
    constant = None if node is None else constant_of(node)
    tensor = None if constant is None else node.input_tensors[0]
    # A constant of a higher rank adds an axis.
    if (
        tensor is None
        or constant.size != 1
        or tuple(tensor.shape) != tuple(x.shape)
    ):
        return x, None, None
    return tensor, float(constant.flat[0]), node


def constant_of(node):
    """The array among the two arguments of an operation, None for tensors."""
    given = [x for x in operands(node) if not is_tensor(x)]
    return as_array(given[0]) if given else None


def is_operation(node):
    """Whether a node is an operation, not a layer."""
    return not isinstance(node.operation, keras.layers.Layer)


def kind_of(node):
    """The name of a class of `keras.ops`; None for a layer.

    Operations of the user, which may have names of Keras, have their module in
    front.
    """
    kind = type(node.operation)
    if not is_operation(node):
        return None
    is_stock = kind.__module__.split(".")[0] == "keras"
    return kind.__name__ if is_stock else f"{kind.__module__}.{kind.__name__}"


class Graph:
    """The nodes of a functional model, and who makes and reads each tensor.

    Args:
        model: A functional model.
    """

    def __init__(self, model):
        self.nodes = list(nodes_in_order(model))
        self.outputs = model.outputs
        self._makers = {
            id(x): node for node in self.nodes for x in node.outputs
        }

    def maker(self, x, *names):
        """The node that makes a tensor by one of these operations, or None.

        Args:
            x: Anything; a symbolic tensor of the graph has a maker.
            names: Strings, classes of operations.
        """
        node = self._makers.get(id(x))
        return node if node is not None and kind_of(node) in names else None

    def layer_call(self, x, *classes):
        """The node that makes a tensor by a layer of these classes, or None."""
        node = self._makers.get(id(x))
        is_one = node is not None and type(node.operation) in classes
        return node if is_one else None

    def alike(self, *names):
        """The nodes of these operations, in their order."""
        return [node for node in self.nodes if kind_of(node) in names]


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
