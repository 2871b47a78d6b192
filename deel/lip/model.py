"""Models with a known Lipschitz constant, and their export to stock Keras."""

import contextvars
import inspect
import math
import warnings

import keras

from deel.lip._backend import retraction
from deel.lip._constrained import ConstrainedKernel
from deel.lip._export import condensable_layers
from deel.lip._export import condense_layers
from deel.lip._export import write_for_serving
from deel.lip._graph import is_graph
from deel.lip._lipschitz import Condensable
from deel.lip._lipschitz import KnownConstant
from deel.lip._lipschitz import LipschitzLayer
from deel.lip._lipschitz import count_on
from deel.lip._loss_variables import TrainsLossVariables
from deel.lip._loss_variables import hand_over_loss_parameters
from deel.lip._register import register
from deel.lip._stock_metrics import warn_of_stock_metrics
from deel.lip._stock_only.conversion import vanillaModel
from deel.lip._validation import positive_float
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.certification._promises import ROUNDING_OF_RULES
from deel.lip.certification._promises import factor_of_all_outputs
from deel.lip.certification._promises import promised_constant
from deel.lip.certification._promises import warn_unless_promised
from deel.lip.layers import FrobeniusDense
from deel.lip.losses._base import LipschitzLoss

__all__ = [
    "LossVariableModel",
    "LossVariableSequential",
    "Model",
    "Sequential",
    "vanillaModel",
]


def __dir__():
    return __all__


_COMPILE = inspect.signature(keras.Model.compile)

# Tells the next `Sequential` to be made that it is rebuilt from a config, in
# which each layer already has its share of the constant.
_reading_config = contextvars.ContextVar("reading_config", default=False)


class _LipschitzModel(Condensable):
    """Mixin of the models: what does not depend on how they are wired."""

    # Steps that are compiled hold the constants of the layers, so the model
    # hears of what changes them afterwards.
    def make_train_function(self, *args, **kwargs):
        self._before_steps()
        return super().make_train_function(*args, **kwargs)

    def make_test_function(self, *args, **kwargs):
        self._before_steps()
        return super().make_test_function(*args, **kwargs)

    def make_predict_function(self, *args, **kwargs):
        self._before_steps()
        return super().make_predict_function(*args, **kwargs)

    def _before_steps(self):
        """Called before steps are made, or made again."""
        self._count_on_layers()

    def _count_on_layers(self):
        for layer in self._flatten_layers():
            if isinstance(layer, KnownConstant):
                count_on(layer, self)

    def _hear_of_constant(self):
        """Called when the constant of a layer, at any depth, has changed."""
        # Layers inside of others may be new.
        self._count_on_layers()
        # Made anew, not dropped: `fit` may be about to take the next one.
        if self.train_function is not None:
            self.make_train_function(force=True)
        if self.test_function is not None:
            self.make_test_function(force=True)
        if self.predict_function is not None:
            self.make_predict_function(force=True)

    def compile(self, *args, **kwargs):
        given = _COMPILE.bind(self, *args, **kwargs).arguments
        super().compile(*args, **kwargs)
        hand_over_loss_parameters(self)
        for name in ("metrics", "weighted_metrics"):
            warn_of_stock_metrics(self, given.get(name), stacklevel=2)

    def compile_from_config(self, config):
        # The stock method leaves models with a `compile` of their own alone.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def train_step(self, *args):
        return retraction.train_step(self, super().train_step, *args)

    def fit(self, x=None, y=None, *args, **kwargs):
        if isinstance(self.loss, LipschitzLoss):
            self.loss.check_labels(y)
        history = super().fit(x, y, *args, **kwargs)
        # Keras has replaced the free kernels by their averages at the end.
        if averages_weights(self.optimizer):
            _refresh_layers(self)
        return history

    def condense(self):
        """Overwrites the free kernels with the constrained ones, everywhere."""
        condense_layers(self)

    def vanilla_export(self, verify=False, stock_only=False):
        """Returns the stock Keras model with the same predictions.

        See `vanillaModel`. A file of it is loaded where `deel.lip` has been
        imported; of `vanilla_export(stock_only=True)`, everywhere.

        Args:
            verify: Boolean, or a float. True refuses to export a network whose
                proven constant exceeds `k_coef_lip`; a float, one whose
                constant exceeds that number. With `FrobeniusDense` and disjoint
                neurons at the end, the constant is that of a single score.
            stock_only: Boolean, as of `vanillaModel`.

        Raises:
            ValueError: As `vanillaModel`; and if `verify` finds a constant that
                is larger than promised, or cannot be proven.
        """
        exported = vanillaModel(self, stock_only=stock_only)
        if verify is not False:
            _verify(self, exported, verify)
        return exported

    def quantize(self, *args, **kwargs):
        # Before any other layer has changed.
        for layer in condensable_layers(self.layers):
            if isinstance(layer, ConstrainedKernel):
                layer.quantize(*args, **kwargs)
        return super().quantize(*args, **kwargs)

    def export(self, filepath, *args, stock_only=False, **kwargs):
        """Writes inference for serving: a SavedModel, ONNX, LiteRT and others.

        As `keras.Model.export`, of the stock model of `vanilla_export`: no
        file holds anything of the constraints.

        Args:
            filepath: String or path, the file or folder to write.
            *args: As for `keras.Model.export`, `format` first.
            stock_only: Boolean, whether to write the model that
                `vanilla_export(stock_only=True)` returns. Its sorts take less
                time on TensorFlow and PyTorch.
            **kwargs: As for `keras.Model.export`.

        Raises:
            ValueError: As `vanillaModel`.
        """
        exported = vanillaModel(self, stock_only=stock_only)
        return write_for_serving(exported, filepath, *args, **kwargs)

    def lipschitz_constant(self, **kwargs):
        """Returns the proven bound of the constant, from the weights.

        See `deel.lip.certification.lipschitz_bound`, which takes the arguments.
        """
        return lipschitz_bound(self, **kwargs)

    def certify(self, x, y=None, **kwargs):
        """Returns certificates of the predictions of `x`.

        See `deel.lip.certification.certify`, which takes the arguments.
        """
        return certify(self, x, y, **kwargs)


@register("Sequential")
class Sequential(_LipschitzModel, keras.Sequential, LipschitzLayer):
    """A `keras.Sequential` whose Lipschitz constant is `k_coef_lip`.

    The constant is shared out evenly: each of the n layers that take a
    Lipschitz constant gets `k_coef_lip ** (1 / n)`, also when layers are added
    later, or taken away. A nested `Sequential` counts for one and shares out
    its part. Layers that are proven to be 1-Lipschitz whatever training does
    (max pooling, flatten, ReLU, dropout, ...) are left alone. Any other layer
    is warned of, with its constant where that is known. An activation inside of
    a layer counts with it: what `activation="selu"` expands, the kernel before
    it contracts.

    The model promises `k_coef_lip`, and warns as soon as its layers exceed
    that: when one of them is given another constant by a call, or by another
    `Sequential` that it was added to; when none of them takes a share of a
    constant below one; or when a layer that bounds each of its outputs by
    itself (`FrobeniusDense` with disjoint neurons) is not the last.

    Args:
        layers: List of layers.
        name: String, the name of the model.
        k_coef_lip: Float, the Lipschitz constant of the model.
        **kwargs: What else `keras.Sequential` takes.

    Example:

    >>> import keras
    >>> from deel.lip.layers import SpectralDense
    >>> from deel.lip.activations import GroupSort2
    >>> from deel.lip.model import Sequential
    >>> model = Sequential(
    ...     [
    ...         keras.Input((8,)),
    ...         SpectralDense(16, activation=GroupSort2()),
    ...         SpectralDense(4),
    ...     ],
    ...     k_coef_lip=4.0,
    ... )
    >>> [layer.k_coef_lip for layer in model.layers]
    [2.0, 2.0]
    >>> type(model.vanilla_export().layers[0]).__module__.split(".")[0]
    'keras'

    `keras.models.clone_model` makes a stock `keras.Sequential` of these layers,
    which keep their constants. A copy of this class is
    `Sequential.from_config(model.get_config())`.
    """

    # What was last warned of, so that each excess is spoken of once.
    _known_excess = None
    _looked_at = ()

    def __init__(self, layers=None, name=None, k_coef_lip=1.0, **kwargs):
        self._k_coef_lip = positive_float("k_coef_lip", k_coef_lip)
        # Read once: models inside of custom layers are made the usual way.
        self._keeps_shares = _reading_config.get()
        _reading_config.set(False)
        super().__init__(layers=layers, name=name, **kwargs)
        self._look_at_layers(stacklevel=3)
        self.set_klip_factor(k_coef_lip)

    def __call__(self, *args, **kwargs):
        # While layers are added, the promise may wait for one that takes a
        # share. Once the model is used, nothing is missing any more.
        self._warn_of_excess()
        return super().__call__(*args, **kwargs)

    def build(self, input_shape=None):
        super().build(input_shape)
        # Now that shapes and statistics are known: what comes out of a file is
        # built before it is added, and blocks divide by the constant.
        self._note_expansions()

    def _note_expansions(self):
        """Notes what layers without a constant of their own expand by."""
        self._expansions = {
            id(layer): max(1.0, constant)
            for layer in self._layers
            if not isinstance(layer, KnownConstant)
            and (constant := promised_constant(layer, within=self)) is not None
        }

    def add(self, layer, rebuild=True):
        super().add(layer, rebuild=rebuild)
        # During construction the list is not complete yet: `rebuild` is False
        # there, and the constructor does the rest once at the end.
        if rebuild:
            self._look_at_layers(stacklevel=3)
        if rebuild and not self._keeps_shares:
            self.set_klip_factor(self.k_coef_lip)

    def _look_at_layers(self, stacklevel):
        """Warns of new layers that the constant does not account for."""
        new = [x for x in self._layers if id(x) not in self._looked_at]
        self._looked_at = tuple(map(id, self._layers))
        warn_unless_promised(self, new, stacklevel)
        self._note_expansions()

    def pop(self, rebuild=True):
        layer = super().pop(rebuild=rebuild)
        self.set_klip_factor(self.k_coef_lip)
        return layer

    def set_klip_factor(self, klip_factor):
        """Sets the constant of the model and shares it out over its layers.

        Args:
            klip_factor: Float, finite and greater than zero.
        """
        super().set_klip_factor(klip_factor)

    def _checked_constant(self, value):
        # What has a range is the share of each layer.
        value = positive_float("k_coef_lip", value)
        for layer, share in self._shares(value):
            layer._checked_constant(share)
        return value

    def _use_constant(self):
        self._count_on_layers()
        for layer, share in self._shares(self.k_coef_lip):
            layer.set_klip_factor(share)

    def _shares(self, k_coef_lip):
        """Pairs of a layer, and its part of a constant of the model."""
        layers = [layer for layer in self._layers if _takes_share(layer)]
        if not layers:
            return []
        share = k_coef_lip ** (1.0 / len(layers))
        return [(layer, share / _unshared_factor(layer)) for layer in layers]

    def _hear_of_constant(self):
        super()._hear_of_constant()
        if any(map(_takes_share, self._layers)):
            self._warn_of_excess()

    def _before_steps(self):
        super()._before_steps()
        # Not every backend goes through `__call__`.
        self._warn_of_excess()

    def _whole_constant(self):
        """Product of what the layers have, whatever the model promises."""
        others = [
            self._expansions.get(id(layer), 1.0)
            for layer in self._layers
            if not isinstance(layer, KnownConstant)
        ]
        return self._shared_constant() * math.prod(others)

    def _shared_constant(self):
        """Product of the constants of the layers that have one of their own."""
        product = 1.0
        for layer in self._layers:
            if isinstance(layer, KnownConstant):
                # Of unknown ones it was warned when they were added.
                product *= layer._whole_constant() or layer.k_coef_lip
            if layer is not self._layers[-1]:
                product *= factor_of_all_outputs(layer)
        return product

    def _warn_of_excess(self):
        """Warns if the layers do not keep what the model promises."""
        found = self._shared_constant()
        if found <= self.k_coef_lip * (1 + _ROUNDING):
            self._known_excess = None
        elif found != self._known_excess:
            self._known_excess = found
            warnings.warn(
                f"The constants of the layers of '{self.name}' exceed what the "
                "model promises: a layer was given another constant, by a call "
                "or by another model that holds it; or none of them can take a "
                "share; or one that bounds each of its outputs by itself is "
                "not the last. `set_klip_factor` of the model shares out its "
                "constant anew. Expected a product of at most "
                f"{self.k_coef_lip}. Received: {found}",
                UserWarning,
                stacklevel=2,
            )

    def _compute_lip_coef(self, input_shape=None):
        return self._get_coef()

    def _init_lip_coef(self, input_shape):
        # Each layer computes its coefficient from its own input shape.
        pass

    def _get_coef(self):
        """Product of the coefficients of the layers, None if one is unknown."""
        coefficients = []
        for layer in self.layers:
            if isinstance(layer, LipschitzLayer):
                coefficients.append(layer._get_coef())
            elif not isinstance(layer, keras.layers.InputLayer):
                known = warn_unless_promised(self, [layer], stacklevel=2)
                if known.get(id(layer), math.inf) > 1 + ROUNDING_OF_RULES:
                    return None
        return None if None in coefficients else math.prod(coefficients)

    def get_config(self):
        return {**super().get_config(), "k_coef_lip": self.k_coef_lip}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        _reading_config.set(True)
        try:
            model = super().from_config(config, custom_objects)
        finally:
            _reading_config.set(False)
        model._k_coef_lip = positive_float(
            "k_coef_lip", config.get("k_coef_lip", 1.0)
        )
        model._keeps_shares = False
        model._hear_of_constant()
        return model


@register("Model")
class Model(_LipschitzModel, keras.Model):
    """A `keras.Model` with `condense` and `vanilla_export`.

    For networks with branches. It does not share out a Lipschitz constant,
    since that of a graph depends on how its branches meet: give each layer its
    own `k_coef_lip`. `compile` warns of layers that expand, or may.

    Args:
        inputs: Input tensors, as for `keras.Model`.
        outputs: Output tensors, as for `keras.Model`.
        **kwargs: What else `keras.Model` takes.

    Example:

    >>> import keras
    >>> from deel.lip.layers import SpectralDense
    >>> from deel.lip.model import Model
    >>> inputs = keras.Input((8,))
    >>> model = Model(inputs=inputs, outputs=SpectralDense(4)(inputs))
    >>> exported = model.vanilla_export()
    >>> exported.count_params()
    36
    """

    def compile(self, *args, **kwargs):
        super().compile(*args, **kwargs)
        if is_graph(self):
            warn_unless_promised(self, self.layers, stacklevel=2)


@register("LossVariableModel")
class LossVariableModel(TrainsLossVariables, Model):
    """A `deel.lip.model.Model` that also trains the margins of its loss.

    For the losses with learned margins, such as `MulticlassHKRauto`. The
    compiled optimizer updates weights and margins in one step; `fit` and
    everything else work as usual. Margins are saved with the compiled model.

    Args:
        inputs: Input tensors, as for `keras.Model`.
        outputs: Output tensors, as for `keras.Model`.
        optim_margin: Boolean. False leaves the margins as they are.
        **kwargs: What else `keras.Model` takes.
    """


@register("LossVariableSequential")
class LossVariableSequential(TrainsLossVariables, Sequential):
    """A `deel.lip.model.Sequential` that also trains the margins of its loss.

    See `LossVariableModel`.

    Args:
        layers: List of layers.
        name: String, the name of the model.
        optim_margin: Boolean. False leaves the margins as they are.
        **kwargs: What else `deel.lip.model.Sequential` takes.
    """


def _takes_share(layer):
    """Whether a layer, or one inside of a model, can take a constant."""
    if isinstance(layer, Sequential):
        return any(map(_takes_share, layer._layers))
    return isinstance(layer, LipschitzLayer)


def _unshared_factor(layer):
    """What a layer multiplies its `k_coef_lip` by: that of its activation."""
    if isinstance(layer, Sequential):
        return 1.0
    return (layer._whole_constant() or layer.k_coef_lip) / layer.k_coef_lip


# Of the product of the shares, in relative terms.
_ROUNDING = 1e-9

# Each constrained kernel may exceed its promise by the rounding of float32.
_VERIFIED_WITHIN = 1e-4


def _verify(model, exported, verify):
    """Raises ValueError if a model has a larger constant than promised."""
    if verify is True and not isinstance(model, LipschitzLayer):
        raise ValueError(
            "A functional model does not promise a constant. Expected "
            "`verify=number`, the largest that you accept. "
            "Received: verify=True"
        )
    is_number = verify is not True
    promise = (
        positive_float("verify", verify) if is_number else model.k_coef_lip
    )
    last = model.layers[-1]
    by_score = isinstance(last, FrobeniusDense) and last.disjoint_neurons
    bound = lipschitz_bound(exported, by_output=by_score)
    if bound > promise * (1 + _VERIFIED_WITHIN):
        raise ValueError(
            f"The proven Lipschitz constant of '{model.name}' exceeds its "
            f"promise, so it is not exported. Expected at most {promise}. "
            f"Received: {bound}. `deel.lip.certification.lipschitz_bound("
            "model, return_table=True)` shows the layers."
        )


def averages_weights(optimizer):
    """Whether Keras replaces weights by their averages when `fit` ends."""
    # A `LossScaleOptimizer` leaves that to the one within.
    return getattr(optimizer, "inner_optimizer", optimizer).use_ema


def _refresh_layers(model):
    """Makes inference use the free kernels as they are now."""
    for layer in condensable_layers(model.layers):
        if isinstance(layer, ConstrainedKernel):
            layer.wbar.refresh(layer.kernel)
