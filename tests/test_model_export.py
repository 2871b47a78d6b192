"""Models become stock Keras, and condense the kernels of their layers."""

import harness
import keras
import numpy as np
import pytest
from harness import assert_all_equal
from harness import assert_close
from harness import assert_equal
from harness import reloaded
from small_networks import small_model
from small_networks import train

from deel.lip import layers
from deel.lip.model import Model
from deel.lip.model import Sequential
from deel.lip.model import vanillaModel


def _program_a():
    """The network of the first seed program."""
    arguments = {"use_bias": True, "kernel_initializer": "orthogonal"}
    convolutions = [
        step
        for _ in range(2)
        for step in (
            layers.SpectralConv2D(
                16, (3, 3), activation=layers.GroupSort(2), **arguments
            ),
            layers.ScaledL2NormPooling2D((2, 2), data_format="channels_last"),
        )
    ]
    return Sequential(
        [
            keras.Input((28, 28, 1)),
            *convolutions,
            keras.layers.Flatten(),
            layers.SpectralDense(32, layers.GroupSort(2), **arguments),
            layers.FrobeniusDense(
                10, use_bias=False, kernel_initializer="orthogonal"
            ),
        ],
        name="hkr_model",
    )


def _counts(model):
    trainable = sum(int(np.prod(v.shape)) for v in model.trainable_weights)
    return model.count_params(), trainable, model.count_params() - trainable


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
    x = keras.layers.Average()([shared(x), shared(keras.layers.ReLU()(x))])
    x = keras.layers.BatchNormalization()(x)
    return Model(inputs=inputs, outputs=layers.FrobeniusDense(5)(x))


@pytest.mark.filterwarnings("ignore:.*not a 1-Lipschitz layer")
@pytest.mark.parametrize("make", [small_model, _functional])
def test_export_is_stock_keras_and_predicts_the_same(make, tmp_path):
    model = make()
    x = train(model)
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


@pytest.mark.filterwarnings("ignore:.*not a 1-Lipschitz layer")
@pytest.mark.parametrize("make", [small_model, _functional])
def test_condense_reaches_nested_layers_and_keeps_predictions(make):
    model = make()
    x = train(model)
    model.condense()
    expected = model.predict(x, verbose=0)
    model.condense()
    assert_close(model.predict(x, verbose=0), expected, atol=1e-4)
    inner = model if make is small_model else model.get_layer("inner")
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
    model = small_model()
    layer = model.layers[0]
    layer.kernel.assign(np.full(layer.kernel.shape, np.nan))
    model(np.zeros((1, 6, 6, 1), "float32"), training=True)
    with pytest.raises(ValueError, match=layer.name):
        model.vanilla_export()


def test_condense_changes_no_layer_if_one_cannot_be_condensed():
    model = small_model(16.0)
    model.layers[-1].kernel.assign(np.full((36, 5), np.nan))
    before = model.get_weights()
    with pytest.raises(ValueError, match=model.layers[-1].name):
        model.condense()
    assert_all_equal(before, model.get_weights())


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
