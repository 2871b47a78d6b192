"""Layers that hold others: what is inside is bounded like the rest."""

import keras
import numpy as np
import pytest

from deel.lip import layers
from deel.lip.certification import Bound
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.certification import register_bound
from deel.lip.model import Sequential


class Odd(keras.layers.Layer):
    """Three times the input; nobody has registered that."""

    def call(self, x):
        return 3 * x

    def compute_output_shape(self, input_shape):
        return input_shape


def _dense():
    return keras.layers.Dense(
        4, kernel_initializer="identity", activation=Odd(name="odd")
    )


HOSTS = {
    "activation": (_dense, (4,), 1.0),
    "constrained": (
        lambda: layers.SpectralDense(4, activation=Odd(name="odd")),
        (4,),
        1.0,
    ),
    "time": (
        lambda: keras.layers.TimeDistributed(Odd(name="odd")),
        (5, 4),
        1.0,
    ),
    "activation in time": (
        lambda: keras.layers.TimeDistributed(_dense()),
        (5, 4),
        1.0,
    ),
    "model in time": (
        lambda: keras.layers.TimeDistributed(
            keras.Sequential([keras.Input((4,)), Odd(name="odd")])
        ),
        (5, 4),
        1.0,
    ),
    "branch": (
        lambda: layers.PartialResidual(
            keras.Sequential([keras.Input((2,)), Odd(name="odd")]), k_branch=1
        ),
        (4,),
        1.0,
    ),
    "residual": (
        lambda: layers.PrescaledResidual(
            keras.Sequential([keras.Input((4,)), _dense()]), k_branch=1
        ),
        (4,),
        0.5,
    ),
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("by", ["name", "class"])
def test_constants_that_are_given_count_inside_of_layers(host, by):
    make, shape, scale = HOSTS[host]
    model = keras.Sequential([keras.Input(shape), make()])
    with pytest.raises(ValueError, match="constant of layer 'odd'"):
        lipschitz_bound(model)
    key = "odd" if by == "name" else Odd
    bound, table = lipschitz_bound(
        model, constants={key: 3.0}, return_table=True
    )
    joined = {"residual": 1 + 3.0}.get(host, 3.0)
    assert bound == pytest.approx(scale * joined, rel=1e-6)
    assert any(row.name.endswith("odd") for row in table)


def test_constant_may_be_given_for_one_layer_of_a_class():
    first, second = Odd(), Odd()
    model = keras.Sequential([keras.Input((4,)), first, second])
    bound = lipschitz_bound(model, constants={first: 3.0, second: 5.0})
    assert bound == pytest.approx(15.0)


def test_rules_of_ones_own_may_ask_for_what_is_inside():
    class Twice(keras.layers.Wrapper):
        def call(self, x):
            return self.layer(self.layer(x))

    @register_bound(Twice)
    def _twice(layer, input_shapes, context):
        inner = context.bound(layer.layer, input_shapes)
        return Bound(inner.value**2, "twice")

    model = keras.Sequential(
        [keras.Input((4,)), Twice(layers.SpectralDense(4, k_coef_lip=0.5))]
    )
    assert lipschitz_bound(model) == pytest.approx(0.25, rel=1e-4)
    inside = [row.name for row in lipschitz_bound(model, return_table=True)[1]]
    assert len(inside) == 2
    assert inside[0].startswith(f"{inside[1]}/")


def test_a_default_of_a_rule_is_no_place_for_the_context():
    class Scaled(keras.layers.Layer):
        def call(self, x):
            return 3 * x

    register_bound(Scaled, lambda layer, input_shapes, constant=3.0: constant)
    model = keras.Sequential([keras.Input((4,)), Scaled()])
    assert lipschitz_bound(model) == 3.0


def test_models_of_several_outputs_inside_of_layers_are_refused():
    x = keras.Input((4,))
    inner = keras.Model(x, [keras.layers.ReLU()(x), keras.layers.ReLU()(x)])

    class Sum(keras.layers.Wrapper):
        def call(self, x):
            return sum(self.layer(x))

    @register_bound(Sum)
    def _sum(layer, input_shapes, context):
        return context.bound(layer.layer, input_shapes)

    model = keras.Sequential([keras.Input((4,)), Sum(inner)])
    with pytest.raises(ValueError, match="with 1 and 2"):
        lipschitz_bound(model)


@pytest.mark.parametrize(
    "last",
    [
        layers.AOLDense,
        layers.SpectralDense,
        layers.OrthogonalDense,
        lambda n: layers.FrobeniusDense(n, disjoint_neurons=False),
        layers.FrobeniusDense,
    ],
)
def test_certificates_of_a_last_dense_layer_are_those_of_its_export(last):
    keras.utils.set_random_seed(0)
    model = Sequential(
        [keras.Input((6,)), layers.SpectralDense(8, activation="relu"), last(3)]
    )
    x = np.random.default_rng(0).standard_normal((20, 6)).astype("float32")
    ours = certify(model, x)
    exported = certify(model.vanilla_export(), x)
    np.testing.assert_allclose(ours.radius, exported.radius, rtol=1e-4)
    assert np.mean(ours.radius) > 0
