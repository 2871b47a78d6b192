"""Looks for a counterexample to the bounds and certificates of the library.

Random layers and random networks, with random weights, are measured: by how
much they move two points apart, and by the norm of their Jacobian. Neither may
exceed the proven bound. Then networks are trained on images, their predictions
certified, and attacked inside of the certified balls. So are those of random
networks that round as badly as possible: sums of one sign, deep means, steps
that cancel or are repeated. Certificates of both kinds are attacked, those for
float32 in float32, one sample at a time, those for real numbers in float64.

The program prints how many cases it tried, and how many were violated. Its exit
status is 0 only if none was.
"""

import argparse
import sys
import time

import keras
import numpy as np
from common import add_data_argument
from common import as_images
from common import download
from keras import ops

from deel.lip import layers
from deel.lip._backend.differentiation import vector_jacobian
from deel.lip.activations import GroupSort2
from deel.lip.certification import attack_distances
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.certification._float64 import as_float64
from deel.lip.certification._float64 import float64
from deel.lip.certification._float64 import in_float64
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import ScaledL2NormPooling2D
from deel.lip.layers import SpectralConv2D
from deel.lip.layers import SpectralDense
from deel.lip.losses import MulticlassHKR
from deel.lip.model import Sequential

# What float32 may add to a measured expansion, in relative terms.
ROUNDING = 2e-5


def random_layer(random):
    """Draws a layer with random arguments and weights.

    Args:
        random: NumPy generator.

    Returns:
        Pair: a built layer, and the shape of an input without the batch axis.
    """
    families = (
        _dense,
        _convolution,
        _convolution,
        _transposed,
        _depthwise,
        _pooling,
        _constrained,
        _orthogonal,
        _family,
        _activation,
        _other,
    )
    layer, shape = families[random.integers(len(families))](random)
    layer.build((None, *shape))
    randomize(layer, random)
    return layer, shape


def _pick(random, *values):
    return values[random.integers(len(values))]


def _dense(random):
    arguments = {
        "units": int(random.integers(2, 9)),
        "activation": _pick(
            random, None, "relu", "tanh", "gelu", "silu", "selu", "softmax"
        ),
    }
    size = int(random.integers(1, 9))
    if random.random() < 0.3:
        equation = _pick(random, "abc,cd->abd", "abc,bcd->abd", "abc,cbd->abd")
        shape = (None if equation[4:6] == "cd" else 3, arguments["units"])
        layer = keras.layers.EinsumDense(equation, output_shape=shape)
        return layer, (3, size)
    return keras.layers.Dense(**arguments), (size,)


def _window(random, rank, shortest=1):
    size = [int(random.integers(1, 5)) for _ in range(rank)]
    # Backends refuse strides and dilation at once.
    strides, dilation = 1, 1
    if random.random() < 0.5:
        strides = int(random.integers(1, 4))
    else:
        dilation = int(random.integers(1, 3))
    span = dilation * 3 + 1
    lengths = [int(random.integers(span, span + 4)) for _ in range(rank)]
    return size, strides, dilation, lengths


def _convolution(random):
    rank = int(random.integers(1, 4 if random.random() < 0.2 else 3))
    size, strides, dilation, lengths = _window(random, rank)
    if rank == 3:
        lengths = [min(length, 4) for length in lengths]
        dilation = 1
    groups = int(random.integers(1, 3))
    arguments = {
        "filters": groups * int(random.integers(1, 4)),
        "kernel_size": size,
        "strides": strides,
        "dilation_rate": dilation,
    }
    shape = (*lengths, groups * int(random.integers(1, 4)))
    paddings = ["valid", "same"] + ["causal"] * (rank == 1)
    padding = _pick(random, *paddings)
    if random.random() < 0.25:
        names = ("reflect", "replicate", "symmetric", "circular", "constant")
        stock = (
            layers.unconstrained.PadConv1D,
            layers.unconstrained.PadConv2D,
            layers.unconstrained.PadConv3D,
        )
        return stock[rank - 1](
            padding=_pick(random, *names), **arguments
        ), shape
    if rank < 3 and random.random() < 0.2:
        stock = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
        arguments["depth_multiplier"] = int(random.integers(1, 3))
        padding = _pick(random, "valid", "same")
        return stock[rank - 1](padding=padding, **arguments), shape
    stock = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
    return stock[rank - 1](padding=padding, groups=groups, **arguments), shape


def _transposed(random):
    rank = int(random.integers(1, 3))
    size, strides, _, lengths = _window(random, rank)
    stock = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose)
    layer = stock[rank - 1](
        filters=int(random.integers(1, 4)),
        kernel_size=size,
        strides=strides,
        padding=_pick(random, "valid", "same"),
    )
    return layer, (*lengths, int(random.integers(1, 4)))


def _depthwise(random):
    rank = int(random.integers(1, 3))
    size, strides, dilation, lengths = _window(random, rank)
    stock = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
    layer = stock[rank - 1](
        kernel_size=size,
        strides=strides,
        dilation_rate=dilation,
        depth_multiplier=int(random.integers(1, 3)),
        padding=_pick(random, "valid", "same"),
    )
    return layer, (*lengths, int(random.integers(1, 4)))


def _pooling(random):
    rank = int(random.integers(1, 4))
    size, _, _, lengths = _window(random, rank)
    if rank == 3:
        lengths = [min(length, 4) for length in lengths]
    average = random.random() < 0.6
    stock = (
        (keras.layers.MaxPooling1D, keras.layers.AveragePooling1D),
        (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D),
        (keras.layers.MaxPooling3D, keras.layers.AveragePooling3D),
    )
    layer = stock[rank - 1][average](
        pool_size=size if rank > 1 else size[0],
        strides=int(random.integers(1, 4)),
        padding=_pick(random, "valid", "same"),
    )
    return layer, (*lengths, 2)


def _constrained(random):
    k_coef_lip = float(_pick(random, 0.3, 1.0, 2.0))
    kind = random.integers(6)
    image = (int(random.integers(3, 8)), int(random.integers(3, 8)), 2)
    filters = int(random.integers(1, 5))
    if kind == 0:
        layer = SpectralDense(filters, k_coef_lip=k_coef_lip)
        return layer, (int(random.integers(1, 9)),)
    if kind == 1:
        layer = FrobeniusDense(filters, k_coef_lip=k_coef_lip)
        return layer, (int(random.integers(1, 9)),)
    if kind == 2:
        modes = ("zeros", "reflect", "replicate", "symmetric", "circular")
        layer = SpectralConv2D(
            filters,
            3,
            strides=int(random.integers(1, 3)),
            k_coef_lip=k_coef_lip,
            padding_mode=_pick(random, *modes),
            activation=_pick(random, None, layers.MaxMin()),
        )
        return layer, image
    if kind == 3:
        return layers.SpectralConv2DTranspose(filters, 3, strides=2), image
    if kind == 4:
        return layers.SpectralDepthwiseConv2D(3), image
    return ScaledL2NormPooling2D(k_coef_lip=k_coef_lip), image


def _orthogonal(random):
    rank = int(random.integers(1, 4 if random.random() < 0.2 else 3))
    size, strides, dilation, lengths = _window(random, rank)
    padding = _pick(random, "valid", "same", "circular")
    if rank == 3:
        lengths = [min(length, 4) for length in lengths]
        dilation = 1
    if padding == "circular":
        size = [n - (n % 2 == 0) for n in size]
        lengths = [-(-n // strides) * strides for n in lengths]
    groups = int(random.integers(1, 3))
    channels = int(random.integers(1, 4))
    kind = random.random()
    if kind < 0.2:
        methods = (
            "newton_schulz",
            "cholesky_qr",
            "cayley",
            "exponential",
            "block_reflector",
        )
        layer = layers.OrthogonalDense(4, method=_pick(random, *methods))
        return layer, (channels,)
    if kind < 0.4:
        shape = (int(random.integers(1, 5)), int(random.integers(1, 5)))
        layer = layers.OrthogonalConv2DTranspose(
            groups,
            int(random.integers(1, 5)),
            strides=strides,
            padding=_pick(random, "valid", "same"),
        )
        return layer, (*shape, channels)
    ours = (
        layers.OrthogonalConv1D,
        layers.OrthogonalConv2D,
        layers.OrthogonalConv3D,
    )
    layer = ours[rank - 1](
        groups * int(random.integers(1, 4)),
        size,
        strides=strides,
        padding=padding,
        dilation_rate=dilation,
        groups=groups,
        k_coef_lip=float(_pick(random, 0.3, 1.0, 2.0)),
        activation=_pick(random, None, layers.MaxMin()),
    )
    return layer, (*lengths, groups * channels)


def _family(random):
    """Layers that are bounded by other means than a matrix norm."""
    if random.random() < 0.2:
        return _branched(random)
    k_coef_lip = float(_pick(random, 0.3, 1.0, 2.0))
    image = (int(random.integers(3, 8)), int(random.integers(3, 8)), 2)
    units = int(random.integers(1, 7))
    size, strides = int(random.integers(1, 5)), int(random.integers(1, 3))
    activation = _pick(random, "relu", "tanh", "softplus", "elu")
    kind = random.integers(5)
    if kind == 0:
        layer = layers.AOLDense(units, k_coef_lip=k_coef_lip)
        return layer, (int(random.integers(1, 9)),)
    if kind == 1:
        layer = layers.AOLConv2D(units, size, strides, k_coef_lip=k_coef_lip)
        return layer, image
    if kind == 2:
        layer = layers.SLLDense(units, activation, k_coef_lip=k_coef_lip)
        return layer, (int(random.integers(1, 9)),)
    if kind == 3:
        layer = layers.SLLConv2D(units, 3, activation, k_coef_lip=k_coef_lip)
        return layer, image
    mode = _pick(random, "zeros", "circular")
    layer = SpectralConv2D(
        units,
        size if mode == "zeros" else 3,
        strides,
        k_coef_lip=k_coef_lip,
        padding_mode=mode,
        bound="operator",
    )
    return layer, image


def _branched(random):
    """Blocks around a layer or a model."""
    units = int(random.integers(1, 5))
    branch = _pick(
        random,
        keras.layers.Dense(units, activation=_pick(random, None, "tanh")),
        SpectralDense(units, k_coef_lip=float(_pick(random, 0.3, 2.0))),
        layers.SLLDense(3),
        Sequential(
            [
                keras.Input((units,)),
                SpectralDense(5, activation=layers.FullSort()),
                FrobeniusDense(units, disjoint_neurons=False),
            ]
        ),
    )
    arguments = {"k_coef_lip": float(_pick(random, 0.3, 1.0, 2.0))}
    if not isinstance(branch, layers.LipschitzLayer):
        # Bounds are found from the weights, whatever is claimed.
        arguments["k_branch"] = 1.5
    if random.random() < 0.5:
        return layers.PrescaledResidual(branch, **arguments), (units,)
    return layers.PartialResidual(branch, **arguments), (2 * units,)


def _activation(random):
    names = ("relu", "tanh", "elu", "mish", "softplus", "hard_silu", "softmax")
    choices = (
        keras.layers.Activation(_pick(random, *names)),
        keras.layers.PReLU(),
        keras.layers.LeakyReLU(negative_slope=float(2 * random.random())),
        keras.layers.ELU(alpha=float(2 * random.random())),
        layers.Abs(0.5),
        layers.GroupSort(3),
        layers.Householder(order=int(random.integers(1, 4))),
        layers.MaxMin(),
        layers.LipschitzPReLU(2.0),
    )
    return _pick(random, *choices), (6,)


def _other(random):
    choices = (
        (keras.layers.BatchNormalization(), (3, 4)),
        (keras.layers.UpSampling2D((2, 3)), (3, 2, 2)),
        (keras.layers.GlobalAveragePooling2D(), (3, 4, 2)),
        (keras.layers.GlobalMaxPooling1D(), (5, 2)),
        (keras.layers.ZeroPadding2D(1), (3, 2, 2)),
        (keras.layers.Cropping1D(1), (5, 2)),
        (keras.layers.RepeatVector(3), (4,)),
        (keras.layers.Rescaling(-1.5, offset=2.0), (4,)),
        (layers.LayerCentering(), (4, 3)),
        (layers.BatchLipNorm(), (4, 3)),
        (layers.ScaledGlobalAveragePooling2D(), (3, 4, 2)),
        (layers.InvertibleDownSampling(2), (4, 2, 3)),
        (layers.SpatialShift2D(), (4, 3, 5)),
    )
    return _pick(random, *choices)


def randomize(layer, random):
    """Gives a layer, or a model, random weights, some of them degenerate."""
    if isinstance(layer, keras.Model):
        for inner in layer.layers:
            randomize(inner, random)
        return
    if isinstance(layer, keras.layers.Wrapper):
        randomize(layer.layer, random)
        return
    scale = _pick(random, 0.1, 1.0, 1.0, 10.0)
    values = []
    for weight in layer.get_weights():
        value = scale * random.standard_normal(weight.shape)
        if random.random() < 0.3:
            # Constant kernels are the worst ones for coverage.
            value = np.abs(value) if random.random() < 0.5 else 0 * value + 1
        values.append(value.astype(weight.dtype))
    if isinstance(layer, keras.layers.BatchNormalization | layers.BatchLipNorm):
        values = [np.abs(value) + 0.01 for value in values]
    if hasattr(layer, "wbar"):
        # What inference uses is made of the free kernel.
        layer.kernel.assign(values[0])
        layer.condense()
    elif values:
        layer.set_weights(values)


def random_model(random):
    """Draws a functional model with branches, shared and nested layers.

    Args:
        random: NumPy generator.

    Returns:
        A model of one or two inputs and outputs.
    """
    shape = (int(random.integers(4, 7)), int(random.integers(4, 7)), 2)
    inputs = [keras.Input(shape) for _ in range(random.integers(1, 3))]
    tensors = list(inputs)
    shared = keras.layers.Conv2D(2, 3, padding="same", activation="relu")
    nested = keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.DepthwiseConv2D(3, padding="same"),
            keras.layers.PReLU(),
        ]
    )

    def concatenated(x, y):
        joined = keras.layers.Concatenate()([x, y])
        return keras.layers.Conv2D(2, 1)(joined)

    steps = (
        lambda x, y: shared(x),
        lambda x, y: nested(x),
        lambda x, y: keras.layers.Conv2D(2, 2, padding="same")(x),
        lambda x, y: SpectralConv2D(2, 3, activation=GroupSort2())(x),
        lambda x, y: layers.OrthogonalConv2D(2, 3)(x),
        lambda x, y: keras.layers.BatchNormalization()(x),
        lambda x, y: keras.layers.Dropout(0.5)(x),
        lambda x, y: keras.layers.AveragePooling2D(3, 1, padding="same")(x),
        lambda x, y: keras.layers.MaxPooling2D(2, 1, padding="same")(x),
        lambda x, y: keras.layers.Add()([x, y]),
        lambda x, y: keras.layers.Subtract()([x, y]),
        lambda x, y: keras.layers.Average()([x, y]),
        lambda x, y: keras.layers.Maximum()([x, y]),
        lambda x, y: layers.LipResidual()([x, y]),
        concatenated,
    )
    for _ in range(random.integers(2, 7)):
        x = tensors[random.integers(len(tensors))]
        y = tensors[random.integers(len(tensors))]
        tensors.append(_pick(random, *steps)(x, y))
    # All that was not used meets here, so that every input counts.
    joined = keras.layers.Concatenate()(tensors)
    head = keras.layers.Flatten()(keras.layers.MaxPooling2D(2)(joined))
    outputs = [keras.layers.Dense(3)(head)]
    if random.random() < 0.3:
        outputs.append(keras.layers.GlobalAveragePooling2D()(joined))
    model = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs)
    randomize(model, random)
    return model


def largest_expansion(function, shapes, random, pairs=24):
    """The most that a function moved two points apart, and its slope there.

    Args:
        function: A layer or model, called on one tensor or on a list.
        shapes: List of shapes of the inputs, without the batch axis.
        random: NumPy generator.
        pairs: Integer, number of pairs of points.

    Returns:
        Float: the largest ratio of distances, or norm of the Jacobian.
    """

    def evaluate(points):
        arrays = [x.astype("float32") for x in points]
        results = function(
            arrays if len(arrays) > 1 else arrays[0], training=False
        )
        flat = [
            ops.convert_to_numpy(x).reshape(len(arrays[0]), -1)
            for x in keras.tree.flatten(results)
        ]
        return np.concatenate(flat, axis=1).astype("float64")

    scale = 10.0 ** random.uniform(-1, 1)
    start = [scale * random.standard_normal((pairs, *s)) for s in shapes]
    start = [x.astype("float32").astype("float64") for x in start]
    lengths = 10.0 ** random.uniform(-1, 1, pairs)
    moves = [random.standard_normal(x.shape) for x in start]
    moves = [m * lengths.reshape(-1, *[1] * (m.ndim - 1)) for m in moves]
    # The first pairs differ in a constant: the worst case of many kernels.
    for move in moves:
        move[: pairs // 4] = move[: pairs // 4].flat[0]
    end = [(x + m).astype("float32") for x, m in zip(start, moves, strict=True)]
    before, after = evaluate(start), evaluate(end)
    distance = np.sqrt(
        sum(
            np.sum((b - a) ** 2, axis=tuple(range(1, a.ndim)))
            for a, b in zip(start, end, strict=True)
        )
    )
    moved = np.linalg.norm(after - before, axis=1)
    # What rounding makes of large outputs is no expansion.
    noise = 1e-6 * (
        np.linalg.norm(before, axis=1) + np.linalg.norm(after, axis=1)
    )
    ratios = (moved - noise) / np.maximum(distance, 1e-30)
    return float(np.max(ratios))


def jacobian_norm(function, shapes, random):
    """Largest singular value of the Jacobian at a random point."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    point = random.standard_normal(sum(sizes)).astype("float32")

    def flat(x):
        stops = np.cumsum(sizes)
        arrays = [
            ops.reshape(x[:, stop - size : stop], (-1, *shape))
            for stop, size, shape in zip(stops, sizes, shapes, strict=True)
        ]
        results = function(
            arrays if len(arrays) > 1 else arrays[0], training=False
        )
        results = [
            ops.reshape(y, (x.shape[0], -1))
            for y in keras.tree.flatten(results)
        ]
        return ops.concatenate(results, axis=1)

    outputs = flat(ops.convert_to_tensor(point[None])).shape[1]
    # One row for each output: the samples of a batch do not meet.
    points = np.tile(point, (outputs, 1))
    jacobian = vector_jacobian(flat, points, np.eye(outputs, dtype="float32"))
    return float(np.linalg.norm(jacobian.astype("float64"), 2))


def fuzz_layers(count, seed=0):
    """Compares layers with their bounds; returns the descriptions of failures.

    Args:
        count: Integer, number of layers.
        seed: Integer.
    """
    failures = []
    for index in range(count):
        random = np.random.default_rng([seed, index])
        layer, shape = random_layer(random)
        failures += _compare(layer, [shape], random)
        _forget(index)
    return failures


def fuzz_models(count, seed=1):
    """Compares functional models with their bounds; see `fuzz_layers`.

    Args:
        count: Integer, number of models.
        seed: Integer.
    """
    failures = []
    for index in range(count):
        random = np.random.default_rng([seed, index])
        model = random_model(random)
        shapes = [tuple(x.shape[1:]) for x in model.inputs]
        failures += _compare(model, shapes, random)
        _forget(index)
    return failures


def random_classifier(random):
    """Draws a classifier whose rounding errors add up.

    Args:
        random: NumPy generator.

    Returns:
        Pair: a model of three classes, and a sample on the boundary of the
        first two, all of whose values have one sign.
    """
    shape, steps = _pick(
        random,
        _long_sums,
        _deep_means,
        _means_of_images,
        _separable_steps,
        _recurrent_steps,
        _shifted_steps,
        _residual_steps,
    )(random)
    inputs = x = keras.Input(shape)
    for step in steps:
        x = step(x)
    if len(x.shape) > 2:
        x = keras.layers.Flatten()(x)
    outputs = keras.layers.Dense(3)(x)
    model = keras.Model(inputs, outputs)
    cancels = random.random() < 0.2
    is_constant = random.random() < 0.6
    for variable in model.weights:
        if "kernel" in variable.name:
            value = random.uniform(0.5, 1.5, variable.shape)
            if is_constant:
                # Equal terms are all rounded in the same direction.
                value[:] = value[0]
                value[: len(value) // 2] *= random.uniform(0.3, 3)
            terms = np.prod(variable.shape[:-1])
            if variable.name == "depthwise_kernel":
                terms = np.prod(variable.shape[:-2])
            if cancels and len(variable.shape) == 2:
                value[1::2] = -value[: 2 * (len(value) // 2) : 2]
                terms = np.sqrt(terms)
            variable.assign(value / terms)
        elif "variance" in variable.name or variable.name == "gamma":
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        elif "mean" in variable.name:
            size = 10.0 ** random.integers(0, 5)
            variable.assign(random.uniform(0, size, variable.shape))
    scale = 10.0 ** random.uniform(-2, 2)
    sample = np.full(shape, scale * random.uniform(0.5, 2))
    if random.random() < 0.3:
        sample *= random.uniform(0.5, 1.5, shape)
    last = model.layers[-1]
    kernel, bias = last.get_weights()
    if random.random() < 0.5:
        # Errors of what enters count for one class only.
        kernel[:, 1] *= 0.1
    last.set_weights([kernel, bias])
    scores = evaluate(model, sample[None], "float64")[0]
    bias = scores[0] - scores
    bias[2] -= 10 * abs(scores[0]) + 1
    last.set_weights([kernel, bias])
    return model, sample


def _long_sums(random):
    size = int(_pick(random, 200, 784, 3072))
    dense = keras.layers.Dense(int(random.integers(1, 5)))
    return (size,), [dense] * int(random.integers(2))


def _deep_means(random):
    width = int(_pick(random, 16, 64, 256))
    depth = int(random.integers(2, 9))
    activation = _pick(random, None, "relu", "softplus", "tanh")
    return (width,), [
        keras.layers.Dense(width, activation=activation) for _ in range(depth)
    ]


def _means_of_images(random):
    side = int(_pick(random, 8, 32, 64))
    pool = _pick(
        random,
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.AveragePooling2D(8, 4, padding="same"),
        layers.ScaledGlobalAveragePooling2D(),
        layers.ScaledGlobalL2NormPooling2D(),
        ScaledL2NormPooling2D(8),
        layers.LayerCentering(),
    )
    return (side, side, 2), [pool]


def _separable_steps(random):
    separable = keras.layers.SeparableConv2D(
        int(random.integers(1, 4)),
        int(random.integers(1, 4)),
        depth_multiplier=2,
        padding=_pick(random, "valid", "same"),
    )
    return (4, 4, int(_pick(random, 4, 32))), [separable]


def _recurrent_steps(random):
    """One layer, step by step, or over and over again."""
    size = int(_pick(random, 8, 64))
    dense = keras.layers.Dense(size, activation=_pick(random, None, "tanh"))
    if random.random() < 0.5:
        return (4, size), [keras.layers.TimeDistributed(dense)] * 3
    return (size,), [dense] * int(random.integers(2, 7))


def _shifted_steps(random):
    size = 10.0 ** random.integers(0, 5)
    shift = _pick(
        random,
        keras.layers.BatchNormalization(epsilon=1e-9),
        keras.layers.TimeDistributed(layers.BatchCentering()),
        keras.layers.Rescaling(1 / 3, offset=-size),
        keras.layers.Normalization(mean=size, variance=2.0),
    )
    return (3, 4), [shift, keras.layers.Activation(_pick(random, "gelu", None))]


def _residual_steps(random):
    step = _pick(
        random,
        lambda: layers.unconstrained.ResidualDense(32),
        lambda: layers.PrescaledResidual(
            keras.layers.Dense(32, activation="softplus"), k_branch=1.0
        ),
        lambda: layers.PartialResidual(keras.layers.Dense(16), k_branch=1.0),
    )
    return (32,), [step() for _ in range(random.integers(1, 5))]


def evaluate(model, x, dtype):
    """Scores of a model, or of its copy in float64."""
    if dtype == "float32":
        return ops.convert_to_numpy(model.predict_on_batch(x))
    with float64():
        copy = keras.Model.from_config(in_float64(model.get_config()))
        for source, target in zip(model.weights, copy.weights, strict=True):
            value = ops.convert_to_numpy(source.value).astype("float64")
            target.assign(as_float64(value))
        return ops.convert_to_numpy(copy(as_float64(x), training=False))


def fuzz_rounding(count, rounding, seed=2, samples=40):
    """Attacks certificates of classifiers that round badly.

    Args:
        count: Integer, how many certificates are attacked, at least.
        rounding: As of `certify`. Estimated rounding is what was certified
            before there were proofs, and should be found to be broken.
        seed: Integer.
        samples: Integer, the number of samples of each classifier.

    Returns:
        Pair: the number of certificates, and the descriptions of failures.
    """
    failures = []
    found = index = 0
    while found < count:
        random = np.random.default_rng([seed, index])
        model, x = random_classifier(random)
        certificates, broken = _attack_rounding(
            model, x, rounding, random, samples
        )
        found += certificates
        if broken:
            failures.append(
                f"{broken} broken certificates for {rounding}: classifier "
                f"{index} of seed {seed}: {model.get_config()}"
            )
        _forget(index)
        index += 1
    return found, failures


def _attack_rounding(model, x, rounding, random, count):
    """Certifies samples near the boundary and searches their balls.

    Returns:
        Pair of integers: how many certificates there were, and how many broke.
    """
    dtype = "float64" if rounding == "exact" else "float32"
    slope = vector_jacobian(
        lambda x: model(x, training=False),
        x[None].astype("float32"),
        np.array([[1.0, -1.0, 0.0]], "float32"),
    )[0].astype("float64")
    steepness = np.linalg.norm(slope) or 1.0
    slope = _unit(slope)
    signs = random.choice([-1.0, 1.0], count)
    moves = np.linalg.norm(x) * 10.0 ** random.uniform(-8, 0, count)
    # Half of the leads are little more than what is taken off for rounding.
    scores = evaluate(model, x[None], "float64")[0]
    edge = certify(model, x[None].astype(dtype), rounding=rounding).rounding[0]
    edges = edge * random.choice([1.01, 1.1, 1.5, 2.05, 4.0], count)
    edges = (edges - signs * (scores[0] - scores[1])) / steepness
    moves = signs * np.where(np.arange(count) % 2 == 0, moves, edges)
    centres = x + moves.reshape(-1, *[1] * x.ndim) * slope
    centres = centres.astype(dtype)
    certificates = certify(model, centres, rounding=rounding)
    radius = certificates.radius
    ones = _unit(np.ones_like(x))
    noise = random.standard_normal(x.shape)
    directions = [0 * x]
    for direction in (slope, ones, _unit(x), _unit(noise)):
        directions += [direction, -direction]
    for _ in range(6):
        # Down the slope, and along constant images for the rest.
        down = random.choice([0.9, 0.99, 0.999])
        beside = random.uniform(-1, 1) * np.sqrt(1 - down**2)
        directions += [down * slope + beside * ones]
        directions += [-down * slope + beside * ones]
    broken = np.zeros(count, bool)
    points = []
    for direction in directions:
        length = _pick(random, 1 - 1e-6, 0.99, random.random())
        moved = centres + length * radius.reshape(-1, *[1] * x.ndim) * direction
        moved = moved.astype(dtype)
        distance = (moved.astype("float64") - centres).reshape(count, -1)
        inside = np.linalg.norm(distance, axis=1) <= radius
        points.append(
            np.where(inside.reshape(-1, *[1] * x.ndim), moved, centres)
        )
    if rounding == "exact":
        scores = evaluate(model, np.concatenate(points), dtype)
        classes = np.argmax(scores, axis=1).reshape(len(points), count)
        broken |= np.any(classes != certificates.prediction, axis=0)
    if rounding != "exact":
        for batch in points:
            classes = np.argmax(evaluate(model, batch, dtype), axis=1)
            broken |= classes != certificates.prediction
        # The sums of a single sample are added in another order.
        for index in np.flatnonzero(radius > 0):
            for one in random.permutation(len(points))[:8]:
                point = points[one][index : index + 1]
                scores = evaluate(model, point, dtype)
                if np.argmax(scores) != certificates.prediction[index]:
                    broken[index] = True
    return int(np.sum(radius > 0)), int(np.sum(broken & (radius > 0)))


def _unit(x):
    return x / (np.linalg.norm(x) or 1.0)


def _compare(function, shapes, random):
    bound = lipschitz_bound(function)
    found = max(
        largest_expansion(function, shapes, random),
        jacobian_norm(function, shapes, random),
    )
    if found <= bound * (1 + ROUNDING) + 1e-30:
        return []
    return [f"{function.name}: {found} > {bound}: {function.get_config()}"]


def _forget(index):
    if index % 50 == 49:
        keras.utils.clear_session()


def train(x, y, epochs):
    """Trains a small 1-Lipschitz network on images."""
    model = Sequential(
        [
            keras.Input(x.shape[1:]),
            SpectralConv2D(16, 3, activation=GroupSort2()),
            ScaledL2NormPooling2D(),
            SpectralConv2D(32, 2, strides=2, activation=GroupSort2()),
            keras.layers.Flatten(),
            SpectralDense(64, activation=GroupSort2()),
            FrobeniusDense(10, use_bias=False),
        ]
    )
    model.compile(
        keras.optimizers.Adam(2e-3),
        MulticlassHKR(alpha=50.0, min_margin=0.5),
        jit_compile=False,
    )
    model.fit(
        x,
        keras.utils.to_categorical(y, 10),
        batch_size=128,
        epochs=epochs,
        verbose=2,
    )
    return model


def attack_certificates(model, x, seed=0, steps=20, restarts=2):
    """Attacks each sample in its certified ball, and a little beyond.

    Args:
        model: The model, which certifies its own predictions.
        x: Array of samples.
        seed: Integer.
        steps: Integer, see `attack_distances`.
        restarts: Integer, see `attack_distances`.

    Returns:
        Dictionary: numbers of samples, of adversarial samples that were found
        beyond the certificates, and of certificates broken; and the mean of
        the certified radius divided by `margin / (sqrt(2) L)`.
    """
    certificates = certify(model, x)
    radius = certificates.radius
    distances = attack_distances(
        model,
        x,
        certificates.prediction,
        [radius, 2 * radius + 1e-3],
        steps=steps,
        restarts=restarts,
        seed=seed,
    )
    usual = (certificates.margin - 2 * certificates.rounding) / (
        np.sqrt(2) * certificates.lipschitz_constant
    )
    sure = usual > 1e-3
    return {
        "samples": len(x),
        "beyond": int(np.sum(np.isfinite(distances))),
        "broken": int(np.sum((distances <= radius) & (radius > 0))),
        "smaller": int(np.sum(radius[sure] < usual[sure] * (1 - 1e-3))),
        "gain": float(np.mean(radius[sure] / usual[sure])),
        "closest": float(np.min(distances / np.maximum(radius, 1e-9))),
    }


def parse_arguments(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Looks for counterexamples to bounds and certificates.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_data_argument(parser)
    parser.add_argument("--layers", type=int, default=2000)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument(
        "--attacks", type=int, default=5000, help="test images to attack"
    )
    parser.add_argument(
        "--epochs", type=int, default=3, help="epochs of the attacked network"
    )
    parser.add_argument(
        "--rounding",
        type=int,
        default=2000,
        help="certificates to attack by rounding, of each kind",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the search.

    Returns:
        Integer, the exit status: not zero if anything was violated.
    """
    args = parse_arguments(argv)
    keras.utils.set_random_seed(args.seed)
    failures = []
    for name, fuzz in (("layers", fuzz_layers), ("models", fuzz_models)):
        count = getattr(args, name)
        start = time.perf_counter()
        found = fuzz(count, args.seed)
        seconds = time.perf_counter() - start
        print(
            f"{count} random {name}: {len(found)} violations ({seconds:.0f} s)",
            flush=True,
        )
        failures += found
    for kind in ("float32", "exact"):
        if not args.rounding:
            break
        start = time.perf_counter()
        count, found = fuzz_rounding(args.rounding, kind, args.seed)
        seconds = time.perf_counter() - start
        print(
            f"{count} certificates for rounding={kind}, attacked: {len(found)} "
            f"networks with broken ones ({seconds:.0f} s)",
            flush=True,
        )
        failures += found
    print("\n".join(failures))
    broken = 0
    if args.attacks:
        (x_train, y_train), (x_test, _) = args.data or download("mnist")
        model = train(as_images(x_train), y_train.ravel(), args.epochs)
        result = attack_certificates(
            model, as_images(x_test)[: args.attacks], args.seed
        )
        print(result)
        broken = result["broken"] + result["smaller"]
    return int(bool(failures) or broken > 0)


if __name__ == "__main__":
    sys.exit(main())
