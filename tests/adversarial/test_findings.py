"""Certificates that were once broken, searched for again along lines.

Each network has a sample near its boundary, by the bias of its last layer, and
a direction. The search looks for the nearest point on that line, to both sides,
whose prediction by the network in float32, one at a time, is another one.
"""

import keras
import numpy as np
import pytest

from deel.lip import layers
from deel.lip.certification import certify

stock = keras.layers


def long_sum(n):
    """Weights of one sign, whose products are added one after the other."""
    kernel = np.full((n, 2), 0.5)
    kernel[: n // 2, 0] = kernel[n // 2 :, 1] = 1.5
    last = stock.Dense(2)
    model = keras.Sequential([keras.Input((n,)), last])
    last.set_weights([kernel, np.zeros(2)])
    return model, np.full((1, n), 0.7137), last


def pooled(layer, side):
    """A mean of many equal values, against a constant."""
    last = stock.Dense(2)
    model = keras.Sequential([keras.Input((side, side, 1)), layer, last])
    last.set_weights([np.array([[1.0, 0.0]]), np.zeros(2)])
    return model, np.full((1, side, side, 1), 0.7137), last


def cancelling():
    """Two channels that are the same, and mixed so that nothing is left."""
    separable = stock.SeparableConv1D(
        1, 3, depth_multiplier=2, use_bias=False, padding="same"
    )
    last = stock.Dense(2)
    model = keras.Sequential(
        [keras.Input((8, 1)), separable, stock.Flatten(), last]
    )
    depthwise = np.repeat([[[0.3]], [[0.7]], [[1.1]]], 2, axis=-1)
    separable.set_weights([depthwise, np.array([[[1.1], [-1.1]]])])
    last.set_weights([np.full((8, 2), [1.0, -1.0]), np.zeros(2)])
    return model, np.full((1, 8, 1), 0.9), last


def underflowing():
    """Products that are too small for float32, and made large again."""
    last = stock.Dense(2, use_bias=False)
    model = keras.Sequential(
        [keras.Input((2,)), stock.Rescaling(1.2e-38), last]
    )
    last.set_weights([2.0**126 * np.eye(2)])
    return model, np.array([[0.0, 0.99]]), None


FINDINGS = {
    "784 terms of one sign": lambda: long_sum(784),
    "3072 terms of one sign": lambda: long_sum(3072),
    "50176 terms of one sign": lambda: long_sum(50176),
    "mean of 224 x 224 values": lambda: pooled(
        stock.GlobalAveragePooling2D(), 224
    ),
    "scaled mean of 224 x 224 values": lambda: pooled(
        layers.ScaledGlobalAveragePooling2D(), 224
    ),
    "norm of 224 x 224 values": lambda: pooled(
        layers.ScaledGlobalL2NormPooling2D(), 224
    ),
    "SeparableConv1D that cancels": cancelling,
    "underflow": underflowing,
}

# Leads of the class that is certified, in units of the largest score.
LEADS = np.logspace(-9, 0, 19)


def placed(model, x, last, lead, other):
    """Moves the boundary to a lead from the sample, by the last bias."""
    if last is None:
        return
    last.bias.assign(np.zeros(2))
    scores = model.predict_on_batch(x)[0].astype("float64")
    size = max(1e-3, np.max(np.abs(scores)))
    bias = np.zeros(2)
    bias[1] = scores[0] - scores[1] + (lead if other else -lead) * size
    last.bias.assign(bias)


def broken_at(model, x, prediction, radius):
    """The nearest distance on the line through zero that breaks a radius."""
    direction = x / np.linalg.norm(x)
    reach = min(radius, np.linalg.norm(x))
    # Most digits are lost close by; the rest of the ball is searched as well.
    steps = np.concatenate([np.linspace(0, 1, 41), np.logspace(-9, -2, 22)])
    for step in np.sort(steps) * 0.999 * reach:
        for sign in (1, -1):
            point = (x + sign * step * direction).astype("float32")
            distance = np.linalg.norm(point.astype("float64") - x)
            scores = model.predict_on_batch(point)[0]
            if distance <= radius and np.argmax(scores) != prediction:
                return distance
    return np.inf


def search(build, rounding):
    """Number of certificates, and of those that are broken."""
    model, x, last = build()
    x = x.astype("float32").astype("float64")
    count = broken = 0
    for lead in LEADS if last is not None else (0.0,):
        for other in (False, True):
            placed(model, x, last, lead, other)
            found = certify(model, x.astype("float32"), rounding=rounding)
            if found.radius[0] > 0:
                count += 1
                broken += np.isfinite(
                    broken_at(model, x, found.prediction[0], found.radius[0])
                )
    return count, broken


# Networks of 50,000 inputs take seconds.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if "50176" in name or "224" in name
        else name
        for name in FINDINGS
    ],
)
def test_no_certificate_is_broken_along_a_line(name):
    count, broken = search(FINDINGS[name], "float32")
    assert broken == 0
    # There is something to attack, but where nothing can be certified.
    assert (count > 0) == (name != "underflow")
