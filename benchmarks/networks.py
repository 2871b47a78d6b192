"""The networks that are measured, each beside its unconstrained twin."""

import dataclasses
from collections.abc import Callable
from types import ModuleType

import keras
import numpy as np
from keras import layers

from deel.lip import model as lipschitz
from deel.lip.activations import GroupSort2
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import PrescaledResidual
from deel.lip.layers import ScaledAveragePooling2D
from deel.lip.layers import ScaledGlobalAveragePooling2D
from deel.lip.layers import ScaledL2NormPooling2D
from deel.lip.layers import SpectralConv2D
from deel.lip.layers import SpectralDense
from deel.lip.losses import HKR
from deel.lip.losses import MulticlassHKR


@dataclasses.dataclass(frozen=True)
class Network:
    """A constrained network and the stock one that it is compared with.

    Attributes:
        title: What it is.
        ours: Function of a width factor and of a module with the containers
            `Sequential` and `Model`, returns the constrained network.
        stock: Function of a width factor, returns its twin: the stock Keras
            layers of the same sizes, ReLU and average pooling.
        input_shape: Shape of an input, without the batch axis.
        outputs: Integer, number of scores; 1 for two classes.
        batch_size: Integer, unless the command line says otherwise.
        width: Float, factor of the numbers of units, unless the command line
            says otherwise.
        models: Module with the containers that `training.py` measures it in:
            `deel.lip.model` or `keras`.
    """

    title: str
    ours: Callable
    stock: Callable
    input_shape: tuple
    outputs: int
    batch_size: int
    width: float = 1.0
    models: ModuleType = lipschitz


def _even(units, width):
    """A number of units that can be sorted in pairs."""
    return 2 * max(1, round(units * width / 2))


def _mnist_conv(width, models):
    units = _even(16, width)
    blocks = []
    for _ in range(2):
        blocks += [
            SpectralConv2D(units, 3, activation=GroupSort2()),
            ScaledL2NormPooling2D(),
        ]
    return models.Sequential(
        [
            keras.Input((28, 28, 1)),
            *blocks,
            layers.Flatten(),
            SpectralDense(2 * units, activation=GroupSort2()),
            FrobeniusDense(10, use_bias=False),
        ]
    )


def _mnist_conv_stock(width):
    units = _even(16, width)
    blocks = []
    for _ in range(2):
        blocks += [
            layers.Conv2D(units, 3, padding="same", activation="relu"),
            layers.AveragePooling2D(2),
        ]
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *blocks,
            layers.Flatten(),
            layers.Dense(2 * units, activation="relu"),
            layers.Dense(10, use_bias=False),
        ]
    )


def _mlp(units, outputs):
    def build(width, models):
        hidden = [
            SpectralDense(_even(n, width), activation=GroupSort2())
            for n in units
        ]
        return models.Sequential(
            [
                keras.Input((28, 28, 1)),
                layers.Flatten(),
                *hidden,
                FrobeniusDense(outputs, use_bias=False),
            ]
        )

    return build


def _mlp_stock(units, outputs):
    def build(width):
        hidden = [
            layers.Dense(_even(n, width), activation="relu") for n in units
        ]
        return keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                layers.Flatten(),
                *hidden,
                layers.Dense(outputs, use_bias=False),
            ]
        )

    return build


BLOCKS = ((128, 128, 128, 128), (256, 256, 256, 256), (512, 512, 512))


def _cifar_conv(width, models):
    inputs = x = keras.Input((32, 32, 3))
    for index, block in enumerate(BLOCKS):
        for filters in block:
            x = SpectralConv2D(
                _even(filters, width), 3, kernel_initializer="orthogonal"
            )(x)
            x = GroupSort2()(x)
        if index < len(BLOCKS) - 1:
            x = ScaledAveragePooling2D()(x)
    x = ScaledGlobalAveragePooling2D()(x)
    return models.Model(inputs, FrobeniusDense(10)(x))


def _cifar_conv_stock(width):
    inputs = x = keras.Input((32, 32, 3))
    for index, block in enumerate(BLOCKS):
        for filters in block:
            x = layers.Conv2D(
                _even(filters, width),
                3,
                padding="same",
                kernel_initializer="orthogonal",
            )(x)
            x = layers.ReLU()(x)
        if index < len(BLOCKS) - 1:
            x = layers.AveragePooling2D(2)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


RESIDUAL_BLOCKS = 24


def _residual(width, models):
    units = _even(64, width)
    inputs = x = keras.Input((32, 32, 3))
    x = SpectralConv2D(units, 3, activation=GroupSort2())(x)
    x = ScaledAveragePooling2D()(x)
    for _ in range(RESIDUAL_BLOCKS):
        branch = SpectralConv2D(units, 3, activation=GroupSort2())
        x = PrescaledResidual(branch)(x)
    x = ScaledGlobalAveragePooling2D()(x)
    return models.Model(inputs, FrobeniusDense(10)(x))


def _residual_stock(width):
    units = _even(64, width)

    def convolution():
        return layers.Conv2D(units, 3, padding="same", activation="relu")

    inputs = x = keras.Input((32, 32, 3))
    x = convolution()(x)
    x = layers.AveragePooling2D(2)(x)
    for _ in range(RESIDUAL_BLOCKS):
        x = layers.Add()([x, convolution()(x)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


NETWORKS = {
    "mnist-conv": Network(
        "MNIST, two convolutions of 16 filters",
        _mnist_conv,
        _mnist_conv_stock,
        (28, 28, 1),
        10,
        1024,
    ),
    "mnist-mlp": Network(
        "MNIST 0 against 8, MLP 784-32-16-1",
        _mlp((32, 16), 1),
        _mlp_stock((32, 16), 1),
        (28, 28, 1),
        1,
        128,
    ),
    "mlp-512": Network(
        "MLP 784-512-512-512-10",
        _mlp((512, 512, 512), 10),
        _mlp_stock((512, 512, 512), 10),
        (28, 28, 1),
        10,
        256,
    ),
    "cifar-quarter": Network(
        "CIFAR-10, eleven convolutions, a quarter of the width",
        _cifar_conv,
        _cifar_conv_stock,
        (32, 32, 3),
        10,
        128,
        0.25,
        keras,
    ),
    "cifar": Network(
        "CIFAR-10, eleven convolutions, 8.4 million weights",
        _cifar_conv,
        _cifar_conv_stock,
        (32, 32, 3),
        10,
        128,
        models=keras,
    ),
    "residual-24": Network(
        "24 equal residual blocks, convolutions of 64 channels",
        _residual,
        _residual_stock,
        (32, 32, 3),
        10,
        128,
    ),
}


def data(network, batch_size):
    """Random images and labels of one batch."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(batch_size, *network.input_shape))
    if network.outputs == 1:
        y = rng.integers(0, 2, (batch_size, 1))
    else:
        y = np.eye(network.outputs)[
            rng.integers(0, network.outputs, batch_size)
        ]
    return x.astype("float32"), y.astype("float32")


def compiled(network, ours, width, jit_compile, models=None):
    """Builds and compiles one network of a pair.

    Args:
        network: A `Network`.
        ours: Boolean, the constrained network or its twin.
        width: Float, factor of the numbers of units.
        jit_compile: Argument of `compile`; always True on JAX, where Keras
            would compute each operation by itself.
        models: Module with the containers of the constrained network; None
            means those that the network names.
    """
    if network.outputs == 1:
        losses = HKR(10.0, 2.0), keras.losses.BinaryCrossentropy(True)
    else:
        losses = (
            MulticlassHKR(100.0, 1.0),
            keras.losses.CategoricalCrossentropy(True),
        )
    if ours:
        model = network.ours(width, models or network.models)
    else:
        model = network.stock(width)
    jit_compile = jit_compile or keras.backend.backend() == "jax"
    model.compile("adam", losses[0 if ours else 1], jit_compile=jit_compile)
    return model
