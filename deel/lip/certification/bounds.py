"""The Lipschitz constant of a network, from its weights as they are.

Note [Constants of a graph]

Each tensor t of a graph gets a small matrix M, with a column for each input of
the model, such that moving the inputs by distances d = (d_1, d_2, ...) moves t
by at most `||M d||`. An input has the row that selects its own distance. A
layer with the constant L gives `L M`. Tensors side by side (Concatenate) have
their matrices stacked, so do those of which the largest is taken; for a sum,
the norms of the columns add up to a single row, by the triangle inequality.
The constant of a set of tensors is the largest singular value of their stacked
matrices. With one input, this is a product along a path, a sum where branches
are added and the root of a sum of squares where they are concatenated. A layer
that is used at several places has one constant and is used with it at each. A
block that holds its branch has the constant that its formula makes of that of
the branch, which is found like that of a model.

Note [Calls]

The walk through a graph leaves a list of calls, from the inputs to the outputs.
With them the values at samples are followed, layer by layer, and what floating
point adds to them (`deel.lip.certification._rounding`).
"""

import dataclasses
import math

import keras
import numpy as np

from deel.lip._validation import require_built
from deel.lip.certification._layers import BRANCHED
from deel.lip.certification._layers import DENSE
from deel.lip.certification._layers import Bound
from deel.lip.certification._layers import branched_bound
from deel.lip.certification._layers import inference_kernel
from deel.lip.certification._layers import layer_bound
from deel.lip.certification._layers import output_shapes
from deel.lip.certification._norms import matrix_norm
from deel.lip.certification._rounding import Computed
from deel.lip.certification._rounding import join


@dataclasses.dataclass(frozen=True)
class LayerBound:
    """A row of the table of `lipschitz_bound`.

    Attributes:
        name: String, the name of the layer, after those of the models that it
            is in.
        type: String, the name of its class.
        value: Float, the bound.
        method: String, how it was found.
        exact: Boolean, whether it is the constant of the layer itself.
    """

    name: str
    type: str
    value: float
    method: str
    exact: bool


def lipschitz_bound(
    model,
    input_shape=None,
    p=2,
    constants=None,
    by_output=False,
    return_table=False,
):
    """Proven upper bound of the Lipschitz constant of a model or layer.

    It is computed in float64 from the weights as they are, not from what a
    layer promises, and increased by more than what rounding can take away (1e-9
    in relative terms, for matrices of usual sizes). It holds for the inference
    function (`training=False`), in exact arithmetic, between any two inputs.
    Nothing is estimated: where no constant can be proven, an error says so.

    Constants of layers are multiplied along a path, added where branches are
    added, and so on, so the bound of a network can be larger than its constant.
    With several inputs, or outputs, all of them together are one vector.

    Args:
        model: A built `keras.Sequential` or functional model, also of
            `deel.lip.model`, or a built layer.
        input_shape: Tuple, the shape of an input without the batch axis, or a
            list of such tuples for several inputs. Needed where the model was
            built for images of unknown size, and then only for a tight bound.
        p: The norm. Must be 2.
        constants: Dictionary from names, or classes, of layers to constants
            that you know, instead of those found here.
        by_output: Boolean. True for the constant of the output that changes
            fastest by itself, instead of that of the vector of all outputs:
            what `FrobeniusDense` with disjoint neurons promises. It differs for
            models that end with a Dense layer without activation.
        return_table: Boolean, whether the bound of each layer is returned, too.

    Returns:
        Float; or a pair of a float and a list of `LayerBound`.

    Raises:
        ValueError: If the model is not built, has a `call` of its own or
            weights that are not finite, if the constant of a layer is not
            known, or if `input_shape` does not fit.

    Example:

    >>> import keras
    >>> from deel.lip.certification import lipschitz_bound
    >>> model = keras.Sequential(
    ...     [
    ...         keras.Input((4,)),
    ...         keras.layers.Dense(3, kernel_initializer="ones"),
    ...         keras.layers.Activation("tanh"),
    ...     ]
    ... )
    >>> round(lipschitz_bound(model), 6)
    3.464102
    """
    if p != 2:
        raise ValueError(
            "Constants are known for the Euclidean norm. Expected `p=2`. "
            f"Received: p={p}"
        )
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(
            "`lipschitz_bound` expects a Keras model or layer. "
            f"Received: model={model} (of type {type(model).__name__})"
        )
    require_built(model, "lipschitz_bound")
    walk = Walk(constants)
    outputs = walk.run(model, start(model, input_shape))
    bound = joint_gain(outputs)
    if by_output:
        last = final_dense(model, walk)
        if last is not None:
            _, kernel, flow = last
            bound = float(np.max(np.linalg.norm(kernel, axis=0)))
            bound *= joint_gain([flow])
            bound *= 1 + 1e-9
    return (bound, walk.table) if return_table else bound


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """What is known of a tensor; see the notes of this module.

    Attributes:
        shape: Tuple, with the batch axis.
        gain: Array `(rows, inputs)`, the matrix M.
    """

    shape: tuple
    gain: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A layer, as it is called at one place of a graph.

    Attributes:
        layer: The layer.
        bound: `Bound` of the layer.
        weights: Tuple of floats, its constant for each input.
        inputs: List of `Flow`.
        outputs: List of `Flow`.
    """

    layer: keras.layers.Layer
    bound: Bound
    weights: tuple
    inputs: list
    outputs: list


def propagate(calls, known, arithmetic, sizes=None):
    """Follows errors of a forward pass; see `_rounding`.

    Args:
        calls: List of `Call`.
        known: Dictionary from inputs of the graph, `Flow`, to `Computed`.
        arithmetic: `Arithmetic`.
        sizes: Dictionary from other flows to the norms of their values at some
            samples; None for an input of zero, and the norms that layers claim.

    Returns:
        The dictionary, with all flows of the graph.
    """
    known = dict(known)
    for call in calls:
        layer = call.bound.rounding(arithmetic)
        inputs = [known[flow] for flow in call.inputs]
        joined = join(inputs, call.weights, layer)
        claimed = [
            w * x.zero for w, x in zip(call.weights, inputs, strict=True)
        ]
        for flow in call.outputs:
            zero = sum(claimed) + layer.zero
            known[flow] = dataclasses.replace(
                joined,
                constant=joint_gain([flow]),
                zero=zero if sizes is None else sizes[flow],
            )
    return known


def joint_gain(flows):
    """Bound of all tensors together, as a function of all inputs."""
    bound = _norm(np.concatenate([flow.gain for flow in flows]))
    if not math.isfinite(bound):
        raise ValueError(
            "The product of the constants of the layers is too large for a "
            f"float. Received: {bound}"
        )
    return bound


def final_dense(model, walk):
    """What certificates use of a last Dense layer without activation.

    Args:
        model: A model.
        walk: The `Walk` that has run it.

    Returns:
        Tuple: the layer, its kernel, and the `Flow` that enters it; None if
        the output of the model is not that of such a layer.
    """
    last = model.layers[-1] if isinstance(model, keras.Model) else model
    if type(last) not in DENSE or id(last) not in walk.entering:
        return None
    if last.activation is not keras.activations.linear:
        return None
    if isinstance(model, keras.Model) and not isinstance(
        model, keras.Sequential
    ):
        # The layer is the last one, and used once.
        is_output = (
            len(last._inbound_nodes) == 1
            and len(model.outputs) == 1
            and last.output is model.outputs[0]
        )
        if not is_output:
            return None
    (flow,) = walk.entering[id(last)]
    return last, inference_kernel(last), flow


# Products below this one lose digits, or vanish, see `_scaled_gain`.
_SMALLEST_GAIN = 1e-290


def _scaled_gain(weight, gain):
    """`weight * gain`, or a matrix with no less of a norm in any direction.

    A product that vanishes where no factor does would make a constant of zero,
    which later layers could not make larger again. A row for each input, of a
    size that is 1e17 times what can vanish, bounds it, whatever is added to it.
    """
    part = weight * gain
    small = (np.abs(part) < _SMALLEST_GAIN) & (gain != 0)
    if weight and np.any(small):
        part = np.concatenate([part, _SMALLEST_GAIN * np.eye(part.shape[1])])
    return part


def _norm(gain):
    if gain.shape == (1, 1):
        return float(abs(gain[0, 0]))
    return float(matrix_norm(gain)[0])


def start(model, input_shape=None):
    """The flows of the inputs of a model or layer."""
    shapes = _input_shapes(model)
    if input_shape is not None:
        given = input_shape
        if not given or not isinstance(given[0], (tuple, list)):
            given = [given]
        # Some stock layers are built from the start, for no shape of their own.
        if shapes is None:
            shapes = [(None,) * (len(shape) + 1) for shape in given]
        fits = len(given) == len(shapes) and all(
            len(new) + 1 == len(known)
            and all(
                isinstance(n, int) and n > 0 and k in (n, None)
                for n, k in zip(new, known[1:], strict=True)
            )
            for new, known in zip(given, shapes, strict=True)
        )
        if not fits:
            raise ValueError(
                "`input_shape` is the shape of an input without the batch "
                f"axis. Expected one that fits {_plain(shapes)}. "
                f"Received: input_shape={input_shape}"
            )
        shapes = [(None, *shape) for shape in given]
    if shapes is None:
        raise ValueError(
            f"Layer '{model.name}' does not know the shape of its input, which "
            "its bound depends on. Expected `input_shape`, the shape of an "
            "input without the batch axis. Received: input_shape=None"
        )
    rows = np.eye(len(shapes))
    return [
        Flow(tuple(shape), rows[i : i + 1]) for i, shape in enumerate(shapes)
    ]


def _plain(shapes):
    shapes = [tuple(shape[1:]) for shape in shapes]
    return shapes[0] if len(shapes) == 1 else shapes


def _input_shapes(model):
    """Shapes that a model or layer was built for, or None."""
    if isinstance(model, keras.Model):
        _require_graph(model)
        return [tuple(tensor.shape) for tensor in model.inputs]
    config = model.get_build_config()
    shape = (config or {}).get("input_shape")
    if shape is None:
        return None
    if shape and isinstance(shape[0], (tuple, list)):
        return [tuple(one) for one in shape]
    return [tuple(shape)]


def _require_graph(model):
    """Raises ValueError for models with a `call` of their own."""
    # Keras makes a functional model of a class without a public name.
    stock = next(
        base
        for base in type(model).__mro__
        if base in (keras.Sequential, keras.Model)
        or (base.__name__ == "Functional" and "keras" in base.__module__)
    )
    is_stock = stock is not keras.Model and type(model).call is stock.call
    if not is_stock:
        raise ValueError(
            "Bounds are known for Sequential and functional models without a "
            "`call` of their own, whose graph of layers is known. "
            f"Received: model '{model.name}' of type {type(model).__name__}"
        )


def _require_float_inputs(model):
    """Raises ValueError if a model inside of another one rounds its inputs."""
    for tensor in model.inputs:
        if not keras.backend.is_float_dtype(tensor.dtype):
            raise ValueError(
                "Rounding to whole numbers has no Lipschitz constant. "
                f"Received: model '{model.name}', inside of another one, with "
                f"an input of dtype {tensor.dtype}"
            )


class Walk:
    """Follows the graph of a model; see the notes of this module.

    Args:
        constants: As of `lipschitz_bound`.

    Attributes:
        calls: List of `Call`, in their order.
        table: List of `LayerBound`, one for each layer and input shape.
        entering: Dictionary from ids of layers, whose constant was not given,
            to the flows that they took in their last call.
    """

    def __init__(self, constants=None):
        self.calls = []
        self.table = []
        self.entering = {}
        self._constants = dict(constants or {})
        self._known = {}

    def run(self, layer, inputs, prefix=""):
        """Returns the flows of the outputs of a layer or model.

        Args:
            layer: A layer or model.
            inputs: List of `Flow`.
            prefix: String, the names of the models around it.
        """
        if not isinstance(layer, keras.Model) or self._is_given(layer):
            return self._through_layer(layer, inputs, prefix)
        _require_graph(layer)
        if prefix:
            _require_float_inputs(layer)
        if not isinstance(layer, keras.Sequential):
            return self._through_graph(layer, inputs, prefix)
        for inner in layer.layers:
            inputs = self.run(inner, inputs, self._inside(inner, prefix))
        return inputs

    def _is_given(self, layer):
        return bool({layer.name, type(layer)} & set(self._constants))

    def _around_branch(self, layer, shapes, prefix):
        """Bound of a block, whose branch is followed by itself."""
        (shape,) = shapes
        start = Flow(layer.branch_shape(shape), np.eye(1))
        prefix = self._inside(layer.layer, f"{prefix}{layer.name}/")
        # What is called inside of a block is part of the call of the block.
        before, self.calls = self.calls, []
        (end,) = self.run(layer.layer, [start], prefix)
        calls, self.calls = self.calls, before

        def rounding(arithmetic):
            known = {start: Computed(1.0)}
            return propagate(calls, known, arithmetic)[end]

        return branched_bound(layer, joint_gain([end]), rounding, shapes)

    def _inside(self, layer, prefix):
        is_model = isinstance(layer, keras.Model)
        return f"{prefix}{layer.name}/" if is_model else prefix

    def _through_graph(self, model, inputs, prefix):
        flows = {
            id(tensor): flow
            for tensor, flow in zip(model.inputs, inputs, strict=True)
        }
        # Keras has no public name for the order in which it runs the nodes.
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                layer = node.operation
                if node.is_input or isinstance(layer, keras.layers.InputLayer):
                    continue
                _require_plain_call(node)
                outputs = self.run(
                    layer,
                    [flows[id(x)] for x in node.input_tensors],
                    self._inside(layer, prefix),
                )
                for tensor, flow in zip(node.outputs, outputs, strict=True):
                    flows[id(tensor)] = flow
        return [flows[id(tensor)] for tensor in model.outputs]

    def _through_layer(self, layer, inputs, prefix):
        shapes = [flow.shape for flow in inputs]
        bound = self._bound(layer, shapes, prefix)
        if bound.method != "given":
            self.entering[id(layer)] = inputs
        weights = bound.weights or (bound.value,) * len(inputs)
        # An overflow is an error at the end, in `joint_gain`.
        with np.errstate(over="ignore", invalid="ignore"):
            parts = [
                _scaled_gain(weight, flow.gain)
                for weight, flow in zip(weights, inputs, strict=True)
            ]
        if bound.adds:
            # Not `norm`, whose squares vanish below 1e-154.
            columns = [np.hypot.reduce(part, axis=0) for part in parts]
            gain = np.sum(columns, axis=0)[None]
        else:
            gain = np.concatenate(parts)
        # Rotating the rows changes no norm; this keeps their number down.
        if len(gain) > gain.shape[1]:
            gain = np.linalg.qr(gain, mode="r") * (1 + 1e-12)
        outputs = [Flow(x, gain) for x in output_shapes(layer, shapes)]
        self.calls.append(Call(layer, bound, weights, inputs, outputs))
        return outputs

    def _bound(self, layer, shapes, prefix):
        key = (id(layer), tuple(shapes))
        if key not in self._known:
            if type(layer) in BRANCHED and not self._is_given(layer):
                bound = self._around_branch(layer, shapes, prefix)
            else:
                bound = layer_bound(layer, shapes, self._constants)
            self._known[key] = bound
            self.table.append(
                LayerBound(
                    prefix + layer.name,
                    type(layer).__name__,
                    bound.value,
                    bound.method,
                    bound.exact,
                )
            )
        return self._known[key]


def _require_plain_call(node):
    """Raises ValueError if a node is no layer, called on its inputs alone."""
    layer = node.operation
    if not isinstance(layer, keras.layers.Layer):
        raise ValueError(
            "Bounds are known for layers, not for operations on the tensors "
            "of a functional model. Use a layer, such as `keras.layers.Add` "
            f"for `+`. Received: operation '{layer.name}' of type "
            f"{type(layer).__name__}"
        )
    further = list(node.arguments.args[1:])
    further += [
        value
        for value in keras.tree.flatten(node.arguments.args[:1])
        if not isinstance(value, keras.KerasTensor)
    ]
    # Inference calls everything with `training=False`.
    further += [
        value
        for name, value in node.arguments.kwargs.items()
        if name != "training"
    ]
    # Inputs without a mask have the mask None.
    if any(value is not None for value in keras.tree.flatten(further)):
        raise ValueError(
            "Bounds are known for layers that are called with their input "
            f"alone. Received: further arguments of layer '{layer.name}': "
            f"{further}"
        )
    # A model with a list of inputs takes those of a dictionary by name.
    has_names = isinstance(layer, keras.Model) and any(
        isinstance(value, dict) for value in node.arguments.args[:1]
    )
    is_single = isinstance(layer, keras.Sequential)
    if has_names and not is_single and not isinstance(layer.input, dict):
        raise ValueError(
            "Bounds are known for models that are called with the structure of "
            "inputs that they were made with. Expected a tensor or a list. "
            f"Received: a dictionary, for model '{layer.name}'"
        )
