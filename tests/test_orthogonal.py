"""The numerics: bounds are bounds, for matrices that hypothesis makes up."""

import harness
import numpy as np
import pytest
from harness import assert_close
from harness import to_numpy
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import ops

from deel.lip._numerics.norm_bounds import divide_by_norm
from deel.lip._numerics.norm_bounds import gram_bound
from deel.lip._numerics.one_step import step
from deel.lip._numerics.polar import _CUSHION
from deel.lip._numerics.polar import _MINIMAX
from deel.lip._numerics.polar import NEAR
from deel.lip._numerics.polar import polar
from deel.lip._numerics.polar import project_on_tangent
from deel.lip._numerics.polar_on_host import factor_on_host

SHAPES = [(1, 1), (4, 4), (9, 16), (16, 9), (3, 1), (1, 5), (70, 66)]


@st.composite
def matrices(draw):
    """Matrices with spectra of all kinds and scales over sixty decades."""
    shape = draw(st.sampled_from(SHAPES))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    small = min(shape)
    spread = draw(st.sampled_from([0.0, 0.1, 1.0, 6.0]))
    values = 10.0 ** rng.uniform(-spread, 0, small)
    values[: draw(st.integers(0, small - 1))] = draw(
        st.sampled_from([0.0, 1.0, 1e-3])
    )
    u, _, v = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    scale = 10.0 ** draw(st.floats(-30, 30))
    return (scale * (u * values @ v)).astype("float32")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(matrices())
def test_gram_bound_is_never_below_the_singular_value(w):
    scaled = np.asarray(w, "float64") / max(np.abs(w).max(), 1e-300)
    tall = scaled if scaled.shape[0] >= scaled.shape[1] else scaled.T
    tall = tall.astype("float32")
    gram = ops.matmul(tall.T, tall)
    bound = float(ops.sqrt(gram_bound(gram)))
    exact = harness.singular_values(tall.astype("float64"))[0]
    assert bound >= exact
    if exact > 0:
        assert bound <= 1.07 * exact


@settings(max_examples=60, deadline=None, derandomize=True)
@given(matrices())
def test_division_by_the_norm_never_leaves_an_expansion(w):
    harness.assert_contracts(divide_by_norm(ops.convert_to_tensor(w)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(matrices(), st.sampled_from([1e-2, 1e-7]), st.integers(1, 15))
def test_orthogonalisation_never_leaves_an_expansion(w, tolerance, steps):
    harness.assert_contracts(
        polar(ops.convert_to_tensor(w), tolerance, steps)[0]
    )


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (100, 80)])
@pytest.mark.parametrize("smallest", [0.5, 0.1, 0.01, 0.002])
def test_orthogonalisation_reaches_the_polar_factor(shape, smallest):
    rng = np.random.default_rng(0)
    u, _, v = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    w = (u * np.geomspace(smallest, 1, min(shape)) @ v).astype("float32")
    assert_close(polar(ops.convert_to_tensor(w), 1e-6, 15)[0], u @ v, atol=2e-4)


def test_minimax_steps_stay_where_the_cubic_step_is_sound():
    # Rounding lets singular values exceed 1 a little; the polynomials would
    # amplify it without the cushion between them.
    s = np.append(np.linspace(0, 1.001, 200001), np.geomspace(1e-9, 1, 10001))
    for a, b, c in _MINIMAX:
        s = s / _CUSHION
        s = a * s + b * s**3 + c * s**5
        assert np.max(np.abs(s)) < 1.995


def test_bound_is_kept_where_the_start_is_near_orthogonal():
    # All residuals up to the threshold, where nothing is divided by a norm.
    rng = np.random.default_rng(3)
    for residual in np.linspace(0.01, 0.999 * NEAR, 12):
        for concentrated in (True, False):
            excess = np.zeros(8)
            excess[: 1 if concentrated else 8] = 1.0
            excess *= residual / np.linalg.norm(excess)
            u, _, v = np.linalg.svd(
                rng.standard_normal((12, 8)), full_matrices=False
            )
            for sign in (1, -1):
                w = (u * np.sqrt(1 + sign * excess) @ v).astype("float32")
                result = to_numpy(polar(ops.convert_to_tensor(w), 0.9, 15)[0])
                values = harness.singular_values(result.astype("float64"))
                assert values[0] <= 1 + harness.TOLERANCE
                assert values[-1] > 0.5


@pytest.mark.parametrize(
    "shape",
    [
        (6, 4),
        pytest.param((4, 6), marks=pytest.mark.elsewhere),
        pytest.param((70, 66), marks=pytest.mark.elsewhere),
        (1100, 3),
    ],
)
def test_matrices_of_a_stack_are_handled_each_by_itself(shape):
    kinds = {"normal", "orthogonal", "near orthogonal", "zero", "huge"}
    kernels = [
        kernel
        for kind, kernel in harness.hostile_matrices(shape, 15)
        if kind in kinds
    ]
    stack = ops.convert_to_tensor(np.stack(kernels)[:, None])
    factors, scales = polar(stack, 1e-6, 15)
    assert tuple(factors.shape) == (5, 1, *shape)
    assert tuple(scales.shape) == (5, 1, 1, 1)
    divided = to_numpy(divide_by_norm(stack))
    for index, kernel in enumerate(kernels):
        kernel = ops.convert_to_tensor(kernel)
        factor, scale = polar(kernel, 1e-6, 15)
        found = to_numpy(factors)[index, 0]
        assert_close(found, factor, atol=2e-4)
        assert_close(to_numpy(scales)[index, 0], scale, rtol=1e-4)
        harness.assert_contracts(found)
        assert_close(divided[index, 0], divide_by_norm(kernel), atol=1e-6)
        assert_close(
            to_numpy(project_on_tangent(factors, stack))[index, 0],
            project_on_tangent(factors[index, 0], kernel),
            rtol=1e-4,
            atol=1e-5 * float(ops.max(ops.abs(kernel))),
        )


@settings(max_examples=120, deadline=None, derandomize=True)
@given(matrices())
def test_one_step_never_leaves_an_expansion_and_keeps_signs_and_scale(w):
    found, scale = (to_numpy(x) for x in step(ops.convert_to_tensor(w)))
    harness.assert_contracts(found)
    wide = np.asarray(w, "float64")
    if np.linalg.norm(wide) <= 1.2e-38:
        return
    # The step maps each singular value to one of the same sign.
    unit = wide / np.linalg.norm(wide)
    symmetric = unit.T @ found if w.shape[0] >= w.shape[1] else found @ unit.T
    values = np.linalg.eigvalsh((symmetric + symmetric.T) / 2)
    assert values[0] >= -1e-6
    assert_close(symmetric, symmetric.T, atol=1e-6)
    length = np.linalg.norm(found.astype("float64")) * scale.item()
    assert length == pytest.approx(np.linalg.norm(wide), rel=1e-4)


def test_steps_square_what_is_missing_to_one():
    u, _, v = np.linalg.svd(harness.normal(40, 20), full_matrices=False)
    values = 1 + 0.1 * np.linspace(-1, 1, 20)
    w = ops.convert_to_tensor((7.0 * u * values @ v).astype("float32"))
    missing = []
    for _ in range(3):
        w, _ = step(w)
        found = harness.singular_values(to_numpy(w))
        missing.append(1 - found[-1])
    assert missing[0] < 2e-2
    assert missing[1] < missing[0] ** 2
    assert missing[2] < 1e-6


def test_factors_found_on_the_host_are_those_of_the_iteration():
    for shape in [(30, 20), (20, 30), (3, 12, 8), (20, 20)]:
        w = harness.normal(*shape)
        expected, scale = polar(ops.convert_to_tensor(w), 1e-7, 30)
        found, found_scale = factor_on_host(w.astype("float64"))
        assert_close(found, expected, atol=2e-5)
        assert_close(found_scale, scale, rtol=1e-5)
    zeros = np.zeros((4, 3))
    factor, scale = factor_on_host(zeros)
    harness.assert_equal(factor, zeros)
    assert scale == 1
    for kind, w in harness.hostile_matrices((9, 6), 30):
        harness.assert_contracts(factor_on_host(w.astype("float64"))[0], kind)
