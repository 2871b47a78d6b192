"""Certificates are never broken, and say what they are about."""

import json

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from harness import to_numpy
from small_networks import certified_classifier
from small_networks import linear_classifier
from small_networks import samples
from small_networks import stack

from deel.lip.certification import attack_accuracy
from deel.lip.certification import attack_distances
from deel.lip.certification import attack_scores
from deel.lip.certification import certified_accuracy
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import GroupSort
from deel.lip.layers import GroupSort2
from deel.lip.layers import SpectralDense
from deel.lip.metrics import CategoricalProvableRobustAccuracy
from deel.lip.model import Model
from deel.lip.model import Sequential


def test_certificate_of_a_linear_classifier_is_the_exact_distance():
    kernel = np.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    x = np.array([[3.0, 1.0], [1.0, 1.5], [-2.0, 1.0], [1.0, 1.0]])
    # To the lines x = y (twice), x = -y, and on the line x = y.
    exact = np.array([2.0, 0.5, 1.0, 0.0]) / np.sqrt(2)
    certificates = certify(linear_classifier(kernel), x, [0, 1, 2, 0])
    assert np.all(certificates.radius <= exact)
    assert_close(certificates.radius, exact, atol=1e-4)
    assert_equal(certificates.prediction, [0, 1, 2, 0])
    assert_close(certificates.margin, [2, 0.5, 1, 0], atol=1e-6)
    assert certificates.accuracy == 1.0


def test_certificate_of_one_score_is_the_distance_to_zero():
    model = linear_classifier(np.array([[3.0], [4.0]]), np.array([5.0]))
    certificates = certify(model, [[1.0, 2.0], [-3.0, -4.0]], [1, -1])
    assert_close(certificates.radius, [16 / 5, 4.0], atol=1e-4)
    assert_equal(certificates.prediction, [1, 0])
    assert certificates.accuracy == 1.0


def test_radius_by_pairs_is_never_below_the_one_for_the_whole_network():
    model, x = certified_classifier(), samples()
    certificates = certify(model, x)
    usual = certificates.margin - certificates.rounding
    usual /= np.sqrt(2) * certificates.lipschitz_constant
    assert np.all(certificates.radius >= usual * (1 - 1e-4))
    assert np.mean(certificates.radius) > 1.1 * np.mean(usual)


def test_attacks_break_no_certificate_but_succeed_beyond():
    model, x = certified_classifier(), samples()
    certificates = certify(model, x)
    distances = attack_distances(
        model, x, certificates.prediction, [certificates.radius, 5.0]
    )
    assert np.all(distances > certificates.radius)
    assert np.mean(np.isfinite(distances)) > 0.9


def test_certified_accuracy_is_below_the_accuracy_under_attack():
    model, x = certified_classifier(), samples()
    y = certify(model, x).prediction
    y[:4] = (y[:4] + 1) % 4
    epsilons = [0.0, 0.01, 0.05, 0.2, 1.0]
    lower = certified_accuracy(model, x, y, epsilons)
    upper = attack_accuracy(model, x, y, epsilons, steps=10)
    assert lower[0] == upper[0] == 0.9
    assert np.all(np.diff(lower) <= 0)
    assert np.all(lower <= upper)
    again = attack_accuracy(model, x, y, epsilons, steps=10, batch_size=40)
    assert_equal(upper, again)


def test_attack_finds_the_boundary_of_a_linear_classifier():
    kernel = np.array([[1.0, 0.0], [0.0, 1.0]])
    model = linear_classifier(kernel)
    x, exact = np.array([[3.0, 1.0]]), np.sqrt(2)
    (found,) = attack_distances(model, x, [0], [1.02 * exact])
    assert exact - 1e-6 <= found <= 1.02 * exact
    assert attack_distances(model, x, [0], [0.99 * exact]) == [np.inf]
    assert attack_distances(model, x, [1], [0.1]) == [0.0]
    one_score = linear_classifier(np.array([[1.0], [0.0]]))
    (found,) = attack_distances(one_score, x, [1], [3.05])
    assert 3.0 - 1e-6 <= found <= 3.05


@pytest.mark.elsewhere
def test_attack_on_a_score_finds_the_lowest_of_a_linear_classifier():
    kernel = np.array([[3.0, 0.0], [4.0, 1.0]])
    x = 100 * np.array([[1.0, 1.0], [1.0, -1.0], [0.0, 0.0]])
    radii = np.array([1.0, 2.0, 0.0])
    moved = attack_scores(linear_classifier(kernel), x, [0, 1, 0], radii)
    lost = radii[:, None] * [[0.6, 0.8], [0.0, 1.0], [0.0, 0.0]]
    assert_close(moved, x - lost, atol=2e-2)
    assert np.all(np.linalg.norm(moved - x, axis=1) <= radii)
    # That of a detector is raised for samples that are not positive.
    single = linear_classifier(kernel[:, :1])
    moved = attack_scores(single, x, [1, -1, 0], radii)
    assert_close(
        moved,
        x - radii[:, None] * [[0.6, 0.8], [-0.6, -0.8], [0, 0]],
        atol=2e-2,
    )
    bounded = attack_scores(single, x[2:], [1], 1.0, bounds=(-0.1, 0.1))
    assert_close(bounded, [[-0.1, -0.1]], atol=1e-6)


def test_attack_stays_within_the_bounds_of_valid_inputs():
    # Only negative values would bring the sum below zero.
    model = linear_classifier(np.ones((4, 1)), np.array([0.1]))
    x = np.zeros((1, 4), "float32")
    assert attack_distances(model, x, [1], [10.0], bounds=(0, 1)) == [np.inf]
    assert np.isfinite(attack_distances(model, x, [1], [10.0]))
    with pytest.raises(ValueError, match="within the bounds"):
        attack_distances(model, x - 1, [1], [10.0], bounds=(0, 1))


def test_images_of_each_size_have_a_bound_of_their_own():
    model = stack(
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(2, use_bias=False),
        shape=(None, None, 2),
    )
    model.set_weights([np.eye(2)])
    images = [np.ones((1, n, n, 2)) * [1.0, 0.0] for n in (32, 2)]
    certificates = certify(model, iter(images))
    # All values of the second channel may rise, all of the first one fall.
    exact = np.array([32, 2]) / np.sqrt(2)
    assert np.all(certificates.radius <= exact)
    assert_close(certificates.radius, exact, rtol=1e-3)
    assert certificates.lipschitz_constant == pytest.approx(0.5)


@pytest.mark.parametrize("where", ["in the layer", "after it", "nested"])
def test_single_scores_that_are_never_negative_are_refused(where):
    inner = {
        "in the layer": [keras.layers.Dense(1, activation="sigmoid")],
        "after it": [keras.layers.Dense(1), keras.layers.Activation("sigmoid")],
        "nested": [stack(keras.layers.Dense(1, activation="sigmoid"))],
    }[where]
    model = stack(*inner)
    for check in (certify, lambda *data: attack_distances(*data, [1.0])):
        with pytest.raises(ValueError, match="activation=sigmoid"):
            check(model, np.ones((1, 4)), [0])


def test_data_sets_are_certified_batch_by_batch():
    model, x = certified_classifier(), samples(10)
    y = np.arange(10) % 4
    expected = certify(model, x, y)
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    found = certify(model, iter(batches))
    assert_close(found.radius, expected.radius, atol=1e-6)
    assert_equal(found.label, y)

    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return batches[index]

    found = certify(model, Data())
    assert_close(found.radius, expected.radius, atol=1e-6)
    assert certify(model, iter([x])).label is None
    one_hot = certify(model, x, np.eye(4)[y], batch_size=4)
    assert_equal(one_hot.label, y)


def test_many_samples_show_a_progress_bar(capsys):
    model = linear_classifier(np.eye(2))
    certify(model, np.ones((4, 2)))
    assert capsys.readouterr().out == ""
    certify(model, np.ones((4, 2)), verbose=1)
    assert "4/4" in capsys.readouterr().out


def test_summary_is_plain_and_readable():
    certificates = certify(certified_classifier(), samples(8), np.arange(8) % 4)
    summary = json.loads(json.dumps(certificates.to_dict()))
    assert summary["samples"] == 8
    assert summary["accuracy"] == certificates.accuracy
    assert len(summary["certified_accuracy"]) == len(summary["epsilons"])
    assert "Certificates of 8 samples" in repr(certificates)
    assert "certified within 0.5" in repr(certificates)
    without = certify(certified_classifier(), samples(8))
    assert "accuracy" not in without.to_dict()
    with pytest.raises(ValueError, match="labels"):
        without.certified_accuracy([0.1])


def _last(layer):
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    model = Sequential(
        [keras.Input((4,)), SpectralDense(8, activation=GroupSort2()), layer]
    )
    return model, x, certify(model, x)


def test_summary_has_the_constants_of_vector_and_score_and_of_a_lead():
    model, _, certificates = _last(
        FrobeniusDense(
            5, kernel_initializer=keras.initializers.RandomNormal(seed=0)
        )
    )
    kernel = to_numpy(model.layers[-1].wbar).astype("float64")
    ratios = [
        certificates.lipschitz_constant / np.linalg.norm(kernel, 2),
        certificates.score_constant / np.linalg.norm(kernel, axis=0).max(),
        certificates.lead_constant
        / max(np.linalg.norm(a - b) for a in kernel.T for b in kernel.T),
    ]
    # Each is multiplied by the bound of what stands before.
    assert_close(ratios, ratios[0], rtol=1e-6)
    bounds = [lipschitz_bound(model, by_output=x) for x in (False, True)]
    found = certificates.lipschitz_constant, certificates.score_constant
    assert_close(found, bounds, rtol=1e-6)
    assert found[0] > 1.01 * found[1]
    assert found[1] <= 1 + 1e-4
    # No radius is smaller than what the printed constant says.
    by_hand = certificates.margin / certificates.lead_constant
    assert np.all(certificates.radius >= by_hand - 1e-5)
    printed = repr(certificates)
    for line in (
        f"{found[0]:.6g} of the vector of scores",
        f"{found[1]:.6g} of each score",
        f"counts        {certificates.lead_constant:.6g} of the lead",
    ):
        assert line in printed
    summary = json.loads(json.dumps(certificates.to_dict()))
    assert summary["score_constant"] == certificates.score_constant
    assert summary["lead_constant"] == certificates.lead_constant


def test_leads_of_a_last_layer_with_activation_count_by_the_vector():
    _, _, certificates = _last(SpectralDense(5, activation=GroupSort(5)))
    constant = certificates.lipschitz_constant
    assert certificates.score_constant == constant
    assert_close(certificates.lead_constant, np.sqrt(2) * constant, rtol=1e-9)


def test_a_single_score_has_one_constant():
    _, _, certificates = _last(FrobeniusDense(1))
    constant = certificates.lipschitz_constant
    assert_close(certificates.score_constant, constant, rtol=1e-6)
    assert_close(certificates.lead_constant, constant, rtol=1e-6)
    assert "lead" not in repr(certificates)


def test_curves_are_drawn():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    certificates = certify(certified_classifier(), samples(8), np.arange(8) % 4)
    drawn = certificates.plot()
    assert len(drawn.lines) == 1
    drawn = certificates.plot(drawn, [0.0, 0.1], [1.0, 0.5])
    assert len(drawn.lines) == 3
    matplotlib.pyplot.close("all")


def test_bad_data_is_an_error():
    model = certified_classifier()
    x = samples(4)
    for y, message in (
        ([0, 1, 2, 4], "from 0 to 3"),
        ([0, 1, 2, -1], "from 0 to 3"),
        ([0, 1, 2, 0.5], "from 0 to 3"),
        ([0, 1], "one label"),
        (3, "one label"),
        (np.array(["a", "b", "c", "d"]), "must be numbers"),
        (np.ones((4, 4)), "one-hot"),
        (np.ones((4, 3)), "class numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            certify(model, x, y)
    with pytest.raises(ValueError, match="without samples"):
        certify(model, x[:0])
    with pytest.raises(ValueError, match="empty data"):
        certify(model, iter([]))
    with pytest.raises(ValueError, match="y=None"):
        certify(model, iter([x]), [0, 1, 2, 3])
    with pytest.raises(ValueError, match="Samples need the shape"):
        certify(model, x[:, :5])
    with pytest.raises(ValueError, match="finite"):
        certify(model, x * np.nan)
    for epsilons in (-0.1, [0.1, np.nan]):
        with pytest.raises(ValueError, match="zero or greater"):
            certified_accuracy(model, x, [0, 1, 2, 3], epsilons)
        with pytest.raises(ValueError, match="zero or greater"):
            attack_accuracy(model, x, [0, 1, 2, 3], epsilons)
    with pytest.raises(ValueError, match="0 samples"):
        attack_accuracy(model, x[:0], [], [0.1])
    with pytest.raises(ValueError, match="unbuilt"):
        certify(keras.Sequential([keras.layers.Dense(2)]), x)


def test_several_inputs_or_outputs_are_not_certified():
    inputs = [keras.Input((4,)) for _ in range(2)]
    model = keras.Model(inputs, keras.layers.Add()(inputs))
    with pytest.raises(ValueError, match="one input"):
        certify(model, np.ones((1, 4)))
    x = keras.Input((4,))
    several = keras.Model(x, [keras.layers.Dense(2)(x) for _ in range(2)])
    for check in (certify, lambda *data: attack_distances(*data, [1.0])):
        with pytest.raises(ValueError, match="one output"):
            check(several, np.ones((1, 4)), [0])
    named = keras.Model(x, {"scores": keras.layers.Dense(2)(x)})
    with pytest.raises(ValueError, match="one output"):
        certify(named, np.ones((1, 4)))


def test_models_know_their_constant_and_certify():
    model, x = certified_classifier(), samples(5)
    assert model.lipschitz_constant() == lipschitz_bound(model)
    assert_equal(model.certify(x).radius, certify(model, x).radius)
    inputs = keras.Input((4,))
    functional = Model(inputs=inputs, outputs=SpectralDense(3)(inputs))
    assert functional.lipschitz_constant() == pytest.approx(1.0, abs=1e-5)
    assert len(functional.certify(np.ones((2, 4)))) == 2


def test_export_is_refused_if_the_promise_is_broken():
    model = certified_classifier()
    # One score is 1-Lipschitz, the vector of four may not be.
    by_score = lipschitz_bound(model, by_output=True)
    assert by_score <= 1 + 1e-4
    assert lipschitz_bound(model) > (1 + 1e-3) * by_score
    assert type(model.vanilla_export(verify=True)) is keras.Sequential
    with pytest.raises(ValueError, match="exceeds its promise"):
        model.vanilla_export(verify=0.5)
    # A foreign kernel, written past the guard of the weights of inference.
    wbar = model.layers[0].wbar
    wbar.assign_proven(1.5 * keras.ops.convert_to_tensor(wbar))
    for refused in (
        model.vanilla_export,
        model.lipschitz_constant,
        lambda: model.certify(samples()),
    ):
        with pytest.raises(ValueError, match="exceeds its promise"):
            refused()
    model.condense()
    model.vanilla_export(verify=True)
    inputs = keras.Input((4,))
    functional = Model(inputs=inputs, outputs=SpectralDense(3)(inputs))
    with pytest.raises(ValueError, match="does not promise"):
        functional.vanilla_export(verify=True)
    functional.vanilla_export(verify=1.0)


def test_metrics_with_the_proven_constant_are_below_certified_accuracy():
    model, x = certified_classifier(), samples()
    certificates = certify(model, x, np.arange(40) % 4)
    metric = CategoricalProvableRobustAccuracy(
        epsilon=0.02, lip_const=model.lipschitz_constant(by_output=True)
    )
    scores = model.predict(x, verbose=0)
    value = float(metric(np.eye(4)[certificates.label], scores))
    assert value <= certificates.certified_accuracy(0.02)[0] + 1e-6


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_attacks_refuse_what_is_no_number(value):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    x, y = np.ones((4, 2)), np.zeros(4, int)
    x[1] = value
    with pytest.raises(ValueError, match="Samples must be finite"):
        attack_accuracy(model, x, y, [0.1])
    with pytest.raises(ValueError, match="Samples must be finite"):
        attack_scores(model, x, y, 0.1)
    model.layers[0].bias.assign([0.0, 0.0, value])
    with pytest.raises(ValueError, match="NaN or infinite weights"):
        attack_accuracy(model, np.ones((4, 2)), y, [0.1])
