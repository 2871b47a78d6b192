"""Bounds that know in which direction an image moves."""

import math
import tracemalloc

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import normal
from image_chains import RandomChain
from image_chains import largest_norm
from image_chains import numbers

from deel.lip import layers
from deel.lip._numerics.windows import Axis
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.certification._chain import Ellipsoid
from deel.lip.certification._image_steps import on_torus
from deel.lip.certification._spectrum import Spectrum
from deel.lip.certification._spectrum import behind_convolution

# Chains of which one in some hundred tells a wrong formula.
SEEDS = 600


def chains():
    for seed in range(SEEDS):
        chain = RandomChain(seed)
        if isinstance(chain.spread, Spectrum):
            yield seed, chain


@pytest.mark.elsewhere
def test_no_pattern_of_slopes_exceeds_the_chain_of_images():
    tried = set()
    for seed, chain in chains():
        # What a convolution of one tap reads.
        rank, channels = len(chain.lengths), chain.channels
        axes = [Axis(n, 1) for n in chain.lengths]
        same = np.eye(channels).reshape(*[1] * rank, 1, channels, channels)
        behind = behind_convolution(chain.spread, on_torus(same, axes), 1e6)
        worst = largest_norm(chain.jacobians)
        assert worst <= behind.radius * (1 + 1e-9) + 1e-12, seed
        tried |= set(chain.steps)
    assert len(tried) == 6


@pytest.mark.elsewhere
def test_no_pattern_exceeds_the_chain_behind_matrices_and_means():
    for seed, chain in chains():
        kernel = numbers(chain.random, (chain.size, 3))
        flat = chain.spread.flattened()
        worst = largest_norm(kernel.T @ chain.jacobians)
        behind = flat.through_matrix(kernel, 1e6)
        assert worst <= behind.radius * (1 + 1e-9) + 1e-12, seed
        pair = kernel[:, :1] - kernel[:, 1:2]
        within, lost = flat.image(pair.T) or (np.full((1, 1), np.inf), [0.0])
        worst = largest_norm(pair.T @ chain.jacobians)
        assert worst <= np.linalg.norm(within) * (1 + 1e-9) + lost[0], seed

        count = math.prod(chain.lengths)
        shape = len(chain.jacobians), count, chain.channels, -1
        means = np.mean(chain.jacobians.reshape(shape), axis=1)
        norm = 1 / math.sqrt(count)
        behind = chain.spread.mean(norm)
        assert largest_norm(means) <= behind.radius * (1 + 1e-9) + 1e-12, seed


def test_zero_padding_is_not_forgotten():
    # A sum of five and a difference make `x[p + 5] - x[p]`, at most two, but
    # for where the image ends.
    model = keras.Sequential(
        [
            keras.Input((7, 1)),
            keras.layers.Conv1D(1, 5, padding="same", use_bias=False),
            keras.layers.Conv1D(1, 2, padding="same", use_bias=False),
        ]
    )
    model.set_weights([np.ones((5, 1, 1)), np.array([[[-1.0]], [[1.0]]])])
    x = np.eye(7, dtype="float32")[..., None]
    matrix = np.asarray(model.predict(x, verbose=0))[..., 0]
    norm = float(np.linalg.norm(matrix.astype("float64"), 2))
    assert 2.05 < norm <= lipschitz_bound(model) * (1 + 1e-6)
    behind = Ellipsoid(1.0)
    for kernel in model.get_weights():
        axes = [Axis(7, len(kernel), padding="same")]
        layer = on_torus(kernel[:, None].astype("float64"), axes)
        behind = behind_convolution(behind, layer, 1e6)
    assert norm <= behind.radius * (1 + 1e-6)


def test_largest_values_of_what_cancels_are_not_trusted():
    # The product of two convolutions is zero, but for what is lost of it.
    random = np.random.default_rng(0)
    first = random.standard_normal((6, 4))
    last = np.linalg.svd(first)[0][:, 4:] @ random.standard_normal((2, 3))
    behind = Ellipsoid(1.0)
    for kernel in (first.T, last):
        layer = on_torus(kernel[None, None], [Axis(4, 1)])
        behind = behind_convolution(behind, layer, 1e6)
    assert 0 < behind._blocks.norm < behind._blocks.error
    flat = behind.largest([1]).flattened()
    assert flat.image(np.eye(math.prod(flat.lengths) * 3)) is None


def stock(steps, shape=(12, 12, 2), seed=0):
    """A stock network with random kernels."""
    random = np.random.default_rng(seed)
    model = keras.Sequential([keras.Input(shape), *steps])
    for weight in model.weights:
        if "kernel" in weight.name:
            scale = math.sqrt(math.prod(weight.shape[:-1]))
            weight.assign(random.standard_normal(weight.shape) / scale)
        else:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    return model


def convolution(filters=4, size=3, **kwargs):
    settings = {"padding": "same", "activation": "relu", **kwargs}
    return keras.layers.Conv2D(filters, size, **settings)


SAVES = {
    "plain": lambda: [convolution() for _ in range(3)],
    "valid": lambda: [convolution(padding="valid") for _ in range(3)],
    "strides": lambda: [convolution(strides=2) for _ in range(3)],
    "dilation": lambda: [convolution(dilation_rate=2) for _ in range(3)],
    "batch statistics": lambda: [
        convolution(activation=None),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.SpatialDropout2D(0.1),
        convolution(),
    ],
    "means": lambda: [
        convolution(),
        keras.layers.AveragePooling2D(2),
        convolution(activation="leaky_relu"),
    ],
    "largest": lambda: [convolution(16), keras.layers.MaxPooling2D(2)],
    "zeros around": lambda: [
        convolution(),
        keras.layers.ZeroPadding2D(((1, 0), (0, 1))),
        convolution(padding="valid"),
        keras.layers.Cropping2D(1),
    ],
    "depthwise": lambda: [
        convolution(),
        keras.layers.DepthwiseConv2D(3, padding="same"),
        keras.layers.Activation("elu"),
        convolution(groups=2),
    ],
}


@pytest.mark.parametrize("name", SAVES)
def test_the_chain_saves_through(name):
    # The product is that of the exact norms.
    for end in (keras.layers.Flatten, keras.layers.GlobalAveragePooling2D):
        model = stock([*SAVES[name](), end(), keras.layers.Dense(4)])
        chain = lipschitz_bound(model)
        assert chain < 0.97 * lipschitz_bound(model, method="product")


@pytest.mark.elsewhere
@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks_have_a_chain(rank):
    layer = {1: keras.layers.Conv1D, 3: keras.layers.Conv3D}[rank]
    steps = [
        layer(4, 3, padding="same", activation="relu"),
        layer(4, 3, padding="same", strides=2, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]
    model = stock(steps, (12, 4, 4)[:rank] + (2,))
    product = lipschitz_bound(model, method="product")
    assert lipschitz_bound(model) < 0.9 * product


def test_circular_padding_is_the_torus_itself():
    def model(pads):
        steps = [
            layers.unconstrained.PadConv2D(
                4, 3, padding=pads, activation="relu"
            )
            for _ in range(2)
        ]
        return stock(steps, (8, 8, 2))

    circular, reflected = model("circular"), model("reflect")
    product = lipschitz_bound(circular, method="product")
    assert lipschitz_bound(circular) < 0.9 * product
    product = lipschitz_bound(reflected, method="product")
    assert_close(lipschitz_bound(reflected), product, rtol=1e-9)


def test_what_is_no_longer_an_image_falls_back_to_numbers():
    between = [
        keras.layers.Permute((2, 1, 3)),
        keras.layers.Reshape((6, 24, 2)),
        keras.layers.Activation("gelu"),
        layers.GroupSort2(),
        keras.layers.MaxPooling2D(3),
        keras.layers.MaxPooling2D(2, strides=1),
        keras.layers.AveragePooling2D(5, padding="same"),
        keras.layers.BatchNormalization(axis=1),
    ]
    for layer in between:
        model = stock([convolution(2, activation=None), layer])
        product = lipschitz_bound(model, method="product")
        assert_close(lipschitz_bound(model), product, rtol=1e-9)


def test_images_that_are_small_or_large_are_never_worse():
    for shape in [(1, 1, 3), (2, 2, 3), (3, 1, 2), (40, 3, 1)]:
        steps = [convolution(4), convolution(4), convolution(4)]
        model = stock([*steps, keras.layers.Flatten()], shape)
        product = lipschitz_bound(model, method="product")
        assert lipschitz_bound(model) <= product * (1 + 1e-9)


@pytest.mark.elsewhere
def test_what_would_take_too_much_memory_is_a_ball():
    # Means leave 16 times as many directions as channels.
    steps = [convolution(32), keras.layers.AveragePooling2D(4)]
    steps += [keras.layers.MaxPooling2D(2), convolution(4)]
    model = stock(steps, (32, 32, 3))
    product = lipschitz_bound(model, method="product")
    tracemalloc.start()
    assert lipschitz_bound(model) <= product * (1 + 1e-9)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**29


def test_kernels_of_any_size_have_a_chain():
    for scale in (1e-30, 1e30, 0.0):
        plain = stock([convolution(), convolution(), keras.layers.Flatten()])
        scaled = keras.Sequential(
            [
                keras.Input((12, 12, 2)),
                keras.layers.Rescaling(scale),
                *plain.layers,
            ]
        )
        expected = scale * lipschitz_bound(plain)
        assert lipschitz_bound(scaled) == pytest.approx(expected, rel=1e-6)


def test_radii_of_stock_convolutional_networks_grow():
    steps = [convolution(strides=2), convolution(), convolution(strides=2)]
    model = stock([*steps, keras.layers.Flatten(), keras.layers.Dense(5)])
    x = normal(20, 12, 12, 2)
    chain = certify(model, x, verbose=0)
    product = certify(model, x, verbose=0, method="product")
    assert np.all(chain.radius >= product.radius)
    assert np.median(chain.radius) > 1.5 * np.median(product.radius)
