"""Convolutions divided by the norm of their operator, not by the coverage."""

import harness
import keras
import numpy as np
import pytest
from harness import TOLERANCE
from harness import assert_close
from harness import built
from harness import normal
from harness import to_numpy
from keras import ops

from deel.lip._numerics.convolution_norm import ConvolutionNorm
from deel.lip.layers import SpectralConv1D
from deel.lip.layers import SpectralConv2D
from deel.lip.layers import SpectralGroupedConv2D


def _elsewhere(*values):
    return pytest.param(*values, marks=pytest.mark.elsewhere)


CASES = [
    ({"filters": 4, "kernel_size": 3}, (6, 5, 4)),
    _elsewhere({"filters": 3, "kernel_size": 4, "strides": 2}, (9, 6, 2)),
    _elsewhere({"filters": 4, "kernel_size": 2}, (5, 4, 2)),
    ({"filters": 3, "kernel_size": 5, "strides": (2, 3)}, (7, 9, 1)),
    _elsewhere(
        {"filters": 4, "kernel_size": 3, "padding_mode": "circular"}, (5, 6, 3)
    ),
    (
        {
            "filters": 3,
            "kernel_size": 3,
            "strides": 2,
            "padding_mode": "circular",
        },
        (5, 6, 2),
    ),
    ({"filters": 3, "kernel_size": 3, "eps_bjorck": None}, (5, 4, 3)),
]


@pytest.mark.parametrize(("arguments", "shape"), CASES)
def test_operator_is_bounded_for_hostile_kernels(arguments, shape):
    layer = built(SpectralConv2D(bound="operator", **arguments), *shape)
    update = harness.update_of(layer)
    kernels = harness.hostile_matrices(tuple(layer.kernel.shape), 15)
    for kind, kernel in kernels:
        layer.kernel.assign(kernel)
        update()
        norm = harness.operator_norm(layer, shape)
        assert norm <= 1 + TOLERANCE, kind
        # What a file brings passes if and only if it is bounded.
        found = layer.parametrization.expansion(to_numpy(layer.wbar))
        assert norm <= found * (1 + TOLERANCE) + 1e-30, kind
        assert found <= 1 + TOLERANCE, kind
        assert kind == "zero" or norm > 0.2, kind


@pytest.mark.elsewhere
def test_amplitude_is_what_the_coverage_gives_away():
    # A random square layer keeps about half of its norm; 17 % is what the few
    # frequencies cost here at most, and the border of the image some more.
    norms = {}
    for bound in ("coverage", "operator"):
        keras.utils.set_random_seed(0)
        layer = built(SpectralConv2D(8, 3, bound=bound), 10, 10, 8)
        norms[bound] = harness.operator_norm(layer, (10, 10, 8))
    assert norms["coverage"] < 0.65
    assert 0.9 < norms["operator"] <= 1 + TOLERANCE


@pytest.mark.elsewhere
def test_it_is_never_worse_than_the_coverage():
    # Sixteen filters for nine values of a patch: the coverage is exact.
    layer = built(SpectralConv2D(16, 3, bound="operator"), 6, 6, 1)
    norm = harness.operator_norm(layer, (6, 6, 1))
    assert norm == pytest.approx(1.0, abs=1e-5)


def test_circular_padding_of_a_small_image_is_exact():
    layer = SpectralConv2D(4, 3, padding_mode="circular", bound="operator")
    layer.build((None, 6, 5, 4))
    norm = harness.operator_norm(layer, (6, 5, 4))
    # But for the Gram iteration.
    assert 0.97 < norm <= 1 + TOLERANCE
    # It is exact for this image alone.
    with pytest.raises(ValueError, match="incompatible"):
        layer(np.ones((1, 7, 5, 4), "float32"))


@pytest.mark.elsewhere
def test_stride_that_divides_a_circle_holds_for_this_length_alone():
    arguments = {"padding_mode": "circular", "bound": "operator"}
    layer = built(SpectralConv1D(2, 3, strides=2, **arguments), 40, 2)
    assert 0.9 < harness.operator_norm(layer, (40, 2)) <= 1 + TOLERANCE
    with pytest.raises(ValueError, match="incompatible"):
        layer(np.ones((1, 41, 2), "float32"))
    # Where it does not divide it, the layer without a stride is bounded.
    layer = built(SpectralConv1D(2, 3, strides=2, **arguments), 41, 2)
    assert harness.operator_norm(layer, (41, 2)) <= 1 + TOLERANCE


@pytest.mark.parametrize("taps", [_elsewhere(2), 3, _elsewhere(4), 5])
def test_few_frequencies_bound_all_of_them(taps):
    # Kernels whose largest singular value lies between the frequencies.
    rng = np.random.default_rng(taps)
    norm = ConvolutionNorm((taps, 2, 2), (1,), 1, 10**6, (None,), False)
    fine = np.exp(2j * np.pi * np.outer(np.arange(4096) / 4096, range(taps)))
    for turn in np.linspace(0, 1, 9):
        kernel = rng.standard_normal((taps, 2, 2))
        kernel = (
            kernel * np.cos(2 * np.pi * turn * np.arange(taps))[:, None, None]
        )
        blocks = np.tensordot(fine, kernel, 1)
        exact = np.max(np.linalg.norm(blocks, 2, axis=(1, 2)))
        assert exact <= norm.expansion(kernel) <= 1.03 * exact
        patches = np.linalg.norm(kernel.reshape(-1, 2), 2)
        unit = (kernel / patches).astype("float32")
        found = float(norm.bound(ops.convert_to_tensor(unit)))
        assert exact / patches <= found * (1 + 1e-6)
        assert found <= 1.05 * exact / patches


@pytest.mark.parametrize("eps_bjorck", [1e-3, None])
def test_gradient_is_that_of_the_constrained_kernel(eps_bjorck):
    rng = np.random.default_rng(0)
    layer = built(
        SpectralConv1D(3, 3, eps_bjorck=eps_bjorck, bound="operator"), 8, 3
    )
    value = harness.weighted(
        layer.parametrization.constrain, normal(*layer.kernel.shape)
    )
    # Orthogonal, where the tangent projection is the exact derivative.
    start = np.linalg.qr(rng.standard_normal((9, 3)))[0].reshape(3, 3, 3)
    harness.assert_slopes(
        value, start.astype("float32"), 1e-2, [0], rel=0.05, abs=0.02
    )


def test_training_step_uses_the_same_gradient_as_the_pure_function():
    rng = np.random.default_rng(0)
    layer = built(SpectralConv1D(3, 3, bound="operator", use_bias=False), 8, 3)
    # Three taps that are nearly equal: one frequency stands out.
    taps = np.tile(np.eye(3), (3, 1)) + 0.1 * rng.standard_normal((9, 3))
    kernel = np.linalg.qr(taps)[0].reshape(3, 3, 3)
    layer.kernel.assign(kernel)
    layer.wbar.refresh(layer.kernel)
    weights = rng.standard_normal(kernel.shape).astype("float32")
    parametrization = layer.parametrization
    slopes = [
        harness.gradient(
            harness.weighted(function, weights), kernel.astype("float32")
        )[0]
        for function in (parametrization.constrain, parametrization.update)
    ]
    assert_close(*slopes, rtol=1e-3, atol=1e-4)


def test_kernel_that_an_optimizer_has_moved_stays_a_multiple():
    layer = SpectralGroupedConv2D(4, 3, groups=2, bound="operator")
    layer.build((None, 5, 5, 4))
    moved = ops.convert_to_tensor(layer.kernel) + 0.01
    retracted = to_numpy(layer._after_update(moved))
    # Of the kernel in use, in each group; as large as the optimizer left it.
    for free, used in zip(
        np.split(retracted, 2, axis=-1),
        np.split(to_numpy(layer.wbar), 2, axis=-1),
        strict=True,
    ):
        ratio = np.linalg.norm(free) / np.linalg.norm(used)
        assert_close(free, ratio * used, atol=1e-6)
    lengths = [np.linalg.norm(x) for x in (to_numpy(moved), retracted)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.05)


def test_config_of_older_files_means_the_coverage():
    config = SpectralConv2D(4, 3).get_config()
    assert config.pop("bound") == "coverage"
    layer = built(SpectralConv2D.from_config(config), 8, 8, 1)
    assert layer.coef_lip == pytest.approx(1 / 3)


def test_what_is_not_supported_is_refused():
    with pytest.raises(ValueError, match="Received: bound=norm"):
        SpectralConv2D(4, 3, bound="norm")
    with pytest.raises(ValueError, match="Received: padding_mode=reflect"):
        SpectralConv2D(4, 3, padding_mode="reflect", bound="operator")
