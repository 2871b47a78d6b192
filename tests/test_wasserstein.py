"""Distances of two sets of samples that critics prove."""

import json

import keras
import numpy as np
import pytest
from harness import normal

from deel.lip.activations import GroupSort2
from deel.lip.certification import wasserstein_distance
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import SpectralDense
from deel.lip.losses import KR
from deel.lip.model import Sequential


def linear(weights):
    weights = np.reshape(weights, (-1, 1))
    critic = keras.Sequential(
        [keras.Input((len(weights),)), keras.layers.Dense(1)]
    )
    critic.set_weights([weights, np.array([7.0])])
    return critic


def test_a_shift_is_found_by_the_critic_along_it():
    x = normal(50, 3)
    shift = np.array([1.0, -2.0, 2.0], "float32")
    along = wasserstein_distance(linear(5.0 * shift), x + shift, x)
    assert along.distance == pytest.approx(3.0, rel=1e-5)
    assert along.distance <= 3.0 * (1 + 1e-6)
    # Either set may have the larger scores.
    back = wasserstein_distance(linear(shift), x, x + shift)
    assert back.distance == pytest.approx(3.0, rel=1e-5)
    across = wasserstein_distance(linear([2.0, 1.0, 0.0]), x + shift, x)
    assert across.distance < 1e-5


def test_critics_never_exceed_the_distance_of_points_on_a_line():
    random = np.random.default_rng(0)
    critic = Sequential(
        [
            keras.Input((1,)),
            SpectralDense(16, activation=GroupSort2(), k_coef_lip=3.0),
            SpectralDense(16, activation=GroupSort2()),
            FrobeniusDense(1),
        ]
    )
    x = random.normal(2.0, 0.2, (64, 1)).astype("float32")
    y = random.choice([0.0, 4.0], (64, 1)).astype("float32")
    exact = float(np.mean(np.abs(np.sort(x[:, 0]) - np.sort(y[:, 0]))))
    before = wasserstein_distance(critic, x, y)
    critic.compile(keras.optimizers.Adam(0.02), KR())
    labels = np.repeat([1.0, 0.0], 64)[:, None]
    critic.fit(np.concatenate([x, y]), labels, 128, 60, verbose=0)
    after = wasserstein_distance(critic, x, y)
    # What a line through both sets, without a fold, cannot see.
    assert before.distance < 0.7 * exact
    assert 0.9 * exact < after.distance <= exact * (1 + 1e-6)


def test_the_best_of_several_critics_counts():
    x = normal(20, 2)
    critics = [linear([1.0, 0.0]), linear([3.0, 4.0]), linear([0.0, 0.0])]
    found = wasserstein_distance(critics, x + np.float32([0.6, 0.8]), x)
    assert found.by_critic == pytest.approx([0.6, 1.0, 0.0], abs=1e-6)
    assert found.distance == pytest.approx(1.0, abs=1e-6)
    assert found.spread == pytest.approx(1.0, abs=1e-6)
    assert found.lipschitz_constants == pytest.approx([1.0, 5.0, 0.0])
    assert "spread over critics" in repr(found)
    assert json.loads(json.dumps(found.to_dict()))["samples"] == [20, 20]


@pytest.mark.elsewhere
def test_what_is_no_critic_is_an_error():
    x = normal(4, 2)
    several = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="single score"):
        wasserstein_distance(several, x, x)
    with pytest.raises(ValueError, match="an empty list"):
        wasserstein_distance([], x, x)
    with pytest.raises(ValueError, match="need the shape"):
        wasserstein_distance(linear([1.0, 1.0]), x, normal(4, 3))
    with pytest.raises(ValueError, match="must be finite"):
        wasserstein_distance(linear([1.0, 1.0]), x, x + np.float32(np.nan))
