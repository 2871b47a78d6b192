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
    """Loss of one positive sample against its score, knob by knob."""
    figure, cells = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    scores = np.linspace(-1.5, 2.5, 201)
    # With a fixed negative sample, so that the KR term has both classes.
    for alpha in (0.0, 1.0, 10.0, np.inf):
        loss = HKR(alpha=alpha, min_margin=1.0, reduction=None)
        cells[0].plot(scores, _of_positive(loss, scores), label=f"{alpha:g}")
    cells[0].set(title="HKR: alpha", ylim=(-4, 8))
    for margin in (0.2, 1.0, 2.0):
        loss = HKR(alpha=10.0, min_margin=margin, reduction=None)
        cells[1].plot(scores, _of_positive(loss, scores), label=f"{margin:g}")
    cells[1].set(title="HKR, alpha = 10: min_margin", ylim=(-4, 8))
    for tau in (1.0, 5.0, 50.0):
        loss = TauCategoricalCrossentropy(tau, reduction=None)
        pairs = np.stack([scores, np.zeros_like(scores)], axis=1)
        labels = np.tile([1.0, 0.0], (len(scores), 1))
        cells[2].plot(scores, np.array(loss(labels, pairs)), label=f"{tau:g}")
    cells[2].set(title="cross-entropy of two classes: tau")
    for ax in cells:
        ax.axvline(0.0, color="k", linewidth=0.8)
        ax.set(xlabel="score, or lead", ylabel="loss of a positive sample")
        ax.grid(alpha=0.3)
        ax.legend()
    _save(figure, "losses")


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
