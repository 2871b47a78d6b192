"""Classes of pixels that provably do not change; see [Many pixels]."""

import numbers

import numpy as np

from deel.lip._validation import require_one_of
from deel.lip.certification._data import check_classifier
from deel.lip.certification._data import checked_epsilons
from deel.lip.certification._data import checked_pixel_labels
from deel.lip.certification._networks import Networks
from deel.lip.certification._networks import joined
from deel.lip.certification._outcomes import BestClass
from deel.lip.certification.pixel_certificates import PixelCertificates


def certify_pixels(
    model,
    x,
    y=None,
    batch_size=8,
    constants=None,
    verbose="auto",
    rounding="exact",
    method="chain",
    ignore_class=None,
):
    """Certifies a class for each pixel, as semantic segmentation has them.

    For each pixel, a radius within which its prediction provably stays, as of
    `certify`. And for each sample, how many of its pixels an attack can spoil
    at once, which may be far less than those whose radius it exceeds:
    the squares of the radii of all that it spoils add up to the square of its
    length at most. `PixelCertificates.certified_accuracy` counts what is left.

    With a last layer that mixes the channels of each pixel (`Dense`, or a
    convolution whose kernel has one tap) without activation, each pair of
    classes has its own constant.

    Args:
        model: A built model with one input and one output `(batch,
            positions..., classes)`: scores of classes for each step of a
            series, pixel or voxel. With one score for each, its sign decides.
        x: Array of samples, or a `tf.data.Dataset`, `keras.utils.PyDataset` or
            another iterable of batches `(x, y)` or `x`. All have one size.
        y: Labels of an array `x`: class numbers `(samples, positions...)`, or
            one-hot. With one score, 0 or -1 and 1.
        batch_size: Integer, samples in a batch, for an array. Each pixel takes
            some 100 bytes for each class.
        constants: See `lipschitz_bound`.
        verbose: As of `certify`.
        rounding: `"exact"` or `"float32"`, see `certify`.
        method: See `lipschitz_bound`.
        ignore_class: Integer or None, the class number of pixels that do not
            count, as the metrics of Keras have it.

    Returns:
        A `PixelCertificates`.

    Raises:
        ValueError: As `certify`; and for outputs without positions, labels of
            another shape, samples of several sizes, or labels of which none
            counts.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import certify_pixels
    >>> model = keras.Sequential(
    ...     [keras.Input((3, 2)), keras.layers.Dense(2, use_bias=False)]
    ... )
    >>> model.set_weights([np.eye(2)])
    >>> x = np.sqrt(2) * np.array([[[3.0, 0.0], [4.0, 0.0], [0.0, 12.0]]])
    >>> certificates = certify_pixels(model, x, [[0, 0, 1]])
    >>> [round(float(r), 3) for r in certificates.radius[0]]
    [3.0, 4.0, 12.0]

    An attack of length 4.9 exceeds two of the radii, but 3 and 4 take 5:

    >>> shares = certificates.certified_accuracy([4.9, 5.1])
    >>> [round(float(share), 3) for share in shares]
    [0.667, 0.333]
    """
    check_classifier(model, "certify_pixels", has_positions=True)
    require_one_of("rounding", rounding, _PROVEN, ValueError)
    if ignore_class is not None and not _is_integer(ignore_class):
        raise ValueError(
            "Argument `ignore_class` must be a class number or None. "
            f"Received: ignore_class={ignore_class}"
        )
    networks = Networks(model, constants, rounding, method)
    parts = []
    size = None
    for x_batch, y_batch in networks.batches(x, y, batch_size, verbose):
        size = size or x_batch.shape[1:]
        if x_batch.shape[1:] != size:
            raise ValueError(
                "Certificates of pixels are arrays of one shape. Expected "
                f"samples of the size {size}. Received: {x_batch.shape[1:]}"
            )
        network = networks.of(x_batch)
        parts.append(_of_batch(network, x_batch, y_batch, ignore_class))
    certificates = PixelCertificates(
        **joined(parts),
        lipschitz_constant=networks.constant,
        score_constant=networks.score_constant,
        lead_constant=networks.lead_constant,
        arithmetic=rounding,
        input_range=networks.input_range,
    )
    if certificates.label is not None and not np.any(certificates.counted):
        raise ValueError(
            "Accuracy needs labels that count. Received: labels that are all "
            f"ignored, by ignore_class={ignore_class}"
        )
    return certificates


# What is only estimated is no budget that attacks have to keep.
_PROVEN = ("exact", "float32")


def _is_integer(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _of_batch(network, x, y, ignore_class):
    """What `PixelCertificates` has for each sample, a dictionary."""
    shape = (len(x), *network.output.shape[1:-1])
    label = None
    if y is not None:
        classes = network.output.shape[-1]
        label = checked_pixel_labels(y, shape, classes, ignore_class)
    leads = network.leads(x, BestClass())
    is_exact = network.rounding == "exact"
    exact, rounded, joint, excess = [], [], [], []
    # What overflows is an infinite error, and a radius of zero.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for slopes in network.joint_slopes(leads.scores):
            exact.append(leads.radius(slopes))
            rounded.append(leads.float32_radius(slopes))
            joint.append(exact[-1] if is_exact else rounded[-1])
            shares = np.where(leads.growth > 0, leads.growth / slopes, 0.0)
            shares = np.where(np.isfinite(leads.scores.leads), shares, 0.0)
            largest = np.max(shares.reshape(len(x), -1), axis=1)
            excess.append(np.zeros(len(x)) if is_exact else largest)
        rounding = leads.rounding(network.rounding)
    float32_radius = np.maximum.reduce(rounded)
    radius = np.maximum.reduce(exact) if is_exact else float32_radius
    reach = leads.reach.reshape(len(x), -1)[:, 0]
    return {
        "radius": radius.reshape(shape),
        "prediction": leads.scores.prediction.reshape(shape),
        "margin": leads.scores.margin.reshape(shape),
        "label": label,
        "rounding": rounding.reshape(shape),
        "joint_radius": np.stack([r.reshape(shape) for r in joint], axis=1),
        "joint_excess": np.stack(excess, axis=1),
        "reach": np.full(len(x), np.inf) if is_exact else reach,
        "float32_radius": float32_radius.reshape(shape),
    }


def certified_pixel_accuracy(model, x, y=None, epsilons=(0.0,), **kwargs):
    """Share of the pixels that are provably right within each radius.

    A lower bound of the pixel accuracy under any attack, see
    `PixelCertificates.certified_accuracy`.

    Args:
        model: See `certify_pixels`.
        x: See `certify_pixels`.
        y: See `certify_pixels`.
        epsilons: Float or sequence of floats, zero or greater.
        **kwargs: What else `certify_pixels` takes.

    Returns:
        Array with a value for each radius; for radius 0, the accuracy.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import certified_pixel_accuracy
    >>> model = keras.Sequential(
    ...     [keras.Input((4, 1)), keras.layers.Dense(1, use_bias=False)]
    ... )
    >>> model.set_weights([np.ones((1, 1))])
    >>> x, y = np.ones((1, 4, 1)), np.ones((1, 4))

    To bring n of four ones to zero takes the root of n:

    >>> [float(a) for a in certified_pixel_accuracy(model, x, y, [0.5, 1.5])]
    [1.0, 0.5]
    """
    checked_epsilons(epsilons)
    return certify_pixels(model, x, y, **kwargs).certified_accuracy(epsilons)
