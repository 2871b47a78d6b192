"""What a family is, and how a network is made of it."""

import dataclasses
import typing

import keras
import numpy as np
from harness import assign_unguarded
from harness import to_numpy

from deel.lip.certification._float64 import in_float64
from deel.lip.model import Model

FAMILIES = {}

# Families that take more than a moment, for which there are slow tests.
SLOW = set()


@dataclasses.dataclass
class Family:
    """One network, but for its last layer.

    Attributes:
        shape: Tuple, the shape of a sample.
        body: Function from a tensor to a tensor.
        weigh: Function of the model, which sets weights; None for `weigh`,
            whose weights have one sign and add up to about one.
        scale: Float, of the values of samples.
        spread: Pair of floats, between which values of scale one are drawn.
        is_constant: Boolean, whether all values of a sample are the same.
    """

    shape: tuple
    body: typing.Callable
    weigh: typing.Callable | None = None
    scale: float = 1.0
    is_constant: bool = True
    spread: tuple = (0.5, 2.0)


def row(function=None, slow=False):
    """Decorator: adds a row to the table."""
    if function is None:
        return lambda function: row(function, slow)
    name = function.__name__.strip("_")
    FAMILIES[name] = function
    if slow:
        SLOW.add(name)
    return function


def build(name, seed, size=1.0):
    """Returns a classifier of two classes, and one sample near its boundary.

    Args:
        name: String, a row of the table.
        seed: Integer.
        size: Float, multiplies lengths of sums.

    Returns:
        Pair: a model whose last layer is `Dense(2)`, and an array.
    """
    random = np.random.default_rng([seed, *name.encode()])
    family = FAMILIES[name](random, size)
    inputs = keras.Input(family.shape)
    tensor = family.body(inputs)
    if len(tensor.shape) > 2:
        tensor = keras.layers.Flatten()(tensor)
    model = Model(inputs, keras.layers.Dense(2)(tensor))
    one_sign(model, random)
    if family.weigh is not None:
        family.weigh(model)
    x = np.full(family.shape, random.uniform(*family.spread))
    if not family.is_constant:
        x *= random.uniform(0.5, 1.5, family.shape)
    x = (family.scale * x).astype("float32")
    return model, x


def scores_of(copy, x):
    tensor = keras.ops.convert_to_tensor(x, dtype="float64")
    return to_numpy(copy(tensor, training=False))


def whole_copy(model):
    """The model, rebuilt at once under a policy of float64.

    Not layer by layer, as `certify` does it. Within `float64()`.
    """

    copy = type(model).from_config(in_float64(model.get_config()))
    for old, new in zip(model.weights, copy.weights, strict=True):
        value = np.asarray(to_numpy(old.value), "float64")
        value = keras.ops.convert_to_tensor(value, dtype="float64")
        # The kernels of inference are what they are, not normalised again.
        assign_unguarded(new, value)
    for layer in copy._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return copy


def one_sign(model, random):
    """Weights of one sign, of which those of an output add up to about one."""
    for variable in model.weights:
        if variable.name in ("seed_generator_state", "count"):
            continue
        shape = variable.shape
        if variable.name in ("kernel", "pointwise_kernel"):
            terms = int(np.prod(shape[:-1]))
            value = random.uniform(0.5, 1.5, shape) / terms
        elif variable.name == "depthwise_kernel":
            value = random.uniform(0.5, 1.5, shape) / np.prod(shape[:-2])
        elif "variance" in variable.name or variable.name == "gamma":
            value = random.uniform(0.5, 1.5, shape)
        elif len(shape) == 1 and shape[0] is not None:
            value = random.uniform(0.0, 1.0, shape)
        else:
            continue
        variable.assign(value.astype("float32"))
    for layer in model.layers:
        if hasattr(layer, "wbar"):
            layer.condense()
    # All errors of what enters the last layer move the lead the same way.
    last = model.layers[-1]
    kernel = random.uniform(0.5, 1.5, last.kernel.shape) * [1.0, 0.1]
    last.set_weights([kernel / len(kernel), np.zeros(2)])


def sequence(*steps):
    def body(tensor):
        for step in steps:
            tensor = step(tensor)
        return tensor

    return body
