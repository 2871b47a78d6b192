"""What the examples share: data, certificates, and an attack to test them."""

import argparse
import zipfile

import keras
import numpy as np
from keras import ops

# Certificates are lowered by this much, once in relative and once in absolute
# terms. They are proven for real numbers, but scores are float32 sums, wrong
# by about 1e-5 for images of this kind, and a constraint holds up to the
# rounding of its kernel, about 1e-6 for each layer.
SLACK = 1e-4

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


def certified_radius(scores, kernel, k_before=1.0):
    """Radius of the ball in which a prediction provably does not change.

    The scores are `f = g(x) @ kernel + bias` with g `k_before`-Lipschitz. The
    lead of class j over class i, `f_j - f_i`, depends on g through the
    difference w_j - w_i of two columns of the kernel, so it changes by at most
    `k_before * ||w_j - w_i||` for each unit that x moves. It stays positive
    while x moves by less than `(f_j - f_i) / (k_before * ||w_j - w_i||)`, and
    the smallest of these radii over all i is the certificate.

    Two unit columns are at most 2 apart, which gives the better known
    `(f_j - f_i) / 2`. The actual distance is never worse, and for columns at
    right angles it gains a factor of root two.

    Args:
        scores: Array `(samples, classes)`, outputs without activation.
        kernel: Array `(features, classes)`, the kernel of the last layer.
        k_before: Float, Lipschitz constant of the layers before the last.

    Returns:
        Array `(samples,)`, distances in the units of x, lowered by `SLACK`.
    """
    scores = np.asarray(scores, "float64")
    columns = np.asarray(kernel, "float64").T
    distances = np.linalg.norm(columns[:, np.newaxis] - columns, axis=-1)
    predicted = np.argmax(scores, axis=-1)
    lead = np.max(scores, axis=-1, keepdims=True) - scores
    lead = np.maximum((1.0 - SLACK) * lead - SLACK, 0.0)
    # Equal columns would make a lead that never changes, however small.
    slope = np.maximum(k_before * distances[predicted], np.finfo(float).tiny)
    radii = lead / slope
    radii[np.arange(len(radii)), predicted] = np.inf
    return np.min(radii, axis=-1)


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


class Attack:
    """Projected gradient descent in Euclidean balls, with restarts.

    Climbs the lead of the best other class over the label. An adversarial
    image that it finds is then pulled back on the segment to the original, for
    as long as it stays adversarial: what counts is how close it is.

    Args:
        model: Keras model without activation at the end.
        steps: Integer, number of gradient steps.
        restarts: Integer, number of runs: the first starts from the image, the
            others from random points of its ball.
        seed: Integer, for the random starts.
    """

    def __init__(self, model, steps=30, restarts=3, seed=0):
        self.model = model
        self.steps = steps
        self.restarts = restarts
        self.random = np.random.default_rng(seed)
        self.gradient = input_gradient(self._lead)

    def distances(self, x, labels, radii):
        """Distances of the closest adversarial images that were found.

        Args:
            x: Array of images with pixels in [0, 1].
            labels: Integer array, the class that each image should keep.
            radii: Sequence of radii of the balls to search, each a float or an
                array with one value for each image.

        Returns:
            Array of the length of `x`: 0 where the image itself has another
            class than its label, infinity where nothing was found.
        """
        labels = labels.astype("int32")
        closest = np.where(self._is_adversarial(x, labels), 0.0, np.inf)
        for radius in radii:
            radius = np.broadcast_to(radius, len(x)).astype("float64")
            for restart in range(self.restarts):
                start = x
                if restart:
                    start = _project(x + self._noise(x, radius), x, radius)
                found = self._climb(start, x, labels, radius)
                found = self._pull_back(found, x, labels)
                distance = np.where(
                    self._is_adversarial(found, labels),
                    _norm(found.astype("float64") - x),
                    np.inf,
                )
                closest = np.minimum(closest, distance)
        return closest

    def _lead(self, x, labels):
        """Lead of the best other class, positive for adversarial images."""
        scores = self.model(x, training=False)
        own = ops.one_hot(labels, scores.shape[-1], dtype=scores.dtype)
        others = ops.max(scores - 1e9 * own, axis=-1)
        return others - ops.sum(scores * own, axis=-1)

    def _is_adversarial(self, x, labels):
        tensors = ops.convert_to_tensor(x), ops.convert_to_tensor(labels)
        return ops.convert_to_numpy(self._lead(*tensors)) > 0

    def _noise(self, x, radius):
        """Random directions of a length up to the radius."""
        direction = self.random.normal(size=x.shape)
        length = radius * self.random.uniform(size=len(x))
        return _scaled(direction, length / _norm(direction))

    def _climb(self, start, x, labels, radius):
        """One run of the attack; its steps shrink from the radius to zero."""
        point = start
        for step in range(self.steps):
            gradient = self.gradient(point, labels).astype("float64")
            length = radius * (1.0 - step / self.steps)
            length = length / np.maximum(_norm(gradient), 1e-12)
            point = _project(point + _scaled(gradient, length), x, radius)
        return point

    def _pull_back(self, found, x, labels):
        """Bisects the segment from the image to what was found."""
        inside, outside = np.zeros(len(x)), np.ones(len(x))
        for _ in range(10):
            middle = (inside + outside) / 2
            point = _between(x, found, middle)
            adversarial = self._is_adversarial(point, labels)
            outside = np.where(adversarial, middle, outside)
            inside = np.where(adversarial, inside, middle)
        return _between(x, found, outside)


def _norm(x):
    """Euclidean norm of each sample."""
    return np.sqrt(np.sum(np.square(x), axis=tuple(range(1, x.ndim))))


def _scaled(x, factors):
    """Multiplies each sample by its factor."""
    return x * factors.reshape(-1, *[1] * (x.ndim - 1))


def _between(x, other, positions):
    return (x + _scaled(other - x, positions)).astype("float32")


def _project(point, x, radius):
    """Closest point of the ball, then of the box of valid pixels.

    In this order: `x` is in the box, so that clipping brings every pixel
    nearer to it and the result stays in the ball.
    """
    shift = point - x
    ratio = radius / np.maximum(_norm(shift), 1e-12)
    shift = _scaled(shift, np.minimum(1.0, ratio))
    return np.clip(x + shift, 0.0, 1.0).astype("float32")
