"""The way of bounds through the graph of a model."""

import dataclasses

import keras
import numpy as np

# Registers what stands for several operations.
import deel.lip.certification.patterns  # noqa: F401
from deel.lip._graph import require_float_inputs
from deel.lip._graph import require_graph
from deel.lip._graph import require_plain_call
from deel.lip.certification._flow import Flow
from deel.lip.certification._flow import called
from deel.lip.certification._flow import joint_gain
from deel.lip.certification._flow import propagate
from deel.lip.certification._pieces import Piece
from deel.lip.certification._pieces import piece_bound
from deel.lip.certification._pieces import pieces_of
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import layer_bound
from deel.lip.certification._registry import output_shapes
from deel.lip.certification._rounding import Computed
from deel.lip.certification.rules._steps import inference_kernel
from deel.lip.certification.rules.convolutions import CONVOLUTIONS
from deel.lip.certification.rules.dense import DENSE


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
        chain: Float, at most one: what the layer multiplies the bound by where
            it was first called, over `value`. It is smaller where what stands
            before moves vectors in directions that the layer does not stretch.
    """

    name: str
    type: str
    value: float
    method: str
    exact: bool
    chain: float = 1.0


def final_dense(model, walk):
    """What certificates use of a last Dense layer without activation.

    A convolution whose kernel has one tap is a Dense layer of each position.

    Args:
        model: A model.
        walk: The `Walk` that has run it.

    Returns:
        Tuple: the layer, its kernel `(inputs, outputs)`, and the `Flow` that
        enters it; None if the output of the model is not that of such a layer.
    """
    last = model.layers[-1] if isinstance(model, keras.Model) else model
    if not _is_dense(last) or id(last) not in walk.entering:
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
    kernel = inference_kernel(last)
    return last, kernel.reshape(kernel.shape[-2:]), flow


def _is_dense(layer):
    """Whether each output is a product with all channels of one position."""
    if type(layer) in CONVOLUTIONS:
        return (
            set(layer.kernel_size) == {1}
            and layer.groups == 1
            and layer.data_format == "channels_last"
        )
    return type(layer) in DENSE


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
    return flows_of(shapes)


def flows_of(shapes):
    """The flows of inputs of these shapes, each moved by itself."""
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
        require_graph(model, _PURPOSE)
        return [tuple(tensor.shape) for tensor in model.inputs]
    config = model.get_build_config()
    shape = (config or {}).get("input_shape")
    if shape is None:
        return None
    if shape and isinstance(shape[0], (tuple, list)):
        return [tuple(one) for one in shape]
    return [tuple(shape)]


_PURPOSE = "Bounds are known for"


def _require_ranks(model, inputs):
    """Raises ValueError where Keras adds an axis to an input, or drops it."""
    for tensor, flow in zip(model.inputs or (), inputs, strict=False):
        if len(tensor.shape) != len(flow.shape):
            raise ValueError(
                "Bounds are known for models that are called with the ranks "
                "that they were made for. Received: an input of shape "
                f"{flow.shape} for one of shape {tuple(tensor.shape)} of model "
                f"'{model.name}'"
            )


@dataclasses.dataclass(frozen=True)
class Context:
    """What a rule may ask besides its layer: constants, and what is inside.

    Attributes:
        walk: The `Walk` that asks for the bound.
        prefix: String, the names of the layers around what is inside.
    """

    walk: "Walk"
    prefix: str

    def given(self, layer):
        """The constant that the user gave for a layer, or None."""
        return self.walk.given(layer)

    def bound(self, layer, input_shapes):
        """`Bound` of a layer or model inside, for inputs of these shapes."""
        return self.walk.bound_inside(layer, input_shapes, self.prefix)


# How constants of layers join along a path, the default first.
METHODS = ("chain", "product")


class Walk:
    """Follows the graph of a model; see the notes of this module.

    Args:
        constants: As of `lipschitz_bound`.
        method: As of `lipschitz_bound`.

    Attributes:
        calls: List of `Call`, in their order.
        table: List of `LayerBound`, one for each layer and input shape.
        entering: Dictionary from ids of layers, whose constant was not given,
            to the flows that they took in their last call.
    """

    def __init__(self, constants=None, method=METHODS[0]):
        self.has_chain = method == "chain"
        self.calls = []
        self.table = []
        self.entering = {}
        self._constants = dict(constants or {})
        self._known = {}
        self._pieces = {}
        self._rows = {}
        # The layers whose constants were given by name.
        self._named = {}
        self._seen = set()

    def run(self, layer, inputs, prefix=""):
        """Returns the flows of the outputs of a layer or model.

        Args:
            layer: A layer or model.
            inputs: List of `Flow`.
            prefix: String, the names of the models around it.
        """
        if not isinstance(layer, keras.Model) or self.given(layer) is not None:
            return self._through_layer(layer, inputs, prefix)
        require_graph(layer, _PURPOSE)
        if prefix:
            require_float_inputs(layer)
        _require_ranks(layer, inputs)
        if not isinstance(layer, keras.Sequential):
            return self._through_graph(layer, inputs, prefix)
        for inner in layer.layers:
            inputs = self.run(inner, inputs, self._inside(inner, prefix))
        return inputs

    def given(self, layer):
        """The constant that the user gave for a layer, or None."""
        self._seen.add(layer.name)
        keys = (layer, layer.name, type(layer))
        key = next((key for key in keys if key in self._constants), None)
        if key is None:
            return None
        if isinstance(key, str) and self._named.setdefault(key, layer) != layer:
            raise ValueError(
                "A name in `constants` must be that of one layer. Expected the "
                f"layer itself as a key. Received: '{key}', the name of "
                f"{self._named[key]} and of {layer}"
            )
        return self._constants[key]

    def require_known_names(self):
        """Raises ValueError for a name in `constants` that nothing has."""
        names = {x for x in self._constants if isinstance(x, str)}
        if unknown := sorted(names - set(self._named)):
            raise ValueError(
                "Names in `constants` are those of layers, also inside of "
                "others, or of operations. Expected some out of: "
                f"{sorted(self._seen)}. Received: {unknown}"
            )

    def bound_inside(self, layer, input_shapes, prefix=""):
        """`Bound` of a layer or model that stands inside of a layer."""
        prefix = self._inside(layer, prefix)
        if not isinstance(layer, keras.Model) or self.given(layer) is not None:
            return self._bound(layer, input_shapes, prefix)
        starts = flows_of(input_shapes)
        # What is called inside of a layer is part of the call of the layer.
        before, self.calls = self.calls, []
        ends = self.run(layer, starts, prefix)
        calls, self.calls = self.calls, before
        if len(starts) > 1 or len(ends) > 1:
            raise ValueError(
                "Bounds are known for models with one input and one output, "
                "where they are inside of a layer. Received: model "
                f"'{layer.name}' with {len(starts)} and {len(ends)}"
            )

        def rounding(arithmetic):
            known = {starts[0]: Computed(1.0)}
            return propagate(calls, known, arithmetic)[ends[0]]

        return Bound(joint_gain(ends), "model", rounding=rounding)

    def _inside(self, layer, prefix):
        is_model = isinstance(layer, keras.Model)
        return f"{prefix}{layer.name}/" if is_model else prefix

    def _through_graph(self, model, inputs, prefix):
        flows = {
            id(tensor): flow
            for tensor, flow in zip(model.inputs, inputs, strict=True)
        }
        if model not in self._pieces:
            self._pieces[model] = pieces_of(
                model, lambda x: self.given(x) is not None
            )
        for piece in self._pieces[model]:
            if isinstance(piece, Piece):
                layer, tensors = piece, piece.inputs
            else:
                require_plain_call(piece)
                layer, tensors = piece.operation, piece.input_tensors
            inputs = [flows[id(x)] for x in tensors]
            outputs = self.run(layer, inputs, self._inside(layer, prefix))
            for tensor, flow in zip(piece.outputs, outputs, strict=True):
                flows[id(tensor)] = flow
        return [flows[id(tensor)] for tensor in model.outputs]

    def _through_layer(self, layer, inputs, prefix):
        shapes = [flow.shape for flow in inputs]
        bound = self._bound(layer, shapes, prefix)
        if not self.has_chain:
            bound = dataclasses.replace(bound, chain=None)
        if bound.method != "given":
            self.entering[id(layer)] = inputs
        call = called(
            layer, bound, inputs, output_shapes(layer, shapes), len(self.calls)
        )
        self.calls.append(call)
        self._note_chain(layer, shapes, call)
        return call.outputs

    def _note_chain(self, layer, shapes, call):
        """Says in the table what the chain saves, at the first call."""
        row = self._rows.pop((layer, tuple(shapes)), None)
        has_chain = call.bound.chain is not None or call.bound.is_sum
        if row is None or not has_chain or not call.bound.value:
            return
        before = joint_gain(call.inputs)
        after = joint_gain(call.outputs)
        if before:
            share = min(1.0, after / before / call.bound.value)
            self.table[row] = dataclasses.replace(self.table[row], chain=share)

    def _bound(self, layer, shapes, prefix):
        key = (layer, tuple(shapes))
        if key not in self._known:
            context = Context(self, f"{prefix}{layer.name}/")
            is_piece = isinstance(layer, Piece)
            find = piece_bound if is_piece else layer_bound
            bound = find(layer, shapes, context)
            self._known[key] = bound
            self._rows[key] = len(self.table)
            self.table.append(
                LayerBound(
                    prefix + layer.name,
                    layer.type_name if is_piece else type(layer).__name__,
                    float(bound.value),
                    bound.method,
                    bound.exact,
                )
            )
        return self._known[key]
