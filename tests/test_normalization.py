"""Centering and batch layers: statistics, factors, files and export."""

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import assert_equal
from harness import built
from harness import reloaded
from harness import to_numpy
from keras import ops

from deel.lip import layers
from deel.lip.layers import BatchCentering
from deel.lip.layers import BatchLipNorm
from deel.lip.layers import LayerCentering
from deel.lip.layers import ScaleBiasLayer
from deel.lip.model import Model
from deel.lip.model import Sequential
from deel.lip.model import vanillaModel

RNG = np.random.default_rng(0)


BATCHES = [
    (RNG.standard_normal((6, 4, 3)) * [1, 2, 5] + shift).astype("float32")
    for shift in (0, 3, -1)
]


BATCH_LAYERS = [BatchCentering, BatchLipNorm]


def observe(layer, batches=BATCHES):
    for batch in batches:
        layer(batch, training=True)


def means(batches):
    return np.mean([np.mean(x, axis=(0, 1)) for x in batches], axis=0)


def variances(batches):
    return np.mean([np.var(x, axis=(0, 1), ddof=1) for x in batches], axis=0)


def test_layer_centering_leaves_each_channel_of_a_sample_without_mean():
    x = BATCHES[1]
    layer = LayerCentering(k_coef_lip=2.0, bias_initializer="ones")
    expected = 2 * (x - x.mean(axis=1, keepdims=True)) + 1
    assert_close(layer(x), expected, atol=1e-5)
    first = LayerCentering(data_format="channels_first", use_bias=False)
    found = to_numpy(first(np.transpose(x, (0, 2, 1))))
    assert_close(np.transpose(found, (0, 2, 1)), (expected - 1) / 2, atol=1e-5)


def test_layer_centering_is_a_projection():
    layer = built(LayerCentering(), 3, 4, 2)
    matrix = harness.operator_matrix(layer, (3, 4, 2))
    assert_close(matrix @ matrix, matrix, atol=1e-6)
    assert_close(matrix, matrix.T, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [({}, (2, 3)), ({"axis": 0}, (2, 3)), ({"axis": (1, -3)}, (2, 3, 4))],
)
def test_layer_centering_needs_axes_other_than_the_batch(arguments, shape):
    with pytest.raises(ValueError, match="Received: axis="):
        LayerCentering(**arguments).build(shape)
    with pytest.raises(ValueError, match="Received: data_format="):
        LayerCentering(data_format="other")


@pytest.mark.parametrize("layer_class", BATCH_LAYERS)
@pytest.mark.parametrize(
    ("axis", "shape"), [(0, (2, 3)), (2, (2, 3)), (-2, (2, 3))]
)
def test_channels_must_be_an_axis_other_than_the_batch(
    layer_class, axis, shape
):
    with pytest.raises(ValueError, match="Received: axis="):
        layer_class(axis=axis).build(shape)
    with pytest.raises(ValueError, match="Received: axis="):
        layer_class(axis=[1])


def test_batch_centering_uses_the_batch_and_then_the_mean_of_the_batches():
    layer = BatchCentering()
    for index, x in enumerate(BATCHES):
        trained = to_numpy(layer(x, training=True))
        assert_close(trained, x - means([x]), atol=1e-5)
        inferred = to_numpy(layer(x, training=False))
        expected = x - means(BATCHES[: index + 1])
        assert_close(inferred, expected, atol=1e-5)


def test_axis_names_the_channels():
    moved = np.moveaxis(BATCHES[0], -1, 1)
    for layer_class in BATCH_LAYERS:
        last, first = layer_class(), layer_class(axis=1)
        expected = to_numpy(last(BATCHES[0], training=True))
        found = to_numpy(first(moved, training=True))
        assert_close(np.moveaxis(found, 1, -1), expected, atol=1e-6)


def test_batch_lip_norm_divides_by_the_largest_unbiased_deviation():
    layer = BatchLipNorm()
    x = BATCHES[0]
    factor = 1 / np.sqrt(np.max(variances([x])))
    assert_close(layer(x, training=True), (x - means([x])) * factor, atol=1e-5)
    observe(layer, BATCHES[1:])
    factor = 1 / np.sqrt(np.max(variances(BATCHES)))
    assert_close(
        layer(x, training=False), (x - means(BATCHES)) * factor, atol=1e-5
    )
    norm = harness.operator_norm(layer, (4, 3))
    assert norm == pytest.approx(float(layer.scaling_factor()), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"centering": False}, lambda x, mean, s: x * s),
        ({"normalize": False}, lambda x, mean, s: x - mean),
        (
            {"centering": False, "normalize": False, "use_bias": False},
            lambda x, mean, s: x,
        ),
        ({"bias_initializer": "ones"}, lambda x, mean, s: (x - mean) * s + 1),
    ],
)
def test_parts_of_batch_lip_norm_can_be_left_out(arguments, expected):
    layer = BatchLipNorm(**arguments)
    observe(layer)
    x = BATCHES[0]
    factor = 1 / np.sqrt(np.max(variances(BATCHES)))
    assert_close(layer(x), expected(x, means(BATCHES), factor), atol=1e-5)
    export = layer.vanilla_export()
    assert_close(export(x), layer(x), atol=1e-5)


def test_variances_below_eps_count_as_one():
    # The other channel varies by less than 1, so that the 1 is the largest.
    x = np.stack([np.zeros(4), [0.1, -0.1, 0.1, -0.1]], axis=1)
    layer = BatchLipNorm(eps=1e-5)
    layer(x, training=True)
    assert float(layer.scaling_factor()) == 1.0
    alone = BatchLipNorm(eps=1e-5)
    alone(x[:, 1:], training=True)
    expected = 1 / np.std(x[:, 1], ddof=1)
    assert float(alone.scaling_factor()) == pytest.approx(expected, rel=1e-5)


def test_batch_of_one_value_gives_no_nan():
    for layer_class in BATCH_LAYERS:
        layer = layer_class()
        found = to_numpy(layer(np.full((1, 2), 3.0), training=True))
        assert_equal(found, np.zeros((1, 2)))
        assert np.all(np.isfinite(to_numpy(layer(np.ones((1, 2))))))


def test_gradient_goes_through_the_statistics_of_the_batch():
    # Shifting or, without bias, scaling the batch changes nothing.
    layer = built(BatchLipNorm(), 3)
    x = RNG.standard_normal((5, 3)).astype("float32")
    weights = RNG.standard_normal((5, 3)).astype("float32")
    (slope,) = harness.gradient(
        lambda z: ops.sum(ops.multiply(layer(z, training=True), weights)), x
    )
    assert_close(slope.sum(axis=0), 0, atol=1e-5)
    assert float(np.sum(slope * x)) == pytest.approx(0, abs=1e-5)
    assert np.max(np.abs(slope)) > 0.1


@pytest.mark.parametrize("layer_class", BATCH_LAYERS)
def test_reset_begins_a_new_mean_and_keeps_the_former_until_then(layer_class):
    layer = layer_class(window=None)
    layer.reset_statistics()
    observe(layer, BATCHES[:1])
    layer.reset_statistics()
    assert_close(layer.mean, means(BATCHES[:1]), atol=1e-5)
    observe(layer, BATCHES[1:])
    assert_close(layer.mean, means(BATCHES[1:]), atol=1e-5)


def test_window_is_where_the_mean_begins_to_forget():
    layer = BatchCentering(window=2)
    values = [1.0, 3.0, 6.0, 8.0]
    found = []
    for value in values:
        layer(np.full((2, 1), value), training=True)
        found.append(float(to_numpy(layer.mean)[0]))
    # 1, (1+3)/2, then half of the way to each new value.
    assert found == [1.0, 2.0, 4.0, 6.0]
    with pytest.raises(ValueError, match="Received: window=0"):
        BatchCentering(window=0)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "jit"])
@pytest.mark.parametrize("layer_class", BATCH_LAYERS)
def test_fit_records_the_batches_of_the_last_epoch(layer_class, jit, tmp_path):
    if jit and keras.backend.backend() == "torch":
        pytest.skip("Compiling on PyTorch needs a C++ compiler.")
    layer = layer_class(window=None)
    model = keras.Sequential([keras.Input((4, 3)), layer])
    model.compile("sgd", "mse", jit_compile=jit)
    reset = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: layer.reset_statistics()
    )
    x = np.concatenate(BATCHES)
    y = np.zeros_like(x)
    model.fit(
        x,
        y,
        batch_size=6,
        epochs=2,
        shuffle=False,
        validation_data=(x, y),
        callbacks=[reset],
        verbose=0,
    )
    assert float(to_numpy(layer.count)) == 3
    assert_close(layer.mean, means(BATCHES), atol=1e-5)
    # Without the reset, the mean goes on over a second fit.
    model.fit(x[:6], y[:6], batch_size=6, verbose=0)
    assert float(to_numpy(layer.count)) == 4
    four = [*BATCHES, BATCHES[0]]
    assert_close(layer.mean, means(four), atol=1e-5)
    expected = model.predict(x, verbose=0)
    loaded = reloaded(model, tmp_path)
    assert_equal(loaded.predict(x, verbose=0), expected)


def test_training_outside_of_fit_is_safe_when_compiled_by_the_user():
    if keras.backend.backend() != "jax":
        pytest.skip("JAX alone has functions without state.")
    import jax

    layer = built(BatchLipNorm(), 4, 3)
    initial = layer.get_weights()
    expected = layer(BATCHES[0], training=True)
    layer.set_weights(initial)
    found = jax.jit(lambda x: layer(x, training=True))(BATCHES[0])
    assert_close(found, expected, atol=1e-5)
    assert_equal(layer.mean, np.zeros(3))
    # Keras' own stateless call returns the new state instead.
    _, state = layer.stateless_call(
        [v.value for v in layer.trainable_variables],
        [v.value for v in layer.non_trainable_variables],
        BATCHES[0],
        training=True,
    )
    assert_close(state[0], means(BATCHES[:1]), atol=1e-5)


@pytest.mark.parametrize("layer_class", BATCH_LAYERS)
def test_export_is_a_scale_and_a_bias_with_the_same_output(layer_class):
    layer = layer_class(bias_initializer="ones", name="norm")
    with pytest.raises(ValueError, match=r"Received: unbuilt .* 'norm'"):
        layer.vanilla_export()
    observe(layer)
    exported = layer.vanilla_export()
    assert type(exported) is ScaleBiasLayer
    assert exported.name == layer.name
    assert exported.count_params() == 3
    expected = to_numpy(layer(BATCHES[2], training=False))
    assert_close(exported(BATCHES[2], training=True), expected, atol=1e-5)


def test_model_with_batch_layers_is_exported_and_condensed():
    inputs = keras.Input((4, 3))
    outputs = BatchCentering()(layers.SpectralDense(3)(inputs))
    outputs = BatchLipNorm()(outputs)
    model = Model(inputs=inputs, outputs=outputs)
    with pytest.warns(UserWarning, match="batch_lip_norm.* not a 1-Lipschitz"):
        model.compile("adam", "mse", jit_compile=JIT)
    x = np.concatenate(BATCHES)
    model.fit(x, x, epochs=2, batch_size=6, verbose=0)
    model.condense()
    expected = model.predict(x, verbose=0)
    exported = model.vanilla_export()
    assert_close(exported.predict(x, verbose=0), expected, atol=1e-5)
    kinds = [type(layer).__name__ for layer in exported.layers[1:]]
    assert kinds == ["Dense", "ScaleBiasLayer", "ScaleBiasLayer"]


def test_centering_takes_part_in_the_constant_of_a_model():
    model = Sequential(
        [
            keras.Input((4, 3)),
            layers.SpectralDense(3),
            LayerCentering(),
            BatchCentering(),
        ],
        k_coef_lip=8.0,
    )
    assert [x.k_coef_lip for x in model.layers] == pytest.approx([2.0] * 3)
    assert model._get_coef() == pytest.approx(8.0)
    model(BATCHES[0], training=True)
    assert harness.operator_norm(model, (4, 3)) <= 8.0 * (1 + 1e-5)


@pytest.mark.parametrize(
    "layer", [BatchLipNorm(), ScaleBiasLayer(1.5), ScaleBiasLayer(-1.5)]
)
def test_layers_with_a_free_factor_are_not_1_lipschitz(layer):
    with pytest.warns(UserWarning, match="not a 1-Lipschitz layer"):
        model = Sequential([keras.Input((3,)), layer])
    with pytest.warns(UserWarning, match="not a 1-Lipschitz layer"):
        assert model._get_coef() is None


def test_small_scales_are_accepted():
    model = Sequential([keras.Input((3,)), ScaleBiasLayer(-1.0)])
    assert model._get_coef() == 1.0


@pytest.mark.parametrize("layer_class", [*BATCH_LAYERS, LayerCentering])
def test_half_precision_keeps_the_statistics_in_single(layer_class):
    layer = layer_class(dtype="mixed_float16")
    # The squares of these exceed what half precision can hold.
    x = (300 * BATCHES[0]).astype("float16")
    found = layer(x, training=True)
    assert keras.backend.standardize_dtype(found.dtype) == "float16"
    expected = to_numpy(layer_class()(x.astype("float32"), training=True))
    assert_close(found, expected, rtol=2e-3, atol=2e-3)
    assert all(v.dtype == "float32" for v in layer.variables)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("layer_class", BATCH_LAYERS)
def test_exported_means_keep_the_digits_of_the_difference(
    layer_class, use_bias, tmp_path
):
    layer = layer_class(bias_initializer="ones", use_bias=use_bias)
    random = np.random.default_rng(0)
    x = (1e6 + 3 * random.standard_normal((50, 3))).astype("float32")
    model = keras.Sequential([keras.Input((3,)), layer])
    model(x, training=True)
    if layer_class is BatchCentering:
        layer.set_klip_factor(0.3)
    expected = to_numpy(layer(x, training=False))
    exported = vanillaModel(model)
    exported.save(tmp_path / "model.keras")
    for found in (exported, keras.models.load_model(tmp_path / "model.keras")):
        assert_close(found(x), expected, rtol=1e-5, atol=1e-5)


def test_scale_and_bias_without_a_mean_are_read_from_old_files():
    layer = ScaleBiasLayer(0.5, bias_initializer="ones")
    config = layer.get_config()
    assert config.pop("mean") is None
    found = ScaleBiasLayer.from_config(config)(np.full((1, 2), 4.0))
    assert_equal(found, np.full((1, 2), 3.0))
    with pytest.raises(ValueError, match="Received: mean="):
        ScaleBiasLayer(mean=[1.0]).build((None, 2))
    with_mean = ScaleBiasLayer(0.5, mean=[1.0, 2.0], use_bias=False)
    config = with_mean.get_config()
    assert harness.is_plain(config)
    found = ScaleBiasLayer.from_config(config)(np.full((1, 2), 4.0))
    assert_equal(found, [[1.5, 1.0]])
