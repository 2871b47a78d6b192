"""Ten digits with the multi-class HKR loss, and the export to plain Keras.

A convolutional network of 27,920 parameters on MNIST. A smaller `--alpha` or a
larger `--min-margin` gives more robustness for less accuracy.

`min_margin` is the distance between the scores of both sides of the decision,
half of it on each side. Older texts that counted it in full on each side give
half the value: their 0.05 is 0.1 here.
"""

import argparse
import sys

import keras
import numpy as np
from common import HelpFormatter
from common import add_data_argument
from common import download
from common import largest_difference
from keras.layers import Flatten
from keras.layers import Input
from keras.optimizers import Adam
from keras.utils import to_categorical

from deel.lip.activations import GroupSort
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import ScaledL2NormPooling2D
from deel.lip.layers import SpectralConv2D
from deel.lip.layers import SpectralDense
from deel.lip.losses import MulticlassHKR
from deel.lip.losses import MulticlassKR
from deel.lip.model import Sequential

# What the export may differ by: the rounding of float32 sums.
TOLERANCE = 1e-4


def prepare(data):
    """Standardises the images as a whole and encodes the labels.

    Args:
        data: The pairs `(x_train, y_train), (x_test, y_test)` of MNIST.

    Returns:
        The same pairs, images `(samples, 28, 28, 1)` of mean 0 and standard
        deviation 1, labels one-hot.
    """
    (x_train, y_train), (x_test, y_test) = data
    mean, std = x_train.mean(), x_train.std()

    def standardized(x):
        return ((x[..., np.newaxis] - mean) / std).astype("float32")

    return (
        (standardized(x_train), to_categorical(y_train, 10)),
        (standardized(x_test), to_categorical(y_test, 10)),
    )


def build_model():
    """The 1-Lipschitz network, one score for each digit."""
    return Sequential(
        [
            Input(shape=(28, 28, 1)),
            # The arguments are those of `keras.layers.Conv2D`; `k_coef_lip`
            # comes on top, and the model below sets it.
            SpectralConv2D(
                filters=16,
                kernel_size=(3, 3),
                activation=GroupSort(2),
                use_bias=True,
                kernel_initializer="orthogonal",
            ),
            ScaledL2NormPooling2D(
                pool_size=(2, 2), data_format="channels_last"
            ),
            SpectralConv2D(
                filters=16,
                kernel_size=(3, 3),
                activation=GroupSort(2),
                use_bias=True,
                kernel_initializer="orthogonal",
            ),
            ScaledL2NormPooling2D(
                pool_size=(2, 2), data_format="channels_last"
            ),
            # Stock layers that do not expand distances fit in as they are.
            Flatten(),
            SpectralDense(
                32,
                activation=GroupSort(2),
                use_bias=True,
                kernel_initializer="orthogonal",
            ),
            # No activation at the end: the loss takes the scores.
            FrobeniusDense(
                10,
                activation=None,
                use_bias=False,
                kernel_initializer="orthogonal",
            ),
        ],
        k_coef_lip=1.0,
        name="hkr_model",
    )


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Trains a 1-Lipschitz classifier on MNIST with the "
        "multi-class HKR loss.",
        formatter_class=HelpFormatter,
    )
    add_data_argument(parser)
    parser.add_argument(
        "--epochs", type=int, default=30, help="training epochs"
    )
    parser.add_argument(
        "--batch-size", type=int, default=2048, help="images in a step"
    )
    parser.add_argument(
        "--alpha", type=float, default=50.0, help="weight of the hinge"
    )
    parser.add_argument(
        "--min-margin", type=float, default=0.1, help="margin of the hinge"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    return parser.parse_args(argv)


def main(argv=None):
    """Trains, prints the final figures and exports.

    Returns:
        Integer, the exit status: not zero if the export predicts something
        else than the model.
    """
    args = parse_arguments(argv)
    keras.utils.set_random_seed(args.seed)
    (x_train, y_train), (x_test, y_test) = prepare(
        args.data or download("mnist")
    )
    model = build_model()
    model.compile(
        loss=MulticlassHKR(alpha=args.alpha, min_margin=args.min_margin),
        optimizer=Adam(1e-3),
        metrics=["accuracy", MulticlassKR()],
    )
    model.summary()
    history = model.fit(
        x_train,
        y_train,
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_data=(x_test, y_test),
        shuffle=True,
    )
    for name in ("val_accuracy", "val_MulticlassKR"):
        print(f"{name}: {history.history[name][-1]:.4f}")

    # Dense and Conv2D instead of the constrained layers.
    vanilla_model = model.vanilla_export()
    difference = largest_difference(model, vanilla_model, x_test)
    print(f"Parameters of the exported model: {vanilla_model.count_params():,}")
    print(f"Largest difference of its scores: {difference:.1e}")
    return int(difference > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
