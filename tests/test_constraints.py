"""Golden values of the constraints for stock layers."""

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import to_numpy
from keras import ops

from deel.lip.constraints import AutoWeightClipConstraint
from deel.lip.constraints import FrobeniusConstraint
from deel.lip.constraints import SpectralConstraint
from deel.lip.constraints import WeightClipConstraint

W = np.array([[3.0, 0.0], [4.0, 2.0]], "float32")

ALL = [
    WeightClipConstraint(2),
    AutoWeightClipConstraint(1),
    FrobeniusConstraint(),
    SpectralConstraint(k_coef_lip=2.0),
    SpectralConstraint(eps_bjorck=None, u=np.ones((1, 2))),
]


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (WeightClipConstraint(2), [[2, 0], [2, 2]]),
        (AutoWeightClipConstraint(1), [[0.5, 0], [0.5, 0.5]]),
        (FrobeniusConstraint(), [[0.5570860, 0], [0.7427813, 0.3713907]]),
    ],
)
def test_golden_values(constraint, expected):
    assert_close(constraint(ops.convert_to_tensor(W)), expected, atol=1e-6)


def test_spectral_constraint_sets_the_singular_values():
    values = [
        harness.singular_values(harness.as_matrix(constraint(W)))
        for constraint in ALL[3:]
    ]
    assert_close(values[0], 2.0, atol=1e-3)
    assert 0.99 <= values[1][0] <= 1 + harness.TOLERANCE
    assert values[1][1] < 0.9


@pytest.mark.parametrize("constraint", ALL)
def test_zero_stays_zero_and_configs_are_plain(constraint):
    zero = ops.convert_to_tensor(np.zeros((3, 2), "float32"))
    assert np.all(to_numpy(constraint(zero)) == 0)
    harness.rebuilt(constraint)
    assert keras.saving.get_registered_name(type(constraint)).startswith(
        "deel-lip>"
    )


@pytest.mark.parametrize("constraint", ALL)
def test_stock_layers_take_them(constraint):
    layer = keras.layers.Dense(2, kernel_constraint=constraint)
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=JIT)
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    kernel = ops.convert_to_tensor(layer.kernel)
    assert_close(constraint(kernel), kernel, atol=1e-3)
