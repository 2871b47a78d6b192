"""Small problems whose batches are split over devices, in two unlike halves.

`test_distribution.py` trains on one device by this module; the processes that
it starts, on many.
"""

import contextlib

import harness
import keras
import numpy as np
from keras import ops

from deel.lip import losses
from deel.lip.activations import GroupSort2
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import SpectralConv2D
from deel.lip.layers import SpectralDense
from deel.lip.model import Sequential
from deel.lip.utils import process_labels_for_multi_gpu

BATCH_SIZE = 16
STEPS = 20

# Not a multiple of the batch size, and no even number either.
EVALUATED = 53

# Classes of the samples of each batch.
CLASSES = {
    "binary": [1, 1, 0, 1, 1, 1, 0, 1] + [0, 0, 0, 1, 0, 0, 0, 0],
    "multiclass": [0, 0, 1, 0, 1, 0, 1, 0] + [2, 2, 0, 2, 2, 1, 2, 2],
}
INPUT_SHAPES = {"binary": (6,), "multiclass": (6, 6, 1)}


def batches(case):
    """Samples and labels of all batches, one after the other."""
    random = np.random.default_rng(0)
    classes = np.tile(CLASSES[case], STEPS)
    shape = INPUT_SHAPES[case]
    patterns = random.normal(size=(3, *shape))
    x = patterns[classes] + random.normal(size=(len(classes), *shape))
    # Without a retraction, a kernel is normalised to some 1e-5 as it happens;
    # samples of moderate size keep that out of the digits that are compared.
    x = 0.3 * x
    labels = np.eye(3)[classes] if case == "multiclass" else classes[:, None]
    return x.astype("float32"), labels.astype("float32")


def weighted(labels):
    """Labels that hold the weights of their batch, for `multi_gpu=True`."""
    parts = np.split(labels, len(labels) // BATCH_SIZE)
    return np.concatenate(
        [
            ops.convert_to_numpy(process_labels_for_multi_gpu(part))
            for part in parts
        ]
    )


def network(case):
    keras.utils.set_random_seed(0)
    if case == "multiclass":
        layers = [
            SpectralConv2D(4, 3, activation=GroupSort2()),
            keras.layers.Flatten(),
            FrobeniusDense(3),
        ]
    else:
        layers = [
            SpectralDense(8, activation=GroupSort2(), k_coef_lip=2.0),
            SpectralDense(1),
        ]
    container = Sequential if case == "multiclass" else keras.Sequential
    return container([keras.Input(INPUT_SHAPES[case]), *layers])


def loss_of(case, multi_gpu=False):
    if case == "multiclass":
        return losses.MulticlassHKR(2.0, 0.5, multi_gpu=multi_gpu)
    return losses.HKR(2.0, 0.5, multi_gpu=multi_gpu)


def kr_losses():
    """Losses with a KR term or another statistic of the batch, with inputs.

    Returns:
        List of triples of a loss, labels and scores; the halves of the batch
        have other class frequencies, and classes that are absent.
    """
    random = np.random.default_rng(0)
    classes = np.array([0, 0, 1, 0, 1, 2, 2, 2])
    binary = (classes > 1).astype("float32")[:, None]
    several = np.eye(3, dtype="float32")[classes]
    learned = losses.MulticlassHKRauto(5.0, 0.5)
    learned.create_margins(3)
    learned.hinge_margins.assign([0.5, 1.0, 3.0])
    return [
        (loss, labels, random.normal(size=labels.shape).astype("float32"))
        for loss, labels in (
            (losses.KR(), binary),
            (losses.NegKR(reduction="sum"), binary),
            (losses.HKR(5.0, 0.5), binary),
            (losses.HKRauto(5.0, 0.5), binary),
            (losses.MulticlassKR(), several),
            (losses.MulticlassHKR(5.0, 0.5), several),
            (learned, several),
            (losses.MulticlassSoftHKR(5.0, 0.5, alpha_mean=0.5), several),
        )
    ]


class _Losses(keras.callbacks.Callback):
    """Records the loss of each step, from the mean of those so far."""

    def __init__(self):
        super().__init__()
        self.means = []

    def on_train_batch_end(self, batch, logs=None):
        self.means.append(float(logs["loss"]))

    @property
    def values(self):
        return np.diff(np.arange(len(self.means) + 1) * [0.0, *self.means])


def fit(case, scope=None, part=None):
    """Trains with `fit`.

    Args:
        case: A key of `CLASSES`.
        scope: Context of a strategy, or None.
        part: Function that takes what this process contributes to each batch
            from an array; None for the whole.

    Returns:
        The model, and the loss of each step.
    """
    x, y = batches(case)
    size = BATCH_SIZE
    if part is not None:
        size = size * len(part(x)) // len(x)
        x, y = part(x), part(y)
    recorded = _Losses()
    with scope or contextlib.nullcontext():
        model = network(case)
        model.compile(
            keras.optimizers.Adam(0.01),
            loss_of(case),
            metrics=[losses.KR(reduction="none")],
        )
        model.fit(
            x,
            y,
            batch_size=size,
            shuffle=False,
            verbose=0,
            callbacks=[recorded],
        )
    return model, recorded.values


def evaluate(model, case):
    """Loss and KR, where the last batch is smaller than the others."""
    x, y = batches(case)
    return model.evaluate(
        x[:EVALUATED], y[:EVALUATED], batch_size=BATCH_SIZE, verbose=0
    )


def results(model, values, read):
    """What a run leaves, as arrays by name.

    Args:
        model: The trained model.
        values: The loss of each step.
        read: Function that returns the copies of a variable in an array, one
            for each device.
    """
    layers = harness.constrained_layers(model)
    arrays = {
        f"state/{index}/{variable.name}": read(variable)
        for index, variable in enumerate(model.weights)
    }
    return {
        "losses": values,
        "expansions": [harness.expansion(layer) for layer in layers],
        **arrays,
    }
