"""Two digits, 0 against 8, with the HKR loss in a plain Keras model.

The layers and losses need no model class of their own: here they are used in
`keras.Sequential`. The sign of the single score is the class, its magnitude the
distance within which that class is certain.

`min_margin` is the distance between the scores of both classes, half of it on
each side. Older texts that counted it in full on each side give half the
value: their 1 is 2 here.
"""

import argparse
import sys

import keras
from common import HelpFormatter
from common import add_data_argument
from common import as_images
from common import download
from common import largest_difference
from keras import Sequential
from keras.layers import Flatten
from keras.layers import Input
from keras.optimizers import Adam

from deel.lip.activations import GroupSort2
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import SpectralDense
from deel.lip.losses import HKR
from deel.lip.losses import KR
from deel.lip.losses import HingeMargin
from deel.lip.metrics import BinaryAccuracy
from deel.lip.model import vanillaModel

# What the export may differ by: the rounding of float32 sums.
TOLERANCE = 1e-4


def prepare(x, y, class_a=0, class_b=8):
    """Selects two digits and labels them 1 and -1.

    Args:
        x: Images of MNIST.
        y: Their digits.
        class_a: Integer, the digit with label 1.
        class_b: Integer, the digit with label -1.

    Returns:
        Images `(samples, 28, 28, 1)` in [0, 1], and labels `(samples, 1)`: a
        column like the scores, since Keras hands labels to metrics as they are.
    """
    selected = (y == class_a) | (y == class_b)
    labels = (y[selected] == class_a) * 2.0 - 1.0
    return as_images(x[selected]), labels.reshape(-1, 1).astype("float32")


def build_model():
    """The 1-Lipschitz network, a single score."""
    return Sequential(
        [
            Input((28, 28, 1)),
            Flatten(),
            SpectralDense(32, GroupSort2(), use_bias=True),
            SpectralDense(16, GroupSort2(), use_bias=True),
            FrobeniusDense(1, activation=None, use_bias=False),
        ],
        name="lipModel",
    )


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Trains a 1-Lipschitz classifier of the digits 0 and 8 "
        "with the HKR loss.",
        formatter_class=HelpFormatter,
    )
    add_data_argument(parser)
    parser.add_argument(
        "--epochs", type=int, default=10, help="training epochs"
    )
    parser.add_argument(
        "--batch-size", type=int, default=128, help="images in a step"
    )
    parser.add_argument(
        "--alpha", type=float, default=10.0, help="weight of the hinge"
    )
    parser.add_argument(
        "--min-margin", type=float, default=2.0, help="margin of the hinge"
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
    train, test = args.data or download("mnist")
    x_train, y_train = prepare(*train)
    x_test, y_test = prepare(*test)
    for name, labels in (("train", y_train), ("test", y_test)):
        share = 100 * (labels > 0).mean()
        print(f"{name}: {len(labels)} images, {share:.3f} % of them 0")

    model = build_model()
    model.summary()
    model.compile(
        loss=HKR(alpha=args.alpha, min_margin=args.min_margin),
        metrics=[
            KR,
            HingeMargin(min_margin=args.min_margin),
            BinaryAccuracy(),
        ],
        optimizer=Adam(learning_rate=1e-3),
    )
    history = model.fit(
        x_train,
        y_train,
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_data=(x_test, y_test),
        shuffle=True,
    )
    for name in ("val_KR", "val_HingeMargin", "val_binary_accuracy"):
        print(f"{name}: {history.history[name][-1]:.4f}")

    vanilla_model = vanillaModel(model)
    difference = largest_difference(model, vanilla_model, x_test)
    print(f"Parameters of the exported model: {vanilla_model.count_params():,}")
    print(f"Largest difference of its scores: {difference:.1e}")
    return int(difference > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
