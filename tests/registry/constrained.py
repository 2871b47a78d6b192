"""Layers with a constrained kernel, and what is known of them by formula.

The helpers know shapes and numbers of parameters from the textbook, and nothing
from the library: a kernel, a bias, the kernel in use, and `state` numbers that
a family keeps beside it.
"""

import math

import keras

from deel.lip import layers
from deel.lip.layers import unconstrained
from registry.row import Row


def _row(layer, arguments, shapes, kernel, state, bias, **facts):
    """A row of a kernel of a number of values.

    Args:
        layer: The class of the layer.
        arguments: Its arguments.
        shapes: Pair of an input shape and an output shape.
        kernel: Integer, the number of values of the kernel in use.
        state: Integer, how many numbers are kept beside it.
        bias: Integer, the length of the bias.
        **facts: Attributes of `Row`; `free`, the number of trained values if
            it is not that of the kernel.
    """
    is_free = "free" in facts
    trained = facts.pop("free", kernel) + bias * arguments.get("use_bias", True)
    parameters = trained + facts.get("further", 0), kernel + state
    facts.setdefault("constant", arguments.get("k_coef_lip", 1.0))
    return Row(layer, arguments, *shapes, parameters, is_free=is_free, **facts)


def dense(name, shape, units, state=0, free=None, **arguments):
    """A dense layer; `free` as of `_row`."""
    facts = {"stock": keras.layers.Dense}
    if free is not None:
        facts["free"] = free
    if name == "Frobenius" and arguments.get("disjoint_neurons", True):
        facts["constant"] = arguments["k_coef_lip"] * units**0.5
    arguments = {"units": units, **arguments}
    shapes = shape, (*shape[:-1], units)
    layer, kernel = getattr(layers, f"{name}Dense"), shape[-1] * units
    return _row(layer, arguments, shapes, kernel, state, units, **facts)


def spectral(shape, units, name="Spectral", **arguments):
    """A vector of the power iteration and its norm are kept."""
    return dense(name, shape, units, units + 1, **arguments)


def orthogonal(shape, units, method, free=None, **arguments):
    return dense(
        "Orthogonal", shape, units, free=free, method=method, **arguments
    )


def _pair(value, rank):
    return (value,) * rank if isinstance(value, int) else value


def _length(length, size, stride, padding):
    if padding == "valid":
        return (length - size) // stride + 1
    return math.ceil(length / stride)


def conv(name, shape, filters, size, state=0, free=None, **arguments):
    """A convolution; `shape` has the channels last, whatever is said."""
    *lengths, channels = shape
    rank = len(lengths)
    transposed = name.endswith("Transpose")
    layer = getattr(layers, name.format(f"Conv{rank}D"))
    sizes, strides = (
        _pair(x, rank) for x in (size, arguments.get("strides", 1))
    )
    padding = arguments.get("padding_mode") or arguments.get("padding", "same")
    padded = padding.lower() not in ("same", "valid")
    if transposed:
        outputs = [n * s for n, s in zip(lengths, strides, strict=True)]
    else:
        axes = zip(lengths, sizes, strides, strict=True)
        outputs = [_length(*axis, padding) for axis in axes]
    kernel = math.prod(sizes) * channels * filters // arguments.get("groups", 1)
    module = unconstrained if padded else keras.layers
    stock = f"{'Pad' * padded}Conv{rank}D{'Transpose' * transposed}"
    facts = {"stock": getattr(module, stock)}
    if free is not None:
        facts["free"] = free
    shapes = [shape, (*outputs, filters)]
    if arguments.get("data_format") == "channels_first":
        shapes = [(each[-1], *each[:-1]) for each in shapes]
    arguments = {"filters": filters, "kernel_size": size, **arguments}
    return _row(layer, arguments, shapes, kernel, state, filters, **facts)


def spectral_conv(shape, filters, size, name="Spectral{}", **arguments):
    """A vector of the power iteration and its norm are kept."""
    vector = shape[-1] if name.endswith("Transpose") else filters
    return conv(name, shape, filters, size, vector + 1, **arguments)


def operator_conv(shape, filters, size, **arguments):
    """Divided by the norm of the operator, not by the coverage."""
    return spectral_conv(shape, filters, size, **arguments, bound="operator")


def orthogonal_conv(shape, filters, size, free, **arguments):
    return conv("Orthogonal{}", shape, filters, size, free=free, **arguments)


def depthwise(shape, size, **arguments):
    height, width, channels = shape
    stride = arguments.get("strides", 1)
    filters = channels * arguments.get("depth_multiplier", 1)
    output = (math.ceil(height / stride), math.ceil(width / stride), filters)
    return _row(
        layers.SpectralDepthwiseConv2D,
        {"kernel_size": size, **arguments},
        (shape, output),
        size * size * filters,
        0,
        filters,
        stock=keras.layers.DepthwiseConv2D,
    )


def residual(layer, shape, hidden, **arguments):
    """A block around a kernel, which has a number for each hidden value."""
    name = "filters" if layer is layers.SLLConv2D else "units"
    taps = arguments.get("kernel_size", 1) ** 2
    stock = {"filters": "ResidualConv2D", "units": "ResidualDense"}[name]
    return _row(
        layer,
        {name: hidden, **arguments},
        (shape, shape),
        taps * shape[-1] * hidden,
        hidden,
        hidden,
        stock=getattr(unconstrained, stock),
        residual=True,
    )


def sandwich(shape, units, **arguments):
    """Two kernels in one, and a scale for each hidden value."""
    return _row(
        layers.SandwichDense,
        {"units": units, **arguments},
        (shape, (*shape[:-1], units)),
        (shape[-1] + units) * units,
        units + 1,
        units,
        stock=unconstrained.DensePair,
        degree=2,
        further=units,
    )


def sandwich_conv(shape, filters, size, free, **arguments):
    """The same of two orthogonal convolutions."""
    return _row(
        layers.SandwichConv2D,
        {"filters": filters, "kernel_size": size, **arguments},
        (shape, (*shape[:-1], filters)),
        math.prod(_pair(size, 2)) * (shape[-1] + filters) * filters,
        0,
        filters,
        free=free,
        stock=unconstrained.ConvPair2D,
        degree=2,
        further=filters,
    )


GROUPED, TRANSPOSED = "SpectralGrouped{}", "Spectral{}Transpose"

CONSTRAINED = [
    spectral((8,), 4),
    spectral((5,), 12, use_bias=False),
    spectral((6,), 1),
    spectral((100,), 80, eps_bjorck=1e-2),
    spectral((7, 6), 6, k_coef_lip=2.5, activation="relu"),
    spectral((8,), 4, eps_bjorck=None),
    spectral((8,), 9, beta_bjorck=None, k_coef_lip=0.1),
    dense("Frobenius", (8,), 3, disjoint_neurons=False),
    dense("Frobenius", (8,), 3, use_bias=False, k_coef_lip=2.0),
    spectral_conv((5, 5, 1), 16, 3),
    spectral_conv((6, 7, 2), 4, (5, 3), k_coef_lip=3.0),
    spectral_conv((8, 7, 3), 6, 3, strides=2, use_bias=False),
    spectral_conv((8, 8, 2), 8, 2, strides=(2, 2), padding="SAME"),
    spectral_conv((4, 9, 2), 3, 7, eps_bjorck=None),
    conv("Frobenius{}", (6, 5, 1), 1, 3),
    conv("Frobenius{}", (4, 5, 2), 3, (2, 3), k_coef_lip=2.0),
    spectral_conv((6, 6, 2), 5, 3, data_format="channels_first"),
    spectral_conv((4, 5, 2), 5, 3, padding_mode="reflect"),
    spectral_conv((6, 5, 2), 3, (5, 3), strides=2, padding_mode="replicate"),
    conv("Frobenius{}", (4, 3, 2), 2, 3, padding_mode="circular"),
    operator_conv((5, 6, 4), 4, 3),
    operator_conv(
        (7, 4, 2), 3, (4, 3), strides=(2, 1), use_bias=False, k_coef_lip=2.0
    ),
    operator_conv((5, 18, 2), 4, 3, padding_mode="circular"),
    operator_conv((5, 4, 3), 4, 3, eps_bjorck=None),
    operator_conv((6, 5, 4), 4, 3, name=GROUPED, groups=2, dilation_rate=2),
    operator_conv((8, 3), 3, 5),
    spectral_conv((6, 5, 4), 6, 3, GROUPED, groups=2, dilation_rate=(2, 1)),
    spectral_conv(
        (5, 4, 2),
        4,
        3,
        GROUPED,
        strides=2,
        groups=2,
        eps_bjorck=None,
        k_coef_lip=2.0,
    ),
    spectral_conv((9, 2), 6, 4),
    spectral_conv(
        (7, 4), 4, 3, dilation_rate=2, groups=2, padding_mode="symmetric"
    ),
    spectral_conv((3, 4, 2, 2), 5, 3, strides=(1, 2, 1)),
    spectral_conv((3, 2, 4, 1), 2, (3, 1, 3), padding_mode="circular"),
    spectral_conv((3, 4, 1), 4, 2, TRANSPOSED, strides=2),
    spectral_conv(
        (3, 4, 3),
        2,
        (4, 3),
        TRANSPOSED,
        strides=(2, 1),
        use_bias=False,
        k_coef_lip=0.5,
    ),
    depthwise((5, 4, 3), 3),
    depthwise((5, 6, 2), 3, strides=2, depth_multiplier=2),
    spectral((8,), 5, "Orthogonal"),
    orthogonal((8,), 5, "cholesky_qr", k_coef_lip=2.0),
    orthogonal((6,), 9, "cholesky_qr", use_bias=False),
    orthogonal((7,), 4, "cayley", 7 * 4, activation="relu"),
    orthogonal((3, 4), 6, "exponential", 4 * 6, k_coef_lip=0.5),
    # As many numbers as the longer side, for each of two or three reflections.
    orthogonal((9,), 5, "block_reflector", 2 * 9),
    orthogonal(
        (3, 4),
        7,
        "block_reflector",
        3 * 7,
        rank=3,
        use_bias=False,
        k_coef_lip=2.0,
    ),
    orthogonal_conv((5, 4, 3), 6, 3, 90),
    orthogonal_conv(
        (6, 7, 4),
        3,
        (4, 3),
        72,
        strides=2,
        padding="valid",
        use_bias=False,
        k_coef_lip=2.0,
    ),
    orthogonal_conv((4, 6, 2), 16, 3, 280, strides=2, padding="circular"),
    orthogonal_conv((6, 5, 6), 4, 3, 36, dilation_rate=2, groups=2),
    orthogonal_conv((7, 4), 4, 5, 48, padding="circular"),
    orthogonal_conv((3, 4, 2, 2), 2, (1, 3, 2), 10),
    conv("Orthogonal{}Transpose", (3, 4, 5), 2, (4, 3), free=46, strides=2),
    dense("AOL", (8,), 4, state=4),
    dense("AOL", (3, 5), 7, state=5, use_bias=False, k_coef_lip=2.0),
    conv("AOL{}", (5, 6, 3), 4, 3, state=3),
    conv(
        "AOL{}",
        (7, 4, 2),
        3,
        (4, 3),
        state=2 * 4,
        strides=2,
        use_bias=False,
        k_coef_lip=0.5,
    ),
    conv("AOL{}", (5, 4, 2), 4, 3, state=2, strides=2, padding_mode="circular"),
    residual(layers.SLLDense, (4,), 6),
    residual(layers.SLLDense, (2, 5), 3, activation="tanh", k_coef_lip=2.0),
    residual(layers.SLLConv2D, (4, 5, 2), 4, kernel_size=3, k_coef_lip=0.5),
    sandwich((7,), 4, activation="relu"),
    sandwich((2, 3), 6, activation="tanh", use_bias=False, k_coef_lip=2.0),
    sandwich_conv((5, 4, 2), 4, 3, 96, activation="relu", k_coef_lip=0.5),
    sandwich_conv((4, 6, 3), 2, (1, 3), 30, activation="tanh", use_bias=False),
]
