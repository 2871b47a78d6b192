"""Radii within which a prediction provably does not change.

Note [Radius of a sample]

Let f_j be the largest score and f_i another one. Where the last layer is a
Dense layer without activation, f = g(x) W + b, the lead f_j - f_i changes by at
most `L ||w_j - w_i||` for each unit that x moves, with L the bound of g and w
the columns of W. Otherwise it changes by at most sqrt(2) times the bound of f,
since it is the product of f with a vector of norm sqrt(2). It stays positive
up to the lead divided by that slope, and the smallest of these radii over all i
is the certificate. The first rule is never worse than the second, because
`||w_j - w_i|| <= sqrt(2) ||W||`. A single score keeps its sign up to its
magnitude divided by the bound.

Scores are computed in floating point, and so are those of any other point. With
e ||x|| + e_0 the error of the vector of scores (see the notes of
`deel.lip.certification.bounds`), the lead that is seen can be wrong by
sqrt(2) times that, at x and at a point at the distance r, where it is at most
`e (||x|| + r) + e_0`. So the radius is
`(lead - sqrt(2) (2 e ||x|| + 2 e_0)) / (slope + sqrt(2) e)`.
"""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from deel.lip._validation import positive_int
from deel.lip._validation import require_built
from deel.lip.certification.bounds import Walk
from deel.lip.certification.bounds import final_dense
from deel.lip.certification.bounds import joint_gain
from deel.lip.certification.bounds import start

# From so many samples on, `verbose="auto"` shows a progress bar.
_MANY = 2000


@dataclasses.dataclass(frozen=True, repr=False)
class Certificates:
    """Certified predictions of some samples; what `certify` returns.

    Attributes:
        radius: Array `(samples,)`, the Euclidean distance, in the units of the
            inputs, within which the prediction provably stays. Zero where
            nothing can be proven.
        prediction: Integer array `(samples,)`, the class. With a single score,
            1 where it is positive and 0 elsewhere.
        margin: Array `(samples,)`, the lead of the best score over the second;
            with a single score, its magnitude.
        label: Integer array `(samples,)`, or None if no labels were given.
        lipschitz_constant: Float, the proven bound of the network; with images
            of several sizes, the largest.
        rounding: Array `(samples,)`, what the margin may be wrong by.
    """

    radius: np.ndarray
    prediction: np.ndarray
    margin: np.ndarray
    label: np.ndarray | None
    lipschitz_constant: float
    rounding: np.ndarray

    def __len__(self):
        return len(self.radius)

    @property
    def correct(self):
        """Boolean array: whether a prediction is the label."""
        if self.label is None:
            raise ValueError(
                "Accuracy needs labels. Expected `certify(model, x, y)`. "
                "Received: y=None"
            )
        return self.prediction == self.label

    @property
    def accuracy(self):
        """Share of the samples whose prediction is the label, a float."""
        return float(np.mean(self.correct))

    def certified_accuracy(self, epsilons):
        """Share of the samples that are right at any point within a radius.

        Args:
            epsilons: Float or sequence of floats, zero or greater.

        Returns:
            Array with a value for each radius; for radius 0, the accuracy.
        """
        return share_beyond(epsilons, self.correct, self.radius)

    def to_dict(self, epsilons=(0.1, 0.25, 0.5, 1.0)):
        """Returns a summary as plain Python values, which `json` can write.

        Args:
            epsilons: Sequence of floats, the radii of the certified accuracy.
        """
        summary = {
            "samples": len(self),
            "lipschitz_constant": float(self.lipschitz_constant),
            "mean_radius": float(np.mean(self.radius)),
            "median_radius": float(np.median(self.radius)),
            "largest_rounding": float(np.max(self.rounding)),
        }
        if self.label is not None:
            certified = self.certified_accuracy(epsilons)
            summary["accuracy"] = self.accuracy
            summary["epsilons"] = [float(x) for x in epsilons]
            summary["certified_accuracy"] = certified.tolist()
        return summary

    def __repr__(self):
        summary = self.to_dict()
        lines = [
            f"Certificates of {summary['samples']} samples",
            f"  proven Lipschitz constant  {summary['lipschitz_constant']:.6g}",
            f"  mean radius                {summary['mean_radius']:.4g}",
            f"  median radius              {summary['median_radius']:.4g}",
        ]
        if self.label is not None:
            lines.append(f"  accuracy                   {self.accuracy:.4f}")
            pairs = zip(
                summary["epsilons"], summary["certified_accuracy"], strict=True
            )
            lines += [
                f"  certified within {epsilon:<10g}{share:.4f}"
                for epsilon, share in pairs
            ]
        return "\n".join(lines)

    def plot(self, axes=None, epsilons=None, attacked=None):
        """Draws the certified accuracy as a function of the radius.

        Args:
            axes: Matplotlib axes; None makes a new figure.
            epsilons: Sequence of floats; None covers all radii.
            attacked: None, or the accuracy under attack at each of the
                `epsilons`, which is drawn as an upper curve.

        Returns:
            The axes.
        """
        if epsilons is None:
            if attacked is not None:
                raise ValueError(
                    "The accuracy under attack belongs to radii. Expected "
                    "`epsilons`. Received: epsilons=None"
                )
            epsilons = np.linspace(0.0, 1.1 * np.max(self.radius) + 1e-9, 300)
        certified = self.certified_accuracy(epsilons)
        if axes is None:
            # Optional, and slow to import.
            from matplotlib import pyplot as plt

            _, axes = plt.subplots()
        if attacked is not None:
            axes.plot(epsilons, attacked, label="under attack (at most)")
            axes.fill_between(epsilons, certified, attacked, color="0.9")
        axes.plot(epsilons, certified, label="certified (at least)")
        axes.set_xlabel("Euclidean radius")
        axes.set_ylabel("accuracy")
        axes.set_ylim(0.0, 1.02)
        axes.legend()
        return axes


def certify(model, x, y=None, batch_size=256, constants=None, verbose="auto"):
    """Certifies the predictions of a classifier.

    For each sample, a radius within which no point has another prediction. It
    follows from a proven bound of the network (`lipschitz_bound`), made from
    its weights as they are, and from the scores; rounding of the scores is
    taken off. With a last Dense layer without activation, each pair of classes
    has its own constant, which is never worse than that of the whole network.

    The number that is called the rounding unit is measured for the products of
    the backend and device in use, so that reduced precision (TF32) is counted.
    The size of the rounding errors is conservative and not proven; the bound
    of the network is proven.

    Args:
        model: A built model with one input and one output `(batch, classes)`,
            or `(batch, 1)` for two classes. The outputs should be scores: after
            a softmax, certificates hold and are small. The sign of a single
            score decides, so a sigmoid at the end is refused.
        x: Array of samples, or a `tf.data.Dataset`, `keras.utils.PyDataset` or
            another iterable of batches `(x, y)` or `x`.
        y: Labels of an array `x`: class numbers, or one-hot. With one score, 0
            or -1 and 1.
        batch_size: Integer, samples in a batch, for an array.
        constants: See `lipschitz_bound`.
        verbose: `"auto"`, 0 or 1: whether a progress bar is shown. "auto" does
            for many samples.

    Returns:
        A `Certificates`.

    Raises:
        ValueError: As `lipschitz_bound`; and for half precision, several
            inputs or outputs, empty data, labels out of range, or samples or
            scores that are not finite.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import certify
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(2, use_bias=False)]
    ... )
    >>> model.set_weights([np.eye(2)])
    >>> certificates = certify(model, np.array([[3.0, 1.0]]), [0])
    >>> [round(float(r), 3) for r in certificates.radius]
    [1.414]
    """
    check_classifier(model, "certify")
    _check_precision(model)
    batch_size = positive_int("batch_size", batch_size)
    batches, count = _batches(x, y, batch_size)
    shows = verbose == 1 or (verbose == "auto" and (count or 0) >= _MANY)
    bar = keras.utils.Progbar(count) if shows else None
    # Images of another size have another bound.
    networks = {}
    parts = []
    for x_batch, y_batch in batches:
        x_batch = _floats(x_batch)
        shape = x_batch.shape[1:]
        if shape not in networks:
            networks[shape] = _Network(model, shape, constants)
        parts.append(networks[shape].certify(x_batch, y_batch))
        if bar is not None:
            bar.add(len(x_batch))
    if not parts:
        raise ValueError("There is nothing to certify. Received: empty data")
    radius, prediction, margin, rounding, label = zip(*parts, strict=True)
    if any(one is None for one in label):
        label = None
    return Certificates(
        radius=np.concatenate(radius),
        prediction=np.concatenate(prediction),
        margin=np.concatenate(margin),
        label=None if label is None else np.concatenate(label),
        lipschitz_constant=max(n.constant for n in networks.values()),
        rounding=np.concatenate(rounding),
    )


def certified_accuracy(model, x, y=None, epsilons=(0.0,), **kwargs):
    """Share of the samples that are provably right within each radius.

    A lower bound of the accuracy under any attack.

    Args:
        model: See `certify`.
        x: See `certify`.
        y: See `certify`.
        epsilons: Float or sequence of floats, zero or greater.
        **kwargs: What else `certify` takes.

    Returns:
        Array with a value for each radius; for radius 0, the accuracy.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import certified_accuracy
    >>> model = keras.Sequential(
    ...     [keras.Input((2,)), keras.layers.Dense(2, use_bias=False)]
    ... )
    >>> model.set_weights([np.eye(2)])
    >>> x, y = np.array([[3.0, 1.0], [0.0, 1.0]]), np.array([0, 1])
    >>> [float(a) for a in certified_accuracy(model, x, y, [0.5, 1.0])]
    [1.0, 0.5]
    """
    checked_epsilons(epsilons)
    return certify(model, x, y, **kwargs).certified_accuracy(epsilons)


def checked_epsilons(epsilons):
    """Returns radii as a float array; they are zero or greater."""
    values = np.atleast_1d(np.asarray(epsilons, "float64"))
    if values.ndim != 1 or not np.all(values >= 0):
        raise ValueError(
            "Radii must be numbers that are zero or greater. "
            f"Received: epsilons={epsilons}"
        )
    return values


def share_beyond(epsilons, correct, distances):
    """Share of samples that are right, and stay so within each radius.

    A prediction that is right counts for the radius 0, proven or not: there is
    no other point.

    Args:
        epsilons: As of `checked_epsilons`.
        correct: Boolean array `(samples,)`.
        distances: Array `(samples,)`, how far each prediction holds.
    """
    return np.array(
        [
            np.mean(correct & ((distances > epsilon) | (epsilon == 0)))
            for epsilon in checked_epsilons(epsilons)
        ]
    )


def checked_labels(y, classes):
    """Returns labels as class numbers.

    Args:
        y: Array: class numbers of shape `(samples,)` or `(samples, 1)`, or
            one-hot; with one score, 0 or -1 and 1.
        classes: Integer, the number of scores.
    """
    labels = np.asarray(y if isinstance(y, list) else ops.convert_to_numpy(y))
    received = f"Received: labels of shape {labels.shape}"
    if labels.dtype.kind not in "biuf":
        raise ValueError(
            f"Labels must be numbers. {received}, of dtype {labels.dtype}"
        )
    if labels.ndim == 2 and labels.shape[1] == classes > 1:
        is_one_hot = np.isin(labels, (0, 1)).all() and np.all(
            labels.sum(axis=1) == 1
        )
        if not is_one_hot:
            raise ValueError(
                f"Labels of this shape must be one-hot. {received}"
            )
        return np.argmax(labels, axis=1)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(
            "Labels must be class numbers `(samples,)`, or one-hot "
            f"`(samples, {classes})`. {received}"
        )
    if classes == 1:
        allowed = np.isin(labels, (-1, 0, 1)).all()
        numbers, described = labels > 0, "0 or -1, and 1"
    else:
        allowed = np.all(labels == np.floor(labels)) and np.all(
            (labels >= 0) & (labels < classes)
        )
        numbers, described = labels, f"whole numbers from 0 to {classes - 1}"
    if not allowed:
        raise ValueError(
            f"Labels must be {described}. "
            f"Received: values {np.unique(labels)[:10]}"
        )
    return numbers.astype("int64")


def _check_precision(model):
    for layer in model._flatten_layers():
        dtype = layer.compute_dtype
        if dtype not in ("float32", "float64", None):
            raise ValueError(
                "Scores in half precision are too coarse to be certified. Load "
                "the weights in a model with the dtype policy 'float32'. "
                f"Received: layer '{layer.name}', which computes in {dtype}"
            )


# Functions that are never negative: the sign of their value says nothing.
_ONE_SIGN = {
    getattr(keras.activations, name)
    for name in (
        "hard_sigmoid",
        "relu",
        "relu6",
        "sigmoid",
        "softmax",
        "softplus",
    )
}


def check_classifier(model, name):
    """Raises ValueError if a model is not one of scores of one real input.

    Args:
        model: What a user passed as a model.
        name: String, the name of the function that it was passed to.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Expected a Keras model. "
            f"Received: model={model} (of type {type(model).__name__})"
        )
    require_built(model, name)
    try:
        shapes = [tuple(x.shape) for x in model.inputs], model.output_shape
    except (AttributeError, ValueError, TypeError):
        # A model without a graph; the bound says so.
        start(model)
        raise
    inputs, output = shapes
    is_tensor = isinstance(model, keras.Sequential) or isinstance(
        model.output, keras.KerasTensor
    )
    is_vector = is_tensor and isinstance(output, tuple) and len(output) == 2
    if len(inputs) != 1 or not is_vector or not isinstance(output[1], int):
        raise ValueError(
            f"`{name}` needs one input, and one output `(batch, classes)`. "
            f"Received: inputs of shapes {inputs}, outputs of shapes {output}"
        )
    (dtype,) = (x.dtype for x in model.inputs)
    if dtype not in ("float32", "float64"):
        raise ValueError(
            "Inputs must not be rounded. Expected an input of dtype float32. "
            f"Received: dtype={dtype}"
        )
    last = _last_layer(model)
    if output[1] == 1 and getattr(last, "activation", None) in _ONE_SIGN:
        raise ValueError(
            "The sign of a single score is the prediction, so it must take "
            "both signs. Expected a last layer without activation. "
            f"Received: layer '{last.name}' with "
            f"activation={last.activation.__name__}"
        )


def _last_layer(model):
    """The layer, also inside of nested models, that makes the only output."""
    while isinstance(model, keras.Model):
        # Keras has no public name for where a tensor comes from.
        model = model.outputs[0]._keras_history.operation
    return model


def _floats(x):
    x = np.asarray(ops.convert_to_numpy(x))
    return x if x.dtype in ("float32", "float64") else x.astype("float32")


def _batches(x, y, batch_size):
    """Iterator over pairs `(x, y)`, and the number of samples, or None."""
    if isinstance(x, keras.utils.PyDataset):
        _refuse_labels(y)
        return (_as_pair(x[i]) for i in range(x.num_batches or len(x))), None
    if not isinstance(x, (list, tuple, np.ndarray)) and not ops.is_tensor(x):
        if not hasattr(x, "__iter__"):
            raise ValueError(
                "Expected an array or an iterable of batches. "
                f"Received: x of type {type(x).__name__}"
            )
        _refuse_labels(y)
        return map(_as_pair, x), None
    x = _floats(x)
    if len(x) == 0:
        raise ValueError(
            "There is nothing to certify. "
            f"Received: x of shape {x.shape}, without samples"
        )
    if y is not None:
        y = np.asarray(y if isinstance(y, list) else ops.convert_to_numpy(y))
        if y.ndim == 0 or len(y) != len(x):
            raise ValueError(
                "Each sample needs one label. "
                f"Received: {len(x)} samples and labels of shape {y.shape}"
            )
    return (
        (
            x[first : first + batch_size],
            None if y is None else y[first : first + batch_size],
        )
        for first in range(0, len(x), batch_size)
    ), len(x)


def _refuse_labels(y):
    if y is not None:
        raise ValueError(
            "A data set has its labels with it. Expected `y=None`. "
            f"Received: y of type {type(y).__name__}"
        )


def _as_pair(batch):
    if isinstance(batch, (tuple, list)):
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


class _Network:
    """What certificates need to know of a network, for one input shape."""

    def __init__(self, model, input_shape, constants):
        self.model = model
        self.features = math.prod(input_shape)
        walk = Walk(constants, unit=_rounding_unit())
        inputs = start(model, tuple(int(n) for n in input_shape))
        (output,) = walk.run(model, inputs)
        self.constant = joint_gain([output])
        self.error = output.error
        self.slopes = None
        last = final_dense(model, walk)
        if last is not None:
            kernel, gain = last
            columns = kernel.T
            squares = [
                np.sum((columns - column) ** 2, axis=-1) for column in columns
            ]
            # How fast the lead of one class over another can change.
            self.slopes = gain * np.sqrt(squares) * (1 + 1e-9)

    def certify(self, x, y):
        """Returns radius, prediction, margin, rounding and labels."""
        if not np.all(np.isfinite(x)):
            raise ValueError(
                "Samples must be finite. Received: NaN or infinite values"
            )
        scores = np.asarray(self.model.predict_on_batch(x), "float64")
        if not np.all(np.isfinite(scores)):
            raise ValueError(
                "Scores must be finite to be certified. Received: "
                f"{int(np.sum(~np.isfinite(scores)))} NaN or infinite scores "
                f"out of {scores.size}"
            )
        classes = scores.shape[1]
        label = None if y is None else checked_labels(y, classes)
        if label is not None and len(label) != len(x):
            raise ValueError(
                "Each sample needs one label. "
                f"Received: {len(x)} samples and {len(label)} labels"
            )
        norms = np.linalg.norm(x.reshape(len(x), -1).astype("float64"), axis=1)
        per_unit, offset = self.error
        if classes == 1:
            margin = np.abs(scores[:, 0])
            prediction = (scores[:, 0] > 0).astype("int64")
            rounding = per_unit * norms + offset
            lead = margin - 2 * rounding
            radius = lead / max(self.constant + per_unit, 1e-300)
            return np.maximum(radius, 0), prediction, margin, rounding, label
        root = math.sqrt(2) * (1 + 1e-12)
        rounding = root * (per_unit * norms + offset)
        prediction = np.argmax(scores, axis=1)
        rows = np.arange(len(scores))
        leads = scores[rows, prediction][:, None] - scores
        slopes = np.full(leads.shape, root * self.constant)
        if self.slopes is not None:
            slopes = np.minimum(slopes, self.slopes[prediction])
        # A lead that never changes is a certificate for any distance.
        slopes = np.maximum(slopes + root * per_unit, 1e-300)
        radii = (leads - 2 * rounding[:, None]) / slopes
        radii[rows, prediction] = np.inf
        leads[rows, prediction] = np.inf
        radius = np.maximum(np.min(radii, axis=1), 0)
        return radius, prediction, np.min(leads, axis=1), rounding, label


def _rounding_unit():
    """How far products of this backend and device are from exact ones.

    At least the rounding unit of float32. Some devices round the factors of
    float32 products to fewer digits, and fast algorithms for convolutions add
    errors of their own; one product and two convolutions show it.
    """
    generator = np.random.default_rng(0)
    image = generator.standard_normal((1, 8, 8, 64)).astype("float32")
    kernel = generator.standard_normal((3, 3, 64, 64)).astype("float32")
    pixels, matrix = image.reshape(64, 64), kernel[0, 0]
    exact = image.astype("float64")
    windows = np.lib.stride_tricks.sliding_window_view(exact, (3, 3), (1, 2))
    product = ops.matmul(
        ops.convert_to_tensor(pixels), ops.convert_to_tensor(matrix)
    )
    pairs = [(product, exact.reshape(64, 64) @ matrix.astype("float64"))]
    for taps, expected in (
        (kernel[:1, :1], exact @ matrix.astype("float64")),
        (kernel, np.einsum("bhwcij,ijco->bhwo", windows, kernel)),
    ):
        found = ops.conv(
            ops.convert_to_tensor(image),
            ops.convert_to_tensor(taps),
            data_format="channels_last",
        )
        pairs.append((found, expected))
    unit = float(np.finfo("float32").eps) / 2
    for found, expected in pairs:
        found = ops.convert_to_numpy(found)
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        # Sums of 64 terms and more are wrong by less than eight units.
        unit = max(unit, float(error) / 8)
    return unit
