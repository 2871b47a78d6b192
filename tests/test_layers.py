"""What every layer of the registry does: shapes, counts, configs, files."""

import json

import harness
import keras
import numpy as np
import pytest
import registry
from harness import assert_all_equal
from harness import assert_close
from harness import assert_equal
from harness import normal
from harness import reloaded
from harness import to_numpy
from keras import ops

from deel.lip.parametrizations import BlockReflector
from deel.lip.parametrizations import Skew


def _data(row, count=3):
    return normal(count, *row.input_shape)


def _model(row):
    inputs = keras.Input(row.input_shape)
    return keras.Model(inputs, row.make()(inputs))


@registry.rows(registry.CONSTRAINED, registry.OTHERS)
def test_output_shape_is_the_same_symbolic_and_computed(row):
    layer = row.make()
    expected = (3, *row.output_shape)
    assert layer.compute_output_shape((3, *row.input_shape)) == expected
    assert tuple(layer(_data(row)).shape) == expected
    assert _model(row).output_shape == (None, *row.output_shape)


@registry.rows(registry.CONSTRAINED, registry.OTHERS)
def test_parameters_are_counted_as_documented(row):
    layer = row.built()
    trainable = sum(int(np.prod(v.shape)) for v in layer.trainable_weights)
    assert (trainable, layer.count_params() - trainable) == row.parameters
    # Those of several kernels once.
    names = list(dict.fromkeys(v.name for v in layer.weights))
    known = ["kernel", "bias", "psi", "sn", "sigma", "q", "wbar"]
    known += ["theta", "alpha", "mean", "variance", "scale", "count"]
    assert names == [name for name in known if name in names]


@registry.rows(registry.CONSTRAINED, registry.OTHERS)
def test_config_is_plain_and_rebuilds_an_equal_layer(row):
    layer = row.make()
    config = layer.get_config()
    assert harness.is_plain(config)
    rebuilt = type(layer).from_config(json.loads(json.dumps(config)))
    assert json.dumps(rebuilt.get_config()) == json.dumps(config)
    for name, value in row.arguments.items():
        assert name in config
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert np.all(np.asarray(getattr(layer, name)) == value)


@registry.rows(
    registry.CONSTRAINED, registry.OTHERS, slow=True, every_class=True
)
def test_map_expands_by_no_more_than_its_constant(row):
    layer = row.make()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, *row.input_shape)).astype("float32")
    # Pairs far apart and close together.
    step = rng.standard_normal(x.shape) * 10.0 ** rng.uniform(
        -2, 1, (200,) + (1,) * len(row.input_shape)
    )
    z = (x + step).astype("float32")
    apart = [
        to_numpy(layer(a)).astype("float64").reshape(200, -1) for a in (x, z)
    ]
    moved = np.linalg.norm(apart[0] - apart[1], axis=1)
    gap = (x - z).astype("float64").reshape(200, -1)
    distance = np.linalg.norm(gap, axis=1)
    # The outputs are rounded to float32, which pairs close together feel.
    assert np.all(moved <= row.constant * distance * (1 + 1e-5) + 1e-5)


@registry.rows(registry.CONSTRAINED, registry.OTHERS, slow=True)
def test_saved_model_predicts_the_same_bit_for_bit(row, tmp_path):
    model = _model(row)
    model(_data(row), training=True)
    expected = model.predict(_data(row), verbose=0)
    loaded = reloaded(model, tmp_path)
    assert_equal(loaded.predict(_data(row), verbose=0), expected)
    assert_all_equal(model.get_weights(), loaded.get_weights())


@registry.rows(registry.CONSTRAINED, registry.OTHERS, slow=True)
def test_inference_changes_no_variable(row):
    model = _model(row)
    before = model.get_weights()
    model.predict(_data(row), verbose=0)
    model(_data(row), training=False)
    assert_all_equal(before, model.get_weights())


@registry.rows(registry.CONSTRAINED, slow=True)
def test_export_is_the_stock_layer_with_the_same_output(row):
    layer = row.make()
    x = _data(row)
    expected = to_numpy(layer(x, training=False))
    exported = layer.vanilla_export()
    assert type(exported) is row.stock
    assert exported.name == layer.name
    bias = 0 if layer.bias is None else int(np.prod(layer.bias.shape))
    weights = int(np.prod(layer.wbar.shape)) + bias + row.further
    assert exported.count_params() == weights
    assert_close(exported(x), expected, atol=1e-5)
    exported.kernel.assign(np.zeros(exported.kernel.shape))
    assert_equal(layer(x, training=False), expected)


@registry.rows(registry.CONSTRAINED)
def test_export_of_a_layer_that_is_not_built_is_refused(row):
    # C25
    for method in ("vanilla_export", "condense"):
        with pytest.raises(ValueError, match=rf"{method}.*built"):
            getattr(row.make(), method)()


@registry.rows(registry.CONSTRAINED, slow=True)
def test_condense_writes_the_constrained_kernel_once_and_for_all(row):
    # C3
    layer = row.built()
    layer.kernel.assign(normal(*layer.kernel.shape))
    layer.condense()
    kernel = to_numpy(layer.kernel)
    if not row.is_free:
        assert_equal(kernel, layer.wbar)
    expected = to_numpy(layer(_data(row), training=False))
    layer.condense()
    if layer._get_coef() == 1.0:
        assert_close(layer.kernel, kernel, atol=1e-5)
    assert_close(layer(_data(row), training=False), expected, atol=2e-5)


@registry.rows(registry.CONSTRAINED, slow=True)
def test_new_constant_is_followed_at_once(row):
    # C3
    layer = row.built()
    before = to_numpy(layer.wbar)
    layer.set_klip_factor(2 * layer.k_coef_lip)
    assert_close(layer.wbar, 2 * before, rtol=1e-5)
    harness.assert_bounded(layer)
    layer(_data(row), training=True)
    harness.assert_bounded(layer)


@registry.rows(registry.CONSTRAINED, slow=True)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_reported(row, value):
    layer = row.built()
    kernel = np.ones(layer.kernel.shape)
    kernel.flat[0] = value
    layer.kernel.assign(kernel)
    before = to_numpy(layer.wbar)
    with pytest.raises(ValueError, match=layer.name):
        layer.condense()
    assert_equal(layer.wbar, before)
    layer(_data(row), training=True)
    with pytest.raises(ValueError, match="finite"):
        layer.vanilla_export()


@registry.rows(registry.CONSTRAINED, slow=True)
def test_zero_kernel_gives_the_bias_and_finite_gradients(row):
    # C2
    layer = row.built()
    layer.activation = keras.activations.linear
    zero = np.zeros(layer.kernel.shape, "float32")
    layer.kernel.assign(zero)
    output = to_numpy(layer(_data(row), training=True))
    if not isinstance(layer.parametrization, Skew | BlockReflector):
        passed = layer.k_coef_lip * _data(row) if row.residual else 0
        assert_equal(output, passed + np.zeros_like(output))
        assert np.all(to_numpy(layer.wbar) == 0)
    parametrization = layer.parametrization
    (slope,) = harness.gradient(
        lambda kernel: ops.sum(parametrization.constrain(kernel)), zero
    )
    assert np.all(np.isfinite(slope))
    if hasattr(layer, "u"):
        assert np.any(to_numpy(layer.u) != 0)


@registry.rows(registry.CONSTRAINED, registry.OTHERS)
def test_layer_is_registered_under_the_name_of_the_library(row):
    registered = keras.saving.get_registered_name(row.layer)
    assert registered == f"deel-lip>{row.layer.__name__}"


@registry.rows(registry.CONSTRAINED)
def test_quantization_and_lora_are_refused(row):
    layer = row.built()
    with pytest.raises(ValueError, match="vanilla_export"):
        layer.quantize("int8")
    with pytest.raises(ValueError, match="vanilla_export"):
        layer.enable_lora(2)
