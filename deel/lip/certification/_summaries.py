"""What results say of themselves in words."""

import math

import numpy as np


def constant_lines(vector, score, lead):
    """Lines that say which constants are proven, and which one counts.

    Args:
        vector: Float, the constant of the vector of all scores.
        score: Float or None, that of the score that changes fastest.
        lead: Float or None, the largest of all leads.
    """
    of_vector = f"  proven Lipschitz constant  {vector:.6g}"
    # Not known, or that of the only score.
    if lead is None or math.isclose(lead, vector, rel_tol=1e-6):
        return [of_vector]
    return [
        f"{of_vector} of the vector of scores",
        f"{'':29}{score:.6g} of each score",
        f"  the one that counts        {lead:.6g} of the lead "
        "of one score over another",
    ]


def range_lines(input_range):
    """Lines that say in which units radii are, none if it is not known.

    Args:
        input_range: Pair of floats, or None.
    """
    if input_range is None:
        return []
    least, largest = input_range
    return [f"  radii are for inputs       from {least:.4g} to {largest:.4g}"]


def float32_line(summary):
    """Line that says how many certificates of real numbers hold in float32.

    Args:
        summary: Dictionary, what `to_dict` returns.
    """
    return (
        f"  hold in float32, too       {summary['float32_certificates']} of "
        f"{summary['certificates']}, median radius "
        f"{summary['float32_median_radius']:.4g}"
    )


def float32_summary(radius, float32_radius):
    """The part of `to_dict` about float32.

    Args:
        radius: Array of radii.
        float32_radius: Array of the same shape.
    """
    return {
        "certificates": int(np.sum(radius > 0)),
        "float32_certificates": int(
            np.sum((radius > 0) & (float32_radius > 0))
        ),
        "float32_median_radius": float(np.median(float32_radius)),
    }
