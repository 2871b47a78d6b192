"""How models become Keras alone: stock layers and operations of `keras.ops`.

Note [forms]

What `vanillaModel` leaves of this library are layers without a constrained
kernel: activations, scaled poolings, residual blocks. Each has a form that
Keras knows: the method `_stock_call`, of symbolic tensors, or else its own
`call`, whose operations Keras records when it is given symbolic tensors. So a
new layer has one without a line about it, unless it has weights, or gradients
of its own making.

What has weights becomes a stock layer with these weights; a few numbers, such
as a mean for each channel, are arguments of an operation.
"""

import inspect

import keras

from deel.lip._backend.tensors import cast
from deel.lip._backend.variables import host
from deel.lip._export import as_functional
from deel.lip._export import copy_state
from deel.lip._export import renewed_inputs
from deel.lip._export import stock_version
from deel.lip._export import without_constraints
from deel.lip._lipschitz import Condensable


def vanillaModel(model, stock_only=False):
    """Converts a model to stock Keras, without the cost of the constraints.

    Each layer with a constrained kernel is replaced by the stock layer with
    that kernel, every other layer by a copy. So layers without kernel, such as
    `GroupSort2` or `ScaledL2NormPooling2D`, stay what they are, and **loading
    the saved model takes an import of `deel.lip` first**, unless `stock_only`.

    Names, topology and predictions (within 1e-5) are those of the model, which
    is left as it is and shares no variable with the result.

    Args:
        model: A `keras.Sequential` or functional `keras.Model`, or one of
            `deel.lip.model`, that is built.
        stock_only: Boolean. True returns a functional model of stock layers and
            `keras.ops` alone, which loads where this library is not installed,
            under any backend. It is for inference: trained further, it is not
            what the layers of this library would be.

    Returns:
        A `keras.Sequential` or `keras.Model`, not compiled.

    Raises:
        ValueError: If the model is not built, has weights that are not finite,
            or is a subclass of `keras.Model` with a `call` of its own. With
            `stock_only` also for a layer, or a part of one, that is neither of
            Keras nor of this library, or that makes a mask.

    Example:

    >>> import keras
    >>> from deel.lip.layers import SpectralDense
    >>> from deel.lip.activations import GroupSort2
    >>> from deel.lip.model import Sequential, vanillaModel
    >>> model = Sequential(
    ...     [keras.Input((8,)), SpectralDense(4, activation=GroupSort2())]
    ... )
    >>> served = vanillaModel(model, stock_only=True)
    >>> {type(x).__module__.split(".")[0] for x in served.operations}
    {'keras'}
    """
    if not stock_only:
        return without_constraints(model)
    if isinstance(model, keras.Model):
        for layer in model._flatten_layers(include_self=False):
            _require_known(layer)
    return _Converter().model(without_constraints(model))


class _Converter:
    """Finds the form of each layer; see [forms].

    Called with a layer, it returns a function from symbolic tensors to those
    that the layer makes of them. For the same layer the same, so that what is
    shared stays shared.
    """

    def __init__(self):
        self._forms = {}
        self._layers = []

    def __call__(self, layer):
        if id(layer) not in self._forms:
            self._forms[id(layer)] = self._form_of(layer)
            # An id is that of one object for as long as the object is there.
            self._layers.append(layer)
        return self._forms[id(layer)]

    def model(self, model):
        """A functional model of the forms of a stock model's layers."""
        if isinstance(model, keras.Sequential):
            return self._sequential(model)
        clone = keras.models.clone_model(
            as_functional(model),
            input_tensors=renewed_inputs(model),
            clone_function=self,
            call_function=_call,
        )
        return as_functional(clone, name=model.name)

    def _sequential(self, model):
        (given,) = model.inputs
        first = model._layers[0]
        is_input = isinstance(first, keras.layers.InputLayer)
        x = inputs = keras.Input(
            batch_shape=given.shape,
            dtype=given.dtype,
            name=first.name if is_input else None,
        )
        for layer in model.layers:
            x = self(layer)(x)
        return keras.Model(inputs, x, name=model.name)

    def built(self, layer, inputs):
        """What the stock layer that one of ours is a kind of makes of inputs.

        With its weights, and an activation that may be one of ours.
        """
        stock = stock_class_of(layer)
        config = without_training(stock.get_config(layer))
        stock = stock.from_config(config)
        stock.build(inputs.shape)
        stock.set_weights(layer.get_weights())
        return self(stock)(inputs)

    def _form_of(self, layer):
        if not isinstance(layer, keras.layers.Layer):
            # An operation of a functional model.
            return layer
        if isinstance(layer, keras.Model):
            return self.model(layer)
        if _is_stock(type(layer)):
            return self._stock_form(layer)
        if hasattr(layer, "_stock_call"):
            return lambda inputs: layer._stock_call(inputs, self)
        if isinstance(layer, Condensable):
            return self(stock_version(layer)[0])
        return _Traced(layer)

    def _stock_form(self, layer):
        if isinstance(layer, keras.layers.Wrapper):
            return self._wrapped(layer)
        activation = getattr(layer, "activation", None)
        config = without_training(layer.get_config())
        if not isinstance(activation, keras.layers.Layer):
            return _Copy(layer, type(layer).from_config(config))
        # Stock layers take for granted that an activation is a function.
        linear = type(layer).from_config({**config, "activation": "linear"})
        inner = {id(variable) for variable in activation.weights}
        weights = [host(x) for x in layer.weights if id(x) not in inner]
        return _Chain(with_weights(linear, weights), self(activation))

    def _wrapped(self, layer):
        inner = layer.layer
        if not isinstance(inner, keras.Model):
            form = self(inner)
            if isinstance(form, _Copy):
                return _Copy(layer, type(layer).from_config(layer.get_config()))
        # All wrappers whose inner layer is one of ours are `TimeDistributed`.
        if type(layer) is not keras.layers.TimeDistributed:
            raise ValueError(
                "Expected layers of Keras inside of a wrapper. Received: layer "
                f"'{layer.name}' of type {type(layer).__name__} with "
                f"{inner.name} of type {type(inner).__name__}"
            )
        shape = layer._build_shapes_dict["input_shape"]
        if not isinstance(inner, keras.Model):
            inputs = keras.Input((*shape[2:],), dtype=inner.compute_dtype)
            inner = keras.Model(inputs, form(inputs), name=inner.name)
        else:
            inner = self(inner)
        return keras.layers.TimeDistributed(
            inner, name=layer.name, dtype=layer.dtype_policy
        )


def _call(form, *args, **kwargs):
    if isinstance(form, (keras.Operation, _Copy)):
        return form(*args, **kwargs)
    # A form is for inference, and masks have been refused.
    return form(*args)


class _Copy:
    """A stock layer that gets the weights of another one once it is built."""

    def __init__(self, source, layer):
        self._source = source
        self._layer = layer
        self._has_state = False

    def __call__(self, *args, **kwargs):
        outputs = self._layer(*args, **kwargs)
        if not self._has_state:
            copy_state(self._source, self._layer)
            self._has_state = True
        return outputs


class _Chain:
    """One form after the other."""

    def __init__(self, *forms):
        self._forms = forms

    def __call__(self, x):
        for form in self._forms:
            x = form(x)
        return x


class _Traced:
    """What the `call` of a layer makes of symbolic tensors, at inference."""

    def __init__(self, layer):
        self._layer = layer

    def __call__(self, inputs):
        layer = self._layer
        inputs = keras.tree.map_structure(
            lambda x: cast(x, layer.compute_dtype), inputs
        )
        takes = inspect.signature(layer.call).parameters
        options = {"training": False} if "training" in takes else {}
        return layer.call(inputs, **options)


def with_weights(layer, weights):
    """A stock layer, as a form, with weights from the start.

    Args:
        layer: A layer that is not built.
        weights: List of NumPy arrays.
    """

    def form(*args):
        outputs = layer(*args)
        layer.set_weights(weights)
        return outputs

    return form


def stock_class_of(layer):
    """The stock class that a layer of this library is a kind of."""
    return next(base for base in type(layer).__mro__ if _is_stock(base))


def _is_stock(kind):
    return kind.__module__.split(".")[0] == "keras"


def _is_ours(kind):
    return kind.__module__.startswith("deel.lip.")


# What training needs and inference does not.
_TRAINING = ("initializer", "regularizer", "constraint")


def without_training(config):
    """The config of a stock layer, without foreign objects for training."""
    return {
        key: value
        for key, value in config.items()
        if not (key.endswith(_TRAINING) and _is_foreign(value))
    }


def _require_known(layer):
    """Raises ValueError for a layer that has no form; see [forms]."""
    described = f"layer '{layer.name}' of type {type(layer).__name__}"
    if not _is_stock(type(layer)):
        if _is_ours(type(layer)) or isinstance(layer, Condensable):
            return
        raise ValueError(
            "Keras alone cannot load a layer of your own. Expected layers of "
            f"Keras and of this library. Received: {described}"
        )
    if isinstance(layer, keras.layers.Lambda):
        raise ValueError(
            "What is in a `Lambda` layer is not loaded in safe mode. Expected "
            "operations of `keras.ops`, on the tensors of a functional model. "
            f"Received: {described}"
        )
    if isinstance(layer, keras.layers.Masking) or getattr(
        layer, "mask_zero", False
    ):
        raise ValueError(
            "Operations take no mask. Expected a model that makes none. "
            f"Received: {described}"
        )
    if isinstance(layer, keras.Model):
        return
    found = next(_unknown_in(without_training(layer.get_config())), None)
    if found is not None:
        raise ValueError(
            "Keras alone cannot load functions and objects of your own. "
            f"Expected those of Keras. Received: {found} in {described}"
        )


def _unknown_in(config):
    """Yields the names, at any depth, of what is of neither library."""
    if isinstance(config, dict):
        if "class_name" in config and "module" in config:
            module = config["module"] or ""
            if not _is_foreign(config) or module.startswith("deel.lip."):
                yield from _unknown_in(config.get("config"))
            else:
                is_function = config["class_name"] == "function"
                yield config["config" if is_function else "class_name"]
            return
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for part in config:
            yield from _unknown_in(part)


def _is_foreign(config):
    """Whether a config names a class or function that is not of Keras."""
    if not isinstance(config, dict):
        return False
    return (config.get("module") or "").split(".")[0] != "keras"
