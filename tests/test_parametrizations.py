"""Gradients and state of the two parametrizations."""

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import assert_equal
from harness import normal
from harness import to_numpy
from keras import ops

from deel.lip import parametrizations
from deel.lip._numerics.polar import project_on_tangent
from deel.lip.certification import lipschitz_bound
from deel.lip.layers import ConstrainedKernel
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import SpectralDense
from deel.lip.model import Sequential


def _built(layer, shape):
    layer.build((None, shape[0]))
    return layer


def _polar(w):
    u, _, v = np.linalg.svd(w, full_matrices=False)
    return u @ v


@pytest.mark.parametrize("shape", [(6, 4), (5, 5), (3, 7)])
def test_gradient_is_that_of_the_polar_factor_on_the_manifold(shape):
    rng = np.random.default_rng(0)
    w = _polar(rng.standard_normal(shape))
    weights = rng.standard_normal(shape)
    layer = _built(SpectralDense(shape[1]), shape)
    value = harness.weighted(
        layer.parametrization.constrain, weights.astype("float32")
    )
    (found,) = harness.gradient(value, w.astype("float32"))
    step = 1e-5
    expected = np.zeros(shape)
    for index in np.ndindex(shape):
        moved = np.zeros(shape)
        moved[index] = step
        change = _polar(w + moved) - _polar(w - moved)
        expected[index] = np.sum(change * weights) / (2 * step)
    assert_close(found, expected, atol=1e-4)


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_gradient_decreases_the_loss_away_from_the_manifold(scale):
    rng = np.random.default_rng(1)
    w = (scale * rng.standard_normal((6, 4))).astype("float32")
    target = _polar(rng.standard_normal((6, 4)))
    layer = _built(SpectralDense(4), (6, 4))
    value = harness.weighted(
        layer.parametrization.constrain, -target.astype("float32")
    )
    (slope,) = harness.gradient(value, w)
    before = -np.sum(_polar(w) * target)
    after = -np.sum(_polar(w - 1e-2 * scale * slope) * target)
    assert after < before


@pytest.mark.parametrize(
    "layer",
    [
        FrobeniusDense(4),
        FrobeniusDense(4, disjoint_neurons=False),
        SpectralDense(4, eps_bjorck=None),
    ],
    ids=["by column", "whole", "norm only"],
)
def test_gradient_of_a_division_by_the_norm_is_exact(layer):
    _built(layer, (6, 4))
    constrain = layer.parametrization.constrain
    value = harness.weighted(constrain, normal(6, 4, seed=3))
    w = normal(6, 4, seed=2)
    harness.assert_slopes(value, w, 1e-2, seeds=range(4, 9), abs=5e-3)


@pytest.mark.parametrize(
    ("disjoint", "expected"),
    [
        (True, [[0.6, 0.0], [0.8, 1.0]]),
        (False, [[0.5570860, 0.0], [0.7427813, 0.3713907]]),
    ],
)
def test_frobenius_golden_values(disjoint, expected):
    layer = _built(FrobeniusDense(2, disjoint_neurons=disjoint), (2, 2))
    layer.kernel.assign(np.array([[3.0, 0.0], [4.0, 2.0]]))
    layer.condense()
    assert_close(layer.wbar, expected, atol=1e-6)


def test_training_step_trusts_only_the_very_kernel_that_was_proven():
    layer = _built(SpectralDense(4), (6, 4))
    x = np.zeros((1, 6), "float32")
    kernel = to_numpy(layer.wbar)
    layer.kernel.assign(kernel)
    layer(x, training=True)
    assert_close(layer.wbar, kernel, atol=1e-6)
    for factor in (1 + 1e-4, -1.0, 100.0):
        layer.kernel.assign(factor * kernel)
        layer(x, training=True)
        harness.assert_bounded(layer)
        sign = np.sign(factor)
        assert_close(layer.wbar, sign * kernel, atol=1e-5)


def test_sigma_and_vector_follow_the_free_kernel():
    layer = _built(SpectralDense(4), (6, 4))
    assert tuple(layer.u.shape) == (1, 4)
    assert tuple(layer.sig.shape) == (1, 1)
    w = np.random.default_rng(0).standard_normal((6, 4))
    layer.kernel.assign(w)
    for _ in range(50):
        # As an optimizer would, of which nothing is known.
        layer.kernel.assign(w)
        layer(np.zeros((1, 6), "float32"), training=True)
    largest = np.linalg.norm(w, 2)
    assert float(layer.sig[0, 0]) == pytest.approx(largest, rel=1e-3)


def test_layers_of_equal_shape_start_different_and_reproducibly():
    # C24
    kernels = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        pair = [_built(SpectralDense(5), (4, 5)) for _ in range(2)]
        first, second = (to_numpy(x.kernel) for x in pair)
        assert np.max(np.abs(first - second)) > 1e-2
        kernels.append(first)
    assert_equal(*kernels)


def test_tangent_projection_is_a_projection():
    rng = np.random.default_rng(0)
    for shape in [(6, 4), (4, 6), (5, 5)]:
        q = ops.convert_to_tensor(_polar(rng.standard_normal(shape)), "float32")
        g = ops.convert_to_tensor(rng.standard_normal(shape), "float32")
        once = project_on_tangent(q, g)
        twice = project_on_tangent(q, once)
        assert_close(once, twice, atol=1e-5)


def test_layers_share_no_state_after_cloning():
    model = keras.Sequential([keras.Input((6,)), SpectralDense(4)])
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    x = np.random.default_rng(0).standard_normal((3, 6))
    expected = model.predict(x, verbose=0)
    assert_equal(clone.predict(x, verbose=0), expected)
    clone.layers[0].kernel.assign(np.ones((6, 4)))
    clone.layers[0].condense()
    assert_equal(model.predict(x, verbose=0), expected)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_does_not_round_the_kernel_first(policy):
    layer = SpectralDense(4, dtype=policy)
    _built(layer, (6, 4))
    w = np.random.default_rng(0).standard_normal((6, 4))
    layer.kernel.assign(w)
    output = layer(np.ones((1, 6)), training=True)
    assert keras.backend.standardize_dtype(output.dtype) == policy[6:]
    assert_close(layer.wbar, _polar(w), atol=2e-5)


def test_steps_of_a_large_learning_rate_become_shorter():
    # The scale of the free kernel has no effect and grows with each step, so
    # steps of constant length turn it less and less.
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 16)).astype("float32")
    y = rng.standard_normal((32, 8)).astype("float32")
    layer = SpectralDense(8)
    model = keras.Sequential([keras.Input((16,)), layer])
    model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=JIT)
    turned = []
    for _ in range(60):
        before = to_numpy(ops.copy(layer.kernel))
        model.train_on_batch(x, y)
        after = to_numpy(ops.copy(layer.kernel))
        units = [kernel / np.linalg.norm(kernel) for kernel in (before, after)]
        turned.append(np.linalg.norm(units[1] - units[0]))
    assert np.linalg.norm(after) > 2 * np.sqrt(8)
    assert np.mean(turned[-10:]) < 0.5 * np.mean(turned[:3])
    harness.assert_bounded(layer)


@pytest.mark.parametrize("scale", [3e38, 5e37, 1e30, 1e-30, 1e-37, 0.0])
def test_frobenius_kernels_of_any_finite_size_are_bounded(scale):
    layer = _built(FrobeniusDense(2), (5, 2))
    kernel = np.full((5, 2), scale, "float32")
    layer.kernel.assign(kernel)
    found = to_numpy(layer.parametrization.update(layer.kernel))
    # Each column has a norm of its own.
    expected = np.full((5, 2), 0.2**0.5 if scale else 0.0)
    assert_close(found, expected, rtol=1e-6)
    harness.assert_bounded(layer)


def test_second_derivatives_of_frobenius_kernels():
    """A function of the kernel whose gradient is differentiated in turn."""
    if keras.backend.backend() != "torch":
        pytest.skip("The others differentiate what they compute.")
    import torch

    layer = _built(FrobeniusDense(2), (3, 2))
    constrain = layer.parametrization.constrain
    kernel = torch.tensor(harness.normal(3, 2), requires_grad=True)
    weights = torch.tensor(harness.normal(3, 2))

    def penalty(kernel, constrain):
        value = torch.sum(weights * constrain(kernel) ** 3)
        (slope,) = torch.autograd.grad(value, kernel, create_graph=True)
        return torch.autograd.grad(torch.sum(slope**2), kernel)[0]

    found = penalty(kernel, constrain)
    expected = penalty(kernel, lambda x: x / torch.linalg.norm(x, dim=0))
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [3e38, 1e30, 1e-30, 1e-37, 0.0])
def test_retraction_of_any_finite_kernel_is_finite_and_bounded(scale):
    layer = _built(SpectralDense(4), (4, 4))
    rng = np.random.default_rng(0)
    kernel = np.sign(rng.standard_normal((4, 4))).astype("float32") * scale
    retracted = layer.wbar.retract(ops.convert_to_tensor(kernel))
    retracted = to_numpy(retracted)
    assert np.all(np.isfinite(retracted))
    assert np.any(retracted != 0) == (scale > 0)
    harness.assert_bounded(layer)
    norm = harness.expansion(layer)
    assert norm == 0 if scale == 0 else norm > 0.99


def test_a_parametrization_is_abstract_or_final():
    final = set(parametrizations.__all__) - {"Parametrization"}
    for name in final:
        assert not getattr(parametrizations, name).__subclasses__(), name
    layer = parametrizations.Parametrization()
    with pytest.raises(TypeError, match="must implement `constrain`"):
        layer.constrain(np.zeros((2, 3)))


def test_a_parametrization_is_of_one_layer():
    class Dense(ConstrainedKernel, keras.layers.Dense):
        """Its kernel is bounded by its Frobenius norm."""

    shared = parametrizations.Frobenius()
    first, second = (Dense(3, parametrization=shared) for _ in range(2))
    first.build((None, 2))
    with pytest.raises(ValueError, match=r"one layer.*Received: .*wbar"):
        second.build((None, 2))


def test_constrained_variable_is_the_last_of_the_saved_state():
    layer = _built(SpectralDense(4), (6, 4))
    names = [variable.path for variable in layer.parametrization.variables]
    parent = f"{layer.name}/parametrization"
    assert names == [f"{parent}/{name}" for name in ("sn", "sigma", "wbar")]
    assert isinstance(layer.wbar, parametrizations.ConstrainedVariable)


class _Tripled(parametrizations.Parametrization):
    def constrain(self, kernel):
        return 3.0 * kernel


class _Unfinished(parametrizations.Parametrization):
    pass


class _OwnDense(ConstrainedKernel, keras.layers.Dense):
    pass


def _own(parametrization):
    layer = _OwnDense(4, parametrization=parametrization)
    return Sequential([keras.Input((4,)), layer])


def test_a_sequential_says_which_parametrization_lacks_its_method():
    with pytest.raises(TypeError, match="_Unfinished must implement"):
        _own(_Unfinished())


def test_export_says_which_parametrization_does_not_bound_its_kernel():
    with pytest.raises(ValueError, match="`constrain` of _Tripled"):
        _own(_Tripled()).vanilla_export()


def test_who_certifies_a_layer_of_their_own_is_told_to_export_it():
    model = _own(parametrizations.Spectral())
    with pytest.raises(ValueError, match=r"`vanilla_export\(\)`"):
        lipschitz_bound(model)
    assert lipschitz_bound(model.vanilla_export()) <= 1 + 1e-5
