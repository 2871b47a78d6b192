"""No ray passes the surface that it is traced to."""

from fractions import Fraction

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from harness import to_numpy
from small_networks import linear_classifier

from deel.lip.applications import DistanceField
from deel.lip.certification import sphere_trace
from deel.lip.losses import HKR


def field(kernel=(3.0, 4.0), bias=-5.0):
    """A score of constant 5 by default, at the distance 1 from zero."""
    return linear_classifier(np.reshape(kernel, (-1, 1)), np.array([bias]))


def score64(model, x):
    """What the network of real numbers says, in NumPy and float64."""
    *hidden, last = [
        layer for layer in model.layers if hasattr(layer, "kernel")
    ]
    for layer in hidden:
        kernel, bias = layer.get_weights()
        x = np.sort(x @ kernel.astype("float64") + bias, axis=-1)
    kernel, bias = (w.astype("float64") for w in last.get_weights())
    return (x @ kernel + bias)[..., 0]


def trained():
    """A field of a disk, whose gradient has a norm near one; exported."""
    random = np.random.default_rng(0)
    x = random.uniform(-2.0, 2.0, (2048, 2)).astype("float32")
    y = (np.linalg.norm(x, axis=1) < 1.0).astype("float32")[:, None]
    model = DistanceField("S")
    model.compile(keras.optimizers.Adam(0.01), HKR(1.0, min_margin=0.1))
    model.fit(x, y, 128, 6, verbose=0)
    return model.vanilla_export()


def at_random():
    """A field of random kernels, exported, with zeros in the domain."""
    model = DistanceField("S")
    for layer in model.layers[1:]:
        shape = layer.kernel.shape
        layer.kernel.assign(np.random.default_rng(0).normal(size=shape))
        layer.bias.assign(
            np.random.default_rng(1).normal(0.0, 0.2, layer.bias.shape)
        )
    model.condense()
    x = np.random.default_rng(2).uniform(-2.0, 2.0, (500, 2))
    last = model.layers[-1]
    last.bias.assign(last.bias - np.median(to_numpy(model(x))))
    return model.vanilla_export()


@pytest.fixture(scope="module")
def rays():
    """Origins and directions of a hundred rays in the plane."""
    random = np.random.default_rng(3)
    origins = random.uniform(-2.0, 2.0, (100, 2))
    # Half of them towards the middle, the others anywhere.
    directions = np.where(
        np.arange(100)[:, None] < 50, -origins, random.normal(size=(100, 2))
    )
    return origins, directions


@pytest.mark.parametrize(
    "network", [trained, pytest.param(at_random, marks=pytest.mark.elsewhere)]
)
def test_the_score_keeps_its_sign_up_to_the_end(network, rays):
    model = network()
    origins, directions = rays
    found = sphere_trace(model, *rays, far=4.0, tolerance=1e-4)
    assert np.sum(found.hit) > 20
    assert np.sum(found.free) > 5
    assert found.lipschitz_constant == pytest.approx(1.0, abs=1e-3)
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    assert_close(
        found.points, origins + found.distance[:, None] * unit, atol=1e-12
    )
    # Dense, and denser where it ends.
    marks = np.concatenate([np.linspace(0, 1, 500), 1 - np.logspace(-9, -1)])
    along = (found.distance[:, None] * marks)[..., None]
    scores = score64(model, origins[:, None] + along * unit[:, None])
    start = np.sign(score64(model, origins))[:, None]
    # What NumPy itself rounds.
    assert np.min(start * scores) > -1e-12
    ends = score64(model, found.points)
    assert_close(found.score, ends, atol=1e-12)
    # Nothing is a hit that is none, and the other way round.
    assert_equal(found.hit, np.abs(ends) <= 1e-4)


@pytest.mark.elsewhere
@pytest.mark.parametrize("far_away", [0.0, 1e8])
def test_no_rounding_lets_a_ray_pass(far_away):
    # A direction that is normalised to known numbers, and a line through zero.
    towards = np.array([0.6, 0.8])
    kernel = np.float32([0.3, 0.7])
    random = np.random.default_rng(0)
    origins = random.normal(size=(100, 2)) - far_away * towards
    found = sphere_trace(
        field(kernel, 0.0),
        origins,
        np.array([3.0, 4.0]),
        far=1e9,
        tolerance=1e-30,
        steps=60,
    )
    assert not np.any(found.hit)
    assert np.any(~found.free)

    def exact(origin, distance):
        return sum(
            Fraction(weight) * (Fraction(o) + Fraction(distance) * Fraction(d))
            for weight, o, d in zip(
                kernel.tolist(), origin, towards.tolist(), strict=True
            )
        )

    rays = zip(origins.tolist(), found.distance.tolist(), strict=True)
    for origin, distance in rays:
        assert exact(origin, 0.0) * exact(origin, distance) > 0


@pytest.mark.elsewhere
def test_the_network_as_it_runs_keeps_its_sign_too(rays):
    model = at_random()
    origins, directions = rays
    found = sphere_trace(model, *rays, 4.0, steps=60, rounding="float32")
    assert np.sum(found.hit) > 20
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    marks = 1 - np.concatenate([[0.0], np.logspace(-7, 0, 80)])
    along = (found.distance[:, None] * marks)[..., None]
    points = (origins[:, None] + along * unit[:, None]).astype("float32")
    scores = model.predict(points.reshape(-1, 2), 4096, verbose=0)
    scores = scores.reshape(100, -1)
    assert np.all(np.sign(scores) == np.sign(scores[:, -1:]))


@pytest.mark.elsewhere
def test_a_hit_counts_what_rounding_can_do():
    # A point of the line, in float64 and in float32.
    point, right = np.array([[1.0, 0.5]]), np.array([1.0, 0.0])
    for rounding, tolerance, is_hit in (
        ("exact", 1e-12, True),
        ("exact", 1e-17, False),
        ("float32", 1e-5, True),
        ("float32", 1e-9, False),
    ):
        found = sphere_trace(
            field(), point, right, 1.0, tolerance, rounding=rounding
        )
        assert found.score == 0.0
        assert_equal(found.hit, [is_hit])
        assert_equal(found.distance, [0.0])


@pytest.mark.elsewhere
def test_a_ray_to_a_line_ends_at_it_at_once():
    origins = np.zeros((3, 2))
    directions = [[3.0, 4.0], [30.0, -1.0], [-3.0, -4.0]]
    found = sphere_trace(field(), origins, directions, 2.0, 1e-6, 1)
    assert_equal(found.hit, [True, False, False])
    assert_close(found.distance[[0, 2]], [1.0, 1.0], atol=1e-9)
    found = sphere_trace(field(), origins, directions, 2.0, 1e-6)
    assert_equal(found.hit, [True, True, False])
    assert_equal(found.free, [False, False, True])
    cosine = (3 * 30 - 4) / 5 / np.hypot(30, 1)
    assert_close(found.distance, [1.0, 1 / cosine, 2.0], atol=1e-6)
    assert "free up to the far end     1" in repr(found)
    assert len(found) == 3


@pytest.mark.elsewhere
def test_batches_and_images_make_no_difference():
    model = linear_classifier(np.ones((4, 1)), np.array([-1.0]), (2, 2, 1))
    origins = np.random.default_rng(0).normal(size=(7, 2, 2, 1))
    one = np.full((2, 2, 1), 1e-200)
    whole = sphere_trace(model, origins, one, far=9.0)
    parts = sphere_trace(model, origins, one, far=9.0, batch_size=3)
    assert_equal(whole.distance, parts.distance)
    start = origins.sum(axis=(1, 2, 3)) - 1
    towards = start < 0
    assert_equal(whole.hit, towards)
    assert_close(whole.distance[towards], -start[towards] / 2, atol=1e-3)


@pytest.mark.elsewhere
def test_what_is_no_ray_is_an_error():
    zero, right = np.zeros((2, 2)), np.array([1.0, 0.0])
    for origins, directions, message in (
        (zero, np.zeros((3, 2)), r"directions of shape \(3, 2\)"),
        (zero, [[1.0, 0.0], [0.0, 0.0]], r"of the rays \[1\]"),
        (zero, [np.nan, 0.0], "must be finite"),
        (zero + np.inf, right, "must be finite"),
        (zero[0], right, "batch of one"),
        (zero[:0], right, r"origins of shape \(0, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            sphere_trace(field(), origins, directions, 1.0)
    for arguments, message in (
        ({"far": 0.0}, "far=0"),
        ({"far": 1.0, "tolerance": np.nan}, "tolerance=nan"),
        ({"far": 1.0, "steps": 0}, "steps=0"),
        ({"far": 1.0, "rounding": "estimated"}, "rounding=estimated"),
    ):
        with pytest.raises(ValueError, match=message):
            sphere_trace(field(), zero, right, **arguments)
    with pytest.raises(ValueError, match="A field has a single score"):
        sphere_trace(linear_classifier(np.eye(2)), zero, right, 1.0)
