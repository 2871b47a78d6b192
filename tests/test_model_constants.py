"""Promises of models: who is warned when a layer gets another constant."""

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import built
from harness import normal
from harness import reloaded
from harness import to_numpy

from deel.lip import layers
from deel.lip._lipschitz import activation_constant
from deel.lip._numerics.activations import FACTS
from deel.lip.certification import lipschitz_bound
from deel.lip.model import Sequential

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
    # Nothing is broken by less.
    layer.set_klip_factor(0.1)


def test_constant_assigned_to_a_layer_is_used_at_once():
    layer = built(layers.SpectralDense(3), 4)
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
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=JIT)
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
    for name, facts in FACTS.items():
        layer = built(keras.layers.Activation(name), 3)
        assert activation_constant(layer) == facts.largest
        assert lipschitz_bound(layer) == facts.largest, name


# Warnings that nothing expects are errors in all tests.
def test_layer_that_bounds_outputs_one_by_one_must_be_the_last():
    scores = layers.FrobeniusDense(10)
    model = Sequential([keras.Input((4,)), layers.SpectralDense(4), scores])
    with pytest.warns(UserWarning, match="outputs by itself is not the last"):
        model.add(layers.SpectralDense(2))
    inner = Sequential([keras.Input((4,)), layers.FrobeniusDense(10)])
    with pytest.warns(UserWarning, match=_EXCEEDS):
        Sequential([keras.Input((4,)), inner, keras.layers.ReLU()])
    joint = layers.FrobeniusDense(10, disjoint_neurons=False)
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
    model.compile(keras.optimizers.SGD(1e-3), "mae", jit_compile=JIT)
    x = normal(8, 300)
    model.fit(x, x, verbose=0)
    layer.set_klip_factor(1.0)
    layer.set_klip_factor(k_coef_lip)
    model.fit(x, x, verbose=0)
    harness.assert_bounded(layer)
    assert np.all(np.isfinite(to_numpy(layer.kernel)))
    assert np.all(np.isfinite(model.predict(x, verbose=0)))


def test_constants_set_again_and_again_let_no_kernel_drift():
    layer = built(layers.SpectralDense(16), 16)
    before = harness.as_matrix(layer.wbar)
    for _ in range(1000):
        for constant in (1.7, 1.0):
            layer.set_klip_factor(constant)
    values = harness.singular_values(harness.as_matrix(layer.wbar))
    assert_close(values, 1.0, atol=2e-6)
    assert_close(harness.as_matrix(layer.wbar), before, atol=2e-6)
