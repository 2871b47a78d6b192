"""Layers with a known Lipschitz constant, named after the Keras ones."""

import deel.lip.layers.unconstrained as unconstrained
from deel.lip._constrained import ConstrainedKernel
from deel.lip._lipschitz import Condensable
from deel.lip._lipschitz import LipschitzLayer
from deel.lip.layers.activations import Abs
from deel.lip.layers.activations import FullSort
from deel.lip.layers.activations import GroupSort
from deel.lip.layers.activations import GroupSort2
from deel.lip.layers.activations import Householder
from deel.lip.layers.activations import MaxMin
from deel.lip.layers.almost_orthogonal import AOLConv2D
from deel.lip.layers.almost_orthogonal import AOLDense
from deel.lip.layers.average_pooling import ScaledAveragePooling1D
from deel.lip.layers.average_pooling import ScaledAveragePooling2D
from deel.lip.layers.average_pooling import ScaledAveragePooling3D
from deel.lip.layers.branched import PartialResidual
from deel.lip.layers.branched import PrescaledResidual
from deel.lip.layers.convolutional import FrobeniusConv2D
from deel.lip.layers.convolutional import SpectralConv1D
from deel.lip.layers.convolutional import SpectralConv2D
from deel.lip.layers.convolutional import SpectralConv3D
from deel.lip.layers.convolutional import SpectralGroupedConv2D
from deel.lip.layers.convolutional_transpose import SpectralConv2DTranspose
from deel.lip.layers.dense import FrobeniusDense
from deel.lip.layers.dense import SpectralDense
from deel.lip.layers.depthwise import SpectralDepthwiseConv2D
from deel.lip.layers.global_pooling import ScaledAdaptiveAveragePooling2D
from deel.lip.layers.global_pooling import ScaledAdaptiveL2NormPooling2D
from deel.lip.layers.global_pooling import ScaledGlobalAveragePooling1D
from deel.lip.layers.global_pooling import ScaledGlobalAveragePooling2D
from deel.lip.layers.global_pooling import ScaledGlobalAveragePooling3D
from deel.lip.layers.global_pooling import ScaledGlobalL2NormPooling1D
from deel.lip.layers.global_pooling import ScaledGlobalL2NormPooling2D
from deel.lip.layers.global_pooling import ScaledGlobalL2NormPooling3D
from deel.lip.layers.l2_norm_pooling import ScaledL2NormPooling1D
from deel.lip.layers.l2_norm_pooling import ScaledL2NormPooling2D
from deel.lip.layers.l2_norm_pooling import ScaledL2NormPooling3D
from deel.lip.layers.layer_centering import LayerCentering
from deel.lip.layers.monotone import Monotone
from deel.lip.layers.normalization import BatchCentering
from deel.lip.layers.normalization import BatchLipNorm
from deel.lip.layers.normalization import SharedLipFactory
from deel.lip.layers.orthogonal_convolution import OrthogonalConv1D
from deel.lip.layers.orthogonal_convolution import OrthogonalConv2D
from deel.lip.layers.orthogonal_convolution import OrthogonalConv2DTranspose
from deel.lip.layers.orthogonal_convolution import OrthogonalConv3D
from deel.lip.layers.orthogonal_dense import OrthogonalDense
from deel.lip.layers.prelu import LipschitzPReLU
from deel.lip.layers.prelu import PReLUlip
from deel.lip.layers.recurrent import OrthogonalRNN
from deel.lip.layers.resampling import InvertibleDownSampling
from deel.lip.layers.resampling import InvertibleUpSampling
from deel.lip.layers.resampling import SpatialShift2D
from deel.lip.layers.residual import LipResidual
from deel.lip.layers.sandwich import SandwichConv2D
from deel.lip.layers.sandwich import SandwichDense
from deel.lip.layers.scale_bias import ScaleBiasLayer
from deel.lip.layers.symmetric import SLLConv2D
from deel.lip.layers.symmetric import SLLDense

__all__ = [
    "AOLConv2D",
    "AOLDense",
    "Abs",
    "BatchCentering",
    "BatchLipNorm",
    "Condensable",
    "ConstrainedKernel",
    "FrobeniusConv2D",
    "FrobeniusDense",
    "FullSort",
    "GroupSort",
    "GroupSort2",
    "Householder",
    "InvertibleDownSampling",
    "InvertibleUpSampling",
    "LayerCentering",
    "LipResidual",
    "LipschitzLayer",
    "LipschitzPReLU",
    "MaxMin",
    "Monotone",
    "OrthogonalConv1D",
    "OrthogonalConv2D",
    "OrthogonalConv2DTranspose",
    "OrthogonalConv3D",
    "OrthogonalDense",
    "OrthogonalRNN",
    "PReLUlip",
    "PartialResidual",
    "PrescaledResidual",
    "SLLConv2D",
    "SLLDense",
    "SandwichConv2D",
    "SandwichDense",
    "ScaleBiasLayer",
    "ScaledAdaptiveAveragePooling2D",
    "ScaledAdaptiveL2NormPooling2D",
    "ScaledAveragePooling1D",
    "ScaledAveragePooling2D",
    "ScaledAveragePooling3D",
    "ScaledGlobalAveragePooling1D",
    "ScaledGlobalAveragePooling2D",
    "ScaledGlobalAveragePooling3D",
    "ScaledGlobalL2NormPooling1D",
    "ScaledGlobalL2NormPooling2D",
    "ScaledGlobalL2NormPooling3D",
    "ScaledL2NormPooling1D",
    "ScaledL2NormPooling2D",
    "ScaledL2NormPooling3D",
    "SharedLipFactory",
    "SpatialShift2D",
    "SpectralConv1D",
    "SpectralConv2D",
    "SpectralConv2DTranspose",
    "SpectralConv3D",
    "SpectralDense",
    "SpectralDepthwiseConv2D",
    "SpectralGroupedConv2D",
    "unconstrained",
]


def __dir__():
    return __all__
