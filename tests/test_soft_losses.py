"""Losses with soft maxima: values, parameters, and state in training."""

import functools
import math

import harness
import keras
import numpy as np
import pytest
from golden_scores import CLASSES
from harness import assert_close
from harness import to_numpy

from deel.lip import losses


def _soft_hkr(
    alpha, margin, m, scores=CLASSES[1], temperature=1.0, momentum=0.99
):
    """Value and new state of `MulticlassSoftHKR`, in NumPy."""
    is_true = CLASSES[0] > 0
    scores = scores.astype("float64")
    g = momentum * m + (1 - momentum) * np.mean(np.abs(scores))
    t = np.clip(temperature * margin / np.clip(g, margin, 20000), 0.005, 250)
    others = np.where(is_true, -np.inf, t * scores)
    weights = np.exp(others - others.max(axis=1, keepdims=True))
    weights = weights / weights.sum(axis=1, keepdims=True) + is_true
    signed = np.where(is_true, scores, -scores)
    a = -np.sum(weights * signed, axis=1)
    b = np.sum(weights * np.maximum(margin / 2 - signed, 0), axis=1)
    return np.mean(a / alpha + b), np.clip(g, 0.005, 1000)


def test_soft_hkr_golden_value_and_mixed_convention():
    value = float(losses.MulticlassSoftHKR(5.0, 0.2)(*CLASSES))
    assert value == pytest.approx(1.0897621, abs=2e-6)
    weight = 5 / 6
    assert value * weight == pytest.approx(0.9081351, abs=2e-6)
    # `alpha=inf` leaves the hinge: the limit of large ratios.
    hinge = float(losses.MulticlassSoftHKR(math.inf, 0.2)(*CLASSES))
    near = float(losses.MulticlassSoftHKR(1e6, 0.2)(*CLASSES))
    assert hinge == pytest.approx(near, abs=1e-5)


@pytest.mark.parametrize(
    ("scale", "state"), [(1.0, 1.0), (0.0, 1e-4), (1e6, 1000.0), (10.0, 5.0)]
)
def test_soft_hkr_follows_the_magnitude_of_the_scores(scale, state):
    loss = losses.MulticlassSoftHKR(
        5.0, 0.2, alpha_mean=0.6, temperature=3.0, reduction="none"
    )
    assert to_numpy(loss.m) == pytest.approx(0.2)
    loss.m.assign(state)
    scores = (scale * CLASSES[1]).astype("float32")
    for _ in range(3):
        expected, state = _soft_hkr(5.0, 0.2, state, scores, 3.0, 0.6)
        found = np.mean(to_numpy(loss(CLASSES[0], scores)))
        assert found == pytest.approx(expected, rel=1e-5)
        assert to_numpy(loss.m) == pytest.approx(state, rel=1e-5)


def test_temperature_of_soft_hkr_has_no_gradient():
    scores = (5 * CLASSES[1]).astype("float32")

    def value(alpha_mean):
        loss = losses.MulticlassSoftHKR(5.0, 0.2, alpha_mean=alpha_mean)
        # The same temperature, once from the state and once from the scores.
        loss.m.assign(np.mean(np.abs(scores)))
        return functools.partial(loss, CLASSES[0])

    assert float(value(0.0)(scores)) == pytest.approx(
        float(value(1.0)(scores)), rel=1e-6
    )
    (follows,) = harness.gradient(value(0.0), scores)
    (constant,) = harness.gradient(value(1.0), scores)
    assert_close(follows, constant, atol=1e-6)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "jit"])
def test_soft_hkr_is_trained_by_fit_and_its_state_follows(jit):
    backend = keras.backend.backend()
    if jit and backend == "torch":
        pytest.skip("Compiling on PyTorch needs a C++ compiler.")
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(3, kernel_initializer="ones")]
    )
    loss = losses.MulticlassSoftHKR(5.0, 0.2)
    model.compile(keras.optimizers.SGD(0.0), loss, jit_compile=jit)
    scores = np.sum(CLASSES[1], axis=1, keepdims=True).repeat(3, axis=1)
    model.fit(CLASSES[1], CLASSES[0], epochs=2, batch_size=6, verbose=0)
    state = 0.2
    for _ in range(2):
        _, state = _soft_hkr(5.0, 0.2, state, scores)
    # JAX has no place for the state of a loss in a compiled step.
    expected = 0.2 if backend == "jax" else state
    assert to_numpy(loss.m) == pytest.approx(expected, rel=1e-5)
    model.optimizer.learning_rate = 0.1
    history = model.fit(
        CLASSES[1], CLASSES[0], epochs=5, batch_size=6, verbose=0
    ).history
    assert history["loss"][-1] < history["loss"][0]
    assert math.isfinite(float(loss(*CLASSES)))


def test_soft_hkr_leaks_nothing_from_a_function_compiled_by_the_user():
    if keras.backend.backend() != "jax":
        pytest.skip("JAX alone has functions without state.")
    import jax

    loss = losses.MulticlassSoftHKR(5.0, 0.2)
    found = float(jax.jit(lambda p: loss(CLASSES[0], p))(CLASSES[1]))
    assert to_numpy(loss.m) == pytest.approx(0.2)
    assert float(loss(*CLASSES)) == pytest.approx(found, rel=1e-6)


def test_lse_hkr_parts_and_parameters():
    labels, scores = CLASSES
    is_true = labels > 0
    temperature, penalty, margin = 2.0, 0.5, 0.3
    z = temperature * scores.astype("float64")
    t = np.log(2) / (margin * penalty / 2)
    others = z[~is_true].reshape(6, 2)
    top = others.max(axis=1)
    q = top + np.log(np.exp(t * (others - top[:, None])).sum(axis=1)) / t
    # What the sharpness is made for.
    assert np.all((q >= top) & (q <= top + margin * penalty / 2 + 1e-9))
    own = z[is_true]
    hinge = np.maximum(margin / 2 - own, 0) + np.maximum(margin / 2 + q, 0)
    for alpha in (0.0, 0.3, 1.0):
        loss = losses.MulticlassLseHKR(
            alpha, temperature, penalty, margin, reduction="none"
        )
        assert_close(
            loss(labels, scores),
            (1 - alpha) * (q - own) + alpha * hinge,
            atol=1e-5,
        )


def test_lse_hkr_of_two_classes_takes_the_score_of_the_other():
    labels = np.array([[1.0, 0.0], [0.0, 1.0]])
    scores = np.array([[2.0, 0.2], [1.0, 3.0]], "float32")
    value = float(losses.MulticlassLseHKR(0.0)(labels, scores))
    assert value == pytest.approx(-(1.8 + 2.0) / 2)
    value = float(losses.MulticlassLseHKR(1.0)(labels, scores))
    assert value == pytest.approx((0.7 + 1.5) / 2)


@pytest.mark.parametrize(
    ("ratio", "weight"), [(9.0, 0.9), (math.inf, 1.0), (1.5, 0.6)]
)
def test_a_ratio_given_as_the_weight_of_lse_hkr_is_converted(ratio, weight):
    with pytest.warns(UserWarning, match=f"Received: alpha={ratio}"):
        loss = losses.MulticlassLseHKR(ratio)
    assert loss.get_config()["alpha"] == pytest.approx(weight)
    with pytest.raises(ValueError, match="Received: alpha=-1"):
        losses.MulticlassLseHKR(-1)


@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        (losses.MulticlassSoftHKR, {"alpha": 0.0}),
        (losses.MulticlassSoftHKR, {"alpha": -1.0}),
        (losses.MulticlassSoftHKR, {"alpha": float("nan")}),
        (losses.MulticlassSoftHKR, {"min_margin": 0.0}),
        (losses.MulticlassSoftHKR, {"alpha_mean": 1.1}),
        (losses.MulticlassSoftHKR, {"alpha_mean": float("nan")}),
        (losses.MulticlassSoftHKR, {"temperature": 0.0}),
        (losses.MulticlassLseHKR, {"alpha": float("nan")}),
        (losses.MulticlassLseHKR, {"min_margin": 0.0}),
        (losses.MulticlassLseHKR, {"penalty": -1.0}),
        (losses.MulticlassLseHKR, {"temperature": math.inf}),
    ],
)
def test_parameters_of_the_soft_losses_are_checked(loss, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"Received: {name}="):
        loss(**arguments)


@pytest.mark.parametrize(
    "loss",
    [
        losses.MulticlassSoftHKR(),
        losses.MulticlassLseHKR(0.9),
        losses.MulticlassLseHKR(0.9, min_margin=1e-3),
    ],
)
def test_gradients_of_the_soft_losses_are_finite(loss):
    for scale in (0.0, 1.0, 1e4):
        scores = (scale * CLASSES[1]).astype("float32")
        (slope,) = harness.gradient(functools.partial(loss, CLASSES[0]), scores)
        assert np.all(np.isfinite(slope))
