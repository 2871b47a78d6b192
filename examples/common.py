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


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds defaults to the help of arguments, where there are any."""

    def _get_help_string(self, action):
        if action.default is None or action.required:
            return action.help
        return super()._get_help_string(action)


def add_dataset_argument(parser):
    """Adds `--dataset`, one of those that `load_data` knows."""
    parser.add_argument(
        "--dataset",
        choices=("digits", "mnist", "fashion_mnist", "cifar10"),
        default="digits",
        help="digits come with scikit-learn, the others are downloaded",
    )


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


def load_digits():
    """The 1,797 digits of scikit-learn, 8x8 pixels, one fifth for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.images / 16.0,
        digits.target,
        test_size=0.2,
        random_state=0,
        stratify=digits.target,
    )
    return (x_train, y_train), (x_test, y_test)


def load_data(args):
    """Images in [0, 1] and class numbers, for training and for testing."""
    if args.data is not None:
        train, test = args.data
    elif args.dataset == "digits":
        train, test = load_digits()
    else:
        train, test = download(args.dataset)
    limit = slice(args.limit)
    return (
        (as_images(train[0][limit]), train[1][limit].ravel().astype("int64")),
        (as_images(test[0]), test[1].ravel().astype("int64")),
    )


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


class Augmented(keras.utils.PyDataset):
    """Batches of images that are changed anew each time, in a new order.

    What is left over in an epoch is dropped.

    Args:
        x: Images.
        y: Their labels.
        batch_size: Integer.
        changes: List of Keras layers, such as `keras.layers.RandomFlip`.
        seed: Integer, for the order.
    """

    def __init__(self, x, y, batch_size, changes, seed=0):
        super().__init__()
        if batch_size > len(x):
            raise ValueError(
                "A batch needs that many images. Expected at most "
                f"{len(x)}. Received: batch_size={batch_size}"
            )
        self.x, self.y, self.batch_size = x, y, batch_size
        self.random = np.random.default_rng(seed)
        self.order = self.random.permutation(len(x))
        self.change = keras.Sequential(changes) if changes else None

    def __len__(self):
        return len(self.x) // self.batch_size

    def __getitem__(self, index):
        start = index * self.batch_size
        rows = self.order[start : start + self.batch_size]
        images = self.x[rows]
        if self.change is not None:
            images = self.change(images, training=True)
        return self.finished(ops.convert_to_numpy(images)), self.y[rows]

    def on_epoch_end(self):
        self.order = self.random.permutation(len(self.x))

    def finished(self, images):
        """What the network takes of the changed images."""
        return images


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
