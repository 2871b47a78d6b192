"""Trains a generator of digits against a critic of known constant.

The critic of a WGAN has to be 1-Lipschitz. Elsewhere weights are clipped, or a
penalty on gradients asks for it; here it is by construction, so that the loop
is the plain one: the critic tells digits from generated ones for some batches,
then the generator raises its scores for one. Nothing in it names a backend.

In the end new critics, trained from other seeds, prove how far generated
samples are from real ones at least, in the Wasserstein-1 distance. That of two
sets of real digits says what is due to their number.

Takes two minutes on one core.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import keras
import numpy as np
from common import HelpFormatter
from common import add_data_argument
from common import as_images
from common import load_digits
from keras import ops

from deel.lip.activations import GroupSort2
from deel.lip.certification import wasserstein_distance
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import SpectralDense
from deel.lip.losses import NegKR
from deel.lip.model import Sequential

NOISE = 16


def build_critic(shape, units=128):
    """A 1-Lipschitz score of images."""
    return Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            SpectralDense(units, activation=GroupSort2()),
            SpectralDense(units, activation=GroupSort2()),
            SpectralDense(units, activation=GroupSort2()),
            FrobeniusDense(1),
        ],
        name="critic",
    )


def build_generator(shape, units=128):
    """A stock network from noise to images with pixels in [0, 1]."""
    return keras.Sequential(
        [
            keras.Input((NOISE,)),
            keras.layers.Dense(units, activation="relu"),
            keras.layers.Dense(units, activation="relu"),
            keras.layers.Dense(int(np.prod(shape)), activation="sigmoid"),
            keras.layers.Reshape(shape),
        ],
        name="generator",
    )


def negative_mean(y_true, y_pred):
    """The loss of the generator: it wants large scores, whatever the label."""
    return -ops.mean(y_pred, axis=-1)


def generate(generator, count, random):
    """Images of noise, an array."""
    noise = random.normal(size=(count, NOISE)).astype("float32")
    return ops.convert_to_numpy(generator(noise, training=False))


def both(real, generated):
    """Samples of both kinds with their labels, for `KR`."""
    labels = np.repeat([1.0, 0.0], [len(real), len(generated)])
    return np.concatenate([real, generated]), labels[:, np.newaxis]


def train(generator, critic, x, args, random):
    """Trains both in turns.

    Returns:
        List of the mean losses of the critic in each epoch: the distance that
        it sees, with the opposite sign.
    """
    critic.compile(keras.optimizers.Adam(args.critic_lr), NegKR())
    # The generator is trained through the critic, whose weights stay.
    stacked = keras.Sequential([generator, critic])
    stacked.compile(keras.optimizers.Adam(args.lr), negative_mean)
    unused = np.zeros((args.batch_size, 1), "float32")
    losses = []
    for epoch in range(args.epochs):
        of_epoch = []
        for _ in range(args.steps):
            critic.trainable = True
            for _ in range(args.critic_steps):
                real = x[random.integers(len(x), size=args.batch_size)]
                made = generate(generator, args.batch_size, random)
                of_epoch.append(critic.train_on_batch(*both(real, made)))
            critic.trainable = False
            noise = random.normal(size=(args.batch_size, NOISE))
            stacked.train_on_batch(noise.astype("float32"), unused)
        losses.append(float(np.mean(of_epoch)))
        if args.verbose:
            print(f"Epoch {epoch + 1}: distance {-losses[-1]:.4f}")
    critic.trainable = True
    return losses


def prove(trained_on, asked_about, args):
    """What new critics, one for each seed, prove of the distance of two sets.

    Args:
        trained_on: Pair of arrays of images, for the critics.
        asked_about: Pair of arrays of other images, whose distance is proven.
        args: The arguments of the command line.

    Returns:
        A `WassersteinBound`.
    """
    critics = []
    for seed in range(args.critics):
        keras.utils.set_random_seed(1000 + args.seed + seed)
        critic = build_critic(trained_on[0].shape[1:])
        critic.compile(keras.optimizers.Adam(args.critic_lr), NegKR())
        samples, labels = both(*trained_on)
        critic.fit(
            samples,
            labels,
            batch_size=args.batch_size,
            epochs=args.critic_epochs,
            verbose=0,
        )
        critics.append(critic)
    return wasserstein_distance(critics, *asked_about, verbose=0)


def draw(path, images):
    """Draws rows of images."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # A row and a column of paper between the images.
    images = np.pad(images[..., 0], ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns, height, width = images.shape
    sheet = images.transpose(0, 2, 1, 3)
    sheet = sheet.reshape(rows * height, columns * width)
    figure, ax = plt.subplots(figsize=(columns / 2, rows / 2))
    ax.imshow(sheet, cmap="gray_r", vmin=0.0, vmax=1.0)
    ax.axis("off")
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Trains a generator of digits against a 1-Lipschitz "
        "critic, and proves how far its samples are from real ones at least.",
        formatter_class=HelpFormatter,
    )
    add_data_argument(parser)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument(
        "--steps", type=int, default=100, help="of the generator, in an epoch"
    )
    parser.add_argument(
        "--critic-steps", type=int, default=3, help="for each of these"
    )
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--critic-lr", type=float, default=1e-2)
    parser.add_argument(
        "--critics", type=int, default=3, help="that prove the distance"
    )
    parser.add_argument("--critic-epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", type=int, choices=(0, 1), default=1)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/wgan"),
        help="folder of the results",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the program."""
    args = parse_arguments(argv)
    keras.utils.set_random_seed(args.seed)
    random = np.random.default_rng(args.seed)
    (x, _), (x_test, _) = args.data or load_digits()
    x, x_test = as_images(x), as_images(x_test)
    generator, critic = build_generator(x.shape[1:]), build_critic(x.shape[1:])
    before = [generate(generator, len(y), random) for y in (x, x_test)]
    start = time.perf_counter()
    losses = train(generator, critic, x, args, random)
    seconds = time.perf_counter() - start
    print(f"\nTrained in {seconds:.1f} seconds.")

    made = [generate(generator, len(y), random) for y in (x, x_test)]
    real = x, x_test
    bounds = {
        name: prove(*pairs, args)
        for name, pairs in (
            ("before training", zip(real, before, strict=True)),
            ("generated", zip(real, made, strict=True)),
            ("other real digits", [(y[::2], y[1::2]) for y in real]),
        )
    }
    print("\nReal digits and ...     proven distance   spread over critics")
    for name, bound in bounds.items():
        print(f"{name:<22}{bound.distance:14.4f}{bound.spread:18.4f}")
    args.output.mkdir(parents=True, exist_ok=True)
    generator.save(args.output / "generator.keras")
    summary = {
        "backend": keras.backend.backend(),
        "seconds": seconds,
        "losses": losses,
        "bounds": {name: bound.to_dict() for name, bound in bounds.items()},
    }
    results = args.output / "results.json"
    results.write_text(json.dumps(summary, indent=2) + "\n")
    try:
        shown = [x_test[:20], made[1][:20]]
        draw(
            args.output / "samples.png",
            np.reshape(shown, (4, 10, *x.shape[1:])),
        )
    except ImportError:
        print("No figure: matplotlib is not installed.")
    print(f"\nResults: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
