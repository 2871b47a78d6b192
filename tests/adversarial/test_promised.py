"""What models promise of layers that stand in others, found by attacks."""

import warnings

import keras
import numpy as np
import pytest

from deel.lip import layers
from deel.lip.certification import lipschitz_bound
from deel.lip.model import Model
from deel.lip.model import Sequential
from deel.lip.model import vanillaModel
from deel.lip.parametrizations import Frobenius


def warnings_of(make):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = make()
    # Keras warns of its own conversions on PyTorch.
    found = [x for x in found if x.category is UserWarning]
    return result, [str(warning.message) for warning in found]


@pytest.mark.parametrize(
    "around",
    [
        keras.layers.TimeDistributed,
        lambda layer: keras.Sequential([layer]),
        lambda layer: keras.layers.TimeDistributed(Sequential([layer])),
    ],
)
def test_bounds_by_output_are_none_of_all_outputs(around):
    layer = layers.FrobeniusDense(16)
    model, found = warnings_of(
        lambda: Sequential(
            [
                keras.Input((5, 8)),
                around(layer),
                keras.layers.Flatten(),
                layers.SpectralDense(3),
            ]
        )
    )
    assert "its constant is 4" in found[0]
    assert model._whole_constant() == pytest.approx(4.0)


def overlapping():
    return keras.layers.MaxPooling2D(3, strides=1, padding="same")


def test_where_else_a_layer_was_called_does_not_count():
    pooling = overlapping()
    pooling(keras.Input((1, 1, 1)))
    model, found = warnings_of(
        lambda: Sequential(
            [pooling, keras.layers.Flatten(), layers.SpectralDense(2)]
        )
    )
    assert "its constant is 3" in found[0]
    assert model._whole_constant() == pytest.approx(3.0)


def test_all_places_of_a_layer_count():
    pooling = overlapping()
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.GlobalMaxPooling2D(keepdims=True)(pooling(inputs))
    model = Model(inputs, keras.layers.Flatten()(pooling(outputs)))
    _, found = warnings_of(lambda: model.compile("adam", "mse"))
    assert "its constant is 3" in found[0]


BRANCHES = [
    (
        lambda: [
            layers.SpectralDense(4),
            keras.layers.Normalization(mean=0.0, variance=0.01),
        ],
        (4,),
        10.0,
    ),
    (lambda: [layers.SpectralConv2D(2, 1), overlapping()], (2, 1, 2), 2**0.5),
]


@pytest.mark.filterwarnings("ignore:Layer .* is not a 1-Lipschitz layer")
@pytest.mark.parametrize(("branch", "shape", "constant"), BRANCHES)
def test_a_file_gives_a_branch_the_constant_that_it_had(
    branch, shape, constant, tmp_path
):
    block = layers.PrescaledResidual(Sequential(branch()))
    model = Sequential([keras.Input(shape), block])
    assert lipschitz_bound(model) <= 1.0001
    assert block.coef_lip == pytest.approx(1 / (1 + constant), rel=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )


@keras.saving.register_keras_serializable(package="test_promised")
class Times(keras.layers.Layer):
    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def compute_output_shape(self, input_shape):
        return input_shape


@pytest.mark.parametrize(
    "around",
    [
        lambda layer: layers.PrescaledResidual(layer, k_branch=3.0),
        lambda layer: keras.Sequential([keras.Input((4,)), layer]),
        lambda layer: keras.layers.Dense(4, activation=layer),
    ],
)
def test_a_name_is_that_of_one_layer(around):
    first, second = Times(0.5, name="same"), Times(3.0, name="same")
    model = keras.Sequential([keras.Input((4,)), first, around(second)])
    with pytest.raises(ValueError, match="one layer"):
        lipschitz_bound(model, constants={"same": 0.5})
    lipschitz_bound(model, constants={first: 0.5, second: 3.0})


@pytest.mark.filterwarnings("ignore:Layer .* is not a 1-Lipschitz layer")
@pytest.mark.parametrize(
    "place",
    [
        lambda layer: layer,
        lambda layer: layers.SpectralDense(4, activation=layer),
        lambda layer: layers.PrescaledResidual(layer, k_branch=10.0),
    ],
)
def test_exports_keep_statistics(place):
    random = np.random.default_rng(0)
    statistics = keras.layers.Normalization()
    statistics.adapt(random.normal(3.0, 0.1, (50, 4)).astype("float32"))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, place(statistics)(inputs))
    x = random.normal(3.0, 0.1, (3, 4)).astype("float32")
    np.testing.assert_allclose(
        vanillaModel(model).predict(x, verbose=0),
        model.predict(x, verbose=0),
        atol=1e-4,
    )


class Shared(layers.ConstrainedKernel, keras.layers.Dense):
    pass


def test_a_layer_without_a_parametrization_of_its_own_does_not_run():
    one = Frobenius()
    first = Shared(4, parametrization=one)
    second = Shared(4, parametrization=one, k_coef_lip=0.1)
    first.build((None, 4))
    for _ in range(2):
        with pytest.raises(ValueError, match="belongs to one layer"):
            second(np.eye(4, dtype="float32"))
