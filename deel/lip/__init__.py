"""Keras layers, losses and models with a known Lipschitz constant."""

from pathlib import Path

from deel.lip import _compatible  # First: it checks the version of Keras.
from deel.lip import _deprecated
from deel.lip import activations
from deel.lip import applications
from deel.lip import callbacks
from deel.lip import certification
from deel.lip import constraints
from deel.lip import initializers
from deel.lip import layers
from deel.lip import losses
from deel.lip import metrics
from deel.lip import model
from deel.lip import normalizers
from deel.lip import optimizers
from deel.lip import parametrizations
from deel.lip import regularizers
from deel.lip import sampling
from deel.lip import utils
from deel.lip.model import Model
from deel.lip.model import Sequential
from deel.lip.model import vanillaModel

__version__ = (Path(__file__).parent / "VERSION").read_text().strip()

_deprecated.install()

__all__ = [
    "Model",
    "Sequential",
    "__version__",
    "activations",
    "applications",
    "callbacks",
    "certification",
    "constraints",
    "initializers",
    "layers",
    "losses",
    "metrics",
    "model",
    "normalizers",
    "optimizers",
    "parametrizations",
    "regularizers",
    "sampling",
    "utils",
    "vanillaModel",
]


def __dir__():
    return __all__
