"""Proven upper bounds of spectral norms, in float64 on the host.

Nothing here is a power iteration: that bounds a norm from below.

Note [Convolutions as matrices of frequencies]

Let y[p] = sum_t K[t] x[p + t d] on all integers p, with x zero outside of
[0, n), and let the layer keep the outputs y[o s - lo] for o in [0, m): that is
every zero padding of Keras ("valid", "same", "causal"), with lo zeros before
the image and hi behind its end. On a torus of N positions, N a multiple of s
with N >= n + max(lo, hi), the same formula, with positions taken modulo N,
reads what the layer reads: a position q < 0 of the layer, q >= -lo, becomes
q + N >= n, and one of [n, n + hi) stays below N, where x is zero in both
cases. The outputs o s - lo differ modulo N as long as m s <= N. So the layer
is the torus operator, restricted to images that vanish beyond n and to some of
its outputs: a compression, whose norm is at most that of the operator.

The torus operator is block diagonal in the Fourier basis. Without stride its
blocks are K(w) = sum_t K[t] exp(2 pi i w t d / N), one for each of the N
frequencies w. With stride s, the s frequencies w + j N / s fall together and
the block is [K(w), K(w + N / s), ...] / sqrt(s). Kernels are real, so w and -w
have conjugate blocks, of which one is enough. Padding the image with itself
("circular") is the operator of N = n exactly, unless the size of the kernel is
even: then there are d more outputs than places, of which some come twice, and
sqrt(2) times the norm of the operator bounds that of the layer. The other
paddings are zero padding of a larger image, times the norm of the map that
makes it larger.

Note [Coarse grids]

For any unit vectors u and v, the real part of e^(i a) u* K(w) v is a
trigonometric polynomial of degree d (k // 2) along each axis, after a shift of
the taps. Its maximum over all frequencies is at most that over a grid of N
points, divided by cos(pi d (k // 2) / N) for each axis (Ehlich and Zeller).
This bounds the norm for images of every size.

Note [Proof by Cholesky]

The largest eigenvalue of a Gram matrix G is at most b if and only if b I - G
is positive semi-definite. The factorisation R* R of Cholesky runs to its end
in floating point only if that holds up to its backward error, which is at most
4 (m + 2) eps times the trace of b I - G, or m b, for a complex matrix of size
m (Rump). One factorisation takes a sixth of the time of one squaring of the
Gram iteration, which needs about seven of them to come as close.

Note [Rounding]

Values are scaled to a largest magnitude of one, and overflow nowhere. A Gram
matrix of size m is wrong by at most 4 n eps times the squared Frobenius norm of
its factor, with n terms in each sum, hence its largest eigenvalue by at most
4 n m eps in relative terms; decompositions are wrong by as little. Every
result is multiplied by 1 + `slack(n, m)`, which is larger than the roots of
these, plus that of the proof above.

Note [Matrices without negative entries]

For M without negative entries and any vector v of positive ones, the largest
eigenvalue of M^T M is at most the largest ratio `(M^T M v)_i / v_i` (Collatz
and Wielandt). Steps of a power iteration make v good, and each is a proof. All
terms have one sign, so floating point sums are right to their last digits.

A convolution with such taps expands most where the image is constant: entry by
entry, `|K(w)| <= K(0)`. With strides, taps whose positions have one remainder
read one of the polyphase components of the image, side by side, and the sums
of the taps of each remainder take the place of K(0).

References:
    - Rump, "Verification of positive definiteness", BIT 46 (2006).
    - Ehlich and Zeller, "Schwankung von Polynomen zwischen Gitterpunkten",
      Math. Z. 86 (1964).
    - Sedghi et al., "The singular values of convolutional layers", ICLR 2019
      (arXiv:1805.10408).
"""

import itertools
import math

import numpy as np

_EPSILON = np.finfo("float64").eps

# Matrices with a smaller side of up to this size are decomposed.
_EXACT_SIDE = 1024

# Limits of an explicit matrix: its smaller side, its entries, its products.
_EXPLICIT_SIDE = 2048

_EXPLICIT_ENTRIES = 2**23

_EXPLICIT_PRODUCTS = 2**34

# Complex numbers in a block of frequencies: 64 MiB, a few times.
_BLOCK_NUMBERS = 2**22

# Products that the frequencies of one convolution may take before the grid
# becomes coarser.
_FREQUENCY_PRODUCTS = 2**37

# Grids that are wider than the torus by these factors are tried in turn.
_COARSENESS = (1.005, 1.01, 1.02, 1.05, 1.1, 1.25, 1.5)

# A bound of an eigenvalue that cannot be proven is raised by this factor: half
# of the excess is that of the norm.
_STEP = 1.001

_FEW_STEPS = 5

# Steps for matrices without negative entries, and what keeps vectors positive.
_PERRON_STEPS = 12

_PERRON_SHIFT = 1e-9

# Directions of the guess of an eigenvalue. Kernels that an optimizer moves have
# many singular values near the largest one, which a power iteration cannot tell
# apart: it is 1 % too low where this is right, and a proof has to climb there.
_DIRECTIONS = 40


def slack(terms, size):
    """What a norm is increased by, in relative terms; see [Rounding].

    Args:
        terms: Integer, the larger side of the matrix.
        size: Integer, the smaller side.
    """
    return 1e-10 + 16 * _EPSILON * (terms + size) * size


def matrix_norm(matrices):
    """Largest singular value of a matrix, or of a stack of them.

    Args:
        matrices: Array `(..., rows, columns)`, finite.

    Returns:
        Pair: a float, never below, and whether it is exact, but for the slack.
    """
    matrices, scale = _scaled(matrices)
    rows, columns = matrices.shape[-2:]
    stack = matrices.reshape(-1, rows, columns)
    exact = min(rows, columns) <= _EXACT_SIDE
    square = 0.0
    for matrix in stack:
        if exact:
            gram = _gram(matrix)
            square = max(square, float(np.linalg.eigvalsh(gram)[-1]))
        else:
            gram = _gram(_in_one_order(matrix))
            square = _proven_eigenvalue(gram[None], square)
    rounding = slack(max(rows, columns), min(rows, columns))
    return scale * math.sqrt(square) * (1 + rounding), exact


def blocks_norm(blocks):
    """Upper bound of the largest norm of complex blocks.

    Args:
        blocks: Array `(..., rows, columns)`, finite.

    Returns:
        Float, near the norm.
    """
    scale = float(np.max(np.abs(blocks), initial=0.0)) or 1.0
    rows, columns = blocks.shape[-2:]
    grams = _gram(blocks.reshape(-1, rows, columns) / scale)
    norm = scale * math.sqrt(_proven_eigenvalue(grams, 0.0))
    return norm * (1 + slack(max(rows, columns), min(rows, columns)))


def nonnegative_norm(matrices):
    """Largest singular value of matrices without negative entries.

    See [Matrices without negative entries]. Much cheaper than `matrix_norm`.

    Args:
        matrices: Array `(..., rows, columns)`, finite, zero or greater.

    Returns:
        Float, never below.
    """
    matrices, scale = _scaled(matrices)
    rows, columns = matrices.shape[-2:]
    stack = matrices.reshape(-1, rows, columns)
    square = np.full(len(stack), np.inf)
    vector = np.ones((len(stack), columns, 1))
    for _ in range(_PERRON_STEPS):
        image = np.swapaxes(stack, -1, -2) @ (stack @ vector)
        square = np.minimum(square, np.max(image / vector, axis=(1, 2)))
        length = np.max(image, axis=(1, 2), keepdims=True)
        vector = image / np.where(length > 0, length, 1.0) + _PERRON_SHIFT
    norm = scale * math.sqrt(float(np.max(square)))
    return norm * (1 + slack(rows + columns, 1))


def _scaled(values):
    """Divides by the largest magnitude, which is returned too."""
    values = np.asarray(values, "float64")
    scale = float(np.max(np.abs(values), initial=0.0))
    return values / (scale or 1.0), scale


def _in_one_order(kernel):
    """The kernel with inputs and outputs sorted by their norms.

    An export may have them in another order. Guesses, from which proofs start,
    depend on it, and so does by how much a bound exceeds the norm.
    """
    for axis in (-2, -1):
        others = tuple(np.delete(range(kernel.ndim), axis))
        norms = np.sum(np.abs(kernel) ** 2, axis=others)
        kernel = np.take(kernel, np.argsort(norms), axis=axis)
    return kernel


def _gram(stack):
    """The smaller one of `A A*` and `A* A`, for each matrix of a stack."""
    adjoint = np.conj(np.swapaxes(stack, -1, -2))
    if stack.shape[-2] <= stack.shape[-1]:
        return stack @ adjoint
    return adjoint @ stack


def _proven_eigenvalue(grams, level):
    """Upper bound of the largest eigenvalue of a stack of Gram matrices.

    Starts from a guess, which a power iteration gives, and raises it until it
    is proven for each matrix; see [Proof by Cholesky].

    Args:
        grams: Array `(stack, m, m)`, Hermitian, positive semi-definite.
        level: Float, what other matrices that count have already reached.

    Returns:
        Float, `level` or more.
    """
    guesses = _power_iteration(grams, _FEW_STEPS)
    guess = _lanczos(grams[np.argmax(guesses)])
    bounds = _by_frobenius_norm(grams)
    level = max(level, min(guess * _STEP, np.max(bounds)))
    for index in np.argsort(-guesses):
        while level < bounds[index] and not _is_below(grams[index], level):
            level *= _STEP
    return level


def _by_frobenius_norm(grams):
    """Upper bounds of the largest eigenvalues of Gram matrices, at no cost.

    The Frobenius norm is one; that of the distance to a multiple of the
    identity, plus the multiple, is nearly exact for orthogonal kernels.
    """
    means = np.trace(grams, axis1=-2, axis2=-1).real / grams.shape[-1]
    offset = means[:, None, None] * np.eye(grams.shape[-1])
    return np.minimum(
        np.linalg.norm(grams, axis=(-2, -1)),
        means + np.linalg.norm(grams - offset, axis=(-2, -1)),
    )


def _power_iteration(grams, steps):
    """Rayleigh quotients near the largest eigenvalues, which prove nothing."""
    size = grams.shape[-1]
    # Fixed directions without any structure that a kernel may have.
    angles = np.outer(np.arange(1, size + 1), np.arange(1, 4)) * 2.399963
    block = np.cos(angles)
    for _ in range(steps):
        image = grams @ block
        lengths = np.linalg.norm(image, axis=-2, keepdims=True)
        block = image / np.where(lengths > 0, lengths, 1.0)
    products = np.sum(np.conj(block) * (grams @ block), axis=-2).real
    return np.max(products, axis=-1)


def _lanczos(gram):
    """The largest eigenvalue on a Krylov space, which proves nothing."""
    size = len(gram)
    direction = np.cos(np.arange(1, size + 1) * 2.399963).astype(gram.dtype)
    basis = np.empty((size, 0), gram.dtype)
    images = basis
    for _ in range(min(size, _DIRECTIONS)):
        # Twice: once is not enough in floating point.
        for _ in range(2):
            direction -= basis @ (np.conj(basis.T) @ direction)
        length = np.linalg.norm(direction)
        if length == 0:
            break
        basis = np.column_stack([basis, direction / length])
        direction = gram @ basis[:, -1]
        images = np.column_stack([images, direction])
    return float(np.linalg.eigvalsh(np.conj(basis.T) @ images)[-1])


def _is_below(gram, level):
    """Whether a Cholesky factorisation proves that `gram <= level`."""
    try:
        np.linalg.cholesky(level * np.eye(len(gram)) - gram)
    except np.linalg.LinAlgError:
        return False
    return True


def convolution_norm(kernel, axes):
    """Upper bound of the norm of a convolution.

    The tightest one of three: the decomposition of the explicit matrix where
    it is small, the blocks of the frequencies, and the norm of the kernel as a
    matrix of patches, times the root of how often they read a value.

    Args:
        kernel: Array `(taps of each axis..., groups, inputs, outputs)`.
        axes: List of `Axis`, one for each axis of taps.

    Returns:
        Tuple `(float, method, exact)`.
    """
    kernel, scale = _scaled(kernel)
    if scale == 0:
        return 0.0, "zero kernel", True
    groups, inputs, outputs = kernel.shape[-3:]
    taps = math.prod(kernel.shape[:-3])
    patches = np.moveaxis(kernel.reshape(taps, groups, inputs, outputs), 1, 0)
    by_patch, is_exact = matrix_norm(patches.reshape(groups, -1, outputs))
    overlap = math.prod(axis.overlap() for axis in axes)
    covered = scale * by_patch * math.sqrt(overlap)
    # Where nothing is read twice, the patches are the image itself.
    is_isometric = overlap == 1 and all(x.has_full_window() for x in axes)
    if is_isometric and is_exact:
        return covered, "kernel matrix", True

    known_image = all(axis.length is not None for axis in axes)
    if known_image:
        read = math.prod(axis.length for axis in axes) * inputs
        written = math.prod(axis.windows() for axis in axes) * outputs
        side = min(read, written)
        if (
            side <= _EXPLICIT_SIDE
            and groups * read * written <= _EXPLICIT_ENTRIES
            and groups * read * written * side <= _EXPLICIT_PRODUCTS
        ):
            norm, exact = matrix_norm(explicit_matrix(kernel, axes))
            method = "singular values" if exact else "Cholesky"
            return scale * norm, method, exact

    grid = _grid(kernel.shape, axes, known_image)
    if grid is None:
        return covered, "coverage", False
    if groups == 1:
        kernel = _in_one_order(kernel)
    by_frequency = scale * _frequency_norm(kernel, axes, grid)
    if covered <= by_frequency:
        return covered, "coverage", False
    return by_frequency, "Fourier", False


def nonnegative_convolution_norm(kernel, axes):
    """Upper bound of the norm of a convolution without negative taps.

    See [Matrices without negative entries]. It holds for images of any size.

    Args:
        kernel: Array `(taps of each axis..., groups, inputs, outputs)`.
        axes: List of `Axis`, one for each axis of taps.

    Returns:
        Float; infinity where the image is padded with itself, and its size is
        not known.
    """
    factor, kernel = _by_remainder(kernel, axes)
    return factor * nonnegative_norm(kernel)


def convolution_column_norm(kernel, axes):
    """Upper bound of the norm of all factors of one value of an image.

    It is read by the taps of its remainder alone. Arguments and return
    value as of `nonnegative_convolution_norm`, but for the signs of taps.
    """
    kernel, scale = _scaled(kernel)
    factor, squares = _by_remainder(kernel**2, axes)
    return scale * factor * column_norm(np.sqrt(squares))


def column_norm(matrices):
    """Upper bound of the norms of the rows of matrices `(inputs, outputs)`."""
    matrices, scale = _scaled(matrices)
    largest = scale * np.max(np.linalg.norm(matrices, axis=-1))
    return float(largest) * (1 + slack(matrices.shape[-1], 1))


def _by_remainder(kernel, axes):
    """Sums of the taps that read one of the polyphase components of an image.

    Args:
        kernel: As of `nonnegative_convolution_norm`.
        axes: As of `nonnegative_convolution_norm`.

    Returns:
        Pair: how much longer than the image what is read may be; and an array
        `(groups, remainders * inputs, outputs)`.
    """
    factor = 1.0
    for axis in axes:
        stride = axis.stride
        if axis.pads_with_image:
            if axis.length is None:
                return math.inf, kernel[(0,) * len(axes)]
            _, stride, _, repetition = axis.torus()
            factor *= repetition
        remainders = np.arange(axis.size) * axis.dilation % stride
        sums = [np.sum(kernel[remainders == r], axis=0) for r in range(stride)]
        kernel = np.concatenate(sums, axis=-2)
    return factor, kernel


def explicit_matrix(kernel, axes):
    """The matrices `(groups, image, output)` of a convolution."""
    tensor = kernel
    for axis in axes:
        tensor = np.tensordot(axis.selection(), tensor, ([1], [0]))
        tensor = np.moveaxis(tensor, [0, 1], [-2, -1])
    # Axes: groups, inputs, outputs, then windows and positions in turn.
    rank = len(axes)
    windows = [3 + 2 * i for i in range(rank)]
    positions = [4 + 2 * i for i in range(rank)]
    tensor = np.transpose(tensor, [0, *positions, 1, *windows, 2])
    rows = math.prod(tensor.shape[1 : 2 + rank])
    return tensor.reshape(tensor.shape[0], rows, -1)


def _grid(shape, axes, known_image):
    """Chooses frequencies: those of the torus, or fewer if they are many."""
    groups, inputs, outputs = shape[-3:]

    def products(grid):
        fold = math.prod(axis[1] for axis in grid)
        blocks = math.prod(axis[0] // axis[1] for axis in grid)
        sides = sorted((inputs * fold, outputs))
        return blocks * groups * sides[0] ** 2 * (sides[1] + sides[0])

    if known_image:
        grid = [axis.torus() for axis in axes]
        if products(grid) <= _FREQUENCY_PRODUCTS:
            return grid
    for excess in _COARSENESS:
        # Each axis adds its part.
        part = excess ** (1 / len(axes))
        grid = [axis.coarse(part, known_image) for axis in axes]
        if None in grid:
            return None
        if products(grid) <= _FREQUENCY_PRODUCTS:
            break
    return grid


def _frequency_norm(kernel, axes, grid):
    """Largest norm of the blocks of all frequencies of a grid."""
    groups, inputs, outputs = kernel.shape[-3:]
    flat = kernel.reshape(-1, groups * inputs * outputs).astype("complex128")
    fold = math.prod(axis[1] for axis in grid)
    frequencies = [range(axis[0] // axis[1]) for axis in grid]
    # Conjugates are left out.
    frequencies[-1] = range(len(frequencies[-1]) // 2 + 1)
    frequencies = np.array(list(itertools.product(*frequencies)))
    numbers = fold * groups * inputs * outputs
    count = max(1, _BLOCK_NUMBERS // numbers)
    square = 0.0
    for first in range(0, len(frequencies), count):
        waves = _waves(frequencies[first : first + count], axes, grid)
        blocks = waves.reshape(-1, len(flat)) @ flat
        blocks = blocks.reshape(-1, fold, groups, inputs, outputs)
        blocks = np.moveaxis(blocks, 2, 1)
        blocks = blocks.reshape(-1, fold * inputs, outputs)
        square = _proven_eigenvalue(_gram(blocks), square)
    norm = math.sqrt(square / fold) * math.prod(axis[-1] for axis in grid)
    sides = sorted((fold * inputs, outputs))
    return norm * (1 + slack(sides[1], sides[0]))


def _waves(frequencies, axes, grid):
    """Values of the waves on the taps, `(frequencies, folded, taps)`."""
    waves = np.ones((len(frequencies), 1, 1))
    columns = zip(frequencies.T, axes, grid, strict=True)
    for frequency, axis, (points, stride, dilation, _) in columns:
        folded = np.arange(stride) * (points // stride)
        shifted = frequency[:, None] + folded
        phases = shifted[..., None] * (dilation * np.arange(axis.size))
        wave = np.exp(2j * np.pi / points * (phases % points))
        waves = np.einsum("fat,fbu->fabtu", waves, wave)
        first, *shape = waves.shape
        waves = waves.reshape(first, shape[0] * shape[1], shape[2] * shape[3])
    return waves
