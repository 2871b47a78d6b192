"""What stands in the nodes of a functional model: operations, constants."""

import inspect

import keras
import numpy as np

from deel.lip._backend.variables import host
from deel.lip._graph import nodes_in_order


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
