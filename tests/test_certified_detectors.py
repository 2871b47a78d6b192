"""No attack brings the area under the ROC curve below what is certified."""

import json

import keras
import numpy as np
import pytest
from float64_attacks import Dense64
from float64_attacks import dense_network
from harness import assert_close
from harness import assert_equal
from small_networks import linear_classifier
from small_networks import stack

from deel.lip.certification import certified_auroc
from deel.lip.certification import certify_detector


def area(scores, labels):
    """Area under the ROC curve, pair by pair."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    leads = positive[:, None] - negative
    return np.mean((leads > 0) + (leads == 0) / 2)


def line():
    """A score of constant 5, the distance to a line in units of 1/5."""
    return linear_classifier(np.array([[3.0], [4.0]]))


def on_the_way(scores):
    """Samples with these scores."""
    return np.outer(scores, [3.0, 4.0]) / 25


@pytest.mark.elsewhere
def test_certified_area_of_a_linear_detector_is_exact():
    # Pairs are 1, 2, 4 and 5 apart.
    x, y = on_the_way([5.0, 4.0, 3.0, 0.0]), [1, 1, 0, 0]
    radii = np.array([0.0, 0.09, 0.11, 0.19, 0.21, 0.39, 0.41, 0.49, 0.51])
    exact = np.array([4, 4, 3, 3, 2, 2, 1, 1, 0]) / 4
    assert_equal(certified_auroc(line(), x, y, radii), exact)
    # Where one class alone is moved, pairs last twice as long.
    for moved in ("positive", "negative"):
        found = certified_auroc(line(), x, y, 2 * radii, moved)
        assert_equal(found, exact)


@pytest.mark.elsewhere
def test_classes_are_moved_as_told():
    # The score ends at zero; only there does moving change nothing.
    model = stack(keras.layers.Dense(1, activation="relu"), shape=(1,))
    model.set_weights([np.ones((1, 1)), np.zeros(1)])
    found = certify_detector(model, [[2.0], [0.0], [1.0]], [1, 0, 0])
    assert_equal(found.certified_auroc(1.1, "positive"), [0.5])
    assert_equal(found.certified_auroc(1.1, "negative"), [0.5])
    assert_equal(found.certified_auroc(1.1), [0.0])


@pytest.mark.elsewhere
def test_ties_count_against_the_certificate_and_half_for_the_usual_area():
    x, y = on_the_way([2.0, 1.0, 1.0, 0.0]), np.array([1, 1, 0, 0])
    found = certify_detector(line(), x, y)
    assert found.auroc == 3.5 / 4
    assert_equal(found.certified_auroc(0.0), [3 / 4])
    assert_equal(found.score[1], found.score[2])


def test_no_attack_brings_the_area_below_the_bound():
    model = dense_network([5, 24, 1])
    float64 = Dense64(model)
    random = np.random.default_rng(0)
    x = random.standard_normal((120, 5)).astype("float32").astype("float64")
    scores = float64.scores(x)[:, 0]
    # Large scores are positive, with some noise.
    y = (scores + 0.3 * random.standard_normal(120) > np.median(scores)) + 0
    sign = np.where(y == 1, 1.0, -1.0)[:, None]
    found = certify_detector(model, x, 2 * y - 1)
    assert found.auroc == pytest.approx(area(scores, y), abs=1e-12)
    for epsilon in (0.0, 0.02, 0.1, 0.3):
        moved = float64.worst(x, lambda _: sign, epsilon)
        for which, is_moved in (
            ("both", np.ones(120, bool)),
            ("positive", y == 1),
            ("negative", y == 0),
        ):
            point = np.where(is_moved[:, None], moved, x)
            attacked = area(float64.scores(point)[:, 0], y)
            (bound,) = found.certified_auroc(epsilon, which)
            assert bound <= attacked
            # And not far below.
            assert bound > attacked - 0.02 - 3 * epsilon


@pytest.mark.elsewhere
def test_rounding_of_scores_is_counted():
    # Apart by less than float32 is sure of.
    x, y = on_the_way([1.0 + 1e-7, 1.0]), [1, 0]
    assert certified_auroc(line(), x, y)[0] == 1.0
    assert certified_auroc(line(), x, y, rounding="float32")[0] == 0.0
    assert certified_auroc(line(), x, y, rounding="estimated")[0] == 0.0
    # By less than float64 is.
    found = certify_detector(line(), on_the_way([1.0 + 4e-16, 1.0]), y)
    assert found.auroc == 1.0
    assert found.certified_auroc(0.0)[0] == 0.0


@pytest.mark.elsewhere
def test_data_sets_of_a_detector_come_batch_by_batch():
    x, y = on_the_way([5.0, 4.0, 3.0, 0.0]), np.array([1, 1, 0, 0])
    found = certify_detector(line(), iter([(x[:3], y[:3]), (x[3:], y[3:])]))
    assert_equal(found.label, y)
    assert_close(found.score, [5.0, 4.0, 3.0, 0.0], atol=1e-9)
    assert_equal(found.certified_auroc([0.0, 0.11]), [1.0, 0.75])


@pytest.mark.elsewhere
def test_summary_of_a_detector_is_plain_and_readable():
    found = certify_detector(line(), on_the_way([1.0, 0.0]), [1, 0])
    summary = json.loads(json.dumps(found.to_dict([0.0, 0.5], "positive")))
    assert summary["certified_auroc"] == [1.0, 0.0]
    assert summary["moved"] == "positive"
    assert summary["positive"] == 1
    assert "area under the ROC curve   1.0000" in repr(found)
    assert "certified within 0.5" in repr(found)


@pytest.mark.elsewhere
def test_areas_are_drawn():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    found = certify_detector(line(), on_the_way([1.0, 0.0]), [1, 0])
    assert len(found.plot().lines) == 1
    assert len(found.plot(epsilons=[0, 1], attacked=[1, 0]).lines) == 2
    matplotlib.pyplot.close("all")


@pytest.mark.elsewhere
def test_bad_data_of_a_detector_is_an_error():
    x = on_the_way([1.0, 0.0])
    for y, message in (
        (None, "Labels are needed"),
        ([1, 1], "positive and negative"),
        ([1, 2], "0 or -1, and 1"),
        ([1, 0, 0], "one label"),
    ):
        with pytest.raises(ValueError, match=message):
            certify_detector(line(), x, y)
    with pytest.raises(ValueError, match="single score"):
        certify_detector(linear_classifier(np.eye(2)), x, [1, 0])
    with pytest.raises(ValueError, match="moved='all'"):
        certified_auroc(line(), x, [1, 0], moved="all")
    with pytest.raises(ValueError, match="zero or greater"):
        certified_auroc(line(), x, [1, 0], -1.0)
