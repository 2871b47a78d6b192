"""No attack moves an output out of its interval."""

import json

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

from deel.lip.certification import certify_regression
from deel.lip.certification import lipschitz_bound


def linear():
    """Two outputs, of constants 5 and 1, and 5.02 for both."""
    kernel, bias = np.array([[3.0, 1.0], [4.0, 0.0]]), np.array([0.5, 0.0])
    return linear_classifier(kernel, bias)


@pytest.mark.elsewhere
def test_intervals_of_a_linear_model_are_exact():
    x = np.array([[1.0, 2.0], [0.0, -1.0]])
    found = certify_regression(linear(), x)
    center = np.array([[11.5, 1.0], [-3.5, 0.0]])
    assert_close(found.prediction, center)
    assert_close(found.output_constants, [5.0, 1.0], rtol=1e-6)
    assert found.lipschitz_constant == lipschitz_bound(linear())
    for radius in (0.0, 0.2, 3.0):
        lower, upper = found.interval(radius)
        width = radius * np.array([5.0, 1.0])
        assert np.all(lower <= center - width)
        assert np.all(upper >= center + width)
        assert_close(lower, center - width, atol=1e-6)
        assert_close(upper, center + width, atol=1e-6)


@pytest.mark.elsewhere
def test_certified_error_of_a_linear_model_is_exact():
    model = linear_classifier(np.array([[3.0], [4.0]]))
    x, y = np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([6.0, 0.5])
    found = certify_regression(model, x, y)
    assert found.error == pytest.approx(0.75)
    # Each sample goes away from its label.
    expected = 0.75 + 5 * np.array([0.0, 0.1, 1.0])
    errors = found.certified_error([0.0, 0.1, 1.0])
    assert np.all(errors >= expected)
    assert_close(errors, expected, atol=1e-6)
    assert_equal(certify_regression(model, x, y[:, None]).label, found.label)


def test_no_attack_leaves_an_interval():
    model = dense_network([5, 24, 3])
    float64 = Dense64(model)
    random = np.random.default_rng(0)
    x = random.standard_normal((80, 5)).astype("float32").astype("float64")
    y = random.standard_normal((80, 3))
    found = certify_regression(model, x, y)
    assert_close(found.prediction, float64.scores(x), atol=1e-12)
    error = np.abs(found.prediction - float64.scores(x))
    assert np.all(error <= found.rounding)
    for radius in (1e-9, 0.3):
        lower, upper = found.interval(radius)
        reached = np.zeros(3)
        for output in range(3):
            for sign in (-1, 1):
                weights = sign * one_hot(np.full(80, output), 3)
                point = float64.worst(x, lambda _, w=weights: w, radius)
                moved = float64.scores(point)
                assert np.all(lower <= moved)
                assert np.all(moved <= upper)
                shift = np.abs(moved - found.prediction)[:, output]
                reached[output] = max(
                    reached[output],
                    np.max(shift / (upper - found.prediction)[:, output]),
                )
        # The attack gets somewhere.
        assert np.all(reached > 0.3)
    # Each output away from its label: no error is larger than certified.
    for radius in (0.0, 0.1, 0.5):
        point = float64.worst(x, lambda s: -np.sign(s - y), radius)
        attacked = np.mean(np.abs(float64.scores(point) - y))
        assert found.error <= attacked <= found.certified_error(radius)[0]


@pytest.mark.elsewhere
def test_rounding_makes_intervals_wider():
    model, x = certified_classifier(), samples(20)
    widths = {}
    for rounding in ("exact", "float32", "estimated"):
        found = certify_regression(model, x, rounding=rounding, batch_size=7)
        lower, upper = found.interval(1.0)
        widths[rounding] = upper - lower
        scores = model.predict(x, verbose=0)
        if rounding == "float32":
            lower, upper = found.interval(0.0)
            assert np.all((lower <= scores) & (scores <= upper))
    assert np.all(widths["exact"] < widths["float32"])
    # Rounding is a small part of what a distance of one does.
    assert_close(widths["float32"], widths["exact"], rtol=1e-3)
    assert_close(widths["estimated"], widths["exact"], rtol=1e-3)


@pytest.mark.elsewhere
def test_nothing_is_known_where_float32_overflows():
    model = linear_classifier(np.array([[3e38], [0.0]]))
    x = [[0.1, 0.0]]
    lower, upper = certify_regression(model, x, rounding="float32").interval(9)
    assert (lower, upper) == (-np.inf, np.inf)
    # At the sample itself, too.
    found = certify_regression(model, [[1.1, 0.0]], rounding="float32")
    assert found.interval(0.0)[1] == np.inf


@pytest.mark.elsewhere
def test_summary_of_a_regression_is_plain_and_readable():
    x, y = np.ones((3, 2)), np.zeros((3, 2))
    found = certify_regression(linear(), x, y)
    summary = json.loads(json.dumps(found.to_dict([0.0, 0.5])))
    assert (
        summary["certified_error"] == found.certified_error([0, 0.5]).tolist()
    )
    assert_close(summary["mean_width"], [0.0, 3.0], atol=1e-6)
    assert "3 samples, outputs: 2" in repr(found)
    assert "certified error within 0.5" in repr(found)
    without = certify_regression(linear(), x)
    assert "error" not in without.to_dict()
    assert "width of an interval within 0.5" in repr(without)
    with pytest.raises(ValueError, match="Errors need labels"):
        without.certified_error([0.1])


@pytest.mark.elsewhere
def test_errors_are_drawn():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    found = certify_regression(linear(), np.ones((3, 2)), np.zeros((3, 2)))
    assert len(found.plot().lines) == 1
    drawn = found.plot(epsilons=[0.0, 0.1], attacked=[0.2, 0.3])
    assert len(drawn.lines) == 2
    with pytest.raises(ValueError, match="epsilons=None"):
        found.plot(attacked=[0.2])
    matplotlib.pyplot.close("all")


@pytest.mark.elsewhere
def test_bad_labels_of_a_regression_are_errors():
    x = np.ones((3, 2))
    for y, message in (
        (np.zeros((3, 1)), r"shape \(samples, 2\)"),
        (np.zeros(3), r"shape \(samples, 2\)"),
        (np.zeros((2, 2)), "one label"),
        (np.full((3, 2), np.nan), "finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            certify_regression(linear(), x, y)
    with pytest.raises(ValueError, match="radius=-1"):
        certify_regression(linear(), x).interval(-1)
