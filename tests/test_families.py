"""Rescaled kernels, symmetric residuals, shifts and magnitudes."""

import harness
import keras
import numpy as np
import pytest
from harness import TOLERANCE
from harness import assert_close
from harness import assert_equal
from harness import built
from harness import normal
from harness import to_numpy
from keras import ops

from deel.lip import layers
from deel.lip._numerics.activations import MONOTONE
from deel.lip.certification import lipschitz_bound
from deel.lip.layers import unconstrained
from deel.lip.model import Sequential
from deel.lip.parametrizations import AlmostOrthogonal

RESCALED = [
    (lambda: layers.AOLDense(5), (8,)),
    (lambda: layers.AOLDense(8), (5,)),
    (lambda: layers.AOLConv2D(4, 3), (5, 6, 3)),
    pytest.param(
        lambda: layers.AOLConv2D(3, 4, strides=(2, 3)),
        (6, 7, 2),
        marks=pytest.mark.elsewhere,
    ),
    (
        lambda: layers.AOLConv2D(3, 3, strides=2, padding_mode="circular"),
        (5, 4, 2),
    ),
    # Linear, they are I - 2 V V^T: as far as the step can go.
    (lambda: layers.SLLDense(6, activation="linear"), (4,)),
    (lambda: layers.SLLConv2D(4, 3, activation="linear"), (4, 5, 2)),
]


@pytest.mark.parametrize(("make", "shape"), RESCALED)
def test_operator_is_bounded_for_hostile_kernels(make, shape):
    layer = built(make(), *shape)
    update = harness.update_of(layer)
    for kind, kernel in harness.hostile_matrices(tuple(layer.kernel.shape), 15):
        layer.kernel.assign(kernel)
        update()
        assert harness.operator_norm(layer, shape) <= 1 + TOLERANCE, kind
        wbar = to_numpy(layer.wbar)
        assert layer.parametrization.expansion(wbar) <= 1 + TOLERANCE, kind


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_rescaling_is_the_formula_of_the_paper(strides):
    # Row sums of |P^T P| in the middle of an image, where no tap is cut off.
    kernel = normal(3, 3, 2, 4)
    layer = keras.layers.Conv2D(4, 3, strides, "same", use_bias=False)
    shape = (9, 9, 2)
    layer.build((None, *shape))
    layer.kernel.assign(kernel)
    matrix = harness.operator_matrix(layer, shape)
    sums = np.sum(np.abs(matrix @ matrix.T), axis=1).reshape(shape)
    found = AlmostOrthogonal(strides).constrain(ops.convert_to_tensor(kernel))
    ratio = to_numpy(found) / kernel
    for tap in range(3):
        # "Same" padding of 9 pixels adds one on each side.
        row = 4 if strides[0] == 1 else 3 + tap % 2
        expected = sums[row, 4] ** -0.5
        assert_close(ratio[tap, 1, :, 0], expected, rtol=1e-4)


def test_weights_of_the_paper_are_scales_of_the_channels():
    # T_i = sum_j |M_ij| q_j / q_i for the rows i of the kernel.
    rng = np.random.default_rng(0)
    kernel, q = rng.standard_normal((4, 6)), rng.uniform(0.5, 2.0, 4)
    sums = np.sum(np.abs(kernel @ kernel.T) * q / q[:, None], axis=1)
    expected = kernel / np.sqrt(sums)[:, None]
    scaled = ops.convert_to_tensor((kernel * q[:, None]).astype("float32"))
    assert_close(
        AlmostOrthogonal(by_output=False).constrain(scaled), expected, rtol=1e-4
    )


def test_weights_from_a_file_break_no_bound():
    layer = built(layers.AOLDense(6), 4)
    layer.kernel.assign(normal(4, 6))
    for weights in ([0, 1, -1, 1], [np.nan, np.inf, 1e-30, 1], [1e30] * 4):
        layer.parametrization.q.assign(np.array(weights, "float32"))
        layer(np.zeros((1, 4), "float32"), training=True)
        assert 0.1 < harness.expansion(layer) <= 1 + TOLERANCE


def test_condensed_layer_is_the_same_function_in_training_too():
    # Rescaling what is rescaled would make it smaller, but for the weights.
    layer = built(layers.AOLConv2D(3, 3, strides=2, k_coef_lip=2.0), 5, 4, 2)
    rng = np.random.default_rng(0)
    layer.kernel.assign(rng.standard_normal(layer.kernel.shape))
    x = rng.standard_normal((2, 5, 4, 2)).astype("float32")
    expected = to_numpy(layer(x, training=True))
    for _ in range(3):
        layer.condense()
        for training in (True, False):
            assert_close(layer(x, training=training), expected, atol=1e-5)


def test_orthogonal_kernels_pass_unchanged():
    rng = np.random.default_rng(0)
    kernel = np.linalg.qr(rng.standard_normal((8, 5)))[0].astype("float32")
    found = AlmostOrthogonal(by_output=None).constrain(
        ops.convert_to_tensor(kernel)
    )
    assert_close(found, kernel, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(layers.SLLDense(6), (4,)), (layers.SLLConv2D(4, 3), (4, 5, 2))],
)
def test_block_of_the_paper_is_what_is_computed(layer, shape):
    # x - 2 W T^-1 relu(W^T x + b), as matrices.
    layer.build((None, *shape))
    rng = np.random.default_rng(0)
    layer.kernel.assign(rng.standard_normal(layer.kernel.shape))
    x = rng.standard_normal((3, *shape)).astype("float32")
    found = to_numpy(layer(x, training=True)).reshape(3, -1)
    # The same convolution or product, with the kernel that is used.
    stock = (
        keras.layers.Dense(6, use_bias=False)
        if len(shape) == 1
        else keras.layers.Conv2D(4, 3, padding="same", use_bias=False)
    )
    stock.build((None, *shape))
    stock.kernel.assign(to_numpy(layer.wbar))
    matrix = harness.operator_matrix(stock, shape)
    flat = x.reshape(3, -1)
    expected = flat - 2 * np.maximum(flat @ matrix, 0) @ matrix.T
    assert_close(found, expected, atol=1e-5)


def test_dense_block_is_the_formula_with_its_diagonal():
    rng = np.random.default_rng(0)
    kernel, x = rng.standard_normal((4, 6)), rng.standard_normal((3, 4))
    diagonal = np.sum(np.abs(kernel.T @ kernel), axis=1)
    expected = x - 2 * (np.maximum(x @ kernel, 0) / diagonal) @ kernel.T
    layer = built(layers.SLLDense(6), 4)
    layer.kernel.assign(kernel)
    assert_close(layer(x.astype("float32"), training=True), expected, atol=1e-5)


@pytest.mark.parametrize("activation", MONOTONE)
def test_block_expands_nothing_with_any_of_its_activations(activation):
    layer = built(layers.SLLDense(8, activation=activation), 4)
    rng = np.random.default_rng(0)
    layer.kernel.assign(rng.standard_normal((4, 8)))
    x = 3 * rng.standard_normal((500, 4)).astype("float32")
    z = x + 0.5 * rng.standard_normal((500, 4)).astype("float32")
    gaps = [
        np.linalg.norm(a - b, axis=1)
        for a, b in [
            (x, z),
            [to_numpy(layer(v, training=True)) for v in (x, z)],
        ]
    ]
    assert np.all(gaps[1] <= gaps[0] * (1 + 1e-5) + 1e-6)
    assert lipschitz_bound(layer) <= 1 + 1e-5


@pytest.mark.parametrize("activation", ["gelu", layers.GroupSort2()])
def test_activations_that_would_break_the_block_are_refused(activation):
    for make in (
        lambda: layers.SLLDense(4, activation=activation),
        lambda: layers.SLLConv2D(4, 3, activation=activation),
        lambda: unconstrained.ResidualDense(4, activation=activation),
    ):
        with pytest.raises(ValueError, match="Received: activation="):
            make()


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "strides": 2},
        {"kernel_size": 3, "padding": "valid"},
        {"kernel_size": 3, "dilation_rate": 2},
    ],
)
def test_blocks_that_change_the_image_are_refused(arguments):
    with pytest.raises(ValueError, match="Received: kernel_size="):
        layers.SLLConv2D(4, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"padding": "valid"}, RuntimeError),
        ({"dilation_rate": 2}, RuntimeError),
        ({"groups": 2}, ValueError),
        ({"padding_mode": "reflect"}, ValueError),
    ],
)
def test_rescaled_convolutions_that_are_not_bounded_are_refused(
    arguments, error
):
    with pytest.raises(error, match="Received: "):
        layers.AOLConv2D(4, 3, **arguments)


def test_rescaled_convolution_takes_images_of_any_size():
    layer = built(layers.AOLConv2D(3, 5), 2, 3, 2)
    for size in (2, 9):
        assert harness.operator_norm(layer, (size, size, 2)) <= 1 + TOLERANCE


def test_bound_of_a_residual_is_that_of_any_kernel():
    layer = unconstrained.ResidualDense(3, activation="linear", k_coef_lip=2.0)
    layer.build((None, 4))
    layer.kernel.assign(normal(4, 3))
    norm = harness.operator_norm(layer, (4,))
    assert lipschitz_bound(layer) == pytest.approx(norm, rel=1e-5)
    assert lipschitz_bound(layer) >= norm * (1 - 1e-6)


def test_shift_moves_each_quarter_of_the_channels_its_own_way():
    x = normal(2, 3, 4, 9)
    found = to_numpy(layers.SpatialShift2D()(x))
    for part, (step, axis) in enumerate([(1, 1), (-1, 1), (1, 2), (-1, 2)]):
        channels = slice(2 * part, 2 * part + 2)
        expected = np.roll(x[..., channels], step, axis)
        assert_equal(found[..., channels], expected)
    assert_equal(found[..., 8], x[..., 8])
    with pytest.raises(ValueError, match="channels=3"):
        layers.SpatialShift2D()(x[..., :3])
    with pytest.raises(ValueError, match=r"fraction=1\.5"):
        layers.SpatialShift2D(1.5)


def test_shift_and_an_orthogonal_mixing_keep_every_norm():
    model = Sequential(
        [
            keras.Input((4, 4, 8)),
            layers.SpatialShift2D(),
            layers.SpectralConv2D(8, 1, use_bias=False),
            layers.Abs(0.5),
        ]
    )
    x = np.random.default_rng(0).standard_normal((5, 4, 4, 8))
    y = to_numpy(model(x.astype("float32"))).reshape(5, -1)
    norms = np.linalg.norm(x.reshape(5, -1), axis=1)
    assert_close(np.linalg.norm(y, axis=1), norms, rtol=1e-4)


def test_share_of_magnitudes_out_of_range_is_refused():
    for beta in (0.0, 1.5):
        with pytest.raises(ValueError, match="Received: beta="):
            layers.Abs(beta)
    with pytest.raises(RuntimeError, match="Received: data_format="):
        layers.Abs(data_format="last")


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [1e-3, 1e-1])
def test_deep_stack_of_families_is_trained_and_exported(learning_rate):
    model = Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.AOLConv2D(8, 3, activation=layers.Abs()),
            layers.SpatialShift2D(),
            layers.SLLConv2D(8, 3),
            layers.SpectralConv2D(8, 3, strides=2, bound="operator"),
            keras.layers.Flatten(),
            layers.AOLDense(8),
            layers.SLLDense(8),
            layers.FrobeniusDense(1),
        ]
    )
    x = np.random.default_rng(0).standard_normal((64, 6, 6, 2))
    y = 2.0 * np.mean(x, axis=(1, 2, 3))
    model.compile(keras.optimizers.Adam(learning_rate), "mse")
    model.fit(x, y, batch_size=16, epochs=2, verbose=0)
    assert lipschitz_bound(model) <= 1 + 1e-4
    exported = model.vanilla_export()
    assert lipschitz_bound(exported) <= 1 + 1e-4
    assert_close(
        exported.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )
