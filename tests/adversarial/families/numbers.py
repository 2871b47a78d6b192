"""Convolutions, activations, and numbers at the ends of what float32 has."""

import keras
import numpy as np
from adversarial.families.base import Family
from adversarial.families.base import row
from adversarial.families.base import sequence

from deel.lip import layers
from deel.lip.certification import register_bound

stock = keras.layers


# Convolutions.


@row(slow=True)
def convolutions(random, size):
    kinds = (
        stock.Conv2D(4, 5, padding="same"),
        stock.Conv2D(4, 3, strides=2),
        stock.Conv2D(4, 3, dilation_rate=2, groups=2),
        stock.Conv2DTranspose(4, 3, strides=2, padding="same"),
        stock.DepthwiseConv2D(5, depth_multiplier=2),
        layers.unconstrained.PadConv2D(4, 3, padding="reflect"),
    )
    layer = kinds[random.integers(len(kinds))]
    return Family((12, 12, 16), sequence(layer))


@row(slow=True)
def convolutions_of_other_ranks(random, size):
    if random.random() < 0.5:
        causal = stock.Conv1D(4, 9, padding="causal", activation="relu")
        return Family((16, 32), sequence(causal, stock.Conv1D(4, 5)))
    cubes = [stock.Conv3D(2, 3)]
    # TensorFlow has no such means in float64, in which the search compares.
    if keras.backend.backend() != "tensorflow":
        cubes.append(stock.AveragePooling3D(2))
    return Family((6, 6, 6, 4), sequence(*cubes))


@row(slow=True)
def constrained(random, size):
    steps = (
        layers.SpectralConv2D(4, 3, activation=layers.MaxMin()),
        layers.ScaledL2NormPooling2D(),
        stock.Flatten(),
        layers.SpectralDense(32, activation=layers.GroupSort2()),
        layers.OrthogonalDense(16, activation=layers.FullSort()),
    )
    return Family((8, 8, 2), sequence(*steps), None, 1.0, False)


# Activations.


@row
def activations(random, size):
    names = ("softmax", "gelu", "tanh", "sigmoid", "softplus", "elu", "selu")
    names += ("mish", "silu", "log_sigmoid", "softsign", "hard_silu")
    name = names[random.integers(len(names))]
    scale = 10.0 ** random.integers(-3, 3)
    steps = [stock.Activation(name)] * int(random.integers(1, 4))
    return Family((64,), sequence(*steps), None, scale, False)


@row(slow=True)
def activations_with_weights(random, size):
    steps = [layers.Householder(), layers.LipschitzPReLU(), layers.Abs()]
    steps += [stock.PReLU(), stock.LeakyReLU(0.3)]
    kept = [steps[i] for i in random.permutation(len(steps))[:3]]
    return Family((64,), sequence(*kept), None, 1.0, False)


# Underflow and overflow.


def _scaled_identities(values, random):
    """Dense layers that multiply by numbers, by the last one from their end."""

    def weigh(model):
        for layer, value in zip(model.layers[1:-1], values, strict=True):
            layer.kernel.assign(value * np.eye(2))

    dense = [stock.Dense(2, use_bias=False) for _ in values]
    return Family((2,), sequence(*dense), weigh, 1.0, False)


@row
def rescaled_to_nothing(random, size):
    scale = float(random.choice([1.2e-38, 1.6e-38, 3e-38]))

    def weigh(model):
        model.layers[2].kernel.assign(2.0**126 * np.eye(2))
        model.layers[2].bias.assign(np.zeros(2))

    steps = stock.Rescaling(scale), stock.Dense(2)
    # What comes out is just not too small.
    body, size = sequence(*steps), 2.0**-126 / scale
    return Family((2,), body, weigh, size, spread=(1.00001, 1.001))


@row
def tiny_and_large_weights(random, size):
    powers = [2.0**-70, 2.0**-60, 2.0**65, 2.0**60]
    return _scaled_identities(powers, random)


@row
def subnormal_weights(random, size):
    return _scaled_identities([1e-39, 1e38], random)


@row
def subnormal_biases(random, size):
    def weigh(model):
        first, second = model.layers[1:3]
        first.set_weights([1e-38 * np.eye(4), random.uniform(0, 1e-38, 4)])
        second.set_weights([2.0**125 * np.eye(4), np.zeros(4)])

    steps = stock.Dense(4), stock.Dense(4)
    return Family((4,), sequence(*steps), weigh, 0.1, False)


@row
def tiny_inputs(random, size):
    def weigh(model):
        model.layers[1].kernel.assign(2.0**100 * np.eye(4))
        model.layers[1].bias.assign(np.zeros(4))

    scale = float(random.choice([1e-38, 1e-39, 1e-37]))
    body = sequence(stock.Dense(4))
    return Family((4,), body, weigh, scale, False)


@row
def squares_that_vanish(random, size):
    def weigh(model):
        model.layers[-2].kernel.assign(np.full((1, 1), 1e18))
        model.layers[-2].bias.assign(np.zeros(1))

    pools = (
        layers.ScaledGlobalL2NormPooling2D(eps_grad_sqrt=0.0),
        layers.ScaledL2NormPooling2D(4, eps_grad_sqrt=0.0),
    )
    steps = [pools[random.integers(2)], stock.Flatten()]
    steps.append(stock.Dense(1))
    body, spread = sequence(*steps), (1.00001, 1.001)
    return Family((4, 4, 1), body, weigh, 2.0**-63, spread=spread)


@row
def sums_beyond_the_largest_number(random, size):
    pools = (
        stock.GlobalAveragePooling2D(),
        layers.ScaledGlobalAveragePooling2D(),
        stock.AveragePooling2D(16),
        layers.LayerCentering(),
        layers.ScaledAveragePooling2D(16),
    )
    pool = pools[random.integers(len(pools))]
    return Family((16, 16, 1), sequence(pool), None, 5e35)


@row
def large_inputs_and_weights(random, size):
    def weigh(model):
        model.layers[1].kernel.assign(
            2.0**100 * random.uniform(0.5, 1, (16, 4))
        )

    body = sequence(stock.Dense(4))
    return Family((16,), body, weigh, 10.0 ** random.integers(0, 7))


# Layers of users.


@keras.saving.register_keras_serializable("deel.lip.tests.adversarial")
class Reversed(keras.layers.Layer):
    """A layer of a user: sums from the other end."""

    def call(self, x):
        return keras.ops.cumsum(x, axis=-1) / x.shape[-1]


# The sums of n values, divided by n, have a norm of at most one.
register_bound(Reversed, lambda layer, input_shapes: 1.0)


@row
def registered(random, size):
    return Family((256,), sequence(Reversed()))
