"""What becomes of kernels between two training steps."""

import copy

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import to_numpy
from keras import ops
from small_networks import image_classifier

from deel.lip import model as lipschitz
from deel.lip._numerics.polar import stepped
from deel.lip.layers import SpectralConv2D
from deel.lip.layers import SpectralDense
from deel.lip.losses import MulticlassHKR
from deel.lip.parametrizations.polar import Polar

BACKEND = keras.backend.backend()
TORCH = pytest.mark.skipif(BACKEND != "torch", reason="about PyTorch")
CONTAINERS = pytest.mark.parametrize("models", [lipschitz, keras])


def samples(count=320):
    random = np.random.default_rng(0)
    x = random.standard_normal((count, 6, 6, 1)).astype("float32")
    return x, np.eye(4)[np.arange(count) % 4]


def polar_layers(model):
    found = harness.constrained_layers(model)
    return [x for x in found if isinstance(x.parametrization, Polar)]


def least_value(layer):
    """Least singular value of a kernel in use, of one at most."""
    matrix = harness.as_matrix(layer.wbar) / layer.wbar.coefficient
    return harness.singular_values(matrix)[-1]


@CONTAINERS
def test_kernels_stay_near_to_orthogonal_ones_and_condense_to_them(models):
    model = image_classifier(models.Sequential, 4)
    loss = MulticlassHKR(10.0)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=JIT)
    x, y = samples()
    model.fit(x, y, batch_size=16, verbose=0)
    for _ in range(5):
        model.fit(x[:16], y[:16], batch_size=16, verbose=0)
        for layer in polar_layers(model):
            assert least_value(layer) >= 1 - 1e-2
            harness.assert_bounded(layer)
    for layer in polar_layers(model):
        layer.condense()
        assert least_value(layer) >= 1 - 1e-4
        harness.assert_bounded(layer)


@CONTAINERS
def test_far_kernels_come_back_while_training_goes_on(models):
    layer = SpectralDense(8)
    model = models.Sequential([keras.Input((12,)), layer])
    model.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=JIT)
    u, _, v = np.linalg.svd(
        harness.normal(12, 8).astype("float64"), full_matrices=False
    )
    layer.kernel.assign(u * np.geomspace(0.05, 1, 8) @ v)
    x, y = harness.normal(16, 12), np.zeros((16, 8))
    least = []
    for _ in range(15):
        model.fit(x, y, batch_size=16, verbose=0)
        harness.assert_bounded(layer)
        least.append(least_value(layer))
    assert least[-1] >= 1 - 1e-2


def test_kernels_start_at_the_scale_that_is_used():
    model = image_classifier(lipschitz.Sequential, 4)
    coefficients = set()
    for layer in polar_layers(model):
        coefficients.add(layer.coef_lip)
        values = harness.singular_values(harness.as_matrix(layer.kernel))
        assert_close(values, np.full(len(values), layer.coef_lip), rtol=1e-4)
        # A multiple of the kernel is constrained to the same.
        layer.kernel.assign(2.0 * layer.kernel)
        expected = to_numpy(layer.wbar)
        layer.condense()
        assert_close(layer.wbar, expected, atol=1e-6)
    assert len(coefficients) > 1


@pytest.mark.skipif(BACKEND == "tensorflow", reason="one by one there")
def test_kernels_retracted_together_are_those_retracted_one_by_one():
    """Our containers retract all kernels of a step at once."""

    def trained(models):
        keras.utils.set_random_seed(3)
        equal = [SpectralDense(8, activation="relu") for _ in range(3)]
        # One that is wide, one with a coefficient, one of another dtype.
        other = "float64" if BACKEND == "torch" else "mixed_bfloat16"
        model = models.Sequential(
            [
                keras.Input((6, 6, 1)),
                SpectralConv2D(8, 3, activation="relu"),
                keras.layers.GlobalAveragePooling2D(),
                *equal,
                SpectralDense(12),
                SpectralDense(4, dtype=other),
            ]
        )
        loss = MulticlassHKR(10.0)
        model.compile(keras.optimizers.SGD(0.05), loss, jit_compile=JIT)
        x, y = samples(64)
        model.fit(x, y, batch_size=16, verbose=0, shuffle=False)
        return polar_layers(model)

    ours, stock = trained(lipschitz), trained(keras)
    for layer, expected in zip(ours, stock, strict=True):
        assert layer.kernel.dtype == expected.kernel.dtype
        assert_close(layer.kernel, expected.kernel, atol=1e-5)
        harness.assert_bounded(layer)
        harness.assert_current(layer)
        # On JAX, what stock containers store is that of the step before.
        if BACKEND == "torch":
            assert_close(layer.wbar, expected.wbar, atol=1e-5)
            sigma = expected.parametrization.sigma
            assert_close(layer.parametrization.sigma, sigma, rtol=1e-4)


@pytest.mark.parametrize("accumulation", [None, 3])
def test_inference_uses_what_was_learned_whatever_wraps_the_optimizer(
    accumulation,
):
    model = image_classifier(lipschitz.Sequential, 4)
    inner = keras.optimizers.Adam(
        1e-2, gradient_accumulation_steps=accumulation
    )
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
    model.compile(optimizer, MulticlassHKR(10.0), jit_compile=JIT)
    before = [to_numpy(layer.wbar) for layer in polar_layers(model)]
    x, y = samples(64)
    model.fit(x, y, batch_size=8, verbose=0)
    for layer, start in zip(polar_layers(model), before, strict=True):
        assert np.max(np.abs(to_numpy(layer.wbar) - start)) > 1e-3
        harness.assert_bounded(layer)
        harness.assert_current(layer)


@TORCH
@pytest.mark.parametrize("optimizer", ["keras", "torch"])
def test_what_inference_uses_after_a_step_has_no_gradient(optimizer):
    import torch

    model = image_classifier(lipschitz.Sequential, 4)
    model.compile("adam", MulticlassHKR(10.0), jit_compile=JIT)
    x, y = samples(16)
    if optimizer == "keras":
        model.train_on_batch(x, y)
    else:
        ops.sum(model(x, training=True)).backward()
        torch.optim.Adam(model.parameters()).step()
    kernels = [layer.kernel.value for layer in polar_layers(model)]
    for kernel in kernels:
        kernel.grad = None
    for _ in range(2):
        inputs = torch.tensor(x, requires_grad=True)
        model(inputs, training=False).sum().backward()
        assert inputs.grad.abs().sum() > 0
    assert all(kernel.grad is None for kernel in kernels)


def test_a_group_of_zeros_does_not_keep_the_others_from_learning():
    free = np.zeros((4, 4), "float32")
    free[:, :2] = harness.normal(4, 2)
    factor, scale = stepped(ops.convert_to_tensor(free), 2)
    # Of the size of the kernel that there is.
    assert 0.1 < float(ops.squeeze(scale)) < 10
    assert np.all(to_numpy(factor)[:, 2:] == 0)


@CONTAINERS
def test_kernel_that_somebody_wrote_is_what_training_goes_on_from(models):
    layer = SpectralDense(4, use_bias=False)
    model = models.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.Adam(1e-4), "mse", jit_compile=JIT)
    x, y = harness.normal(8, 6), np.zeros((8, 4))
    model.fit(x, y, verbose=0)
    written = np.linalg.qr(harness.normal(6, 4, seed=5).astype("float64"))[0]
    layer.kernel.assign(written)
    # One step late, but valid at each of them.
    for _ in range(2):
        model.fit(x, y, verbose=0)
        harness.assert_bounded(layer)
    assert_close(layer.wbar, written, atol=2e-3)
    layer.kernel.assign(-written)
    layer.condense()
    assert_close(layer.wbar, -written, atol=1e-5)


def trained_by_torch(model, optimizer, steps=60):
    """Trains by the means of PyTorch alone."""
    import torch

    x, y = (torch.tensor(a, dtype=torch.float32) for a in samples(16))
    loss, losses = MulticlassHKR(10.0), []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(y, model(x, training=True))
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


@TORCH
@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD", "RMSprop"])
def test_optimizers_of_pytorch_leave_kernels_on_their_constraint(kind):
    import torch

    model = image_classifier(keras.Sequential, 4)
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=1e-2)
    losses = trained_by_torch(model, optimizer)
    assert losses[-1] < losses[0]
    for layer in harness.constrained_layers(model):
        # Also of inference, without another forward pass.
        harness.assert_current(layer)
        harness.assert_bounded(layer)
    for layer in polar_layers(model):
        assert least_value(layer) >= 1 - 1e-2
        values = harness.singular_values(harness.as_matrix(layer.kernel))
        assert values[-1] >= 0.99 * values[0]


@TORCH
def test_copies_of_a_model_are_followed_too():
    import torch

    model = image_classifier(keras.Sequential, 4)
    copied = copy.deepcopy(model)
    before = [to_numpy(x) for x in model.trainable_variables]
    optimizer = torch.optim.SGD(copied.parameters(), lr=1e-2)
    trained_by_torch(copied, optimizer, 5)
    for layer in harness.constrained_layers(copied):
        harness.assert_current(layer)
    harness.assert_all_equal(model.trainable_variables, before)


@TORCH
def test_kernels_with_a_constraint_of_the_user_stay_what_pytorch_made():
    import torch

    layer = SpectralDense(4, kernel_constraint="non_neg", use_bias=False)
    model = keras.Sequential([keras.Input((6,)), layer])
    x = torch.tensor(harness.normal(8, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = to_numpy(layer.kernel).copy()
    ops.sum(model(x, training=True)).backward()
    slope = to_numpy(layer.kernel.value.grad)
    optimizer.step()
    assert_close(layer.kernel, before - 0.1 * slope, atol=1e-6)
    model(x, training=True)
    harness.assert_bounded(layer)


@TORCH
def test_kernels_moved_by_hand_are_normalised_to_the_end():
    import torch

    layer = SpectralDense(8, use_bias=False)
    model = keras.Sequential([keras.Input((12,)), layer])
    x = torch.tensor(harness.normal(16, 12))
    for step in range(5):
        with torch.no_grad():
            moved = torch.tensor(harness.normal(12, 8, seed=step))
            layer.kernel.value.add_(moved)
        model(x, training=True)
        harness.assert_bounded(layer)
        assert least_value(layer) >= 1 - 1e-3


def fitted(model, epochs=60, optimizer="adam"):
    """Losses of epochs of one step, on a target that can be learned."""
    if isinstance(optimizer, str):
        optimizer = keras.optimizers.Adam(1e-2)
    model.compile(optimizer, "mse", jit_compile=JIT)
    x = harness.normal(32, 6)
    y = x @ np.linalg.qr(harness.normal(6, 4, seed=3))[0]
    fit = model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    return fit.history["loss"]


class Assigning(keras.optimizers.SGD):
    """An optimizer that never asks for a constraint."""

    def apply(self, grads, trainable_variables=None):
        variables = trainable_variables or self._trainable_variables
        for gradient, variable in zip(grads, variables, strict=True):
            variable.assign(variable - 0.3 * gradient)


@CONTAINERS
def test_optimizers_without_constraints_train_what_they_move(models):
    layer = SpectralDense(4, use_bias=False)
    model = models.Sequential([keras.Input((6,)), layer])
    losses = fitted(model, optimizer=Assigning(0.3))
    assert losses[-1] < 0.1 * losses[0]
    assert least_value(layer) >= 1 - 1e-3


@CONTAINERS
def test_kernels_with_a_constraint_of_the_user_are_normalised_to_the_end(
    models,
):
    layer = SpectralDense(4, kernel_constraint="non_neg", use_bias=False)
    model = models.Sequential([keras.Input((6,)), layer])
    fitted(model)
    # Rows of zeros may leave none in some directions.
    before = to_numpy(layer.wbar)
    late = BACKEND == "jax" and models is keras
    layer.condense()
    assert_close(layer.wbar, before, atol=5e-2 if late else 1e-4)


class Noisy(lipschitz.Model):
    """Evaluates its gradient elsewhere, as sharpness-aware training does."""

    def train_step(self, *args):
        if BACKEND == "jax":
            state, data = args
            moved = [x + self.noise for x in state[0]]
            return super().train_step((moved, *state[1:]), data)
        for variable in self.trainable_variables:
            variable.assign_add(variable * 0 + self.noise)
        return super().train_step(*args)


@pytest.mark.parametrize("eager", [True, False])
def test_steps_of_the_user_see_the_kernel_that_they_have_moved(eager):
    if eager and BACKEND == "jax":
        pytest.skip("JAX traces its steps")
    losses = []
    for noise in (0.0, 0.2):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        outputs = SpectralDense(4, use_bias=False)(inputs)
        model = Noisy(inputs=inputs, outputs=outputs)
        model.noise = noise
        model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=eager)
        x = harness.normal(8, 6)
        fit = model.fit(x, np.zeros((8, 4)) + x[:, :4], verbose=0)
        losses.append(fit.history["loss"][0])
    assert abs(losses[1] - losses[0]) > 1e-3


@TORCH
def test_kernels_moved_by_data_are_trained():
    import torch

    layer = SpectralDense(4, use_bias=False)
    layer.build((None, 6))
    x = torch.tensor(harness.normal(32, 6))
    target = torch.tensor(np.linalg.qr(harness.normal(6, 4, seed=3))[0])
    losses = []
    for _ in range(50):
        loss = torch.mean((layer(x, training=True) - x @ target) ** 2)
        (slope,) = torch.autograd.grad(loss, [layer.kernel.value])
        layer.kernel.value.data.sub_(0.5 * slope)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


@TORCH
@pytest.mark.slow
# Of TorchDynamo, about functions that it does not look into.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_models_that_only_run_compiled_are_followed():
    import torch

    layer = SpectralDense(4, use_bias=False)
    layer.build((None, 6))
    compiled = torch.compile(
        lambda x: layer(x, training=True), backend="aot_eager"
    )
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    x = torch.tensor(harness.normal(32, 6))
    for _ in range(30):
        optimizer.zero_grad()
        torch.mean((compiled(x) - x[:, :4]) ** 2).backward()
        optimizer.step()
    harness.assert_current(layer)
    assert least_value(layer) >= 1 - 1e-2
