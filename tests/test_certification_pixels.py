"""Attacks spoil no more pixels at once than certificates allow."""

import dataclasses

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from small_networks import KERNEL
from small_networks import by_channels
from small_networks import pixels
from small_networks import stack

from deel.lip.certification import certify_pixels
from deel.lip.certification import lipschitz_bound


def exact_radii(scores, kernel):
    """Distances of each pixel to another class, where scores are `x @ kernel`.

    Returns:
        Pair of the distances, and the shortest moves that get there.
    """
    best = np.argmax(scores, axis=-1)
    leads = np.max(scores, axis=-1, keepdims=True) - scores
    ways = kernel.T[None] - kernel.T[:, None]
    lengths = np.linalg.norm(ways, axis=-1)[best]
    radii = np.where(lengths > 0, leads / np.maximum(lengths, 1e-9), np.inf)
    other = np.argmin(radii, axis=-1)
    way = ways[best, other]
    way /= np.linalg.norm(way, axis=-1, keepdims=True)
    return np.min(radii, axis=-1), way


def test_what_an_attack_of_a_linear_map_can_spoil_is_exactly_what_is_counted():
    x = pixels(3, (4, 5))
    scores = x @ KERNEL
    radii, ways = exact_radii(scores, KERNEL)
    y = np.argmax(scores, axis=-1)
    certificates = certify_pixels(by_channels(KERNEL, (4, 5)), x, y)
    assert_close(certificates.radius, radii, rtol=1e-6)
    assert np.all(certificates.radius <= radii * (1 + 1e-9))
    for image, way, radius, label, i in zip(
        x, ways, radii, y, range(3), strict=True
    ):
        order = np.argsort(radius.ravel())
        for count in (1, 4, 19):
            # The cheapest pixels, each moved just beyond its boundary.
            chosen = np.isin(np.arange(20), order[:count]).reshape(4, 5, 1)
            move = chosen * way * radius[..., None] * (1 + 1e-6)
            moved = np.argmax((image + move) @ KERNEL, axis=-1)
            assert np.sum(moved != label) == count
            length = np.linalg.norm(move)
            least = np.linalg.norm(radius.ravel()[order[:count]])
            found = certificates.certified_accuracy(
                [length, least * (1 - 1e-6)], by_sample=True
            )[:, i]
            assert_close(found * 20, [20 - count, 21 - count], rtol=1e-9)


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    ("positions", "last"),
    [
        ((4, 5), lambda: keras.layers.Conv2D(3, 1, padding="same")),
        ((2, 2, 5), lambda: keras.layers.Conv3D(3, 1)),
        ((2, 2, 5), lambda: keras.layers.Dense(3)),
    ],
    ids=["image", "volume", "dense"],
)
def test_positions_of_any_rank_and_any_last_layer_of_channels(positions, last):
    x = pixels(2, (20,))
    expected = certify_pixels(by_channels(KERNEL, (20,)), x)
    model = by_channels(KERNEL, positions, last())
    found = certify_pixels(model, x.reshape(2, *positions, 2))
    assert found.radius.shape == (2, *positions)
    assert_close(found.radius.reshape(2, 20), expected.radius, rtol=1e-9)
    assert_equal(found.prediction.reshape(2, 20), expected.prediction)


@pytest.mark.elsewhere
def test_one_score_for_each_pixel_is_certified_by_its_sign():
    kernel = np.array([[3.0], [4.0]])
    x = pixels(2, (4, 5))
    scores = (x @ kernel)[..., 0]
    y = np.where(scores > 0, 1, -1)
    found = certify_pixels(by_channels(kernel, (4, 5)), x, y)
    assert_close(found.radius, np.abs(scores) / 5, rtol=1e-6)
    assert found.accuracy == 1.0
    assert_equal(found.label, y > 0)
    order = np.sort(np.abs(scores[0]).ravel() / 5)
    length = np.linalg.norm(order[:3])
    shares = found.certified_accuracy(
        length * np.array([1 - 1e-6, 1 + 1e-6]), by_sample=True
    )
    assert_close(shares[:, 0] * 20, [18, 17], rtol=1e-9)


# A ReLU network of whole images, in Keras and by hand.
POSITIONS, CHANNELS, CLASSES = (3, 4), 3, 4
SIZE = 12 * CHANNELS
BIAS = 2.0


def mixing_network(seed=0, last=True):
    """A model in which each pixel depends on all others, and its weights."""
    random = np.random.default_rng(seed)
    # Rotations, and a bias that keeps most units active: attacks come close.
    first, second = np.linalg.qr(random.normal(size=(2, SIZE, SIZE)))[0]
    kernel = random.normal(size=(CHANNELS, CLASSES))
    end = [keras.layers.Dense(CLASSES)]
    if not last:
        # The same function, of which less is known.
        end += [keras.layers.Activation("linear")]
    model = stack(
        keras.layers.Flatten(),
        keras.layers.Dense(SIZE, activation="relu"),
        keras.layers.Dense(SIZE),
        keras.layers.Reshape((*POSITIONS, CHANNELS)),
        *end,
        shape=(*POSITIONS, CHANNELS),
    )
    bias = np.full(SIZE, BIAS)
    weights = [first, bias, second, -bias @ second, kernel]
    model.set_weights([*weights, np.zeros(CLASSES)])
    # What float32 made of them.
    used = [np.asarray(w, "float64") for w in model.get_weights()]
    return model, (used[0], used[2], used[3], used[4])


def scores_of(weights, x):
    first, second, bias, last = weights
    hidden = np.maximum(x.reshape(len(x), -1) @ first + BIAS, 0.0)
    return (hidden @ second + bias).reshape(len(x), 12, CHANNELS) @ last


def attacked(weights, x, label, target, count, epsilon, steps=60):
    """Moves samples so that as many pixels as possible lose their label.

    Gradient descent on the leads of `label` over `target` of the `count` pixels
    that have the smallest ones at each step.

    Returns:
        The most pixels that were lost at any step, one number for each sample.
    """
    first, second, bias, last = weights
    ways = last.T[target] - last.T[label]
    move = np.zeros((len(x), SIZE))
    flat = x.reshape(len(x), -1)
    most = np.zeros(len(x), int)
    for _ in range(steps):
        before = (flat + move) @ first + BIAS
        features = np.maximum(before, 0.0) @ second + bias
        scores = features.reshape(len(x), 12, CHANNELS) @ last
        lost = np.argmax(scores, axis=-1) != label
        most = np.maximum(most, lost.sum(axis=1))
        leads = -np.sum(features.reshape(len(x), 12, CHANNELS) * ways, axis=-1)
        order = np.argsort(np.argsort(leads, axis=1), axis=1)
        # Those that are lost by far need no more.
        chosen = (order < count) & (leads > -1e-3)
        gradient = (chosen[..., None] * ways).reshape(len(x), SIZE)
        gradient = ((gradient @ second.T) * (before > 0)) @ first.T
        size = np.linalg.norm(gradient, axis=1, keepdims=True)
        move = move + 0.1 * epsilon * gradient / np.maximum(size, 1e-12)
        length = np.linalg.norm(move, axis=1, keepdims=True)
        move *= np.minimum(1.0, epsilon / np.maximum(length, 1e-12))
    return most


def test_attacks_of_many_pixels_spoil_no_more_than_is_counted():
    model, weights = mixing_network()
    x = pixels(10, POSITIONS, CHANNELS)
    y = np.argmax(scores_of(weights, x), axis=-1)
    certificates = certify_pixels(model, x, y.reshape(10, *POSITIONS))
    assert certificates.accuracy == 1.0
    scores = scores_of(weights, x)
    runner_up = np.argsort(scores, axis=-1)[..., -2]
    # They come so close that radii of twice the size would be found out.
    doubled = dataclasses.replace(
        certificates,
        radius=2 * certificates.radius,
        joint_radius=2 * certificates.joint_radius,
    )
    is_broken = False
    for epsilon in np.median(certificates.radius) * np.array([0.5, 1.0, 3.0]):
        allowed, of_doubled = (
            np.round(12 - 12 * z.certified_accuracy(epsilon, by_sample=True)[0])
            for z in (certificates, doubled)
        )
        for count in (1, 2, 4, 8, 12):
            found = attacked(weights, x, y, runner_up, count, epsilon)
            assert np.all(found <= allowed)
            is_broken |= np.any(found > of_doubled)
    assert is_broken


@pytest.mark.elsewhere
def test_attacks_of_one_pixel_break_no_radius():
    model, weights = mixing_network()
    x = pixels(10, POSITIONS, CHANNELS)
    scores = scores_of(weights, x)
    y = np.argmax(scores, axis=-1)
    runner_up = np.argsort(scores, axis=-1)[..., -2]
    radius = certify_pixels(model, x).radius.reshape(10, 12)
    least = np.min(radius, axis=1)[:, None]
    assert np.all(attacked(weights, x, y, runner_up, 1, least) == 0)
    assert np.any(attacked(weights, x, y, runner_up, 1, 8 * least) > 0)


@pytest.mark.elsewhere
def test_last_layer_of_channels_is_never_worse_than_the_whole_map():
    x = pixels(10, POSITIONS, CHANNELS)
    (known, weights), (whole, _) = mixing_network(), mixing_network(last=False)
    y = np.argmax(scores_of(weights, x), axis=-1).reshape(10, *POSITIONS)
    known, whole = (certify_pixels(model, x, y) for model in (known, whole))
    assert np.all(known.radius >= whole.radius * (1 - 1e-6))
    assert np.mean(known.radius) > 1.1 * np.mean(whole.radius)
    epsilons = np.median(known.radius) * np.array([0.5, 1.0, 2.0, 5.0])
    found, least = (z.certified_accuracy(epsilons) for z in (known, whole))
    assert np.all(found >= least)
    assert np.any(found > least)
    # Leads of sqrt(2) times the constant of all scores.
    by_hand = whole.margin / (np.sqrt(2) * whole.lipschitz_constant)
    assert_close(whole.radius, by_hand, rtol=1e-6)


def test_float32_certifies_no_more_than_real_numbers():
    model, weights = mixing_network()
    x = pixels(10, POSITIONS, CHANNELS)
    y = np.argmax(scores_of(weights, x), axis=-1).reshape(10, *POSITIONS)
    exact, float32 = (
        certify_pixels(model, x, y, rounding=r) for r in ("exact", "float32")
    )
    assert_equal(float32.radius, exact.float32_radius)
    assert np.all(float32.radius <= exact.radius)
    assert np.all(float32.joint_excess > 0)
    assert np.all(exact.joint_excess == 0)
    assert np.median(float32.radius) > 0.99 * np.median(exact.radius)
    epsilons = np.median(exact.radius) * np.linspace(0.0, 6.0, 30)
    kept = [z.certified_accuracy(epsilons) for z in (exact, float32)]
    assert np.all(kept[1] <= kept[0])
    for certificates in (exact, float32):
        alone = certificates.certified_accuracy(epsilons, jointly=False)
        assert np.all(alone <= certificates.certified_accuracy(epsilons))


@pytest.mark.elsewhere
def test_constant_of_each_output_of_a_last_convolution_is_that_of_its_column():
    model = by_channels(KERNEL, (4, 5), keras.layers.Conv2D(3, 1))
    by_output = lipschitz_bound(model, by_output=True)
    assert_close(by_output, 2.0, rtol=1e-6)
    assert by_output < lipschitz_bound(model)
    # What reads several pixels, or groups of channels, is no such layer.
    for last in (
        keras.layers.Conv2D(4, (1, 2)),
        keras.layers.Conv2D(4, 1, groups=2),
    ):
        model = stack(last, shape=(4, 5, 2))
        whole = lipschitz_bound(model)
        assert lipschitz_bound(model, by_output=True) == whole
