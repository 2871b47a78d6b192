"""Orthogonal convolutions: their operators, by decomposition; their factors."""

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import assert_equal
from harness import built
from harness import normal
from harness import to_numpy
from keras import ops

from deel.lip import layers
from deel.lip._numerics.orthogonal_factors import Factors
from deel.lip._numerics.orthogonal_factors import convolution_bound
from deel.lip.certification import lipschitz_bound

TOLERANCE = harness.TOLERANCE


def _elsewhere(*values):
    return pytest.param(*values, marks=pytest.mark.elsewhere)


# Dimensions, arguments, channels: square, more and fewer outputs, one channel,
# even and rectangular windows, strides with more and fewer outputs than values
# in a window, windows smaller than the stride, groups.
CASES = [
    (2, {"filters": 4, "kernel_size": 3}, 4),
    (2, {"filters": 8, "kernel_size": 3}, 3),
    _elsewhere(2, {"filters": 2, "kernel_size": 3}, 5),
    _elsewhere(2, {"filters": 1, "kernel_size": 3}, 1),
    (2, {"filters": 3, "kernel_size": 1}, 4),
    _elsewhere(2, {"filters": 3, "kernel_size": (4, 2)}, 3),
    _elsewhere(2, {"filters": 3, "kernel_size": (1, 5)}, 2),
    _elsewhere(2, {"filters": 3, "kernel_size": 4, "strides": 2}, 2),
    _elsewhere(2, {"filters": 9, "kernel_size": 3, "strides": 2}, 2),
    (2, {"filters": 17, "kernel_size": 4, "strides": 2}, 2),
    _elsewhere(2, {"filters": 8, "kernel_size": 2, "strides": (2, 1)}, 4),
    (2, {"filters": 8, "kernel_size": (1, 3), "strides": 2}, 4),
    (2, {"filters": 8, "kernel_size": 3, "groups": 2}, 6),
    _elsewhere(2, {"filters": 3, "kernel_size": 7}, 3),
    _elsewhere(1, {"filters": 8, "kernel_size": 6}, 5),
    (1, {"filters": 4, "kernel_size": 5, "strides": 3}, 3),
    (3, {"filters": 3, "kernel_size": (3, 2, 1)}, 2),
]
LAYERS = {
    1: layers.OrthogonalConv1D,
    2: layers.OrthogonalConv2D,
    3: layers.OrthogonalConv3D,
}


@pytest.mark.parametrize(("rank", "arguments", "channels"), CASES, ids=str)
def test_all_singular_values_on_periodic_images_are_one(
    rank, arguments, channels
):
    layer = built(LAYERS[rank](**arguments), *(8,) * rank, channels)
    values = harness.torus_values(layer)
    assert np.max(values) <= 1 + TOLERANCE
    # Values that no window reads are lost, where it is smaller than the stride.
    steps = zip(layer.kernel_size, layer.strides, strict=True)
    read = np.prod([min(k, s) / s for k, s in steps])
    inputs = channels // layer.groups * np.prod(layer.strides)
    outputs = layer.filters // layer.groups
    rank_of_map = min(inputs * read, outputs)
    kept = np.sort(values)[::-1][
        : round(len(values) * rank_of_map / min(inputs, outputs))
    ]
    assert np.min(kept) >= 1 - 1e-4
    assert np.sum(values[values < 0.5] ** 2) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"filters": 4, "kernel_size": 3}, (5, 4, 3)),
        ({"filters": 4, "kernel_size": (5, 3), "dilation_rate": 2}, (5, 4, 4)),
        _elsewhere({"filters": 4, "kernel_size": 3, "groups": 2}, (3, 4, 4)),
        ({"filters": 6, "kernel_size": 3, "strides": 2}, (4, 6, 2)),
        _elsewhere(
            {"filters": 3, "kernel_size": 5, "strides": (1, 3)}, (5, 6, 2)
        ),
    ],
    ids=str,
)
def test_layer_with_circular_padding_is_orthogonal(arguments, shape):
    # What it does to each unit image, and no formula.
    layer = built(
        layers.OrthogonalConv2D(padding="circular", **arguments), *shape
    )
    matrix = harness.operator_matrix(layer, shape)
    values = harness.singular_values(matrix)
    assert_close(values, 1, atol=1e-4)
    assert values[0] <= 1 + TOLERANCE
    if layer.groups == 1 and layer.dilation_rate == (1, 1):
        # The same as the reference by which the other tests measure.
        kernel = to_numpy(layer.wbar)
        expected = harness.torus_matrix(kernel, layer.strides, shape[:2])
        assert_close(values, harness.singular_values(expected), atol=1e-5)


@pytest.mark.parametrize("padding", ["same", "VALID"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3},
        {"kernel_size": 4, "strides": 3},
        _elsewhere({"kernel_size": 3, "dilation_rate": 2}),
        {"kernel_size": (2, 5), "groups": 2},
    ],
    ids=str,
)
def test_padding_with_zeros_contracts(arguments, padding):
    shape = (7, 6, 4)
    layer = layers.OrthogonalConv2D(4, padding=padding, **arguments)
    built(layer, *shape)
    values = harness.singular_values(harness.operator_matrix(layer, shape))
    # Something passes the image without touching its border.
    assert 0.7 < values[0] <= 1 + TOLERANCE
    assert lipschitz_bound(layer) <= 1 + 2 * TOLERANCE


@pytest.mark.parametrize("strides", [_elsewhere(1), 2])
def test_transposed_layer_is_the_adjoint(strides):
    layer = built(
        layers.OrthogonalConv2DTranspose(3, 4, strides, padding="valid"),
        3,
        2,
        5,
    )
    matrix = harness.operator_matrix(layer, (3, 2, 5))
    assert harness.singular_values(matrix)[0] <= 1 + TOLERANCE
    height, width, _ = layer.compute_output_shape((1, 3, 2, 5))[1:]
    stock = keras.layers.Conv2D(5, 4, strides, use_bias=False)
    stock.build((None, height, width, 3))
    stock.kernel.assign(to_numpy(layer.wbar))
    assert stock.compute_output_shape((1, height, width, 3))[1:3] == (3, 2)
    matrix_of_stock = []
    for impulse in np.eye(height * width * 3, dtype="float32"):
        response = stock(impulse.reshape(1, height, width, 3))
        matrix_of_stock.append(to_numpy(response).ravel())
    assert_close(matrix, np.transpose(matrix_of_stock), atol=1e-6)


@pytest.mark.elsewhere
def test_transposed_layer_keeps_norms_where_nothing_is_cut_off():
    layer = layers.OrthogonalConv2DTranspose(2, 4, strides=2, padding="valid")
    built(layer, 3, 2, 7)
    values = harness.singular_values(harness.operator_matrix(layer, (3, 2, 7)))
    assert_close(values, 1, atol=1e-4)


def test_many_layers_keep_distances():
    # Where each layer that divides by its coverage loses some.
    x = normal(2, 6, 6, 6)
    y = x
    for _ in range(20):
        y = layers.OrthogonalConv2D(6, 3, padding="circular")(y, training=False)
    ratio = np.linalg.norm(to_numpy(y)) / np.linalg.norm(x)
    assert ratio == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("scale", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("strides", [1, 2])
def test_blocks_expand_nothing_if_their_factors_do_not(scale, strides):
    factors = Factors((5, 4, 4, 6), (strides, strides))
    rng = np.random.default_rng(0)
    parts = []
    for part in factors.split(rng.standard_normal(factors.free_shape)):
        if part is None:
            parts.append(None)
            continue
        u, _, v = np.linalg.svd(to_numpy(part), full_matrices=False)
        # Any singular values, up to the scale.
        values = scale * rng.uniform(0, 1, u.shape[-1])
        values[0] = scale
        parts.append(ops.convert_to_tensor((u * values @ v).astype("float32")))
    kernel = to_numpy(factors.compose(parts))
    matrix = harness.torus_matrix(kernel, (strides, strides), (8, 8))
    assert harness.singular_values(matrix)[0] <= scale * (1 + TOLERANCE)


def test_factors_are_joined_as_they_are_split():
    for shape, strides, groups in [
        ((3, 3, 4, 4), (1, 1), 1),
        ((4, 3, 2, 34), (2, 2), 2),
        ((3, 2, 6), (2,), 2),
    ]:
        factors = Factors(shape, strides, groups)
        array = normal(*factors.free_shape)
        joined = factors.join(factors.split(ops.convert_to_tensor(array)))
        assert_equal(joined, array)


def test_every_factor_changes_the_kernel():
    layer = built(layers.OrthogonalConv2D(17, 4, strides=2), 4, 4, 2)
    constrain = layer.parametrization.constrain
    (slope,) = harness.gradient(
        harness.weighted(constrain, normal(4, 4, 2, 17)), to_numpy(layer.kernel)
    )
    for part in layer.parametrization.factors.split(slope):
        matrices = to_numpy(part).reshape(-1, *part.shape[-2:])
        assert np.all(np.max(np.abs(matrices), axis=(1, 2)) > 1e-2)
    # And every tap of the window is used.
    taps = to_numpy(layer.wbar)
    assert np.all(np.max(np.abs(taps), axis=(2, 3)) > 1e-3)


@pytest.mark.parametrize("strides", [_elsewhere(1), 2])
def test_gradient_is_that_of_the_composed_kernel(strides):
    layer = built(layers.OrthogonalConv2D(9, 3, strides), 4, 4, 2)
    value = harness.weighted(
        layer.parametrization.constrain, normal(3, 3, 2, 9)
    )
    harness.assert_slopes(value, to_numpy(layer.kernel), abs=0.05)


@pytest.mark.parametrize("learning_rate", [1e-3, 1e-1])
def test_training_stays_orthogonal_and_learns(learning_rate):
    layer = layers.OrthogonalConv2D(4, 3, padding="circular", use_bias=False)
    model = keras.Sequential([keras.Input((4, 4, 4)), layer])
    adam = keras.optimizers.Adam(learning_rate)
    model.compile(adam, "mse", jit_compile=JIT)
    x = normal(64, 4, 4, 4)
    target = layers.OrthogonalConv2D(
        4, 3, padding="circular", kernel_initializer="glorot_normal"
    )
    y = to_numpy(target(x, training=False))
    losses = model.fit(x, y, 8, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    values = harness.torus_values(layer)
    assert np.max(values) <= 1 + TOLERANCE
    if learning_rate == 1e-3:
        assert np.min(values) >= 1 - 1e-2
    layer.condense()
    values = harness.torus_values(layer)
    assert np.max(values) <= 1 + TOLERANCE
    assert np.min(values) >= 1 - 1e-4


@pytest.mark.parametrize("kind", ["ones", "zeros", "random_normal"])
def test_any_initializer_starts_with_nearest_factors(kind):
    layer = layers.OrthogonalConv2D(4, 3, kernel_initializer=kind)
    built(layer, 4, 4, 4)
    values = harness.torus_values(layer)
    assert np.max(values) <= 1 + TOLERANCE
    if kind == "random_normal":
        assert np.min(values) >= 1 - 1e-4
        # At one, whatever the scale of what was drawn.
        norms = np.linalg.norm(to_numpy(layer.kernel)[0], axis=0)
        assert np.all(norms <= 1 + TOLERANCE)
        assert np.mean(norms) == pytest.approx(1, abs=1e-3)
    assert layer.get_config()["kernel_initializer"] is not None


def test_valid_kernels_from_outside_are_kept_bit_for_bit():
    # Also those that the factors at hand do not give.
    one, other = (
        built(layers.OrthogonalConv2D(4, 5), 4, 4, 4) for _ in range(2)
    )
    foreign = to_numpy(other.wbar)
    own = to_numpy(one.wbar)
    one.wbar.assign(foreign)
    assert_equal(one.wbar, foreign)
    one.wbar.assign(0.5 * foreign)
    assert_equal(one.wbar, 0.5 * foreign)
    for invalid in (foreign * 1.001, foreign * np.nan, np.ones_like(foreign)):
        one.wbar.assign(invalid)
        assert_close(one.wbar, own, atol=1e-6)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (3, 3)])
@pytest.mark.parametrize("shape", [(3, 3, 2, 3), (4, 2, 3, 2), (1, 3, 2, 9)])
def test_bound_for_every_size_is_never_below_the_norm(strides, shape):
    for kind, kernel in harness.hostile_matrices(shape, 14):
        scale = np.max(np.abs(kernel))
        kernel = kernel.astype("float64") / (scale or 1)
        lengths = [4 * s for s in strides]
        matrix = harness.torus_matrix(kernel, strides, lengths)
        norm = harness.singular_values(matrix)[0]
        assert convolution_bound(kernel, strides) >= norm * (1 - 1e-9), kind


@pytest.mark.elsewhere
def test_bound_for_every_size_is_close_for_orthogonal_kernels():
    for strides in (1, 2):
        layer = layers.OrthogonalConv2D(8, 7, strides)
        built(layer, 8, 8, 3)
        kernel = to_numpy(layer.wbar)
        assert 1 - 1e-4 < layer.parametrization.expansion(kernel) < 1 + 1e-5


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({"kernel_size": 4}, (8, 8), "odd"),
        ({"strides": 2}, (8, 7), "multiples"),
        ({"strides": 2}, (None, 8), "multiples"),
    ],
)
def test_circular_padding_that_is_not_orthogonal_is_refused(
    arguments, shape, message
):
    arguments = {"kernel_size": 3, "padding": "circular", **arguments}
    with pytest.raises(ValueError, match=rf"{message}.*Received"):
        built(layers.OrthogonalConv2D(4, **arguments), *shape, 2)


def test_circular_padding_refuses_other_sizes_than_it_was_built_for():
    layer = layers.OrthogonalConv2D(4, 3, strides=2, padding="circular")
    built(layer, 4, 4, 2)
    with pytest.raises(ValueError, match="axis 1"):
        layer(normal(1, 5, 4, 2))


@pytest.mark.parametrize("padding", ["reflect", "causal", None, 3])
def test_other_paddings_are_refused(padding):
    for layer in (layers.OrthogonalConv2D, layers.OrthogonalConv2DTranspose):
        with pytest.raises(ValueError, match=r"one of.*Received: padding="):
            layer(4, 3, padding=padding)


@pytest.mark.parametrize(
    "arguments", [{"dilation_rate": 2}, {"output_padding": 1}], ids=str
)
def test_transposed_layer_refuses_what_it_does_not_do(arguments):
    with pytest.raises(ValueError, match=r"Expected|Received"):
        layers.OrthogonalConv2DTranspose(2, 3, strides=2, **arguments)


def test_images_of_every_size_are_taken():
    inputs = keras.Input((None, None, 3))
    layer = layers.OrthogonalConv2D(4, 3)
    model = keras.Model(inputs, layer(inputs))
    for size in (2, 5):
        x = normal(2, size, size, 3)
        y = to_numpy(model(x))
        assert y.shape == (2, size, size, 4)
        assert np.linalg.norm(y[0] - y[1]) <= np.linalg.norm(x[0] - x[1])
    assert lipschitz_bound(model) <= 1.01


def test_kernels_in_half_precision_keep_the_bound():
    layer = layers.OrthogonalConv2D(6, 3, dtype="bfloat16")
    built(layer, 4, 4, 6)
    kernel = ops.cast(layer.vanilla_export().kernel, "float32")
    matrix = harness.torus_matrix(to_numpy(kernel), (1, 1), (8, 8))
    assert 0.98 <= harness.singular_values(matrix)[0] <= 1 + TOLERANCE


def test_wide_layers_do_not_lose_digits():
    # On one frequency each, since whole operators are too large.
    layer = built(layers.OrthogonalConv2D(100, 3), 8, 8, 90)
    kernel = to_numpy(layer.wbar).astype("complex128")
    for angles in ((0.0, 0.0), (0.7, 2.1)):
        phases = np.add.outer(*(a * np.arange(3) for a in angles))
        wave = np.sum(np.exp(1j * phases)[..., None, None] * kernel, (0, 1))
        values = harness.singular_values(wave)
        assert values[0] <= 1 + TOLERANCE
        assert values[-1] >= 1 - 1e-4
