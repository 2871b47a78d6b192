"""Sets of the best classes, and groups of classes, stay within the radius."""

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

from deel.lip.certification import certify

CLASSES = 6
GROUPS = [[0, 4], [1], [5, 2, 3]]


@pytest.fixture(scope="module")
def network():
    """A stock network, what it computes in float64, and samples."""
    model = dense_network([5, 24, CLASSES])
    x = np.random.default_rng(1).standard_normal((60, 5)).astype("float32")
    return model, Dense64(model), x.astype("float64")


@pytest.mark.elsewhere
def test_radius_of_a_set_is_the_exact_distance_of_a_linear_classifier():
    x = np.array([[3.0, 2.0, 0.5, 0.0], [0.0, 1.0, 1.0, 4.0]])
    model = linear_classifier(np.eye(4))
    certificates = certify(model, x, [1, 0], top_k=2)
    # To where the second and the third are equal.
    assert_close(certificates.radius, [1.5 / np.sqrt(2), 0.0], atol=1e-6)
    assert_close(certificates.margin, [1.5, 0.0])
    assert_equal(certificates.prediction, [[0, 1], [3, 1]])
    assert_equal(certificates.correct, [True, False])
    assert certificates.accuracy == 0.5
    assert certificates.to_dict()["top_k"] == 2
    assert "the set of the 2 best classes" in repr(certificates)
    # The order within the set is not what stays.
    order = certify(model, [[3.0, 2.9, 0.0, 0.0]], top_k=2)
    assert order.radius[0] > 2.0


@pytest.mark.elsewhere
def test_radius_of_a_group_is_the_exact_distance_of_a_linear_classifier():
    # The larger of x and y is above that of -x and -y where x + y > 0.
    kernel = np.array([[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]])
    x = np.array([[3.0, 2.0], [-1.0, -3.0], [1.0, -1.0]])
    model = linear_classifier(kernel)
    certificates = certify(model, x, [1, 1, 3], groups=[[0, 1], [2, 3]])
    exact = np.abs(x.sum(axis=1)) / np.sqrt(2)
    assert np.all(certificates.radius <= exact)
    assert_close(certificates.radius, exact, atol=1e-6)
    assert_equal(certificates.prediction, [0, 1, 0])
    assert_equal(certificates.label, [0, 0, 1])
    assert_equal(certificates.correct, [True, False, False])
    # No class by itself stays as far.
    assert np.all(certify(model, x[:2]).radius < 0.9 * exact[:2])


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_no_attack_changes_the_set_of_the_best_within_the_radius(
    network, top_k
):
    model, float64, x = network
    certificates = certify(model, x, top_k=top_k)
    expected = np.sort(certificates.prediction, axis=1)
    changed = {}
    for factor in (1.0, 10.0):
        is_changed = np.zeros(len(x), bool)
        for member in range(top_k):
            for other in range(top_k, CLASSES):
                lead = np.argsort(-float64.scores(x), axis=1)
                weights = one_hot(lead[:, member], CLASSES)
                weights = weights - one_hot(lead[:, other], CLASSES)
                found = float64.scores(
                    float64.worst(
                        x, lambda _, w=weights: w, factor * certificates.radius
                    )
                )
                best = np.argsort(-found, axis=1)[:, :top_k]
                is_changed |= np.any(np.sort(best, axis=1) != expected, axis=1)
        changed[factor] = np.mean(is_changed)
    assert changed[1.0] == 0
    # The attack finds what is there to find.
    assert changed[10.0] > 0.9


@pytest.mark.elsewhere
def test_no_attack_leaves_the_group_within_the_radius(network):
    model, float64, x = network
    certificates = certify(model, x, groups=GROUPS)
    assert np.all(certificates.radius >= certify(model, x).radius)
    table = np.zeros((len(GROUPS), CLASSES), bool)
    for number, group in enumerate(GROUPS):
        table[number, group] = True
    inside = table[certificates.prediction]

    def lead(scores):
        """The best of the group, less the best outside."""
        best = np.argmax(np.where(inside, scores, -np.inf), axis=1)
        other = np.argmax(np.where(inside, -np.inf, scores), axis=1)
        return one_hot(best, CLASSES) - one_hot(other, CLASSES)

    left = {}
    for factor in (1.0, 10.0):
        radius = factor * certificates.radius
        found = float64.scores(float64.worst(x, lead, radius))
        left[factor] = np.mean(
            ~inside[np.arange(len(x)), np.argmax(found, axis=1)]
        )
    assert left[1.0] == 0
    assert left[10.0] > 0.8


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    "question", [{"top_k": 2}, {"groups": [[0, 3], [1, 2]]}]
)
def test_rounding_of_each_pair_is_counted(question):
    model, x = certified_classifier(), samples(10)
    exact, float32, estimated = (
        certify(model, x, **question, rounding=rounding)
        for rounding in ("exact", "float32", "estimated")
    )
    assert np.all(float32.radius < exact.radius)
    assert_equal(float32.radius, exact.float32_radius)
    assert_close(float32.radius, exact.radius, atol=1e-3)
    assert_close(estimated.radius, exact.radius, atol=1e-3)
    assert 0 < np.max(exact.rounding) < np.min(float32.rounding)
    parts = certify(model, x, **question, batch_size=4)
    assert_close(parts.radius, exact.radius, atol=1e-6)


@pytest.mark.elsewhere
def test_one_best_class_and_groups_of_one_are_the_usual_certificates(network):
    model, _, x = network
    usual = certify(model, x)
    best = certify(model, x, top_k=1)
    assert_equal(best.radius, usual.radius)
    assert_equal(best.prediction[:, 0], usual.prediction)
    alone = certify(model, x, groups=[[i] for i in range(CLASSES)])
    assert_equal(alone.radius, usual.radius)
    assert_equal(alone.prediction, usual.prediction)


@pytest.mark.elsewhere
def test_bad_questions_are_errors(network):
    model, _, x = network
    for question, message in (
        ({"top_k": 0}, "positive integer"),
        ({"top_k": CLASSES}, "less than the number of classes"),
        ({"top_k": 2, "groups": GROUPS}, "not both"),
        ({"groups": [[0, 1, 2]]}, "each of the classes from 0 to 5 once"),
        ({"groups": [*GROUPS, [0]]}, "each of the classes"),
        ({"groups": [[0, 1, 2, 3, 4], [-1]]}, "each of the classes"),
        ({"groups": [[0, 1, 2, 3, 4], [5.5]]}, "each of the classes"),
        ({"groups": 3}, "each of the classes"),
        ({"groups": [[0, 1, 2, 3, 4, 5]]}, "two groups"),
        ({"groups": [[0, 1, 2, 3, 4, 5], []]}, "two groups"),
    ):
        with pytest.raises(ValueError, match=message):
            certify(model, x, **question)
    single = linear_classifier(np.ones((5, 1)))
    with pytest.raises(ValueError, match="single score"):
        certify(single, x, top_k=1)
