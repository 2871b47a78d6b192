"""Trains a network of `deel.lip.applications` for certified accuracy.

The network, the loss and the data are chosen on the command line; what is
certified afterwards is the exported model, from its weights alone. The output
folder gets the model, a table, a figure and a log of the training; with
`--resume`, a training that was interrupted goes on from its last epoch.

On MNIST, `--dataset mnist --optimizer muon --lr 0.1 --batch-size 1024
--epochs 40 --offset 3.2 --rounding float32` trains the MLP to an accuracy of
0.977, certified for 0.943 of the images at a radius of 0.5 and for 0.704 at
1.58, in 7 minutes of processor time; doc/recipes has more.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import keras
import numpy as np
from common import Augmented
from common import HelpFormatter
from common import add_data_argument
from common import add_dataset_argument
from common import load_data

from deel.lip import applications
from deel.lip.certification import certify
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import GroupSort2
from deel.lip.layers import LipResidual
from deel.lip.layers import OrthogonalConv2D
from deel.lip.layers import SpectralDense
from deel.lip.losses import EMMA
from deel.lip.losses import LogitAnnealing
from deel.lip.losses import MulticlassHKR
from deel.lip.losses import OffsetCategoricalCrossentropy
from deel.lip.model import Model
from deel.lip.model import Sequential
from deel.lip.optimizers import Muon

# Euclidean distances, for pixels in [0, 1].
RADII = {
    "digits": (0.25, 0.5, 1.0),
    "mnist": (0.5, 1.0, 1.58),
    "fashion_mnist": (0.25, 0.5, 1.0),
    "cifar10": (36 / 255, 72 / 255, 108 / 255, 1.0),
}


MLP_UNITS = {
    "S": (512, 512, 512, 256),
    "M": (1024, 1024, 1024, 512),
    "L": (2048, 2048, 2048, 1024),
}


def mlp(size, input_shape, classes):
    """Dense layers that sort; each score is 1-Lipschitz."""
    hidden = [
        SpectralDense(units, activation=GroupSort2())
        for units in MLP_UNITS[size]
    ]
    return Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            *hidden,
            FrobeniusDense(classes, use_bias=False),
        ],
        name="mlp",
    )


FILTERS = {"S": 16, "M": 32, "L": 64}


def cnn(size, input_shape, classes, center=0.0, units=(512, 256)):
    """Images halved at once, then residual blocks and dense layers.

    What all images share is most of their norm, and kernels that keep norms
    would carry it, and what it rounds, through the network: `center` is taken
    off each value first.
    """
    filters, side = FILTERS[size], input_shape[0] // 2
    inputs = keras.Input(input_shape)
    x = inputs
    if center:
        x = keras.layers.Rescaling(1.0, offset=-center)(x)
    x = OrthogonalConv2D(filters, 4, strides=2, activation=GroupSort2())(x)
    while side > 4 and side % 2 == 0:
        y = OrthogonalConv2D(filters, 3, activation=GroupSort2())(x)
        y = OrthogonalConv2D(filters, 3)(y)
        x = GroupSort2()(LipResidual()([x, y]))
        filters, side = 2 * filters, side // 2
        x = OrthogonalConv2D(filters, 4, strides=2, activation=GroupSort2())(x)
    x = keras.layers.Flatten()(x)
    for count in units:
        x = SpectralDense(count, activation=GroupSort2())(x)
    x = FrobeniusDense(classes, use_bias=False)(x)
    return Model(inputs=inputs, outputs=x, name="cnn")


MODELS = {
    "mlp": mlp,
    "cnn": cnn,
    "vgg": applications.VGG,
    "liresnet": applications.LiResNet,
    "orthogonal_resnet": applications.OrthogonalResNet,
    "lipnext": applications.LipNeXt,
}

LOSSES = {
    "offset": lambda args, model: OffsetCategoricalCrossentropy(
        args.offset, args.temperature
    ),
    "annealing": lambda args, model: LogitAnnealing(
        args.offset, args.temperature, args.beta
    ),
    # The features are 1-Lipschitz, the columns of the last layer know the rest.
    "emma": lambda args, model: EMMA(args.epsilon, last_layer=model.layers[-1]),
    "hkr": lambda args, model: MulticlassHKR(args.alpha, args.margin),
}


OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "lion": keras.optimizers.Lion,
    "muon": Muon,
    "sgd": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
}


def augmentation(args):
    """The Keras layers that change the training images."""
    layers = []
    if args.flip:
        layers.append(keras.layers.RandomFlip("horizontal", seed=args.seed))
    if args.rotate > 0:
        layers.append(
            keras.layers.RandomRotation(
                args.rotate / 360, args.fill, seed=args.seed
            )
        )
    if args.zoom > 0:
        layers.append(
            keras.layers.RandomZoom(args.zoom, None, args.fill, seed=args.seed)
        )
    if args.shift > 0:
        layers.append(
            keras.layers.RandomTranslation(
                args.shift, args.shift, args.fill, seed=args.seed
            )
        )
    return layers


def callbacks(args):
    """Logs, and a backup after each epoch."""
    backup = args.output / "backup"
    if not args.resume:
        shutil.rmtree(backup, ignore_errors=True)
    used = [
        keras.callbacks.BackupAndRestore(backup),
        keras.callbacks.CSVLogger(
            args.output / "history.csv", append=args.resume
        ),
    ]
    if args.tensorboard:
        used.append(keras.callbacks.TensorBoard(args.output / "logs"))
    return used


def train(model, train_data, test_data, args):
    """Compiles and fits the model.

    Returns:
        Float, the seconds that it took.
    """
    (x, y), (x_test, y_test) = train_data, test_data
    classes = model.output_shape[-1]
    data = Augmented(
        x,
        keras.utils.to_categorical(y, classes),
        args.batch_size,
        augmentation(args),
        args.seed,
    )
    rate = keras.optimizers.schedules.CosineDecay(
        args.lr, args.epochs * len(data)
    )
    model.compile(
        OPTIMIZERS[args.optimizer](rate),
        LOSSES[args.loss](args, model),
        metrics=["accuracy"],
        jit_compile=args.jit_compile,
    )
    start = time.perf_counter()
    model.fit(
        data,
        epochs=args.epochs,
        validation_data=(x_test, keras.utils.to_categorical(y_test, classes)),
        validation_batch_size=500,
        callbacks=callbacks(args),
        verbose=args.verbose,
    )
    return time.perf_counter() - start


def build(args, input_shape, classes):
    choices = {}
    if args.model == "cnn":
        choices = {"center": args.center, "units": args.units}
    return MODELS[args.model](
        args.size, input_shape=input_shape, classes=classes, **choices
    )


def evaluate(model, data, args):
    """Certifies the export of a model in single precision.

    Half precision is for training only: what a product of it rounds away, a
    certificate would have to give back.
    """
    x, y = data
    keras.config.set_dtype_policy("float32")
    precise = build(args, x.shape[1:], model.output_shape[-1])
    precise.set_weights(model.get_weights())
    exported = precise.vanilla_export()
    return exported, certify(exported, x, y, rounding=args.rounding)


def print_table(certificates, radii):
    """Prints accuracy, clean and certified."""
    shares = certificates.certified_accuracy((0.0, *radii))
    print("\n  radius    accuracy")
    for radius, share in zip((0.0, *radii), shares, strict=True):
        kind = "certified" if radius else "clean"
        print(f"{radius:8.3f}{share:12.4f}  {kind}")


def draw(path, certificates, radii):
    """Draws certified accuracy against the radius."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    epsilons = np.linspace(0.0, 1.5 * max(radii), 300)
    certificates.plot(axes, epsilons)
    for radius in radii:
        axes.axvline(radius, color="0.8", linewidth=0.8, zorder=0)
    axes.set_title("Test images, pixels in [0, 1]")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Trains a 1-Lipschitz network for certified accuracy.",
        formatter_class=HelpFormatter,
    )
    add_dataset_argument(parser)
    add_data_argument(parser)
    parser.add_argument(
        "--limit", type=int, help="use the first training images only"
    )
    parser.add_argument("--model", choices=tuple(MODELS), default="mlp")
    parser.add_argument("--size", choices=applications.SIZES, default="S")
    parser.add_argument(
        "--center",
        type=float,
        default=0.0,
        help="taken off each pixel by the first layer of cnn",
    )
    parser.add_argument(
        "--units",
        type=int,
        nargs="+",
        default=(512, 256),
        help="of the dense layers of cnn; more of them for easier data",
    )
    parser.add_argument(
        "--policy",
        default="float32",
        help="dtype policy of the training, such as mixed_bfloat16; "
        "certificates are always those of float32",
    )
    parser.add_argument(
        "--jit-compile",
        action="store_true",
        help="compile the step with XLA, where the backend does not anyway",
    )

    loss = parser.add_argument_group("loss")
    loss.add_argument("--loss", choices=tuple(LOSSES), default="offset")
    loss.add_argument(
        "--offset", type=float, default=2.0, help="of offset and annealing"
    )
    loss.add_argument(
        "--temperature",
        type=float,
        default=0.25,
        help="of offset and annealing",
    )
    loss.add_argument("--beta", type=float, default=5.0, help="of annealing")
    loss.add_argument("--epsilon", type=float, default=1.0, help="of emma")
    loss.add_argument("--alpha", type=float, default=50.0, help="of hkr")
    loss.add_argument("--margin", type=float, default=1.0, help="of hkr")

    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=20)
    training.add_argument(
        "--optimizer", choices=tuple(OPTIMIZERS), default="adam"
    )
    training.add_argument("--batch-size", type=int, default=256)
    training.add_argument(
        "--lr", type=float, default=1e-3, help="falls to 0 along a cosine"
    )
    training.add_argument("--seed", type=int, default=0)
    training.add_argument(
        "--resume", action="store_true", help="go on from the last epoch"
    )

    changes = parser.add_argument_group("augmentation")
    changes.add_argument("--flip", action="store_true", help="left and right")
    changes.add_argument(
        "--shift", type=float, default=0.0, help="share of the size"
    )
    changes.add_argument(
        "--rotate", type=float, default=0.0, help="largest angle, in degrees"
    )
    changes.add_argument(
        "--zoom", type=float, default=0.0, help="largest change of the size"
    )
    changes.add_argument(
        "--fill",
        choices=("constant", "nearest", "reflect", "wrap"),
        default="constant",
        help="what enters at the borders; constant is black",
    )

    parser.add_argument(
        "--rounding",
        choices=("exact", "estimated", "float32"),
        default="exact",
        help="certify the network of real numbers, or the one that runs in "
        "float32, whose rounding is then estimated or proven",
    )
    parser.add_argument("--tensorboard", action="store_true")
    parser.add_argument("--verbose", type=int, choices=(0, 1, 2), default=1)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/certified"),
        help="folder of the results",
    )
    args = parser.parse_args(argv)
    if args.center and args.model != "cnn":
        parser.error(
            "--center is for --model cnn. Received: "
            f"--center {args.center} --model {args.model}"
        )
    return args


def main(argv=None):
    """Runs the program."""
    args = parse_arguments(argv)
    keras.utils.set_random_seed(args.seed)
    train_data, test_data = load_data(args)
    classes = 1 + int(max(train_data[1].max(), test_data[1].max()))
    args.output.mkdir(parents=True, exist_ok=True)

    keras.config.set_dtype_policy(args.policy)
    model = build(args, train_data[0].shape[1:], classes)
    model.summary()
    seconds = train(model, train_data, test_data, args)
    print(f"\nTrained in {seconds:.1f} seconds.")

    exported, certificates = evaluate(model, test_data, args)
    radii = RADII[args.dataset]
    print_table(certificates, radii)
    exported.save(args.output / "model.keras")
    summary = {
        "seconds": seconds,
        "parameters": exported.count_params(),
        **certificates.to_dict(radii),
    }
    results = args.output / "results.json"
    results.write_text(json.dumps(summary, indent=2) + "\n")
    try:
        draw(args.output / "certified.png", certificates, radii)
    except ImportError:
        print("No figure: matplotlib is not installed.")
    print(f"\nResults: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
