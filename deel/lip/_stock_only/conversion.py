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

import keras
import numpy as np
from keras import ops

from deel.lip._backend.tensors import scaled
from deel.lip._export import as_functional
from deel.lip._export import renewed_inputs
from deel.lip._export import stock_version
from deel.lip._export import without_constraints
from deel.lip._graph import nodes_in_order
from deel.lip._lipschitz import Condensable
from deel.lip._stock_only.checks import is_stock
from deel.lip._stock_only.checks import require_known
from deel.lip._stock_only.checks import require_stock
from deel.lip._stock_only.checks import without_training
from deel.lip._stock_only.folded_sorts import folds
from deel.lip._stock_only.forms import Chained
from deel.lip._stock_only.forms import Copied
from deel.lip._stock_only.forms import OwnForm
from deel.lip._stock_only.forms import Traced
from deel.lip._stock_only.forms import call_of
from deel.lip._stock_only.kernels import KERNELS
from deel.lip._stock_only.kernels import Linear
from deel.lip._stock_only.kernels import has_layer
from deel.lip._stock_only.kernels import is_plain
from deel.lip._stock_only.kernels import own_weights
from deel.lip._stock_only.kernels import with_weights
from deel.lip._stock_only.names import Names
from deel.lip._stock_only.orders import JOINS
from deel.lip._stock_only.orders import KEEPS_ORDER
from deel.lip._stock_only.orders import KEEPS_SIGNS
from deel.lip._stock_only.orders import has_channel_weights
from deel.lip._stock_only.orders import is_channels_last
from deel.lip._stock_only.orders import readers_of
from deel.lip._stock_only.orders import same
from deel.lip._stock_only.orders import wants_halves


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
    return stock_model(model) if stock_only else without_constraints(model)


def stock_model(model, folds_sorts=False):
    """What `vanillaModel` returns with `stock_only`.

    Args:
        model: As of `vanillaModel`.
        folds_sorts: Boolean, whether convolutions sort where that is faster in
            some runtimes; see [Folded sorts].
    """
    if isinstance(model, keras.Model):
        for layer in model._flatten_layers(include_self=False):
            require_known(layer)
    return _Converter(folds_sorts).model(without_constraints(model))


class _Converter:
    """Finds the form of each layer; see [forms].

    Called with a layer, it returns a function from symbolic tensors, with their
    channels as they were, to those that the layer makes of them.
    """

    def __init__(self, folds_sorts=False):
        self._folds_sorts = folds_sorts
        self._forms = {}
        self._layers = []
        self._orders = {}
        self._sorted = {}
        self._unscaled = {}
        self._made = {}

    def order_of(self, x):
        """The channels of a tensor: an array of integers, None as they were."""
        return self._orders.get(id(x), (None, None, ()))[1]

    def signs_of(self, x):
        """The factors, 1 and -1, of the channels in their order, or None."""
        return self._orders.get(id(x), (None,) * 4)[3]

    def scaled(self, x, factor):
        """A tensor times a number, which the next kernel may take instead."""
        outputs = scaled(x, factor)
        # Kernels lose no digits, nor become infinite.
        if x.dtype == "float32" and 1e-3 <= factor <= 1e3:
            self._unscaled[id(outputs)] = outputs, x, factor
        return outputs

    def unscaled(self, x):
        """The tensor and the factor of which `scaled` has made a tensor.

        What reads them in place of it leaves nobody who needs the product.
        """
        return self._unscaled.get(id(x), (x, x, 1.0))[1:]

    def is_in_order(self, x, order):
        """Whether that is the order of a tensor, with no channel negated."""
        is_same = np.array_equal(self.order_of(x), order)
        return is_same and self.signs_of(x) is None

    def in_order(self, x, order, parts=(), signs=None):
        """Notes the order of the channels of a tensor, and returns it.

        Args:
            x: Symbolic tensor.
            order: As `order_of` returns it.
            parts: Symbolic tensors, whose channels side by side are those of
                `x`. What reads them in place of `x` saves a copy.
            signs: As `signs_of` returns it.
        """
        # With the tensor, whose id is its own while it is there.
        self._orders[id(x)] = x, order, parts, signs
        return x

    def sorted_before(self, x):
        """What sorts the pairs of a tensor already, a symbolic one, or None."""
        return self._sorted.get(id(x))

    def sort_before(self, x, pairs):
        """Notes what the pairs of a tensor are once they are sorted."""
        self._sorted[id(x)] = pairs

    def once(self, layer, make):
        """What a function makes for a layer, the same for the same layer.

        Stock layers that stand for it are made by this, so that they are
        shared, and named, as it is.
        """
        key = id(layer), make.__code__
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def stock(self, layer):
        """The stock layer that one of ours is a kind of, without weights."""

        def make():
            stock = stock_class_of(layer)
            return stock.from_config(stock.get_config(layer))

        return self.once(layer, make)

    def _each_part(self, form, x, order):
        """A form of a layer that handles all channels alike."""
        parts = self._orders[id(x)][2]
        # XLA makes one function of both halves, and of what puts them together.
        if not parts or keras.backend.backend() == "jax":
            return self.in_order(form(x), order)
        parts = [form(part) for part in parts]
        # Each by the same factor.
        made, (factor, *_) = zip(*map(self.unscaled, parts), strict=True)
        outputs = self.scaled(ops.concatenate(made, axis=-1), factor)
        return self.in_order(outputs, order, parts)

    def _whole(self, form, kind, x):
        """A form of a layer of a class; of one that is linear, before `scaled`.

        So the factor comes nearer to the kernel that takes it.
        """
        made, factor = self.unscaled(x)
        if factor == 1.0 or not KEEPS_SIGNS.get(kind):
            return form(x)
        return self.scaled(form(made), factor)

    def restored(self, x):
        """The tensor with its channels as they were."""
        order, signs = self.order_of(x), self.signs_of(x)
        if signs is not None:
            x = ops.multiply(x, signs)
        if order is None:
            return x
        return ops.take(x, np.argsort(order), axis=-1)

    def __call__(self, layer):
        form = self.form(layer)
        return lambda *args: self.restored(form(*args))

    def form(self, layer):
        """The form of a layer, the same for the same layer.

        So what is shared stays shared. What it returns may have another order.
        """
        if id(layer) not in self._forms:
            self._forms[id(layer)] = self._form_of(layer)
            # An id is that of one object for as long as the object is there.
            self._layers.append(layer)
        return self._forms[id(layer)]

    def model(self, model):
        """A functional model of the forms of a stock model's layers."""
        if isinstance(model, keras.Sequential):
            graph = keras.Model(model.inputs[0], model.outputs[0])
        else:
            graph = as_functional(model)
        readers, uses = readers_of(graph)
        names = Names(graph)
        inputs = renewed_inputs(graph)
        found = dict(
            zip(
                map(id, keras.tree.flatten(graph.input)),
                keras.tree.flatten(inputs),
                strict=True,
            )
        )

        def known(x):
            return found[id(x)] if isinstance(x, keras.KerasTensor) else x

        for node in nodes_in_order(graph):
            args, kwargs = keras.tree.map_structure(
                known, (node.arguments.args, node.arguments.kwargs)
            )
            outputs = self._called(node, args, kwargs, readers, uses)
            outputs = keras.tree.flatten(outputs)
            names.give(outputs, node.operation.name)
            for x, made in zip(node.outputs, outputs, strict=True):
                found[id(x)] = made
        outputs = keras.tree.map_structure(
            lambda x: self.restored(found[id(x)]), graph.output
        )
        names.give(keras.tree.flatten(outputs))
        made = keras.Model(inputs, outputs, name=model.name)
        require_stock(made)
        return made

    def _called(self, node, args, kwargs, readers, uses):
        form = self.form(node.operation)
        # Keras records `training=False` as well.
        is_plain = all(x is None or x is False for x in kwargs.values())
        if uses[id(node.operation)] == 1 and len(args) == 1 and is_plain:
            (x,) = args
            if isinstance(form, Linear):
                wanted = form.is_linear and wants_halves(
                    node.outputs[0], readers
                )
                is_folded = self._folds_sorts and folds(
                    node,
                    readers,
                    lambda n: isinstance(self.form(n.operation), Linear),
                )
                return form.in_orders(x, wanted, is_folded)
            kind = type(node.operation)
            if kind in JOINS:
                order = self._common_order(x)
                if order is not None:
                    return self.in_order(form(x), order)
            elif has_channel_weights(node.operation, x):
                order = self.order_of(x)
                if order is not None and self.signs_of(x) is None:
                    return self.in_order(form.in_order(x, order), order)
            keeps = KEEPS_ORDER.get(kind)
            signs = self.signs_of(x)
            if signs is not None and kind not in KEEPS_SIGNS:
                keeps = None
            if keeps is not None and is_channels_last(node.operation):
                order = self.order_of(x)
                if order is None:
                    return self._whole(form, kind, x)
                order = keeps(order, x.shape)
                if order is not None and signs is not None:
                    signs = np.resize(signs, order.shape)
                    signs = signs if KEEPS_SIGNS[kind] else None
                    made = self._whole(form, kind, x)
                    return self.in_order(made, order, signs=signs)
                if keeps is same and order is not None:
                    return self._each_part(form, x, order)
                if order is not None:
                    return self.in_order(self._whole(form, kind, x), order)
        if getattr(form, "takes_orders", False):
            return form(*args)
        args, kwargs = keras.tree.map_structure(
            lambda x: (
                self.restored(x) if isinstance(x, keras.KerasTensor) else x
            ),
            (args, kwargs),
        )
        return call_of(form, *args, **kwargs)

    def _common_order(self, tensors):
        """The order of all of several tensors, or None."""
        order = self.order_of(tensors[0])
        is_same = order is not None and all(
            x.shape == tensors[0].shape and self.is_in_order(x, order)
            for x in tensors
        )
        return order if is_same else None

    def built(self, layer, inputs):
        """What the stock layer that one of ours is a kind of makes of inputs.

        With its weights, and an activation that may be one of ours.
        """

        def make():
            stock = stock_class_of(layer)
            config = without_training(stock.get_config(layer))
            stock = stock.from_config(config)
            stock.build(inputs.shape)
            stock.set_weights(layer.get_weights())
            return stock

        return self(self.once(layer, make))(inputs)

    def _form_of(self, layer):
        if not isinstance(layer, keras.layers.Layer):
            # An operation of a functional model.
            return layer
        if isinstance(layer, keras.Model):
            return self.model(layer)
        if is_stock(type(layer)):
            return self._stock_form(layer)
        if hasattr(layer, "_stock_call"):
            return OwnForm(layer, self)
        if isinstance(layer, Condensable):
            return self.form(stock_version(layer)[0])
        return Traced(layer)

    def _stock_form(self, layer):
        if isinstance(layer, keras.layers.Wrapper):
            return self._wrapped(layer)
        activation = getattr(layer, "activation", None)
        config = without_training(layer.get_config())
        is_last = has_layer(layer) and type(layer) in _END_WITH_ACTIVATION
        if type(layer) in KERNELS and is_plain(layer):
            return Linear(layer, config, self)
        if not is_last:
            return Copied(layer, type(layer).from_config(config))
        # Stock layers take for granted that an activation is a function.
        linear = type(layer).from_config({**config, "activation": "linear"})
        form = with_weights(linear, own_weights(layer))
        return Chained(form, activation, self)

    def _wrapped(self, layer):
        inner = layer.layer
        is_model = isinstance(inner, keras.Model)
        is_steps = type(layer) is keras.layers.TimeDistributed
        is_alone = not is_steps or not (is_model or has_layer(inner))
        if is_alone and is_stock(type(inner)):
            config = without_training(layer.get_config())
            return Copied(layer, type(layer).from_config(config))
        if not is_steps:
            raise ValueError(
                "Expected layers of Keras inside of a wrapper. Received: layer "
                f"'{layer.name}' of type {type(layer).__name__} with "
                f"{inner.name} of type {type(inner).__name__}"
            )
        shape = layer._build_shapes_dict["input_shape"]
        if not is_model:
            inputs = keras.Input((*shape[2:],), dtype=inner.compute_dtype)
            inner = keras.Model(inputs, self(inner)(inputs), name=inner.name)
        else:
            inner = self.form(inner)
        return keras.layers.TimeDistributed(
            inner, name=layer.name, dtype=layer.dtype_policy
        )


def stock_class_of(layer):
    """The stock class that a layer of this library is a kind of."""
    return next(base for base in type(layer).__mro__ if is_stock(base))


# Stock layers that apply their activation to what they return.
_END_WITH_ACTIVATION = {
    *KERNELS,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.EinsumDense,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
}
