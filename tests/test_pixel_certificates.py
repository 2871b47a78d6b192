"""What is said of pixels, and of what; bad input is named."""

import itertools
import json

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from small_networks import KERNEL
from small_networks import by_channels
from small_networks import linear_classifier
from small_networks import pixels
from small_networks import stack

from deel.lip.certification import PixelCertificates
from deel.lip.certification import certified_pixel_accuracy
from deel.lip.certification import certify
from deel.lip.certification import certify_pixels
from deel.lip.certification._budgets import most_spoiled
from deel.lip.certification._network import Network
from deel.lip.certification._outcomes import BestClass
from deel.lip.certification._scores import Scores


@pytest.mark.elsewhere
def test_where_the_whole_map_is_slower_than_some_pairs_both_rules_count():
    model = by_channels(KERNEL, (4,))
    network = Network(model, (4, 2), None, "exact")
    scores = Scores(pixels(1, (4,))[0] @ KERNEL, BestClass())
    (pairs,) = network.joint_slopes(scores)
    network.constant = np.min(pairs[np.isfinite(scores.leads)]) / 1.5
    assert len(network.joint_slopes(scores)) == 2
    # Two by either rule, but only one of them by its own radius.
    radius = np.array([[[0.6, 0.7, 2.0, 2.0], [0.1, 2.0, 2.0, 0.1]]])
    found = certificates_of(radius, radius.max(axis=1))
    assert found.certified_accuracy(1.0)[0] == 0.75


def certificates_of(
    joint_radius, radius, reach=np.inf, label=None, prediction=None
):
    """Certificates by rules of these radii, of pixels that are all right."""
    zeros = np.zeros(radius.shape, int)
    return PixelCertificates(
        radius=radius,
        prediction=zeros if prediction is None else prediction,
        margin=radius,
        label=zeros if label is None else label,
        lipschitz_constant=1.0,
        rounding=radius,
        joint_radius=joint_radius,
        joint_excess=np.zeros(joint_radius.shape[:2]),
        reach=np.full(len(radius), reach),
        arithmetic="exact",
        float32_radius=radius,
        score_constant=1.0,
        lead_constant=1.0,
    )


@pytest.mark.elsewhere
@pytest.mark.parametrize("excess", [0.0, 0.1, 3.0, np.inf])
def test_most_spoiled_pixels_are_those_of_the_best_set(excess):
    random = np.random.default_rng(0)
    for epsilon in (0.0, 0.3, 1.0, 2.0):
        radii = np.sort(random.uniform(size=7))
        within = radii[radii <= epsilon]
        with np.errstate(invalid="ignore"):
            paid = within - excess * (epsilon - within)
        paid = np.maximum(np.nan_to_num(paid, nan=0.0), 0.0) ** 2
        sets = itertools.product([False, True], repeat=len(paid))
        best = max(
            sum(chosen)
            for chosen in sets
            if sum(paid[list(chosen)]) <= epsilon**2
        )
        found = most_spoiled(radii, epsilon, excess)
        assert found == (best if epsilon else 0)


@pytest.mark.elsewhere
def test_squares_that_vanish_spoil_no_certificate():
    radii = np.full(4, 1e-170)
    assert most_spoiled(radii, 1.5e-170) == 2
    assert most_spoiled(np.full(4, 1e170), 1.5e170) == 2
    assert most_spoiled(np.zeros(4), 1e-300) == 4


@pytest.mark.elsewhere
def test_beyond_the_reach_of_float32_nothing_is_certified():
    radius = np.array([[1.0, 1.0]])
    found = certificates_of(radius[None], radius, reach=1.2)
    assert_equal(found.certified_accuracy([1.1, 1.3]), [0.5, 0.0])
    # Scores of 5e37, and float32 ends at 3.4e38.
    model = by_channels(1e30 * np.eye(2), (2,))
    x = np.array([[[5e7, 0.0], [5e7, 0.0]]])
    found = certify_pixels(model, x, [[0, 0]], rounding="float32")
    beyond = 1.01 * found.reach[0]
    assert found.certified_accuracy(beyond)[0] == 0.0
    exact = certify_pixels(model, x, [[0, 0]])
    assert exact.certified_accuracy(beyond)[0] >= 0.5


@pytest.mark.elsewhere
def test_certified_iou_is_that_of_the_worst_predictions_within_the_budget():
    random = np.random.default_rng(0)
    label, prediction = random.integers(3, size=(2, 2, 5))
    prediction[:, :3] = label[:, :3]
    label[0, 4] = -1
    radius = random.uniform(size=(2, 5))
    certificates = certificates_of(
        radius[:, None], radius, label=label, prediction=prediction
    )

    def outcomes(i, number, epsilon):
        """Hits and union of a sample, of all predictions that are possible."""
        is_class = label[i] == number
        counted = label[i] >= 0
        for values in itertools.product(range(3), repeat=5):
            moved = np.array(values) != prediction[i]
            if np.sum(radius[i][moved] ** 2) > epsilon**2:
                continue
            is_seen = counted & (np.array(values) == number)
            yield np.sum(is_class & is_seen), np.sum(is_class | is_seen)

    for epsilon in (0.0, 0.3, 0.7, 1.0):
        found = certificates.certified_iou(epsilon, by_class=True)[0]
        for number in range(3):
            pairs = itertools.product(
                *(set(outcomes(i, number, epsilon)) for i in range(2))
            )
            worst = min((a + c) / (b + d) for (a, b), (c, d) in pairs)
            assert found[number] == pytest.approx(worst, rel=1e-12)
        mean = certificates.certified_iou(epsilon)[0]
        assert mean == pytest.approx(np.mean(found), rel=1e-12)
    metric = keras.metrics.MeanIoU(3, ignore_class=-1)
    metric.update_state(label, prediction)
    usual = float(metric.result())
    assert certificates.certified_iou(0.0)[0] == pytest.approx(usual, rel=1e-6)


@pytest.mark.elsewhere
def test_iou_of_a_class_that_no_label_has_is_not_counted():
    radius = np.ones((1, 2))
    found = certificates_of(
        radius[None], radius, label=np.array([[0, 2]]), reach=0.5
    )
    assert_equal(found.certified_iou(0.0, by_class=True), [[0.5, np.nan, 0.0]])
    assert_equal(found.certified_iou([0.4, 0.6]), [0.25, 0.0])


@pytest.mark.elsewhere
def test_ignored_pixels_do_not_count():
    x = np.sqrt(2) * np.array([[[3.0, 0.0], [4.0, 0.0], [0.0, 5.0]]])
    x = np.concatenate([x, x])
    model = by_channels(np.eye(2), (3,))
    # The first pixel is wrong where it counts.
    y = np.array([[255, 0, 1], [1, 0, 1]])
    found = certify_pixels(model, x, y, ignore_class=255)
    assert_equal(found.label, [[-1, 0, 1], [1, 0, 1]])
    assert found.accuracy == pytest.approx(4 / 5)
    shares = found.certified_accuracy([0.0, 4.5, 6.5], by_sample=True)
    assert_close(shares, [[1, 2 / 3], [1 / 2, 1 / 3], [0, 0]], rtol=1e-12)
    assert_close(found.certified_accuracy([4.5, 6.5]), [2 / 5, 0.0], rtol=1e-12)
    y[0] = 255
    found = certify_pixels(model, x, y, ignore_class=255)
    assert np.isnan(found.certified_accuracy(0.0, by_sample=True)[0, 0])
    with pytest.raises(ValueError, match="all ignored"):
        certify_pixels(model, x, np.full((2, 3), 255), ignore_class=255)


@pytest.mark.elsewhere
def test_labels_are_class_numbers_or_one_hot():
    x = pixels(2, (4, 5))
    model = by_channels(KERNEL, (4, 5))
    y = np.argmax(x @ KERNEL, axis=-1)
    for labels in (y, y[..., None], np.eye(3)[y], y.tolist()):
        assert_equal(certify_pixels(model, x, labels).label, y)


@pytest.mark.elsewhere
def test_data_sets_are_certified_batch_by_batch():
    # Of sizes far apart, each with rounding of its own.
    x = pixels(5, (4, 5)) * 10.0 ** np.arange(5).reshape(5, 1, 1, 1)
    model = by_channels(KERNEL, (4, 5))
    y = np.argmax(x @ KERNEL, axis=-1)
    expected = certify_pixels(model, x, y, rounding="float32")
    found = certify_pixels(model, iter([(x[:3], y[:3]), (x[3:], y[3:])]))
    one_by_one = certify_pixels(model, x, y, 1, rounding="float32")
    assert_close(one_by_one.rounding, expected.rounding, rtol=1e-9)
    for other in (found, one_by_one):
        assert_close(other.float32_radius, expected.radius, rtol=1e-9)
        assert_equal(other.label, y)
    free = stack(keras.layers.Dense(2), shape=(None, 2))
    with pytest.raises(ValueError, match=r"the size \(3, 2\).*\(4, 2\)"):
        certify_pixels(free, iter([np.ones((1, 3, 2)), np.ones((1, 4, 2))]))
    assert certify_pixels(free, np.ones((1, 3, 2))).radius.shape == (1, 3)


@pytest.mark.elsewhere
def test_accuracy_of_pixels_is_a_function_too():
    x = pixels(2, (4, 5))
    model = by_channels(KERNEL, (4, 5))
    y = np.argmax(x @ KERNEL, axis=-1)
    expected = certify_pixels(model, x, y).certified_accuracy([0.0, 0.5])
    found = certified_pixel_accuracy(model, x, y, [0.0, 0.5], ignore_class=9)
    assert_equal(found, expected)


@pytest.mark.elsewhere
def test_summary_is_plain_and_readable():
    x = pixels(2, (4, 5))
    model = by_channels(KERNEL, (4, 5))
    y = np.argmax(x @ KERNEL, axis=-1)
    certificates = certify_pixels(model, x, y)
    summary = json.loads(json.dumps(certificates.to_dict([0.1, 0.2])))
    assert summary["samples"] == 2
    assert summary["positions"] == [4, 5]
    assert summary["accuracy"] == 1.0
    assert len(summary["certified_accuracy"]) == len(summary["epsilons"]) == 2
    printed = repr(certificates)
    assert "Certificates of 4 x 5 pixels of 2 samples" in printed
    assert "certified within 0.5" in printed
    without = certify_pixels(model, x)
    assert "accuracy" not in without.to_dict()
    assert "accuracy" not in repr(without)
    with pytest.raises(ValueError, match="y=None"):
        without.certified_accuracy(0.1)


@pytest.mark.elsewhere
def test_curves_and_maps_are_drawn():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    radius = np.linspace(0.0, 1.0, 6).reshape(1, 2, 3)
    certificates = certificates_of(radius[:, None], radius)
    drawn = certificates.plot()
    assert len(drawn.lines) == 2
    with pytest.raises(ValueError, match="epsilons=None"):
        certificates.plot(attacked=[1.0])
    drawn = certificates.plot_map(0)
    assert_equal(drawn.images[0].get_array(), radius[0])
    series = certificates_of(radius[0][:, None], radius[0])
    with pytest.raises(ValueError, match=r"positions of shape \(3,\)"):
        series.plot_map()
    matplotlib.pyplot.close("all")


@pytest.mark.elsewhere
def test_bad_input_is_an_error():
    model = by_channels(KERNEL, (4, 5))
    x = pixels(2, (4, 5))
    y = np.zeros((2, 4, 5), int)
    for labels, message in (
        (y[:, :3], r"shape \(2, 4, 5\).*Received: labels of shape \(2, 3, 5\)"),
        (y[0], "one label"),
        (np.zeros((2, 4, 5, 3)), "one-hot"),
        (y + 3, "from 0 to 2"),
        (y - 1, "from 0 to 2"),
        (y + 0.5, "from 0 to 2"),
        (y * np.nan, "from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            certify_pixels(model, x, labels)
    with pytest.raises(ValueError, match="finite"):
        certify_pixels(model, x * np.nan)
    with pytest.raises(ValueError, match="rounding='estimated'"):
        certify_pixels(model, x, rounding="estimated")
    with pytest.raises(ValueError, match="ignore_class=void"):
        certify_pixels(model, x, y, ignore_class="void")
    with pytest.raises(ValueError, match="zero or greater"):
        certified_pixel_accuracy(model, x, y, -0.1)
    with pytest.raises(ValueError, match="Samples need the shape"):
        certify_pixels(model, x[:, :3])


@pytest.mark.elsewhere
def test_models_of_other_outputs_are_named():
    x = pixels(2, (4, 5))
    with pytest.raises(ValueError, match="are for `certify_pixels`"):
        certify(by_channels(KERNEL, (4, 5)), x)
    with pytest.raises(ValueError, match="are for `certify`"):
        certify_pixels(linear_classifier(KERNEL), np.ones((1, 2)))
    inputs = [keras.Input((4, 2)) for _ in range(2)]
    with pytest.raises(ValueError, match="one input"):
        certify_pixels(
            keras.Model(inputs, keras.layers.Add()(inputs)), np.ones((1, 4, 2))
        )
    signs = stack(keras.layers.Dense(1, activation="sigmoid"), shape=(4, 2))
    with pytest.raises(ValueError, match="activation=sigmoid"):
        certify_pixels(signs, np.ones((1, 4, 2)))
    half = stack(keras.layers.Dense(2, dtype="mixed_bfloat16"), shape=(4, 2))
    with pytest.raises(ValueError, match=r"half precision|not be rounded"):
        certify_pixels(half, np.ones((1, 4, 2)))
