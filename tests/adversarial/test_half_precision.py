"""Bounds of layers that round their constants to half precision."""

import keras
import numpy as np
import pytest
from harness import to_numpy
from keras import ops

from deel.lip import layers
from deel.lip.certification import lipschitz_bound
from deel.lip.model import Sequential

POLICIES = ["bfloat16", "mixed_bfloat16", "float16", "mixed_float16"]

stock = keras.layers

# Layers that are linear in inputs of one sign and direction.
LINEAR = {
    "ScaledAveragePooling2D": (lambda: layers.ScaledAveragePooling2D(3), 3),
    "ScaledGlobalAveragePooling2D": (layers.ScaledGlobalAveragePooling2D, 7),
    "ScaledL2NormPooling2D": (
        lambda: layers.ScaledL2NormPooling2D(3, eps_grad_sqrt=0.0),
        3,
    ),
    "ScaledGlobalL2NormPooling2D": (
        lambda: layers.ScaledGlobalL2NormPooling2D(eps_grad_sqrt=0.0),
        3,
    ),
    "AveragePooling2D": (lambda: stock.AveragePooling2D(3), 6),
    "GlobalAveragePooling2D": (stock.GlobalAveragePooling2D, 7),
    "SpectralConv2D": (lambda: layers.SpectralConv2D(3, 3), 4),
    "LayerCentering": (layers.LayerCentering, 3),
    "BatchCentering": (layers.BatchCentering, 3),
    "BatchLipNorm": (layers.BatchLipNorm, 3),
    "BatchNormalization": (stock.BatchNormalization, 3),
    "Normalization": (
        lambda: stock.Normalization(mean=[0.0] * 2, variance=[0.3, 1.7]),
        3,
    ),
    "Rescaling": (lambda: stock.Rescaling(1 / 255), 3),
    "LeakyReLU": (lambda: stock.LeakyReLU(negative_slope=1.1), 3),
    "Householder": (layers.Householder, 3),
    "Householder of three folds": (lambda: layers.Householder(order=3), 3),
    "GroupSort2": (lambda: layers.GroupSort2(k_coef_lip=1.1), 3),
    "SLLDense": (lambda: layers.SLLDense(4), 3),
    "SandwichDense": (lambda: layers.SandwichDense(4), 3),
    "SandwichConv2D": (lambda: layers.SandwichConv2D(3, 3), 4),
    "PrescaledResidual": (
        lambda: layers.PrescaledResidual(layers.SpectralDense(2)),
        3,
    ),
}


def outputs(layer, x):
    x = ops.cast(ops.convert_to_tensor(x), layer.compute_dtype)
    y = to_numpy(ops.cast(layer(x, training=False), "float32"))
    return y.astype("float64").reshape(len(x), -1)


@pytest.mark.parametrize(
    "policy",
    [
        *POLICIES[:2],
        *(pytest.param(x, marks=pytest.mark.elsewhere) for x in POLICIES[2:]),
    ],
)
@pytest.mark.parametrize("name", LINEAR)
def test_single_values_grow_by_no_more_than_the_bound(name, policy):
    keras.config.set_dtype_policy(policy)
    make, side = LINEAR[name]
    layer, shape = make(), (side, side, 2)
    layer.build((None, *shape))
    if name == "BatchNormalization":
        layer.moving_variance.assign([0.3, 1.7])
    if name == "BatchLipNorm":
        layer.variance.assign([0.3, 0.7])
    # Powers of two: nothing but the constants is rounded.
    impulses = np.eye(side * side * 2, dtype="float32").reshape(-1, *shape)
    bound = lipschitz_bound(layer)
    zero = outputs(layer, np.zeros((1, *shape), "float32"))
    for sign in (1, -1):
        grown = outputs(layer, sign * impulses) - zero
        assert np.max(np.linalg.norm(grown, axis=1)) <= bound
        if "Pooling" in name and "L2" not in name:
            assert np.linalg.norm(grown, 2) <= bound


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_of_a_residual_are_rounded_within_its_bound(policy):
    keras.config.set_dtype_policy(policy)
    layer = layers.LipResidual()
    layer.build([(None, 1), (None, 1)])
    one = ops.cast(ops.ones((1, 1)), layer.compute_dtype)
    for alpha in np.linspace(-5, 5, 41):
        layer.alpha.assign(alpha)
        weights = [layer([one, 0 * one]), layer([0 * one, one])]
        weights = [to_numpy(ops.cast(w, "float32")) for w in weights]
        assert np.linalg.norm(weights) <= lipschitz_bound(layer)


@pytest.mark.parametrize("policy", POLICIES)
def test_networks_are_bounded_and_exports_verified(policy):
    keras.config.set_dtype_policy(policy)
    model = Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.SpectralConv2D(4, 3, activation=layers.GroupSort2()),
            layers.BatchCentering(),
            layers.ScaledL2NormPooling2D(),
            keras.layers.Flatten(),
            layers.SpectralDense(4),
        ]
    )
    assert lipschitz_bound(model) <= 1.06
    assert type(model.vanilla_export(verify=1.06)) is keras.Sequential
