"""Samples outside of data, and training with them."""

import keras
import numpy as np
import pytest
from harness import assert_equal
from harness import normal
from small_networks import linear_classifier

from deel.lip.applications import DistanceField
from deel.lip.certification import certify_detector
from deel.lip.losses import HKR
from deel.lip.sampling import OneClassDataset
from deel.lip.sampling import outside_samples


def half_space(slope=0.5, border=0.3):
    """Positive where the first coordinate is above the border."""
    kernel = slope * np.array([[1.0], [0.0]])
    return linear_classifier(kernel, np.array([-slope * border]))


def test_samples_are_between_noise_and_the_border():
    # Slopes below one: Newton's steps are longer than the score.
    x = outside_samples(half_space(), 2000, -1.0, 1.0)
    assert x.shape == (2000, 2)
    assert x.dtype == "float32"
    assert np.all(np.abs(x) <= 1.0)
    ahead = 0.3 - x[:, 0]
    is_outside = ahead > 0
    # Nothing crosses the border; means are of four standard errors.
    assert np.mean(is_outside) == pytest.approx(0.65, abs=0.04)
    # Shares of distances that are both uniform: the mean is a quarter of all.
    assert np.mean(ahead[is_outside]) == pytest.approx(1.3 / 4, abs=0.03)
    assert np.mean(ahead[~is_outside]) == pytest.approx(-0.7 / 4, abs=0.03)
    # Nothing moves along the border.
    assert np.std(x[:, 1]) == pytest.approx(2 / np.sqrt(12), abs=0.03)


def test_samples_of_a_curved_field_come_near_its_border():
    model = DistanceField("S")
    noise = np.random.default_rng(0).uniform(-1.0, 1.0, (400, 2))
    middle = np.median(model.predict(noise, verbose=0))
    model.layers[-1].bias.assign([-middle])
    # The same noise as of the seed 0.
    before = model.predict(noise, verbose=0)[:, 0]
    x = outside_samples(model, 400, -1.0, 1.0, batch_size=150)
    after = model.predict(x, verbose=0)[:, 0]
    # Half of the way, in the mean, from either side.
    for side in (before > 0, before < 0):
        assert 0.4 < np.mean(after[side]) / np.mean(before[side]) < 0.6


@pytest.mark.elsewhere
def test_seeds_choose_the_samples():
    model = half_space()
    one, same, other = (
        outside_samples(model, 5, -1.0, 1.0, seed=seed) for seed in (0, 0, 1)
    )
    assert_equal(one, same)
    assert np.all(one != other)


@pytest.mark.elsewhere
def test_a_flat_score_moves_nothing():
    noise = outside_samples(half_space(0.0), 50, [-1, 2.0], [1, 3.0])
    assert np.all((noise[:, 1] >= 2.0) & (noise[:, 1] <= 3.0))
    assert np.std(noise[:, 0]) > 0.3


@pytest.mark.elsewhere
def test_batches_are_half_data_and_every_sample_is_seen():
    x = np.clip(normal(10, 2), -1.0, 1.0)
    data = OneClassDataset(half_space(), x, -1.0, 1.0, batch_size=8)
    assert len(data) == data.num_batches == 3
    seen = []
    for index in range(3):
        samples, labels = data[index]
        assert samples.shape == (8, 2)
        assert_equal(labels[:, 0], [1, 1, 1, 1, 0, 0, 0, 0])
        seen.append(samples[:4])
        assert np.all(np.abs(samples[4:]) <= 1.0)
    seen = np.concatenate(seen)
    assert_equal(np.unique(seen, axis=0), np.unique(x, axis=0))
    # As many as there are, in an order of its own.
    assert_equal(np.unique(seen[:10], axis=0), np.unique(x, axis=0))
    assert not np.array_equal(seen[:10], x)


def test_samples_follow_the_network_that_is_trained():
    model = half_space(1.0)
    model.compile(keras.optimizers.SGD(0.05), HKR(1.0, min_margin=0.1))
    # Data of the other side draws the border there.
    x = normal(32, 2) * np.float32(0.01) + np.float32([-0.9, 0.0])
    data = OneClassDataset(model, x, -1.0, 1.0, batch_size=32)
    model.fit(data, epochs=2, verbose=0)
    found = model.predict(data.outside, verbose=0)[:, 0]
    # One of the draws of the seed; Keras ends an epoch more than it trains.
    random = np.random.default_rng(0)
    shares = []
    for _ in range(5):
        noise = random.uniform(-1.0, 1.0, (32, 2))
        levels = random.uniform(size=32) * model.predict(noise, verbose=0)[:, 0]
        random.permutation(32)
        shares.append(np.mean(np.abs(found - levels) < 1e-5))
    # But for the few that the box holds back.
    assert max(shares) > 0.9


@pytest.mark.slow
def test_a_detector_of_one_class_is_three_lines():
    random = np.random.default_rng(0)
    normal_data = random.normal(0.0, 0.1, (256, 6)).astype("float32")
    model = DistanceField("S", input_shape=(6,))
    model.compile(keras.optimizers.Adam(0.01), HKR(10.0, min_margin=0.2))
    data = OneClassDataset(model, normal_data, -1.0, 1.0, batch_size=64)
    model.fit(data, epochs=4, verbose=0)

    anomalies = random.normal(0.0, 0.1, (100, 6)) + 0.4
    x = np.concatenate([normal_data[:100], anomalies])
    found = certify_detector(model, x, np.repeat([1, 0], 100))
    assert found.auroc > 0.99
    assert found.certified_auroc(0.1)[0] > 0.9


@pytest.mark.elsewhere
def test_what_cannot_be_sampled_is_an_error():
    model, x = half_space(), normal(4, 2)
    for low, high, message in (
        (1.0, 1.0, "`low` must be less than `high`"),
        (-1.0, np.inf, "both finite"),
        ([0.0, 0.0, 0.0], 1.0, r"broadcast to the shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            outside_samples(model, 3, low, high)
        with pytest.raises(ValueError, match=message):
            OneClassDataset(model, x, low, high)
    for data, arguments, message in (
        (x, {"batch_size": 7}, "batch_size=7"),
        (x, {"steps": 0}, "steps=0"),
        (4 * x, {}, "Received: 1 of 4 samples outside"),
        (x[:0], {}, r"x of shape \(0, 2\)"),
        (normal(4, 3), {}, "need the shape"),
        (x + np.float32(np.nan), {}, "must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            OneClassDataset(model, data, -4.0, 4.0, **arguments)
    several = linear_classifier(np.eye(2))
    with pytest.raises(ValueError, match="A field has a single score"):
        outside_samples(several, 3, -1.0, 1.0)
    model.set_weights([np.full((2, 1), np.nan), np.zeros(1)])
    with pytest.raises(ValueError, match="Received: "):
        outside_samples(model, 3, -1.0, 1.0)
