"""What the tests of all layers share: exact norms, gradients, small data."""

import functools
import json

import keras
import numpy as np
import pytest
from keras import ops

from deel.lip.parametrizations import AlmostOrthogonal
from deel.lip.parametrizations import BlockConvolution
from deel.lip.parametrizations import SpectralOperator
from deel.lip.parametrizations.polar import Polar

# Parametrizations whose promise is about the operator, for images of any size.
OF_OPERATORS = (AlmostOrthogonal, BlockConvolution, SpectralOperator)

_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)

# Relative slack on bounds: the rounding of float32.
TOLERANCE = 1e-5

# Whether steps of models are compiled as a whole where a test is not about
# that. JAX compiles each operation of those that are not, one by one;
# TensorFlow compiles for longer than the tests train.
JIT = keras.backend.backend() == "jax"


def to_numpy(x):
    """An array of NumPy, of a tensor, a variable or an array."""
    return ops.convert_to_numpy(x)


def normal(*shape, seed=0):
    """Float32 values of a normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def built(layer, *shape):
    """The layer, built for inputs of a shape without the batch axis."""
    layer.build((None, *shape))
    return layer


def assert_close(found, expected, rtol=1e-7, atol=0.0, **options):
    """As that of NumPy, of tensors too."""
    np.testing.assert_allclose(
        to_numpy(found), to_numpy(expected), rtol, atol, **options
    )


def assert_equal(found, expected, **options):
    """The values are the same bit for bit, of tensors too."""
    np.testing.assert_array_equal(
        to_numpy(found), to_numpy(expected), **options
    )


def assert_all_close(found, expected, **tolerances):
    """Two lists of arrays, such as the weights of two models."""
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, **tolerances)


def assert_all_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


def reloaded(model, folder, **options):
    """The model, from a file that is written into the folder."""
    path = folder / "reloaded.keras"
    model.save(path)
    return keras.models.load_model(path, **options)


def assign_unguarded(variable, value):
    """Writes a value past the guard of the kernels that inference uses."""
    getattr(variable, "assign_proven", variable.assign)(value)


def as_matrix(kernel):
    """Kernel as the float64 matrix that multiplies the input patches."""
    kernel = to_numpy(kernel).astype("float64")
    return kernel.reshape(-1, kernel.shape[-1])


def singular_values(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


def torus_matrix(kernel, strides, lengths):
    """Matrix of a convolution of images that are continued periodically.

    Args:
        kernel: Array `(taps..., inputs, outputs)`.
        strides: Tuple of integers.
        lengths: Tuple of integers, multiples of the strides.

    Returns:
        float64 array, a row for each input.
    """
    *taps, inputs, outputs = kernel.shape
    windows = [n // s for n, s in zip(lengths, strides, strict=True)]
    matrix = np.zeros((*lengths, inputs, *windows, outputs))
    for window in np.ndindex(*windows):
        for tap in np.ndindex(*taps):
            places = zip(window, strides, tap, lengths, strict=True)
            place = [(p * s + t) % n for p, s, t, n in places]
            matrix[(*place, slice(None), *window)] += kernel[tap]
    return matrix.reshape(int(np.prod(lengths)) * inputs, -1)


def torus_values(layer, scale=1):
    """Singular values of a layer on periodic images, of its first group first.

    Args:
        layer: A convolution.
        scale: Integer, for larger images. Where the layer itself continues
            images periodically, they are of the size that it was built for.
    """
    kernel = to_numpy(layer.wbar).astype("float64")
    strides = getattr(layer, "strides", (1,) * len(layer.kernel_size))
    windows = zip(layer.kernel_size, strides, strict=True)
    # Longer than the window, since shorter ones see fewer frequencies.
    lengths = [s * (k // s + scale) for k, s in windows]
    built = layer.get_build_config()["input_shape"][1:-1]
    if getattr(layer, "padding_mode", None) == "circular" and all(
        n and n % s == 0 for n, s in zip(built, strides, strict=True)
    ):
        lengths = built
    return np.concatenate(
        [
            _torus_values(block, strides, lengths)
            for block in np.split(kernel, getattr(layer, "groups", 1), axis=-1)
        ]
    )


def _torus_values(kernel, strides, lengths):
    taps = zip(kernel.shape, lengths, strict=False)
    if max(strides) > 1 or any(size > length for size, length in taps):
        return singular_values(torus_matrix(kernel, strides, lengths))
    # One small matrix for each frequency, instead of a large one.
    waves = np.fft.fftn(kernel, lengths, axes=range(len(lengths)))
    return np.sort(singular_values(waves).ravel())[::-1]


def expansion(layer):
    """Largest expansion of the constrained kernel, divided by its promise.

    The largest singular value of the matrix that multiplies patches; that of
    the group of channels which expands most, where there are groups; where
    outputs are promised one by one, the largest norm of a column; where the
    promise is about the whole operator, its norm on periodic images.
    """
    kernel, groups = to_numpy(layer.wbar), getattr(layer, "groups", 1)
    of_operator = isinstance(layer.parametrization, OF_OPERATORS)
    # Orthogonal convolutions are alike at all frequencies.
    scale = 1 if isinstance(layer.parametrization, BlockConvolution) else 3
    if of_operator and kernel.ndim > 2:
        norm = np.max(torus_values(layer, scale))
    elif getattr(layer, "disjoint_neurons", False):
        norm = np.max(np.linalg.norm(as_matrix(kernel), axis=0))
    else:
        blocks = np.split(kernel, groups, axis=-1)
        if isinstance(layer, _DEPTHWISE):
            blocks = np.moveaxis(kernel, -2, 0)
        norm = max(singular_values(as_matrix(x))[0] for x in blocks)
    return norm / layer._get_coef()


def operator_matrix(layer, input_shape):
    """Matrix of the affine part of a layer, from its response to impulses.

    Args:
        layer: A built layer; its inference function is measured.
        input_shape: Shape without the batch axis.

    Returns:
        float64 array `(inputs, outputs)`.
    """
    size = int(np.prod(input_shape))
    # The last one is zero: what the layer says there is its bias.
    impulses = np.eye(size + 1, size, dtype="float32")
    response = layer(impulses.reshape(-1, *input_shape), training=False)
    response = to_numpy(response).astype("float64").reshape(size + 1, -1)
    return response[:-1] - response[-1]


def operator_norm(layer, input_shape):
    return singular_values(operator_matrix(layer, input_shape))[0]


def assert_bounded(layer):
    """The constrained kernel does not expand by more than it promises."""
    values = to_numpy(layer.wbar)
    assert np.all(np.isfinite(values))
    assert expansion(layer) <= 1 + TOLERANCE


def assert_contracts(matrix, *context):
    """No singular value exceeds one, and each entry is a number."""
    matrix = to_numpy(matrix).astype("float64")
    assert np.all(np.isfinite(matrix)), context
    assert singular_values(matrix)[0] <= 1 + TOLERANCE, context


def constrained_layers(model):
    return [layer for layer in model.layers if hasattr(layer, "wbar")]


def assert_current(layer):
    """Asserts that `wbar` belongs to the free kernel, not to a former one."""
    free, used = to_numpy(layer.kernel), to_numpy(layer.wbar)
    if isinstance(layer.parametrization, Polar):
        # An optimizer leaves a multiple of what is in use.
        ratio = np.linalg.norm(free) / np.linalg.norm(used)
        assert_close(free, ratio * used, atol=1e-6 * ratio)
    else:
        constrained = layer.parametrization.constrain(layer.kernel)
        expected = layer.wbar.coefficient * to_numpy(constrained)
        assert_close(used, expected, atol=1e-6)


def assert_all_bounded(model):
    """Each constrained layer of a model keeps its promise."""
    for layer in constrained_layers(model):
        assert_bounded(layer)


def gradient(function, *arrays):
    """Gradients of a scalar function of tensors, as NumPy arrays."""
    return slopes_of(function)(*arrays)


def slopes_of(function):
    """Function of arrays that returns the `gradient` of one of tensors.

    On JAX it is one program for all arrays of a shape, since each operation of
    an eager one is compiled: what `function` reads must not change between.
    """
    backend = keras.backend.backend()

    def on_tensorflow(*tensors):
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        return tape.gradient(value, tensors)

    def on_torch(*tensors):
        tensors = [x.detach().requires_grad_(True) for x in tensors]
        function(*tensors).backward()
        return [x.grad for x in tensors]

    @functools.cache
    def on_jax(count):
        import jax

        return jax.jit(jax.grad(function, argnums=tuple(range(count))))

    def slopes(*arrays):
        tensors = [ops.convert_to_tensor(array) for array in arrays]
        if backend == "tensorflow":
            results = on_tensorflow(*tensors)
        elif backend == "jax":
            results = on_jax(len(tensors))(*tensors)
        else:
            results = on_torch(*tensors)
        return [np.asarray(to_numpy(x)) for x in results]

    return slopes


def weighted(function, weights):
    """A scalar function: a weighted sum of what another one returns."""
    return lambda x: ops.sum(ops.multiply(function(x), weights))


def assert_slopes(function, x, step=3e-3, seeds=(0, 1, 2), **tolerance):
    """The gradient of a scalar function is that of finite differences.

    Returns:
        The gradient, an array.
    """
    (slope,) = gradient(function, x)
    for seed in seeds:
        direction = normal(*x.shape, seed=seed)
        ahead, behind = (
            float(function(ops.convert_to_tensor(x + move * direction)))
            for move in (np.float32(step), np.float32(-step))
        )
        expected = (ahead - behind) / (2 * np.float32(step))
        assert np.sum(slope * direction) == pytest.approx(expected, **tolerance)
    return slope


def update_of(layer):
    """What a training call does to the kernel of a layer, compiled.

    Eagerly, the dozens of small steps for a hostile kernel take the time of
    dozens of calls.

    Returns:
        Function without arguments, after which `layer.wbar` is up to date.
    """
    backend = keras.backend.backend()
    parametrization = layer.parametrization
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda: parametrization.update(layer.kernel))
    if backend == "torch":
        return lambda: parametrization.update(layer.kernel)
    import jax

    state = [layer.kernel, *parametrization.variables]

    @jax.jit
    def updated(values):
        mapping = list(zip(state, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            parametrization.update(layer.kernel)
        return [scope.get_current_value(variable) for variable in state]

    def update():
        values = [variable.value for variable in state]
        for variable, value in zip(state, updated(values), strict=True):
            # As the trainer does it: a guard would mend what is measured here.
            assign_unguarded(variable, value)

    return update


def is_plain(config):
    """Whether a config holds plain Python values only."""
    if isinstance(config, dict):
        return all(isinstance(k, str) for k in config) and all(
            is_plain(v) for v in config.values()
        )
    if isinstance(config, (list, tuple)):
        return all(is_plain(v) for v in config)
    return config is None or type(config) in (bool, int, float, str)


def rebuilt(thing):
    """A copy made of the config, which is plain and survives JSON."""
    config = thing.get_config()
    assert is_plain(config)
    copy = type(thing).from_config(json.loads(json.dumps(config)))
    assert copy.get_config() == config
    return copy


def hostile_matrices(shape, count, seed=0):
    """Kernels that break normalisations: degenerate, huge, tiny, clustered.

    Args:
        shape: Shape of the kernel.
        count: Number of kernels.
        seed: Integer.

    Yields:
        Pairs `(kind, float32 array)`.
    """
    rng = np.random.default_rng(seed)
    columns = shape[-1]
    rows = int(np.prod(shape[:-1]))

    def with_spectrum(values):
        u, _, v = np.linalg.svd(
            rng.standard_normal((rows, columns)), full_matrices=False
        )
        return u * values @ v

    small = min(rows, columns)
    kinds = {
        "normal": lambda: rng.standard_normal((rows, columns)),
        "zero": lambda: np.zeros((rows, columns)),
        "zero column": lambda: (
            rng.standard_normal((rows, columns)) * (np.arange(columns) > 0)
        ),
        "rank one": lambda: np.outer(
            rng.standard_normal(rows), rng.standard_normal(columns)
        ),
        "constant": lambda: np.full((rows, columns), rng.uniform(-3, 3)),
        "delta": lambda: np.eye(rows, columns) * (rng.uniform() * 5 + 0.1),
        "orthogonal": lambda: with_spectrum(np.ones(small)),
        "scaled orthogonal": lambda: with_spectrum(
            np.full(small, 10.0 ** rng.uniform(-6, 6))
        ),
        "clustered": lambda: with_spectrum(
            rng.choice([0.1, 0.5, 1.0, 1.4, 2.0, 2.24], small)
        ),
        "wide spectrum": lambda: with_spectrum(
            10.0 ** rng.uniform(-6, 3, small)
        ),
        "near orthogonal": lambda: with_spectrum(rng.uniform(0.7, 1.3, small)),
        "huge": lambda: 1e30 * rng.standard_normal((rows, columns)),
        "tiny": lambda: 1e-30 * rng.standard_normal((rows, columns)),
        "one entry": lambda: np.eye(rows, columns) * (np.arange(columns) == 0),
        "mixed scales": lambda: (
            rng.standard_normal((rows, columns))
            * 10.0 ** rng.uniform(-20, 20, (rows, columns))
        ),
    }
    names = list(kinds)
    for index in range(count):
        kind = names[index % len(names)]
        yield kind, kinds[kind]().astype("float32").reshape(shape)
