"""A first walk through Keras, with constrained layers in place of `Dense`.

The steps of a beginner's course on MNIST: build a model, compile, fit,
evaluate, compile again with a smaller learning rate, compare losses,
activations and depths, look at the mistakes. `SpectralDense` takes the
arguments of `Dense` and fits wherever `Dense` does, so nothing else changes;
but each network is 1-Lipschitz here, which makes the lessons sharper:

- Pixels are divided by 255. A 1-Lipschitz network cannot rescale its input by
  itself: raw pixels would give scores of the order of 1000, which saturate a
  sigmoid or a softmax, and distances would be counted in grey levels.
- Cross-entropy learns faster than the mean squared error.
- A layer that may not amplify cannot make up for what an activation takes away.
  A sigmoid is 1/4-Lipschitz: four of them leave 1/256 of the signal, and a deep
  sigmoid network learns nothing. ReLU loses the negative half of its input.
  Sorting loses nothing, which is why it is the activation of these networks.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import keras
import numpy as np
from common import HelpFormatter
from common import add_data_argument
from common import as_images
from common import download
from keras.optimizers import SGD

from deel.lip.activations import GroupSort2
from deel.lip.layers import SpectralDense

CLASSES = 10
SHALLOW = (128,)
DEEP = (512, 256, 128, 64)

# Learning rates of the first model, one after the other.
RATES = (1.0, 0.1, 0.01)
# Learning rate of the models that are compared.
RATE = 0.1


def prepare(data, train_size=None):
    """Flattens and scales the images, and encodes the labels.

    Args:
        data: The pairs `(x_train, y_train), (x_test, y_test)` of MNIST.
        train_size: Integer, use the first training images only.

    Returns:
        The same pairs, images `(samples, 784)` in [0, 1], labels one-hot.
    """
    (x_train, y_train), (x_test, y_test) = data

    def prepared(x, y):
        x = as_images(x)
        return x.reshape(len(x), -1), keras.utils.to_categorical(y, CLASSES)

    selected = slice(train_size)
    return prepared(x_train[selected], y_train[selected]), prepared(
        x_test, y_test
    )


def build_model(
    units=SHALLOW, hidden="sigmoid", output="softmax", last=SpectralDense
):
    """A functional model of dense layers, each of them 1-Lipschitz.

    Args:
        units: Sequence of integers, the sizes of the hidden layers.
        hidden: String, their activation: one of Keras, or `"sort"`.
        output: String, the activation of the last layer.
        last: Class of the last layer.

    Returns:
        A `keras.Model` from 784 pixels to 10 classes.
    """
    inputs = x = keras.Input((784,))
    for size in units:
        activation = GroupSort2() if hidden == "sort" else hidden
        x = SpectralDense(size, activation=activation)(x)
    outputs = last(CLASSES, activation=output)(x)
    return keras.Model(inputs=inputs, outputs=outputs)


def compile_model(model, loss, learning_rate):
    """Sets loss and optimizer; the weights of the model stay as they are."""
    model.compile(optimizer=SGD(learning_rate), loss=loss, metrics=["accuracy"])


def has_tensorboard():
    """Whether Keras can write logs for TensorBoard here."""
    return (
        keras.backend.backend() == "tensorflow"
        and importlib.util.find_spec("tensorboard") is not None
    )


def fit(model, data, args, name, validation_split=0.2):
    """Trains a model, and keeps its last images for validation.

    Args:
        model: A compiled model.
        data: Pair of images and one-hot labels.
        args: Arguments of the program.
        name: String, what the logs and the printed line are called.
        validation_split: Float, share of the images for validation.

    Returns:
        Dictionary of the values of each epoch: `loss`, `accuracy`, and
        `val_loss`, `val_accuracy` where images are kept for validation.
    """
    logs = None
    if has_tensorboard():
        # A single callback needs no list around it.
        logs = keras.callbacks.TensorBoard(
            log_dir=str(args.output / "logs" / name.replace(" ", "_")),
            histogram_freq=1,
        )
    print(f"\n{name}")
    return model.fit(
        *data,
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_split=validation_split,
        callbacks=logs,
        verbose=2,
    ).history


def train_new(data, args, name, loss="categorical_crossentropy", **options):
    """Builds and trains a model.

    Args:
        data: Pair of images and one-hot labels.
        args: Arguments of the program.
        name: String, see `fit`.
        loss: String, the loss.
        **options: Arguments of `build_model`.

    Returns:
        The model and the dictionary of `fit`.
    """
    # The same start for each, so that the runs can be compared.
    keras.utils.set_random_seed(args.seed)
    model = build_model(**options)
    compile_model(model, loss, RATE)
    return model, fit(model, data, args, name)


def accuracy(model, x, y):
    """Share of images whose largest output is that of their class.

    The metric `accuracy` of Keras, by hand.

    Args:
        model: The model.
        x: Images.
        y: Their one-hot labels.

    Returns:
        Float between 0 and 1.
    """
    predicted = model.predict(x, verbose=0)
    return float(np.mean(np.argmax(predicted, -1) == np.argmax(y, -1)))


def correct_and_incorrect(model, x, y):
    """Splits images by whether the model is right about them.

    Args:
        model: The model.
        x: Images.
        y: Their one-hot labels.

    Returns:
        Six arrays: images and labels of the correct ones, images and labels of
        the incorrect ones, outputs for the correct and for the incorrect ones.
    """
    predicted = model.predict(x, verbose=0)
    correct = np.argmax(predicted, -1) == np.argmax(y, -1)
    return (
        x[correct],
        y[correct],
        x[~correct],
        y[~correct],
        predicted[correct],
        predicted[~correct],
    )


def plot_examples(path, x, y, predicted, random):
    """Draws 8 random images, titled with their true and predicted class.

    Args:
        path: Where the figure goes.
        x: Images `(samples, 784)`.
        y: Their one-hot labels.
        predicted: What the model returned for them.
        random: A `numpy.random.Generator`.
    """
    plt = pyplot()
    figure, cells = plt.subplots(2, 4, figsize=(8, 4.6), layout="constrained")
    chosen = random.permutation(len(x))[: cells.size]
    for cell in cells.flat:
        cell.axis("off")
    for cell, index in zip(cells.flat, chosen, strict=False):
        cell.imshow(x[index].reshape(28, 28), cmap="gray", vmin=0, vmax=1)
        true, guess = np.argmax(y[index]), np.argmax(predicted[index])
        cell.set_title(f"num: {true}, predicted: {guess}", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_histories(path, histories):
    """Draws the validation accuracy of all models against the epoch.

    Args:
        path: Where the figure goes.
        histories: Dictionary from the names of models to those of `fit`.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8.5, 4.5), layout="constrained")
    for name, history in histories.items():
        values = history["val_accuracy"]
        style = "--" if name.startswith("deep") else "-"
        epochs = np.arange(1, len(values) + 1)
        axes.plot(epochs, values, style, marker=".", label=name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel="validation accuracy", ylim=(0.0, 1.0))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def pyplot():
    """Returns `matplotlib.pyplot`, set to write files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def first_model(train, test, args):
    """Builds, fits and evaluates; then compiles again for smaller steps.

    Returns:
        Dictionary: `changed`, the largest change of a prediction by compiling
        again, and for each learning rate the accuracy in validation.
    """
    keras.utils.set_random_seed(args.seed)
    model = build_model(output="sigmoid")
    model.summary()
    changed, reached = 0.0, {}
    for rate in RATES:
        before = model.predict(test[0], verbose=0)
        compile_model(model, "mse", rate)
        after = model.predict(test[0], verbose=0)
        changed = max(changed, float(np.max(np.abs(after - before))))
        history = fit(model, train, args, f"learning rate {rate:g}")
        reached[f"{rate:g}"] = history["val_accuracy"][-1]
    loss, metric = model.evaluate(*test, verbose=0)
    print(f"\nTest loss: {loss:.4f}")
    print(f"Test accuracy: {metric:.4f}")
    print(f"The same by hand: {accuracy(model, *test):.4f}")
    print(f"Largest change of an output by compiling again: {changed:g}")
    return {"changed": changed, "recompiled": reached}


def compare(train, args):
    """Trains models that differ in loss, activation and depth.

    Returns:
        The dictionary of histories, and the deep model with sort activations.
    """
    runs = {
        "mean squared error": {"loss": "mse"},
        "sigmoid": {"hidden": "sigmoid"},
        "ReLU": {"hidden": "relu"},
        "sort": {"hidden": "sort"},
        "deep sigmoid": {"units": DEEP, "hidden": "sigmoid"},
        "deep ReLU": {"units": DEEP, "hidden": "relu"},
        "deep sort": {"units": DEEP, "hidden": "sort"},
    }
    histories = {}
    for name, options in runs.items():
        model, histories[name] = train_new(train, args, name, **options)
    print("\nAccuracy on the images kept for validation")
    print("(sigmoid, one hidden layer and cross-entropy where not said):\n")
    for name, history in histories.items():
        print(f"  {name:<20}{history['val_accuracy'][-1]:.4f}")
    return histories, model


def inspect(model, name, data, args):
    """Prints how many images a model gets right, and draws some of each.

    Returns:
        Float, the accuracy.
    """
    x_correct, y_correct, x_wrong, y_wrong, correct, wrong = (
        correct_and_incorrect(model, *data)
    )
    share = accuracy(model, *data)
    print(
        f"{name} accuracy: {share:.4f} "
        f"({len(x_correct)} correct, {len(x_wrong)} incorrect)"
    )
    random = np.random.default_rng(args.seed)
    try:
        path = args.output / f"{name}_correct.png"
        plot_examples(path, x_correct, y_correct, correct, random)
        path = args.output / f"{name}_incorrect.png"
        plot_examples(path, x_wrong, y_wrong, wrong, random)
    except ImportError:
        print("No figure: matplotlib is not installed.")
    return share


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="A first walk through Keras on MNIST, with constrained "
        "layers in place of Dense.",
        formatter_class=HelpFormatter,
    )
    add_data_argument(parser)
    parser.add_argument(
        "--epochs", type=int, default=5, help="training epochs of each model"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="images in a step"
    )
    parser.add_argument(
        "--train-size",
        type=int,
        default=12_000,
        help="use the first training images only; MNIST has 60,000",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/keras_walkthrough"),
        help="folder of the figures, numbers and logs",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Walks through all steps.

    Returns:
        Integer, the exit status: not zero if compiling again changed a
        prediction.
    """
    args = parse_arguments(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    train, test = prepare(args.data or download("mnist"), args.train_size)
    if has_tensorboard():
        print(f"For TensorBoard: tensorboard --logdir {args.output / 'logs'}")
    else:
        print(
            "No logs for TensorBoard: they need the TensorFlow backend and "
            "the package tensorboard."
        )

    first = first_model(train, test, args)
    histories, model = compare(train, args)
    print("\nThe deep model with sort activations")
    final = {
        "train": inspect(model, "train", train, args),
        "test": inspect(model, "test", test, args),
    }
    results = args.output / "results.json"
    numbers = {**first, "histories": histories, "accuracy": final}
    results.write_text(json.dumps(numbers, indent=2) + "\n")
    print(f"Numbers: {results}")
    try:
        figure = args.output / "histories.png"
        plot_histories(figure, histories)
        print(f"Figures: {figure} and examples beside it")
    except ImportError:
        print("No figure: matplotlib is not installed.")
    return int(first["changed"] > 0.0)


if __name__ == "__main__":
    sys.exit(main())
