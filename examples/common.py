"""What the examples share: data, and derivatives."""

import argparse
import zipfile

import keras
import numpy as np
from keras import ops

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path):
    """Reads a data set from a file; the type of an argparse argument.

    Args:
        path: String, an `.npz` file with the arrays `x_train`, `y_train`,
            `x_test` and `y_test`.

    Returns:
        The pairs `(x_train, y_train), (x_test, y_test)`, as `keras.datasets`
        returns them.

    Raises:
        argparse.ArgumentTypeError: If there is no such data in the file.
    """
    # Also False where there is no such file.
    if not zipfile.is_zipfile(path):
        raise argparse.ArgumentTypeError(f"there is no .npz file '{path}'")
    with np.load(path) as file:
        missing = [name for name in ARRAYS if name not in file.files]
        if missing:
            raise argparse.ArgumentTypeError(
                f"'{path}' lacks {', '.join(missing)}; expected the arrays "
                f"{', '.join(ARRAYS)}"
            )
        x_train, y_train, x_test, y_test = (file[name] for name in ARRAYS)
    return (x_train, y_train), (x_test, y_test)


def add_data_argument(parser):
    """Adds `--data`, for machines that cannot download."""
    parser.add_argument(
        "--data",
        type=read_npz,
        metavar="FILE.npz",
        help="local file with the arrays x_train, y_train, x_test, y_test; "
        "without it the data set is downloaded",
    )


def download(name):
    """Loads a data set of `keras.datasets`, or says what to do instead.

    Args:
        name: String, such as `"mnist"`.

    Returns:
        The pairs `(x_train, y_train), (x_test, y_test)`.
    """
    try:
        return getattr(keras.datasets, name).load_data()
    # Keras raises a plain `Exception` where a download fails.
    except Exception as error:
        raise SystemExit(
            f"{name} could not be downloaded ({error}). Name a local file "
            "with --data."
        ) from error


def as_images(x):
    """Returns pixels as float32 in [0, 1], with an axis for the channels.

    Args:
        x: Array `(samples, height, width)` or with channels last; integers
            between 0 and 255, or floats between 0 and 1.
    """
    if np.issubdtype(x.dtype, np.integer):
        x = x / 255.0
    if x.ndim == 3:
        x = x[..., np.newaxis]
    return x.astype("float32")


def largest_difference(model, other, x):
    """Largest distance between the outputs of two models, a float."""
    outputs = model.predict(x, verbose=0) - other.predict(x, verbose=0)
    return float(np.max(np.abs(outputs)))


def accuracy_beyond(radii, correct, distances):
    """Share of samples that are right and stay so within each radius.

    Args:
        radii: Sequence of floats.
        correct: Boolean array `(samples,)`.
        distances: Array `(samples,)`, how far each prediction holds: certified
            radii give a lower bound of the robust accuracy, distances of
            adversarial images an upper bound.

    Returns:
        Array of the length of `radii`.
    """
    return np.array([np.mean(correct & (distances > r)) for r in radii])


def input_gradient(function):
    """Differentiates with respect to the input, on any Keras backend.

    Args:
        function: Takes tensors, the images first, and returns one value for
            each image.

    Returns:
        A function of the same arguments, as NumPy arrays, that returns the
        gradient of each value with respect to its image.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def gradient(x, *others):
            with tf.GradientTape() as tape:
                tape.watch(x)
                values = function(x, *others)
            return tape.gradient(values, x)

    elif backend == "jax":
        import jax

        gradient = jax.jit(
            jax.grad(lambda x, *others: function(x, *others).sum())
        )

    elif backend == "torch":
        import torch

        def gradient(x, *others):
            x = x.requires_grad_()
            return torch.autograd.grad(function(x, *others).sum(), x)[0]

    else:
        raise ValueError(
            "Expected the backend tensorflow, jax or torch. "
            f"Received: backend={backend}"
        )

    def on_arrays(*arrays):
        tensors = [ops.convert_to_tensor(array) for array in arrays]
        return ops.convert_to_numpy(gradient(*tensors))

    return on_arrays


def two_classes(samples, features=32):
    """Noisy samples around two points, one of them rare.

    Args:
        samples: Integer.
        features: Integer.

    Returns:
        Arrays `(samples, features)` and `(samples, 1)`, float32.
    """
    random = np.random.default_rng(0)
    labels = random.random(samples) < 0.2
    centres = random.normal(size=(2, features))
    x = centres[labels.astype(int)] + random.normal(size=(samples, features))
    return x.astype("float32"), labels[:, None].astype("float32")
