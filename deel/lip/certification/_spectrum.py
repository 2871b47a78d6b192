"""How far an image can move in which direction, through convolutions.

Note [Chain of images]

The chain of `_chain` needs a matrix as large as the image. On a torus, that
matrix has a block for each frequency, as large as the number of channels.

Differences u of an image with n positions along an axis are placed on a torus
of N positions, zero behind the n-th. They are `u = R v`, with R block-circulant
and `||v||` at most the distance of the inputs. R is kept by its blocks R(w).

- A convolution reads on the torus what it reads on the image, padded with
  zeros, if N is n or more plus what it reads beyond either end; see
  [Convolutions as matrices of frequencies]. It makes `K(w) R(w)` of R. With a
  stride s, which divides N, the s frequencies that fall together stand side by
  side, divided by the root of s. Shifts do nothing: what counts is `R R*`.
- Outputs beyond those of the layer are not zero. The next zero padding sets
  them to zero: a product with zeros and ones, value by value. So does an
  activation with slopes from 0 to c, followed by that product, have slopes from
  0 to c. Where a layer pads behind a convolution without activation, the
  product alone is taken for an activation. One that does not pad reads nothing
  of them.
- An activation is that of [Chain], block by block, with t not below the largest
  eigenvalue of all blocks: with M the block-circulant matrix of `R R*`, the
  proof is the same.
- The larger one of two values moves by a mean of what the two move by, with
  any weights. So with b and c the differences of the two, and a that of the
  larger one, `(a_i - b_i) (c_i - a_i) >= 0` for each i. With `b = B v`,
  `c = C v`, `S = B + C` and any t > 0, twice the sum of that over t, added to
  `v^T v`, is `v^T P v - 2/t a^T S v + 2/t a^T a`, at most d^2, where
  `P = I + (B^T C + C^T B) / t`. The least of it over all v is
  `a^T (2/t I - S P^-1 S^T / t^2) a`, where P is positive. With t the squared
  norm of the pairs, `t P >= S^T S`: the eigenvalues of `S P^-1 S^T / t` are at
  most one, and this is never worse than the product of norms. Windows of 2, 4,
  8 values are pairs of pairs. P is positive by the share d by which t is larger
  than it has to be. An error of R of the relative size x moves P by at most
  4 x, its inverse by 4 x / d in relative terms if that is small, and S by 2 x:
  with x below d / 100, R behind grows by less than 8 x / d.
- Circular padding is the torus of N = n.
- Flattened, and multiplied with a matrix H, the squares of the outputs' norms
  are those of `M = N^-d sum_w H(w)* R(w) R(w)* H(w)`, with H(w) the transform
  of its rows, zero behind the image. A mean over all positions is such a
  matrix, with the same number for each channel.

The torus is larger than the image, which on small images costs more than the
chain saves. Where the product of norms is smaller, a ball takes its place.

Which N is large enough is known when the last layer is: steps are kept, and
taken again on a larger torus.

Note [Rounding of blocks]

A sum of n complex products is wrong by at most 4 n eps times that of their
magnitudes. Waves are wrong by some eps. So blocks `K(w) R(w)` are wrong by at
most `8 eps (taps + inputs + 16)` times the Frobenius norms of the kernel's
magnitudes and of R(w), with a slack of two and more. The transform of H is a
sum of n terms along an axis, whose error exceeds that of a unitary map by the
root of n. Gram matrices and their factors are wrong by no more than that many
terms times eps times their trace, which is added to the diagonal.
"""

import dataclasses
import math

import numpy as np

from deel.lip.certification._chain import MOST_EXCESS
from deel.lip.certification._chain import Ellipsoid
from deel.lip.certification._image_steps import Factors
from deel.lip.certification._image_steps import Fork
from deel.lip.certification._image_steps import Frame
from deel.lip.certification._image_steps import Join
from deel.lip.certification._image_steps import Pairs
from deel.lip.certification._image_steps import Slopes
from deel.lip.certification._torus import Blocks
from deel.lip.certification._torus import TooLargeError
from deel.lip.certification._torus import half
from deel.lip.certification._torus import joint_factor
from deel.lip.certification._torus import require_small
from deel.lip.certification._torus import transformed
from deel.lip.certification._torus import waves_of

_EPS = float(np.finfo("float64").eps)

# Complex numbers of the blocks of a chain that are kept: half a GiB.
_MOST_KEPT = 2**25

# Axes of a torus from this length on are multiples of four, so that strides
# which come later fit.
_LONG = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum:
    """Where the differences of an image are, for inputs at the distance one.

    Made by `behind_convolution`, and by its own methods. A method returns a
    ball where nothing better is known.

    Attributes:
        radius: Float, the largest norm that is known.
        start: Float, the radius of the ball before the first step.
        lengths: Tuple, of the axes of the image.
        step: The last step.
        before: The `Spectrum` before it; None for the ball.
        is_flat: Boolean, whether it is flattened to a vector.
    """

    radius: float
    start: float
    lengths: tuple
    step: object
    before: "Spectrum | None" = None
    is_flat: bool = False
    _made: dict = dataclasses.field(default_factory=dict)
    # Those of this chain that have blocks, the last one at the end.
    _kept: list = dataclasses.field(default_factory=list)

    def through_convolution(self, convolution, norm):
        """See `behind_convolution`."""
        radius = self.radius * norm
        after = self._then(convolution, radius, convolution.lengths)
        try:
            blocks = after._blocks
            found = self.start * blocks.reach
        except (TooLargeError, np.linalg.LinAlgError):
            found = math.inf
        # As well where it is not a number.
        if not found <= MOST_EXCESS * radius:
            return behind_convolution(Ellipsoid(self.radius), convolution, norm)
        return dataclasses.replace(after, radius=min(found, radius))

    def through_slopes(self, slope=1.0):
        """The image behind an activation with slopes from 0 to `slope`."""
        radius = self.radius * slope
        if slope <= 0:
            return Ellipsoid(radius)
        return self._then(Slopes(slope), radius)

    def through_factors(self, factors):
        """The image behind a factor for each channel, or one for all."""
        factors = np.ravel(factors)
        radius = self.radius * float(np.max(np.abs(factors)))
        if np.all(factors == 1.0):
            return self
        if self.is_flat and len(factors) > 1:
            return Ellipsoid(radius)
        return self._then(Factors(factors), radius)

    def largest(self, doublings):
        """The image of the largest values of windows that do not overlap.

        Args:
            doublings: Sequence of integers, of each axis: windows have two to
                that power values.
        """
        image = self
        for index, count in enumerate(doublings):
            for _ in range(count):
                lengths = list(image.lengths)
                lengths[index] //= 2
                image = image._then(
                    Pairs(index, image.lengths), lengths=tuple(lengths)
                )
        return image

    def framed(self, lengths):
        """The image with zeros around it, or cut off."""
        return self._then(Frame(self.lengths, lengths), lengths=lengths)

    def forked(self):
        """The image, which is held beside what becomes of it."""
        return self._then(Fork())

    def joined(self):
        """The sum of the image and of what was held; a ball if it is lost."""
        after = self._then(Join())
        try:
            blocks = after._blocks
            found = self.start * blocks.reach
        except (TooLargeError, np.linalg.LinAlgError):
            return Ellipsoid(math.inf)
        if not found < math.inf:
            return Ellipsoid(math.inf)
        return dataclasses.replace(after, radius=found)

    def flattened(self):
        """The image as a vector, the channels last."""
        return dataclasses.replace(self, is_flat=True)

    def through_matrix(self, kernel, norm):
        """The `Ellipsoid` of the flattened image behind a matrix.

        Args:
            kernel: Array `(inputs, outputs)`.
            norm: Float, a bound of its norm.
        """
        radius = self.radius * norm
        image = self.image(kernel.T)
        if image is None:
            return Ellipsoid(radius)
        within, lost = image
        return Ellipsoid.made(radius, within, float(np.linalg.norm(lost)))

    def image(self, rows):
        """As of `Ellipsoid`, of the flattened image."""
        if not self.is_flat:
            return None
        kernel = rows.T.reshape(*self.lengths, -1, len(rows))
        return self._summed(kernel, np.linalg.norm(rows, axis=1))

    def mean(self, norm):
        """The `Ellipsoid` of the means of each channel.

        Args:
            norm: Float, a bound of the norm.
        """
        count = math.prod(self.lengths)
        kernel = np.full((*self.lengths, 1, 1), 1 / count)
        image = self._summed(kernel, math.sqrt(1 / count))
        if image is None:
            return Ellipsoid(self.radius * norm)
        within, lost = image
        error = lost * math.sqrt(len(within))
        # The norm may exceed the mean's own, where it is rounded.
        grown = max(1.0, norm * math.sqrt(count))
        return Ellipsoid.made(self.radius * norm, grown * within, grown * error)

    def _then(self, step, radius=None, lengths=None):
        return Spectrum(
            self.radius if radius is None else radius,
            self.start,
            lengths or self.lengths,
            step,
            self,
            self.is_flat,
            _kept=self._kept,
        )

    def _summed(self, kernel, norms):
        """Factor of a Gram matrix of sums over all positions, and errors.

        Args:
            kernel: Array `(lengths..., channels, outputs)`, or one number for
                each position.
            norms: Float or array, of what each output sums with.
        """
        try:
            blocks = self._blocks
            points = blocks.points
            require_small(points, *kernel.shape[-2:], max(self.lengths))
            require_small(points, *blocks.matrices.shape[-2:], kernel.shape[-1])
            waves = [
                waves_of(count, n, np.arange(length))
                for count, n, length in zip(
                    half(points), points, self.lengths, strict=True
                )
            ]
            sums = transformed(kernel, waves) / math.sqrt(math.prod(points))
            if kernel.shape[-2:] == (1, 1):
                within = sums * blocks.matrices
            else:
                within = np.swapaxes(sums, -1, -2) @ blocks.matrices
            factor = joint_factor(within, points)
            steps = sum(n + 8 for n in self.lengths)
            by_wave = steps * math.sqrt(math.prod(self.lengths)) * blocks.norm
            by_product = (blocks.matrices.shape[-2] + 8) * blocks.size
            error = 16 * _EPS * (by_wave + by_product) + blocks.error
        except (TooLargeError, np.linalg.LinAlgError):
            return None
        return self.start * factor, self.start * error * norms

    @property
    def _blocks(self):
        """The `Blocks` on the smallest torus that all steps fit on."""
        steps = []
        spectrum = self
        while spectrum is not None:
            steps.append(spectrum.step)
            first, spectrum = spectrum, spectrum.before
        lengths = [axis.length for axis in first.step.axes]
        points = [
            _smallest(length, index, steps[::-1])
            for index, length in enumerate(lengths)
        ]
        return self._blocks_on(tuple(points))

    def _blocks_on(self, points):
        if points not in self._made:
            before = Blocks(points)
            if self.before is not None:
                before = self.before._blocks_on(points)
            self._made.clear()
            self._made[points] = self.step.apply(before)
            self._keep()
        return self._made[points]

    def _keep(self):
        """Forgets the first blocks, where all of them take too much memory."""
        self._kept.append(self._made)
        sizes = [
            blocks.numbers for made in self._kept for blocks in made.values()
        ]
        while sum(sizes) > _MOST_KEPT and len(self._kept) > 1:
            forgotten = self._kept.pop(0)
            sizes = sizes[len(forgotten) :]
            if forgotten is not self._made:
                forgotten.clear()


def behind_convolution(spread, convolution, norm):
    """What is known of an image behind a convolution.

    Args:
        spread: `Ellipsoid` of a ball, or `Spectrum`.
        convolution: `Convolution`.
        norm: Float, a bound of its norm.
    """
    if isinstance(spread, Spectrum):
        return spread.through_convolution(convolution, norm)
    radius = spread.radius * norm
    if convolution.by_channel:
        return Ellipsoid(radius)
    return Spectrum(radius, spread.radius, convolution.lengths, convolution)


def _smallest(length, index, steps):
    """The smallest axis of a torus that all steps fit on."""
    is_long = length >= _LONG
    for points in range(length, 4 * length + 64):
        behind = points
        for step in steps:
            behind = step.points_behind(index, behind)
            if behind is None:
                break
        if behind and (points == length or not is_long or points % 4 == 0):
            return points
    raise TooLargeError
