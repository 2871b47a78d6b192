"""Models: sharing out the constant, warnings, configs, condense and export."""

import json
import warnings

import harness
import keras
import numpy as np
import pytest
from harness import assert_all_equal
from harness import assert_close
from harness import assert_equal
from harness import normal
from harness import reloaded
from harness import to_numpy

import deel.lip
from deel.lip import layers
from deel.lip import losses
from deel.lip.certification import lipschitz_bound
from deel.lip.model import Model
from deel.lip.model import Sequential
from deel.lip.model import vanillaModel


def _program_a(container=Sequential, **arguments):
    """The network of the first seed program."""
    return container(
        [
            keras.Input((28, 28, 1)),
            layers.SpectralConv2D(
                filters=16,
                kernel_size=(3, 3),
                activation=layers.GroupSort(2),
                use_bias=True,
                kernel_initializer="orthogonal",
            ),
            layers.ScaledL2NormPooling2D(
                pool_size=(2, 2), data_format="channels_last"
            ),
            layers.SpectralConv2D(
                filters=16,
                kernel_size=(3, 3),
                activation=layers.GroupSort(2),
                use_bias=True,
                kernel_initializer="orthogonal",
            ),
            layers.ScaledL2NormPooling2D(
                pool_size=(2, 2), data_format="channels_last"
            ),
            keras.layers.Flatten(),
            layers.SpectralDense(
                32,
                activation=layers.GroupSort(2),
                use_bias=True,
                kernel_initializer="orthogonal",
            ),
            layers.FrobeniusDense(
                10,
                activation=None,
                use_bias=False,
                kernel_initializer="orthogonal",
            ),
        ],
        name="hkr_model",
        **arguments,
    )


def _counts(model):
    trainable = sum(int(np.prod(v.shape)) for v in model.trainable_weights)
    return model.count_params(), trainable, model.count_params() - trainable


def _small(k_coef_lip=1.0):
    return Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.SpectralConv2D(4, 3),
            layers.GroupSort2(),
            layers.ScaledAveragePooling2D(),
            keras.layers.Flatten(),
            layers.SpectralDense(5),
        ],
        k_coef_lip=k_coef_lip,
    )


def _train(model, steps=3):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8 * steps, *model.input_shape[1:]))
    y = np.eye(model.output_shape[-1])[np.arange(len(x)) % 3]
    loss = losses.MulticlassHKR(10.0)
    model.compile(
        "adam", loss, metrics=[losses.MulticlassKR()], jit_compile=False
    )
    model.fit(x, y, batch_size=8, verbose=0)
    return x


def test_summary_counts_of_the_seed_programs():
    model = _program_a()
    assert _counts(model) == (55_843, 27_920, 27_923)
    rows = [layer.count_params() for layer in model.layers]
    assert rows == [321, 0, 4641, 0, 0, 50241, 640]
    lines = []
    model.summary(print_fn=lines.append)
    assert "55,843" in "\n".join(lines)

    binary = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            layers.SpectralDense(32, layers.GroupSort2(), use_bias=True),
            layers.SpectralDense(16, layers.GroupSort2(), use_bias=True),
            layers.FrobeniusDense(1, activation=None, use_bias=False),
        ]
    )
    assert _counts(binary) == (51_330, 25_664, 25_666)


def test_export_of_the_first_seed_program():
    model = _program_a()
    exported = model.vanilla_export()
    assert type(exported) is keras.Sequential
    assert [layer.count_params() for layer in exported.layers] == [
        160, 0, 2320, 0, 0, 25120, 320,
    ]  # fmt: skip
    assert [x.name for x in exported.layers] == [x.name for x in model.layers]


@pytest.mark.parametrize("k_coef_lip", [1.0, 0.5, 32.0])
def test_constant_is_shared_out_over_the_lipschitz_layers(k_coef_lip):
    model = _small(k_coef_lip)
    shares = [
        layer.k_coef_lip
        for layer in model.layers
        if isinstance(layer, layers.LipschitzLayer)
    ]
    assert shares == [k_coef_lip**0.25] * 4
    x = np.random.default_rng(0).standard_normal((2, 6, 6, 1))
    y = to_numpy(model(x))
    distance = np.linalg.norm(y[0] - y[1])
    assert distance <= k_coef_lip * np.linalg.norm(x[0] - x[1]) * (1 + 1e-5)


def test_added_layers_share_the_constant():
    # C17
    model = Sequential(k_coef_lip=16)
    model.add(keras.Input((4,)))
    model.add(layers.SpectralDense(4))
    assert model.layers[0].k_coef_lip == 16
    model.add(layers.SpectralDense(4))
    assert [layer.k_coef_lip for layer in model.layers] == [4, 4]
    model.set_klip_factor(4.0)
    assert [layer.k_coef_lip for layer in model.layers] == [2, 2]
    for layer in model.layers:
        harness.assert_bounded(layer)


def test_nested_model_counts_for_one_and_shares_out_its_part():
    inner = Sequential([layers.SpectralDense(4), layers.SpectralDense(4)])
    model = Sequential(
        [keras.Input((4,)), layers.SpectralDense(4), inner], k_coef_lip=16.0
    )
    assert model.layers[0].k_coef_lip == 4
    assert inner.k_coef_lip == 4
    assert [layer.k_coef_lip for layer in inner.layers] == [2, 2]
    assert model._get_coef() == pytest.approx(16.0)


def test_coefficients_come_from_the_shape_of_each_layer():
    # C17: a model-wide shape used to overwrite those of deeper layers.
    model = Sequential(
        [
            layers.SpectralConv2D(4, 3),
            layers.ScaledAveragePooling2D(4),
            layers.SpectralConv2D(4, 3),
        ]
    )
    model.build((None, 8, 8, 1))
    assert model.layers[0].coef_lip == pytest.approx(1 / 3)
    assert model.layers[2].coef_lip == pytest.approx(1 / 2)


def test_model_without_lipschitz_layers_is_legal():
    model = Sequential([keras.Input((4,)), keras.layers.Flatten()])
    assert model._get_coef() == 1.0
    with pytest.raises(ValueError, match="k_coef_lip"):
        Sequential(k_coef_lip=0.0)


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.MaxPooling2D(3, strides=2),
        keras.layers.MaxPooling2D((2, 2), strides=(3, 1)),
        keras.layers.Dense(3),
        keras.layers.Conv2D(3, 3),
        keras.layers.UpSampling2D(),
        keras.layers.Activation("gelu"),
        keras.layers.Dropout(0.1),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(negative_slope=2.0),
        keras.layers.ReLU(threshold=1.0),
        keras.layers.LeakyReLU(negative_slope=1.5),
    ],
    ids=lambda layer: layer.name,
)
def test_other_layers_warn_and_make_the_constant_unknown(layer):
    # C4
    with pytest.warns(UserWarning, match="not a 1-Lipschitz layer") as caught:
        model = Sequential([layer])
    assert len(caught) == 1
    assert layer.name in str(caught[0].message)
    with pytest.warns(UserWarning, match="not a 1-Lipschitz layer"):
        assert model._get_coef() is None


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.MaxPooling2D(2),
        keras.layers.MaxPooling1D(2, strides=3),
        keras.layers.GlobalMaxPooling2D(),
        keras.layers.Flatten(),
        layers.InvertibleDownSampling(2),
        layers.InvertibleUpSampling(2),
        keras.layers.Reshape((4,)),
        keras.layers.Permute((2, 1)),
        keras.layers.Softmax(),
        keras.layers.ReLU(),
        keras.layers.ReLU(negative_slope=0.5),
        keras.layers.LeakyReLU(negative_slope=0.5),
        keras.layers.Activation("relu"),
        keras.layers.Activation("tanh"),
        keras.layers.Activation("sigmoid"),
        keras.layers.Activation("linear"),
        Sequential([]),
    ],
    ids=lambda layer: layer.name,
)
def test_1_lipschitz_layers_do_not_warn(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sequential([layer])


def test_config_keeps_the_constant_and_the_shares(tmp_path):
    # C22; one share differs from what distribution alone would give.
    model = _small(16.0)
    model.add(Sequential([layers.SpectralDense(3)], name="inner"))
    model.layers[0].set_klip_factor(0.25)
    shares = [x.k_coef_lip for x in model.layers if hasattr(x, "k_coef_lip")]
    assert harness.is_plain(model.get_config())
    rebuilt = Sequential.from_config(json.loads(json.dumps(model.get_config())))
    loaded = reloaded(model, tmp_path)
    for other in (rebuilt, loaded):
        assert type(other) is Sequential
        assert other.k_coef_lip == 16.0
        assert shares == [
            x.k_coef_lip for x in other.layers if hasattr(x, "k_coef_lip")
        ]
    x = np.random.default_rng(0).standard_normal((4, 6, 6, 1))
    assert_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_new_constant_holds_in_a_compiled_model():
    model = _small()
    x = _train(model)
    model.set_klip_factor(0.01)
    y = np.eye(5)[np.arange(len(x)) % 3]
    model.fit(x, y, batch_size=8, verbose=0)
    for layer in harness.constrained_layers(model):
        assert layer.k_coef_lip == pytest.approx(0.01**0.25)
        harness.assert_bounded(layer)
    y = model.predict(x, verbose=0)
    distance = np.linalg.norm(y[0] - y[1])
    assert distance <= 0.01 * np.linalg.norm(x[0] - x[1]) * (1 + 1e-5)


_OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(1e-2),
    "accumulating": lambda: keras.optimizers.Adam(
        1e-2, gradient_accumulation_steps=2
    ),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(1e-2)
    ),
}


@pytest.mark.parametrize("optimizer", _OPTIMIZERS)
@pytest.mark.parametrize("eager", [False, True])
def test_inference_uses_the_kernels_of_the_last_update(optimizer, eager):
    model = _small()
    model.compile(_OPTIMIZERS[optimizer](), "mse", run_eagerly=eager)
    x = normal(20, 6, 6, 1)
    model.fit(x, np.ones((20, 5)), batch_size=8, verbose=0)
    harness.assert_all_bounded(model)
    # On JAX such an optimizer is a branch, whose state is dropped.
    if (keras.backend.backend(), optimizer) != ("jax", "scaled"):
        assert_close(
            model.predict(x, verbose=0), model(x, training=True), atol=1e-6
        )


def _functional():
    inputs = keras.Input((6, 6, 1))
    x = layers.SpectralConv2D(4, 3, activation=layers.MaxMin())(inputs)
    a = layers.ScaledL2NormPooling2D()(x)
    b = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Average()([a, b])
    x = keras.layers.Flatten()(x)
    inner = Sequential(
        [keras.Input((72,)), layers.SpectralDense(8)], name="inner"
    )
    x = inner(x)
    shared = layers.SpectralDense(8, name="shared")
    x = keras.layers.Add()([shared(x), shared(keras.layers.ReLU()(x))])
    x = keras.layers.BatchNormalization()(x)
    return Model(inputs=inputs, outputs=layers.FrobeniusDense(5)(x))


@pytest.mark.parametrize("make", [_small, _functional])
def test_export_is_stock_keras_and_predicts_the_same(make, tmp_path):
    model = make()
    x = _train(model)
    expected = model.predict(x, verbose=0)
    before = model.get_weights()
    exported = model.vanilla_export()
    assert_close(exported.predict(x, verbose=0), expected, atol=1e-5)
    assert type(exported).__module__.startswith("keras.")
    assert exported.name == model.name
    assert [x.name for x in exported.layers] == [x.name for x in model.layers]
    flat = list(exported._flatten_layers(include_self=False, recursive=True))
    assert not any(hasattr(layer, "wbar") for layer in flat)
    own = {id(v) for v in model.variables}
    assert not own & {id(v) for v in exported.variables}
    for variable in exported.variables:
        variable.assign(np.zeros(variable.shape))
    assert_all_equal(before, model.get_weights())
    exported = vanillaModel(model)
    loaded = reloaded(exported, tmp_path)
    assert_equal(loaded.predict(x, verbose=0), exported.predict(x, verbose=0))


@pytest.mark.parametrize("make", [_small, _functional])
def test_condense_reaches_nested_layers_and_keeps_predictions(make):
    model = make()
    x = _train(model)
    model.condense()
    expected = model.predict(x, verbose=0)
    model.condense()
    assert_close(model.predict(x, verbose=0), expected, atol=1e-4)
    inner = model if make is _small else model.get_layer("inner")
    for layer in harness.constrained_layers(inner):
        assert_equal(layer.kernel, layer.wbar)


def test_export_of_a_model_that_is_not_built_is_refused():
    # C25
    for model in (Sequential([layers.SpectralDense(3)]), Sequential()):
        with pytest.raises(ValueError, match="built"):
            model.vanilla_export()
    with pytest.raises(ValueError, match="expects a Keras model"):
        vanillaModel("model")

    class Custom(keras.Model):
        def call(self, inputs):
            return inputs

    class Scaled(Model):
        def call(self, inputs, training=None, mask=None):
            return 10 * super().call(inputs, training=training, mask=mask)

    class ScaledSequential(Sequential):
        def call(self, inputs, training=None, mask=None):
            return 10 * super().call(inputs, training=training, mask=mask)

    custom = Custom()
    custom(np.ones((1, 2)))
    inputs = keras.Input((2,))
    outputs = layers.SpectralDense(3)(inputs)
    for model in (
        custom,
        Scaled(inputs=inputs, outputs=outputs),
        ScaledSequential([keras.Input((2,)), layers.SpectralDense(3)]),
    ):
        with pytest.raises(ValueError, match="Sequential and functional"):
            vanillaModel(model)


def test_export_names_the_layer_whose_weights_are_not_finite():
    model = _small()
    layer = model.layers[0]
    layer.kernel.assign(np.full(layer.kernel.shape, np.nan))
    model(np.zeros((1, 6, 6, 1), "float32"), training=True)
    with pytest.raises(ValueError, match=layer.name):
        model.vanilla_export()


def test_condense_changes_no_layer_if_one_cannot_be_condensed():
    model = _small(16.0)
    model.layers[-1].kernel.assign(np.full((36, 5), np.nan))
    before = model.get_weights()
    with pytest.raises(ValueError, match=model.layers[-1].name):
        model.condense()
    assert_all_equal(before, model.get_weights())


def test_recompiling_changes_no_weight():
    model = _small()
    x = _train(model)
    before = model.get_weights()
    model.compile("sgd", "mse")
    assert_all_equal(before, model.get_weights())
    model.predict(x, verbose=0)


def test_public_names_are_reachable_from_the_package():
    assert deel.lip.Sequential is Sequential
    assert deel.lip.Model is Model
    assert deel.lip.vanillaModel is vanillaModel
    assert deel.lip.__version__.startswith("2.")


@keras.saving.register_keras_serializable("deel-lip-tests")
class Block(keras.layers.Layer):
    """A custom layer that makes a model of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = Sequential(k_coef_lip=0.25)
        self.inner.add(layers.SpectralDense(4))
        self.inner.add(layers.SpectralDense(4))

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs, training=True):
        return self.inner(inputs, training=training)


def test_model_inside_a_custom_layer_shares_its_constant_when_loaded(tmp_path):
    with pytest.warns(UserWarning, match="not a 1-Lipschitz layer"):
        model = Sequential([keras.Input((4,)), Block()])
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="not a 1-Lipschitz layer"):
        loaded = keras.models.load_model(tmp_path / "model.keras")
    shares = [layer.k_coef_lip for layer in loaded.layers[0].inner.layers]
    assert shares == [0.5, 0.5]


def test_export_keeps_the_structure_of_inputs_and_outputs():
    inputs = {name: keras.Input((4,), name=name) for name in "ab"}
    model = Model(
        inputs=inputs,
        outputs={
            "sum": layers.SpectralDense(2)(inputs["b"]),
            "alone": layers.SpectralDense(3)(inputs["a"]),
        },
    )
    x = {name: np.ones((2, 4), "float32") for name in "ab"}
    expected = model.predict(x, verbose=0)
    predicted = model.vanilla_export()(x)
    assert predicted.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(predicted[name], value, atol=1e-5)


def test_export_of_a_list_of_layers_without_input_is_built():
    model = Sequential([layers.SpectralDense(2)])
    model.predict(np.ones((2, 4), "float32"), verbose=0)
    exported = model.vanilla_export()
    assert exported.built
    assert exported.input_shape == (2, 4)


_EXCEEDS = "exceed what the model promises"

# Above the rounding of float32.
_WITHIN = 1 + 1e-4


def _chain(k_coef_lip=1.0, layers_of_it=3):
    dense = [layers.SpectralDense(4) for _ in range(layers_of_it)]
    return Sequential([keras.Input((4,)), *dense], k_coef_lip=k_coef_lip)


def test_layers_that_stay_get_the_share_of_one_that_is_taken_away(tmp_path):
    model = _chain(0.01, 2)
    model.pop()
    loaded = reloaded(model, tmp_path)
    for one in (model, loaded):
        assert one.k_coef_lip == 0.01
        assert lipschitz_bound(one) <= 0.01 * _WITHIN


def test_model_warns_when_another_takes_one_of_its_layers(tmp_path):
    shared = layers.SpectralDense(4)
    first = Sequential([keras.Input((4,)), shared], name="first")
    with pytest.warns(UserWarning, match=f"'first' {_EXCEEDS}"):
        Sequential([keras.Input((4,)), shared], k_coef_lip=10.0)
    assert lipschitz_bound(first) > 9
    with pytest.raises(ValueError, match="exceeds its promise"):
        first.vanilla_export(verify=True)
    first.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match=f"'first' {_EXCEEDS}"):
        keras.models.load_model(tmp_path / "model.keras")
    first.set_klip_factor(1.0)
    assert lipschitz_bound(first) <= _WITHIN


def test_layers_in_two_models_of_one_constant_need_no_warning():
    model = _chain()
    Sequential([keras.Input((4,)), *model.layers[:2]])
    twice = Sequential([keras.Input((4,)), *2 * model.layers])
    assert lipschitz_bound(twice) <= _WITHIN


def test_one_layer_twice_in_a_model_counts_twice():
    layer = layers.SpectralDense(4)
    model = Sequential([keras.Input((4,)), layer, layer], k_coef_lip=16.0)
    assert layer.k_coef_lip == 4.0
    assert lipschitz_bound(model) <= 16.0 * _WITHIN


def _by_call(layer):
    layer.set_klip_factor(5.0)


def _by_assignment(layer):
    layer.k_coef_lip = 5.0


@pytest.mark.parametrize("change", [_by_call, _by_assignment])
@pytest.mark.parametrize("index", [0, 1])
def test_model_warns_when_a_layer_gets_another_constant(change, index):
    inner = Sequential([keras.Input((4,)), layers.SpectralDense(4)])
    first = layers.SpectralDense(4, activation=layers.GroupSort2())
    outer = Sequential([keras.Input((4,)), first, inner], name="outer")
    layer = outer.layers[index]
    for one in (layer, layer.layers[0] if index else layer.activation):
        with pytest.warns(UserWarning, match=_EXCEEDS) as caught:
            change(one)
        assert any("'outer'" in str(warning.message) for warning in caught)
        assert one.k_coef_lip == 5.0
        assert lipschitz_bound(outer) > 4.9
        outer.set_klip_factor(1.0)
        assert lipschitz_bound(outer) <= _WITHIN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Nothing is broken by less.
        layer.set_klip_factor(0.1)


def test_constant_assigned_to_a_layer_is_used_at_once():
    layer = layers.SpectralDense(3)
    layer.build((None, 4))
    layer.k_coef_lip = 5.0
    assert lipschitz_bound(layer) == pytest.approx(5.0, rel=1e-5)


def test_each_excess_is_spoken_of_once():
    model = _chain()
    with pytest.warns(UserWarning, match=_EXCEEDS) as caught:
        model.layers[0].set_klip_factor(5.0)
    assert len(caught) == 1
    # The others would be errors.
    for _ in range(3):
        model(np.ones((1, 4), "float32"))
    with pytest.warns(UserWarning, match=_EXCEEDS):
        model.layers[1].set_klip_factor(5.0)


def test_steps_of_a_model_follow_a_layer_inside_of_another_model():
    inner = _chain(1.0, 1)
    model = Sequential([keras.Input((4,)), layers.SpectralDense(4), inner])
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    x = normal(8, 4)
    model.fit(x, x, verbose=0)
    inner.layers[0].set_klip_factor(0.1)
    model.fit(x, x, verbose=0)
    assert lipschitz_bound(inner) <= 0.1 * _WITHIN


def test_constant_below_one_that_no_layer_takes_is_warned_of_in_use():
    model = Sequential([keras.Input((4,)), keras.layers.Flatten()], None, 0.5)
    x = np.ones((1, 4), "float32")
    with pytest.warns(UserWarning, match=_EXCEEDS):
        model(x)
    model.add(layers.SpectralDense(3))
    model(x)
    assert lipschitz_bound(model) <= 0.5 * _WITHIN


def test_share_of_a_model_that_cannot_use_it_goes_to_the_other_layers():
    inner = Sequential([keras.layers.Flatten()])
    model = Sequential(
        [keras.Input((4,)), inner, layers.SpectralDense(4)], k_coef_lip=1 / 16
    )
    assert lipschitz_bound(model) <= 1 / 16 * _WITHIN


@pytest.mark.parametrize(
    ("activation", "factor"),
    [
        ("selu", 1.7581),
        ("gelu", 1.13),
        ("tanh", 1.0),
        ("sigmoid", 1.0),
        (lambda: layers.GroupSort2(k_coef_lip=5.0), 5.0),
        (lambda: layers.GroupSort2(k_coef_lip=0.5), 1.0),
        (lambda: layers.LipschitzPReLU(3.0, alpha_initializer="ones"), 3.0),
        (lambda: keras.layers.LeakyReLU(negative_slope=2.0), 2.0),
        (lambda: keras.layers.Activation("selu"), 1.7581),
    ],
)
def test_kernels_make_up_for_what_their_activation_expands(activation, factor):
    made = activation if isinstance(activation, str) else activation()
    layer = layers.SpectralDense(4, activation=made)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Sequential([keras.Input((4,)), layer, layers.SpectralDense(2)])
    assert layer.k_coef_lip == pytest.approx(1 / factor)
    assert lipschitz_bound(model) <= _WITHIN


def test_steps_of_residual_blocks_are_not_activations_at_the_end():
    block = layers.SLLDense(8, activation="relu")
    Sequential([keras.Input((4,)), block], k_coef_lip=3.0)
    assert block.k_coef_lip == 3.0


@pytest.mark.parametrize(
    "activation", [lambda x: 3.0 * x, keras.layers.PReLU(), keras.ops.exp]
)
def test_activations_of_unknown_constant_warn(activation):
    layer = layers.SpectralDense(4, activation=activation, name="strange")
    with pytest.warns(UserWarning, match="activation of layer 'strange'"):
        Sequential([layer])


def test_constants_of_activations_are_those_of_certificates():
    # One of the two tables would otherwise forget the other.
    from deel.lip._numerics.activations import SLOPES

    for name, slope in SLOPES.items():
        if hasattr(keras.activations, name):
            layer = keras.layers.Activation(name)
            layer.build((None, 3))
            assert lipschitz_bound(layer) == slope, name


def test_layer_that_bounds_outputs_one_by_one_must_be_the_last():
    scores = layers.FrobeniusDense(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Sequential([keras.Input((4,)), layers.SpectralDense(4), scores])
    with pytest.warns(UserWarning, match="outputs by itself is not the last"):
        model.add(layers.SpectralDense(2))
    inner = Sequential([keras.Input((4,)), layers.FrobeniusDense(10)])
    with pytest.warns(UserWarning, match=_EXCEEDS):
        Sequential([keras.Input((4,)), inner, keras.layers.ReLU()])
    joint = layers.FrobeniusDense(10, disjoint_neurons=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sequential([keras.Input((4,)), joint, keras.layers.ReLU()])


@pytest.mark.parametrize("k_coef_lip", [1e-40, 1e-19, 1e19, 1e300])
def test_constants_beyond_the_digits_of_float32_change_nothing(k_coef_lip):
    layer = layers.SpectralDense(4)
    inner = Sequential([layers.SpectralDense(4)])
    model = Sequential([keras.Input((4,)), layer, inner], k_coef_lip=4.0)
    message = "from 1e-18 to 1e.18.* Received: k_coef_lip="
    with pytest.raises(ValueError, match=message):
        layer.set_klip_factor(k_coef_lip)
    # The shares of a model are nearer to one.
    with pytest.raises(ValueError, match=message):
        model.set_klip_factor(k_coef_lip**2 if k_coef_lip < 1e200 else 1e300)
    assert model.k_coef_lip == 4.0
    assert [layer.k_coef_lip, inner.layers[0].k_coef_lip] == [2.0, 2.0]
    assert lipschitz_bound(model) <= 4.0 * _WITHIN
    with pytest.raises(ValueError, match=message):
        layers.SpectralDense(4, k_coef_lip=k_coef_lip)


@pytest.mark.parametrize("k_coef_lip", [1e-18, 1e18])
def test_extreme_constants_hold_while_training(k_coef_lip):
    layer = layers.SpectralDense(300, k_coef_lip=k_coef_lip)
    model = keras.Sequential([keras.Input((300,)), layer])
    model.compile(keras.optimizers.SGD(1e-3), "mae", jit_compile=False)
    x = normal(8, 300)
    model.fit(x, x, verbose=0)
    layer.set_klip_factor(1.0)
    layer.set_klip_factor(k_coef_lip)
    model.fit(x, x, verbose=0)
    harness.assert_bounded(layer)
    assert np.all(np.isfinite(to_numpy(layer.kernel)))
    assert np.all(np.isfinite(model.predict(x, verbose=0)))


def test_constants_set_again_and_again_let_no_kernel_drift():
    layer = layers.SpectralDense(16)
    layer.build((None, 16))
    before = harness.as_matrix(layer.wbar)
    for _ in range(1000):
        for constant in (1.7, 1.0):
            layer.set_klip_factor(constant)
    values = harness.singular_values(harness.as_matrix(layer.wbar))
    assert_close(values, 1.0, atol=2e-6)
    assert_close(harness.as_matrix(layer.wbar), before, atol=2e-6)
