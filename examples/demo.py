"""Trains a 1-Lipschitz classifier, certifies its predictions, attacks them.

A network that moves its outputs by at most as much as its input moves cannot
be fooled by a small change of the image: how small is read off the scores, with
no further computation. The program shows that on real digits within a minute,
and checks the promise with an attack that looks for a counterexample.

It leaves three files in the output folder: the exported model, which is plain
Keras, a figure, and the numbers behind it.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import keras
import numpy as np
from common import HelpFormatter
from common import accuracy_beyond
from common import add_data_argument
from common import add_dataset_argument
from common import largest_difference
from common import load_data

from deel.lip.activations import GroupSort2
from deel.lip.certification import attack_distances
from deel.lip.certification import certify
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import ScaledL2NormPooling2D
from deel.lip.layers import SpectralConv2D
from deel.lip.layers import SpectralDense
from deel.lip.losses import MulticlassHKR
from deel.lip.model import Sequential

RADII = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5)

# What a reloaded model may differ by: the rounding of float32 sums.
TOLERANCE = 1e-5


def build_model(input_shape, classes):
    """A small convolutional network, 1-Lipschitz as a whole.

    Layers that keep distances make the best use of the constant: a convolution
    does if it has as many filters as its window has values, which 2x2 windows
    that do not overlap afford at each halving of the image. Pooling is
    cheaper and loses more, so it is left to the first halving of images large
    enough to have details to spare.

    Args:
        input_shape: Tuple `(height, width, channels)`.
        classes: Integer, number of classes.

    Returns:
        A `deel.lip.model.Sequential`, one score for each class.
    """
    size = max(input_shape[:2])
    filters = 16 * input_shape[-1]
    layers = [
        keras.Input(input_shape),
        SpectralConv2D(filters, 3, activation=GroupSort2()),
    ]
    if size > 16:
        layers.append(ScaledL2NormPooling2D())
        size //= 2
    while size > 4:
        filters *= 2
        layers.append(
            SpectralConv2D(filters, 2, strides=2, activation=GroupSort2())
        )
        size = (size + 1) // 2
    layers += [
        keras.layers.Flatten(),
        SpectralDense(256, activation=GroupSort2()),
        SpectralDense(64, activation=GroupSort2()),
        # Each column of this kernel has norm one by itself.
        FrobeniusDense(classes, use_bias=False),
    ]
    return Sequential(layers, k_coef_lip=1.0, name="lipschitz_classifier")


def train(model, train_data, test_data, args):
    """Trains with the HKR loss and the progress bar of Keras.

    Returns:
        Float, the seconds that it took.
    """
    x, y = train_data
    steps = args.epochs * -(-len(x) // args.batch_size)
    model.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(0.01, steps)
        ),
        loss=MulticlassHKR(
            alpha=args.alpha, min_margin=args.min_margin, soft_hinge_tau=10.0
        ),
        metrics=["accuracy"],
    )
    classes = model.output_shape[-1]
    x_test, y_test = test_data
    start = time.perf_counter()
    model.fit(
        x,
        keras.utils.to_categorical(y, classes),
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_data=(x_test, keras.utils.to_categorical(y_test, classes)),
    )
    return time.perf_counter() - start


def evaluate(exported, test_data, args):
    """Certifies all test images and attacks the first of them.

    Args:
        exported: The exported model, which is what runs.
        test_data: Pair of images and class numbers.
        args: Arguments of the program.

    Returns:
        Dictionary of arrays with one value for each test image (`predicted`,
        `correct`, `certified`) or for each that was attacked (`attacked`, the
        distance of the closest image that was found with another prediction),
        the `largest` radius of the search, and the proven Lipschitz
        `constant` of the network.
    """
    x, y = test_data
    # The bound is measured on the weights of what runs: no layer is taken at
    # its word. The attack runs in float32, so that is what is certified.
    certificates = certify(exported, x, y, rounding="float32")
    count = min(args.attack_samples, len(x))
    own = certificates.radius[:count]
    largest = 1.25 * np.max(own)
    # The radii of the table, those where a certificate would break, and one
    # beyond all certificates.
    attacked = attack_distances(
        exported,
        x[:count],
        certificates.prediction[:count],
        [*RADII, own, 1.5 * own, largest],
        steps=args.attack_steps,
        restarts=args.attack_restarts,
        bounds=(0.0, 1.0),
        seed=args.seed,
    )
    return {
        "predicted": certificates.prediction,
        "correct": certificates.correct,
        "certified": certificates.radius,
        "attacked": attacked,
        "constant": certificates.lipschitz_constant,
        "largest": largest,
    }


def summarize(evaluation):
    """Numbers of the table, as plain Python values.

    Args:
        evaluation: What `evaluate` returned.

    Returns:
        Dictionary that `json` can write.
    """
    correct, certified = evaluation["correct"], evaluation["certified"]
    attacked = evaluation["attacked"]
    own, own_certified = correct[: len(attacked)], certified[: len(attacked)]
    return {
        "accuracy": float(np.mean(correct)),
        "test_samples": len(correct),
        "radii": list(RADII),
        "certified": accuracy_beyond(RADII, correct, certified).tolist(),
        "attacked_samples": len(attacked),
        "attacked_certified": accuracy_beyond(
            RADII, own, own_certified
        ).tolist(),
        "under_attack": accuracy_beyond(RADII, own, attacked).tolist(),
        "broken": int(np.sum(attacked < own_certified)),
    }


def print_table(summary):
    """Prints accuracy against radius, certified and under attack."""
    some = summary["attacked_samples"]
    print(
        f"\nClean accuracy: {summary['accuracy']:.4f} "
        f"on {summary['test_samples']} test images"
    )
    print("Radii are Euclidean distances, for pixels in [0, 1].\n")
    print(f"          all images   the {some} images that were attacked")
    print("  radius   certified   certified   under attack")
    names = ("radii", "certified", "attacked_certified", "under_attack")
    for row in zip(*(summary[name] for name in names), strict=True):
        print("{:8.2f}{:12.3f}{:12.3f}{:15.3f}".format(*row))
    print(f"\nCertificates broken: {summary['broken']} of {some}")


def draw(path, test_data, evaluation):
    """Draws accuracy against radius, and some images with their radius.

    Args:
        path: Where the figure goes.
        test_data: Pair of images and class numbers.
        evaluation: What `evaluate` returned.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    attacked = evaluation["attacked"]
    correct = evaluation["correct"][: len(attacked)]
    certified = evaluation["certified"][: len(attacked)]
    radii = np.linspace(0.0, evaluation["largest"], 400)
    lower = accuracy_beyond(radii, correct, certified)
    upper = accuracy_beyond(radii, correct, attacked)

    figure = plt.figure(figsize=(11.5, 4.8), layout="constrained")
    curves, images = figure.subfigures(1, 2, width_ratios=(1.25, 1.0))
    axes = curves.subplots()
    axes.plot(radii, upper, color="tab:red", label="under attack (at most)")
    axes.fill_between(
        radii, lower, upper, color="0.88", label="neither broken nor proven"
    )
    axes.plot(radii, lower, color="tab:blue", label="certified (at least)")
    axes.set_xlabel("Euclidean radius (pixels in [0, 1])")
    axes.set_ylabel("accuracy")
    axes.set_xlim(0.0, radii[-1])
    axes.set_ylim(0.0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    axes.set_title(f"Robust accuracy of {len(attacked)} test images")

    images.suptitle("Predicted class and certified radius")
    x, y = test_data
    for index, cell in enumerate(images.subplots(3, 4).flat):
        if index >= len(x):
            cell.axis("off")
            continue
        cell.set(xticks=[], yticks=[])
        cell.imshow(np.squeeze(x[index]), cmap="gray_r", vmin=0.0, vmax=1.0)
        title = (
            f"{evaluation['predicted'][index]}  "
            f"r = {evaluation['certified'][index]:.2f}"
        )
        wrong = not evaluation["correct"][index]
        if wrong:
            title += f"\n(is {y[index]})"
        cell.set_title(title, fontsize=10, color="tab:red" if wrong else "k")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Trains a 1-Lipschitz classifier, certifies its "
        "predictions and attacks them.",
        formatter_class=HelpFormatter,
    )
    add_dataset_argument(parser)
    add_data_argument(parser)
    parser.add_argument(
        "--epochs", type=int, default=20, help="training epochs"
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, help="images in a step"
    )
    parser.add_argument(
        "--alpha", type=float, default=20.0, help="weight of the hinge"
    )
    parser.add_argument(
        "--min-margin", type=float, default=1.2, help="margin of the hinge"
    )
    parser.add_argument(
        "--limit", type=int, help="use the first training images only"
    )
    parser.add_argument(
        "--attack-samples", type=int, default=200, help="images to attack"
    )
    parser.add_argument(
        "--attack-steps", type=int, default=30, help="gradient steps in a run"
    )
    parser.add_argument(
        "--attack-restarts", type=int, default=3, help="runs in each ball"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/demo"),
        help="folder of the results",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the demo.

    Returns:
        Integer, the exit status: not zero if a certificate was broken or the
        saved model predicts something else.
    """
    args = parse_arguments(argv)
    keras.utils.set_random_seed(args.seed)
    train_data, test_data = load_data(args)
    classes = 1 + int(max(train_data[1].max(), test_data[1].max()))

    model = build_model(train_data[0].shape[1:], classes)
    model.summary()
    seconds = train(model, train_data, test_data, args)
    print(f"\nTrained in {seconds:.1f} seconds.")
    print(
        f"Lipschitz constant k = {model.k_coef_lip:g}: no score changes by "
        f"more than {model.k_coef_lip:g} times the distance that the image "
        "is moved."
    )

    # Refuses to export a network that does not keep its promise.
    exported = model.vanilla_export(verify=True)
    evaluation = evaluate(exported, test_data, args)
    print(
        "Proven from the weights of the export: the vector of scores changes "
        f"by at most {evaluation['constant']:.4f} times that distance."
    )
    summary = summarize(evaluation)
    print_table(summary)

    args.output.mkdir(parents=True, exist_ok=True)
    saved = args.output / "model.keras"
    exported.save(saved)
    reloaded = keras.models.load_model(saved)
    difference = largest_difference(model, reloaded, test_data[0])
    print(f"Exported model: {saved}")
    print(f"Largest difference of a score after reloading: {difference:.1e}")

    summary = {**summary, "seconds": seconds, "difference": difference}
    results = args.output / "results.json"
    results.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"Numbers: {results}")
    try:
        figure = args.output / "robustness.png"
        draw(figure, test_data, evaluation)
        print(f"Figure: {figure}")
    except ImportError:
        print("No figure: matplotlib is not installed.")
    return int(summary["broken"] > 0 or difference > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
