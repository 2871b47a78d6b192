"""What a training step is made of: ours over stock, on any machine.

Launches, host reads, branches, instructions, products; seconds to build and
until the first step is done. Where there is a GPU, also times and memory.

    python benchmarks/program.py
    python benchmarks/program.py --networks mlp-512 residual-24 --container ours
    KERAS_BACKEND=torch python benchmarks/program.py --json torch.json
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import counting
import keras
import measure
from networks import NETWORKS
from networks import compiled
from networks import data

from deel.lip import model as lipschitz

BACKEND = keras.backend.backend()

# The constrained network in our container and in that of Keras, and its twin.
KINDS = {"ours": lipschitz, "ours_in_keras": keras, "stock": None}

TITLES = {"ours": "ours", "ours_in_keras": "in keras", "stock": "stock"}

FIGURES = {
    "launches": "launches of a kernel",
    "reads": "reads by the host",
    "branches": "branches and loops",
    "operations": "operations",
    "instructions": "instructions",
    "compiled": "compiled instructions",
    "products": "products",
    "exact_products": "with all digits",
    "exact_share": "share of arithmetic",
    "build": "build, s",
    "first_step": "first step, s",
    "start": "both, s",
    "step": "step on GPU, ms",
    "memory": "memory on GPU, MiB",
}

# Zero, or the largest ratio to the stock twin.
BUDGETS = {
    "tensorflow": {"branches": 0, "first_step": 2.5},
    "jax": {"branches": 0, "compiled": 3.0, "start": 2.0},
    "torch": {"launches": 2.5, "reads": 0},
}


def budget(name, figure):
    """Zero, the largest ratio to the stock twin, or None."""
    if (BACKEND, name, figure) == ("torch", "residual-24", "launches"):
        return 2.0
    return BUDGETS[BACKEND].get(figure)


def figures_of(name, kind, steps, startup):
    """Builds a network, trains it and counts.

    Args:
        name: String, the network.
        kind: String, one of `KINDS`.
        steps: Integer, steps before the one that is looked at.
        startup: Boolean, whether this process has done nothing before.

    Returns:
        Dictionary of figures.
    """
    network = NETWORKS[name]
    x, y = data(network, counting.IMAGES)
    keras.utils.set_random_seed(0)
    with counting.marked_products():
        start = time.perf_counter()
        models = KINDS[kind]
        model = compiled(
            network, models is not None, network.width, False, models
        )
        built = time.perf_counter()
        model.fit(x, y, batch_size=len(x), verbose=0)
        done = time.perf_counter()
        # Programs stay as they are. What runs eagerly gets shorter.
        before = steps if BACKEND == "torch" else 0
        found = counting.step_counts(model, x, y, network.batch_size, before)
        if startup:
            found["build"] = built - start
            found["first_step"] = done - built
            found["start"] = done - start
        if gpus():
            found |= device_figures(model, network, startup)
    return found


def device_figures(model, network, alone):
    """Milliseconds of a step and peak memory on a GPU.

    Args:
        model: A compiled model.
        network: The `Network`, which says the number of samples.
        alone: Boolean, whether the process has held nothing else.
    """
    x, y = data(network, network.batch_size)
    task = measure.training_task(model, x, y)
    # What is compiled and tuned first is not what training needs.
    task(2)
    reset_peak_memory()
    task(2)
    found = {"memory": peak_memory() / 2**20} if alone else {}
    times = measure.in_turns({"step": task}, 5, 0.3, warm_up=50)["step"]
    return found | {"step": measure.summary(times)["median"]}


def gpus():
    """Whether the backend computes on a GPU."""
    if BACKEND == "torch":
        import torch

        return torch.cuda.is_available()
    if BACKEND == "jax":
        import jax

        return jax.default_backend() == "gpu"
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def reset_peak_memory():
    """Forgets the peak, but on JAX, which cannot."""
    if BACKEND == "torch":
        import torch

        torch.cuda.reset_peak_memory_stats()
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.reset_memory_stats("GPU:0")


def peak_memory():
    """Most bytes that were allocated on the GPU at once."""
    if BACKEND == "torch":
        import torch

        return torch.cuda.max_memory_allocated()
    if BACKEND == "jax":
        import jax

        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def in_own_process(name, kind, steps):
    """`figures_of` in a process that has not compiled anything yet."""
    command = [sys.executable, __file__, "--networks", name, "--one", kind]
    command += ["--steps", str(steps)]
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return json.loads(output.splitlines()[-1])


def with_ratios(found):
    """Figures of the kinds, and those of ours over those of the twin."""
    ratios = {
        kind: {
            key: value / found["stock"][key]
            for key, value in figures.items()
            if found["stock"].get(key)
        }
        for kind, figures in found.items()
        if kind != "stock"
    }
    return found | {"ratios": ratios}


def print_network(name, found):
    """Prints the table of one network."""
    ratios = found["ratios"]
    kinds = [kind for kind in KINDS if kind in found]
    columns = ["", *(TITLES[kind] for kind in kinds)]
    columns += [f"{TITLES[kind]} / stock" for kind in ratios]
    rows = []
    for key, label in FIGURES.items():
        if key not in found["stock"]:
            continue
        allowed = budget(name, key)
        row = [label, *(text(key, found[kind][key]) for kind in kinds)]
        for kind in ratios:
            ratio = ratios[kind].get(key)
            row.append("" if ratio is None else f"{ratio:.2f}")
        row.append("" if allowed is None else f"{allowed:g}")
        rows.append(row)
    title = f"{name}: {NETWORKS[name].title}"
    measure.print_table(title, [*columns, "budget"], rows)


def text(key, value):
    """A figure as it is printed."""
    if key == "exact_share":
        return f"{100 * value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=list(NETWORKS),
        default=list(NETWORKS),
        metavar="NETWORK",
        help=f"some of {', '.join(NETWORKS)}; by default all",
    )
    parser.add_argument(
        "--container",
        choices=("ours", "stock", "both"),
        default="both",
        help="what holds the layers: `deel.lip.model`, `keras`, or each in "
        "turn (the default)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        help="steps before the one that is counted on PyTorch",
    )
    parser.add_argument(
        "--no-startup",
        action="store_true",
        help="in one process: sooner, without seconds to build and memory",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None):
    """Counts and prints."""
    args = parse_arguments(argv)
    if args.one:
        with contextlib.redirect_stdout(sys.stderr):
            found = figures_of(args.networks[0], args.one, args.steps, True)
        print(json.dumps(found))
        return
    others = {"ours": "ours_in_keras", "stock": "ours"}
    kinds = [kind for kind in KINDS if kind != others.get(args.container)]
    results = {}
    for name in args.networks:
        found = {}
        for kind in kinds:
            if args.no_startup:
                keras.utils.clear_session()
                found[kind] = figures_of(name, kind, args.steps, False)
            else:
                found[kind] = in_own_process(name, kind, args.steps)
        results[name] = with_ratios(found)
        # As soon as it is known: the large networks take minutes.
        print_network(name, results[name])
    measure.write_json(args.json, results)


if __name__ == "__main__":
    main()
