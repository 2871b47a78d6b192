"""Certified classifiers of sequences: a recurrent network beside a convolution.

Noisy waves of four frequencies with any phase, made up on the spot: what is
asked for is nowhere in a single step, and at no fixed place. Three 1-Lipschitz
networks with about the same number of weights learn it: an `OrthogonalRNN` that
forgets, one whose memory lasts, and `SpectralConv1D`. Each prediction comes
with a radius that no perturbation of the whole sequence can change it within,
and with an attack that tries.
"""

import argparse
import sys

import keras
import numpy as np
from common import HelpFormatter
from common import accuracy_beyond

from deel.lip.activations import GroupSort2
from deel.lip.certification import attack_distances
from deel.lip.certification import certify
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import OrthogonalRNN
from deel.lip.layers import SpectralConv1D
from deel.lip.layers import SpectralDense
from deel.lip.losses import MulticlassHKR
from deel.lip.model import Sequential

# Periods in a sequence, one number for each class.
FREQUENCIES = (1.5, 2.5, 3.5, 4.5)
RADII = (0.5, 1.0, 1.5)


def waves(samples, steps, noise, seed):
    """Waves of random phase with noise.

    Returns:
        Arrays `(samples, steps, 1)`, float32, and `(samples,)`, the classes.
    """
    random = np.random.default_rng(seed)
    classes = random.integers(len(FREQUENCIES), size=samples)
    frequencies = np.array(FREQUENCIES)[classes][:, None]
    phases = random.uniform(0, 2 * np.pi, (samples, 1))
    time = np.arange(steps) / steps
    x = np.sin(2 * np.pi * frequencies * time + phases)
    x += noise * random.normal(size=x.shape)
    return x[..., None].astype("float32"), classes


def recurrent(memory, units):
    """The part of a network that reads a sequence, to its last state."""
    return [OrthogonalRNN(units, activation=GroupSort2(), memory=memory)]


def convolutional(units):
    """The same by convolutions, with a stride in place of pooling."""
    return [
        SpectralConv1D(units // 4, 5, strides=2, activation=GroupSort2()),
        SpectralConv1D(units // 4, 5, strides=2, activation=GroupSort2()),
        keras.layers.Flatten(),
    ]


def build_model(read, steps, units):
    """A 1-Lipschitz classifier, with a score for each class."""
    return Sequential(
        [
            keras.Input((steps, 1)),
            *read,
            SpectralDense(units, activation=GroupSort2()),
            SpectralDense(units, activation=GroupSort2()),
            FrobeniusDense(len(FREQUENCIES)),
        ]
    )


def evaluate(model, x, y, args):
    """What is certified of a model, and what an attack finds.

    Returns:
        Dictionary of the accuracy, the median certified radius, what is
        certified and what is left by the attack within each of `RADII`, and the
        number of samples that the attack changes within their own radius.
    """
    certificates = certify(model, x, y, rounding="float32")
    correct = certificates.correct
    attacked = slice(args.attack_samples)
    distances = attack_distances(
        model, x[attacked], y[attacked], RADII, steps=args.attack_steps
    )
    within = distances < np.where(correct, certificates.radius, 0.0)[attacked]
    return {
        "accuracy": certificates.accuracy,
        "median radius": float(np.median(certificates.radius)),
        "certified": accuracy_beyond(RADII, correct, certificates.radius),
        "under attack": accuracy_beyond(RADII, correct[attacked], distances),
        "broken": int(np.sum(within)),
    }


def show(results):
    """Prints a row for each network."""
    heads = [f"{what} {r}" for what in ("cert.", "att.") for r in RADII]
    print(f"{'network':<12}{'weights':>9}{'accuracy':>10}{'radius':>8}", end="")
    print("".join(f"{head:>12}" for head in heads))
    for name, found in results.items():
        print(
            f"{name:<12}{found['weights']:>9,}{found['accuracy']:>10.3f}"
            f"{found['median radius']:>8.2f}",
            end="",
        )
        shares = *found["certified"], *found["under attack"]
        print("".join(f"{share:>12.3f}" for share in shares))


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Certifies recurrent and convolutional classifiers of "
        "noisy waves.",
        formatter_class=HelpFormatter,
    )
    numbers = {
        "samples": (2000, "sequences for training"),
        "steps": (32, "steps of a sequence"),
        "units": (64, "dimension of the states"),
        "epochs": (15, "training epochs"),
        "batch-size": (100, "sequences in a step"),
        "attack-samples": (200, "sequences that are attacked"),
        "attack-steps": (30, "gradient steps of the attack"),
        "seed": (0, "random seed"),
    }
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument(
        "--noise", type=float, default=0.5, help="deviation of the noise"
    )
    parser.add_argument(
        "--alpha", type=float, default=10.0, help="weight of the hinge"
    )
    parser.add_argument(
        "--min-margin", type=float, default=1.0, help="margin of the hinge"
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Trains and certifies the networks, and prints a table.

    Returns:
        Integer, the exit status: not zero if an attack succeeds within a
        certified radius.
    """
    args = parse_arguments(argv)
    x, y = waves(args.samples, args.steps, args.noise, args.seed + 1)
    x_test, y_test = waves(1000, args.steps, args.noise, args.seed + 2)
    networks = {
        "forgetting": lambda: recurrent("forgetting", args.units),
        "lasting": lambda: recurrent("lasting", args.units),
        "convolution": lambda: convolutional(args.units),
    }
    results = {}
    for name, read in networks.items():
        keras.utils.set_random_seed(args.seed)
        model = build_model(read(), args.steps, args.units)
        loss = MulticlassHKR(alpha=args.alpha, min_margin=args.min_margin)
        decay = keras.optimizers.schedules.CosineDecay(
            3e-3, args.epochs * (args.samples // args.batch_size)
        )
        model.compile(keras.optimizers.Adam(decay), loss)
        model.fit(
            x,
            keras.utils.to_categorical(y, len(FREQUENCIES)),
            batch_size=args.batch_size,
            epochs=args.epochs,
            verbose=0,
        )
        exported = model.vanilla_export()
        found = evaluate(exported, x_test, y_test, args)
        results[name] = {"weights": exported.count_params(), **found}
    show(results)
    broken = sum(found["broken"] for found in results.values())
    print(f"Attacks within a certified radius: {broken}")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
