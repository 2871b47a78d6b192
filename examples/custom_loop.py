"""What the custom training loops share: data, network, and a report.

The loops themselves are in `custom_loop_tensorflow.py`, `custom_loop_jax.py`
and `custom_loop_torch.py`, one for each backend.
"""

import argparse

import keras
import numpy as np
from common import HelpFormatter
from common import as_images
from common import load_digits

from deel.lip.activations import GroupSort2
from deel.lip.layers import SpectralDense
from deel.lip.losses import MulticlassHKR
from deel.lip.model import Sequential


def parse_arguments(argv, description, optimizers):
    """Reads the command line.

    Args:
        argv: List of strings, or None for the words of the command line.
        description: String.
        optimizers: List of strings, the optimizers to choose from.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--optimizer", choices=optimizers, default=optimizers[0]
    )
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    return parser.parse_args(argv)


def build_model():
    """A 1-Lipschitz network for the digits of scikit-learn."""
    return Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            SpectralDense(64, activation=GroupSort2()),
            SpectralDense(32, activation=GroupSort2()),
            SpectralDense(10),
        ]
    )


def build_loss():
    """The hinge and Kantorovich-Rubinstein terms, for one-hot labels."""
    return MulticlassHKR(alpha=50.0, min_margin=0.2)


def batches(x, y, size, seed):
    """Yields shuffled batches of equal sizes, as pairs of arrays."""
    order = np.random.default_rng(seed).permutation(len(x))
    for first in range(0, len(x) - size + 1, size):
        chosen = order[first : first + size]
        yield x[chosen], y[chosen]


def run(train, backend, args):
    """Trains with a loop, and prints what came out.

    Args:
        train: Generator function of a model, images, one-hot labels and
            arguments, which yields the mean loss after each epoch.
        backend: String, the backend that the loop is written for.
        args: The arguments of the command line.

    Returns:
        Integer, the exit status: 1 if the constant is not what is promised.
    """
    if keras.backend.backend() != backend:
        raise SystemExit(
            f"This loop is written for {backend}. Set KERAS_BACKEND={backend}."
        )
    keras.utils.set_random_seed(0)
    (x, y), (x_test, y_test) = load_digits()
    x, x_test = as_images(x), as_images(x_test)
    model = build_model()
    one_hot = keras.utils.to_categorical(y, 10).astype("float32")
    for epoch, loss in enumerate(train(model, x, one_hot, args), start=1):
        print(f"Epoch {epoch}: loss {loss:.4f}")
    # The loop knows nothing of constraints: this makes inference use the
    # weights of the last step instead of those of the one before.
    model.condense()
    predicted = np.argmax(model.predict(x_test, verbose=0), axis=-1)
    constant = model.lipschitz_constant()
    print(f"Accuracy: {np.mean(predicted == y_test):.4f}")
    print(f"Proven Lipschitz constant: {constant:.6f}")
    return int(constant > 1 + 1e-4)
