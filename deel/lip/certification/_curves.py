"""The curve of robust accuracy, drawn for certificates and `deel.lip.plots`."""

import numpy as np

# Readable for colour-blind people, on white and in print.
BLUE, RED, GREY = "#0b5fa5", "#c8442b", "0.88"


def axes_or_new(ax):
    """Returns the axes, or those of a new figure for None."""
    if ax is not None:
        return ax
    try:
        # Optional, and slow to import.
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "`deel.lip.plots` draws with matplotlib, which is not installed. "
            "Install it with `pip install matplotlib`."
        ) from error
    return pyplot.subplots(layout="constrained")[1]


def draw_accuracy(radii, certified, attacked=None, ax=None):
    """See `deel.lip.plots.accuracy_against_radius`."""
    radii = np.atleast_1d(radii)
    certified = _of_length("certified", certified, radii)
    if attacked is not None:
        attacked = _of_length("attacked", attacked, radii)
    ax = axes_or_new(ax)
    if attacked is not None:
        ax.plot(radii, attacked, color=RED, label="under attack (at most)")
        ax.fill_between(
            radii,
            certified,
            attacked,
            color=GREY,
            label="neither broken nor proven",
        )
    ax.plot(radii, certified, color=BLUE, label="certified (at least)")
    ax.set(xlabel="Euclidean radius", ylabel="accuracy", ylim=(0.0, 1.02))
    ax.margins(x=0.0)
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def _of_length(name, values, radii):
    values = np.atleast_1d(values)
    if values.shape != radii.shape:
        raise ValueError(
            f"Arguments `{name}` and `radii` must have the same length. "
            f"Received: {name} of shape {values.shape}, radii of shape "
            f"{radii.shape}"
        )
    return values
