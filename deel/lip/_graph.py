"""Which models are graphs, and in which order their nodes run."""

import keras


def is_graph(model):
    """Whether a model is Sequential or functional, without a `call` of its own.

    Args:
        model: A Keras model.
    """
    # Keras makes a functional model of a class without a public name.
    stock = next(
        base
        for base in type(model).__mro__
        if base in (keras.Sequential, keras.Model)
        or (base.__name__ == "Functional" and "keras" in base.__module__)
    )
    return stock is not keras.Model and type(model).call is stock.call


def require_graph(model, purpose):
    """Raises ValueError for models with a `call` of their own.

    Args:
        model: A Keras model.
        purpose: String, the beginning of the message.
    """
    if not is_graph(model):
        raise ValueError(
            f"{purpose} Sequential and functional models without a `call` of "
            "their own, whose graph of layers is known. "
            f"Received: model '{model.name}' of type {type(model).__name__}"
        )


def nodes_in_order(model):
    """Yields the nodes of a functional model, but for those of its inputs."""
    # Keras has no public name for the order in which it runs them.
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            is_input = isinstance(node.operation, keras.layers.InputLayer)
            if not node.is_input and not is_input:
                yield node


def nodes_of(model):
    """The nodes of the graph of a model; none where it has no graph yet."""
    # Keras has no public name for them, nor for the graph of a `Sequential`.
    graph = getattr(model, "_functional", model)
    by_depth = getattr(graph, "_nodes_by_depth", None) or {}
    return [node for nodes in by_depth.values() for node in nodes]


def last_layer(model):
    """The layer, also inside of nested models, that makes the only output."""
    while isinstance(model, keras.Model):
        # Keras has no public name for where a tensor comes from.
        model = model.outputs[0]._keras_history.operation
    return model


def require_float_inputs(model):
    """Raises ValueError if a model inside of another one rounds its inputs."""
    for tensor in model.inputs:
        if not keras.backend.is_float_dtype(tensor.dtype):
            raise ValueError(
                "Rounding to whole numbers has no Lipschitz constant. "
                f"Received: model '{model.name}', inside of another one, with "
                f"an input of dtype {tensor.dtype}"
            )


def require_plain_call(node):
    """Raises ValueError if a layer is called with more than its inputs."""
    layer = node.operation
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
