"""Rays through a field, which never pass its surface.

Note [Steps of a ray]

Let f be L-Lipschitz, and z a point of its zero set, the surface. Then
`|f(p)| = |f(p) - f(z)| <= L ||p - z||` for each point p: the score never says
more than L times the distance of the surface, whatever the weights. So f keeps
its sign at all points nearer than `|f(p)| / L`, and a ray may advance by as
much. That distance is the radius that `certify` proves of a single score, with
what floating point adds; see [What is certified].

A ray are the points `o + s d` with all real s, of o and d in float64. Its point
at s is computed as p, wrong in each coordinate by at most `u |s d_i|` for the
product and `u |p_i|` for the sum, with u = 2^-53. The norm of that is below

    m = 2^-52 (||o|| + 2 s ||d||) + sqrt(n) 2^-1022,

the last term for underflow, with a factor of two to spare. A point of the ray
at `s + t` is within `m + t ||d||` of p, so `t = (r - m) / ||d||` stays in the
ball of the radius r around p. A direction of n numbers that was divided by its
computed norm has a norm of at most `1 + (n + 8) 2^-52`. Sums of steps are
rounded down.
"""

import dataclasses
import math

import numpy as np
from keras import ops

from deel.lip._validation import positive_float
from deel.lip._validation import positive_int
from deel.lip.certification._data import by_rows
from deel.lip.certification._data import check_classifier
from deel.lip.certification._data import check_samples
from deel.lip.certification._data import check_single_score
from deel.lip.certification._data import require_finite
from deel.lip.certification._networks import ROUNDINGS
from deel.lip.certification._networks import Networks
from deel.lip.certification._outcomes import BestClass


@dataclasses.dataclass(frozen=True, repr=False)
class TracedRays:
    """Where rays have come to; what `sphere_trace` returns.

    Before its end, no ray has met the surface. Those that are neither `hit` nor
    `free` ran out of steps, or came so near that rounding left nothing to go.

    Attributes:
        points: Array of the shape of `origins`, float64, the ends of the rays.
        distance: Array `(rays,)`, float64, how far each one went.
        hit: Boolean array `(rays,)`, whether the magnitude of the score at the
            end is proven to be at most the tolerance.
        free: Boolean array `(rays,)`, whether the ray is proven not to meet the
            surface up to the distance `far`.
        score: Array `(rays,)`, float64, the scores at the ends.
        lipschitz_constant: Float, the proven bound of the score.
        arithmetic: String, whose surface is meant: the argument `rounding` of
            `sphere_trace`.
    """

    points: np.ndarray
    distance: np.ndarray
    hit: np.ndarray
    free: np.ndarray
    score: np.ndarray
    lipschitz_constant: float
    arithmetic: str = "exact"

    def __len__(self):
        return len(self.distance)

    def __repr__(self):
        hit, free = int(np.sum(self.hit)), int(np.sum(self.free))
        return "\n".join(
            [
                f"{len(self)} rays, none of which passes the surface",
                f"  proven Lipschitz constant  {self.lipschitz_constant:.6g}",
                f"  surface of                 {ROUNDINGS[self.arithmetic]}",
                f"  at the surface             {hit}",
                f"  free up to the far end     {free}",
                f"  on their way               {len(self) - hit - free}",
            ]
        )


def sphere_trace(
    model,
    origins,
    directions,
    far,
    tolerance=1e-3,
    steps=100,
    batch_size=256,
    constants=None,
    rounding="exact",
    method="chain",
    refine=False,
):
    """Follows rays up to the surface where a score changes its sign.

    From each point, a ray advances by the radius within which the sign of the
    score is proven to stay: the magnitude of the score over its constant, less
    what rounding can do. So it never passes the surface, whatever the network
    has learned, also where that is wrong. It is for the distance fields of
    `deel.lip.applications.DistanceField`, and for any network with a single
    score; where scores change slowly it takes many steps.

    Args:
        model: A built model with one input and one output `(batch, 1)`.
        origins: Array of points, where rays begin.
        directions: Array of the same shape, or of one point, for all rays. Of
            any length: they are normalised.
        far: Float, the distance at which rays end; of the size of the domain.
        tolerance: Float, the magnitude of the score from which on a ray is at
            the surface.
        steps: Integer, how many steps a ray takes at most.
        batch_size: Integer, rays that go at once.
        constants: See `lipschitz_bound`.
        rounding: Whose surface no ray passes: `"exact"`, that of the network of
            real numbers; `"float32"`, that of the network as it runs, which has
            the same sign at each point of the ray. See `certify`.
        method: See `lipschitz_bound`.
        refine: See `lipschitz_bound`.

    Returns:
        A `TracedRays`.

    Raises:
        ValueError: As `certify`; for a model with several scores, directions
            that are zero or do not fit the origins, `rounding="estimated"`, or
            other arguments out of their range.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.certification import sphere_trace
    >>> # A field that is zero on the line x + y = 1.
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.set_weights([np.ones((2, 1)), -np.ones(1)])
    >>> towards = [[1.0, 0.0], [-1.0, 0.0]]
    >>> rays = sphere_trace(model, np.zeros((2, 2)), towards, far=3.0)
    >>> rays.hit.tolist(), rays.free.tolist()
    ([True, False], [False, True])
    >>> [round(float(distance), 2) for distance in rays.distance]
    [1.0, 3.0]

    Reference:
        - Hart, "Sphere tracing: a geometric method for the antialiased ray
          tracing of implicit surfaces", 1996.
    """
    check_single_score(model, "sphere_trace", "A field")
    check_classifier(model, "sphere_trace")
    if rounding == "estimated":
        raise ValueError(
            "A ray is proven to stop. Expected `rounding='exact'` or "
            f"'float32'. Received: rounding={rounding}"
        )
    far = positive_float("far", far)
    tolerance = positive_float("tolerance", tolerance)
    steps = positive_int("steps", steps)
    networks = Networks(model, constants, rounding, method, refine)
    origins = _points(origins)
    check_samples(model, origins)
    if len(origins) == 0:
        raise ValueError(
            "There is nothing to trace. "
            f"Received: origins of shape {origins.shape}"
        )
    directions = _unit(directions, origins.shape)
    tracer = _Tracer(networks.of(origins), far, tolerance, steps)

    def trace(rows):
        return tracer.trace(origins[rows], directions[rows])

    distance, score, hit, free = by_rows(trace, len(origins), batch_size).T
    return TracedRays(
        points=_at(origins, directions, distance),
        distance=distance,
        hit=hit.astype(bool),
        free=free.astype(bool),
        score=score,
        lipschitz_constant=float(networks.score_constants[0]),
        arithmetic=rounding,
    )


class _Tracer:
    """The steps of the rays of a batch; see [Steps of a ray]."""

    def __init__(self, network, far, tolerance, steps):
        self.network = network
        self.far = far
        self.tolerance = tolerance
        self.steps = steps

    def trace(self, origins, directions):
        """Returns an array with a row `(distance, score, hit, free)` a ray."""
        size = np.linalg.norm(origins.reshape(len(origins), -1), axis=1)
        count = origins[0].size
        length = 1 + (count + 8) * 2.0**-52
        distance = np.zeros(len(origins))
        goes = np.ones(len(origins), bool)
        for step in range(self.steps + 1):
            found = self.network.certify(
                _at(origins, directions, distance), None, BestClass()
            )
            largest = np.abs(found["margin"]) + found["rounding"]
            # The sum itself is rounded.
            is_hit = np.nextafter(largest, np.inf) <= self.tolerance
            is_free = (distance >= self.far) & ~is_hit
            goes &= ~is_hit & ~is_free
            if step == self.steps or not np.any(goes):
                break
            misplaced = 2.0**-52 * (size + 2 * length * distance)
            misplaced += math.sqrt(count) * 2.0**-1022
            ahead = np.maximum(found["radius"] - misplaced, 0.0) / length
            ahead *= 1 - 2.0**-50
            following = np.nextafter(distance + ahead, -np.inf)
            goes &= following > distance
            following = np.minimum(following, self.far)
            distance = np.where(goes, following, distance)
        sign = np.where(found["prediction"] == 1, 1.0, -1.0)
        score = sign * found["margin"]
        return np.stack([distance, score, is_hit, is_free], axis=1)


def _points(x):
    """Points as a float64 array, all of whose numbers are finite."""
    x = ops.convert_to_numpy(x) if ops.is_tensor(x) else np.asarray(x)
    x = x.astype("float64")
    require_finite(x)
    return x


def _unit(directions, shape):
    """Directions of length one, an array of that shape."""
    directions = _points(directions)
    if directions.shape not in (shape, shape[1:]):
        raise ValueError(
            f"Rays need a direction each, an array of shape {shape}, or one "
            f"for all, of shape {shape[1:]}. "
            f"Received: directions of shape {directions.shape}"
        )
    directions = np.broadcast_to(directions, shape)
    axes = tuple(range(1, len(shape)))
    # Squares of what is at most one do not overflow.
    largest = np.max(np.abs(directions), axis=axes, keepdims=True)
    if not np.all(largest > 0):
        raise ValueError(
            "A ray goes somewhere. Received: directions that are zero, of the "
            f"rays {np.flatnonzero(largest == 0)[:10].tolist()}"
        )
    directions = directions / largest
    squares = np.sum(np.square(directions), axis=axes, keepdims=True)
    return directions / np.sqrt(squares)


def _at(origins, directions, distance):
    """The points of rays at a distance."""
    return origins + directions * distance.reshape(
        -1, *[1] * (origins.ndim - 1)
    )
