"""Layers without a constrained kernel of their own."""

import keras

from deel.lip import layers
from registry.row import Row


def row(kind, shape, output=None, parameters=(0, 0), /, **arguments):
    """A layer whose constant is its `k_coef_lip`, or its `scalar`.

    Args:
        kind: The class of the layer.
        shape: Shape of an input.
        output: Shape of the output, by default that of the input.
        parameters: Pair, number of trainable and of other parameters.
        **arguments: Arguments of the layer.
    """
    scalar = abs(arguments.get("scalar", 1.0))
    constant = arguments.get("k_coef_lip", scalar)
    output = output or shape
    return Row(kind, arguments, shape, output, parameters, constant=constant)


def pool(name, shape, output, **arguments):
    """A pooling layer, of the number of axes that the shape has."""
    kind = getattr(layers, f"Scaled{name}Pooling{len(shape) - 1}D")
    return row(kind, shape, output, **arguments)


def recurrent(shape, units, **arguments):
    """Kernels of inputs and states, one above the other, or one by one."""
    steps, channels = shape
    output = (steps, units) if "return_sequences" in arguments else (units,)
    values = (channels + units) * units
    # For each kernel, a vector of the power iteration and its norm.
    kernels = 1 + (arguments.get("memory") == "lasting")
    parameters = values + units, values + kernels * (units + 1)
    kind = layers.OrthogonalRNN
    return row(kind, shape, output, parameters, units=units, **arguments)


_FIRST = {"data_format": "channels_first"}

OTHERS = [
    row(layers.Abs, (3, 4)),
    row(layers.Abs, (3, 2, 2), beta=0.5, **_FIRST, k_coef_lip=2.0),
    row(layers.SpatialShift2D, (4, 3, 8)),
    row(layers.SpatialShift2D, (6, 2, 3), fraction=0.7, **_FIRST),
    pool("Average", (4, 6, 2), (2, 3, 2)),
    pool(
        "Average",
        (7, 7, 2),
        (2, 3, 2),
        pool_size=(3, 2),
        strides=(3, 2),
        k_coef_lip=2.0,
    ),
    pool("L2Norm", (4, 6, 2), (2, 3, 2), pool_size=2, k_coef_lip=0.5),
    pool("L2Norm", (5, 7, 1), (2, 2, 1), pool_size=(2, 3), eps_grad_sqrt=0.0),
    pool("GlobalAverage", (4, 6, 2), (2,), k_coef_lip=3.0),
    pool("GlobalAverage", (2, 4, 6), (2, 1, 1), **_FIRST, keepdims=True),
    pool("GlobalL2Norm", (4, 6, 2), (2,), k_coef_lip=3.0),
    pool("GlobalL2Norm", (2, 4, 6), (2,), **_FIRST, eps_grad_sqrt=0.0),
    row(layers.InvertibleDownSampling, (4, 6, 2), (2, 2, 12), pool_size=(2, 3)),
    row(
        layers.InvertibleUpSampling, (8, 2, 3), (2, 4, 6), pool_size=2, **_FIRST
    ),
    row(layers.Householder, (3, 6), None, (3, 0)),
    row(
        layers.Householder,
        (4,),
        None,
        (2, 0),
        k_coef_lip=2.0,
        theta_initializer="random_normal",
    ),
    row(layers.Householder, (5, 4), None, (6, 0), order=3, k_coef_lip=0.5),
    row(layers.GroupSort, (6,), n=3),
    row(layers.GroupSort, (4, 5), k_coef_lip=2.0),
    row(layers.GroupSort2, (3, 3, 32)),
    row(layers.GroupSort2, (6,), k_coef_lip=0.5),
    row(layers.FullSort, (7,)),
    row(layers.MaxMin, (3, 4), (3, 8)),
    row(layers.MaxMin, (2, 3, 3), (4, 3, 3), **_FIRST, k_coef_lip=2.0),
    pool("Average", (8, 2), (2, 2), pool_size=3, k_coef_lip=2.0),
    pool("Average", (4, 2, 5, 2), (2, 1, 2, 2)),
    pool("L2Norm", (6, 2), (3, 2)),
    pool(
        "L2Norm",
        (2, 4, 3, 2),
        (2, 2, 1, 2),
        pool_size=(1, 2, 3),
        eps_grad_sqrt=0.0,
        k_coef_lip=0.5,
    ),
    pool("GlobalAverage", (5, 3), (1, 3), k_coef_lip=2.0, keepdims=True),
    pool("GlobalAverage", (3, 2, 4, 3), (3,), **_FIRST),
    pool("GlobalL2Norm", (3, 5), (3,), **_FIRST, k_coef_lip=0.5),
    pool(
        "GlobalL2Norm",
        (2, 4, 3, 2),
        (1, 1, 1, 2),
        keepdims=True,
        eps_grad_sqrt=1e-3,
    ),
    pool(
        "AdaptiveAverage",
        (4, 6, 2),
        (1, 1, 2),
        output_size=(1, 1),
        k_coef_lip=2.0,
    ),
    pool("AdaptiveL2Norm", (2, 4, 6), (2, 1, 1), output_size=1, **_FIRST),
    row(layers.LayerCentering, (4, 6, 2), None, (2, 0)),
    row(
        layers.LayerCentering,
        (2, 4, 6),
        **_FIRST,
        use_bias=False,
        k_coef_lip=3.0,
    ),
    row(layers.LayerCentering, (5,), None, (5, 0), axis=-1, k_coef_lip=0.5),
    row(layers.BatchCentering, (5,), None, (5, 6)),
    row(
        layers.BatchCentering,
        (2, 4, 6),
        None,
        (0, 3),
        axis=1,
        use_bias=False,
        k_coef_lip=2.0,
        window=3,
    ),
    # The constant is that of a layer that has seen no batch.
    row(layers.BatchLipNorm, (4, 3), None, (3, 8)),
    row(
        layers.BatchLipNorm,
        (4,),
        None,
        (0, 10),
        centering=False,
        use_bias=False,
        eps=1e-3,
    ),
    row(layers.ScaleBiasLayer, (2, 3), None, (2, 0), scalar=0.5, axis=1),
    row(layers.ScaleBiasLayer, (4,), scalar=-2.0, use_bias=False),
    row(
        layers.PrescaledResidual,
        (4,),
        None,
        (15, 15),
        layer=layers.SLLDense(3, name="branch"),
        k_coef_lip=0.5,
    ),
    row(
        layers.PrescaledResidual,
        (3, 4),
        layer=keras.layers.ReLU(name="relu"),
        k_branch=1.0,
    ),
    row(
        layers.PartialResidual,
        (8,),
        None,
        (20, 21),
        layer=layers.SpectralDense(4, k_coef_lip=0.5, name="branch"),
    ),
    row(
        layers.PartialResidual,
        (4, 5, 4),
        None,
        (57, 57),
        layer=layers.SLLConv2D(3, 3, k_coef_lip=2.0, name="branch"),
        k_coef_lip=3.0,
    ),
    row(
        layers.Monotone,
        (4,),
        None,
        (15, 15),
        layer=layers.SLLDense(3, name="branch"),
        directions=[1, 0, -1, 1],
    ),
    row(
        layers.Monotone,
        (3,),
        layer=keras.layers.ReLU(name="relu"),
        directions=[-1, 0, 0],
        k_branch=1.0,
        k_coef_lip=2.0,
    ),
    recurrent((5, 3), 4),
    recurrent((4, 2), 3, activation="relu", memory="lasting", k_coef_lip=2.0),
    recurrent((6, 3), 4, return_sequences=True, k_coef_lip=0.5),
    recurrent(
        (3, 5),
        4,
        activation="linear",
        memory="lasting",
        return_sequences=True,
    ),
    row(layers.LipschitzPReLU, (3, 4), None, (12, 0)),
    row(
        layers.LipschitzPReLU,
        (3, 4),
        None,
        (4, 0),
        k_coef_lip=2.0,
        alpha_initializer="ones",
        shared_axes=[1],
    ),
]
