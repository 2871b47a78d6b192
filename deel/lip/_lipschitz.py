"""The two protocols of the library: a known constant, and an export.

Note [who counts on a constant]. A model promises a constant that it shares out
over layers, which anybody can give another one later: a user, or another model
that holds the same layer. So models register with the layers that they count
on, and hear of each change at the moment it happens. The register is weak, and
no attribute of the layers: Keras would track it, copies would bring it along.
"""

import contextlib
import contextvars
import warnings
import weakref

import keras

from deel.lip._numerics.activations import facts_of
from deel.lip._validation import lipschitz_constant

# For each layer, the models to tell; see the note.
_counting = weakref.WeakKeyDictionary()

# Models to tell once a change of several constants is complete; None outside.
_waiting = contextvars.ContextVar("waiting", default=None)


def count_on(layer, model):
    """Has `model._hear_of_constant()` called when a constant changes.

    Args:
        layer: A `LipschitzLayer`.
        model: An object with that method.
    """
    _counting.setdefault(layer, weakref.WeakSet()).add(model)


@contextlib.contextmanager
def changing_together():
    """Surrounds changes of several constants, judged when all are made."""
    if _waiting.get() is not None:
        yield
        return
    # By identity, and in order.
    models = {}
    token = _waiting.set(models)
    try:
        yield
    finally:
        _waiting.reset(token)
    for model in models.values():
        model._hear_of_constant()


def tell_of_constant(layer):
    """Notes the models that count on a layer, and those that count on them.

    Args:
        layer: A layer whose constant changes, within `changing_together`.
    """
    seen = _waiting.get()
    for model in list(_counting.get(layer, ())):
        if id(model) not in seen:
            seen[id(model)] = model
            tell_of_constant(model)


class KnownConstant:
    """Mixin of the layers whose Lipschitz constant is known."""

    def _whole_constant(self):
        """Constant of the layer, activation included; None if not known."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement `_whole_constant`."
        )


class LipschitzLayer(KnownConstant):
    """Mixin of the layers that take a Lipschitz constant `k_coef_lip`.

    A layer of this kind multiplies a 1-Lipschitz map by `k_coef_lip`. Most
    maps have to be divided by their own norm first: `coef_lip` is that
    structural coefficient (1 for a dense layer, the inverse root of the
    window overlap for a convolution), known as soon as the layer is built.

    The mixin by itself guarantees nothing. It is how
    `deel.lip.model.Sequential` hands each layer its share of the constant.
    """

    _k_coef_lip = 1.0
    coef_lip = None

    @property
    def k_coef_lip(self):
        """The Lipschitz constant; to assign it is to call `set_klip_factor`."""
        return self._k_coef_lip

    @k_coef_lip.setter
    def k_coef_lip(self, value):
        # By name: a subclass may assign the attribute in the method.
        LipschitzLayer.set_klip_factor(self, value)

    def set_klip_factor(self, klip_factor):
        """Sets the Lipschitz constant of the layer.

        A stock model that was compiled before has to be compiled again, as for
        any attribute that Keras reads when it traces a step. Until then its
        former steps go on with the former constant, or, in layers that divide
        by it (`SLLDense`, `SandwichDense` and their convolutions), with a mix
        of both, of which no bound is known. The models of `deel.lip.model` see
        to it for their layers, and `Sequential` warns if it thereby exceeds the
        constant that it promises.

        Args:
            klip_factor: Float from 1e-18 to 1e18: squares of it, which
                gradients contain, are then normal numbers in float32.
        """
        with changing_together():
            # All that may be refused, before anything changes.
            value = self._checked_constant(klip_factor)
            self._k_coef_lip = value
            self._use_constant()
            tell_of_constant(self)

    def _checked_constant(self, value):
        """`value` as a float, or the ValueError of a layer that is not so."""
        return lipschitz_constant("k_coef_lip", value)

    def _use_constant(self):
        """Makes the layer obey a constant that has just been set."""

    def _whole_constant(self):
        return self.k_coef_lip

    def _compute_lip_coef(self, input_shape=None):
        """Returns the structural coefficient for `input_shape`, a float."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement `_compute_lip_coef`."
        )

    def _init_lip_coef(self, input_shape):
        self.coef_lip = self._compute_lip_coef(input_shape)

    def _get_coef(self):
        """Returns `coef_lip * k_coef_lip`, a float."""
        if self.coef_lip is None:
            raise RuntimeError(
                f"The Lipschitz coefficient of {type(self).__name__} is known "
                "once the layer is built. Call `build` first. "
                f"Received: coef_lip={self.coef_lip}"
            )
        return self.coef_lip * self.k_coef_lip


class Condensable:
    """Mixin of the objects that can be turned into their stock equivalent."""

    def _check_condensable(self):
        """Raises the error that `condense` would, before anything changes."""

    def condense(self):
        """Overwrites the free weights with the constrained ones."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement `condense`."
        )

    def vanilla_export(self):
        """Returns a stock Keras object with the same inference output."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement `vanilla_export`."
        )


def activation_constant(activation):
    """Lipschitz constant of what layers take as `activation`.

    Args:
        activation: A function, a layer or None.

    Returns:
        Float, an upper bound; None if none is known.
    """
    if activation is None:
        return 1.0
    if isinstance(activation, KnownConstant):
        return activation._whole_constant()
    if isinstance(activation, keras.layers.Activation):
        return activation_constant(activation.activation)
    if isinstance(activation, keras.layers.ReLU):
        # Elsewhere it jumps.
        is_continuous = activation.threshold == 0
        slope = max(1.0, abs(float(activation.negative_slope)))
        return slope if is_continuous else None
    if isinstance(activation, keras.layers.LeakyReLU):
        return max(1.0, abs(float(activation.negative_slope)))
    if isinstance(activation, keras.layers.ELU):
        return max(1.0, abs(float(activation.alpha)))
    if isinstance(activation, keras.layers.Softmax):
        return 0.5
    facts = facts_of(activation)
    return None if facts is None else facts.largest


def warn_of_activation(layer, stacklevel=3):
    """Warns if the constant of a `LipschitzLayer` is that of a part only."""
    if layer._whole_constant() is None:
        warnings.warn(
            f"The activation of layer '{layer.name}' has no Lipschitz constant "
            "that is known: the constant of what holds the layer does not "
            f"account for it. Received: activation={layer.activation}",
            UserWarning,
            stacklevel=stacklevel,
        )
