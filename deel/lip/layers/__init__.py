"""Layers with a known Lipschitz constant, named after the Keras ones."""

from deel.lip._lipschitz import Condensable
from deel.lip._lipschitz import LipschitzLayer
from deel.lip.layers.activations import FullSort
from deel.lip.layers.activations import GroupSort
from deel.lip.layers.activations import GroupSort2
from deel.lip.layers.activations import Householder
from deel.lip.layers.activations import MaxMin
from deel.lip.layers.activations import PReLUlip
from deel.lip.layers.convolutional import FrobeniusConv2D
from deel.lip.layers.convolutional import SpectralConv2D
from deel.lip.layers.dense import FrobeniusDense
from deel.lip.layers.dense import SpectralDense
from deel.lip.layers.pooling import ScaledAveragePooling2D
from deel.lip.layers.pooling import ScaledGlobalAveragePooling2D
from deel.lip.layers.pooling import ScaledGlobalL2NormPooling2D
from deel.lip.layers.pooling import ScaledL2NormPooling2D
from deel.lip.layers.resampling import InvertibleDownSampling
from deel.lip.layers.resampling import InvertibleUpSampling

__all__ = [
    "Condensable",
    "FrobeniusConv2D",
    "FrobeniusDense",
    "FullSort",
    "GroupSort",
    "GroupSort2",
    "Householder",
    "InvertibleDownSampling",
    "InvertibleUpSampling",
    "LipschitzLayer",
    "MaxMin",
    "PReLUlip",
    "ScaledAveragePooling2D",
    "ScaledGlobalAveragePooling2D",
    "ScaledGlobalL2NormPooling2D",
    "ScaledL2NormPooling2D",
    "SpectralConv2D",
    "SpectralDense",
]
