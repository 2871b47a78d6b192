"""A search for points inside of certified balls that break the certificate.

It knows nothing of the proofs. It puts samples where certificates are about to
vanish, walks from each of them along a few lines, and asks the network at each
point, in batches of one and all at once.
"""

import dataclasses

import numpy as np
from adversarial.families import scores_of
from adversarial.families import whole_copy
from harness import to_numpy

from deel.lip._backend.differentiation import vector_jacobian
from deel.lip.certification import certify
from deel.lip.certification._float64 import as_float64
from deel.lip.certification._float64 import float64

# How many points, those with the smallest leads, are also asked for alone.
_ALONE = 12


@dataclasses.dataclass
class Result:
    """What a search found.

    Attributes:
        certificates: Integer, how many radii above zero were attacked.
        points: Integer, how many points within them were tried.
        broken: List of strings, a description of each broken certificate.
    """

    certificates: int = 0
    points: int = 0
    broken: list = dataclasses.field(default_factory=list)

    def __add__(self, other):
        return Result(
            self.certificates + other.certificates,
            self.points + other.points,
            self.broken + other.broken,
        )


class Target:
    """A network of which the boundary is moved to and fro near a sample.

    Args:
        model: A model of `families.build`.
        x: Array, a sample.
    """

    def __init__(self, model, x):
        self.model, self.x = model, x
        self.last = model.layers[-1]
        with float64():
            self.copy = whole_copy(model)
            # Without the last bias, which is zero.
            scores = scores_of(self.copy, x[None])[0]
        self.size = np.max(np.abs(scores))
        self.lead_without_bias = scores[0] - scores[1]
        self.slope = _slope(model, x)

    def lead(self, amount):
        """Lets the first score lead by an amount, as float32 can tell."""
        bias = np.array([0.0, self.lead_without_bias - amount], "float32")
        self.last.bias.assign(bias)
        with float64():
            self.copy.layers[-1].bias.assign(as_float64(bias))

    def attack(self, certificates, random, steps):
        """Searches the ball around the sample; returns a `Result`."""
        radius = float(certificates.radius[0])
        if radius == 0:
            return Result()
        is_exact = certificates.arithmetic == "exact"
        sample = self.x.astype("float64")
        points = within(
            sample,
            self.slope,
            radius,
            random,
            steps,
            "float64" if is_exact else "float32",
        )
        result = Result(1, len(points))
        runs = self._exact if is_exact else self._runs
        for tried, found in runs(points, certificates.prediction[0]):
            found = np.argmax(found, axis=1)
            wrong = found != certificates.prediction[0]
            if np.any(wrong):
                moved = (tried - sample)[wrong]
                nearest = np.min(_norm(moved.reshape(len(moved), -1)))
                result.broken = [f"radius {radius:.3g} broken at {nearest:.3g}"]
                break
        return result

    def _exact(self, points, prediction):
        with float64():
            yield points, scores_of(self.copy, points)

    def _runs(self, points, prediction):
        """Scores in float32: of all points, one by one, and some not compiled.

        Sums of one sample are added in another order than those of many, which
        matters where the lead is small.
        """
        scores = self.model.predict_on_batch(points)
        yield points, scores
        lead = scores[:, prediction] - scores[:, 1 - prediction]
        # What is no number comes first.
        nearest = np.argsort(np.nan_to_num(lead, nan=-np.inf))[:_ALONE]
        points = points[nearest]
        ones = [self.model.predict_on_batch(p[None]) for p in points]
        yield points, np.concatenate(ones)
        points = points[:6]
        ones = [self.model(p[None], training=False) for p in points]
        yield points, np.concatenate([to_numpy(x) for x in ones])


def within(sample, slope, radius, random, steps, dtype):
    """Points of a ball, on lines through its centre, and the centre.

    Down the gradient, the lead becomes what was taken off for rounding. Moves
    along constant images change how each term of a sum is rounded.
    """
    noise = random.standard_normal(sample.shape)
    constant = _unit(np.ones_like(sample))
    lines = [_unit(x) for x in (slope, np.sign(slope), sample, noise)]
    # What one can represent is kept within the ball below.
    lengths = np.concatenate(
        [[1 - 1e-6, 0.99], 10.0 ** -random.uniform(0, 4, 2)]
    )
    points = [sample]
    for line in (constant, *lines):
        points += [
            sample + radius * t * s * line for t in lengths for s in (-1, 1)
        ]
    for _ in range(steps):
        down = random.choice([0.9, 0.99, 0.999])
        beside = random.uniform(-1, 1) * np.sqrt(1 - down**2)
        for sign in (-1, 1):
            move = sign * down * lines[0] + beside * constant
            points.append(sample + radius * move)
    with np.errstate(over="ignore"):
        rounded = np.stack(points).astype(dtype)
    moved = (rounded.astype("float64") - sample).reshape(len(rounded), -1)
    kept = _norm(moved) <= radius
    kept &= np.all(np.isfinite(moved), axis=1)
    # As many for each sample, for which the network is compiled once.
    return np.where(kept.reshape(-1, *[1] * sample.ndim), rounded, rounded[0])


def _slope(model, sample):
    """Gradient of the lead of the first score."""
    return vector_jacobian(
        lambda x: model(x, training=False),
        sample[None].astype("float32"),
        np.array([[1.0, -1.0]], "float32"),
    )[0].astype("float64")


def _unit(x):
    norm = np.linalg.norm(x)
    return x / norm if 0 < norm < np.inf else np.zeros_like(x)


def _norm(x):
    # Squares of what is very small or large are not there.
    scale = np.max(np.abs(x), axis=1, initial=1e-300)
    unit = x / scale[:, None]
    return scale * np.sqrt(np.einsum("ij,ij->i", unit, unit))


def search(model, x, rounding, seed, count=2, steps=8):
    """Puts a sample near the boundary, and attacks its certificates.

    Half of the leads are random, down to 1e-9 of the scores. The others are one
    to three times what certificates take off for rounding: at the edge.

    Args:
        model: A model of `families.build`.
        x: Array, a sample.
        rounding: As of `certify`.
        seed: Integer.
        count: Integer, how many leads of each kind are tried.
        steps: Integer, see `attack`.

    Returns:
        `Result`.
    """
    random = np.random.default_rng(seed)
    target = Target(model, x)
    target.lead(0.0)
    edge = certify(model, x[None], rounding=rounding).rounding[0]
    leads = target.size * 10.0 ** random.uniform(-9, -1, count)
    edges = edge * random.choice([1.01, 1.1, 1.5, 3.0, 10.0], count)
    if rounding == "estimated":
        # It is taken off twice.
        edges *= 2
    result = Result()
    for amount in (*leads, *edges):
        target.lead(amount * random.choice([-1, 1]))
        certificates = certify(model, x[None], rounding=rounding)
        result += target.attack(certificates, random, steps)
    return result
