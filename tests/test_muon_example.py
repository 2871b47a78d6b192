"""Muon of the examples moves kernels of any rank alike in all directions."""

import importlib
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import normal
from harness import singular_values
from harness import to_numpy
from keras import ops

if not hasattr(keras.optimizers, "Muon"):
    pytest.skip("no Muon in this version", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
muon = importlib.import_module("muon")


def _step(shape, name="kernel", **options):
    """What one step at a rate of one adds to a variable of that shape."""
    variable = keras.Variable(normal(*shape), name=name)
    optimizer = muon.Muon(1.0, **options)
    optimizer.build([variable])
    before = to_numpy(variable)
    # Columns of different lengths, so singular values far apart.
    gradient = normal(*shape, seed=1) * np.geomspace(0.1, 1.0, shape[-1])
    optimizer.apply([ops.cast(gradient, "float32")])
    return to_numpy(variable) - before


@pytest.mark.parametrize("shape", [(12, 4), (3, 2, 2, 4), (1, 4, 12)])
def test_all_singular_values_of_a_step_are_alike(shape):
    step = _step(shape).reshape(-1, shape[-1])
    # The length that Keras gives to the step of a matrix of 12 rows or columns.
    values = singular_values(step)[:4] / (0.2 * np.sqrt(12))
    # Three steps of a polynomial that is steep at zero and not exact at one.
    assert np.all((values > 0.5) & (values < 1.3))


@pytest.mark.parametrize(
    ("shape", "options"),
    [((4,), {}), ((12, 4), {"exclude_layers": ["kernel"]})],
)
def test_biases_and_named_layers_are_left_to_adam(shape, options):
    # The first step of Adam has one length in all entries, but for an epsilon
    # beside small gradients.
    assert_close(np.abs(_step(shape, **options)), np.ones(shape), atol=1e-2)
