"""Curves against the radius, drawn for certificates and `deel.lip.plots`."""

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


def radii_to_draw(epsilons, attacked, furthest):
    """Returns the radii of a curve, 300 of them if none were given.

    Args:
        epsilons: Sequence of floats, or None.
        attacked: What an attack found at each of the `epsilons`, or None.
        furthest: Float, up to where the curve is drawn otherwise.
    """
    if epsilons is not None:
        return epsilons
    if attacked is not None:
        raise ValueError(
            "What an attack found belongs to radii. Expected `epsilons`. "
            "Received: epsilons=None"
        )
    return np.linspace(0.0, furthest + 1e-9, 300)


def draw_bracket(
    radii, certified, attacked=None, ax=None, quantity="accuracy", at_most=False
):
    """Draws what is proven within each radius, and what an attack found.

    Args:
        radii: Increasing sequence of floats.
        certified: Sequence of floats.
        attacked: Sequence of floats, or None.
        ax: Matplotlib axes; None makes a new figure.
        quantity: String, what is drawn; a share, unless `at_most`.
        at_most: Boolean, whether what is certified is a bound from above.

    Returns:
        The axes.
    """
    radii = np.atleast_1d(radii)
    certified = _of_length("certified", certified, radii)
    if attacked is not None:
        attacked = _of_length("attacked", attacked, radii)
    ax = axes_or_new(ax)
    proven, found = "at least", "at most"
    if at_most:
        proven, found = found, proven
    if attacked is not None:
        ax.plot(radii, attacked, color=RED, label=f"under attack ({found})")
        ax.fill_between(
            radii,
            certified,
            attacked,
            color=GREY,
            label="neither broken nor proven",
        )
    ax.plot(radii, certified, color=BLUE, label=f"certified ({proven})")
    ax.set(xlabel="Euclidean radius", ylabel=quantity)
    ax.set_ylim(0.0, None if at_most else 1.02)
    ax.margins(x=0.0)
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def draw_map(values, wrong=None, shown=None, ax=None):
    """Draws radii of the pixels of an image.

    Args:
        values: Array `(height, width)`.
        wrong: Boolean array of pixels to draw in red, or None.
        shown: Boolean array of pixels whose radius is drawn; None for all.
        ax: Matplotlib axes; None makes a new figure.

    Returns:
        The axes.
    """
    ax = axes_or_new(ax)
    if shown is not None:
        values = np.where(shown, values, np.nan)
    image = ax.imshow(values, cmap="Blues", vmin=0.0)
    ax.figure.colorbar(image, ax=ax, label="certified radius")
    if wrong is not None:
        # Opaque where it is wrong, nothing elsewhere.
        colour = [int(RED[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        layer = np.zeros((*values.shape, 4))
        layer[wrong] = (*colour, 1.0)
        ax.imshow(layer)
    ax.axis("off")
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
