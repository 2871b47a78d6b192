"""Activations of 1-Lipschitz networks; also in `deel.lip.layers`."""

from deel.lip.layers.activations import Abs
from deel.lip.layers.activations import FullSort
from deel.lip.layers.activations import GroupSort
from deel.lip.layers.activations import GroupSort2
from deel.lip.layers.activations import Householder
from deel.lip.layers.activations import MaxMin
from deel.lip.layers.prelu import LipschitzPReLU
from deel.lip.layers.prelu import PReLUlip

__all__ = [
    "Abs",
    "FullSort",
    "GroupSort",
    "GroupSort2",
    "Householder",
    "LipschitzPReLU",
    "MaxMin",
    "PReLUlip",
]


def __dir__():
    return __all__
