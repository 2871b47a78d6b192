"""What floating point adds to a forward pass.

Note [The worst case of a sum]

Let u be the rounding unit, 2^-24 for float32. A sum of n products, computed in
any order, with or without fused multiply-add, is the sum of these products with
factors that differ from one by at most gamma_n = n u / (1 - n u) (Higham,
chapter 3). So what is computed for `A x + b` differs from it, in the Euclidean
norm, by at most `gamma_n (|| |A| || ||x|| + ||b||)`, with |A| the matrix of
absolute values and n the number of terms, the bias included. That bound holds
for every batch size, backend and order of summation, and is reached where all
terms have one sign and are added one after the other. Algorithms that add
transformed values instead (Winograd, FFT) are not covered: `certify` looks for
them by a convolution that would be exact without.

Note [Sums in the middle]

Few sums come near that worst case: it takes terms of one sign. Let `t_1 ...
t_n` be the products of one output, s their sum, T that of their magnitudes and
P the root of that of their squares. Any order of additions is a binary tree
with the products as leaves, and each inner node v holds a sum `s_v` of those
below it, the set S_v. Adding at v is wrong by at most u times what is added, so
the output is wrong by at most `u (V + T) / (1 - n u)`, V the sum of all
`|s_v|`; fused additions skip what T counts. V is bounded in two ways:

- `s_v` is not beyond the sum of all positive, or of all negative products, the
  larger one of which is `(T + |s|) / 2`. So V + T is at most `(n + 1) / 2 (T +
  |s|)`.
- Take the sign of each `s_v`, and let c_j be the sum of the signs of the nodes
  above product j. Then V is the sum of all `c_j t_j`, which is their mean times
  s, plus by Cauchy and Schwarz at most P times the root of the sum of all
  squares of `c_j - mean`. The mean is at most `(n + 1) / 2`. These squares are
  those of all `c_i - c_j` with i < j, over n; and `c_i - c_j` is at most D_ij,
  the number of nodes above one of the two and not above both. The sum of all
  D_ij^2 is at most `n^3 (n + 5) / 12`, so `V + T <= (n + 1) / 2 |s| +
  (n sqrt((n + 5) / 12) + sqrt(n)) P`.

The last sum, by induction over trees of m and n - m leaves below the root: in a
tree of m leaves, the numbers of inner nodes above a leaf add up to at most
`m (m + 1) / 2`, their squares to at most `m^3 / 3 + m^2 / 2` (both are largest
where leaves are added one by one). D_ij of leaves i and j on both sides is the
sum of two such numbers. So the sum of all squares is at most that of both sides
and, with k = n - m,

    k (m^3 / 3 + m^2 / 2) + m (k^3 / 3 + k^2 / 2) + m k (m + 1) (k + 1) / 2.

The terms of degree four of this and of the claims for m and k are those of the
claim for n. The others, but for the cubes of m and k, are `m k (n + 1/2)` here,
and `5/4 m k n` there, which is no less.

A bias b is one leaf more: it is in at most n nodes, which are `|b|` larger, and
the node that adds it holds what another one holds without it, at most
`sqrt(n) P`. Over all outputs, P has the norm `sqrt(sum of all x_j^2 c_j^2)`, at
most `c ||x||`, where c_j is the norm of all factors of x_j, such as column j of
A, and c the largest one (`Step.columns`). Of orthogonal kernels it is one or
less, where `|| |A| ||` is about `0.8 sqrt(n)`.

Constants that a layer makes (a root, a reciprocal) are wrong by some units and
count as that many terms. A constant such as 0.1 is another number in float32,
and some backends read it so in float64 as well: whether the network of real
numbers has the one or the other is left open, and the difference counts.
Elementary functions (exp, tanh, ...) are taken to be right to `ELEMENTARY`
units of one plus the magnitude of their argument; there is no proof of that,
but a test of each function on each backend.

Note [Underflow]

Backends may replace numbers below the smallest normal one, t, by zero: inputs,
weights, products and sums. An input of m values then moves by at most
sqrt(m) t, which counts times the constant of the map; weights by t each; and
each of the n products and n sums of an output by t. A square that vanishes is
the square of a value of up to sqrt(t) = 1e-19, which is what L2-norm pooling
can lose.

Note [Overflow]

The statements above hold where nothing exceeds the largest number. All partial
sums are at most `|| |A| || ||x|| + ||b||`, which limits the norm of x. A mean
first adds and then divides: its sums are larger than what it returns, and limit
the norm instead (`Step.partial`).

Note [Errors on their way]

A map f of constant L is computed as F with `||F(x) - f(x)|| <= p ||x|| + c`.
If its input is wrong by e, the output is wrong by at most
`L e + p (||x|| + e) + c`. With inputs of norm `s + g r` and errors `a + b r` at
any point at the distance r from a sample (or from zero, where r is the norm of
the input itself), errors remain linear in r; `propagate` follows them.

Reference:
    - Higham, "Accuracy and stability of numerical algorithms", 2nd ed., 2002.
"""

import dataclasses
import math

import numpy as np

# Units by which elementary functions may be wrong, see the first note.
ELEMENTARY = 16


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Floating point numbers, and the worst that they do.

    Attributes:
        unit: Float, the rounding unit.
        smallest: Float, the smallest normal number.
        largest: Float, a number that sums may reach.
        factors: Float, by how much factors of products of matrices are rounded
            besides, in relative terms: 2^-11 for TensorFloat-32.
    """

    unit: float
    smallest: float
    largest: float
    factors: float = 0.0

    def gamma(self, terms, is_product=False):
        """Relative error of a sum of so many terms, see the first note."""
        errors = terms * self.unit
        if errors >= 0.5:
            return math.inf
        gamma = errors / (1 - errors)
        if is_product:
            return (1 + self.factors) ** 2 * (1 + gamma) - 1
        return gamma

    def of_sums(self, step):
        """Error of sums of products for each unit of the norm of the input."""
        whole = self.gamma(step.terms, step.is_product) * step.growth
        if step.columns is None or not step.terms or math.isinf(whole):
            return whole
        # Products of rounded factors are other products.
        factors = (1 + self.factors) ** 2 - 1 if step.is_product else 0.0
        lost = factors * step.growth
        nodes = sums_of_nodes(
            step.terms,
            step.constant + lost,
            step.growth + lost,
            step.columns * (1 + factors),
        )
        return min(whole, lost + self.gamma(step.terms) / step.terms * nodes)

    def computed(self, step):
        """`Computed` of a `Step`."""
        growth = step.growth
        count = math.sqrt(step.entries)
        inexact = step.inexact * 2.0**-23
        gamma = self.gamma(step.terms, step.is_product) + inexact
        tiny = 2 * self.smallest
        lost = tiny * count * (step.constant + 2 * step.terms + 2)
        partial = max(growth, step.partial or 0.0)
        reach = float(_distance(self.largest, step.offset, partial))
        if step.squares:
            lost += growth * count * math.sqrt(2 * tiny * (step.terms + 1))
            reach = min(reach, math.sqrt(self.largest))
        return Computed(
            constant=step.constant,
            zero=step.offset,
            relative=self.of_sums(step)
            + inexact * growth
            + tiny * count * math.sqrt(step.terms + 1),
            absolute=gamma * step.offset + lost,
            reach=reach,
        )


def sums_of_nodes(terms, value, total, spread):
    """Bound of V + T, see [Sums in the middle]; a bias is counted elsewhere.

    Args:
        terms: Integer, the number of products, and of a bias.
        value: Float, the magnitude of their sum.
        total: Float, the sum of their magnitudes, T.
        spread: Float, the root of the sum of their squares, P.
    """
    by_square = terms * math.sqrt((terms + 5) / 12) + 2 * math.sqrt(terms)
    half = (terms + 1) / 2
    return half * value + min(half * total, by_square * spread)


# A quarter of the range is left to what errors may add.
FLOAT32 = Arithmetic(2.0**-24, 2.0**-126, 2.0**126)
FLOAT64 = Arithmetic(2.0**-53, 2.0**-1022, 2.0**1022)


@dataclasses.dataclass(frozen=True)
class Estimated(Arithmetic):
    """Errors as they usually are: of independent signs, which proves nothing.

    Rounding errors of n terms that have no common sign grow as sqrt(n) u
    (Higham and Mary, "A new approach to probabilistic rounding error analysis",
    SIAM J. Sci. Comput. 41, 2019). Sums of terms of one sign, and those of one
    sample, which backends add one by one, can be wrong by far more.
    """

    def computed(self, step):
        error = (8 + math.sqrt(step.terms)) * self.unit
        return Computed(
            constant=step.constant,
            zero=step.offset,
            relative=error * step.constant,
            absolute=error * step.offset,
        )


@dataclasses.dataclass(frozen=True)
class Computed:
    """A map, and how far what is computed for it may be from it.

    Attributes:
        constant: Float, its Lipschitz constant.
        zero: Float, or array with a value for each sample: bound of the norm of
            its output for the input zero, or for the sample.
        relative: Float, the error for each unit of the norm of the input, or of
            the distance from the sample.
        absolute: Float or array, the error besides.
        reach: Float or array, the norm of the input, or the distance, up to
            which that holds.
    """

    constant: float
    zero: float | np.ndarray = 0.0
    relative: float = 0.0
    absolute: float | np.ndarray = 0.0
    reach: float | np.ndarray = math.inf


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a forward pass: sums, each computed in some order.

    What `Bound.rounding` takes for a layer that does one thing, such as a
    product with a matrix. The computed output is assumed to be the sum of its
    terms, in any order. For an input x it may then be wrong by about
    `terms * 2**-24 * (magnified * ||x|| + offset)`, in the Euclidean norm.

    Attributes:
        constant: Float, the Lipschitz constant of the step, not below
            `Bound.value`.
        terms: Integer, how many roundings stand behind an output: the products
            of a sum, its bias, factors. 0 for what copies and compares.
        magnified: Float, the constant of the step with the absolute values of
            its weights, at least `constant`; None where that is the same. For a
            product with a matrix, the largest singular value of its absolute
            values.
        offset: Float, the norm of all constants that are added, in the units of
            the output.
        entries: Integer, the number of values of the input or of the output of
            one sample, whichever is more.
        is_product: Boolean, whether it is a product of matrices or a
            convolution, which devices may compute with fewer digits.
        squares: Boolean, whether it takes the root of a sum of squares.
        partial: Float, the constant of the sums alone, where a factor makes
            them smaller afterwards; None where that is not so.
        inexact: Float, the number of constants that float32 does not hold, such
            as 0.1.
        columns: Float, for sums of products and of a bias that are rounded by
            nothing else: the largest norm of all factors that one value of the
            input is multiplied by; of a matrix, that of a column. Errors are
            then usually less than half. None where that is not so.

    Example:

    >>> import numpy as np
    >>> from deel.lip.certification import Step
    >>> matrix = np.array([[0.6, 0.8], [-0.8, 0.6]])
    >>> step = Step(
    ...     np.linalg.norm(matrix, 2),
    ...     terms=2,
    ...     magnified=np.linalg.norm(np.abs(matrix), 2),
    ...     entries=2,
    ...     is_product=True,
    ...     columns=np.max(np.linalg.norm(matrix, axis=0)),
    ... )
    >>> [round(float(value), 6) for value in (step.constant, step.magnified)]
    [1.0, 1.4]
    """

    constant: float = 1.0
    terms: int = 0
    magnified: float | None = None
    offset: float = 0.0
    entries: int = 1
    is_product: bool = False
    squares: bool = False
    partial: float | None = None
    inexact: float = 0
    columns: float | None = None

    @property
    def growth(self):
        return self.constant if self.magnified is None else self.magnified

    def __call__(self, arithmetic):
        return arithmetic.computed(self)


class Chain:
    """Steps one after the other.

    Args:
        *steps: Functions from an `Arithmetic` to a `Computed`, such as `Step`.
    """

    def __init__(self, *steps):
        self.steps = steps

    def __call__(self, arithmetic):
        first, *others = [step(arithmetic) for step in self.steps]
        for other in others:
            first = followed(first, other)
        return first


class Sum:
    """Steps that take the same input, and whose outputs are added.

    Args:
        *steps: As of `Chain`.
        entries: Integer, the number of values of the output.
    """

    def __init__(self, *steps, entries):
        self.steps = steps
        self.entries = entries

    def __call__(self, arithmetic):
        parts = [step(arithmetic) for step in self.steps]
        zero, slope = _entering(parts)
        joined = Computed(
            constant=sum(part.constant for part in parts),
            zero=sum(part.zero for part in parts),
            relative=sum(part.relative for part in parts),
            absolute=sum(part.absolute for part in parts),
            reach=min(part.reach for part in parts),
        )
        addition = Step(terms=len(parts) - 1, entries=self.entries)
        added = addition(arithmetic)
        return dataclasses.replace(
            joined,
            relative=joined.relative + added.relative * slope,
            absolute=joined.absolute + added.relative * zero + added.absolute,
            reach=min(joined.reach, _distance(added.reach, zero, slope)),
        )


def _entering(parts):
    """What the norms of computed tensors add up to: at zero, and the slope."""
    zero = sum(part.zero + part.absolute for part in parts)
    return zero, sum(part.constant + part.relative for part in parts)


def followed(first, second):
    """`Computed` of a map after another one."""
    return combined(
        [(second.constant, first), (1.0, own_error([first], second))],
        constant=first.constant * second.constant,
        zero=second.constant * first.zero + second.zero,
    )


def own_error(inputs, layer):
    """The error that a layer adds to that of its inputs.

    Args:
        inputs: List of `Computed`, those of the tensors that it takes.
        layer: `Computed` of the layer, for inputs of which the norms add up.

    Returns:
        `Computed`, whose errors and `reach` count.
    """
    zero, slope = _entering(inputs)
    reach = _distance(layer.reach, zero, slope)
    for part in inputs:
        reach = np.minimum(reach, part.reach)
    return Computed(
        constant=layer.constant,
        relative=layer.relative * slope,
        absolute=layer.relative * zero + layer.absolute,
        reach=reach,
    )


def combined(errors, constant, zero):
    """`Computed` of a map with errors from several places.

    Args:
        errors: List of pairs of a float, by which errors are multiplied on
            their way, and a `Computed`.
        constant: As of `Computed`.
        zero: As of `Computed`.
    """
    reach = math.inf
    for _, part in errors:
        reach = np.minimum(reach, part.reach)
    return Computed(
        constant=constant,
        zero=zero,
        relative=sum(a * part.relative for a, part in errors),
        absolute=sum(a * part.absolute for a, part in errors),
        reach=reach,
    )


def _distance(limit, zero, slope):
    """The distance up to which `zero + slope * distance` is within a limit."""
    if math.isinf(limit) or slope == 0:
        return np.where(zero <= limit, math.inf, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.maximum(limit - zero, 0.0) / slope


class Repeated:
    """A step that is taken for several parts of a tensor.

    Args:
        step: As of `Chain`.
        times: Integer, the number of parts.
    """

    def __init__(self, step, times):
        self.step = step
        self.times = times

    def __call__(self, arithmetic):
        part = self.step(arithmetic)
        root = math.sqrt(self.times)
        return dataclasses.replace(
            part, zero=root * part.zero, absolute=root * part.absolute
        )


class Beside:
    """Steps for parts of a tensor, put side by side.

    Args:
        *steps: As of `Chain`.
    """

    def __init__(self, *steps):
        self.steps = steps

    def __call__(self, arithmetic):
        parts = [step(arithmetic) for step in self.steps]
        return Computed(
            constant=max(part.constant for part in parts),
            zero=sum(part.zero for part in parts),
            relative=max(part.relative for part in parts),
            absolute=sum(part.absolute for part in parts),
            reach=min(part.reach for part in parts),
        )
