"""Conformal sets have the true class as often as they say, under attack too."""

import fractions
import json
import math

import keras
import numpy as np
import pytest
from float64_attacks import Dense64
from float64_attacks import dense_network
from float64_attacks import one_hot
from harness import assert_close
from harness import assert_equal
from small_networks import certified_classifier
from small_networks import linear_classifier
from small_networks import samples

from deel.lip.certification import ConformalClassifier
from deel.lip.certification._binomial import largest_probability
from deel.lip.certification._binomial import least_probability

ALPHA, RADIUS, SPLITS, SAMPLES = 0.1, 0.3, 20, 100


def identity():
    """Scores are the two inputs, each of constant one."""
    return linear_classifier(np.eye(2))


def first_class(scores):
    """Samples of the first class, with these scores of it."""
    return np.stack([scores, np.zeros(len(scores))], axis=1)


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    ("alpha", "count", "rank"),
    [(0.1, 9, 1), (0.1, 18, 1), (0.1, 19, 2), (0.3, 9, 3), (0.5, 4, 2)],
)
def test_threshold_is_the_score_of_the_rank_that_the_proof_needs(
    alpha, count, rank
):
    scores = np.random.default_rng(0).permutation(count) + 1.0
    classifier = ConformalClassifier(identity(), alpha)
    classifier.calibrate(first_class(scores), np.zeros(count))
    assert_close(classifier.threshold, rank, atol=1e-9)
    assert classifier.threshold <= rank
    assert classifier.coverage == pytest.approx(1 - rank / (count + 1))
    assert classifier.coverage >= 1 - alpha - 1e-12
    assert "coverage at least" in repr(classifier)


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    ("alpha", "needed"), [(0.1, 9), (0.3, 3), (0.07, 14), (0.5, 1), (0.9, 1)]
)
def test_too_few_samples_are_an_error_that_says_how_many_are_needed(
    alpha, needed
):
    classifier = ConformalClassifier(identity(), alpha)
    x = first_class(np.arange(needed) + 1.0)
    if needed > 1:
        with pytest.raises(ValueError, match=f"at least {needed} samples"):
            classifier.calibrate(x[1:], np.zeros(needed - 1))
    classifier.calibrate(x, np.zeros(needed))


@pytest.mark.elsewhere
def test_samples_that_tie_with_the_threshold_are_in():
    classifier = ConformalClassifier(identity(), 0.2)
    x = first_class(np.full(10, 1.5))
    sets = classifier.calibrate(x, np.zeros(10)).predict_sets(x)
    assert_equal(sets, np.tile([True, False], (10, 1)))


@pytest.mark.elsewhere
def test_robust_sets_of_a_linear_classifier_are_known():
    # Scores of constants 5 and 1.
    model = linear_classifier(np.array([[3.0, 1.0], [4.0, 0.0]]))
    x = np.array([[1.0, 0.0]] * 9)
    classifier = ConformalClassifier(model, radius=0.1)
    classifier.calibrate(x, np.zeros(9))
    assert classifier.threshold == pytest.approx(3.0)
    x = np.array([[1.0, -0.124], [1.0, -0.126], [2.91, 0.0], [2.89, 0.0]])
    expected = [[1, 0], [0, 0], [1, 1], [1, 0]]
    assert_equal(classifier.predict_sets(x), np.array(expected, bool))
    assert_equal(
        classifier.predict_sets(x, radius=0.0)[:, 0],
        x @ np.array([3.0, 4.0]) >= 3.0,
    )


@pytest.fixture(scope="module")
def draws():
    """A network, and independent samples with labels, for all splits."""
    model = dense_network([5, 16, 4])
    random = np.random.default_rng(1)
    x = random.standard_normal((SPLITS, 2 * SAMPLES, 5)).astype("float32")
    x = x.astype("float64")
    scores = Dense64(model).scores(x.reshape(-1, 5))
    # The larger a score, the more often its class is the true one.
    noise = random.gumbel(size=scores.shape)
    y = np.argmax(4 * scores + noise, axis=1).reshape(SPLITS, -1)
    return model, x, y


def test_robust_sets_have_the_true_class_under_attack(draws):
    model, x, y = draws
    float64 = Dense64(model)
    test, labels = x[:, SAMPLES:], y[:, SAMPLES:]
    attacked = float64.worst(
        test.reshape(-1, 5),
        lambda _: one_hot(labels.ravel(), 4),
        RADIUS,
    ).reshape(test.shape)
    found = {"clean": [], "attacked": [], "robust": []}
    sizes = []
    for split in range(SPLITS):
        classifier = ConformalClassifier(model, ALPHA, RADIUS)
        classifier.calibrate(x[split, :SAMPLES], y[split, :SAMPLES])
        rows = np.arange(SAMPLES), labels[split]
        clean = classifier.predict_sets(test[split], radius=0.0)
        found["clean"].append(np.mean(clean[rows]))
        found["attacked"].append(
            np.mean(classifier.predict_sets(attacked[split], radius=0.0)[rows])
        )
        robust = classifier.predict_sets(attacked[split])
        found["robust"].append(np.mean(robust[rows]))
        sizes.append(np.mean(np.sum(robust, axis=1)))
    # Three standard deviations of the mean of all splits: both halves count.
    error = 3 * math.sqrt(ALPHA * (1 - ALPHA) * 2 / SAMPLES / SPLITS)
    mean = {name: np.mean(values) for name, values in found.items()}
    assert abs(mean["clean"] - classifier.coverage) < error
    assert mean["robust"] >= 1 - ALPHA - error
    assert mean["attacked"] < 1 - ALPHA - 2 * error
    # They say something.
    assert np.mean(sizes) < 3.5


@pytest.mark.elsewhere
def test_coverage_under_attack_is_between_its_bounds(draws):
    model, x, y = draws
    classifier = ConformalClassifier(model, ALPHA)
    classifier.calibrate(x[0], y[0])
    test, labels = x[1:].reshape(-1, 5), y[1:].ravel()
    epsilons = [0.0, 0.1, 0.3]
    bounds = classifier.coverage_bounds(test, labels, epsilons)
    own = one_hot(labels, 4)
    for index, epsilon in enumerate(epsilons):
        for sign in (-1, 1):
            moved = Dense64(model).worst(
                test, lambda _, s=sign: s * own, epsilon
            )
            sets = classifier.predict_sets(moved)
            share = np.mean(sets[np.arange(len(labels)), labels])
            assert bounds.certain[index] <= share <= bounds.possible[index]
    assert np.all(bounds.lower < bounds.certain)
    assert np.all(bounds.possible < bounds.upper)
    assert bounds.certain[0] == bounds.possible[0]
    assert np.all(np.diff(bounds.lower) < 0)
    assert np.all(np.diff(bounds.upper) > 0)
    summary = json.loads(json.dumps(bounds.to_dict()))
    assert summary["lower"] == bounds.lower.tolist()
    assert "with confidence 0.95" in repr(bounds)


@pytest.mark.elsewhere
def test_coverage_of_a_linear_classifier_is_counted_right():
    classifier = ConformalClassifier(identity(), 0.5, radius=0.25)
    classifier.calibrate(first_class([1.0, 1.0]), [0, 0])
    x = first_class([0.0, 0.5, 1.0, 1.5, 2.0])
    bounds = classifier.coverage_bounds(x, np.zeros(5), [0.0, 0.3, 0.6], 0.9)
    # At least 0.75 is needed, and a sample moves by as much as it is told.
    assert_equal(bounds.certain, [0.6, 0.4, 0.4])
    assert_equal(bounds.possible, [0.6, 0.8, 0.8])
    # Six bounds share an error of 0.1.
    least, largest = bounds.lower[0], bounds.upper[2]
    assert least == pytest.approx(least_probability(3, 5, 0.1 / 6))
    assert largest == pytest.approx(largest_probability(4, 5, 0.1 / 6))


def binomial_tail(successes, trials, probability):
    """Probability of so many successes or more, exactly."""
    p = fractions.Fraction(probability)
    return sum(
        math.comb(trials, k) * p**k * (1 - p) ** (trials - k)
        for k in range(successes, trials + 1)
    )


@pytest.mark.elsewhere
@pytest.mark.parametrize(("successes", "trials"), [(1, 4), (7, 9), (40, 40)])
@pytest.mark.parametrize("error", [0.3, 1e-3, 1e-12])
def test_bounds_of_probabilities_are_exact(successes, trials, error):
    lower = least_probability(successes, trials, error)
    assert binomial_tail(successes, trials, lower) <= error
    assert binomial_tail(successes, trials, lower * (1 + 1e-5)) > error
    upper = largest_probability(trials - successes, trials, error)
    assert binomial_tail(successes, trials, 1 - upper) <= error
    assert upper == pytest.approx(1 - lower, abs=1e-15)
    assert least_probability(0, trials, error) == 0.0
    assert largest_probability(trials, trials, error) == 1.0


@pytest.mark.elsewhere
def test_rounding_makes_sets_larger_alone():
    x, y = samples(60), np.arange(60) % 4
    found = {}
    for rounding in ("exact", "float32", "estimated"):
        classifier = ConformalClassifier(
            certified_classifier(), 0.2, 0.01, rounding=rounding
        )
        classifier.calibrate(x, y)
        sets = classifier.predict_sets(x)
        found[rounding] = classifier.threshold, sets
        parts = classifier.predict_sets(iter([(x[:9], y[:9]), x[9:]]))
        assert_equal(parts, sets)
    assert found["float32"][0] < found["exact"][0]
    assert_close(found["float32"][0], found["exact"][0], atol=1e-4)
    assert np.all(found["float32"][1] >= found["exact"][1])


@pytest.mark.elsewhere
def test_a_threshold_belongs_to_its_weights():
    model = certified_classifier()
    classifier = ConformalClassifier(model, 0.2)
    x, y = samples(8), np.arange(8) % 4
    with pytest.raises(ValueError, match=r"`calibrate\(x, y\)` before"):
        classifier.predict_sets(x)
    with pytest.raises(ValueError, match=r"`calibrate\(x, y\)` before"):
        classifier.coverage_bounds(x, y)
    assert "not calibrated" in repr(classifier)
    classifier.calibrate(x, y)
    classifier.predict_sets(x)
    model.layers[-1].bias.assign_add(keras.ops.ones(4))
    with pytest.raises(ValueError, match="other weights"):
        classifier.predict_sets(x)
    classifier.calibrate(x, y).predict_sets(x)


@pytest.mark.elsewhere
def test_bad_arguments_of_conformal_sets_are_errors():
    model, x = identity(), np.ones((20, 2))
    for alpha in (0.0, 1.0, -0.1, 2, np.nan, "0.1"):
        with pytest.raises(ValueError, match=f"alpha={alpha}"):
            ConformalClassifier(model, alpha)
    for radius in (-0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"radius={radius}"):
            ConformalClassifier(model, radius=radius)
    with pytest.raises(ValueError, match="single score"):
        ConformalClassifier(linear_classifier(np.ones((2, 1))))
    with pytest.raises(ValueError, match="rounding='half'"):
        ConformalClassifier(model, rounding="half")
    classifier = ConformalClassifier(model)
    for y, message in (
        (np.full(20, 2), "from 0 to 1"),
        (np.zeros(19), "one label"),
        (None, "Labels are needed"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier.calibrate(x, y)
    assert classifier.threshold is None
    classifier.calibrate(x, np.zeros(20))
    with pytest.raises(ValueError, match="radius=-1"):
        classifier.predict_sets(x, radius=-1)
    with pytest.raises(ValueError, match="confidence=1"):
        classifier.coverage_bounds(x, np.zeros(20), confidence=1)
    with pytest.raises(ValueError, match="zero or greater"):
        classifier.coverage_bounds(x, np.zeros(20), [-1.0])
    with pytest.raises(ValueError, match="Labels are needed"):
        classifier.coverage_bounds(x)


@pytest.mark.elsewhere
def test_bounds_of_the_coverage_are_drawn():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    classifier = ConformalClassifier(identity()).calibrate(
        np.ones((20, 2)), np.zeros(20)
    )
    bounds = classifier.coverage_bounds(np.ones((9, 2)), np.zeros(9), [0, 1])
    assert len(bounds.plot().lines) == 2
    assert len(bounds.plot(attacked=[0.9, 0.8]).lines) == 3
    matplotlib.pyplot.close("all")
