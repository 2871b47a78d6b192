"""Golden values of the cross-entropies with a margin, worked out by hand."""

import functools
import json
import math

import harness
import keras
import numpy as np
import pytest
from harness import assert_close
from harness import built
from harness import normal
from harness import reloaded
from harness import to_numpy

from deel.lip.layers import FrobeniusDense
from deel.lip.layers import SpectralDense
from deel.lip.losses import EMMA
from deel.lip.losses import LogitAnnealing
from deel.lip.losses import OffsetCategoricalCrossentropy
from deel.lip.losses import TauCategoricalCrossentropy

ALL = [
    OffsetCategoricalCrossentropy(1.0, 0.5),
    LogitAnnealing(1.0, 0.5, 2.0),
    EMMA(0.5, 2.0),
]
by_name = pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)

FIRST = np.array([[1.0, 0.0], [1.0, 0.0]], "float32")


def _each(loss, labels, scores):
    values = type(loss).from_config({**loss.get_config(), "reduction": "none"})
    return to_numpy(values(labels, scores))


def test_offset_golden_values():
    # offset 1, T = 1/2. The scores of the true class are 1 + ln(3)/2 and 0:
    # less the offset, over T: (ln 3, 0) and (-2, 0). Softmax gives the true
    # class 3/4 and 1 / (1 + e^2): CE is ln(4/3) and ln(1 + e^2). Times T.
    scores = np.array([[1 + math.log(3) / 2, 0], [0, 0]], "float32")
    expected = [math.log(4 / 3) / 2, math.log(1 + math.exp(2)) / 2]
    loss = OffsetCategoricalCrossentropy(1.0, 0.5)
    assert_close(_each(loss, FIRST, scores), expected, rtol=1e-5)
    assert float(loss(FIRST, scores)) == pytest.approx(np.mean(expected))


def test_annealing_golden_values():
    # The same scores: CE as above, p = 3/4 and 1 / (1 + e^2). With beta = 2,
    # T CE is multiplied by (1/4)^2 and by (e^2 / (1 + e^2))^2.
    scores = np.array([[1 + math.log(3) / 2, 0], [0, 0]], "float32")
    missing = math.exp(2) / (1 + math.exp(2))
    expected = [
        math.log(4 / 3) / 2 / 16,
        math.log(1 + math.exp(2)) / 2 * missing**2,
    ]
    loss = LogitAnnealing(1.0, 0.5, 2.0)
    assert_close(_each(loss, FIRST, scores), expected, rtol=1e-5)


def test_emma_golden_values():
    # epsilon K = 0.5 * 2 = 1: an attack gains at most 1.
    # Lead 3: out of reach, e = 1, y' = (0, -3 + 1), CE = ln(1 + e^-2).
    # Lead 1/4: e = 1/4 makes both equal, y' = (0, 0), CE = ln 2.
    # Lead -1, lost already: e = 0.01, y' = (0, 1 + 0.01), ln(1 + e^1.01).
    scores = np.array([[3, 0], [0.25, 0], [0, 1]], "float32")
    expected = [math.log(1 + math.exp(x)) for x in (-2, 0, 1.01)]
    found = _each(EMMA(0.5, 2.0), FIRST[[0, 0, 0]], scores)
    assert_close(found, expected, rtol=1e-5)


def test_emma_takes_the_constant_of_each_pair():
    # True class 1; epsilon K = (0.5, 0, 2) for the classes 0, 1 and 2. Leads
    # are 1 over class 0, e = 1, y'_0 = -1 + 0.5; 1 over class 2, e = 1/2,
    # y'_2 = -1 + 1 = 0. CE = ln(e^-0.5 + 1 + 1).
    pairs = [[9.0, 1.0, 5.0], [1.0, 9.0, 4.0], [5.0, 4.0, 9.0]]
    loss = EMMA(0.5, pairs)
    value = float(loss([[0, 1, 0]], [[1.0, 2.0, 1.0]]))
    assert value == pytest.approx(math.log(2 + math.exp(-0.5)), rel=1e-6)


def test_share_of_emma_has_no_gradient():
    # Lead 1/4: y' = (0, f_1 - f_0 + e) with softmax (1/2, 1/2), where e is a
    # constant: the gradient of CE is (-1/2, 1/2). Else it would be 0.
    loss = EMMA(0.5, 2.0)
    scores = np.array([[0.25, 0.0]], "float32")
    (slope,) = harness.gradient(functools.partial(loss, FIRST[:1]), scores)
    assert_close(slope, [[-0.5, 0.5]], rtol=1e-5)


@pytest.mark.parametrize("layer", [keras.layers.Dense, FrobeniusDense])
def test_emma_reads_the_distances_of_the_last_layer(layer):
    # Columns (3, 0) and (0, 4), which `FrobeniusDense` makes unit vectors:
    # their distance is 5, or the root of 2.
    last = built(layer(2), 2)
    last.kernel.assign([[3.0, 0.0], [0.0, 4.0]])
    last(np.zeros((1, 2), "float32"), training=True)
    distance = 5.0 if layer is keras.layers.Dense else 2**0.5
    scores = np.array([[9.0, 0.0], [0.0, 9.0]], "float32")
    loss = EMMA(0.5, last_layer=last)
    expected = math.log(1 + math.exp(-9 + 0.5 * distance))
    found = to_numpy(loss(np.eye(2), scores))
    assert found == pytest.approx(expected, rel=1e-3)
    config = json.loads(json.dumps(loss.get_config()))
    assert_close(config["constants"], distance * (1 - np.eye(2)), rtol=1e-6)
    assert float(EMMA.from_config(config)(np.eye(2), scores)) == found


def test_emma_follows_the_last_layer_while_fit_trains_it():
    x = normal(64, 6)
    y = np.eye(3, dtype="float32")[np.argmax(x[:, :3], axis=1)]
    last = FrobeniusDense(3)
    model = keras.Sequential([keras.Input((6,)), SpectralDense(8), last])
    loss = EMMA(0.3, last_layer=last)
    model.compile(keras.optimizers.Adam(0.05), loss, metrics=["accuracy"])
    before = loss.get_config()["constants"]
    history = model.fit(x, y, epochs=8, batch_size=16, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert history["accuracy"][-1] > 0.8
    columns = to_numpy(last.wbar)
    gaps = np.linalg.norm(columns[:, :, None] - columns[:, None], axis=0)
    constants = loss.get_config()["constants"]
    assert_close(constants, gaps, atol=1e-5)
    assert np.max(np.abs(np.subtract(constants, before))) > 1e-3
    # What the step computes is what the loss says of the same weights.
    value = model.evaluate(x, y, batch_size=64, verbose=0)[0]
    scores = model.predict(x, verbose=0)
    assert value == pytest.approx(float(loss(y, scores)), rel=1e-4)


def test_without_offset_it_is_the_cross_entropy_with_a_temperature():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((8, 4)).astype("float32")
    labels = np.eye(4)[rng.integers(0, 4, 8)]
    expected = float(TauCategoricalCrossentropy(4.0)(labels, scores))
    found = OffsetCategoricalCrossentropy(0.0, 0.25)(labels, scores)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    loss = OffsetCategoricalCrossentropy(0.7, 0.25)
    expected = float(loss(labels, scores))
    without = LogitAnnealing(0.7, 0.25, beta=0.0)
    assert float(without(labels, scores)) == pytest.approx(expected, rel=1e-5)


@by_name
def test_sample_weights_and_reductions_are_those_of_keras(loss):
    scores = normal(4, 3)
    labels = np.eye(3)[[0, 1, 2, 0]]
    weights = np.array([1.0, 0.0, 2.0, 0.5], "float32")
    values = _each(loss, labels, scores)
    assert values.shape == (4,)
    found = float(loss(labels, scores, sample_weight=weights))
    assert found == pytest.approx(float(np.mean(weights * values)), rel=1e-5)
    config = {**loss.get_config(), "reduction": "sum"}
    found = float(type(loss).from_config(config)(labels, scores))
    assert found == pytest.approx(float(np.sum(values)), rel=1e-5)


@by_name
def test_config_is_plain_and_the_loss_is_loaded_with_the_model(loss, tmp_path):
    assert harness.is_plain(loss.get_config())
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile("sgd", loss)
    loaded = reloaded(model, tmp_path)
    assert loaded.loss.get_config() == loss.get_config()


@by_name
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_values_and_gradients_are_finite(loss, scale):
    scores = scale * np.array([[1, -1, 0.5], [0, 2, 0], [1, 1, 1]], "float32")
    labels = np.eye(3, dtype="float32")
    assert np.all(np.isfinite(_each(loss, labels, scores)))
    (slope,) = harness.gradient(functools.partial(loss, labels), scores)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_annealing_of_a_sure_sample_has_a_finite_gradient(beta):
    loss = LogitAnnealing(0.0, 0.1, beta)
    scores = np.array([[100.0, 0.0]], "float32")
    (slope,) = harness.gradient(functools.partial(loss, FIRST[:1]), scores)
    assert np.all(np.isfinite(slope))


def test_parameters_can_be_assigned_while_training():
    loss = EMMA(0.5, 2.0)
    loss.epsilon.assign(0.25)
    assert loss.get_config()["epsilon"] == 0.25
    value = float(loss([[1, 0]], [[3.0, 0.0]]))
    assert value == pytest.approx(math.log(1 + math.exp(-2.5)), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: OffsetCategoricalCrossentropy(offset=-1.0), "offset"),
        (lambda: OffsetCategoricalCrossentropy(temperature=0.0), "temperature"),
        (lambda: LogitAnnealing(beta=float("nan")), "beta"),
        (lambda: LogitAnnealing(temperature=-1.0), "temperature"),
        (lambda: EMMA(0.0), "epsilon"),
        (lambda: EMMA(constants=-1.0), "constants"),
        (lambda: EMMA(constants=[1.0, 2.0]), "constants"),
        (lambda: EMMA(constants=[[0.0, 2.0], [1.0, 0.0]]), "constants"),
        (lambda: EMMA(constants=1.0, last_layer=FrobeniusDense(2)), "const"),
    ],
)
def test_parameters_out_of_range_are_refused(make, name):
    with pytest.raises(ValueError, match=f"Received: {name}"):
        make()


def test_constants_that_do_not_fit_the_scores_are_refused():
    loss = EMMA(constants=np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"shape=\(3, 3\)"):
        loss(np.eye(3), np.eye(3))
    for wrong in ALL:
        with pytest.raises(ValueError, match="two classes"):
            wrong([[1.0]], [[1.0]])
