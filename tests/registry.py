"""One row for each layer and interesting argument: a new layer adds a row.

`test_layers.py` and `test_lipschitz_property.py` do the rest.
"""

import dataclasses

import keras
import pytest

from deel.lip import layers
from deel.lip.layers import unconstrained


@dataclasses.dataclass
class Row:
    """A layer to test.

    Attributes:
        layer: The class of the layer.
        arguments: Its arguments.
        input_shape: Shape of an input, without the batch axis.
        output_shape: Shape of the output, without the batch axis.
        parameters: Pair, number of trainable and of other parameters.
        stock: For constrained layers, the Keras class that it exports to.
        constant: Lipschitz constant of the map from input to output.
        is_free: Whether what is trained is no kernel that could be used, but
            what one is made of.
        residual: Boolean, whether the input passes beside the kernel.
    """

    layer: type
    arguments: dict
    input_shape: tuple
    output_shape: tuple
    parameters: tuple = (0, 0)
    stock: type | None = None
    constant: float | None = None
    is_free: bool = False
    residual: bool = False

    def make(self):
        # Layers in arguments are copied, so that each test has its own.
        arguments = {
            key: type(value).from_config(value.get_config())
            if isinstance(value, keras.layers.Layer)
            else value
            for key, value in self.arguments.items()
        }
        return self.layer(**arguments)

    @property
    def name(self):
        arguments = ",".join(
            f"{k}={getattr(v, 'name', v)}" for k, v in self.arguments.items()
        )
        return f"{self.layer.__name__}({arguments})"


def _first(shape):
    """Channels-first version of a channels-last shape."""
    return (shape[-1], *shape[:-1])


_DENSE = {"stock": keras.layers.Dense, "constant": 1.0}
_CONV = {"stock": keras.layers.Conv2D, "constant": 1.0}

CONSTRAINED = [
    Row(layers.SpectralDense, {"units": 4}, (8,), (4,), (36, 37), **_DENSE),
    Row(
        layers.SpectralDense,
        {"units": 12, "use_bias": False},
        (5,),
        (12,),
        (60, 73),
        **_DENSE,
    ),
    Row(layers.SpectralDense, {"units": 1}, (6,), (1,), (7, 8), **_DENSE),
    Row(
        layers.SpectralDense,
        {"units": 80, "eps_bjorck": 1e-2},
        (100,),
        (80,),
        (8080, 8081),
        **_DENSE,
    ),
    Row(
        layers.SpectralDense,
        {"units": 6, "k_coef_lip": 2.5, "activation": "relu"},
        (7, 6),
        (7, 6),
        (42, 43),
        keras.layers.Dense,
        2.5,
    ),
    Row(
        layers.SpectralDense,
        {"units": 4, "eps_bjorck": None},
        (8,),
        (4,),
        (36, 37),
        **_DENSE,
    ),
    Row(
        layers.SpectralDense,
        {"units": 9, "beta_bjorck": None, "k_coef_lip": 0.1},
        (8,),
        (9,),
        (81, 82),
        keras.layers.Dense,
        0.1,
    ),
    Row(
        layers.FrobeniusDense,
        {"units": 3, "disjoint_neurons": False},
        (8,),
        (3,),
        (27, 24),
        **_DENSE,
    ),
    Row(
        layers.FrobeniusDense,
        {"units": 3, "use_bias": False, "k_coef_lip": 2.0},
        (8,),
        (3,),
        (24, 24),
        keras.layers.Dense,
        2.0 * 3**0.5,
    ),
    Row(
        layers.SpectralConv2D,
        {"filters": 16, "kernel_size": 3},
        (5, 5, 1),
        (5, 5, 16),
        (160, 161),
        **_CONV,
    ),
    Row(
        layers.SpectralConv2D,
        {"filters": 4, "kernel_size": (5, 3), "k_coef_lip": 3.0},
        (6, 7, 2),
        (6, 7, 4),
        (124, 125),
        keras.layers.Conv2D,
        3.0,
    ),
    Row(
        layers.SpectralConv2D,
        {"filters": 6, "kernel_size": 3, "strides": 2, "use_bias": False},
        (8, 7, 3),
        (4, 4, 6),
        (162, 169),
        **_CONV,
    ),
    Row(
        layers.SpectralConv2D,
        {"filters": 8, "kernel_size": 2, "strides": (2, 2), "padding": "SAME"},
        (8, 8, 2),
        (4, 4, 8),
        (72, 73),
        **_CONV,
    ),
    Row(
        layers.SpectralConv2D,
        {"filters": 3, "kernel_size": 7, "eps_bjorck": None},
        (4, 9, 2),
        (4, 9, 3),
        (297, 298),
        **_CONV,
    ),
    Row(
        layers.FrobeniusConv2D,
        {"filters": 1, "kernel_size": 3},
        (6, 5, 1),
        (6, 5, 1),
        (10, 9),
        **_CONV,
    ),
    Row(
        layers.FrobeniusConv2D,
        {"filters": 3, "kernel_size": (2, 3), "k_coef_lip": 2.0},
        (4, 5, 2),
        (4, 5, 3),
        (39, 36),
        keras.layers.Conv2D,
        2.0,
    ),
    Row(
        layers.SpectralConv2D,
        {"filters": 5, "kernel_size": 3, "data_format": "channels_first"},
        _first((6, 6, 2)),
        _first((6, 6, 5)),
        (95, 96),
        **_CONV,
    ),
    Row(
        layers.SpectralConv2D,
        {"filters": 5, "kernel_size": 3, "padding_mode": "reflect"},
        (4, 5, 2),
        (4, 5, 5),
        (95, 96),
        unconstrained.PadConv2D,
        1.0,
    ),
    Row(
        layers.SpectralConv2D,
        {
            "filters": 3,
            "kernel_size": (5, 3),
            "strides": 2,
            "padding_mode": "replicate",
        },
        (6, 5, 2),
        (3, 3, 3),
        (93, 94),
        unconstrained.PadConv2D,
        1.0,
    ),
    Row(
        layers.FrobeniusConv2D,
        {"filters": 2, "kernel_size": 3, "padding_mode": "circular"},
        (4, 3, 2),
        (4, 3, 2),
        (38, 36),
        unconstrained.PadConv2D,
        1.0,
    ),
    Row(
        layers.SpectralConv2D,
        {"filters": 4, "kernel_size": 3, "bound": "operator"},
        (5, 6, 4),
        (5, 6, 4),
        (148, 149),
        **_CONV,
    ),
    Row(
        layers.SpectralConv2D,
        {
            "filters": 3,
            "kernel_size": (4, 3),
            "strides": (2, 1),
            "use_bias": False,
            "k_coef_lip": 2.0,
            "bound": "operator",
        },
        (7, 4, 2),
        (4, 4, 3),
        (72, 76),
        keras.layers.Conv2D,
        2.0,
    ),
    Row(
        layers.SpectralConv2D,
        {
            "filters": 4,
            "kernel_size": 3,
            "padding_mode": "circular",
            "bound": "operator",
        },
        (5, 18, 2),
        (5, 18, 4),
        (76, 77),
        unconstrained.PadConv2D,
        1.0,
    ),
    Row(
        layers.SpectralConv2D,
        {
            "filters": 4,
            "kernel_size": 3,
            "eps_bjorck": None,
            "bound": "operator",
        },
        (5, 4, 3),
        (5, 4, 4),
        (112, 113),
        **_CONV,
    ),
    Row(
        layers.SpectralGroupedConv2D,
        {
            "filters": 4,
            "kernel_size": 3,
            "groups": 2,
            "dilation_rate": 2,
            "bound": "operator",
        },
        (6, 5, 4),
        (6, 5, 4),
        (76, 77),
        **_CONV,
    ),
    Row(
        layers.SpectralConv1D,
        {"filters": 3, "kernel_size": 5, "bound": "operator"},
        (8, 3),
        (8, 3),
        (48, 49),
        keras.layers.Conv1D,
        1.0,
    ),
    Row(
        layers.SpectralGroupedConv2D,
        {"filters": 6, "kernel_size": 3, "groups": 2, "dilation_rate": (2, 1)},
        (6, 5, 4),
        (6, 5, 6),
        (114, 115),
        **_CONV,
    ),
    Row(
        layers.SpectralGroupedConv2D,
        {
            "filters": 4,
            "kernel_size": 3,
            "strides": 2,
            "groups": 2,
            "eps_bjorck": None,
            "k_coef_lip": 2.0,
        },
        (5, 4, 2),
        (3, 2, 4),
        (40, 41),
        keras.layers.Conv2D,
        2.0,
    ),
    Row(
        layers.SpectralConv1D,
        {"filters": 6, "kernel_size": 4},
        (9, 2),
        (9, 6),
        (54, 55),
        keras.layers.Conv1D,
        1.0,
    ),
    Row(
        layers.SpectralConv1D,
        {
            "filters": 4,
            "kernel_size": 3,
            "dilation_rate": 2,
            "groups": 2,
            "padding_mode": "symmetric",
        },
        (7, 4),
        (7, 4),
        (28, 29),
        unconstrained.PadConv1D,
        1.0,
    ),
    Row(
        layers.SpectralConv3D,
        {"filters": 5, "kernel_size": 3, "strides": (1, 2, 1)},
        (3, 4, 2, 2),
        (3, 2, 2, 5),
        (275, 276),
        keras.layers.Conv3D,
        1.0,
    ),
    Row(
        layers.SpectralConv3D,
        {"filters": 2, "kernel_size": (3, 1, 3), "padding_mode": "circular"},
        (3, 2, 4, 1),
        (3, 2, 4, 2),
        (20, 21),
        unconstrained.PadConv3D,
        1.0,
    ),
    Row(
        layers.SpectralConv2DTranspose,
        {"filters": 4, "kernel_size": 2, "strides": 2},
        (3, 4, 1),
        (6, 8, 4),
        (20, 18),
        keras.layers.Conv2DTranspose,
        1.0,
    ),
    Row(
        layers.SpectralConv2DTranspose,
        {
            "filters": 2,
            "kernel_size": (4, 3),
            "strides": (2, 1),
            "use_bias": False,
            "k_coef_lip": 0.5,
        },
        (3, 4, 3),
        (6, 4, 2),
        (72, 76),
        keras.layers.Conv2DTranspose,
        0.5,
    ),
    Row(
        layers.SpectralDepthwiseConv2D,
        {"kernel_size": 3},
        (5, 4, 3),
        (5, 4, 3),
        (30, 27),
        keras.layers.DepthwiseConv2D,
        1.0,
    ),
    Row(
        layers.SpectralDepthwiseConv2D,
        {"kernel_size": 3, "strides": 2, "depth_multiplier": 2},
        (5, 6, 2),
        (3, 3, 4),
        (40, 36),
        keras.layers.DepthwiseConv2D,
        1.0,
    ),
    Row(
        layers.OrthogonalDense,
        {"units": 5},
        (8,),
        (5,),
        (45, 46),
        **_DENSE,
    ),
    Row(
        layers.OrthogonalDense,
        {"units": 5, "method": "cholesky_qr", "k_coef_lip": 2.0},
        (8,),
        (5,),
        (45, 40),
        keras.layers.Dense,
        2.0,
    ),
    Row(
        layers.OrthogonalDense,
        {"units": 9, "method": "cholesky_qr", "use_bias": False},
        (6,),
        (9,),
        (54, 54),
        **_DENSE,
    ),
    Row(
        layers.OrthogonalDense,
        {"units": 4, "method": "cayley", "activation": "relu"},
        (7,),
        (4,),
        (32, 28),
        is_free=True,
        **_DENSE,
    ),
    Row(
        layers.OrthogonalDense,
        {"units": 6, "method": "exponential", "k_coef_lip": 0.5},
        (3, 4),
        (3, 6),
        (30, 24),
        keras.layers.Dense,
        0.5,
        is_free=True,
    ),
    Row(
        layers.OrthogonalDense,
        {"units": 5, "method": "block_reflector"},
        (9,),
        (5,),
        (23, 45),
        is_free=True,
        **_DENSE,
    ),
    Row(
        layers.OrthogonalDense,
        {
            "units": 7,
            "method": "block_reflector",
            "rank": 3,
            "use_bias": False,
            "k_coef_lip": 2.0,
        },
        (3, 4),
        (3, 7),
        (21, 28),
        keras.layers.Dense,
        2.0,
        is_free=True,
    ),
    Row(
        layers.OrthogonalConv2D,
        {"filters": 6, "kernel_size": 3},
        (5, 4, 3),
        (5, 4, 6),
        (96, 162),
        is_free=True,
        **_CONV,
    ),
    Row(
        layers.OrthogonalConv2D,
        {
            "filters": 3,
            "kernel_size": (4, 3),
            "strides": 2,
            "padding": "valid",
            "use_bias": False,
            "k_coef_lip": 2.0,
        },
        (6, 7, 4),
        (2, 3, 3),
        (72, 144),
        keras.layers.Conv2D,
        2.0,
        is_free=True,
    ),
    Row(
        layers.OrthogonalConv2D,
        {"filters": 16, "kernel_size": 3, "strides": 2, "padding": "circular"},
        (4, 6, 2),
        (2, 3, 16),
        (296, 288),
        unconstrained.PadConv2D,
        1.0,
        is_free=True,
    ),
    Row(
        layers.OrthogonalConv2D,
        {"filters": 4, "kernel_size": 3, "dilation_rate": 2, "groups": 2},
        (6, 5, 6),
        (6, 5, 4),
        (40, 108),
        is_free=True,
        **_CONV,
    ),
    Row(
        layers.OrthogonalConv1D,
        {"filters": 4, "kernel_size": 5, "padding": "circular"},
        (7, 4),
        (7, 4),
        (52, 80),
        unconstrained.PadConv1D,
        1.0,
        is_free=True,
    ),
    Row(
        layers.OrthogonalConv3D,
        {"filters": 2, "kernel_size": (1, 3, 2)},
        (3, 4, 2, 2),
        (3, 4, 2, 2),
        (12, 24),
        keras.layers.Conv3D,
        1.0,
        is_free=True,
    ),
    Row(
        layers.OrthogonalConv2DTranspose,
        {"filters": 2, "kernel_size": (4, 3), "strides": 2},
        (3, 4, 5),
        (6, 8, 2),
        (48, 120),
        keras.layers.Conv2DTranspose,
        1.0,
        is_free=True,
    ),
]

CONSTRAINED += [
    Row(layers.AOLDense, {"units": 4}, (8,), (4,), (36, 36), **_DENSE),
    Row(
        layers.AOLDense,
        {"units": 7, "use_bias": False, "k_coef_lip": 2.0},
        (3, 5),
        (3, 7),
        (35, 40),
        keras.layers.Dense,
        2.0,
    ),
    Row(
        layers.AOLConv2D,
        {"filters": 4, "kernel_size": 3},
        (5, 6, 3),
        (5, 6, 4),
        (112, 111),
        **_CONV,
    ),
    Row(
        layers.AOLConv2D,
        {
            "filters": 3,
            "kernel_size": (4, 3),
            "strides": 2,
            "use_bias": False,
            "k_coef_lip": 0.5,
        },
        (7, 4, 2),
        (4, 2, 3),
        (72, 80),
        keras.layers.Conv2D,
        0.5,
    ),
    Row(
        layers.AOLConv2D,
        {
            "filters": 4,
            "kernel_size": 3,
            "strides": 2,
            "padding_mode": "circular",
        },
        (5, 4, 2),
        (3, 2, 4),
        (76, 74),
        unconstrained.PadConv2D,
        1.0,
    ),
    Row(
        layers.SLLDense,
        {"units": 6},
        (4,),
        (4,),
        (30, 30),
        unconstrained.ResidualDense,
        1.0,
        residual=True,
    ),
    Row(
        layers.SLLDense,
        {"units": 3, "activation": "tanh", "k_coef_lip": 2.0},
        (2, 5),
        (2, 5),
        (18, 18),
        unconstrained.ResidualDense,
        2.0,
        residual=True,
    ),
    Row(
        layers.SLLConv2D,
        {"filters": 4, "kernel_size": 3, "k_coef_lip": 0.5},
        (4, 5, 2),
        (4, 5, 2),
        (76, 76),
        unconstrained.ResidualConv2D,
        0.5,
        residual=True,
    ),
]

OTHERS = [
    Row(layers.Abs, {}, (3, 4), (3, 4), constant=1.0),
    Row(
        layers.Abs,
        {"beta": 0.5, "data_format": "channels_first", "k_coef_lip": 2.0},
        (3, 2, 2),
        (3, 2, 2),
        constant=2.0,
    ),
    Row(layers.SpatialShift2D, {}, (4, 3, 8), (4, 3, 8), constant=1.0),
    Row(
        layers.SpatialShift2D,
        {"fraction": 0.7, "data_format": "channels_first"},
        (6, 2, 3),
        (6, 2, 3),
        constant=1.0,
    ),
    Row(
        layers.ScaledAveragePooling2D,
        {},
        (4, 6, 2),
        (2, 3, 2),
        constant=1.0,
    ),
    Row(
        layers.ScaledAveragePooling2D,
        {"pool_size": (3, 2), "strides": (3, 2), "k_coef_lip": 2.0},
        (7, 7, 2),
        (2, 3, 2),
        constant=2.0,
    ),
    Row(
        layers.ScaledL2NormPooling2D,
        {"pool_size": 2, "k_coef_lip": 0.5},
        (4, 6, 2),
        (2, 3, 2),
        constant=0.5,
    ),
    Row(
        layers.ScaledL2NormPooling2D,
        {"pool_size": (2, 3), "eps_grad_sqrt": 0.0},
        (5, 7, 1),
        (2, 2, 1),
        constant=1.0,
    ),
    Row(
        layers.ScaledGlobalAveragePooling2D,
        {"k_coef_lip": 3.0},
        (4, 6, 2),
        (2,),
        constant=3.0,
    ),
    Row(
        layers.ScaledGlobalAveragePooling2D,
        {"data_format": "channels_first", "keepdims": True},
        (2, 4, 6),
        (2, 1, 1),
        constant=1.0,
    ),
    Row(
        layers.ScaledGlobalL2NormPooling2D,
        {"k_coef_lip": 3.0},
        (4, 6, 2),
        (2,),
        constant=3.0,
    ),
    Row(
        layers.ScaledGlobalL2NormPooling2D,
        {"data_format": "channels_first", "eps_grad_sqrt": 0.0},
        (2, 4, 6),
        (2,),
        constant=1.0,
    ),
    Row(
        layers.InvertibleDownSampling,
        {"pool_size": (2, 3)},
        (4, 6, 2),
        (2, 2, 12),
        constant=1.0,
    ),
    Row(
        layers.InvertibleUpSampling,
        {"pool_size": 2, "data_format": "channels_first"},
        (8, 2, 3),
        (2, 4, 6),
        constant=1.0,
    ),
    Row(layers.Householder, {}, (3, 6), (3, 6), (3, 0), constant=1.0),
    Row(
        layers.Householder,
        {"k_coef_lip": 2.0, "theta_initializer": "random_normal"},
        (4,),
        (4,),
        (2, 0),
        constant=2.0,
    ),
    Row(
        layers.Householder,
        {"order": 3, "k_coef_lip": 0.5},
        (5, 4),
        (5, 4),
        (6, 0),
        constant=0.5,
    ),
    Row(layers.GroupSort, {"n": 3}, (6,), (6,), constant=1.0),
    Row(layers.GroupSort, {"k_coef_lip": 2.0}, (4, 5), (4, 5), constant=2.0),
    Row(layers.GroupSort2, {}, (3, 3, 32), (3, 3, 32), constant=1.0),
    Row(layers.GroupSort2, {"k_coef_lip": 0.5}, (6,), (6,), constant=0.5),
    Row(layers.FullSort, {}, (7,), (7,), constant=1.0),
    Row(layers.MaxMin, {}, (3, 4), (3, 8), constant=1.0),
    Row(
        layers.MaxMin,
        {"data_format": "channels_first", "k_coef_lip": 2.0},
        (2, 3, 3),
        (4, 3, 3),
        constant=2.0,
    ),
    Row(
        layers.ScaledAveragePooling1D,
        {"pool_size": 3, "k_coef_lip": 2.0},
        (8, 2),
        (2, 2),
        constant=2.0,
    ),
    Row(
        layers.ScaledAveragePooling3D,
        {},
        (4, 2, 5, 2),
        (2, 1, 2, 2),
        constant=1.0,
    ),
    Row(layers.ScaledL2NormPooling1D, {}, (6, 2), (3, 2), constant=1.0),
    Row(
        layers.ScaledL2NormPooling3D,
        {"pool_size": (1, 2, 3), "eps_grad_sqrt": 0.0, "k_coef_lip": 0.5},
        (2, 4, 3, 2),
        (2, 2, 1, 2),
        constant=0.5,
    ),
    Row(
        layers.ScaledGlobalAveragePooling1D,
        {"k_coef_lip": 2.0, "keepdims": True},
        (5, 3),
        (1, 3),
        constant=2.0,
    ),
    Row(
        layers.ScaledGlobalAveragePooling3D,
        {"data_format": "channels_first"},
        (3, 2, 4, 3),
        (3,),
        constant=1.0,
    ),
    Row(
        layers.ScaledGlobalL2NormPooling1D,
        {"data_format": "channels_first", "k_coef_lip": 0.5},
        (3, 5),
        (3,),
        constant=0.5,
    ),
    Row(
        layers.ScaledGlobalL2NormPooling3D,
        {"keepdims": True, "eps_grad_sqrt": 1e-3},
        (2, 4, 3, 2),
        (1, 1, 1, 2),
        constant=1.0,
    ),
    Row(
        layers.ScaledAdaptiveAveragePooling2D,
        {"output_size": (1, 1), "k_coef_lip": 2.0},
        (4, 6, 2),
        (1, 1, 2),
        constant=2.0,
    ),
    Row(
        layers.ScaledAdaptiveL2NormPooling2D,
        {"output_size": 1, "data_format": "channels_first"},
        (2, 4, 6),
        (2, 1, 1),
        constant=1.0,
    ),
    Row(layers.LayerCentering, {}, (4, 6, 2), (4, 6, 2), (2, 0), constant=1.0),
    Row(
        layers.LayerCentering,
        {"data_format": "channels_first", "use_bias": False, "k_coef_lip": 3.0},
        (2, 4, 6),
        (2, 4, 6),
        constant=3.0,
    ),
    Row(
        layers.LayerCentering,
        {"axis": -1, "k_coef_lip": 0.5},
        (5,),
        (5,),
        (5, 0),
        constant=0.5,
    ),
    Row(layers.BatchCentering, {}, (5,), (5,), (5, 6), constant=1.0),
    Row(
        layers.BatchCentering,
        {"axis": 1, "use_bias": False, "k_coef_lip": 2.0, "window": 3},
        (2, 4, 6),
        (2, 4, 6),
        (0, 3),
        constant=2.0,
    ),
    # The constant is that of a layer that has seen no batch.
    Row(layers.BatchLipNorm, {}, (4, 3), (4, 3), (3, 8), constant=1.0),
    Row(
        layers.BatchLipNorm,
        {"centering": False, "use_bias": False, "eps": 1e-3},
        (4,),
        (4,),
        (0, 10),
        constant=1.0,
    ),
    Row(
        layers.ScaleBiasLayer,
        {"scalar": 0.5, "axis": 1},
        (2, 3),
        (2, 3),
        (2, 0),
        constant=0.5,
    ),
    Row(
        layers.ScaleBiasLayer,
        {"scalar": -2.0, "use_bias": False},
        (4,),
        (4,),
        constant=2.0,
    ),
    Row(
        layers.PrescaledResidual,
        {"layer": layers.SLLDense(3, name="branch"), "k_coef_lip": 0.5},
        (4,),
        (4,),
        (15, 15),
        constant=0.5,
    ),
    Row(
        layers.PrescaledResidual,
        {"layer": keras.layers.ReLU(name="relu"), "k_branch": 1.0},
        (3, 4),
        (3, 4),
        constant=1.0,
    ),
    Row(
        layers.PartialResidual,
        {"layer": layers.SpectralDense(4, k_coef_lip=0.5, name="branch")},
        (8,),
        (8,),
        (20, 21),
        constant=1.0,
    ),
    Row(
        layers.PartialResidual,
        {
            "layer": layers.SLLConv2D(3, 3, k_coef_lip=2.0, name="branch"),
            "k_coef_lip": 3.0,
        },
        (4, 5, 4),
        (4, 5, 4),
        (57, 57),
        constant=3.0,
    ),
    Row(layers.LipschitzPReLU, {}, (3, 4), (3, 4), (12, 0), constant=1.0),
    Row(
        layers.LipschitzPReLU,
        {
            "k_coef_lip": 2.0,
            "alpha_initializer": "ones",
            "shared_axes": [1],
        },
        (3, 4),
        (3, 4),
        (4, 0),
        constant=2.0,
    ),
]


def _can_run(row):
    """TensorFlow has no channels-first convolution on a CPU."""
    return not (
        keras.backend.backend() == "tensorflow"
        and row.stock is keras.layers.Conv2D
        and row.arguments.get("data_format") == "channels_first"
    )


def rows(*lists, slow=False):
    """Decorator: runs a test on each row of the lists, named after it.

    Args:
        *lists: Lists of rows.
        slow: Boolean, whether only the first row of each class is tested
            outside of `make test-slow`.
    """
    selected = [row for rows in lists for row in rows if _can_run(row)]
    parameters, classes = [], set()
    for row in selected:
        marks = [pytest.mark.slow] if slow and row.layer in classes else []
        classes.add(row.layer)
        parameters.append(pytest.param(row, id=row.name, marks=marks))
    return pytest.mark.parametrize("row", parameters)
