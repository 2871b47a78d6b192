"""Attacks that look for what certificates exclude."""

import numpy as np
from keras import ops

from deel.lip._backend.differentiation import compiled
from deel.lip._validation import positive_int
from deel.lip.certification._data import check_classifier
from deel.lip.certification._data import check_samples
from deel.lip.certification._data import checked_epsilons
from deel.lip.certification._data import checked_labels
from deel.lip.certification._data import share_beyond


def attack_accuracy(
    model,
    x,
    y,
    epsilons,
    steps=30,
    restarts=3,
    bounds=None,
    batch_size=256,
    seed=0,
):
    """Accuracy under attack within each radius, an upper bound.

    The attack is that of `attack_distances`. The accuracy under the best attack
    there is lies between `certified_accuracy` and this.

    Args:
        model: See `attack_distances`.
        x: See `attack_distances`.
        y: See `attack_distances`.
        epsilons: Float or sequence of floats, zero or greater.
        steps: See `attack_distances`.
        restarts: See `attack_distances`.
        bounds: See `attack_distances`.
        batch_size: See `attack_distances`.
        seed: See `attack_distances`.

    Returns:
        Array with a value for each radius.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import attack_accuracy
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(2, use_bias=False)]
    ... )
    >>> model.set_weights([np.eye(2)])
    >>> x, y = np.array([[3.0, 1.0], [0.0, 1.0]]), np.array([0, 1])
    >>> [float(a) for a in attack_accuracy(model, x, y, [0.5, 1.0])]
    [1.0, 0.5]
    """
    radii = checked_epsilons(epsilons)
    distances = attack_distances(
        model, x, y, radii, steps, restarts, bounds, batch_size, seed
    )
    return share_beyond(radii, distances > 0, distances)


def attack_distances(
    model,
    x,
    y,
    radii,
    steps=30,
    restarts=3,
    bounds=None,
    batch_size=256,
    seed=0,
):
    """Distances of the closest adversarial samples that an attack finds.

    Projected gradient descent in Euclidean balls, with restarts: it climbs the
    lead of the best other class over the label. What it finds is then pulled
    back on the segment to the sample, for as long as it stays adversarial. It
    runs on every backend and gives the same result for the same seed.

    Args:
        model: A built model with scores `(batch, classes)`, or `(batch, 1)`.
        x: Array of samples.
        y: Array of labels, as of `certify`: what each sample should stay.
        radii: Sequence of radii of the balls to search, each a float or an
            array with one value for each sample.
        steps: Integer, number of gradient steps in a ball.
        restarts: Integer, number of runs in a ball: the first starts from the
            sample, the others from random points.
        bounds: None, or a pair of the least and largest value that an input
            may have.
        batch_size: Integer, samples in a batch.
        seed: Integer, for the random starts.

    Returns:
        Array `(samples,)`: 0 where the sample itself has another class than
        its label, infinity where nothing was found.

    Raises:
        ValueError: If the model is not built or has several inputs or outputs,
            for empty data or labels out of range, or if samples are out of the
            bounds.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import attack_distances
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(2, use_bias=False)]
    ... )
    >>> model.set_weights([np.eye(2)])
    >>> x, y = np.array([[3.0, 1.0]]), np.array([0])
    >>> [round(float(d), 1) for d in attack_distances(model, x, y, [1.5])]
    [1.4]
    """
    check_classifier(model, "attack_distances")
    x = np.asarray(ops.convert_to_numpy(x)).astype("float32")
    check_samples(model, x)
    if len(x) == 0 or len(y) != len(x):
        raise ValueError(
            "An attack needs samples, each with one label. "
            f"Received: {len(x)} samples and {len(y)} labels"
        )
    if bounds is not None and (x.min() < bounds[0] or x.max() > bounds[1]):
        raise ValueError(
            "Samples must be within the bounds. Received: "
            f"bounds={bounds}, samples from {x.min()} to {x.max()}"
        )
    labels = checked_labels(y, model.output_shape[-1])
    radii = np.stack([np.broadcast_to(radius, len(x)) for radius in radii])
    checked_epsilons(radii.ravel())
    attack = _Attack(
        model,
        positive_int("steps", steps),
        positive_int("restarts", restarts),
        bounds,
        np.random.default_rng(seed),
    )
    batch_size = min(positive_int("batch_size", batch_size), len(x))
    found = []
    for first in range(0, len(x), batch_size):
        part = slice(first, first + batch_size)
        missing = batch_size - len(x[part])
        # All batches have one shape, for which the gradient is compiled once.
        rows = np.arange(first, first + batch_size) % len(x)
        distances = attack.distances(x[rows], labels[rows], radii[:, rows])
        found.append(distances[: batch_size - missing])
    return np.concatenate(found)


class _Attack:
    """The attack on one batch."""

    def __init__(self, model, steps, restarts, bounds, random):
        self.model = model
        self.steps = steps
        self.restarts = restarts
        self.bounds = bounds
        self.random = random
        self.lead, self.gradient = compiled(self._lead)

    def distances(self, x, labels, radii):
        labels = labels.astype("int32")
        closest = np.where(self._is_adversarial(x, labels), 0.0, np.inf)
        for radius in radii.astype("float64"):
            if not np.any(radius):
                continue
            for restart in range(self.restarts):
                start = x
                if restart:
                    noise = self._noise(x, radius)
                    start = self._project(x + noise, x, radius)
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
        """Lead of the best other class, positive for adversarial samples."""
        scores = self.model(x, training=False)
        if scores.shape[-1] == 1:
            sign = ops.cast(1 - 2 * labels, scores.dtype)
            return sign * scores[:, 0]
        own = ops.one_hot(labels, scores.shape[-1], dtype=scores.dtype)
        others = ops.max(scores - 1e9 * own, axis=-1)
        return others - ops.sum(scores * own, axis=-1)

    def _is_adversarial(self, x, labels):
        return self.lead(x, labels) > 0

    def _noise(self, x, radius):
        """Random directions of a length up to the radius."""
        direction = self.random.normal(size=x.shape)
        length = radius * self.random.uniform(size=len(x))
        return _scaled(direction, length / _norm(direction))

    def _climb(self, start, x, labels, radius):
        """One run of the attack; its steps shrink from the radius to zero."""
        point = start
        for step in range(self.steps):
            slope = self.gradient(point, labels).astype("float64")
            length = radius * (1.0 - step / self.steps)
            length = length / np.maximum(_norm(slope), 1e-12)
            point = self._project(point + _scaled(slope, length), x, radius)
        return point

    def _pull_back(self, found, x, labels):
        """Bisects the segment from the sample to what was found."""
        inside, outside = np.zeros(len(x)), np.ones(len(x))
        for _ in range(10):
            middle = (inside + outside) / 2
            adversarial = self._is_adversarial(
                _between(x, found, middle), labels
            )
            outside = np.where(adversarial, middle, outside)
            inside = np.where(adversarial, inside, middle)
        return _between(x, found, outside)

    def _project(self, point, x, radius):
        """Closest point of the ball, then of the box of valid values.

        In this order: `x` is in the box, so that clipping brings every value
        nearer to it and the result stays in the ball.
        """
        shift = point - x
        ratio = radius / np.maximum(_norm(shift), 1e-12)
        point = x + _scaled(shift, np.minimum(1.0, ratio))
        if self.bounds is not None:
            point = np.clip(point, *self.bounds)
        return point.astype("float32")


def _norm(x):
    """Euclidean norm of each sample."""
    return np.sqrt(np.sum(np.square(x), axis=tuple(range(1, x.ndim))))


def _scaled(x, factors):
    """Multiplies each sample by its factor."""
    return x * factors.reshape(-1, *[1] * (x.ndim - 1))


def _between(x, other, positions):
    return (x + _scaled(other - x, positions)).astype("float32")
