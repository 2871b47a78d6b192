"""Elementary functions are right to what rounding proofs claim of them."""

import math

import keras
import numpy as np
import pytest
from harness import to_numpy
from keras import ops

from deel.lip._numerics.activations import FACTS
from deel.lip.certification._float64 import as_float64
from deel.lip.certification._float64 import float64
from deel.lip.certification._float64 import float64_copy
from deel.lip.certification._rounding import FLOAT32
from deel.lip.certification._rounding import FLOAT64
from deel.lip.certification.rules.activations import activation_bound

FUNCTIONS = {name: getattr(keras.activations, name) for name in FACTS}

_tail = np.vectorize(math.erfc, otypes=["float64"])

# Formulas of our own, in at least the digits of float64.
SCALE, ALPHA = 1.0507009873554804934193349852946, 1.67326324235437728481704


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x):
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def hard_sigmoid(x):
    return np.clip(x / 6 + x.dtype.type(0.5), 0, 1)


EXACT = {
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: x * _tail(-x.astype("float64") / math.sqrt(2)) / 2,
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": lambda x: x * hard_sigmoid(x),
    "leaky_relu": lambda x: np.where(x > 0, x, x / 5),
    "linear": lambda x: x,
    "log_sigmoid": lambda x: -softplus(-x),
    "mish": lambda x: x * np.tanh(softplus(x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "selu": lambda x: (
        SCALE * np.where(x > 0, x, ALPHA * np.expm1(np.minimum(x, 0)))
    ),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "softplus": softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "tanh": np.tanh,
}


def inputs(seed=0):
    """float32 numbers of every exponent and sign, of random digits."""
    random = np.random.default_rng(seed)
    exponents = np.repeat(np.arange(0, 254, dtype="uint32"), 64)
    digits = random.integers(0, 2**23, len(exponents), dtype="uint32")
    # Also powers of two, and what is next to them.
    digits[::64], digits[1::64] = 0, 2**23 - 1
    dense = random.uniform(-30, 30, 20000).astype("float32")
    spread = (exponents << 23 | digits).view("float32")
    return np.concatenate([spread, -spread, dense])


def largest_error(found, exact):
    """Errors, infinite where the function is infinite or no number."""
    error = np.abs(found.astype("longdouble") - exact)
    return np.where(np.isfinite(found), error, np.inf)


def claimed(name, x, arithmetic):
    """What is claimed of the error for each value, as of a tensor by itself."""
    bound = activation_bound(FUNCTIONS[name], (None, 1), None)
    step = bound.rounding(arithmetic)
    error = step.relative * np.abs(x) + step.absolute
    # Beyond, nothing is claimed.
    return np.where(np.abs(x) <= step.reach, error, np.inf)


def computed(function, x, mode):
    if mode == "eager":
        return to_numpy(function(ops.convert_to_tensor(x)))
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Activation(function)]
    )
    size = 1 if mode == "one by one" else len(x)
    return np.concatenate(
        [
            to_numpy(model.predict_on_batch(x[i : i + size, None]))
            for i in range(0, len(x), size)
        ]
    )[:, 0]


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("name", EXACT)
def test_functions_are_right_to_what_is_claimed_in_float32(name, mode):
    x = inputs()
    exact = EXACT[name](x.astype("longdouble"))
    error = largest_error(computed(FUNCTIONS[name], x, mode), exact)
    assert np.all(error <= claimed(name, x.astype("float64"), FLOAT32))


@pytest.mark.parametrize("name", EXACT)
def test_functions_are_right_to_what_is_claimed_in_float64(name):
    x = inputs().astype("float64")
    x *= np.random.default_rng(1).uniform(0.9, 1, len(x))
    with float64():
        layer = float64_copy(keras.layers.Activation(FUNCTIONS[name]))
        found = to_numpy(layer(as_float64(x)))
    exact = EXACT[name](x.astype("longdouble"))
    error = largest_error(found, exact)
    # Where the formula itself has no more digits than float64.
    slack = 4 * 2.0**-53 * np.abs(exact) if name == "gelu" else 0.0
    assert np.all(error <= claimed(name, x, FLOAT64) + slack)


@pytest.mark.parametrize("size", [2, 10, 1000])
@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_softmax_is_right_to_what_is_claimed(mode, size):
    random = np.random.default_rng(size)
    scales = 10.0 ** random.uniform(-40, 37, (200, 1))
    x = (scales * random.standard_normal((200, size))).astype("float32")
    shifted = x.astype("longdouble")
    shifted = shifted - np.max(shifted, axis=1, keepdims=True)
    exact = np.exp(shifted)
    exact /= np.sum(exact, axis=1, keepdims=True)
    function = keras.activations.softmax
    if mode == "eager":
        found = function(ops.convert_to_tensor(x))
    else:
        model = keras.Sequential(
            [keras.Input((size,)), keras.layers.Activation(function)]
        )
        found = model.predict_on_batch(x)
    error = np.linalg.norm((to_numpy(found) - exact).astype("float64"), axis=1)
    step = activation_bound(function, (None, size), None).rounding(FLOAT32)
    norms = np.linalg.norm(x.astype("float64"), axis=1)
    assert np.all(error <= step.relative * norms + step.absolute)


def test_every_function_of_the_table_has_a_formula_here():
    assert set(EXACT) | {"softmax"} >= set(FACTS)


@pytest.mark.parametrize("name", EXACT)
def test_slopes_of_the_table_bound_all_differences(name):
    if name not in FACTS:
        pytest.skip("This version of Keras has no such function.")
    x = np.linspace(-20, 20, 400001, dtype="longdouble")
    slopes = np.diff(EXACT[name](x)) / np.diff(x)
    assert np.max(np.abs(slopes)) <= FACTS[name].largest * (1 + 1e-9)
    assert np.min(slopes) >= FACTS[name].smallest - 1e-9
