"""Certificates from what a network does near each sample."""

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import normal
from test_certification_chain import dense

from deel.lip import layers
from deel.lip.certification import ConformalClassifier
from deel.lip.certification import certified_auroc
from deel.lip.certification import certify
from deel.lip.certification import certify_regression
from deel.lip.certification import lipschitz_bound
from deel.lip.certification._network import Network


def scores_and_jacobian(model, x):
    """Those of Dense layers with ReLU at one point, in float64."""
    product = np.eye(len(x))
    for layer in model.layers:
        kernel = np.asarray(layer.kernel, "float64")
        x = x @ kernel + np.asarray(layer.bias, "float64")
        product = product @ kernel
        if layer.activation is keras.activations.relu:
            product, x = product * (x > 0), np.maximum(x, 0)
    return x, product


def jacobian(model, x):
    return scores_and_jacobian(model, x)[1]


def with_biases(model, seed):
    random = np.random.default_rng(seed)
    for layer in model.layers:
        layer.bias.assign(random.standard_normal(layer.bias.shape))
    return model


def near(x, radius, random):
    """A point of the ball, often at its border."""
    step = random.standard_normal(len(x))
    share = random.choice([1.0, random.random()])
    return x + step * (share * radius / np.linalg.norm(step))


@pytest.mark.parametrize("seed", range(12))
def test_no_slope_within_a_radius_exceeds_its_constant(seed):
    random = np.random.default_rng(seed)
    widths = random.integers(2, 8, random.integers(3, 6)).tolist()
    model = with_biases(dense(widths, seed=seed), seed)
    network = Network(model, (widths[0],), None, "exact", local=True)
    x = random.standard_normal((6, widths[0])).astype("float32")
    _, exact, _, _, kept = network._computed(x)
    before = network.local.before_slopes(kept, exact)
    for radius in (0.0, 0.03, 0.3, 3.0):
        members = random.integers(widths[-1], size=(len(x), 1))
        found = network.local.leads(before, members, np.full(len(x), radius))
        for i, sample in enumerate(x.astype("float64")):
            for _ in range(60):
                point = near(sample, radius, random)
                slopes = jacobian(model, point)
                leads = slopes[:, members[i]] - slopes
                norms = np.linalg.norm(leads, axis=0)
                assert np.all(norms <= found[i, 0] * (1 + 1e-9) + 1e-12)


def test_radii_are_those_of_the_linear_network_near_a_sample():
    # Biases keep each ReLU on its side: the distance is that to a plane.
    model = dense([4, 30, 30, 3])
    for layer in model.layers[:-1]:
        signs = np.random.default_rng(1).choice([-1.0, 1.0], 30)
        layer.bias.assign(1000.0 * signs)
    # All planes are near zero.
    origin = model.predict(np.zeros((1, 4)), verbose=0)[0]
    model.layers[-1].bias.assign(-origin)
    x = normal(5, 4)
    local = certify(model, x, local=True, verbose=0)
    for sample, radius in zip(x.astype("float64"), local.radius, strict=True):
        scores, slopes = scores_and_jacobian(model, sample)
        winner = np.argmax(scores)
        norms = np.linalg.norm(slopes[:, [winner]] - slopes, axis=0)
        others = np.arange(3) != winner
        leads = (scores[winner] - scores)[others]
        expected = np.min(leads / norms[others])
        assert radius == pytest.approx(expected, rel=1e-6)
    assert np.all(local.radius > 2 * certify(model, x, verbose=0).radius)


def test_no_prediction_changes_within_a_local_radius():
    random = np.random.default_rng(0)
    for seed in range(6):
        model = with_biases(dense([2, 12, 12, 3], seed=seed), seed)
        x = normal(10, 2, seed=seed)
        found = certify(model, x, local=True, verbose=0)
        angles = np.linspace(0, 2 * np.pi, 181)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        for sample, radius, best in zip(
            x.astype("float64"), found.radius, found.prediction, strict=True
        ):
            share = random.random((len(circle), 1)) ** 0.25
            points = np.concatenate([circle, circle * share]) * radius
            for point in points * (1 - 1e-9) + sample:
                scores, _ = scores_and_jacobian(model, point)
                assert np.argmax(scores) == best


def test_local_radii_are_never_smaller():
    model = with_biases(dense([6, 40, 40, 4]), 0)
    x = normal(20, 6)
    for settings in ({}, {"rounding": "float32"}, {"top_k": 2}):
        plain = certify(model, x, verbose=0, **settings)
        local = certify(model, x, verbose=0, local=True, **settings)
        assert np.all(local.radius >= plain.radius)
        assert np.all(local.float32_radius >= plain.float32_radius)
        assert np.all(local.float32_radius <= local.radius)
        assert np.median(local.radius) > 1.2 * np.median(plain.radius)
        assert np.all(local.prediction == plain.prediction)


@pytest.mark.elsewhere
def test_layers_at_the_end_are_enough():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(20),
            keras.layers.Dropout(0.5),
            keras.layers.ReLU(),
            keras.layers.Dense(20, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )
    x = normal(10, 8, 8, 1)
    plain = certify(model, x, verbose=0)
    local = certify(model, x, verbose=0, local=True)
    assert np.median(local.radius) > 1.05 * np.median(plain.radius)


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    "steps",
    [
        lambda: [keras.layers.Dense(4)],
        lambda: [keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)],
        lambda: [keras.layers.Dense(4, "relu"), layers.GroupSort2()],
    ],
    ids=["one layer", "no ReLU", "no Dense layer at the end"],
)
def test_networks_without_a_local_chain_are_refused(steps):
    model = keras.Sequential([keras.Input((4,)), *steps()])
    with pytest.raises(ValueError, match=r"ends with Dense layers, `relu`"):
        certify(model, normal(2, 4), local=True)


def test_batch_statistics_are_followed_near_a_sample():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(20),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dense(10, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3),
        ]
    )
    random = np.random.default_rng(0)
    for weight in model.weights:
        low = 0.3 if "variance" in weight.name else -1.0
        weight.assign(random.uniform(low, 1.0, weight.shape))
    # The same network, with the statistics in its kernels.
    plain = dense([5, 20, 10, 3])
    kernels = [np.asarray(w, "float64") for w in model.get_weights()]
    k1, b1, g1, s1, m1, v1, k2, b2, g2, s2, m2, v2, k3, b3 = kernels
    by1, by2 = g1 / np.sqrt(v1 + 1e-3), g2 / np.sqrt(v2 + 1e-3)
    plain.set_weights(
        [
            k1 * by1,
            (b1 - m1) * by1 + s1,
            k2,
            b2,
            by2[:, None] * k3,
            b3 + (s2 - m2 * by2) @ k3,
        ]
    )
    x = normal(10, 5)
    found = certify(model, x, local=True, verbose=0)
    expected = certify(plain, x, local=True, verbose=0)
    assert_close(found.radius, expected.radius, rtol=1e-5)
    assert np.median(found.radius) > np.median(certify(model, x).radius)
    assert found.local
    assert "near each sample" in repr(found)


@pytest.mark.elsewhere
def test_the_layer_that_ends_a_local_chain_is_named():
    x = keras.Input((4,))
    y = keras.layers.Dense(4, activation="relu")(x)
    y = keras.layers.Dense(4)(keras.layers.Add(name="joins")([x, y]))
    with pytest.raises(ValueError, match=r"layer 'joins' of type Add"):
        certify(keras.Model(x, y), normal(2, 4), local=True)
    with pytest.raises(ValueError, match=r'Expected `method="chain"`'):
        certify(dense([4, 5, 2]), normal(2, 4), local=True, method="product")


@pytest.mark.elsewhere
def test_what_is_estimated_has_no_local_chain():
    model = dense([4, 5, 3])
    with pytest.raises(ValueError, match=r"Received: rounding='estimated'"):
        certify(model, normal(2, 4), local=True, rounding="estimated")


def test_refined_bounds_hold_and_are_tighter():
    for seed in range(3):
        model = dense([3, 4, 4, 3], seed=seed)
        x = normal(500, 3, seed=seed).astype("float64")
        norms = [np.linalg.norm(jacobian(model, point), 2) for point in x]
        refined = lipschitz_bound(model, refine=True)
        assert max(norms) <= refined <= lipschitz_bound(model) * (1 + 1e-12)
    model = dense([20, 60, 60, 60, 5])
    chain, refined = (lipschitz_bound(model, refine=x) for x in (False, True))
    assert refined < 0.8 * chain
    scores, better = (
        lipschitz_bound(model, refine=x, by_output=True) for x in (False, True)
    )
    assert better < 0.8 * scores
    x = normal(30, 20)
    chain = certify(model, x, verbose=0)
    refined = certify(model, x, verbose=0, refine=True)
    assert np.all(refined.radius >= chain.radius)
    assert np.median(refined.radius) > 1.2 * np.median(chain.radius)


@pytest.mark.elsewhere
def test_whatever_is_certified_can_be_refined():
    model = dense([20, 60, 60, 60, 3])
    x = normal(40, 20)
    plain, refined = (
        certify_regression(model, x, refine=r, verbose=0) for r in (False, True)
    )
    lower, upper = plain.interval(0.5)
    inner_lower, inner_upper = refined.interval(0.5)
    assert np.all(inner_lower > lower)
    assert np.all(inner_upper < upper)
    sizes = []
    labels = np.argmax(model.predict(x, verbose=0), axis=1)
    for refine in (False, True):
        sets = ConformalClassifier(model, radius=0.1, refine=refine)
        sets.calibrate(x, labels, verbose=0)
        sizes.append(np.sum(sets.predict_sets(x, verbose=0)))
    assert sizes[1] < sizes[0]
    detector = dense([20, 60, 60, 60, 1])
    y = np.arange(40) % 2
    loose, tight = (
        certified_auroc(detector, x, y, [0.05], refine=r, verbose=0)
        for r in (False, True)
    )
    assert tight[0] >= loose[0]


@pytest.mark.elsewhere
def test_networks_without_a_chain_have_nothing_to_refine():
    equal = dense([3, 4, 2])
    equal.layers[-1].kernel.assign(np.ones((4, 2)))
    found = certify(equal, normal(2, 3), refine=True, verbose=0)
    assert found.lead_constant < 1e-12
    for model in (dense([3, 2]), dense([3, 4, 2], layers.GroupSort2())):
        chain, refined = (
            lipschitz_bound(model, refine=x) for x in (False, True)
        )
        assert refined == pytest.approx(chain, rel=1e-9)
    with pytest.raises(ValueError, match=r'Expected `method="chain"`'):
        lipschitz_bound(model, refine=True, method="product")
    with pytest.raises(ValueError, match=r'Expected `method="chain"`'):
        certify(model, normal(2, 3), refine=True, method="product")
