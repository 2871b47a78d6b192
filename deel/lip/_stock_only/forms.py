"""Forms of layers without a kernel; see [forms] in `conversion`."""

import inspect

import keras

from deel.lip._backend.tensors import cast
from deel.lip._export import build_once
from deel.lip._export import copy_state


def call_of(form, *args, **kwargs):
    if isinstance(form, (keras.Operation, Copied)):
        return form(*args, **kwargs)
    # A form is for inference, and masks have been refused.
    return form(*args)


class Copied:
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

    def in_order(self, x, order):
        """What a layer with weights for each channel makes of others."""
        outputs = self(x)
        weights = self._source.get_weights()
        self._layer.set_weights([weight[order] for weight in weights])
        return outputs


class Chained:
    """A form, and that of an activation behind it."""

    def __init__(self, first, activation, convert):
        self._first = first
        self._activation = activation
        self._convert = convert

    def __call__(self, x):
        y = self._first(x)
        build_once(self._activation, y.shape)
        return self._convert(self._activation)(y)


class OwnForm:
    """The form that a layer of this library says it has.

    Attributes:
        takes_orders: Boolean, whether it takes its input in any order, and
            notes that of its output.
    """

    def __init__(self, layer, convert):
        self.layer = layer
        self.takes_orders = getattr(layer, "_takes_orders", False)
        self._convert = convert

    def __call__(self, inputs):
        return self.layer._stock_call(inputs, self._convert)


class Traced:
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
