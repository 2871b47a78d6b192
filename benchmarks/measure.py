"""Times of several things, taken in turns.

The speed of a machine changes while it is measured, by other programs and by
its own temperature. What is to be compared therefore runs in alternation, in
one process, and the ratio is taken within each round.
"""

import importlib
import json
import platform
import statistics
import time
from pathlib import Path

import keras
import numpy as np
from rich.console import Console
from rich.table import Table


def in_turns(tasks, rounds, seconds=0.3, warm_up=2):
    """Measures functions in alternation.

    Args:
        tasks: Dictionary of functions of a number of repetitions, which return
            the seconds that one took.
        rounds: Integer, the number of times that each is measured.
        seconds: Float, how long a measurement lasts at least.
        warm_up: Integer, repetitions of each before it is measured.

    Returns:
        Dictionary of lists of seconds, one for each round.
    """
    repetitions = {}
    for name, task in tasks.items():
        # The first call traces and compiles.
        task(warm_up)
        once = task(2)
        repetitions[name] = max(2, round(seconds / max(once, 1e-6)))
    found = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            found[name].append(task(repetitions[name]))
    return found


def repeated(function):
    """A task for `in_turns` of a function without arguments."""

    def task(repetitions):
        start = time.perf_counter()
        for _ in range(repetitions):
            wait_for(function())
        return (time.perf_counter() - start) / repetitions

    return task


def wait_for(result):
    """Returns when a result is computed; JAX and GPUs compute later."""
    for leaf in filter(keras.ops.is_tensor, keras.tree.flatten(result)):
        if hasattr(leaf, "block_until_ready"):
            leaf.block_until_ready()
        elif keras.backend.backend() == "torch" and leaf.is_cuda:
            import torch

            torch.cuda.synchronize()


class EpochTime(keras.callbacks.Callback):
    """Time of the batches of an epoch, without what `fit` does around it."""

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        # The logs hold the loss, so the last step is computed by now.
        self.seconds = time.perf_counter() - self.start


def training_task(model, x, y):
    """A task that trains, as users do it, with `fit`; one batch a step."""

    def task(repetitions):
        clock = EpochTime()
        count = (repetitions, *(1,) * (x.ndim - 1))
        model.fit(
            np.tile(x, count),
            np.tile(y, (repetitions, 1)),
            batch_size=len(x),
            shuffle=False,
            verbose=0,
            callbacks=[clock],
        )
        return clock.seconds / repetitions

    return task


def inference_task(model, x):
    """A task that predicts, with `predict_on_batch`."""
    return repeated(lambda: model.predict_on_batch(x))


def summary(times):
    """Median and quartiles of seconds, in milliseconds."""
    low, median, high = np.percentile(times, [25, 50, 75]) * 1e3
    return {"median": median, "low": low, "high": high}


def ratio(times, reference):
    """Median of the ratios of two lists of times, round by round."""
    pairs = zip(times, reference, strict=True)
    return statistics.median(a / b for a, b in pairs)


# Epochs that take so many times the fastest one are of another mode: TensorFlow
# runs some of them on one of two cores.
_SLOW = 1.4


def modes(times, reference):
    """What tells networks apart whose epochs take one of two times.

    Returns:
        Dictionary: the ratio of the fastest epochs, and the share of slow ones
        in both lists.
    """
    return {
        "fast_ratio": min(times) / min(reference),
        "slow_share": float(np.mean(np.array(times) > _SLOW * min(times))),
        "slow_share_stock": float(
            np.mean(np.array(reference) > _SLOW * min(reference))
        ),
    }


def environment():
    """What the figures belong to."""
    backend = keras.backend.backend()
    return {
        "backend": backend,
        "backend_version": importlib.import_module(backend).__version__,
        "keras": keras.__version__,
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def print_table(title, columns, rows):
    """Prints rows of strings."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=112).print(table)


def write_json(path, results):
    """Writes results with the environment that they belong to."""
    if path is None:
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(), "results": results}
    path.write_text(json.dumps(content, indent=2) + "\n")


def pyplot():
    """Returns `matplotlib.pyplot`, set to write files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt
