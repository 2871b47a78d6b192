"""Figures of Lipschitz networks. They need matplotlib, nothing else here does.

Each function draws one thing into one `Axes` and returns it, so that figures
can be composed, titled and saved with matplotlib itself. Without `ax` a new
figure is made. Without matplotlib they raise an ImportError. Not imported with
the package: `from deel.lip import plots`.
"""

import keras
import numpy as np
from keras import ops

from deel.lip._backend.differentiation import vector_jacobian
from deel.lip._labels import aligned
from deel.lip._labels import lead
from deel.lip._labels import signs
from deel.lip.certification._curves import BLUE
from deel.lip.certification._curves import RED
from deel.lip.certification._curves import axes_or_new
from deel.lip.certification._curves import draw_bracket
from deel.lip.compute_layer_sv import compute_model_sv

__all__ = [
    "accuracy_against_radius",
    "counterfactual",
    "level_sets",
    "margins",
    "saliency",
    "singular_values",
]


def __dir__():
    return __all__


def singular_values(model, supplementary_type2sv=None, ax=None):
    """Draws the range of the singular values of each layer.

    A layer that keeps distances is a dot at its constant; a bar that reaches
    to the left shows what the layer loses. Layers of unknown type are left
    out. Convolutions are decomposed as a whole, see
    `deel.lip.compute_layer_sv.compute_layer_sv`.

    Args:
        model: A built model.
        supplementary_type2sv: See `compute_model_sv`.
        ax: Matplotlib axes to draw into; None makes a new figure.
    """
    ax = axes_or_new(ax)
    found = [
        (name, least, largest)
        for name, (least, largest) in compute_model_sv(
            model, supplementary_type2sv
        )
        if largest is not None
    ]
    for place, (_, least, largest) in enumerate(found):
        if least is not None:
            ax.plot([least, largest], [place, place], color=BLUE, linewidth=5)
        ax.plot([largest], [place], "o", color=BLUE)
    ax.set_yticks(range(len(found)), [name for name, _, _ in found])
    ax.invert_yaxis()
    ax.set_xlim(left=0.0)
    ax.set_xlabel("singular values")
    ax.grid(axis="x", alpha=0.3)
    return ax


def accuracy_against_radius(radii, certified, attacked=None, ax=None):
    """Draws robust accuracy as a function of the radius.

    What is certified bounds the robust accuracy from below, what survives an
    attack bounds it from above. The truth is between the two curves.

    Args:
        radii: Increasing sequence of floats, Euclidean distances.
        certified: Sequence of floats, the share of samples that are proven to
            keep the right class within each radius.
        attacked: Sequence of floats or None, the share of samples of which an
            attack did not change the class within each radius.
        ax: Matplotlib axes to draw into; None makes a new figure.

    Raises:
        ValueError: If the sequences differ in length.
    """
    return draw_bracket(radii, certified, attacked, ax)


def margins(scores, labels, bins=50, ax=None):
    """Draws a histogram of the leads of the true class.

    The lead is the score of the true class minus the best other one; with a
    single output, the score with the sign of its class. Errors have a negative
    lead. Divided by the constant that goes with it (see
    `deel.lip.metrics.CategoricalProvableRobustAccuracy`), a positive lead is a
    certified radius.

    Args:
        scores: Array `(samples, classes)` or `(samples, 1)`.
        labels: Labels as the losses take them, or class numbers.
        bins: As for `numpy.histogram`.
        ax: Matplotlib axes to draw into; None makes a new figure.
    """
    ax = axes_or_new(ax)
    leads = _leads(np.asarray(scores, "float32"), np.asarray(labels))
    edges = np.histogram_bin_edges(leads, bins)
    ax.hist(leads[leads > 0], edges, color=BLUE, label="right")
    ax.hist(leads[leads <= 0], edges, color=RED, label="wrong")
    ax.axvline(0.0, color="k", linewidth=0.8)
    ax.set(xlabel="lead of the true class", ylabel="samples")
    ax.legend()
    return ax


def level_sets(
    model, x=None, y=None, levels=15, limits=None, resolution=200, ax=None
):
    """Draws a score over the plane, for models with two inputs.

    The zero level, where the class changes, is a thick line. A network whose
    gradient has norm one almost everywhere has level lines at equal distances.

    Args:
        model: Model of inputs `(samples, 2)` and outputs `(samples, 1)`, or a
            function of such arrays.
        x: Array `(samples, 2)` of points to show, or None.
        y: Their labels, positive for one class; None shows them alike.
        levels: As for `matplotlib.axes.Axes.contourf`.
        limits: Pair of floats, what both axes show; None takes it from `x`, or
            else `(-1, 1)`.
        resolution: Integer, points on each axis.
        ax: Matplotlib axes to draw into; None makes a new figure.

    Raises:
        ValueError: If the model has several outputs.
    """
    ax = axes_or_new(ax)
    if limits is None:
        limits = (-1.0, 1.0)
        if x is not None:
            limits = (np.min(x) - 0.2, np.max(x) + 0.2)
    line = np.linspace(*limits, resolution, dtype="float32")
    plane = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    scores = _scores(model, plane)
    if scores.size != len(plane):
        raise ValueError(
            "Level sets are those of a single score. "
            f"Received: a model with outputs of shape {scores.shape}"
        )
    scores = scores.reshape(resolution, resolution)
    filled = ax.contourf(line, line, scores, levels, cmap="RdBu", alpha=0.8)
    ax.figure.colorbar(filled, ax=ax, label="score")
    if scores.min() < 0.0 < scores.max():
        ax.contour(line, line, scores, [0.0], colors="k", linewidths=2)
    if x is not None:
        positive = np.ones(len(x), bool)
        if y is not None:
            positive = np.ravel(y) > 0
        for chosen, colour in ((positive, "#053061"), (~positive, "#67001f")):
            ax.scatter(*x[chosen].T, s=4, color=colour)
    ax.set_aspect("equal")
    return ax


def saliency(model, x, target=0, against=None, ax=None):
    """Draws the gradient of a score with respect to an image.

    Blue where more light speaks for the target, red where less does; colours
    are added up. In networks that keep gradients it shows the target, where
    that of ordinary networks shows noise.

    Args:
        model: A Keras model of images.
        x: Array, one image `(height, width)` or `(height, width, channels)`,
            as the model takes it.
        target: Integer, the output to differentiate.
        against: Integer or None, an output to subtract.
        ax: Matplotlib axes to draw into; None makes a new figure.
    """
    ax = axes_or_new(ax)
    gradient = _gradient(model, x, target, against)
    if gradient.ndim == 3:
        gradient = gradient.sum(axis=-1)
    largest = max(float(np.max(np.abs(gradient))), np.finfo("float32").tiny)
    ax.imshow(gradient, cmap="RdBu", vmin=-largest, vmax=largest)
    ax.axis("off")
    return ax


def counterfactual(
    model, x, target=0, distance=1.0, against=None, as_pixels=None, ax=None
):
    """Draws an image after a step along the gradient of a score.

    The gradient of a network trained with the KR term points along the optimal
    transport to the other class: what the image would have to become.

    Args:
        model, x, target, against, ax: As for `saliency`, of which this follows
            the gradient.
        distance: Float, the Euclidean length of the step.
        as_pixels: Function from inputs of the model to pixels in [0, 1]; None
            if they are the same.
    """
    ax = axes_or_new(ax)
    gradient = _gradient(model, x, target, against)
    length = max(float(np.linalg.norm(gradient)), np.finfo("float32").tiny)
    moved = x + distance / length * gradient
    if as_pixels is not None:
        moved = as_pixels(moved)
    image = np.clip(moved, 0.0, 1.0)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    ax.imshow(image, cmap="gray", vmin=0.0, vmax=1.0)
    ax.axis("off")
    return ax


def _leads(scores, labels):
    """Leads of the true class, an array `(samples,)`."""
    classes = scores.shape[-1]
    if classes > 1 and labels.size == len(scores):
        labels = keras.utils.to_categorical(labels.ravel(), classes)
    labels, scores = aligned(labels, scores)
    if classes > 1:
        return np.ravel(ops.convert_to_numpy(lead(labels, scores)))
    return np.ravel(ops.convert_to_numpy(signs(labels) * scores))


def _scores(model, x):
    if isinstance(model, keras.Model):
        return ops.convert_to_numpy(model(x, training=False))
    return ops.convert_to_numpy(model(x))


def _gradient(model, x, target, against):
    """Gradient of `f_target - f_against`, an array of the shape of `x`."""
    x = np.asarray(x, "float32")[np.newaxis]
    direction = np.zeros((1, model.output_shape[-1]), "float32")
    direction[0, target] = 1.0
    if against is not None:
        direction[0, against] -= 1.0
    return vector_jacobian(lambda t: model(t, training=False), x, direction)[0]
