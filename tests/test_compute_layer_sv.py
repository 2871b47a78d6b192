"""Singular values of layers, against matrices and known norms."""

import harness
import keras
import numpy as np
import pytest
from harness import assert_all_equal
from harness import built
from harness import normal
from harness import to_numpy

from deel.lip import layers
from deel.lip.compute_layer_sv import compute_layer_sv
from deel.lip.compute_layer_sv import compute_model_sv
from deel.lip.model import Sequential


def _built(layer, shape):
    layer.build((None, *shape))
    for variable in layer.trainable_weights:
        variable.assign(normal(*variable.shape))
    return layer


@pytest.mark.parametrize("units", [3, 8])
def test_dense_kernels_are_decomposed(units):
    layer = _built(keras.layers.Dense(units, activation="tanh"), (5,))
    values = harness.singular_values(harness.as_matrix(layer.kernel))
    found = compute_layer_sv(layer)
    assert [type(value) for value in found] == [float, float]
    assert found == pytest.approx((values[-1], values[0]), rel=1e-5)


CONVOLUTIONS = [
    (keras.layers.Conv2D, {"padding": "same"}, (5, 4, 2)),
    (keras.layers.Conv2D, {"strides": 2, "padding": "valid"}, (7, 6, 2)),
    (keras.layers.Conv2D, {"dilation_rate": 2}, (6, 6, 2)),
    (keras.layers.Conv2DTranspose, {"strides": 2}, (4, 3, 2)),
    (keras.layers.Conv1D, {}, (6, 2)),
]


@pytest.mark.parametrize(("make", "arguments", "shape"), CONVOLUTIONS, ids=str)
def test_convolutions_are_decomposed_without_bias_and_activation(
    make, arguments, shape, monkeypatch
):
    # Several batches of impulses.
    monkeypatch.setattr("deel.lip.compute_layer_sv._BATCH_NUMBERS", 500)
    affine = _built(make(3, 3, **arguments), shape)
    layer = make(3, 3, activation="relu", dtype="mixed_float16", **arguments)
    layer = _built(layer, shape)
    values = harness.singular_values(harness.operator_matrix(affine, shape))
    expected = (values[-1], values[0])
    assert compute_layer_sv(affine) == pytest.approx(expected, abs=1e-5)
    assert compute_layer_sv(layer) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.SpectralDense(6, k_coef_lip=2.0), (8,)),
        (layers.SpectralDense(6, activation=layers.MaxMin()), (8,)),
        (layers.FrobeniusDense(3, disjoint_neurons=False), (5,)),
        (layers.SpectralConv2D(3, 2, strides=2), (6, 4, 1)),
        (layers.SpectralConv2D(3, 3, activation=layers.MaxMin()), (6, 4, 1)),
    ],
    ids=["dense", "dense-pair", "frobenius", "conv", "conv-pair"],
)
def test_constrained_layers_are_measured_and_left_unchanged(layer, shape):
    # C15
    layer.build((None, *shape))
    # A kernel set by hand: condensing would replace it.
    layer.kernel.assign(3.0 * normal(*layer.kernel.shape))
    config, before = layer.get_config(), layer.get_weights()
    found = compute_layer_sv(layer)
    assert layer.get_config() == config
    assert_all_equal(before, layer.get_weights())
    exported = layer.vanilla_export()
    if isinstance(exported, keras.Sequential):
        exported = exported.layers[0]
    exported.bias.assign(np.ones(exported.bias.shape))
    values = harness.singular_values(harness.operator_matrix(exported, shape))
    assert found == pytest.approx((values[-1], values[0]), abs=1e-5)
    assert found[1] <= layer.k_coef_lip * (1 + harness.TOLERANCE)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (keras.layers.ReLU(), (0, 1)),
        (keras.layers.ReLU(negative_slope=0.5), (0.5, 1)),
        (keras.layers.ReLU(negative_slope=2.0), (1, 2)),
        (keras.layers.ReLU(max_value=6.0, negative_slope=0.1), (0, 1)),
        (keras.layers.ReLU(threshold=1.0), (None, None)),
        (keras.layers.Activation("relu"), (0, 1)),
        (keras.layers.Activation("leaky_relu"), (0.2, 1)),
        (keras.layers.Activation("linear"), (1, 1)),
        (keras.layers.Activation("gelu"), (None, None)),
        (layers.Abs(), (1, 1)),
        (layers.Abs(beta=0.5, k_coef_lip=3.0), (3, 3)),
        (layers.GroupSort(2), (1, 1)),
        (layers.GroupSort2(k_coef_lip=2.0), (2, 2)),
        (layers.FullSort(), (1, 1)),
        (layers.Householder(), (1, 1)),
        (layers.MaxMin(k_coef_lip=0.5), (0.5, 0.5)),
        (layers.ScaledAveragePooling2D(k_coef_lip=3.0), (None, 3)),
        (keras.layers.Flatten(), (None, None)),
    ],
)
def test_layers_without_kernel_have_known_bounds(layer, expected):
    # C15
    assert compute_layer_sv(layer) == expected


@pytest.mark.parametrize("count", [2, 3])
def test_sum_of_n_inputs_counts_n(count):
    # C15
    layer = keras.layers.Add()
    layer([np.ones((2, 3), "float32")] * count)
    assert compute_layer_sv(layer) == (count, count)
    inputs = [keras.Input((3,)) for _ in range(count)]
    model = keras.Model(inputs, keras.layers.Add(name="sum")(inputs))
    assert dict(compute_model_sv(model))["sum"] == (count, count)


@pytest.mark.parametrize("scale", [True, False])
def test_batch_normalization_scales_each_channel(scale):
    layer = built(keras.layers.BatchNormalization(epsilon=0.5, scale=scale), 3)
    layer.moving_variance.assign([0.5, 3.5, 15.5])
    factors = np.array([1.0, 0.5, 0.25])
    if scale:
        layer.gamma.assign([-2.0, 1.0, 8.0])
        factors = np.array([2.0, 0.5, 2.0])
    expected = (factors.min(), factors.max())
    assert compute_layer_sv(layer) == pytest.approx(expected)


def test_further_types_are_computed_by_the_user():
    seen = []

    def measure(layer, input_shape):
        seen.append((layer, input_shape))
        return 0.25, 4.0

    flatten = built(keras.layers.Flatten(), 3, 4)
    table = {keras.layers.Flatten: measure}
    assert compute_layer_sv(flatten, table) == (0.25, 4.0)
    assert seen == [(flatten, (None, 3, 4))]
    dense = _built(layers.SpectralDense(2), (3,))
    assert compute_layer_sv(dense, table)[1] == pytest.approx(1, abs=1e-4)


def test_layers_that_are_not_built_are_refused():
    for layer in (keras.layers.Dense(2), keras.layers.Conv2D(2, 3)):
        with pytest.raises(ValueError, match="Received: layer"):
            compute_layer_sv(layer)
    with pytest.raises(ValueError, match="built"):
        compute_layer_sv(layers.SpectralDense(2))
    with pytest.raises(ValueError, match="known size"):
        compute_layer_sv(_built(keras.layers.Conv2D(2, 3), (None, None, 1)))


def test_model_is_a_list_of_its_layers_and_those_of_nested_models():
    inner = Sequential(
        [
            keras.Input((4,)),
            layers.SpectralDense(4, activation=None, name="inside"),
            layers.GroupSort2(name="sort"),
        ],
        name="inner",
    )
    model = keras.Sequential(
        [
            keras.Input((3, 3, 1)),
            keras.layers.Conv2D(1, 2, name="conv"),
            keras.layers.Flatten(name="flat"),
            inner,
        ]
    )
    found = compute_model_sv(model)
    assert isinstance(found, list)
    names = [name for name, _ in found]
    assert names == ["conv", "flat", "inner", "inside", "sort"]
    values = dict(found)
    assert values["inner"] == values["flat"] == (None, None)
    assert values["inside"] == pytest.approx((1, 1), abs=1e-4)
    assert values["sort"] == (1, 1)
    to_numpy(model(normal(1, 3, 3, 1)))
