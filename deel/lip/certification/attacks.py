"""Attacks that look for what certificates exclude."""

import numpy as np
from keras import ops

from deel.lip._backend.differentiation import compiled
from deel.lip._validation import positive_int
from deel.lip.certification._data import by_rows
from deel.lip.certification._data import check_classifier
from deel.lip.certification._data import check_model
from deel.lip.certification._data import check_samples
from deel.lip.certification._data import checked_epsilons
from deel.lip.certification._data import checked_labels
from deel.lip.certification._data import require_finite
from deel.lip.certification._data import share_beyond
from deel.lip.certification._registry import check_finite


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
    x, labels = _checked(model, x, y, bounds)
    radii = np.stack([np.broadcast_to(radius, len(x)) for radius in radii])
    checked_epsilons(radii.ravel())
    attack = _Attack(model, _lead, steps, restarts, bounds, seed)

    def distances(rows):
        return attack.distances(x[rows], labels[rows], radii[:, rows])

    return by_rows(distances, len(x), batch_size)


def attack_scores(
    model,
    x,
    y,
    radius,
    steps=30,
    restarts=3,
    bounds=None,
    batch_size=256,
    seed=0,
):
    """Samples that an attack has moved, so that their label has a low score.

    Projected gradient descent as in `attack_distances`, but of the score of the
    label alone, whatever the others do. It is the attack on sets that need a
    certain score (`ConformalClassifier`), and on detectors
    (`certified_auroc`): a single score becomes small for samples of label 1,
    and large for the others.

    Args:
        model: A built model with scores `(batch, classes)`, or `(batch, 1)`.
        x: See `attack_distances`.
        y: See `attack_distances`.
        radius: Float or array with one value for each sample, how far it may be
            moved.
        steps: See `attack_distances`.
        restarts: See `attack_distances`.
        bounds: See `attack_distances`.
        batch_size: See `attack_distances`.
        seed: See `attack_distances`.

    Returns:
        Array of the shape of `x`, of float32. No sample is further from its own
        than the radius.

    Raises:
        ValueError: See `attack_distances`.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import attack_scores
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(2, use_bias=False)]
    ... )
    >>> model.set_weights([np.eye(2)])
    >>> x, y = np.array([[3.0, 1.0]]), np.array([0])
    >>> moved = attack_scores(model, x, y, 0.5)
    >>> [round(float(v), 3) for v in moved[0]]
    [2.5, 1.0]
    """
    check_model(model, "attack_scores")
    x, labels = _checked(model, x, y, bounds)
    radii = np.broadcast_to(np.asarray(radius, "float64"), len(x))
    checked_epsilons(radii)
    attack = _Attack(model, _missing_score, steps, restarts, bounds, seed)

    def moved(rows):
        return attack.furthest(x[rows], labels[rows], radii[rows])

    return by_rows(moved, len(x), batch_size)


def _checked(model, x, y, bounds):
    """Returns samples and class numbers."""
    x = np.asarray(ops.convert_to_numpy(x)).astype("float32")
    check_samples(model, x)
    # Of what is no number, nothing would be found.
    require_finite(x)
    check_finite(model)
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
    return x, checked_labels(y, model.output_shape[-1])


def _lead(scores, labels):
    """Lead of the best other class, positive for adversarial samples."""
    if scores.shape[-1] == 1:
        return _missing_score(scores, labels)
    own = ops.one_hot(labels, scores.shape[-1], dtype=scores.dtype)
    others = ops.max(scores - 1e9 * own, axis=-1)
    return others - ops.sum(scores * own, axis=-1)


def _missing_score(scores, labels):
    """What the label lacks of a score: the less it has, the larger."""
    if scores.shape[-1] == 1:
        return ops.cast(1 - 2 * labels, scores.dtype) * scores[:, 0]
    own = ops.one_hot(labels, scores.shape[-1], dtype=scores.dtype)
    return -ops.sum(scores * own, axis=-1)


class _Attack:
    """The attack on one batch: it climbs a function of scores and labels."""

    def __init__(self, model, aim, steps, restarts, bounds, seed):
        self.steps = positive_int("steps", steps)
        self.restarts = positive_int("restarts", restarts)
        self.bounds = bounds
        self.random = np.random.default_rng(seed)

        def value(x, labels):
            return aim(model(x, training=False), labels)

        self.value, self.gradient = compiled(value)

    def distances(self, x, labels, radii):
        labels = labels.astype("int32")
        closest = np.where(self._is_adversarial(x, labels), 0.0, np.inf)
        for radius in radii.astype("float64"):
            if not np.any(radius):
                continue
            for found in self._runs(x, labels, radius):
                found = self._pull_back(found, x, labels)
                distance = np.where(
                    self._is_adversarial(found, labels),
                    _norm(found.astype("float64") - x),
                    np.inf,
                )
                closest = np.minimum(closest, distance)
        return closest

    def furthest(self, x, labels, radius):
        """Points where the function is as large as was found."""
        labels = labels.astype("int32")
        best, highest = x, np.asarray(self.value(x, labels))
        # Rounding to float32 moves points, also out of the ball.
        for found in self._runs(x, labels, radius * (1 - 1e-6)):
            is_inside = _norm(found.astype("float64") - x) <= radius
            value = np.where(is_inside, self.value(found, labels), -np.inf)
            best = np.where(_beside(value > highest, x), found, best)
            highest = np.maximum(value, highest)
        return best

    def _runs(self, x, labels, radius):
        """Iterator over what each run finds."""
        for restart in range(self.restarts):
            start = x
            if restart:
                noise = self._noise(x, radius)
                start = self._project(x + noise, x, radius)
            yield self._climb(start, x, labels, radius)

    def _is_adversarial(self, x, labels):
        return self.value(x, labels) > 0

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
    return x * _beside(factors, x)


def _beside(values, x):
    """One value for each sample, with the axes of the samples."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def _between(x, other, positions):
    return (x + _scaled(other - x, positions)).astype("float32")
