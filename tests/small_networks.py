"""Small models that several files of tests train, certify or save."""

import keras
import numpy as np
from harness import JIT

from deel.lip import layers
from deel.lip import losses
from deel.lip.model import Sequential


def stack(*inner, shape=(4,), container=keras.Sequential, **arguments):
    """A model of layers on inputs of a shape; stock Keras if not told."""
    return container([keras.Input(shape), *inner], **arguments)


def linear_classifier(kernel, bias=None, shape=None):
    """A stock model of one dense layer, of which everything is known.

    Args:
        kernel: Array `(inputs, classes)`.
        bias: Array, zeros by default.
        shape: Shape of an input, which is flattened if it has several axes.
    """
    kernel = np.asarray(kernel)
    shape = kernel.shape[:1] if shape is None else shape
    flat = [keras.layers.Flatten()] if len(shape) > 1 else []
    model = stack(*flat, keras.layers.Dense(kernel.shape[1]), shape=shape)
    bias = np.zeros(kernel.shape[1]) if bias is None else bias
    model.set_weights([kernel, bias])
    return model


def image_classifier(container=Sequential, classes=3, pooled=True):
    """A convolution, norms of windows, two dense layers, on 6 x 6 pixels."""
    pool = [layers.ScaledL2NormPooling2D()] if pooled else []
    return stack(
        layers.SpectralConv2D(4, 3, activation=layers.GroupSort2()),
        *pool,
        keras.layers.Flatten(),
        layers.SpectralDense(8, activation=layers.GroupSort2()),
        layers.FrobeniusDense(classes, disjoint_neurons=False),
        shape=(6, 6, 1),
        container=container,
    )


def certified_classifier():
    """A network of four scores, each 1-Lipschitz, with kernels far apart."""
    keras.utils.set_random_seed(0)
    model = stack(
        layers.SpectralConv2D(4, 3, activation=layers.GroupSort2()),
        keras.layers.Flatten(),
        layers.SpectralDense(16, activation=layers.GroupSort2()),
        layers.FrobeniusDense(4),
        shape=(6, 6, 1),
        container=Sequential,
    )
    last = model.layers[-1]
    last.kernel.assign(np.random.default_rng(0).standard_normal((16, 4)))
    last.condense()
    last.bias.assign(np.array([0.1, 0.0, -0.1, 0.0]))
    return model


def samples(count=40, seed=0):
    """Inputs of the networks above."""
    random = np.random.default_rng(seed)
    return random.uniform(size=(count, 6, 6, 1)).astype("float32")


def small_model(k_coef_lip=1.0):
    """Four layers that share a constant, on 6 x 6 pixels, with five scores."""
    return stack(
        layers.SpectralConv2D(4, 3),
        layers.GroupSort2(),
        layers.ScaledAveragePooling2D(),
        keras.layers.Flatten(),
        layers.SpectralDense(5),
        shape=(6, 6, 1),
        container=Sequential,
        k_coef_lip=k_coef_lip,
    )


def train(model, steps=3):
    """Trains for some steps with a loss of ours; returns the inputs."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8 * steps, *model.input_shape[1:]))
    y = np.eye(model.output_shape[-1])[np.arange(len(x)) % 3]
    loss = losses.MulticlassHKR(10.0)
    metrics = [losses.MulticlassKR()]
    model.compile("adam", loss, metrics=metrics, jit_compile=JIT)
    model.fit(x, y, batch_size=8, verbose=0)
    return x


# For two channels: columns of different lengths, at different distances.
KERNEL = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, -1.0]])


def by_channels(kernel, positions, last=None):
    """A stock model of one product with the channels of each position."""
    inputs, classes = kernel.shape
    last = keras.layers.Dense(classes) if last is None else last
    model = stack(last, shape=(*positions, inputs))
    taps = (1,) * (len(last.kernel.shape) - 2)
    last.set_weights([kernel.reshape(*taps, *kernel.shape), np.zeros(classes)])
    return model


def pixels(samples, positions, channels=2, seed=0):
    """Inputs of `by_channels`."""
    random = np.random.default_rng(seed)
    return random.normal(size=(samples, *positions, channels))
