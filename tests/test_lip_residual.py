"""The average of two branches with a learned weight."""

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import assert_equal
from harness import normal
from harness import reloaded
from harness import to_numpy

from deel.lip.activations import GroupSort2
from deel.lip.layers import LipResidual
from deel.lip.layers import SpectralDense
from deel.lip.model import Model


def _model():
    inputs = keras.Input((8,))
    branch = SpectralDense(8, activation=GroupSort2())(inputs)
    outputs = LipResidual(name="join")([inputs, branch])
    return Model(inputs=inputs, outputs=outputs)


@pytest.mark.parametrize("alpha", [-20.0, -1.0, 0.0, 0.5, 20.0])
def test_output_is_the_average_with_weight_sigmoid_of_alpha(alpha):
    x, y = normal(2, 3, 4)
    layer = LipResidual()
    layer([x, y])
    assert layer.get_weights() == [0.0]
    layer.alpha.assign(alpha)
    weight = 1 / (1 + np.exp(-alpha))
    assert_close(layer([x, y]), weight * x + (1 - weight) * y, atol=1e-6)
    assert [v.name for v in layer.trainable_variables] == ["alpha"]


@pytest.mark.parametrize("alpha", [-3.0, 0.0, 3.0])
def test_join_of_two_1_lipschitz_branches_is_1_lipschitz(alpha):
    # Both branches the identity: a sum would double each distance.
    inputs = keras.Input((4,))
    layer = LipResidual()
    model = keras.Model(inputs, layer([inputs, inputs]))
    layer.alpha.assign(alpha)
    assert harness.operator_norm(model, (4,)) == pytest.approx(1.0, abs=1e-6)
    model = _model()
    model.get_layer("join").alpha.assign(alpha)
    x = normal(200, 8)
    y = to_numpy(model(x))
    moved = np.linalg.norm(y[:100] - y[100:], axis=1)
    gap = np.linalg.norm(x[:100] - x[100:], axis=1)
    assert np.all(moved <= gap * (1 + 1e-5))


def test_weight_is_trained_saved_and_exported(tmp_path):
    model = _model()
    layer = model.get_layer("join")
    model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=JIT)
    x = normal(16, 8)
    model.fit(x, x, epochs=2, verbose=0)
    # The wanted output is that of the first branch.
    assert layer.get_weights()[0] > 0
    expected = model.predict(x, verbose=0)
    loaded = reloaded(model, tmp_path)
    assert_equal(loaded.predict(x, verbose=0), expected)
    exported = model.vanilla_export()
    assert_close(exported.predict(x, verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3),
        [(2, 3)],
        [(2, 3), (2, 4)],
        [(2, 3), (2, 3, 1)],
        [(2, 3), (2, 3), (2, 3)],
    ],
)
def test_other_than_two_branches_of_one_shape_is_refused(shape):
    with pytest.raises(ValueError, match="Received: input_shape="):
        LipResidual().build(shape)
    with pytest.raises(ValueError, match="Received: input_shape="):
        LipResidual().compute_output_shape(shape)


def test_layer_is_registered_and_its_shape_known():
    name = keras.saving.get_registered_name(LipResidual)
    assert name == "deel-lip>LipResidual"
    assert LipResidual().compute_output_shape([(None, 3), (2, 3)]) == (None, 3)
