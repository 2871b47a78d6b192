"""However a model is compiled and optimized, it trains and keeps its bound."""

import json

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import to_numpy
from keras import ops
from small_networks import image_classifier

from deel.lip.callbacks import CondenseCallback
from deel.lip.losses import MulticlassHKR
from deel.lip.model import LossVariableSequential
from deel.lip.model import Sequential
from deel.lip.optimizers import Muon

BACKEND = keras.backend.backend()

# XLA takes most of its time to compile: only where it is what is tested.
FAST = {"jit_compile": JIT}


def data():
    """Three noisy patterns."""
    random = np.random.default_rng(0)
    labels = np.arange(24) % 3
    x = random.standard_normal((3, 6, 6, 1))[labels]
    return x + 0.1 * random.standard_normal(x.shape), np.eye(3)[labels]


class CheckBound(keras.callbacks.Callback):
    """Checks the exact norm of every constrained kernel after each epoch."""

    def on_epoch_end(self, epoch, logs=None):
        harness.assert_all_bounded(self.model)


def train(model, optimizer, epochs=4, **options):
    """Trains, asserts that it learns within the bound; returns the model."""
    loss = MulticlassHKR(alpha=10.0, min_margin=0.5)
    model.compile(optimizer, loss, **{**FAST, **options})
    x, y = data()
    history = model.fit(
        x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=[CheckBound()]
    )
    losses = history.history["loss"]
    assert np.all(np.isfinite(losses))
    assert losses[-1] < losses[0]
    harness.assert_all_bounded(model)
    return model


@pytest.mark.parametrize(
    "mode",
    [
        {"jit_compile": True},
        {"jit_compile": "auto"},
        {"run_eagerly": True, "jit_compile": False},
        {"steps_per_execution": 3},
    ],
    ids=json.dumps,
)
def test_bound_holds_however_the_step_is_compiled(mode):
    if BACKEND == "torch" and mode.get("jit_compile") is True:
        pytest.skip("torch.compile needs a C++ toolchain of its own")
    if BACKEND == "torch" and "steps_per_execution" in mode:
        pytest.skip("Keras has no steps_per_execution on torch")
    train(image_classifier(), keras.optimizers.Adam(0.02), **mode)


OPTIMIZERS = {
    "accumulated": lambda: keras.optimizers.Adam(
        0.02, gradient_accumulation_steps=3
    ),
    "averaged": lambda: keras.optimizers.Adam(
        0.02, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=2
    ),
    "decayed": lambda: keras.optimizers.AdamW(0.02, weight_decay=0.1),
    "clipped norms": lambda: keras.optimizers.SGD(0.05, clipnorm=0.1),
    "clipped norm": lambda: keras.optimizers.SGD(0.05, global_clipnorm=0.1),
    "clipped values": lambda: keras.optimizers.SGD(0.05, clipvalue=0.01),
    "scaled loss": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.02), dynamic_growth_steps=2
    ),
    "scaled loss, averaged": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.02, use_ema=True, ema_momentum=0.9)
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bound_holds_whatever_the_optimizer_does_to_gradients(name):
    train(image_classifier(), OPTIMIZERS[name](), epochs=6)


def _stock_muon(model):
    if not hasattr(keras.optimizers, "Muon"):
        pytest.skip("no Muon in this version of Keras")
    return keras.optimizers.Muon(2.0, exclude_layers=[model.layers[-1].name])


@pytest.mark.parametrize(
    ("container", "optimizer"),
    [
        (Sequential, lambda model: Muon(2.0)),
        (keras.Sequential, lambda model: Muon(2.0)),
        (keras.Sequential, _stock_muon),
    ],
)
def test_bound_holds_after_each_step_of_equal_length_in_all_directions(
    container, optimizer
):
    """Muon moves all singular vectors alike, here by more than they are."""
    model = image_classifier(container)
    dense = model.layers[-2]
    # TensorFlow takes longer to trace the steps than to make them.
    eager = BACKEND == "tensorflow"
    loss = MulticlassHKR(10.0, 0.5)
    model.compile(optimizer(model), loss, run_eagerly=eager, **FAST)
    x, y = data()
    for _ in range(4):
        before = to_numpy(dense.kernel)
        model.fit(x, y, batch_size=len(x), verbose=0)
        harness.assert_all_bounded(model)
        step = to_numpy(dense.kernel) - before
        assert harness.singular_values(step)[-1] > 0.1


def _averaged(container, callbacks=(), wrapper=lambda optimizer: optimizer):
    model = image_classifier(container)
    # The averages lag far behind the weights that were trained last.
    optimizer = wrapper(
        keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.99)
    )
    # Compiled steps of JAX refuse a second `fit`: after the first, kernels and
    # their averages are the same memory, which they would give away twice.
    model.compile(optimizer, MulticlassHKR(10.0, 0.5), jit_compile=False)
    x, y = data()
    model.fit(
        x, y, batch_size=8, epochs=3, verbose=0, callbacks=list(callbacks)
    )
    return model


def _assert_uses_its_kernels(model):
    for layer in harness.constrained_layers(model):
        harness.assert_bounded(layer)
        expected = layer._get_coef() * to_numpy(
            layer.parametrization.constrain(ops.convert_to_tensor(layer.kernel))
        )
        assert_close(layer.wbar, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:LossVariableSequential trains")
@pytest.mark.parametrize("container", [Sequential, LossVariableSequential])
def test_inference_after_fit_uses_the_averaged_kernels(container):
    model = _averaged(container)
    _assert_uses_its_kernels(model)
    # One figure, whatever computes it.
    x, y = data()
    exported = model.vanilla_export()
    exported.compile(loss=MulticlassHKR(10.0, 0.5), **FAST)
    expected = model.evaluate(x, y, verbose=0)
    assert exported.evaluate(x, y, verbose=0) == pytest.approx(
        expected, rel=1e-4, abs=1e-5
    )
    model.condense()
    assert model.evaluate(x, y, verbose=0) == pytest.approx(
        expected, rel=1e-3, abs=1e-4
    )


def test_a_stock_model_uses_averaged_kernels_with_a_callback():
    model = _averaged(keras.Sequential, [CondenseCallback(on_epoch=False)])
    _assert_uses_its_kernels(model)


def test_averages_within_a_scaled_loss_are_used_too():
    scaled = keras.optimizers.LossScaleOptimizer
    _assert_uses_its_kernels(_averaged(Sequential, wrapper=scaled))


def test_training_goes_on_from_averaged_kernels():
    model = _averaged(Sequential)
    x, y = data()
    model.fit(x, y, batch_size=8, verbose=0)
    _assert_uses_its_kernels(model)
