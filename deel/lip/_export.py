"""How models, and layers inside of others, become stock Keras."""

import inspect
import os

import keras

from deel.lip._graph import require_graph
from deel.lip._lipschitz import Condensable
from deel.lip._validation import require_built


def without_constraints(model):
    """A copy of a model whose constrained layers are stock ones.

    What `deel.lip.model.vanillaModel` says, but for `stock_only`.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`vanillaModel` expects a Keras model. "
            f"Received: model={model} (of type {type(model).__name__})"
        )
    require_built(model, "vanilla_export")
    require_graph(model, "`vanillaModel` converts")
    # Copied weights are assigned last: copies are built by the new graph.
    copies = []
    converted = []

    def convert(layer):
        found, is_copy = stock_version(layer)
        if is_copy:
            copies.append((layer, found))
        elif not isinstance(layer, keras.Model):
            converted.append(found)
        return found

    def call(layer, *args, **kwargs):
        # The graph remembers the default of a constrained layer, training. A
        # stock layer has no use for it, and would hand it to all that follow.
        if any(layer is one for one in converted):
            kwargs.pop("training", None)
        return layer(*args, **kwargs)

    if isinstance(model, keras.Sequential):
        # The list of `_layers` starts with the input layer.
        layers = [convert(layer) for layer in model._layers]
        exported = keras.Sequential(layers, name=model.name)
        if not exported.built:
            exported.build(model.input_shape)
    else:
        clone = keras.models.clone_model(
            as_functional(model),
            input_tensors=renewed_inputs(model),
            clone_function=convert,
            call_function=call,
        )
        exported = as_functional(clone, name=model.name)
    for layer, copy in copies:
        copy_state(layer, copy)
    return exported


def copy_state(source, target):
    """Gives a built copy of a layer the same inference as the layer."""
    target.set_weights(source.get_weights())
    pairs = zip(source._flatten_layers(), target._flatten_layers(), strict=True)
    for used, copy in pairs:
        if isinstance(copy, keras.layers.Normalization):
            # It computes with what it has read of its weights before.
            copy.mean, copy.variance = used.mean, used.variance


def build_once(layer, input_shape):
    """Builds a layer that may have been built before."""
    # Keras builds layers inside of a config by itself when it reads one.
    if not layer.built:
        layer.build(input_shape)


def stock_version(layer):
    """A layer or model with the same inference, without the constraints.

    Args:
        layer: A built layer or model.

    Returns:
        Pair: the object, and whether it is a copy that is not built, so that
        it has yet to get the weights of the layer.
    """
    if not isinstance(layer, keras.layers.Layer):
        # An operation on the tensors of a functional model has no state.
        return layer, False
    if isinstance(layer, keras.Model):
        return without_constraints(layer), False
    if isinstance(layer, Condensable):
        return layer.vanilla_export(), False
    is_pair = isinstance(layer, keras.layers.Bidirectional)
    if is_pair and any(condensable_layers([layer])):
        return _both_directions(layer), False
    return type(layer).from_config(layer.get_config()), True


def _both_directions(layer):
    """A `Bidirectional` layer of the stock versions of both of its layers."""
    parts = layer.forward_layer, layer.backward_layer
    versions = [stock_version(part) for part in parts]
    (forward, _), (backward, _) = versions
    exported = keras.layers.Bidirectional(
        forward,
        merge_mode=layer.merge_mode,
        backward_layer=backward,
        name=layer.name,
        dtype=layer.dtype_policy,
    )
    exported.build(layer._build_shapes_dict["sequences_shape"])
    # It makes the forward layer anew, from its config.
    targets = exported.forward_layer, exported.backward_layer
    for part, version, target in zip(parts, versions, targets, strict=True):
        source, is_copy = version
        copy_state(part if is_copy else source, target)
    return exported


def condensable_layers(layers):
    """Yields those of the layers that can be condensed, at any depth.

    Args:
        layers: Iterable of layers and models. What is inside of a model, of a
            wrapper, or of a recurrent layer, stands for it.
    """
    for layer in layers:
        if isinstance(layer, Condensable) and not isinstance(layer, _HOLDERS):
            yield layer
        else:
            # Keras has no public name for what a layer holds.
            yield from condensable_layers(
                layer._flatten_layers(include_self=False, recursive=False)
            )


# What is condensed by what is inside.
_HOLDERS = (keras.Model, keras.layers.Wrapper, keras.layers.RNN)


def condense_layers(model):
    """Condenses all layers, or none if one of them cannot be."""
    layers = list(condensable_layers(model.layers))
    for layer in layers:
        layer._check_condensable()
    for layer in layers:
        layer.condense()


def as_functional(model, name=None):
    """The graph of a functional model, as one of the stock class."""
    # `input` and `output` keep the structure that the user gave: a tensor, a
    # list or a dictionary.
    return keras.Model(model.input, model.output, name=name or model.name)


def renewed_inputs(model):
    """New input tensors like those of a functional model, names included."""
    names = {
        id(operation.output): operation.name
        for operation in model.operations
        if isinstance(operation, keras.layers.InputLayer)
    }
    return keras.tree.map_structure(
        lambda x: keras.Input(
            batch_shape=x.shape, dtype=x.dtype, name=names[id(x)]
        ),
        model.input,
    )


def write_for_serving(model, filepath, *args, **kwargs):
    """Writes a stock model as `keras.Model.export` does, called or not."""
    # The oldest Keras has one format, and no such argument.
    known = inspect.signature(model.export).parameters
    if "input_signature" in known and len(args) < 3:
        # Of a model that was never called, some formats ask for it.
        kwargs.setdefault("input_signature", _input_signature(model))
    # Not every format takes a path that is no string.
    return model.export(os.fspath(filepath), *args, **kwargs)


def _input_signature(model):
    """What `keras.Model.export` needs to know of the inputs of a model."""
    # A list of layers that was never called has no `input`.
    sequential = isinstance(model, keras.Sequential)
    inputs = model.inputs[0] if sequential else model.input
    return [
        keras.tree.map_structure(
            lambda x: keras.InputSpec(
                shape=x.shape, dtype=x.dtype, name=x.name
            ),
            inputs,
        )
    ]
