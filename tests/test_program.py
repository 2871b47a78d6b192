"""The benchmark of training steps counts what they are made of."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import registry
from keras import ops
from small_networks import image_classifier

from deel.lip import losses
from deel.lip import model as lipschitz
from deel.lip._backend import products
from deel.lip._backend.compilation import traced_once
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import SpectralConv2D
from deel.lip.layers import SpectralDense

# The benchmarks import each other by their bare names, as scripts do.
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
counting = importlib.import_module("counting")
hlo = importlib.import_module("hlo")
program = importlib.import_module("program")

BACKEND = keras.backend.backend()

# What stops a GPU: PyTorch asks it for a value, the others have a branch.
STOPS = "reads" if BACKEND == "torch" else "branches"


class Applies(keras.layers.Dense):
    """A layer of six units, with a function of its inputs that adds nothing."""

    def __init__(self, function):
        super().__init__(6, use_bias=False)
        self.function = function

    def call(self, inputs):
        found = self.function(ops.stop_gradient(inputs))
        return super().call(inputs) + 0 * ops.sum(ops.stop_gradient(found))


def counts(layer, batch_size=counting.IMAGES):
    """Counts of a training step of one layer with four inputs."""
    with counting.marked_products():
        model = keras.Sequential([keras.Input((4,)), layer])
        # On PyTorch, SGD of Keras reads its learning rate.
        model.compile("adam", "mse", jit_compile=BACKEND == "jax")
        x = np.ones((counting.IMAGES, 4), "float32")
        y = np.ones((counting.IMAGES, layer.units), "float32")
        return counting.step_counts(model, x, y, batch_size)


def looped(x):
    return ops.while_loop(
        lambda i, x: i < 3, lambda i, x: (i + 1, x * 2), (ops.sum(x * 0), x)
    )[1]


@traced_once
def chosen(x):
    return ops.cond(ops.sum(x) > 0, lambda: x + 1, lambda: x - 1)


def test_a_stock_layer_stops_for_nothing_and_multiplies_twice():
    found = counts(keras.layers.Dense(6))
    assert found[STOPS] == 0
    # Outputs, and the gradient of the kernel.
    assert found["products"] == 2
    assert found["exact_products"] == found["exact_share"] == 0


@pytest.mark.parametrize(
    ("function", "reads", "branches"),
    [
        (ops.exp, 0, 0),
        # The condition is asked a fourth time.
        (looped, 4, 1),
        (chosen, 1, 1),
        # Twice one function, which a program contains once.
        (lambda x: chosen(chosen(x)), 2, 2),
    ],
)
def test_loops_and_branches_are_counted_at_each_call(function, reads, branches):
    expected = reads if BACKEND == "torch" else branches
    assert counts(Applies(function))[STOPS] == expected


@pytest.mark.skipif(BACKEND != "torch", reason="reads of PyTorch")
@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.nonzero(),
        lambda x: x.equal(x),
        lambda x: x.cpu().numpy(),
        lambda x: np.asarray(x),
        lambda x: x.tolist(),
    ],
)
def test_each_way_to_read_a_tensor_is_counted(read):
    assert counts(Applies(lambda x: [read(x), x][1]))["reads"] == 1


@pytest.mark.skipif(BACKEND != "torch", reason="operations of PyTorch")
def test_what_only_looks_differently_at_memory_launches_nothing():
    plain = counts(Applies(lambda x: x))
    viewed = counts(Applies(lambda x: x.view(4, 11).t()[1:].unsqueeze(0)))
    added = counts(Applies(lambda x: x + 1))
    assert viewed["operations"] > plain["operations"]
    assert viewed["launches"] == plain["launches"]
    assert added["launches"] == plain["launches"] + 1


def test_share_of_products_with_all_digits_is_that_of_the_whole_batch():
    def gram(x):
        kernel = ops.reshape(x[:6], (4, 6))
        return products.product(ops.transpose(kernel), kernel)

    found = counts(Applies(gram), batch_size=30)
    assert (found["products"], found["exact_products"]) == (3, 1)
    exact, others = 6 * 4 * 6, 2 * (30 * 4 * 6)
    assert found["exact_share"] == pytest.approx(exact / (exact + others))


def test_a_constrained_layer_multiplies_with_all_digits():
    found = counts(SpectralDense(6))
    assert 0 < found["exact_products"] < found["products"]
    assert 0 < found["exact_share"] < 1
    assert products.product.__name__ == "product"


def stops_of_training(model, input_shape, loss):
    """Reads or branches of a training step of a model."""
    model.compile("adam", loss, jit_compile=BACKEND == "jax")
    random = np.random.default_rng(0)
    x = random.standard_normal((counting.IMAGES, *input_shape))
    y = np.eye(4)[np.arange(counting.IMAGES) % 4]
    return counting.step_counts(model, x, y, counting.IMAGES)[STOPS]


def stops_of(row, models):
    """Those of a model of one layer, of `keras` or of `deel.lip.model`."""
    inputs = keras.Input(row.input_shape)
    model = models.Model(inputs, row.make()(inputs))
    loss = lambda _, y: -ops.mean(ops.square(y))  # noqa: E731
    return stops_of_training(model, row.input_shape, loss)


@registry.rows(registry.CONSTRAINED, slow=True)
def test_no_constrained_layer_stops_a_training_step(row):
    if BACKEND == "jax" and row.arguments.get("method") == "cayley":
        pytest.skip("JAX finds pivots in a loop, whose length is known")
    assert stops_of(row, lipschitz) == 0


# One layer of each way to follow the optimizer.
LAYERS = ["SpectralDense", "OrthogonalConv2D", "FrobeniusDense"]


@pytest.mark.elsewhere
@pytest.mark.parametrize("name", LAYERS)
def test_no_constrained_layer_stops_a_training_step_of_keras(name):
    rows = registry.CONSTRAINED
    row = next(row for row in rows if row.layer.__name__ == name)
    assert stops_of(row, keras) == 0


@pytest.mark.parametrize(
    "loss",
    [
        losses.MulticlassHKR(10.0),
        losses.MulticlassHKR(10.0, soft_hinge_tau=2.0),
        losses.MulticlassSoftHKR(),
        losses.MulticlassLseHKR(),
        losses.MultiMargin(),
        losses.CategoricalHinge(1.0),
        losses.TauCategoricalCrossentropy(1.0),
    ],
)
def test_no_loss_stops_a_training_step(loss):
    model = image_classifier(lipschitz.Sequential, 4)
    assert stops_of_training(model, (6, 6, 1), loss) == 0


def test_fused_instructions_are_launched_once_and_loops_looked_into():
    text = """HloModule step
%fused (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  %sine = f32[2]{0} sine(%p)
  ROOT %cosine = f32[2]{0} cosine(%sine)
}

%body (b: (f32[2])) -> (f32[2]) {
  %b = (f32[2]{0}) parameter(0)
  %x = f32[2]{0} get-tuple-element(%b), index=0
  %fusion = f32[2]{0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %t = (f32[2]{0}) tuple(%fusion)
}

%condition (c: (f32[2])) -> pred[] {
  %c = (f32[2]{0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: f32[2]) -> (f32[2]) {
  %a = f32[2]{0} parameter(0)
  %copy = f32[2]{0} copy(%a), metadata={op_name="jit(step)/copy(x)"}
  %u = (f32[2]{0}) tuple(%copy)
  ROOT %w = (f32[2]{0}) while(%u), condition=%condition, body=%body
}
"""
    # The copy, the loop, and the fusion within.
    assert hlo.launches_of(text) == 3


@pytest.mark.slow
def test_the_command_writes_figures_of_ours_and_of_the_twin(tmp_path):
    path = tmp_path / "program.json"
    # A process of its own: functions that other tests have traced stay as
    # they are, and are not marked.
    options = ["--networks", "mnist-mlp", "--no-startup", "--steps", "1"]
    command = [sys.executable, program.__file__, *options, "--json", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    written = json.loads(path.read_text())
    assert written["environment"]["backend"] == BACKEND
    found = written["results"]["mnist-mlp"]
    assert found["stock"][STOPS] == 0
    for kind in ("ours", "ours_in_keras"):
        assert found[kind]["exact_products"] > 0
        assert found["ratios"][kind]["products"] > 1
    assert set(found["stock"]) <= set(program.FIGURES)


def _compiles(function, *inputs):
    """Runs a function that TorchDynamo must read as one graph."""
    import torch

    torch.compiler.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    found, expected = (
        ops.convert_to_numpy(f(*inputs)) for f in (compiled, function)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(BACKEND != "torch", reason="about PyTorch")
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (SpectralDense(4, activation="relu"), (6,)),
        (SpectralDense(8), (3,)),
        (FrobeniusDense(2), (6,)),
        (SpectralConv2D(4, 3), (6, 6, 2)),
    ],
    ids=["tall", "wide", "frobenius", "convolution"],
)
def test_pytorch_compiles_a_layer_as_one_graph(layer, shape):
    x = ops.convert_to_tensor(np.ones((3, *shape), "float32"))
    layer.build((None, *shape))
    _compiles(lambda x: layer(x, training=True), x)


@pytest.mark.skipif(BACKEND != "torch", reason="about PyTorch")
@pytest.mark.parametrize(
    ("loss", "outputs"),
    [(losses.HKR(10.0), 1), (losses.MulticlassHKR(10.0), 3)],
    ids=["two", "several"],
)
def test_pytorch_compiles_a_loss_as_one_graph(loss, outputs):
    y_true = ops.convert_to_tensor(np.eye(3, outputs, dtype="float32"))
    y_pred = ops.convert_to_tensor(np.ones((3, outputs), "float32"))
    _compiles(loss, y_true, y_pred)
