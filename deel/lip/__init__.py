"""Keras layers, losses and models with a known Lipschitz constant."""

from pathlib import Path

from deel.lip import activations
from deel.lip import callbacks
from deel.lip import constraints
from deel.lip import initializers
from deel.lip import layers
from deel.lip import losses
from deel.lip import metrics
from deel.lip import model
from deel.lip import normalizers
from deel.lip.model import Model
from deel.lip.model import Sequential
from deel.lip.model import vanillaModel

__version__ = (Path(__file__).parent / "VERSION").read_text().strip()

__all__ = [
    "Model",
    "Sequential",
    "__version__",
    "activations",
    "callbacks",
    "constraints",
    "initializers",
    "layers",
    "losses",
    "metrics",
    "model",
    "normalizers",
    "vanillaModel",
]
