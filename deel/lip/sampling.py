"""Samples for networks of which the data has one class only.

Note [Samples outside]

A detector of one class, or a signed distance, learns where the data ends, and
for that it needs samples from outside. There, noise is cheap, and says little:
in many dimensions it is far away from all data. So noise is moved towards the
zero set of the network as it is, by steps of Newton's method along the
gradient,

    x <- x + (c - f(x)) grad f(x) / ||grad f(x)||^2,

to a level c that is drawn between the score of the noise and zero. Noise that
fell inside stays there, nearer to the border: that is what makes the border
give way where there is no data. As the network is trained, its border moves,
and so do the samples that are drawn next.

None of this has to be exact: whatever the samples are, the network keeps its
constant, and so does what follows from it.
"""

import math

import keras
import numpy as np
from keras import ops

from deel.lip._backend.differentiation import vector_jacobian
from deel.lip._backend.variables import synchronised
from deel.lip._validation import positive_int
from deel.lip.certification._data import by_rows
from deel.lip.certification._data import check_samples
from deel.lip.certification._data import check_single_score
from deel.lip.certification._data import float_type
from deel.lip.certification._data import require_finite
from deel.lip.certification._registry import check_finite

__all__ = ["OneClassDataset", "outside_samples"]


def __dir__():
    return __all__


def outside_samples(model, count, low, high, steps=5, batch_size=256, seed=0):
    """Draws samples between noise and the zero set of a score.

    Uniform noise of a box, moved along the gradient of the score to levels at
    random between its own score and zero. `OneClassDataset` does this once an
    epoch; this is for loops of your own, and to look at.

    Args:
        model: A built model with one input and one output `(batch, 1)`,
            positive inside.
        count: Integer, the number of samples.
        low: Float, or array that broadcasts to a sample: the lower corner of
            the box, which no sample leaves.
        high: The same, the upper corner.
        steps: Integer, how often samples are moved.
        batch_size: Integer, samples in a batch.
        seed: Integer, or a `numpy.random.Generator`.

    Returns:
        Array `(count, ...)` of samples, float32.

    Raises:
        ValueError: If the model is not built or has several inputs, outputs or
            scores, or weights that are not finite; if the box is empty or an
            argument out of its range.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.sampling import outside_samples
    >>> # Inside is where x is greater than 1.
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.set_weights([np.array([[1.0], [0.0]]), -np.ones(1)])
    >>> x = outside_samples(model, 50, low=-2.0, high=2.0)
    >>> x.shape, bool(np.max(x) <= 2.0)
    ((50, 2), True)
    """
    check_single_score(model, "outside_samples", "A field")
    check_finite(model)
    count = positive_int("count", count)
    low, high = _box(low, high, model.input_shape[1:])
    random = np.random.default_rng(seed)
    noise = random.uniform(low, high, (count, *low.shape)).astype("float32")
    share = random.uniform(size=count)
    steps = positive_int("steps", steps)

    def score(x):
        return model(x, training=False)

    def scores(x):
        return ops.convert_to_numpy(score(ops.convert_to_tensor(x)))[:, 0]

    def moved(rows):
        x = noise[rows]
        level = share[rows] * scores(x)
        for _ in range(steps):
            away = level - scores(x)
            x = np.clip(x + _newton(score, x, away), low, high)
        return x

    return by_rows(moved, count, batch_size)


def _newton(score, x, away):
    """A step of Newton's method, in float32.

    Args:
        score: Function of a tensor.
        x: Array of samples.
        away: Array `(samples,)`, by how much the score should grow.
    """
    slope = vector_jacobian(score, x, np.ones((len(x), 1), "float32"))
    slope = slope.reshape(len(x), -1)
    square = np.sum(np.square(slope, dtype="float64"), axis=1)
    # A score that is flat says nothing of where to go.
    length = np.where(square > 0, away / np.where(square > 0, square, 1.0), 0.0)
    return (slope * length[:, np.newaxis]).reshape(x.shape).astype("float32")


def _require_inside(x, low, high):
    """Raises ValueError for data that the noise does not surround."""
    axes = tuple(range(1, x.ndim))
    beyond = int(np.sum(np.any((x < low) | (x > high), axis=axes)))
    if beyond:
        raise ValueError(
            "All data must be in the box from `low` to `high`, where noise is "
            f"drawn. Received: {beyond} of {len(x)} samples outside of it, and "
            f"values from {np.min(x)} to {np.max(x)}"
        )


def _box(low, high, shape):
    """The corners of a box, arrays of the shape of a sample."""
    if None in shape:
        raise ValueError(
            "Noise needs the shape of a sample. Expected a model whose input "
            f"has known lengths. Received: an input of shape {shape}"
        )
    try:
        corners = [
            np.broadcast_to(np.asarray(corner, "float32"), shape)
            for corner in (low, high)
        ]
    except ValueError as error:
        raise ValueError(
            "The corners of the box must be numbers, or arrays that broadcast "
            f"to the shape {shape} of a sample. "
            f"Received: low={low}, high={high}"
        ) from error
    is_box = np.all(np.isfinite(corners)) and np.all(corners[0] < corners[1])
    if not is_box:
        raise ValueError(
            "Argument `low` must be less than `high`, and both finite. "
            f"Received: low={low}, high={high}"
        )
    return corners


class OneClassDataset(keras.utils.PyDataset):
    """Data of one class, and samples outside of it that follow the network.

    What `fit` needs to make a signed distance or a detector of a network: half
    of each batch is data, with the label 1, the other half samples of
    `outside_samples`, with the label 0, which are drawn anew at the end of each
    epoch from the network as it is by then. For `HKR` and `HingeMargin`.

    Args:
        model: The model that is trained; see `outside_samples`.
        x: Array of samples, the data.
        low: See `outside_samples`. A box that is a little larger than the data.
        high: See `outside_samples`.
        batch_size: Even integer, samples of both kinds in a batch.
        steps: See `outside_samples`.
        seed: Integer, for the order of the data and for the noise.
        **kwargs: Arguments of `keras.utils.PyDataset`.

    Attributes:
        outside: Array, the samples of this epoch, as many as there is data.

    Raises:
        ValueError: As `outside_samples`, and for data that does not fit the
            model, is empty, not finite, or not in the box.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.applications import DistanceField
    >>> from deel.lip.losses import HKR
    >>> from deel.lip.sampling import OneClassDataset
    >>> angle = np.random.default_rng(0).uniform(0.0, 6.28, 256)
    >>> on_circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    >>> model = DistanceField("S", input_shape=(2,))
    >>> model.compile("adam", HKR(alpha=10.0, min_margin=0.1))
    >>> data = OneClassDataset(model, on_circle, low=-2.0, high=2.0)
    >>> history = model.fit(data, epochs=2, verbose=0)

    Reference:
        - [Bethune et al., 2023](https://arxiv.org/abs/2303.01978), "Robust
          one-class classification with signed distance function using
          1-Lipschitz neural networks".
    """

    def __init__(
        self, model, x, low, high, batch_size=256, steps=5, seed=0, **kwargs
    ):
        super().__init__(**kwargs)
        check_single_score(model, "OneClassDataset", "A field")
        self.model = model
        self.x = float_type(x).astype("float32")
        check_samples(model, self.x)
        require_finite(self.x)
        if len(self.x) == 0:
            raise ValueError(
                f"There is no data. Received: x of shape {self.x.shape}"
            )
        if positive_int("batch_size", batch_size) % 2:
            raise ValueError(
                "Half of a batch is data. Expected an even `batch_size`. "
                f"Received: batch_size={batch_size}"
            )
        self.batch_size = int(batch_size)
        _require_inside(self.x, *_box(low, high, model.input_shape[1:]))
        self.low, self.high = low, high
        self.steps = steps
        self._random = np.random.default_rng(seed)
        self._renew()

    def _renew(self):
        """Draws new samples outside, and another order of the data."""
        self.outside = outside_samples(
            synchronised(self.model),
            len(self.x),
            self.low,
            self.high,
            self.steps,
            seed=self._random,
        )
        self._order = self._random.permutation(len(self.x))

    def __len__(self):
        return math.ceil(2 * len(self.x) / self.batch_size)

    def __getitem__(self, index):
        half = self.batch_size // 2
        # The last batch is filled up from the first one.
        rows = np.arange(index * half, (index + 1) * half) % len(self.x)
        x = np.concatenate([self.x[self._order[rows]], self.outside[rows]])
        y = np.repeat([1.0, 0.0], half)[:, np.newaxis]
        return x, y.astype("float32")

    def on_epoch_end(self):
        self._renew()
