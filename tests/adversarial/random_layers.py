"""Random layers and networks, with random weights, some of them degenerate."""

import keras
import numpy as np

from deel.lip import layers
from deel.lip.model import Sequential

stock = keras.layers


def _pick(random, *values):
    return values[random.integers(len(values))]


def _number(random, low, high):
    return int(random.integers(low, high))


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


def _dense(random):
    arguments = {
        "units": _number(random, 2, 9),
        "activation": _pick(
            random, None, "relu", "tanh", "gelu", "silu", "selu", "softmax"
        ),
    }
    size = _number(random, 1, 9)
    if random.random() < 0.3:
        equation = _pick(random, "abc,cd->abd", "abc,bcd->abd", "abc,cbd->abd")
        shape = (None if equation[4:6] == "cd" else 3, arguments["units"])
        layer = stock.EinsumDense(equation, output_shape=shape)
        return layer, (3, size)
    return stock.Dense(**arguments), (size,)


def _window(random, rank, shortest=1):
    size = [_number(random, 1, 5) for _ in range(rank)]
    # Backends refuse strides and dilation at once.
    strides, dilation = 1, 1
    if random.random() < 0.5:
        strides = _number(random, 1, 4)
    else:
        dilation = _number(random, 1, 3)
    span = dilation * 3 + 1
    lengths = [int(random.integers(span, span + 4)) for _ in range(rank)]
    return size, strides, dilation, lengths


def _convolution(random):
    rank = int(random.integers(1, 4 if random.random() < 0.2 else 3))
    size, strides, dilation, lengths = _window(random, rank)
    if rank == 3:
        lengths = [min(length, 4) for length in lengths]
        dilation = 1
    groups = _number(random, 1, 3)
    arguments = {
        "filters": groups * _number(random, 1, 4),
        "kernel_size": size,
        "strides": strides,
        "dilation_rate": dilation,
    }
    shape = (*lengths, groups * _number(random, 1, 4))
    paddings = ["valid", "same"] + ["causal"] * (rank == 1)
    padding = _pick(random, *paddings)
    if random.random() < 0.25:
        names = ("reflect", "replicate", "symmetric", "circular", "constant")
        padding = _pick(random, *names)
        pad = getattr(layers.unconstrained, f"PadConv{rank}D")
        return pad(padding=padding, **arguments), shape
    if rank < 3 and random.random() < 0.2:
        arguments["depth_multiplier"] = _number(random, 1, 3)
        padding = _pick(random, "valid", "same")
        separable = getattr(stock, f"SeparableConv{rank}D")
        return separable(padding=padding, **arguments), shape
    convolution = getattr(stock, f"Conv{rank}D")
    return convolution(padding=padding, groups=groups, **arguments), shape


def _transposed(random):
    rank = _number(random, 1, 3)
    size, strides, _, lengths = _window(random, rank)
    layer = getattr(stock, f"Conv{rank}DTranspose")(
        filters=_number(random, 1, 4),
        kernel_size=size,
        strides=strides,
        padding=_pick(random, "valid", "same"),
    )
    return layer, (*lengths, _number(random, 1, 4))


def _depthwise(random):
    rank = _number(random, 1, 3)
    size, strides, dilation, lengths = _window(random, rank)
    layer = getattr(stock, f"DepthwiseConv{rank}D")(
        kernel_size=size,
        strides=strides,
        dilation_rate=dilation,
        depth_multiplier=_number(random, 1, 3),
        padding=_pick(random, "valid", "same"),
    )
    return layer, (*lengths, _number(random, 1, 4))


def _pooling(random):
    rank = _number(random, 1, 4)
    size, _, _, lengths = _window(random, rank)
    if rank == 3:
        lengths = [min(length, 4) for length in lengths]
    kind = "Average" if random.random() < 0.6 else "Max"
    layer = getattr(stock, f"{kind}Pooling{rank}D")(
        pool_size=size if rank > 1 else size[0],
        strides=_number(random, 1, 4),
        padding=_pick(random, "valid", "same"),
    )
    return layer, (*lengths, 2)


def _constrained(random):
    k_coef_lip = float(_pick(random, 0.3, 1.0, 2.0))
    kind = random.integers(6)
    image = (_number(random, 3, 8), _number(random, 3, 8), 2)
    filters = _number(random, 1, 5)
    if kind == 0:
        layer = layers.SpectralDense(filters, k_coef_lip=k_coef_lip)
        return layer, (_number(random, 1, 9),)
    if kind == 1:
        layer = layers.FrobeniusDense(filters, k_coef_lip=k_coef_lip)
        return layer, (_number(random, 1, 9),)
    if kind == 2:
        modes = ("zeros", "reflect", "replicate", "symmetric", "circular")
        layer = layers.SpectralConv2D(
            filters,
            3,
            strides=_number(random, 1, 3),
            k_coef_lip=k_coef_lip,
            padding_mode=_pick(random, *modes),
            activation=_pick(random, None, layers.MaxMin()),
        )
        return layer, image
    if kind == 3:
        return layers.SpectralConv2DTranspose(filters, 3, strides=2), image
    if kind == 4:
        return layers.SpectralDepthwiseConv2D(3), image
    return layers.ScaledL2NormPooling2D(k_coef_lip=k_coef_lip), image


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
    groups = _number(random, 1, 3)
    channels = _number(random, 1, 4)
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
        shape = (_number(random, 1, 5), _number(random, 1, 5))
        layer = layers.OrthogonalConv2DTranspose(
            groups,
            _number(random, 1, 5),
            strides=strides,
            padding=_pick(random, "valid", "same"),
        )
        return layer, (*shape, channels)
    layer = getattr(layers, f"OrthogonalConv{rank}D")(
        groups * _number(random, 1, 4),
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
    image = (_number(random, 3, 8), _number(random, 3, 8), 2)
    units = _number(random, 1, 7)
    size, strides = _number(random, 1, 5), _number(random, 1, 3)
    activation = _pick(random, "relu", "tanh", "softplus", "elu")
    kind = random.integers(5)
    if kind == 0:
        layer = layers.AOLDense(units, k_coef_lip=k_coef_lip)
        return layer, (_number(random, 1, 9),)
    if kind == 1:
        layer = layers.AOLConv2D(units, size, strides, k_coef_lip=k_coef_lip)
        return layer, image
    if kind == 2:
        made = _pick(random, layers.SLLDense, layers.SandwichDense)
        layer = made(units, activation, k_coef_lip=k_coef_lip)
        return layer, (_number(random, 1, 9),)
    if kind == 3:
        made = _pick(random, layers.SLLConv2D, layers.SandwichConv2D)
        layer = made(units, 3, activation, k_coef_lip=k_coef_lip)
        return layer, image
    mode = _pick(random, "zeros", "circular")
    layer = layers.SpectralConv2D(
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
    units = _number(random, 1, 5)
    branch = _pick(
        random,
        stock.Dense(units, activation=_pick(random, None, "tanh")),
        layers.SpectralDense(units, k_coef_lip=float(_pick(random, 0.3, 2.0))),
        layers.SLLDense(3),
        Sequential(
            [
                keras.Input((units,)),
                layers.SpectralDense(5, activation=layers.FullSort()),
                layers.FrobeniusDense(units, disjoint_neurons=False),
            ]
        ),
    )
    arguments = {"k_coef_lip": float(_pick(random, 0.3, 1.0, 2.0))}
    if not isinstance(branch, layers.LipschitzLayer):
        # Bounds are found from the weights, whatever is claimed.
        arguments["k_branch"] = 1.5
    if random.random() < 0.5:
        return layers.PrescaledResidual(branch, **arguments), (units,)
    if random.random() < 0.3:
        directions = random.integers(-1, 2, units).tolist()
        return layers.Monotone(branch, directions, **arguments), (units,)
    return layers.PartialResidual(branch, **arguments), (2 * units,)


def _activation(random):
    names = ("relu", "tanh", "elu", "mish", "softplus", "hard_silu", "softmax")
    choices = (
        stock.Activation(_pick(random, *names)),
        stock.PReLU(),
        stock.LeakyReLU(negative_slope=float(2 * random.random())),
        stock.ELU(alpha=float(2 * random.random())),
        layers.Abs(0.5),
        layers.GroupSort(3),
        layers.Householder(order=_number(random, 1, 4)),
        layers.MaxMin(),
        layers.LipschitzPReLU(2.0),
    )
    return _pick(random, *choices), (6,)


def _other(random):
    choices = (
        (stock.BatchNormalization(), (3, 4)),
        (stock.UpSampling2D((2, 3)), (3, 2, 2)),
        (stock.GlobalAveragePooling2D(), (3, 4, 2)),
        (stock.GlobalMaxPooling1D(), (5, 2)),
        (stock.ZeroPadding2D(1), (3, 2, 2)),
        (stock.Cropping1D(1), (5, 2)),
        (stock.RepeatVector(3), (4,)),
        (stock.Rescaling(-1.5, offset=2.0), (4,)),
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
    if isinstance(layer, stock.Wrapper):
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
    if isinstance(layer, stock.BatchNormalization | layers.BatchLipNorm):
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
    shape = (_number(random, 4, 7), _number(random, 4, 7), 2)
    inputs = [keras.Input(shape) for _ in range(random.integers(1, 3))]
    tensors = list(inputs)
    shared = stock.Conv2D(2, 3, padding="same", activation="relu")
    nested = keras.Sequential(
        [
            keras.Input(shape),
            stock.DepthwiseConv2D(3, padding="same"),
            stock.PReLU(),
        ]
    )

    def concatenated(x, y):
        joined = stock.Concatenate()([x, y])
        return stock.Conv2D(2, 1)(joined)

    steps = (
        lambda x, y: shared(x),
        lambda x, y: nested(x),
        lambda x, y: stock.Conv2D(2, 2, padding="same")(x),
        lambda x, y: layers.SpectralConv2D(
            2, 3, activation=layers.GroupSort2()
        )(x),
        lambda x, y: layers.OrthogonalConv2D(2, 3)(x),
        lambda x, y: stock.BatchNormalization()(x),
        lambda x, y: stock.Dropout(0.5)(x),
        lambda x, y: stock.AveragePooling2D(3, 1, padding="same")(x),
        lambda x, y: stock.MaxPooling2D(2, 1, padding="same")(x),
        lambda x, y: stock.Add()([x, y]),
        lambda x, y: stock.Subtract()([x, y]),
        lambda x, y: stock.Average()([x, y]),
        lambda x, y: stock.Maximum()([x, y]),
        lambda x, y: layers.LipResidual()([x, y]),
        concatenated,
    )
    for _ in range(random.integers(2, 7)):
        x = tensors[random.integers(len(tensors))]
        y = tensors[random.integers(len(tensors))]
        tensors.append(_pick(random, *steps)(x, y))
    # All that was not used meets here, so that every input counts.
    joined = stock.Concatenate()(tensors)
    head = stock.Flatten()(stock.MaxPooling2D(2)(joined))
    outputs = [stock.Dense(3)(head)]
    if random.random() < 0.3:
        outputs.append(stock.GlobalAveragePooling2D()(joined))
    model = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs)
    randomize(model, random)
    return model
