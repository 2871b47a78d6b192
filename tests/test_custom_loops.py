"""The training loops of the examples learn, within the bound all the time."""

import argparse
import importlib
import sys
from pathlib import Path

import harness
import keras
import numpy as np
import pytest
from harness import to_numpy

BACKEND = keras.backend.backend()

# The examples import their shared modules by their bare names, as scripts do.
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
custom_loop = importlib.import_module("custom_loop")
LOOPS = {
    "tensorflow": ["keras"],
    "jax": ["keras", "optax"],
    "torch": ["adam", "sgd"],
}


@pytest.fixture(params=LOOPS[BACKEND])
def optimizer(request):
    if request.param == "optax":
        pytest.importorskip("optax")
    return request.param


@pytest.fixture(scope="module")
def loop():
    return importlib.import_module(f"custom_loop_{BACKEND}")


def test_loop_prints_its_accuracy_and_the_proven_constant(
    loop, optimizer, capsys
):
    pytest.importorskip("sklearn")
    assert loop.main(["--optimizer", optimizer, "--epochs", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("Epoch 2: loss ")
    figures = {}
    for line in lines[2:]:
        name, figure = line.split(": ")
        figures[name] = float(figure)
    assert figures["Accuracy"] > 0.8
    assert 0.9 < figures["Proven Lipschitz constant"] <= 1 + 1e-4


@pytest.mark.parametrize("learning_rate", [1e-2, 1.0])
def test_bound_holds_in_the_middle_of_a_loop(loop, optimizer, learning_rate):
    model = custom_loop.build_model()
    random = np.random.default_rng(0)
    x = random.random((8, 8, 8, 1)).astype("float32")
    y = np.eye(10, dtype="float32")[np.arange(8)]
    # One step in each epoch, so the bound is checked after each step.
    arguments = argparse.Namespace(
        optimizer=optimizer, learning_rate=learning_rate, epochs=5, batch_size=8
    )
    start = [to_numpy(v) for v in model.trainable_variables]
    losses = []
    for loss in loop.train(model, x, y, arguments):
        losses.append(loss)
        harness.assert_all_bounded(model)
    assert len(losses) == 5
    assert np.all(np.isfinite(losses))
    for before, after in zip(start, model.trainable_variables, strict=True):
        assert np.any(before != to_numpy(after))
    # Also of what the last step has left, which is no kernel of norm one.
    model.condense()
    harness.assert_all_bounded(model)


def test_loop_of_another_backend_says_which_one_it_needs():
    other = "jax" if BACKEND == "torch" else "torch"
    loop = importlib.import_module(f"custom_loop_{other}")
    with pytest.raises(SystemExit, match=f"KERAS_BACKEND={other}"):
        loop.main([])
