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

Note [Errors of the forward pass]

A network that runs in float32 is not quite the function that is bounded. With
each tensor goes a bound of its norm, `a ||x|| + b`: constants as above times
the norm of the input, plus what the layers make of zeros. A layer with n terms
in each sum is taken to add an error of `(8 + sqrt(n)) u` times the bound of
its output, with u the rounding unit that is found in products of the backend
in use; errors of its inputs grow by its constant. The worst case of n terms
is n u, which no sum comes near to: rounding errors of n terms have no common
sign, and grow as sqrt(n) u (Higham and Mary). So this is conservative, and not
proven. Everything else in this module is.

Reference:
    - Higham and Mary, "A new approach to probabilistic rounding error
      analysis", SIAM J. Sci. Comput. 41 (2019).
"""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from deel.lip import layers
from deel.lip._validation import require_built
from deel.lip.certification._layers import BRANCHED
from deel.lip.certification._layers import branched_bound
from deel.lip.certification._layers import inference_kernel
from deel.lip.certification._layers import layer_bound
from deel.lip.certification._norms import matrix_norm

_DENSE = (
    keras.layers.Dense,
    layers.FrobeniusDense,
    layers.OrthogonalDense,
    layers.SpectralDense,
)


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
            kernel, gain = last
            bound = gain * float(np.max(np.linalg.norm(kernel, axis=0)))
            bound *= 1 + 1e-9
    return (bound, walk.table) if return_table else bound


@dataclasses.dataclass(frozen=True)
class Flow:
    """What is known of a tensor; see the notes of this module.

    Attributes:
        shape: Tuple, with the batch axis.
        gain: Array `(rows, inputs)`, the matrix M.
        size: Float, the number b.
        error: Array of two numbers: `error[0] ||x|| + error[1]`.
    """

    shape: tuple
    gain: np.ndarray
    size: float = 0.0
    error: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2))

    def magnitude(self):
        return np.array([_norm(self.gain), self.size])


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
        Pair: the kernel, and the bound of the layers before; None if the
        output of the model is not that of such a layer.
    """
    last = model.layers[-1] if isinstance(model, keras.Model) else model
    if type(last) not in _DENSE or id(last) not in walk.entering:
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
    return inference_kernel(last), joint_gain(walk.entering[id(last)])


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
    rows = np.eye(len(shapes))
    return [
        Flow(tuple(shape), rows[i : i + 1]) for i, shape in enumerate(shapes)
    ]


def _plain(shapes):
    shapes = [tuple(shape[1:]) for shape in shapes]
    return shapes[0] if len(shapes) == 1 else shapes


def _input_shapes(model):
    if isinstance(model, keras.Model):
        _require_graph(model)
        return [tuple(tensor.shape) for tensor in model.inputs]
    config = model.get_build_config()
    shape = (config or {}).get("input_shape")
    if shape is None:
        raise ValueError(
            "The shape of the input of a layer is that which it was built for. "
            f"Received: layer '{model.name}', built without a shape"
        )
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
        unit: Float or None, the rounding unit of the forward pass. Without it
            sizes and errors are not followed.

    Attributes:
        table: List of `LayerBound`, one for each layer and input shape.
        entering: Dictionary from ids of layers, whose constant was not given,
            to the flows that they took in their last call.
    """

    def __init__(self, constants=None, unit=None):
        self.table = []
        self.entering = {}
        self._constants = dict(constants or {})
        self._unit = unit
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
        (branch,) = self.run(layer.layer, [start], prefix)
        return branched_bound(layer, joint_gain([branch]), branch.error)

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
                weight * flow.gain
                for weight, flow in zip(weights, inputs, strict=True)
            ]
        if bound.adds:
            columns = [np.linalg.norm(part, axis=0) for part in parts]
            gain = np.sum(columns, axis=0)[None]
        else:
            gain = np.concatenate(parts)
        # Rotating the rows changes no norm; this keeps their number down.
        if len(gain) > gain.shape[1]:
            gain = np.linalg.qr(gain, mode="r") * (1 + 1e-12)
        size, error = 0.0, np.zeros(2)
        if self._unit is not None:
            size, error = self._errors(layer, bound, weights, inputs)
        return [
            Flow(shape, gain, size, error)
            for shape in _output_shapes(layer, shapes)
        ]

    def _errors(self, layer, bound, weights, inputs):
        def through(values):
            pairs = zip(weights, values, strict=True)
            return sum(weight * value for weight, value in pairs)

        zeros = [np.zeros((1, *flow.shape[1:]), "float32") for flow in inputs]
        of_zeros = layer(zeros if len(zeros) > 1 else zeros[0], training=False)
        offset = math.sqrt(
            sum(
                float(np.sum(ops.convert_to_numpy(x).astype("float64") ** 2))
                for x in keras.tree.flatten(of_zeros)
            )
        )
        magnitude = through([flow.magnitude() for flow in inputs])
        magnitude = magnitude + np.array([0.0, offset])
        rounded = magnitude + np.array([0.0, bound.shift])
        own = (8 + math.sqrt(bound.terms)) * self._unit * rounded
        growth, constant = bound.inside
        own = own + growth * sum(flow.magnitude() for flow in inputs)
        own = own + np.array([0.0, constant])
        error = through([flow.error for flow in inputs]) + own
        return float(magnitude[1]), error

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


def _output_shapes(layer, shapes):
    tensors = [
        keras.KerasTensor(shape, layer.compute_dtype) for shape in shapes
    ]
    outputs = layer.compute_output_spec(
        tensors if len(tensors) > 1 else tensors[0]
    )
    return [tuple(x.shape) for x in keras.tree.flatten(outputs)]
