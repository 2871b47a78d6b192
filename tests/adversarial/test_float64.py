"""Layers in float64 against formulas of NumPy, with constants such as 0.1."""

import keras
import numpy as np
import pytest
from harness import built
from harness import to_numpy
from scipy import special

from deel.lip import layers
from deel.lip.certification._float64 import as_float64
from deel.lip.certification._float64 import float64
from deel.lip.certification._float64 import float64_copy
from deel.lip.certification._registry import layer_bound
from deel.lip.certification._rounding import FLOAT64
from deel.lip.certification._walk import Context
from deel.lip.certification._walk import Walk

stock = keras.layers


def negative(slope):
    return lambda x: np.where(x < 0, slope * x, x)


def over_space(function):
    return lambda x: function(x.reshape(len(x), -1, x.shape[-1]))


def norms(x):
    return np.sum(x**2, axis=1)


def means(x):
    return np.mean(x, axis=1)


def reflected(x):
    # The angle is a float32 number, near a right one.
    theta = np.float64(np.float32(np.pi / 2))
    sine, cosine = np.sin(theta), np.cos(theta)
    side = x @ [np.sin(theta / 2), -np.cos(theta / 2)]
    image = x @ np.array([[cosine, sine], [sine, -cosine]])
    return np.where(side[:, None] <= 0, x, image)


LAYERS = [
    (stock.Rescaling(0.1, 0.3), (3,), lambda x: 0.1 * x + 0.3),
    (stock.LeakyReLU(negative_slope=0.1), (3,), negative(0.1)),
    (stock.ReLU(negative_slope=0.1), (3,), negative(0.1)),
    (
        stock.ReLU(negative_slope=0.1, max_value=4.3),
        (3,),
        lambda x: np.minimum(negative(0.1)(x), 4.3),
    ),
    (
        stock.ELU(alpha=0.1),
        (3,),
        lambda x: np.where(x < 0, 0.1 * np.expm1(x), x),
    ),
    (stock.BatchNormalization(epsilon=0.1), (3,), lambda x: x / np.sqrt(1.1)),
    (
        stock.Normalization(mean=[0.1] * 3, variance=[0.3] * 3),
        (3,),
        lambda x: (x - 0.1) / np.sqrt(0.3),
    ),
    (
        layers.ScaledL2NormPooling2D(3, eps_grad_sqrt=0.1),
        (3, 3, 2),
        over_space(lambda x: 3 * np.sqrt(norms(x) / 9 + 0.1)),
    ),
    (
        layers.ScaledGlobalL2NormPooling2D(eps_grad_sqrt=0.1, k_coef_lip=0.1),
        (3, 3, 2),
        over_space(lambda x: 0.1 * np.sqrt(norms(x) + 0.1)),
    ),
    (
        layers.ScaledGlobalAveragePooling2D(k_coef_lip=0.1),
        (3, 5, 2),
        over_space(lambda x: 0.1 * np.sqrt(15) * means(x)),
    ),
    (
        layers.ScaledAveragePooling2D(3, k_coef_lip=0.1),
        (3, 3, 2),
        over_space(lambda x: 0.3 * means(x)),
    ),
    (stock.AveragePooling2D(3), (3, 3, 2), over_space(means)),
    (stock.GlobalAveragePooling1D(), (7, 2), over_space(means)),
    (layers.GroupSort2(k_coef_lip=0.1), (2,), lambda x: 0.1 * np.sort(x)),
    (layers.FullSort(k_coef_lip=0.1), (5,), lambda x: 0.1 * np.sort(x)),
    (layers.Abs(k_coef_lip=0.1), (4,), lambda x: 0.1 * np.abs(x)),
    (
        layers.LayerCentering(k_coef_lip=0.1),
        (5, 2),
        lambda x: 0.1 * (x - np.mean(x, axis=1, keepdims=True)),
    ),
    (layers.BatchCentering(k_coef_lip=0.1), (3,), lambda x: 0.1 * x),
    (
        layers.ScaleBiasLayer(0.1, mean=[0.1] * 3),
        (3,),
        lambda x: 0.1 * (x - 0.1),
    ),
    (layers.LipschitzPReLU(0.1, alpha_initializer="ones"), (3,), negative(0.1)),
    (layers.Householder(), (2,), reflected),
    # Other activations are in `test_functions.py`.
    (stock.Softmax(), (5,), lambda x: special.softmax(x, axis=-1)),
]


def worst_excess(layer, shape, formula):
    """Largest error of the copy, over what its rule allows."""
    layer = built(type(layer).from_config(layer.get_config()), *shape)
    x = 3 * np.random.default_rng(0).standard_normal((20, *shape))
    with float64():
        found = float64_copy(layer)(as_float64(x), training=False)
        found = np.asarray(to_numpy(found), "float64")
    error = found - formula(x).reshape(found.shape)
    error = np.linalg.norm(error.reshape(len(x), -1), axis=1)
    allowed = layer_bound(
        layer, [(None, *shape)], Context(Walk(), "")
    ).rounding(FLOAT64)
    size = np.linalg.norm(x.reshape(len(x), -1), axis=1)
    return np.max(error / (allowed.relative * size + allowed.absolute))


@pytest.mark.parametrize(
    ("layer", "shape", "formula"),
    LAYERS,
    ids=[type(layer).__name__ for layer, *_ in LAYERS],
)
def test_layers_in_float64_are_as_near_to_real_numbers_as_is_claimed(
    layer, shape, formula
):
    assert worst_excess(layer, shape, formula) <= 1
