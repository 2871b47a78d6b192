"""Names each pixel of a scene, and certifies all of them at once.

Scenes are digits of scikit-learn, pasted on a noisy ground; the classes are the
ground and the ten digits, for each pixel. The network is 1-Lipschitz:
orthogonal convolutions, and scores of each pixel that a convolution with one
tap makes. An attack of some length can spoil a few pixels, not all whose own
radius is smaller: the table has both counts, for all pixels and for those of
the digits alone.

Takes two minutes on two cores.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import keras
import numpy as np
from common import HelpFormatter
from common import load_digits
from keras import ops

from deel.lip.certification import certify_pixels
from deel.lip.layers import GroupSort2
from deel.lip.layers import InvertibleDownSampling
from deel.lip.layers import InvertibleUpSampling
from deel.lip.layers import OrthogonalConv2D
from deel.lip.losses import OffsetCategoricalCrossentropy
from deel.lip.model import Sequential

SIZE = 32
GROUND = 0
CLASSES = 11

# Euclidean distances of scenes with pixels in [0, 1].
RADII = (0.1, 0.25, 0.5, 1.0)


def make_scenes(digits, labels, count, seed):
    """Pastes four digits into each scene, one in each quarter.

    Args:
        digits: Array `(digits, 8, 8)`, ink in [0, 1].
        labels: Array `(digits,)`, the numbers.
        count: Integer, the number of scenes.
        seed: Integer.

    Returns:
        Pair of the scenes `(count, 32, 32, 1)` and the class of each pixel
        `(count, 32, 32)`.
    """
    random = np.random.default_rng(seed)
    scenes = np.zeros((count, SIZE, SIZE))
    classes = np.full((count, SIZE, SIZE), GROUND)
    for scene, pixels in zip(scenes, classes, strict=True):
        for corner in range(4):
            chosen = random.integers(len(digits))
            row, column = random.integers(0, 9, size=2)
            row, column = row + 16 * (corner // 2), column + 16 * (corner % 2)
            place = np.s_[row : row + 8, column : column + 8]
            scene[place] = digits[chosen]
            pixels[place][digits[chosen] > 0.3] = 1 + labels[chosen]
    scenes = np.clip(scenes + random.normal(0.0, 0.05, scenes.shape), 0.0, 1.0)
    return scenes[..., np.newaxis].astype("float32"), classes


def build_model(width, depth):
    """A network of which all scores together are 1-Lipschitz.

    Args:
        width: Integer, the number of channels, a multiple of 4.
        depth: Integer, the number of convolutions that look around.
    """
    around = [
        OrthogonalConv2D(width, 3, activation=GroupSort2())
        for _ in range(depth)
    ]
    return Sequential(
        [
            keras.Input((SIZE, SIZE, 1)),
            # Four pixels are one with four channels, and nothing is lost.
            InvertibleDownSampling(2),
            *around,
            InvertibleUpSampling(2),
            # A matrix for the channels of each pixel: pairs of classes count.
            OrthogonalConv2D(CLASSES, 1),
        ],
        name="segmentation",
    )


def pixel_loss(offset, temperature):
    """A loss for vectors of scores, as the mean over all pixels."""
    loss = OffsetCategoricalCrossentropy(offset, temperature)

    def of_pixels(y_true, y_pred):
        y_true = ops.one_hot(ops.reshape(y_true, (-1,)), CLASSES)
        return loss(y_true, ops.reshape(y_pred, (-1, CLASSES)))

    return of_pixels


def train(model, data, args):
    """Compiles and fits the model.

    Returns:
        Float, the seconds that it took.
    """
    x, y = data
    steps = args.epochs * -(-len(x) // args.batch_size)
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(args.lr, steps)
        ),
        pixel_loss(args.offset, args.temperature),
        metrics=["accuracy"],
    )
    start = time.perf_counter()
    model.fit(
        x,
        y,
        batch_size=args.batch_size,
        epochs=args.epochs,
        verbose=args.verbose,
    )
    return time.perf_counter() - start


def print_table(title, certificates):
    """Prints accuracy, clean and certified, of the pixels that count."""
    jointly = certificates.certified_accuracy((0.0, *RADII))
    alone = certificates.certified_accuracy((0.0, *RADII), jointly=False)
    print(f"\n{title}\n  radius   all at once   one by one")
    for row in zip((0.0, *RADII), jointly, alone, strict=True):
        print("{:8.2f}{:14.4f}{:13.4f}".format(*row))


def draw(path, scene, certificates):
    """Draws a scene, what is seen in it, its radii, and the curve of all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    axes[0].imshow(scene[..., 0], cmap="gray_r")
    axes[1].imshow(certificates.prediction[0], cmap="tab20", vmax=19)
    for ax, title in zip(axes, ("scene", "classes"), strict=False):
        ax.set_title(title)
        ax.axis("off")
    certificates.plot_map(0, axes[2]).set_title("radii; wrong in red")
    certificates.plot(axes[3], np.linspace(0.0, 2 * max(RADII), 100))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Trains a 1-Lipschitz network that names each pixel, and "
        "certifies all pixels of a scene under one attack.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--scenes", type=int, default=2000, help="to train on")
    parser.add_argument("--test-scenes", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=64, help="channels")
    parser.add_argument("--depth", type=int, default=4, help="convolutions")
    parser.add_argument(
        "--lr", type=float, default=1e-2, help="falls to 0 along a cosine"
    )
    parser.add_argument(
        "--offset", type=float, default=0.15, help="lead that is asked for"
    )
    parser.add_argument("--temperature", type=float, default=0.03)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", type=int, choices=(0, 1, 2), default=1)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/segmentation"),
        help="folder of the results",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the program."""
    args = parse_arguments(argv)
    keras.utils.set_random_seed(args.seed)
    train_digits, test_digits = load_digits()
    model = build_model(args.width, args.depth)
    model.summary()
    data = make_scenes(*train_digits, args.scenes, args.seed)
    seconds = train(model, data, args)
    print(f"\nTrained in {seconds:.1f} seconds.")

    x, y = make_scenes(*test_digits, args.test_scenes, args.seed + 1)
    exported = model.vanilla_export()
    certificates = certify_pixels(exported, x, y)
    of_digits = certify_pixels(exported, x, y, ignore_class=GROUND)
    print(f"\n{certificates}")
    print_table("All pixels", certificates)
    print_table("Pixels of digits", of_digits)
    args.output.mkdir(parents=True, exist_ok=True)
    exported.save(args.output / "model.keras")
    summary = {
        "seconds": seconds,
        **certificates.to_dict(RADII),
        "of_digits": of_digits.to_dict(RADII),
    }
    results = args.output / "results.json"
    results.write_text(json.dumps(summary, indent=2) + "\n")
    try:
        draw(args.output / "pixels.png", x[0], certificates)
    except ImportError:
        print("No figure: matplotlib is not installed.")
    print(f"\nResults: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
