"""Ten classes of CIFAR-10 with learned margins, and an attack on the result.

The network is functional, the loss learns one margin for each class along with
the weights (`LossVariableModel`). What is trained is then exported to plain
Keras, certified, explained by its gradient and attacked: no adversarial image
may be closer than the certificate of the original. Certificates take
the constant that the weights prove, which may lie below the one that the layers
promise.

One scale of the pixels goes with the other settings, and it is this: grey
levels between 0 and 255, minus their mean, times 16. Eleven convolutions weaken
the image, and what reaches the scores has to be large against the biases, which
the optimizer moves by the learning rate in each step, whatever the image: with
smaller pixels, nothing is learned before the learning rate is small. On the
other hand, only the scale counts that pixels and margin have together:
`min_margin` is a distance between scores, hence in these units, like the
certificates. A certificate divided by 16 is a distance in grey levels, and that
divided by 255 a distance of images with pixels in [0, 1].

The full network has 16.8 million parameters and wants a GPU. On a small
machine, `--width 0.25 --epochs 15 --batch-size 32 --augmentation 0
--lr-end 1e-3` gives an impression.

The attack is that of Carlini and Wagner from the package foolbox, which is
not required otherwise (`pip install foolbox`).
"""

import argparse
import json
import sys
from pathlib import Path

import keras
import numpy as np
from common import Augmented
from common import HelpFormatter
from common import add_data_argument
from common import download
from common import input_gradient
from common import largest_difference
from keras import layers
from keras.optimizers import Adam

from deel.lip.activations import GroupSort2
from deel.lip.callbacks import LossParamLog
from deel.lip.certification import lipschitz_bound
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import ScaledAveragePooling2D
from deel.lip.layers import ScaledGlobalAveragePooling2D
from deel.lip.layers import SpectralConv2D
from deel.lip.losses import MulticlassHKRauto
from deel.lip.losses import MulticlassKR
from deel.lip.model import LossVariableModel

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# For each class, the one of the question "why not this?".
OTHER_CLASS = (2, 3, 0, 1, 6, 7, 4, 5, 9, 8)

BLOCKS = ((128, 128, 128, 128), (256, 256, 256, 256), (512, 512, 512))

# The mean grey level of the training images, subtracted from each pixel. A
# whole number, so that black and white stay exact in float32.
MEAN = 121
# Units of the input of the network in one grey level. A power of two: exact.
SCALE = 16

# What the export may differ by: the rounding of float32 sums.
TOLERANCE = 1e-3


def prepare(data, train_size=None, seed=0):
    """Selects training images and encodes the labels.

    Args:
        data: The pairs `(x_train, y_train), (x_test, y_test)` of CIFAR-10.
        train_size: Integer, use so many training images, chosen at random.
        seed: Integer, for the choice.

    Returns:
        The same pairs, images in grey levels, labels one-hot.
    """

    def prepared(x, y):
        labels = keras.utils.to_categorical(np.ravel(y), len(CLASS_NAMES))
        return x.astype("float32"), labels

    (x, y), test = data
    chosen = np.random.default_rng(seed).permutation(len(x))[:train_size]
    return prepared(x[chosen], y[chosen]), prepared(*test)


def network_input(x):
    """Returns grey levels as the network takes them."""
    # Bytes would wrap around.
    return (x.astype("float32") - MEAN) * SCALE


def as_pixels(x):
    """Returns inputs of the network as pixels in [0, 1], to be looked at."""
    return np.clip((x / SCALE + MEAN) / 255.0, 0.0, 1.0)


class AugmentedImages(Augmented):
    """Batches of images that are changed anew each time.

    Args:
        x: Images in grey levels.
        y: Their labels.
        batch_size: Integer; what is left over in an epoch is dropped.
        strength: Float, how much they change: with 1, they are turned by up to
            15 degrees, shifted by up to a tenth of their size, and their
            contrast changes by up to a fifth. With 0, they are flipped only.
        seed: Integer, for the order and the changes.
    """

    def __init__(self, x, y, batch_size, strength=1.0, seed=0):
        changes = [layers.RandomFlip("horizontal", seed=seed)]
        if strength > 0:
            shift = 0.1 * strength
            changes += [
                layers.RandomRotation(
                    15 / 360 * strength, "nearest", seed=seed
                ),
                layers.RandomTranslation(shift, shift, "nearest", seed=seed),
                # Takes grey levels, and so comes before they are centred.
                layers.RandomContrast(0.2 * strength, seed=seed),
            ]
        super().__init__(x, y, batch_size, changes, seed)

    def finished(self, images):
        return network_input(images)


def build_model(width=1.0):
    """A network like VGG, of which every score is 1-Lipschitz.

    The last layer is a stack of single neurons, each of norm one
    (`disjoint_neurons`): each score is 1-Lipschitz, their vector is not.

    Args:
        width: Float, factor of the numbers of filters; 1 is the full network.

    Returns:
        A `LossVariableModel`, one score for each class.
    """
    inputs = x = keras.Input((32, 32, 3))
    for index, block in enumerate(BLOCKS):
        for filters in block:
            x = SpectralConv2D(
                # Sorting takes pairs of channels.
                2 * max(1, round(filters * width / 2)),
                kernel_size=3,
                padding="same",
                activation=None,
                kernel_initializer="orthogonal",
            )(x)
            x = GroupSort2()(x)
        if index < len(BLOCKS) - 1:
            x = ScaledAveragePooling2D()(x)
    x = ScaledGlobalAveragePooling2D()(x)
    outputs = FrobeniusDense(len(CLASS_NAMES))(x)
    return LossVariableModel(inputs=inputs, outputs=outputs, optim_margin=True)


def learning_rate_scheduler(start, end, epochs):
    """A learning rate that falls by the same factor in each epoch."""
    return keras.callbacks.LearningRateScheduler(
        lambda epoch: start * (end / start) ** (epoch / epochs)
    )


def train(model, train_data, test_data, args):
    """Compiles and fits the model.

    Returns:
        Dictionary of the values of each epoch.
    """
    model.compile(
        # A smaller alpha or a larger min_margin gives more robustness for less
        # accuracy; alpha_margin is the share of samples left within a margin.
        loss=MulticlassHKRauto(
            alpha=args.alpha,
            min_margin=args.min_margin,
            max_margin=10.0,
            soft_hinge_tau=20.0,
            alpha_margin=0.1,
        ),
        optimizer=Adam(args.lr),
        metrics=["accuracy", MulticlassKR()],
    )
    x_test, y_test = test_data
    return model.fit(
        AugmentedImages(
            *train_data, args.batch_size, args.augmentation, args.seed
        ),
        epochs=args.epochs,
        validation_data=(network_input(x_test), y_test),
        validation_batch_size=250,
        callbacks=[
            learning_rate_scheduler(args.lr, args.lr_end, args.epochs),
            LossParamLog("hinge_margins", rate=4),
        ],
        verbose=args.verbose,
    ).history


def certificates(scores, constant):
    """Distances within which predictions do not change, in exact arithmetic.

    Each score changes by at most `constant` times the distance that the image
    moves, the lead of the first over the second by at most twice as much.

    As `deel.lip.certification.certify` does by default, from scores in float64
    and with smaller constants. With `rounding="float32"` it proves nothing
    here: scores of this network are so small beside its inputs that the worst
    case of eleven rounded convolutions exceeds their leads. Networks that keep
    more of the signal do not have this problem.

    Args:
        scores: Array `(samples, classes)`.
        constant: Float, the Lipschitz constant of each score by itself.

    Returns:
        Array `(samples,)`, in the units of the input.
    """
    ordered = np.sort(scores, axis=-1)
    return (ordered[:, -1] - ordered[:, -2]) / (2 * constant)


def one_of_each_class(model, x, labels):
    """Finds the first image of each class that the model gets right.

    Args:
        model: The model.
        x: Images as the network takes them.
        labels: Their class numbers.

    Returns:
        Images and class numbers; classes without such an image are left out.
    """
    correct = np.argmax(model.predict(x, verbose=0), axis=-1) == labels
    found = [
        np.flatnonzero(correct & (labels == label))[:1]
        for label in range(len(CLASS_NAMES))
    ]
    found = np.concatenate(found)
    return x[found], labels[found]


def saliency(model, x, classes):
    """Gradient of a score of each image with respect to the image.

    Points from the image towards that class: what would have to change.

    Args:
        model: The model.
        x: Images as the network takes them.
        classes: Integer array, the score to take of each image.

    Returns:
        Array of the shape of `x`.
    """

    def score(x, chosen):
        return keras.ops.sum(model(x, training=False) * chosen, axis=-1)

    chosen = keras.utils.to_categorical(classes, len(CLASS_NAMES))
    return input_gradient(score)(x, chosen.astype("float32"))


def carlini_wagner(model, x, labels, steps=200, binary_search_steps=8):
    """Looks for the closest images that the model takes for something else.

    Args:
        model: The model.
        x: Images as the network takes them.
        labels: Integer array, the classes that they should lose.
        steps: Integer, gradient steps for each weight of the distance.
        binary_search_steps: Integer, number of these weights.

    Returns:
        Adversarial images and their distances, infinite where none was found.
        None if foolbox cannot be used here.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    try:
        import foolbox
    except ImportError:
        return None
    import tensorflow as tf

    # A function and not the model: foolbox only has to call it.
    attacked = foolbox.TensorFlowModel(
        lambda images: model(images, training=False),
        bounds=(-MEAN * SCALE, (255 - MEAN) * SCALE),
        device="/CPU:0" if not tf.config.list_physical_devices("GPU") else None,
    )
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=binary_search_steps,
        steps=steps,
        # The weight of a change of class against the distance. Scores of these
        # networks are far smaller than distances of images, so that the
        # default of 1e-3 finds next to nothing.
        initial_const=1e3,
    )
    _, found, success = attack(
        attacked,
        tf.convert_to_tensor(x),
        tf.convert_to_tensor(labels.astype("int64")),
        epsilons=None,
    )
    found = found.numpy()
    shift = (found.astype("float64") - x).reshape(len(x), -1)
    distances = np.linalg.norm(shift, axis=-1)
    return found, np.where(success.numpy(), distances, np.inf)


def draw_saliency(path, model, x, labels):
    """Draws images, the gradient towards another class, and a step along it.

    Args:
        path: Where the figure goes.
        model: The model.
        x: Images as the network takes them.
        labels: Their class numbers.
    """
    plt = pyplot()
    others = np.array(OTHER_CLASS)[labels]
    gradients = saliency(model, x, others)
    figure, cells = rows_of_three(plt, len(x))
    for row, image, gradient, label, other in zip(
        cells, x, gradients, labels, others, strict=True
    ):
        total = gradient.sum(axis=-1)
        total = total / max(np.max(np.abs(total)), 1e-12)
        # Green where more light speaks for the other class, red for less.
        colours = np.stack([-total, total, np.zeros_like(total)], axis=-1)
        # Far enough to be seen, which is far beyond the boundary.
        length = 2000.0 * SCALE / max(np.linalg.norm(gradient), 1e-12)
        row[0].imshow(as_pixels(image))
        row[0].set_title(CLASS_NAMES[label], fontsize=9)
        row[1].imshow(np.clip(colours, 0.0, 1.0))
        row[1].set_title("gradient", fontsize=9)
        row[2].imshow(as_pixels(image + length * gradient))
        row[2].set_title(f"towards {CLASS_NAMES[other]}", fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_attack(path, model, x, found, radii, distances):
    """Draws images, their adversarial images and the differences.

    Args:
        path: Where the figure goes.
        model: The model.
        x: Images as the network takes them.
        found: Adversarial images.
        radii: Certificates.
        distances: Distances of the adversarial images.
    """
    plt = pyplot()
    figure, cells = rows_of_three(plt, len(x))
    before = np.argmax(model.predict(x, verbose=0), axis=-1)
    after = np.argmax(model.predict(found, verbose=0), axis=-1)
    for index, row in enumerate(cells):
        difference = np.abs(found[index] - x[index])
        row[0].imshow(as_pixels(x[index]))
        row[0].set_title(CLASS_NAMES[before[index]], fontsize=9)
        row[1].imshow(as_pixels(found[index]))
        row[1].set_title(CLASS_NAMES[after[index]], fontsize=9)
        row[2].imshow(difference / max(difference.max(), 1e-12))
        row[2].set_title(
            f"certified {radii[index] / SCALE:.4f}, "
            f"found {distances[index] / SCALE:.2f}",
            fontsize=9,
        )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def rows_of_three(plt, count):
    """A figure of `count` rows of three images."""
    figure, cells = plt.subplots(
        count,
        3,
        figsize=(6.6, 2.1 * count),
        squeeze=False,
        layout="constrained",
    )
    for cell in cells.flat:
        cell.axis("off")
    return figure, cells


def pyplot():
    """Returns `matplotlib.pyplot`, set to write files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def print_attack(labels, radii, distances):
    """Prints certificates beside the distances of the attack."""
    print("\nDistances in grey levels")
    print("  class         certified       found")
    radii, distances = radii / SCALE, distances / SCALE
    for label, radius, distance in zip(labels, radii, distances, strict=True):
        print(f"  {CLASS_NAMES[label]:<12}{radius:11.5f}{distance:12.3f}")


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Trains a classifier of CIFAR-10 with learned margins, "
        "certifies and attacks it.",
        formatter_class=HelpFormatter,
    )
    add_data_argument(parser)
    parser.add_argument(
        "--width",
        type=float,
        default=1.0,
        help="factor of the numbers of filters",
    )
    parser.add_argument(
        "--epochs", type=int, default=200, help="training epochs"
    )
    parser.add_argument(
        "--batch-size", type=int, default=128, help="images in a step"
    )
    parser.add_argument(
        "--train-size", type=int, help="use so many training images only"
    )
    parser.add_argument(
        "--augmentation",
        type=float,
        default=1.0,
        help="strength of the random changes; with 0, images are flipped only",
    )
    parser.add_argument(
        "--lr", type=float, default=1e-1, help="learning rate at the start"
    )
    parser.add_argument(
        "--lr-end", type=float, default=1e-5, help="learning rate at the end"
    )
    parser.add_argument(
        "--alpha", type=float, default=500.0, help="weight of the hinge"
    )
    parser.add_argument(
        "--min-margin", type=float, default=0.16, help="least margin"
    )
    parser.add_argument(
        "--attack-steps", type=int, default=200, help="gradient steps in a run"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument(
        "--verbose", type=int, default=1, help="1: progress bars, 2: lines"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/cifar10_multiclass"),
        help="folder of the model, the figures and the numbers",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Trains, exports, certifies, explains and attacks.

    Returns:
        Integer, the exit status: not zero if the export predicts something
        else than the model, or if the attack breaks a certificate.
    """
    args = parse_arguments(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    train_data, test_data = prepare(
        args.data or download("cifar10"), args.train_size, args.seed
    )
    model = build_model(args.width)
    model.summary()
    history = train(model, train_data, test_data, args)

    vanilla_model = model.vanilla_export()
    x_test, y_test = (
        network_input(test_data[0]),
        np.argmax(test_data[1], axis=-1),
    )
    difference = largest_difference(model, vanilla_model, x_test)
    print(f"\nLargest difference of an exported score: {difference:.1e}")
    vanilla_model.save(args.output / "model.keras")

    x, labels = one_of_each_class(vanilla_model, x_test, y_test)
    constant = lipschitz_bound(vanilla_model, by_output=True)
    print(f"Proven Lipschitz constant of each score: {constant:.5f}")
    radii = certificates(vanilla_model.predict(x, verbose=0), constant)
    print(f"Certificates in grey levels: {np.round(radii / SCALE, 5)}")
    attacked = carlini_wagner(vanilla_model, x, labels, args.attack_steps)
    results = {
        "history": history,
        "difference": difference,
        "labels": labels.tolist(),
        "constant": constant,
        "certificates": radii.tolist(),
    }
    broken = 0
    if attacked is None:
        print("No attack: it needs foolbox and the TensorFlow backend.")
    else:
        found, distances = attacked
        print_attack(labels, radii, distances)
        broken = int(np.sum(distances <= radii))
        print(f"\nCertificates broken: {broken} of {len(radii)}")
        results |= {"distances": distances.tolist(), "broken": broken}
    path = args.output / "results.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"Numbers: {path}")
    try:
        draw_saliency(args.output / "saliency.png", vanilla_model, x, labels)
        if attacked is not None:
            draw_attack(
                args.output / "attack.png",
                vanilla_model,
                x,
                found,
                radii,
                distances,
            )
        print(f"Figures: {args.output}")
    except ImportError:
        print("No figure: matplotlib is not installed.")
    return int(broken > 0 or difference > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
