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

Note [What is certified]

A certificate is a statement on a function, and there are two. Let s be the
scores of the real network, the one of real numbers whose weights are those of
the model, and e how far scores computed in float64 can be from it, which is
proven (`deel.lip.certification._rounding`).

`rounding="exact"`: the real network keeps its prediction within
`(lead - e) / slope`, with the lead of the scores in float64.

`rounding="float32"`: so does the network as it runs in float32, in any batch,
on any backend, with any order of summation. Its lead at a point at the distance
r is wrong by at most `a + b r`, so the radius is
`(lead - e - a) / (slope + b)`: rounding counts once, since the lead at the
sample is that of float64. For a last Dense layer without activation, errors of
what enters it move a lead by at most `||w_j - w_i||` times their size, and
each of its own sums is wrong by at most `gamma_n (||w|| ||h|| + |b|)`.

`rounding="estimated"`: what was certified before there were proofs of rounding.
Scores are those of float32, the lead is lowered by what rounding usually does,
at both ends, and nothing is proven of that.

Distances are at most the largest number of float32: no input is further away.
"""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from deel.lip._validation import positive_int
from deel.lip._validation import require_built
from deel.lip._variables import host
from deel.lip.certification._float64 import as_float64
from deel.lip.certification._float64 import float64
from deel.lip.certification._float64 import float64_copy
from deel.lip.certification._rounding import FLOAT32
from deel.lip.certification._rounding import FLOAT64
from deel.lip.certification._rounding import Computed
from deel.lip.certification._rounding import Estimated
from deel.lip.certification._rounding import Step
from deel.lip.certification._rounding import followed
from deel.lip.certification.bounds import Walk
from deel.lip.certification.bounds import final_dense
from deel.lip.certification.bounds import joint_gain
from deel.lip.certification.bounds import propagate
from deel.lip.certification.bounds import start

# From so many samples on, `verbose="auto"` shows a progress bar.
_MANY = 2000

# What each kind of rounding certifies, in words.
_ROUNDINGS = {
    "exact": "the network of real numbers",
    "float32": "the network in float32, any order of summation",
    "estimated": "scores in float32, their rounding estimated, not proven",
}

# Added to each norm: more than backends take for zero, see [Underflow].
_VANISHED = 1e-300

_LARGEST_DISTANCE = float(np.finfo("float32").max)


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
        arithmetic: String, what the radii hold for: the argument `rounding` of
            `certify`.
        float32_radius: Array `(samples,)`, the radii of `rounding="float32"`,
            zero where that proves nothing; None with `rounding="estimated"`.
    """

    radius: np.ndarray
    prediction: np.ndarray
    margin: np.ndarray
    label: np.ndarray | None
    lipschitz_constant: float
    rounding: np.ndarray
    arithmetic: str = "exact"
    float32_radius: np.ndarray | None = None

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
            "arithmetic": self.arithmetic,
            "lipschitz_constant": float(self.lipschitz_constant),
            "mean_radius": float(np.mean(self.radius)),
            "median_radius": float(np.median(self.radius)),
            "largest_rounding": float(np.max(self.rounding)),
        }
        if self.float32_radius is not None:
            summary["certificates"] = int(np.sum(self.radius > 0))
            survive = (self.radius > 0) & (self.float32_radius > 0)
            summary["float32_certificates"] = int(np.sum(survive))
            summary["float32_median_radius"] = float(
                np.median(self.float32_radius)
            )
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
            f"  certified                  {_ROUNDINGS[self.arithmetic]}",
        ]
        if self.arithmetic == "exact" and self.float32_radius is not None:
            lines.append(
                f"  hold in float32, too       "
                f"{summary['float32_certificates']} of "
                f"{summary['certificates']}, median radius "
                f"{summary['float32_median_radius']:.4g}"
            )
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


def certify(
    model,
    x,
    y=None,
    batch_size=256,
    constants=None,
    verbose="auto",
    rounding="exact",
):
    """Certifies the predictions of a classifier.

    For each sample, a radius within which no point has another prediction. It
    follows from a proven bound of the network (`lipschitz_bound`), made from
    its weights as they are, and from scores that are computed in float64, with
    a proven bound of their own error. With a last Dense layer without
    activation, each pair of classes has its own constant, which is never worse
    than that of the whole network.

    What a radius is proven for is up to `rounding`:

    - `"exact"`: the network of real numbers with these weights. An attack that
      computes in float64 finds nothing within the radius. The summary says how
      many of the certificates hold in float32 as well.
    - `"float32"`: the network as it runs in float32, in batches of any size, on
      any backend, whatever order its sums are computed in. Rounding is counted
      in its worst case, which grows with the number of terms of each sum: deep
      and wide networks with small leads lose most of their certificates. On a
      device that rounds factors of products to fewer digits (TensorFloat-32),
      that is counted.
    - `"estimated"`: scores in float32, lowered by what rounding usually does.
      Nothing is proven of that part.

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
        rounding: `"exact"`, `"float32"` or `"estimated"`, see above.

    Returns:
        A `Certificates`.

    Raises:
        ValueError: As `lipschitz_bound`; and for half precision, several
            inputs or outputs, empty data, labels out of range, samples or
            scores that are not finite, a layer that cannot be copied by its
            config, or scores of the model that are further from those of
            float64 than float32 can be.

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
    if rounding not in _ROUNDINGS:
        raise ValueError(
            f"Argument `rounding` must be one of {tuple(_ROUNDINGS)}. "
            f"Received: rounding={rounding}"
        )
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
            networks[shape] = _Network(model, shape, constants, rounding)
        parts.append(networks[shape].certify(x_batch, y_batch))
        if bar is not None:
            bar.add(len(x_batch))
    if not parts:
        raise ValueError("There is nothing to certify. Received: empty data")
    columns = {name: [part[name] for part in parts] for name in parts[0]}
    joined = {
        name: None if any(x is None for x in values) else np.concatenate(values)
        for name, values in columns.items()
    }
    return Certificates(
        **joined,
        lipschitz_constant=max(n.constant for n in networks.values()),
        arithmetic=rounding,
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

    def __init__(self, model, input_shape, constants, rounding):
        self.model = model
        self.rounding = rounding
        self.features = math.prod(input_shape)
        walk = Walk(constants)
        (self.input,) = start(model, tuple(int(n) for n in input_shape))
        (self.output,) = walk.run(model, [self.input])
        self.calls = walk.calls
        self.constant = joint_gain([self.output])
        self.last = None
        last = final_dense(model, walk)
        if last is not None:
            self.last = _LastLayer(*last)
        self.copies = {}
        self.float32 = dataclasses.replace(
            FLOAT32, factors=rounding_of_factors()
        )

    def certify(self, x, y):
        """Returns what `Certificates` has for each sample, a dictionary."""
        if not np.all(np.isfinite(x)):
            raise ValueError(
                "Samples must be finite. Received: NaN or infinite values"
            )
        classes = self.model.output_shape[-1]
        label = None if y is None else checked_labels(y, classes)
        if label is not None and len(label) != len(x):
            raise ValueError(
                "Each sample needs one label. "
                f"Received: {len(x)} samples and {len(label)} labels"
            )
        if self.rounding == "estimated":
            found = self._estimated(x)
        else:
            found = self._proven(x)
        return {**found, "label": label}

    def _estimated(self, x):
        unit = _rounding_unit()
        arithmetic = Estimated(unit, FLOAT32.smallest, FLOAT32.largest)
        known = propagate(self.calls, {self.input: Computed(1.0)}, arithmetic)
        error = known[self.output]
        norms = np.linalg.norm(x.reshape(len(x), -1).astype("float64"), axis=1)
        scores = _Scores(self._float32_scores(x))
        at_sample = error.relative * norms + error.absolute
        rounding = scores.root * at_sample
        slopes = self._slopes(scores) + scores.root * error.relative
        radius = _radius(scores.leads - 2 * rounding[:, None], slopes)
        return {
            "radius": radius,
            "prediction": scores.prediction,
            "margin": scores.margin,
            "rounding": rounding,
            "float32_radius": None,
        }

    def _proven(self, x):
        # What overflows is an infinite error, and a radius of zero.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._proven_or_zero(x)

    def _proven_or_zero(self, x):
        values, sizes = self._forward(x)
        scores = _Scores(_finite(values))
        start = Computed(1.0, zero=sizes[self.input])
        exact = propagate(self.calls, {self.input: start}, FLOAT64, sizes)
        own, _ = self._lead_errors(exact, scores, FLOAT64)
        # What is measured is the norm of what float64 computes.
        sizes = {f: sizes[f] + exact[f].absolute for f in sizes}
        given = Step(terms=1, entries=self.features)(self.float32)
        start = followed(Computed(1.0, zero=sizes[self.input]), given)
        start = dataclasses.replace(start, zero=sizes[self.input])
        rounded = propagate(
            self.calls, {self.input: start}, self.float32, sizes
        )
        seen = scores
        found = np.asarray(self.model.predict_on_batch(x), "float64")
        self._check_scores(
            found, values, rounded[self.output], exact[self.output]
        )
        if self.rounding == "float32":
            found = _finite(found)
            # The prediction is that of the network as it runs.
            seen = _Scores(values, _Scores(found).winner)
            own, _ = self._lead_errors(exact, seen, FLOAT64)
        slopes = self._slopes(seen)
        errors, growth = self._lead_errors(rounded, seen, self.float32)
        float32_radius = np.minimum(
            _radius(seen.leads - own - errors, slopes + growth),
            np.nan_to_num(rounded[self.output].reach, nan=0.0),
        )
        radius, rounding = float32_radius, own + errors
        if self.rounding == "exact":
            radius, rounding = _radius(seen.leads - own, slopes), own
        others = np.where(np.isfinite(seen.leads), rounding, 0.0)
        return {
            "radius": radius,
            "prediction": seen.prediction,
            "margin": seen.margin,
            "rounding": np.max(others, axis=1),
            "float32_radius": float32_radius,
        }

    def _float32_scores(self, x):
        return _finite(self.model.predict_on_batch(x))

    def _forward(self, x):
        """Scores in float64, and the norms of all that is computed before."""
        last_use = {
            flow: index
            for index, call in enumerate(self.calls)
            for flow in call.inputs
        }
        sizes = {}
        with float64():
            values = {self.input: as_float64(x)}
            sizes[self.input] = _norms(values[self.input])
            for index, call in enumerate(self.calls):
                if id(call.layer) not in self.copies:
                    self.copies[id(call.layer)] = float64_copy(call.layer)
                layer = self.copies[id(call.layer)]
                inputs = [values[flow] for flow in call.inputs]
                outputs = layer(
                    inputs if len(inputs) > 1 else inputs[0], training=False
                )
                outputs = keras.tree.flatten(outputs)
                for flow, value in zip(call.outputs, outputs, strict=True):
                    _require_float64(value, call.layer)
                    values[flow] = value
                    sizes[flow] = _norms(value)
                for flow in call.inputs:
                    if last_use[flow] == index and flow is not self.output:
                        values.pop(flow, None)
            scores = ops.convert_to_numpy(values[self.output])
        return np.asarray(scores, "float64"), sizes

    def _check_scores(self, found, exact, float32, float64):
        """Raises ValueError where scores differ by more than rounding can.

        A layer may have state that its config does not tell, and a device units
        of its own, which no constant tells.

        Args:
            found: Array, scores of the model.
            exact: Array, scores in float64.
            float32: `Computed` of the model.
            float64: `Computed` of the scores in float64.
        """
        with np.errstate(invalid="ignore"):
            error = np.linalg.norm(found - exact, axis=1)
        allowed = float32.absolute + float64.absolute
        # Where float32 overflows, nothing is claimed.
        is_wrong = ~(error <= allowed) & (float32.reach > 0)
        if np.any(is_wrong):
            worst = int(np.argmax(is_wrong))
            raise ValueError(
                "The scores of the model differ from those that are computed "
                "in float64 by more than float32 can be wrong: a layer has "
                "state that is not in its config, or this device computes with "
                "fewer digits than float32 has. Expected at most "
                f"{allowed[worst]:.3g}. Received: {error[worst]:.3g}. "
                '`rounding="estimated"` needs no scores in float64.'
            )

    def _slopes(self, scores):
        """How fast each lead can change."""
        slopes = np.full(scores.leads.shape, scores.root * self.constant)
        if self.last is None:
            return slopes
        by_pair = self.last.distances(scores)
        by_pair = by_pair * joint_gain([self.last.flow]) * (1 + 1e-9)
        return np.minimum(slopes, by_pair)

    def _lead_errors(self, known, scores, arithmetic):
        """Errors of each lead at the samples, and for each unit of distance."""
        if self.last is not None:
            return self.last.errors(known[self.last.flow], scores, arithmetic)
        error = known[self.output]
        shape = scores.leads.shape
        at_sample = np.broadcast_to(error.absolute, shape[:1])
        return (
            scores.root * np.repeat(at_sample[:, None], shape[1], axis=1),
            np.full(shape, scores.root * error.relative),
        )


class _Scores:
    """Scores of some samples, and the lead of the best one over each other.

    A single score leads over one that is always zero, or that one over it.

    Args:
        values: Array `(samples, classes)`.
        winner: Integer array, the class that leads; None for the best one.
    """

    def __init__(self, values, winner=None):
        self.is_single = values.shape[1] == 1
        if self.is_single:
            values = np.concatenate([np.zeros_like(values), values], axis=1)
        rows = np.arange(len(values))
        self.winner = np.argmax(values, axis=1) if winner is None else winner
        self.leads = values[rows, self.winner][:, None] - values
        self.leads[rows, self.winner] = np.inf
        # The difference of two scores is a product with (1, -1).
        self.root = 1.0 if self.is_single else math.sqrt(2) * (1 + 1e-12)

    @property
    def prediction(self):
        return self.winner.astype("int64")

    @property
    def margin(self):
        return np.min(self.leads, axis=1)


class _LastLayer:
    """A last Dense layer without activation; see [What is certified].

    Args:
        layer: The layer.
        kernel: Its kernel, float64.
        flow: The `Flow` that enters it.
    """

    def __init__(self, layer, kernel, flow):
        self.flow = flow
        self.terms = len(kernel) + (layer.bias is not None)
        columns = kernel.T
        bias = np.zeros(len(columns))
        if layer.bias is not None:
            bias = np.abs(host(layer.bias).astype("float64"))
        if len(columns) == 1:
            columns = np.concatenate([np.zeros_like(columns), columns])
            bias = np.concatenate([np.zeros_like(bias), bias])
        squares = [np.sum((columns - one) ** 2, axis=-1) for one in columns]
        self._distances = np.sqrt(squares) * (1 + 1e-12)
        self._norms = np.linalg.norm(columns, axis=-1) * (1 + 1e-12)
        self._bias = bias

    def distances(self, scores):
        """Distances of the column of the winner from each other."""
        return self._distances[scores.winner]

    def errors(self, entering, scores, arithmetic):
        """See `_Network._lead_errors`.

        Args:
            entering: `Computed` of what enters the layer.
            scores: `_Scores`.
            arithmetic: `Arithmetic`.
        """
        winner = scores.winner
        distances = self.distances(scores)
        norms = self._norms[winner][:, None] + self._norms
        bias = self._bias[winner][:, None] + self._bias
        gamma = arithmetic.gamma(self.terms, is_product=True)
        tiny = 2 * arithmetic.smallest
        magnified = gamma * norms + 2 * tiny * math.sqrt(self.terms)
        lost = tiny * (distances * math.sqrt(self.terms) + 4 * self.terms + 4)
        absolute = np.reshape(entering.absolute, (-1, 1))
        size = np.reshape(entering.zero, (-1, 1)) + absolute
        return (
            distances * absolute + magnified * size + gamma * bias + lost,
            distances * entering.relative
            + magnified * (entering.constant + entering.relative),
        )


def _radius(leads, slopes):
    """The distance up to which all leads stay positive, zero if none."""
    # Where nothing changes, no distance is too far; see the last note.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        radii = np.where(leads > 0, leads / slopes, 0.0)
    radius = np.min(np.nan_to_num(radii, nan=0.0, posinf=np.inf), axis=1)
    return np.minimum(radius * (1 - 1e-12), _LARGEST_DISTANCE)


def _require_float64(tensor, layer):
    """Raises ValueError where a layer of its own choice rounds its output."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype != "float64":
        raise ValueError(
            "Scores are computed in float64, by copies of the layers with that "
            "dtype. Expected a layer whose output has its `compute_dtype`. "
            f"Received: layer '{layer.name}' of type {type(layer).__name__}, "
            f"whose output is {dtype}"
        )


def _norms(tensor):
    """Norm of each sample of a tensor, a NumPy array."""
    axes = tuple(range(1, len(tensor.shape)))
    # Squares of what is below 1e-154 or above 1e154 are not there.
    largest = ops.max(ops.abs(tensor), axis=axes, keepdims=True)
    largest = ops.where(largest > 0, largest, ops.ones_like(largest))
    squares = ops.sum(ops.square(tensor / largest), axis=axes)
    norms = ops.reshape(largest, (-1,)) * ops.sqrt(squares)
    # More than the sum itself may be wrong by, or than may vanish.
    return ops.convert_to_numpy(norms) * (1 + 1e-9) + _VANISHED


def _finite(scores):
    scores = np.asarray(scores, "float64")
    if not np.all(np.isfinite(scores)):
        raise ValueError(
            "Scores must be finite to be certified. Received: "
            f"{int(np.sum(~np.isfinite(scores)))} NaN or infinite scores "
            f"out of {scores.size}"
        )
    return scores


def rounding_of_factors():
    """By how much this device rounds the factors of float32 products.

    Zero where a product with an identity matrix is exact, and so is a
    convolution with one. TensorFloat-32 keeps ten digits after the first, hence
    2^-11; the power of two above what is seen counts.
    """
    random = np.random.default_rng(0)
    values = random.uniform(1.0, 2.0, (1, 8, 8, 64)).astype("float32")
    kernel = np.zeros((3, 3, 64, 64), "float32")
    kernel[1, 1] = np.eye(64)
    tensor = ops.convert_to_tensor(values)
    product = ops.matmul(
        ops.reshape(tensor, (64, 64)), ops.convert_to_tensor(kernel[1, 1])
    )
    convolved = ops.conv(
        tensor,
        ops.convert_to_tensor(kernel),
        padding="same",
        data_format="channels_last",
    )
    worst = 0.0
    for found in (product, convolved):
        found = ops.convert_to_numpy(found).reshape(values.shape)
        worst = max(worst, float(np.max(np.abs(found / values - 1))))
    return 2.0 ** math.ceil(math.log2(worst)) if worst else 0.0


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
