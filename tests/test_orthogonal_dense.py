"""Dense layers that are made orthogonal in different ways."""

import harness
import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from harness import built
from harness import normal
from harness import to_numpy
from keras import ops

from deel.lip import layers
from deel.lip._numerics.polar import finished

METHODS = (
    "newton_schulz",
    "cholesky_qr",
    "cayley",
    "exponential",
    "block_reflector",
)
every_method = pytest.mark.parametrize("method", METHODS)


def _built(method, shape, **arguments):
    layer = layers.OrthogonalDense(shape[1], method=method, **arguments)
    layer.build((None, shape[0]))
    return layer


def _constrained(layer, kernel):
    kernel = ops.convert_to_tensor(np.asarray(kernel, "float32"))
    return to_numpy(layer.parametrization.constrain(kernel))


@every_method
@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9), (1, 1), (1, 5)])
def test_all_singular_values_are_one(method, shape):
    layer = _built(method, shape, k_coef_lip=2.0)
    free = normal(*layer.kernel.shape)
    for kernel in (layer.kernel, free, 30.0 * free):
        layer.kernel.assign(kernel)
        layer.condense()
        values = harness.singular_values(harness.as_matrix(layer.wbar))
        assert_close(values, 2.0, atol=1e-4)


@every_method
@pytest.mark.parametrize(
    "shape", [(70, 50), pytest.param((50, 70), marks=pytest.mark.elsewhere)]
)
def test_no_kernel_expands_and_no_gradient_is_infinite(method, shape):
    layer = _built(method, shape)
    value = harness.weighted(layer.parametrization.constrain, normal(*shape))
    slopes = harness.slopes_of(value)
    for kind, kernel in harness.hostile_matrices(tuple(layer.kernel.shape), 15):
        harness.assert_contracts(_constrained(layer, kernel), kind)
        (slope,) = slopes(kernel)
        assert np.all(np.isfinite(slope)), kind


@every_method
@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)])
def test_gradient_is_that_of_the_map(method, shape):
    layer = _built(method, shape)
    value = harness.weighted(
        layer.parametrization.constrain, normal(*shape, seed=1)
    )
    slope = harness.assert_slopes(value, to_numpy(layer.kernel), abs=0.02)
    assert np.max(np.abs(slope)) > 0.1


def test_newton_schulz_is_spectral_dense():
    layer = _built("newton_schulz", (6, 4))
    twin = built(layers.SpectralDense(4), 6)
    kernel = normal(6, 4)
    for each in (layer, twin):
        each.kernel.assign(kernel)
        each.condense()
    assert_equal(layer.get_weights()[-1], twin.get_weights()[-1])


@pytest.mark.parametrize("shape", [(5, 5), (8, 3)])
def test_cholesky_qr_is_the_factor_of_the_decomposition(shape):
    kernel = normal(*shape)
    factor, triangle = np.linalg.qr(kernel.astype("float64"))
    found = _constrained(_built("cholesky_qr", shape), kernel)
    signs = np.sign(np.diag(triangle))
    assert_close(found, factor * signs, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "angle"), [("cayley", -2 * np.arctan(0.7)), ("exponential", 0.7)]
)
def test_maps_of_skew_matrices_are_rotations_of_known_angle(method, angle):
    kernel = [[5.0, 0.7], [0.0, -3.0]]
    expected = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    found = _constrained(_built(method, (2, 2)), kernel)
    assert_close(found, expected, atol=1e-6)
    zero = _constrained(_built(method, (4, 3)), np.zeros((4, 3)))
    assert_close(zero, np.eye(4, 3), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "free", "expected"),
    [
        # I - 2 v v^T / 25
        ((2, 2), [[3.0], [4.0]], [[0.28, -0.96], [-0.96, -0.28]]),
        ((2, 1), [[3.0], [4.0]], [[0.28], [-0.96]]),
        ((1, 2), [[3.0], [4.0]], [[0.28, -0.96]]),
        # The columns span the first two axes.
        ((3, 3), [[1.0, 2.0], [5.0, -1.0], [0.0, 0.0]], np.diag([-1, -1, 1])),
        # They are one and the same direction, and nothing.
        (
            (3, 2),
            [[2.0, 4.0], [0.0, 0.0], [0.0, 0.0]],
            [[-1, 0], [0, 1], [0, 0]],
        ),
        ((3, 2), np.zeros((3, 2)), [[1, 0], [0, 1], [0, 0]]),
    ],
)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_block_reflector_golden_values(shape, free, expected, scale):
    free = scale * np.array(free)
    layer = _built("block_reflector", shape, rank=free.shape[1])
    assert_close(_constrained(layer, free), expected, atol=2e-5)


@pytest.mark.parametrize(("rank", "reflected"), [(None, 2), (1, 1), (7, 7)])
def test_block_reflector_has_as_many_negative_eigenvalues_as_its_rank(
    rank, reflected
):
    layer = _built("block_reflector", (8, 8), rank=rank)
    assert tuple(layer.kernel.shape) == (8, reflected)
    kernel = to_numpy(layer.wbar)
    assert_close(kernel, kernel.T, atol=1e-6)
    found = np.linalg.eigvalsh(kernel)
    assert_close(
        found, np.r_[-np.ones(reflected), np.ones(8 - reflected)], atol=2e-5
    )


def test_block_reflector_depends_on_the_span_alone_which_a_retraction_keeps():
    layer = _built("block_reflector", (9, 6), rank=3)
    free, mixing = normal(9, 3), normal(3, 3, seed=1)
    expected = _constrained(layer, free)
    assert_close(_constrained(layer, free @ mixing), expected, atol=1e-4)
    kept = layer.wbar.retract(ops.convert_to_tensor(free))
    assert_close(_constrained(layer, kept), expected, atol=2e-5)
    assert_close(layer.wbar, expected, atol=2e-5)
    values = harness.singular_values(to_numpy(kept))
    assert values[0] <= values[-1] * 1.001


@every_method
def test_condensing_changes_no_prediction(method):
    layer = _built(method, (6, 4))
    layer.kernel.assign(normal(*layer.kernel.shape))
    layer.condense()
    x = normal(3, 6)
    before = to_numpy(layer(x, training=False))
    layer.condense()
    layer(x, training=True)
    assert_close(layer(x, training=False), before, atol=1e-5)


@every_method
@pytest.mark.parametrize(
    "jit_compile", [pytest.param(False, marks=pytest.mark.elsewhere), True]
)
def test_compiled_training_learns_and_stays_within_the_bound(
    method, jit_compile
):
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("Keras compiles no training step for PyTorch by itself.")
    own, wanted = {}, np.linalg.qr(normal(6, 4, seed=1))[0]
    if method == "block_reflector":
        # It reaches no others.
        own, basis = {"rank": 3}, np.linalg.qr(normal(6, 3, seed=1))[0]
        wanted = np.eye(6, 4) - 2 * basis @ basis[:4].T
    layer = layers.OrthogonalDense(4, method=method, **own)
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=jit_compile)
    x = normal(64, 6)
    y = x @ wanted
    losses = model.fit(x, y, 8, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    harness.assert_bounded(layer)


def test_last_step_is_sound_for_anything_at_all():
    for seed, scale in enumerate([0.0, 1e-3, 1.0, 3.0, 1e3, 1e30]):
        w = scale * normal(7, 5, seed=seed)
        harness.assert_contracts(finished(ops.convert_to_tensor(w)))


def test_block_reflector_of_a_basis_that_is_none_expands_nothing():
    layer = _built("block_reflector", (9, 6), rank=3)
    for scale in (0.7, 1.5, 1e3):
        basis = ops.convert_to_tensor(np.float32(scale) * normal(9, 3))
        harness.assert_contracts(layer.parametrization.kernel_of(basis))


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"cholesky_qr.*Received: method=qr"):
        layers.OrthogonalDense(4, method="qr")


@pytest.mark.parametrize("method", METHODS[:4])
def test_rank_of_another_method_is_refused(method):
    with pytest.raises(ValueError, match=r"block_reflector.*Received: rank=2"):
        layers.OrthogonalDense(4, method=method, rank=2)


def test_rank_out_of_its_range_is_refused():
    for rank in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"Received: rank={rank}"):
            layers.OrthogonalDense(4, method="block_reflector", rank=rank)
    for rank in (6, 7):
        layer = layers.OrthogonalDense(4, method="block_reflector", rank=rank)
        with pytest.raises(ValueError, match=f"side.*Received: rank={rank}"):
            layer.build((None, 6))


@every_method
@pytest.mark.parametrize(
    "shape", [(64, 20), pytest.param((20, 64), marks=pytest.mark.elsewhere)]
)
def test_values_that_differ_by_a_hundred_are_all_brought_to_one(method, shape):
    layer = _built(method, shape)
    free = tuple(layer.kernel.shape)
    left, _, right = np.linalg.svd(normal(*free), full_matrices=False)
    values = np.logspace(0, -2, min(free))
    found = _constrained(layer, left * values @ right)
    assert_close(harness.singular_values(found), 1.0, atol=1e-3)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (20, 20)])
def test_columns_that_depend_on_each_other_contract(shape):
    # What the docstring says of a kernel of ones, method by method.
    found = {
        method: harness.singular_values(
            _constrained(_built(method, shape), np.ones(shape))
        )
        for method in METHODS[:2]
    }
    for values in found.values():
        assert values[0] <= 1 + harness.TOLERANCE
        assert values[1] <= 1e-3
    assert found["newton_schulz"][0] == pytest.approx(1.0, abs=1e-3)
    assert 0.2 < found["cholesky_qr"][0] < 0.9
