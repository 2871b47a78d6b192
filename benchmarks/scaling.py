"""How the cost of the constraint grows with the width and the depth.

python benchmarks/scaling.py --plot scaling.png
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import keras
import measure
import numpy as np

from deel.lip.activations import GroupSort2
from deel.lip.layers import SpectralDense
from deel.lip.model import Sequential

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
DEPTHS = (1, 2, 4, 8, 16)


def pair(width, depth, jit_compile):
    """A constrained network of equal layers, and its stock twin."""
    ours = [SpectralDense(width, activation=GroupSort2()) for _ in range(depth)]
    stock = [keras.layers.Dense(width, activation="relu") for _ in range(depth)]
    for container, stack in ((Sequential, ours), (keras.Sequential, stock)):
        model = container([keras.Input((width,)), *stack])
        model.compile("adam", "mse", jit_compile=jit_compile)
        yield model


def measure_pair(width, depth, args):
    """Times of a training step, in milliseconds, and their ratio."""
    x = np.random.default_rng(0).standard_normal((args.batch, width))
    x = x.astype("float32")
    tasks = {
        name: measure.training_task(model, x, x)
        for name, model in zip(
            ("ours", "stock"), pair(width, depth, args.jit), strict=True
        )
    }
    times = measure.in_turns(tasks, args.rounds, args.seconds)
    return {
        "ours": measure.summary(times["ours"]),
        "stock": measure.summary(times["stock"]),
        "ratio": measure.ratio(times["ours"], times["stock"]),
    }


def draw(path, results):
    """Draws the ratios against width and depth."""
    plt = measure.pyplot()
    figure, cells = plt.subplots(
        1, 2, figsize=(8, 3), sharey=True, layout="constrained"
    )
    for cell, (name, found) in zip(cells, results.items(), strict=True):
        cell.plot(list(found), [x["ratio"] for x in found.values()], "o-")
        cell.set_xscale("log", base=2)
        cell.axhline(1.0, color="black", linewidth=1)
        cell.set_xlabel(name)
    cells[0].set_ylabel("training step, stock Keras = 1")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv=None):
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--jit", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios")
    args = parser.parse_args(argv)
    results = {
        "width (3 layers)": {
            width: measure_pair(width, 3, args) for width in args.widths
        },
        "depth (256 units)": {
            depth: measure_pair(256, depth, args) for depth in args.depths
        },
    }
    for title, found in results.items():
        rows = [
            (
                str(size),
                f"{x['ours']['median']:.2f}",
                f"{x['stock']['median']:.2f}",
                f"{x['ratio']:.2f}",
            )
            for size, x in found.items()
        ]
        measure.print_table(title, ["size", "ours, ms", "stock", "ratio"], rows)
    measure.write_json(args.json, results)
    if args.plot:
        draw(args.plot, results)


if __name__ == "__main__":
    main()
