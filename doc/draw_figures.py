"""Draws the figures of the pages: `python doc/draw_figures.py`.

The curves are computed by the losses themselves. `assets/robustness.png` is
what `examples/demo.py` draws.
"""

from pathlib import Path

import matplotlib
import numpy as np

from deel.lip.losses import HKR
from deel.lip.losses import TauCategoricalCrossentropy

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ASSETS = Path(__file__).parent / "assets"


def losses():
    """Loss of one positive sample against its score, a figure for each knob."""
    scores = np.linspace(-1.5, 2.5, 201)
    infinity = float("inf")
    knobs = {
        "alpha": {
            f"alpha = {value:g}": HKR(value, 1.0, reduction=None)
            for value in (0.0, 1.0, 10.0, infinity)
        },
        "min_margin": {
            f"min_margin = {value:g}": HKR(10.0, value, reduction=None)
            for value in (0.2, 1.0, 2.0)
        },
        "tau": {
            f"tau = {value:g}": TauCategoricalCrossentropy(
                value, reduction=None
            )
            for value in (1.0, 5.0, 50.0)
        },
    }
    for name, curves in knobs.items():
        figure, ax = plt.subplots(figsize=(4.2, 3.6), layout="constrained")
        for label, loss in curves.items():
            ax.plot(scores, _of_positive(loss, scores), label=label)
        ax.axvline(0.0, color="k", linewidth=0.8)
        what = "lead" if name == "tau" else "score"
        ax.set(xlabel=what, ylabel="loss of a positive sample")
        if name != "tau":
            ax.set(ylim=(-4, 8))
        ax.grid(alpha=0.3)
        ax.legend()
        _save(figure, f"loss_{name}")


def cubic_step():
    """The map of a cubic step on a singular value."""
    figure, ax = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
    s = np.linspace(0.0, 2.15, 200)
    ax.plot(s, 1.5 * s - 0.5 * s**3, color="#0b5fa5")
    ax.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    ax.axhline(1.0, color="k", linewidth=0.8)
    ax.axhline(-1.0, color="k", linewidth=0.8)
    ax.axvspan(0.0, 2.0, color="#0b5fa5", alpha=0.08)
    ax.set(xlabel="singular value before", ylabel="after", xlim=(0, 2.15))
    _save(figure, "cubic_step")


def _of_positive(loss, scores):
    if isinstance(loss, TauCategoricalCrossentropy):
        pairs = np.stack([scores, np.zeros_like(scores)], axis=1)
        return np.array(loss(np.tile([1.0, 0.0], (len(scores), 1)), pairs))
    # Beside a fixed negative sample, since the KR term wants both classes.
    labels = np.array([[1.0], [0.0]])
    return [
        float(loss(labels, np.array([[score], [0.0]]))[0]) for score in scores
    ]


def _save(figure, name):
    figure.savefig(ASSETS / f"{name}.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    losses()
    cubic_step()
