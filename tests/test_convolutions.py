"""Convolutions: how often a value is read, transposed, grouped, padded."""

import itertools

import harness
import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from harness import built
from harness import normal
from harness import reloaded
from harness import to_numpy
from keras import ops

from deel.lip import layers
from deel.lip._numerics.padding import MODES
from deel.lip._numerics.padding import pad
from deel.lip._numerics.windows import Axis
from deel.lip.layers import unconstrained

TOLERANCE = harness.TOLERANCE
NUMPY_MODES = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "symmetric": "symmetric",
    "circular": "wrap",
}


@pytest.mark.parametrize(
    ("kernel_size", "stride", "length", "expected"),
    [
        (3, 1, 28, 3),
        (3, 2, 8, 2),
        (3, 1, 2, 2),
        (4, 2, 9, 2),
        (5, 1, 3, 3),
        (5, 3, 11, 2),
        (7, 1, 4, 4),
        (2, 2, 8, 1),
        (3, 1, None, 3),
    ],
)
def test_overlap_is_that_of_the_table(kernel_size, stride, length, expected):
    # C1, C14
    axis = Axis(length, kernel_size, stride, padding="same")
    assert axis.coverage() == expected
    layer = layers.SpectralConv2D(1, (kernel_size, 1), (stride, stride))
    found = layer._compute_lip_coef((None, length, 9, 1))
    assert found == pytest.approx(expected**-0.5)


def test_taps_further_apart_than_the_stride_all_count():
    assert Axis(None, 3, 2, dilation=2).coverage() == 3
    assert Axis(None, 4, 4, dilation=2).coverage() == 2
    assert Axis(None, 4, 2, dilation=3).coverage() == 2


def _most_reads(axis):
    """How often a value is read at most, counted tap by tap."""
    before, after = axis.widths()
    mode = NUMPY_MODES.get(axis.padding, "constant")
    padded = np.pad(np.arange(1, axis.length + 1), (before, after), mode=mode)
    counts = np.zeros(axis.length + 1, int)
    start = 0
    while start + (axis.size - 1) * axis.dilation < len(padded):
        for tap in range(axis.size):
            counts[padded[start + tap * axis.dilation]] += 1
        start += axis.stride
    assert axis.windows() == start // axis.stride
    return max(counts[1:])


@pytest.mark.parametrize("padding", ["valid", "same", "causal", *MODES])
def test_coverage_is_an_upper_bound_of_the_count_for_each_length(padding):
    numbers = itertools.product(range(1, 6), range(1, 5), range(1, 4))
    for size, stride, dilation in numbers:
        endless = Axis(None, size, stride, dilation, padding)
        assert not endless.needs_length()
        assert endless.overlap() == endless.coverage()
        for length in range(size // 2 * dilation + 1, 16):
            axis = Axis(length, size, stride, dilation, padding)
            found = _most_reads(axis)
            assert axis.overlap() == found
            assert found <= axis.coverage() <= endless.coverage()
            assert axis.needs_length() == (axis.coverage() < endless.coverage())
            if axis.pads_with_image:
                assert axis.coverage() == found


@pytest.mark.parametrize(
    ("mode", "kernel_size", "expected"),
    [
        ("circular", 5, 5),
        ("symmetric", 5, 5),
        ("reflect", 3, 4),
        ("replicate", 5, 6),
    ],
)
def test_copies_of_the_padding_are_counted(mode, kernel_size, expected):
    assert Axis(12, kernel_size, padding=mode).coverage() == expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_overlap_is_the_norm_of_the_patches(mode, kernel_size, stride):
    # The patches of a length-n axis as a matrix: its squared norm is what the
    # overlap bounds, reached by the value that is read most.
    padding = kernel_size // 2
    for length in range(padding + 1, 12):
        rows = np.pad(
            np.eye(length), [(padding, padding), (0, 0)], mode=NUMPY_MODES[mode]
        )
        starts = range(0, len(rows) - kernel_size + 1, stride)
        patches = np.concatenate([rows[p : p + kernel_size] for p in starts])
        norm = np.linalg.norm(patches, 2) ** 2
        axis = Axis(length, kernel_size, stride, padding=mode)
        overlap = axis.coverage()
        assert norm <= overlap * (1 + 1e-9)
        if mode != "zeros":
            assert norm >= overlap * (1 - 1e-9)
        everywhere = Axis(None, kernel_size, stride, padding=mode).coverage()
        assert overlap <= everywhere


@pytest.mark.parametrize("mode", MODES)
def test_padding_is_that_of_numpy(mode):
    x = normal(2, 4, 5, 3)
    padded = to_numpy(pad(ops.convert_to_tensor(x), (2, 1), mode))
    widths = [(0, 0), (2, 2), (1, 1), (0, 0)]
    assert_equal(padded, np.pad(x, widths, mode=NUMPY_MODES[mode]))


@pytest.mark.parametrize(
    ("mode", "size"), [("reflect", 3), ("symmetric", 4), ("circular", 4)]
)
def test_image_too_small_for_its_padding_is_refused(mode, size):
    x = ops.convert_to_tensor(normal(1, 3, 3, 1))
    with pytest.raises(ValueError, match=f"{mode}.*Received: length=3"):
        pad(x, (size, size), mode)


def _kernels(layer):
    """The kernels that expand most on the whole image, and a common one.

    That the matrix is bounded for hostile ones is tested for each layer.
    """
    kinds = {"normal", "constant", "rank one", "one entry"}
    shape = tuple(layer.kernel.shape)
    for kind, kernel in harness.hostile_matrices(shape, 15):
        if kind in kinds:
            yield kernel


PADDED = [
    (layers.SpectralConv2D, {"filters": 3, "kernel_size": 3}, (4, 5, 2)),
    (
        layers.SpectralConv2D,
        {"filters": 2, "kernel_size": 5, "strides": 2},
        (5, 6, 1),
    ),
    (layers.SpectralConv1D, {"filters": 2, "kernel_size": 5}, (7, 3)),
    (
        layers.SpectralConv1D,
        {"filters": 4, "kernel_size": 3, "dilation_rate": 2, "groups": 2},
        (8, 2),
    ),
    (layers.SpectralConv3D, {"filters": 2, "kernel_size": 3}, (3, 2, 4, 2)),
    (layers.FrobeniusConv2D, {"filters": 1, "kernel_size": 3}, (5, 4, 2)),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("layer", "arguments", "shape"),
    PADDED,
    ids=lambda value: getattr(value, "__name__", None),
)
def test_padded_operator_is_bounded_for_any_kernel(
    mode, layer, arguments, shape
):
    layer = built(layer(**arguments, padding_mode=mode), *shape)
    largest = 0.0
    for kernel in _kernels(layer):
        layer.kernel.assign(kernel)
        layer.condense()
        largest = max(largest, harness.operator_norm(layer, shape))
    assert 0.5 < largest <= 1 + TOLERANCE


@pytest.mark.elsewhere
def test_unknown_size_is_bounded_for_every_size():
    for mode, kernel_size in itertools.product(MODES, [3, 5]):
        layer = layers.SpectralConv1D(2, kernel_size, padding_mode=mode)
        layer.build((None, None, 1))
        layer.kernel.assign(np.ones(layer.kernel.shape))
        layer.condense()
        for length in range(kernel_size // 2 + 1, 14):
            norm = harness.operator_norm(layer, (length, 1))
            assert norm <= 1 + TOLERANCE, (mode, kernel_size, length)


def test_another_size_is_refused_where_the_bound_depends_on_it():
    layer = built(layers.SpectralConv1D(2, 3, padding_mode="reflect"), 12, 1)
    # Three values, reflected, are read more often than twelve.
    with pytest.raises(ValueError, match="axis 1"):
        layer(normal(1, 3, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding_mode": "wrap"}, "padding_mode='wrap'"),
        ({"padding_mode": "reflect", "kernel_size": 4}, "kernel_size"),
    ],
)
def test_padding_mode_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        layers.SpectralConv2D(**{"filters": 2, "kernel_size": 3, **arguments})


def test_two_dimensional_layers_name_the_one_with_groups_and_dilation():
    with pytest.raises(ValueError, match="SpectralGroupedConv2D"):
        layers.SpectralConv2D(4, 3, groups=2)
    with pytest.raises(RuntimeError, match="SpectralGroupedConv2D"):
        layers.SpectralConv2D(4, 3, dilation_rate=2)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.SpectralGroupedConv2D(8, 3, groups=2), (5, 6, 4)),
        (layers.SpectralGroupedConv2D(8, 3, dilation_rate=2), (5, 6, 4)),
        (layers.SpectralGroupedConv2D(8, 3, 2, groups=4), (5, 6, 4)),
        (
            layers.SpectralGroupedConv2D(
                8, 3, groups=2, dilation_rate=(1, 3), eps_bjorck=None
            ),
            (5, 6, 4),
        ),
        # C10: the former matrix `(h * w * channels, filters)` gave a norm of 2
        # for the first case.
        (layers.SpectralConv2DTranspose(4, 2, 2), (3, 4, 1)),
        (layers.SpectralConv2DTranspose(3, 3, 1), (3, 4, 2)),
        (layers.SpectralConv2DTranspose(3, 3, 2), (3, 4, 2)),
        (layers.SpectralConv2DTranspose(2, (4, 3), (2, 1)), (3, 4, 3)),
        (layers.SpectralDepthwiseConv2D(3, depth_multiplier=2), (4, 5, 3)),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_operator_of_other_kinds_is_bounded_for_any_kernel(layer, shape):
    layer = built(type(layer).from_config(layer.get_config()), *shape)
    for kernel in _kernels(layer):
        layer.kernel.assign(kernel)
        layer.condense()
        assert harness.operator_norm(layer, shape) <= 1 + TOLERANCE


def test_each_group_has_singular_values_of_one():
    layer = built(layers.SpectralGroupedConv2D(6, 3, groups=3), 5, 5, 6)
    for block in np.split(to_numpy(layer.wbar), 3, axis=-1):
        values = harness.singular_values(harness.as_matrix(block))
        assert_close(values * 3, 1, atol=1e-3)


def test_group_of_large_kernel_does_not_shrink_the_others():
    layer = layers.SpectralGroupedConv2D(4, 1, groups=2, eps_bjorck=None)
    layer.build((None, 3, 3, 4))
    kernel = normal(1, 1, 2, 4)
    kernel[..., :2] *= 1e6
    layer.kernel.assign(kernel)
    layer.condense()
    for block in np.split(to_numpy(layer.wbar), 2, axis=-1):
        norm = harness.singular_values(harness.as_matrix(block))[0]
        assert 0.98 < norm <= 1 + TOLERANCE


def test_transposed_layer_with_disjoint_windows_is_an_isometry():
    # C10
    layer = built(layers.SpectralConv2DTranspose(4, 2, strides=2), 3, 5, 1)
    values = harness.singular_values(harness.operator_matrix(layer, (3, 5, 1)))
    assert_close(values, 1, atol=1e-5)
    assert layer.coef_lip == 1.0


def test_transposed_coefficient_is_that_of_the_output_grid():
    layer = built(layers.SpectralConv2DTranspose(1, 5, strides=2), 2, 7, 1)
    assert layer.u.shape == (1, 1)
    # Two windows read the four rows of the output, three its columns.
    assert layer.coef_lip == pytest.approx(6**-0.5)
    with pytest.raises(ValueError, match="axis 1"):
        layer(normal(1, 3, 7, 1))


@pytest.mark.parametrize(
    "arguments",
    [{"padding": "valid"}, {"dilation_rate": 2}, {"output_padding": 1}],
    ids=str,
)
def test_transposed_layer_refuses_what_it_does_not_bound(arguments):
    with pytest.raises(ValueError, match=r"Expected|Received"):
        layers.SpectralConv2DTranspose(2, 3, strides=2, **arguments)
    layers.SpectralConv2DTranspose(2, 3, padding="SAME", output_padding=None)


def test_depthwise_channels_are_normalised_each_by_itself():
    layer = built(layers.SpectralDepthwiseConv2D(3, k_coef_lip=3.0), 4, 5, 3)
    layer.kernel.assign(normal(3, 3, 3, 1) * np.array([[1], [10], [1e6]]))
    layer.condense()
    wbar = to_numpy(layer.wbar)
    norms = np.sqrt(np.sum(np.square(wbar), axis=(0, 1, 3)))
    assert_close(norms, 3.0 * layer.coef_lip, rtol=1e-5)


@pytest.mark.parametrize(
    ("padding", "shape"),
    [
        ("same", (5, 5)),
        ("VALID", (3, 3)),
        ("constant", (5, 5)),
        ("Reflect", (5, 5)),
        ("replicate", (5, 5)),
        ("symmetric", (5, 5)),
        ("circular", (5, 5)),
    ],
)
def test_unconstrained_layer_pads_and_reports_its_shape(
    padding, shape, tmp_path
):
    # C18: the shape is known before the layer is built.
    layer = unconstrained.PadConv2D(2, 3, padding=padding)
    assert layer.compute_output_shape((4, 5, 5, 3)) == (4, *shape, 2)
    x = normal(4, 5, 5, 3)
    output = to_numpy(layer(x))
    assert output.shape == (4, *shape, 2)
    mode = unconstrained.PADDINGS[padding.lower()]
    if mode is not None:
        assert layer.padding_size == [1, 1]
        widths = [(0, 0), (1, 1), (1, 1), (0, 0)]
        stock = built(keras.layers.Conv2D(2, 3), 7, 7, 3)
        stock.set_weights(layer.get_weights())
        expected = stock(np.pad(x, widths, mode=NUMPY_MODES[mode]))
        assert_close(output, expected, atol=1e-5)
    else:
        assert layer.padding_size == [0, 0]
    assert layer.old_padding == padding.lower()
    assert layer.get_config()["padding"] == padding.lower()
    before = layer.get_weights()
    layer.condense()
    exported = layer.vanilla_export()
    is_stock = type(exported) is keras.layers.Conv2D
    assert is_stock == (mode is None)
    assert_equal(exported(x), output)
    assert_equal(before[0], layer.get_weights()[0])
    model = keras.Sequential([keras.Input((5, 5, 3)), layer])
    loaded = reloaded(model, tmp_path)
    assert_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("padding", ["wrap", "causal", 3, None])
def test_unconstrained_layer_refuses_unknown_paddings(padding):
    # C18
    with pytest.raises(ValueError, match=r"circular.*Received: padding="):
        unconstrained.PadConv2D(2, 3, padding=padding)


@pytest.mark.parametrize("padding", ["constant", "circular"])
def test_unconstrained_layer_pads_the_image_also_channels_first(padding):
    # C18: the axes after the channels, not before.
    layer = unconstrained.PadConv2D(
        2, (3, 5), padding=padding, data_format="channels_first"
    )
    assert layer.compute_output_shape((1, 3, 6, 7)) == (1, 2, 6, 7)
    if keras.backend.backend() != "tensorflow":
        assert tuple(layer(normal(1, 3, 6, 7)).shape) == (1, 2, 6, 7)


def test_unconstrained_layer_is_exported_once_built():
    with pytest.raises(ValueError, match="built"):
        unconstrained.PadConv2D(2, 3).vanilla_export()
