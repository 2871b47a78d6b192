"""Which optimizer learns most in a given number of epochs.

Four programs: the digits 0 and 8 (`examples/mnist_binary.py`), ten digits
(`examples/mnist_multiclass.py`), and the recipes for MNIST and for CIFAR-10 of
`examples/train_certified.py`. What is printed is of the last sixth of the
training images, which are held out; test images are not read.

    python benchmarks/optimizers.py multiclass --data mnist.npz
    python benchmarks/optimizers.py mnist --data mnist.npz --optimizers muon
"""

import argparse
import sys
import time
from pathlib import Path

import keras
import numpy as np
from keras import ops

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import common
import mnist_binary
import mnist_multiclass
import train_certified

from deel.lip.certification import certify
from deel.lip.losses import HKR
from deel.lip.losses import MulticlassHKR
from deel.lip.losses import OffsetCategoricalCrossentropy
from deel.lip.model import vanillaModel
from deel.lip.optimizers import Muon


def _binary(train):
    x, y = mnist_binary.prepare(*train)
    return mnist_binary.build_model(), HKR(10.0, 2.0), x, y, 128, 0.5


def _multiclass(train):
    (x, y), _ = mnist_multiclass.prepare((train, train))
    loss = MulticlassHKR(50.0, 0.1)
    return mnist_multiclass.build_model(), loss, x, y, 512, 0.5


def _recipe(name, offset, batch_size, radius, **choices):
    def of(train):
        x = common.as_images(train[0])
        y = keras.utils.to_categorical(train[1].ravel(), 10)
        build = train_certified.MODELS[name]
        model = build("S", x.shape[1:], 10, **choices)
        loss = OffsetCategoricalCrossentropy(offset, 0.25)
        return model, loss, x, y, batch_size, radius

    return of


# Functions of the training images: network, loss, images, labels, batch size
# and the radius that counts.
PROGRAMS = {
    "binary": _binary,
    "multiclass": _multiclass,
    "mnist": _recipe("mlp", 2.7, 512, 1.58),
    "cifar10": _recipe("cnn", 0.7, 128, 36 / 255, center=0.5),
}


def _averaged(rate):
    """Adam at a constant rate, and the average of its last kernels."""
    rate = rate.initial_learning_rate
    return keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.98)


class _ScheduleFree:
    """A constant rate: steps, and the mean of where they have led.

    Gradients are taken between both, and the mean is what is kept in the end.
    See Defazio et al., "The road less scheduled", 2024 (arXiv:2405.15682).

    Args:
        rate: Schedule, of which the first rate is taken.
        weight: Float, how near to the mean gradients are taken.
    """

    def __init__(self, rate, weight=0.9, **kwargs):
        super().__init__(rate.initial_learning_rate, **kwargs)
        self.weight = weight

    def build(self, variables):
        if not self.built:
            self._ends, self._means = (
                [
                    self.add_variable_from_reference(x, name, initializer=x)
                    for x in variables
                ]
                for name in ("end", "mean")
            )
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        end, mean = self._ends[index], self._means[index]
        variable.assign(end)
        super().update_step(gradient, variable, learning_rate)
        end.assign(variable)
        share = 1.0 / ops.cast(self.iterations + 1, variable.dtype)
        mean.assign(mean + share * (variable - mean))
        variable.assign(self.weight * mean + (1.0 - self.weight) * end)

    def finalize_variable_values(self, var_list):
        super().finalize_variable_values(var_list)
        for variable, mean in zip(var_list, self._means, strict=True):
            variable.assign(mean)


class FreeAdam(_ScheduleFree, keras.optimizers.Adam):
    def __init__(self, rate):
        # The mean takes the place of momentum.
        super().__init__(rate, beta_1=0.0)


class FreeMuon(_ScheduleFree, Muon):
    def __init__(self, rate):
        super().__init__(rate, momentum=0.0, nesterov=False, beta_1=0.0)


OPTIMIZERS = {
    **train_certified.OPTIMIZERS,
    "averaged adam": _averaged,
    "schedule-free adam": FreeAdam,
    "schedule-free muon": FreeMuon,
}

RATES = {
    "adam": (3e-3, 1e-2, 3e-2),
    "averaged adam": (3e-3, 1e-2),
    "lion": (1e-3, 3e-3),
    "muon": (3e-2, 1e-1),
    "schedule-free adam": (3e-3, 1e-2),
    "schedule-free muon": (3e-2, 1e-1),
    "sgd": (1e-1, 1.0),
}


def run(program, train, name, rate, args):
    """Trains with one optimizer; prints a row of the table."""
    keras.utils.set_random_seed(args.seed)
    model, loss, x, y, batch_size, radius = PROGRAMS[program](train)
    kept = len(x) * 5 // 6
    steps = args.epochs * -(-kept // batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(OPTIMIZERS[name](schedule), loss)
    start = time.process_time()
    model.fit(
        x[:kept],
        y[:kept],
        batch_size=batch_size,
        epochs=args.epochs,
        verbose=0,
    )
    seconds = time.process_time() - start
    labels = y[kept:]
    labels = labels[:, 0] > 0 if labels.shape[1] == 1 else np.argmax(labels, 1)
    clean, certified = certify(
        vanillaModel(model), x[kept:], labels
    ).certified_accuracy((0.0, radius))
    value = float(model.evaluate(x[kept:], y[kept:], verbose=0))
    print(
        f"| {name} | {rate:g} | {value:.3f} | {clean:.4f} | {certified:.4f} "
        f"| {seconds:.0f} |",
        flush=True,
    )


def main(argv=None):
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program", choices=tuple(PROGRAMS))
    parser.add_argument("--data", type=common.read_npz, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--optimizers", nargs="+", choices=tuple(RATES), default=tuple(RATES)
    )
    args = parser.parse_args(argv)
    keras.utils.disable_interactive_logging()
    print("| optimizer | rate | loss | clean | certified | CPU seconds |")
    print("|---|---|---|---|---|---|")
    for name in args.optimizers:
        for rate in RATES[name]:
            run(args.program, args.data[0], name, rate, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
