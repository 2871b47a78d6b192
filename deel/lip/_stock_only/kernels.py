"""Layers with a kernel, which takes and makes channels in any order."""

import keras
import numpy as np

from deel.lip._backend.variables import host
from deel.lip._export import build_once
from deel.lip._numerics.sorting import halves
from deel.lip._stock_only.folded_sorts import folded
from deel.lip._stock_only.folded_sorts import signs_of_halves
from deel.lip._stock_only.orders import is_channels_last
from deel.lip._stock_only.orders import sorts_pairs


class Linear:
    """A stock layer with a kernel, whose channels may be in any order."""

    def __init__(self, layer, config, convert):
        self._layer = layer
        self._config = config
        if has_layer(layer):
            self._config = {**config, "activation": "linear"}
        self._convert = convert
        self._made = None

    @property
    def is_linear(self):
        """Whether it returns what its kernel makes of its input."""
        return self._layer.activation is keras.activations.linear

    def _activated(self, y):
        if not has_layer(self._layer):
            return y
        activation = self._layer.activation
        # Keras builds it with the first data.
        build_once(activation, y.shape)
        form = self._convert.form(activation)
        if not getattr(form, "takes_orders", False):
            y = self._convert.restored(y)
        return form(y)

    def in_orders(self, x, wants_halves, is_folded=False):
        """The output for an input in the order that it has.

        Args:
            x: Symbolic tensor.
            wants_halves: Boolean, whether the output is read in halves alone.
            is_folded: Boolean, whether it is sorted then, as [Folded sorts]
                says.
        """
        layer, convert = self._layer, self._convert
        if has_layer(layer):
            wants_halves = sorts_pairs(layer.activation, layer.kernel.shape[-1])
        kernel, *bias = own_weights(layer)
        if (given := convert.order_of(x)) is not None:
            kernel = np.take(kernel, given, axis=-2)
        if (signs := convert.signs_of(x)) is not None:
            kernel = kernel * signs[:, None]
        x, factor = convert.unscaled(x)
        kernel = kernel * factor
        order = signs = None
        if wants_halves:
            order = halves(kernel.shape[-1])
            kernel, *bias = (
                np.take(w, order, axis=-1) for w in (kernel, *bias)
            )
        if is_folded:
            signs = signs_of_halves(kernel.shape[-1])
            kernel, *bias = (w * signs for w in (kernel, *bias))
        made = type(layer).from_config(self._config)
        weights = [kernel, *bias]
        y = convert.in_order(with_weights(made, weights)(x), order, signs=signs)
        if is_folded:
            pairs = folded(layer, self._config, x, y, weights, with_weights)
            convert.sort_before(y, convert.in_order(pairs, order, signs=signs))
        return self._activated(y)

    def __call__(self, x):
        # One for all places, with all channels as they were.
        if self._made is None:
            self._made = type(self._layer).from_config(self._config)
            y = with_weights(self._made, own_weights(self._layer))(x)
        else:
            y = self._made(x)
        return self._activated(y)


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


def own_weights(layer):
    """Weights of a layer without those of an activation that is a layer."""
    inner = layer.activation.weights if has_layer(layer) else ()
    inner = set(map(id, inner))
    return [host(x) for x in layer.weights if id(x) not in inner]


def has_layer(layer):
    """Whether the activation inside of a layer is a layer."""
    activation = getattr(layer, "activation", None)
    return isinstance(activation, keras.layers.Layer)


# Layers whose kernel ends with the axes of inputs and outputs.
KERNELS = {
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Dense,
}


def is_plain(layer):
    """Whether each output of a layer with a kernel reads all of its inputs.

    By floats: quantized ones have scales besides, and may be packed.
    """
    is_quantized = getattr(layer, "quantization_mode", None) is not None
    is_whole = getattr(layer, "groups", 1) == 1
    return is_channels_last(layer) and is_whole and not is_quantized
