"""What the constraint costs: our networks beside their stock twins.

Time of a training step of `fit` on arrays, of inference (before and after
export) and of building, and peak memory, as ratios to the same network of stock
Keras layers. "fast" compares the fastest epochs, "slow" is the share of epochs
that take 1.4 times as long, ours and stock.

    python benchmarks/training.py
    python benchmarks/training.py mlp-512 --width 2 --batch 512 --jit
    KERAS_BACKEND=jax python benchmarks/training.py
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import measure
from networks import NETWORKS
from networks import compiled
from networks import data

from deel.lip.model import vanillaModel

_KINDS = ("ours", "stock")


def measure_network(name, args):
    """Measures a pair of networks.

    Returns:
        Dictionary of times in milliseconds, and ratios.
    """
    network = NETWORKS[name]
    width = args.width or network.width
    batch_size = args.batch or network.batch_size
    x, y = data(network, batch_size)
    ours = compiled(network, True, width, args.jit)
    stock = compiled(network, False, width, args.jit)
    steps = measure.in_turns(
        {
            "ours": measure.training_task(ours, x, y),
            "stock": measure.training_task(stock, x, y),
        },
        args.rounds,
        args.seconds,
        args.warm_up,
    )
    found = {
        "batch_size": batch_size,
        "warm_up": args.warm_up,
        "width": width,
        "parameters": stock.count_params(),
        "step": {key: measure.summary(value) for key, value in steps.items()},
        "step_ratio": measure.ratio(steps["ours"], steps["stock"]),
        **measure.modes(steps["ours"], steps["stock"]),
    }
    if not args.steps_only:
        exported = vanillaModel(ours)
        times = measure.in_turns(
            {
                "ours": measure.inference_task(ours, x),
                "exported": measure.inference_task(exported, x),
                "stock": measure.inference_task(stock, x),
            },
            args.rounds,
            args.seconds,
        )
        found["inference"] = {
            key: measure.summary(value) for key, value in times.items()
        }
        for key in ("ours", "exported"):
            found[f"inference_{key}_ratio"] = measure.ratio(
                times[key], times["stock"]
            )
        builds = measure.in_turns(
            {
                "ours": building_task(network.ours, width, network.models),
                "stock": building_task(network.stock, width),
            },
            3,
        )
        found["build"] = {
            key: measure.summary(value) for key, value in builds.items()
        }
        found["build_ratio"] = measure.ratio(builds["ours"], builds["stock"])
        found.update(measure_memory(name, batch_size, args))
    return found


def measure_memory(name, batch_size, args):
    """Peak memory of training, and how much of it each sample takes.

    The second is the growth from one batch size to twice that: it tells what
    is kept of each sample from what is loaded and compiled once.

    Returns:
        Dictionary of MiB, and ratios.
    """
    small, large = (
        {kind: peak_memory(name, kind, size, args) for kind in _KINDS}
        for size in (batch_size, 2 * batch_size)
    )
    growth = {kind: large[kind] - small[kind] for kind in _KINDS}
    return {
        "memory": small,
        "memory_ratio": small["ours"] / small["stock"],
        "memory_growth": growth,
        "memory_growth_ratio": growth["ours"] / growth["stock"],
    }


def building_task(build, *args):
    """A task that builds a network, with its weights."""

    def built():
        build(*args)
        return ()

    return measure.repeated(built)


def peak_memory(name, kind, batch_size, args):
    """Most memory that a process holds that trains a network, in MiB.

    Measured in a process of its own, since a process cannot lower its peak.
    """
    command = [sys.executable, __file__, name, "--memory-of", kind]
    command += ["--batch", str(batch_size)]
    command += ["--width", str(args.width)] if args.width else []
    command += ["--jit"] if args.jit else []
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return float(output.splitlines()[-1])


def print_memory(name, kind, args):
    """What the process of `peak_memory` does."""
    network = NETWORKS[name]
    x, y = data(network, args.batch)
    width = args.width or network.width
    model = compiled(network, kind == "ours", width, args.jit)
    for _ in range(3):
        model.train_on_batch(x, y)
    # Not `ru_maxrss`: a new process inherits that of the one that started it.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)


def print_results(results):
    """Prints a table of all networks."""

    def milliseconds(times):
        low, high = times["low"], times["high"]
        return f"{times['median']:.1f} ({low:.1f}-{high:.1f})"

    columns = ["network", "step, ms", "stock", "ratio", "fast", "slow"]
    columns += ["inference", "exported", "build", "memory", "growth"]
    rows = []
    for name, found in results.items():
        row = [name, milliseconds(found["step"]["ours"])]
        row += [milliseconds(found["step"]["stock"])]
        row += [f"{found['step_ratio']:.2f}", f"{found['fast_ratio']:.2f}"]
        shares = found["slow_share"], found["slow_share_stock"]
        row += [" ".join(f"{share:.0%}" for share in shares)]
        ratios = ("inference_ours", "inference_exported")
        ratios += ("build", "memory", "memory_growth")
        for key in ratios:
            value = found.get(f"{key}_ratio")
            row.append("" if value is None else f"{value:.2f}")
        rows.append(row)
    measure.print_table("Ratios to the stock network", columns, rows)


def draw(path, results):
    """Draws the ratios of the training steps."""
    plt = measure.pyplot()
    figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
    names = list(results)[::-1]
    axes.barh(names, [results[name]["step_ratio"] for name in names])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("time of a training step, stock Keras = 1")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "networks",
        nargs="*",
        metavar="NETWORK",
        help=f"some of {', '.join(NETWORKS)}; by default all",
    )
    parser.add_argument("--batch", type=int, help="images in a step")
    parser.add_argument("--width", type=float, help="factor of the widths")
    parser.add_argument(
        "--jit", action="store_true", help="compile with XLA (or on torch)"
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="measurements of each network"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="length of a measurement"
    )
    parser.add_argument(
        "--warm-up",
        type=int,
        default=50,
        help="steps that are trained before any is measured",
    )
    parser.add_argument(
        "--steps-only", action="store_true", help="measure training steps only"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--plot", metavar="FILE", help="draw the ratios")
    parser.add_argument("--memory-of", choices=_KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    unknown = [name for name in args.networks if name not in NETWORKS]
    if unknown:
        parser.error(
            f"networks must be among {', '.join(NETWORKS)}. "
            f"Received: {', '.join(unknown)}"
        )
    return args


def main(argv=None):
    """Measures and prints."""
    args = parse_arguments(argv)
    if args.memory_of:
        print_memory(args.networks[0], args.memory_of, args)
        return
    results = {}
    for name in args.networks or NETWORKS:
        results[name] = measure_network(name, args)
        # As soon as it is known: the large networks take minutes.
        print_results({name: results[name]})
    if len(results) > 1:
        print_results(results)
    measure.write_json(args.json, results)
    if args.plot:
        draw(args.plot, results)


if __name__ == "__main__":
    main()
