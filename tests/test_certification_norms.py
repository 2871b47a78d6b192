"""Norms of matrices and convolutions are never below their singular values."""

import numpy as np
import pytest
from harness import assert_close
from harness import singular_values
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from deel.lip._numerics.windows import Axis
from deel.lip.certification import _norms
from deel.lip.certification._norms import convolution_norm
from deel.lip.certification._norms import explicit_matrix
from deel.lip.certification._norms import matrix_norm

pytestmark = pytest.mark.elsewhere

PADDINGS = (
    "valid",
    "same",
    "causal",
    "zeros",
    "reflect",
    "replicate",
    "symmetric",
    "circular",
)


@st.composite
def axes(draw, paddings=PADDINGS, known=True):
    padding = draw(st.sampled_from(paddings))
    size = draw(st.integers(1, 4))
    dilation = draw(st.integers(1, 3))
    shortest = (size - 1) * dilation + 1
    length = shortest + draw(st.integers(0, 4))
    return Axis(length, size, draw(st.integers(1, 3)), dilation, padding)


@st.composite
def convolutions(draw):
    """Kernels, random or of one sign, and the axes that they run along."""
    chosen = draw(st.lists(axes(), min_size=1, max_size=2))
    sizes = [axis.size for axis in chosen]
    groups, inputs, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kernel = random.standard_normal((*sizes, groups, inputs, outputs))
    kind = draw(st.sampled_from(["normal", "positive", "constant", "tiny"]))
    if kind == "positive":
        kernel = np.abs(kernel)
    elif kind == "constant":
        kernel = np.full(kernel.shape, kernel.flat[0])
    elif kind == "tiny":
        kernel = kernel * 1e-30
    return kernel, chosen


def exact_norm(kernel, chosen):
    return max(singular_values(m)[0] for m in explicit_matrix(kernel, chosen))


def limited_norm(kernel, chosen, **limits):
    """The bound that large convolutions have, by settings of the module."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_EXPLICIT_ENTRIES": 0, **limits}.items():
            patch.setattr(_norms, name, value)
        return _norms.convolution_norm(kernel, chosen)


def normal_convolution(length, size, padding, channels=1):
    """A kernel of an image, its axes, and the exact norm."""
    chosen = [Axis(length, size, 1, 1, padding)] * 2
    shape = (size, size, 1, channels, 1)
    kernel = np.random.default_rng(0).standard_normal(shape)
    return kernel, chosen, exact_norm(kernel, chosen)


hypotheses = settings(deadline=None, database=None, derandomize=True)


@settings(hypotheses, max_examples=40)
@given(convolutions())
def test_bound_of_a_convolution_is_never_below_its_singular_values(case):
    kernel, chosen = case
    exact = exact_norm(kernel, chosen)
    value, _, is_exact = convolution_norm(kernel, chosen)
    assert value >= exact * (1 - 1e-14)
    if is_exact:
        assert value <= exact * (1 + 1e-8)


@settings(hypotheses, max_examples=50)
@given(convolutions(), st.booleans())
def test_bound_from_frequencies_is_never_below_the_singular_values(
    case, sizes_are_known
):
    kernel, chosen = case
    exact = exact_norm(kernel, chosen)
    if not sizes_are_known:
        chosen = [
            Axis(None, a.size, a.stride, a.dilation, a.padding) for a in chosen
        ]
    value, _, _ = limited_norm(kernel, chosen)
    assert value >= exact * (1 - 1e-14)


@settings(hypotheses, max_examples=25)
@given(convolutions(), st.sampled_from([1.01, 1.1, 1.5]))
def test_coarse_grids_of_frequencies_are_still_upper_bounds(case, excess):
    kernel, chosen = case
    limits = {"_FREQUENCY_PRODUCTS": 0, "_COARSENESS": (excess,)}
    value, _, _ = limited_norm(kernel, chosen, **limits)
    assert value >= exact_norm(kernel, chosen) * (1 - 1e-14)


@pytest.mark.parametrize("padding", ["valid", "same", "circular"])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("length", [16, 24])
def test_bound_is_within_two_percent_on_maps_of_16_and_more(
    length, size, padding
):
    kernel, chosen, exact = normal_convolution(length, size, padding, 2)
    value, _, _ = convolution_norm(kernel, chosen)
    assert exact * (1 - 1e-14) <= value <= 1.02 * exact


@pytest.mark.parametrize("padding", ["same", "circular"])
def test_bound_from_frequencies_is_within_two_percent_on_larger_maps(padding):
    kernel, chosen, exact = normal_convolution(30, 3, padding)
    value, method, _ = limited_norm(kernel, chosen)
    assert method == "Fourier"
    assert exact * (1 - 1e-14) <= value <= 1.02 * exact


def test_worst_kernel_of_a_map_of_16_is_within_two_percent():
    # A constant kernel feels the border most: the frequencies alone would be
    # 2.3 % too high.
    chosen = [Axis(16, 3, 1, 1, "same")] * 2
    kernel = np.ones((3, 3, 1, 1, 1))
    exact = (1 + 2 * np.cos(np.pi / 17)) ** 2
    value, _, is_exact = convolution_norm(kernel, chosen)
    assert is_exact
    assert_close(value, exact, rtol=1e-8)


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (7, 2), (2, 3, 4)])
def test_norm_of_a_matrix_is_the_singular_value_and_never_less(shape):
    random = np.random.default_rng(0)
    for scale in (1e-200, 1.0, 1e200):
        matrix = random.standard_normal(shape)
        exact = np.max(np.linalg.svd(matrix, compute_uv=False))
        value, is_exact = matrix_norm(scale * matrix)
        assert is_exact
        assert exact <= value / scale <= exact * (1 + 1e-8)
    assert matrix_norm(np.zeros(shape)) == (0.0, True)


@pytest.mark.parametrize("spectrum", ["alone", "all equal", "clustered"])
def test_norm_that_is_proven_by_cholesky_is_close_and_never_less(
    spectrum, monkeypatch
):
    random = np.random.default_rng(0)
    u, _, v = np.linalg.svd(random.standard_normal((80, 60)), False)
    values = {
        "alone": np.r_[1.0, np.full(59, 0.1)],
        "all equal": np.ones(60),
        "clustered": 1 - 1e-3 * random.uniform(size=60),
    }[spectrum]
    matrix = 3.0 * (u * values) @ v
    monkeypatch.setattr(_norms, "_EXACT_SIDE", 10)
    value, is_exact = matrix_norm(matrix)
    exact = singular_values(matrix)[0]
    assert not is_exact
    assert exact <= value <= 1.003 * exact


def test_the_order_of_channels_changes_no_bound():
    random = np.random.default_rng(0)
    kernel = random.standard_normal((3, 3, 1, 24, 40))
    axes = [Axis(28, 3, padding="same")] * 2
    moved = kernel[..., random.permutation(24), :]
    moved = moved[..., random.permutation(40)]
    found, method, _ = convolution_norm(kernel, axes)
    assert method == "Fourier"
    assert_close(convolution_norm(moved, axes)[0], found, rtol=1e-9)
