"""Models: sharing out the constant, warnings, configs."""

import json

import harness
import keras
import numpy as np
import pytest
from harness import assert_all_equal
from harness import assert_equal
from harness import normal
from harness import reloaded
from harness import to_numpy
from small_networks import small_model
from small_networks import train

import deel.lip
from deel.lip import layers
from deel.lip.model import Model
from deel.lip.model import Sequential
from deel.lip.model import vanillaModel


@pytest.mark.parametrize("k_coef_lip", [1.0, 0.5, 32.0])
def test_constant_is_shared_out_over_the_lipschitz_layers(k_coef_lip):
    model = small_model(k_coef_lip)
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
    # Keras warns of its own conversions on PyTorch.
    (found,) = [x for x in caught if x.category is UserWarning]
    assert layer.name in str(found.message)
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
    Sequential([layer])


def test_config_keeps_the_constant_and_the_shares(tmp_path):
    # C22; one share differs from what distribution alone would give.
    model = small_model(16.0)
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
    model = small_model()
    x = train(model)
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
    model = small_model()
    model.compile(_OPTIMIZERS[optimizer](), "mse", run_eagerly=eager)
    x = normal(20, 6, 6, 1)
    model.fit(x, np.ones((20, 5)), batch_size=8, verbose=0)
    harness.assert_all_bounded(model)
    # On JAX such an optimizer is a branch, whose state is dropped.
    if (keras.backend.backend(), optimizer) != ("jax", "scaled"):
        for layer in harness.constrained_layers(model):
            harness.assert_current(layer)


def test_recompiling_changes_no_weight():
    model = small_model()
    x = train(model)
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
