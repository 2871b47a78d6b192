"""Draws the figures of the pages: `python doc/draw_figures.py`.

The curves are computed by the losses themselves. `assets/robustness.png` is
what `examples/demo.py` draws. Figures with text are drawn twice, for light and
for dark pages (`themed` of `conf.py` shows them); pictures of the cards have no
text, no background, and colours that are seen on both.
"""

from pathlib import Path

import matplotlib
import numpy as np

from deel.lip.losses import HKR
from deel.lip.losses import TauCategoricalCrossentropy

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ASSETS = Path(__file__).parent / "assets"
THEMES = {
    "light": {"ink": "#1f2328", "first": "#0b5fa5"},
    "dark": {"ink": "#d5dae0", "first": "#6cb6ff"},
}
BLUE, ORANGE, GREEN, GREY = "#3a8fd6", "#e0883a", "#3fa66b", "#8a949e"


def style(theme):
    """Settings of Matplotlib for the pages of a theme."""
    ink, first = THEMES[theme]["ink"], THEMES[theme]["first"]
    names = ("axes.edgecolor", "axes.labelcolor", "text.color")
    return {
        **dict.fromkeys((*names, "xtick.color", "ytick.color"), ink),
        "axes.prop_cycle": plt.cycler(color=[first, ORANGE, GREEN, GREY]),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "legend.frameon": False,
        "lines.linewidth": 2.0,
        "font.size": 13,
        "svg.hashsalt": "deel.lip",
    }


def losses(theme):
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
        ax.axvline(0.0, color=GREY, linewidth=0.8)
        what = "lead" if name == "tau" else "score"
        ax.set(xlabel=what, ylabel="loss of a positive sample")
        if name != "tau":
            ax.set(ylim=(-4, 8))
        ax.grid(alpha=0.3)
        ax.legend(loc="upper right", fontsize=11)
        _save(figure, f"loss_{name}-{theme}")


def cubic_step(theme):
    """The map of a cubic step on a singular value."""
    figure, ax = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
    s = np.linspace(0.0, 2.15, 200)
    ax.plot(s, 1.5 * s - 0.5 * s**3, color=BLUE)
    ax.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    ax.axhline(1.0, color=GREY, linewidth=0.8)
    ax.axhline(-1.0, color=GREY, linewidth=0.8)
    ax.axvspan(0.0, 2.0, color=BLUE, alpha=0.12)
    ax.set(xlabel="singular value before", ylabel="after", xlim=(0, 2.15))
    _save(figure, f"cubic_step-{theme}")


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
    # Without a date, so that nothing changes where nothing does.
    figure.savefig(ASSETS / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def cards():
    """A small picture for each entry of the index pages."""
    ASSETS.joinpath("cards").mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        figure = plt.figure(figsize=(3.2, 1.5))
        ax = figure.add_axes((0.04, 0.06, 0.92, 0.88))
        ax.axis("off")
        draw(ax)
        _save(figure, f"cards/{name}")


def _curve(ax, x, y, color=BLUE, **options):
    ax.plot(x, y, color=color, linewidth=3, solid_capstyle="round", **options)


def _cone(ax):
    x = np.linspace(-1, 1, 100)
    ax.fill_between(x, -abs(x), abs(x), color=GREY, alpha=0.25, linewidth=0)
    _curve(ax, x, 0.45 * np.sin(3.2 * x) * np.abs(x) ** 0.2 * 0.9)


def _balls(ax, broken=False):
    x = np.linspace(0, 4, 100)
    _curve(ax, x, 0.35 * np.sin(2 * x), GREY)
    for point, radius, color in (
        ((0.9, 1.05), 0.55, BLUE),
        ((2.3, 0.75), 0.7, BLUE),
        ((3.4, -0.65), 0.6, ORANGE),
        ((1.6, -0.85), 0.6, ORANGE),
    ):
        ax.add_patch(plt.Circle(point, radius, color=color, alpha=0.25))
        ax.plot(*point, "o", color=color, markersize=6)
        if broken:
            ax.plot([point[0]], [point[1] - radius], "x", color=GREY)
    ax.set(xlim=(-0.3, 4.3), ylim=(-1.5, 1.6))
    ax.set_aspect("equal")


def _boxes(ax, colors, widths=None):
    widths = widths or [1.0] * len(colors)
    left = 0.0
    for color, width in zip(colors, widths, strict=True):
        ax.add_patch(plt.Rectangle((left, 0), width, 1, color=color, alpha=0.8))
        left += width + 0.3
    ax.set(xlim=(-0.1, left - 0.2), ylim=(-0.7, 1.7))


def _falling(ax, shifts):
    x = np.linspace(0, 1, 100)
    for shift, color in zip(shifts, (BLUE, ORANGE, GREEN), strict=False):
        _curve(ax, x, 1 / (1 + np.exp(9 * (x - shift))), color)
    ax.plot([0, 0, 1], [1, 0, 0], color=GREY, linewidth=1.5)


def _rows(ax, count, color=BLUE):
    for row in range(count):
        y = -row
        ax.plot([0, 1.2], [y, y], color=color, linewidth=7)
        ax.plot([1.6, 4.2 - 0.5 * (row % 3)], [y, y], color=GREY, linewidth=4)
    ax.set(ylim=(-count, 1))


def _hinge(ax):
    x = np.linspace(-1.5, 2.5, 200)
    for slope, color in ((1.0, BLUE), (2.0, ORANGE)):
        _curve(ax, x, np.maximum(0, slope * (1 - x)) - 0.4 * x, color)
    ax.axvline(0, color=GREY, linewidth=1.5)


def _descent(ax):
    x = np.linspace(0, 1, 100)
    _curve(ax, x, np.exp(-4 * x) + 0.02 * np.sin(40 * x) * (1 - x))
    _curve(ax, x, 1 - 0.9 * np.exp(-5 * x), ORANGE)
    ax.plot([0, 0, 1], [1, 0, 0], color=GREY, linewidth=1.5)


def _bars(ax, heights):
    colors = [GREY] + [BLUE] * (len(heights) - 1)
    ax.bar(range(len(heights)), heights, color=colors, width=0.6)


def _graph(ax, arrows):
    for (x0, y0), (x1, y1) in arrows:
        ax.plot([x0, x1], [y0, y1], color=GREY, linewidth=2.5, zorder=1)
    points = sorted({point for arrow in arrows for point in arrow})
    for index, (x, y) in enumerate(points):
        color = ORANGE if index == 0 else BLUE
        ax.scatter([x], [y], s=260, color=color, zorder=2)
    ax.margins(0.2)


def _clouds(ax, both=True):
    random = np.random.default_rng(0)
    for centre, color in ((-1.0, BLUE), (1.0, ORANGE))[: 2 if both else 1]:
        x, y = random.normal((centre, 0.3 * centre), 0.33, (60, 2)).T
        ax.scatter(x, y, s=9, color=color, alpha=0.8)
    ax.set(xlim=(-2.6, 2.6))


def _levels(ax):
    x, y = np.meshgrid(np.linspace(-2, 2, 80), np.linspace(-1, 1, 60))
    z = np.hypot(x + 0.8, y) - np.hypot(x - 0.8, y)
    ax.contour(x, y, z, 11, cmap="coolwarm", linewidths=1.6)
    ax.contour(x, y, z, [0.0], colors=GREY, linewidths=3)


def _transport(ax):
    x = np.linspace(-3, 3, 200)
    for centre, color in ((-1.2, BLUE), (1.2, ORANGE)):
        y = np.exp(-((x - centre) ** 2) / 0.5)
        ax.fill_between(x, y, color=color, alpha=0.55, linewidth=0)
    ax.annotate(
        "",
        (1.0, 1.25),
        (-1.0, 1.25),
        arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 2.5},
    )
    ax.set(ylim=(0, 1.5))


def _zero_and_eight(ax):
    angle = np.linspace(0, 2 * np.pi, 100)
    _curve(ax, np.cos(angle) * 0.6 - 1.2, np.sin(angle), BLUE)
    for centre in (-0.5, 0.5):
        _curve(
            ax, 0.45 * np.cos(angle) + 1.2, 0.5 * np.sin(angle) + centre, ORANGE
        )
    ax.set(xlim=(-3, 3))


def _regression(ax):
    x = np.linspace(-1, 1, 200)
    y = 0.5 * np.sin(3 * x)
    ax.fill_between(x, y - 0.25, y + 0.25, color=BLUE, alpha=0.25, linewidth=0)
    _curve(ax, x, y)
    random = np.random.default_rng(1)
    points = random.uniform(-1, 1, 30)
    noise = random.normal(0, 0.1, 30)
    ax.scatter(points, 0.5 * np.sin(3 * points) + noise, s=12, color=ORANGE)
    ax.scatter(points[:3], [1, -0.9, 0.9], s=22, marker="x", color=ORANGE)


def _rising(ax):
    x = np.linspace(-1, 1, 200)
    for height, color in ((0.35, GREY), (0.0, BLUE), (-0.35, GREY)):
        _curve(ax, x, height + 0.5 * x + 0.15 * np.sin(3.3 * x + height), color)


def _margins(ax):
    ax.bar(range(10), [4, 6, 3, 2, 3, 3, 5, 5, 5, 4], color=BLUE, width=0.6)
    ax.axhline(2.0, color=ORANGE, linewidth=3)


def _sets(ax):
    scores = [1.5, 4, 2.6, 0.8, 3.2, 1.2]
    ax.bar(
        range(6),
        scores,
        color=[BLUE if score > 2 else GREY for score in scores],
        width=0.6,
    )
    ax.axhline(2.0, color=ORANGE, linewidth=3)


def _nearer(ax):
    x = np.linspace(0, 1, 100)
    for steepness, color in ((7, GREY), (4, BLUE), (2.6, GREEN)):
        _curve(ax, x, 1 / (1 + (steepness * x) ** 4), color)
    ax.scatter(x[::11], 1 / (1 + (1.8 * x[::11]) ** 4), s=40, color=ORANGE)


def _star(ax):
    angles = np.pi * (0.5 + np.arange(11) / 5)
    radii = np.where(np.arange(11) % 2, 0.45, 1.0)
    x, y = radii * np.cos(angles), radii * np.sin(angles)
    for scale, color in ((1.6, GREY), (1.0, BLUE), (0.45, GREY)):
        _curve(ax, scale * x, scale * y, color)
    ax.plot([-3.4, -1.0], [0.9, 0.3], color=ORANGE, linewidth=3)
    ax.scatter([-0.95], [0.31], s=60, color=ORANGE, zorder=3)
    ax.set_aspect("equal")
    ax.set_xlim(-3.5, 3.5)


PICTURES = {
    "quickstart": lambda ax: _balls(ax),
    "guide": lambda ax: _rows(ax, 4),
    "notebooks": lambda ax: _boxes(ax, [GREY, BLUE, GREY, BLUE], [1, 2, 1, 2]),
    "api": lambda ax: _rows(ax, 5, ORANGE),
    "how_it_works": _cone,
    "extending": lambda ax: _boxes(ax, [GREY, GREY, ORANGE, GREY]),
    "installing": lambda ax: _boxes(ax, [BLUE, ORANGE, GREEN]),
    "constant": _cone,
    "layers": lambda ax: _boxes(
        ax, [BLUE, BLUE, BLUE, ORANGE], [2, 1.4, 1, 0.6]
    ),
    "losses": _hinge,
    "from_keras": lambda ax: _boxes(ax, [GREY, GREY, BLUE, BLUE]),
    "certificates": lambda ax: _balls(ax),
    "proofs": lambda ax: _rows(ax, 4, GREEN),
    "production": lambda ax: _graph(
        ax, [((0, 0), (1, 0)), *(((1, 0), (2, y)) for y in (-1, 0, 1))]
    ),
    "training": _descent,
    "performance": lambda ax: _bars(ax, [1.0, 1.25, 1.4]),
    "backends": lambda ax: _rows(ax, 3, GREEN),
    "distributed": lambda ax: _graph(
        ax, [((0, 0), (1, y)) for y in (-1, 0, 1)]
    ),
    "ecosystem": lambda ax: _graph(
        ax, [((0, 0), (1, 0.6)), ((0, 0), (1, -0.6)), ((1, 0.6), (2, 0))]
    ),
    "questions": _clouds,
    "migrating": lambda ax: _boxes(ax, [GREY, BLUE], [1, 1.4]),
    "mnist": lambda ax: _falling(ax, (0.75, 0.6)),
    "cifar10": lambda ax: _falling(ax, (0.3, 0.22)),
    "demo0": lambda ax: _balls(ax),
    "demo1": _transport,
    "demo2": _levels,
    "demo3": _zero_and_eight,
    "demo4": _margins,
    "demo5": _descent,
    "demo6": lambda ax: _balls(ax, broken=True),
    "demo7": _regression,
    "demo8": _sets,
    "demo9": _rising,
    "demo10": _nearer,
    "demo11": _star,
}


if __name__ == "__main__":
    for name in THEMES:
        with plt.rc_context(style(name)):
            losses(name)
            cubic_step(name)
    with plt.rc_context(style("light")):
        cards()
