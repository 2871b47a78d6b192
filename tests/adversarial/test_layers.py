"""The layers by themselves: float32 and float64 as the rules claim them."""

import inspect

import keras
import numpy as np
import pytest
from harness import to_numpy
from registry import CONSTRAINED
from registry import OTHERS
from registry import rows

from deel.lip import layers
from deel.lip._numerics.activations import FACTS
from deel.lip.certification import _registry
from deel.lip.certification._float64 import as_float64
from deel.lip.certification._float64 import float64
from deel.lip.certification._float64 import float64_copy
from deel.lip.certification._rounding import FLOAT32
from deel.lip.certification._rounding import FLOAT64
from deel.lip.certification._walk import Walk
from deel.lip.certification._walk import start
from deel.lip.certification.rules import augmentation
from deel.lip.certification.rules import shapes

stock = keras.layers

# Layers of Keras, each with the shape of an input; a list for several inputs.
STOCK = [
    (stock.Dense(3), (300,)),
    (stock.Dense(3, activation="gelu"), (4, 5)),
    (stock.EinsumDense("abc,bcd->abd", (3, 2), bias_axes="d"), (3, 40)),
    (stock.Conv1D(2, 5, strides=2), (20, 8)),
    (stock.Conv1D(2, 3, padding="causal"), (9, 8)),
    (stock.Conv2D(2, 3, dilation_rate=2, padding="same"), (7, 8, 6)),
    (stock.Conv2D(4, 3, groups=2), (5, 6, 6)),
    (stock.Conv3D(2, 3), (4, 5, 4, 3)),
    (stock.Conv1DTranspose(2, 3, strides=2), (6, 5)),
    (stock.Conv2DTranspose(3, 3, strides=2, padding="same"), (5, 4, 6)),
    (stock.DepthwiseConv1D(5), (9, 3)),
    (stock.DepthwiseConv2D(3, strides=2), (7, 7, 3)),
    (stock.SeparableConv1D(2, 3, depth_multiplier=2), (8, 6)),
    (stock.SeparableConv2D(2, 3, padding="same"), (6, 6, 8)),
    (stock.AveragePooling1D(3, padding="same"), (7, 2)),
    (stock.AveragePooling2D(3, strides=1), (7, 6, 2)),
    (stock.AveragePooling3D(2), (4, 5, 4, 2)),
    (stock.AveragePooling3D(3, strides=2, padding="same"), (4, 5, 4, 2)),
    (stock.MaxPooling1D(3, strides=1), (7, 2)),
    (stock.MaxPooling2D(3, padding="same"), (7, 6, 2)),
    (stock.MaxPooling3D(3, strides=2, padding="same"), (4, 5, 4, 2)),
    (stock.GlobalAveragePooling1D(), (50, 2)),
    (stock.GlobalAveragePooling2D(), (20, 30, 2)),
    (stock.GlobalAveragePooling3D(), (6, 5, 4, 2)),
    (stock.GlobalMaxPooling2D(), (6, 5, 4)),
    (stock.SimpleRNN(4), (6, 3)),
    (stock.SimpleRNN(3, "relu", return_sequences=True), (5, 4)),
    (stock.RNN(stock.SimpleRNNCell(3)), (4, 2)),
    (stock.Bidirectional(stock.SimpleRNN(3), merge_mode="ave"), (5, 3)),
    (stock.Flatten(), (3, 4)),
    (stock.RepeatVector(3), (4,)),
    (stock.UpSampling2D(2), (3, 4, 2)),
    (stock.ZeroPadding2D(), (3, 4, 2)),
    (stock.Rescaling(1 / 255, offset=-0.3), (3, 4)),
    (stock.Normalization(mean=1.3, variance=0.7), (3, 4)),
    (stock.BatchNormalization(), (3, 4)),
    (stock.ReLU(negative_slope=0.3), (9,)),
    (stock.LeakyReLU(negative_slope=0.3), (9,)),
    (stock.ELU(alpha=0.3), (9,)),
    (stock.PReLU(), (9,)),
    (stock.Softmax(), (3, 9)),
    *[(stock.Activation(name), (9,)) for name in FACTS],
    (stock.Add(), [(9,), (9,), (9,)]),
    (stock.Subtract(), [(2, 9), (2, 9)]),
    (stock.Average(), [(9,), (9,), (9,)]),
    (stock.Maximum(), [(9,), (9,)]),
    (stock.Minimum(), [(9,), (9,)]),
    (stock.Concatenate(), [(9,), (4,)]),
    (layers.LipResidual(), [(9,), (9,)]),
    (stock.TimeDistributed(stock.Dense(3)), (4, 3)),
    (stock.TimeDistributed(layers.BatchCentering()), (4, 3)),
    (stock.TimeDistributed(stock.GlobalAveragePooling1D()), (4, 3, 2)),
]


def _set_weights(layer, random, sign):
    """Random weights, of one sign or of both, and statistics that are large."""
    for variable in layer.weights:
        value = random.standard_normal(variable.shape)
        if sign or "variance" in variable.name:
            value = np.abs(value)
        if "mean" in variable.name:
            value = 100 * value
        names = ("kernel", "bias", "beta", "gamma", "alpha", "mean")
        if variable.name.endswith(names):
            variable.assign(value)
        elif variable.name == "moving_variance":
            variable.assign(value + 0.1)
    if hasattr(layer, "wbar"):
        layer.condense()


def _inputs(shapes, random, sign):
    for scale in (1e-3, 1.0, 1e4):
        for _ in range(2):
            x = [scale * random.standard_normal((1, *s)) for s in shapes]
            yield [np.abs(a) if sign else a for a in x]
        yield [np.full((1, *s), scale * random.uniform(0.5, 2)) for s in shapes]


def _check(make, shapes, seed):
    random = np.random.default_rng(seed)
    for sign in (False, True):
        layer = make()
        layer.build(
            [(None, *s) for s in shapes]
            if len(shapes) > 1
            else (None, *shapes[0])
        )
        _set_weights(layer, random, sign)
        walk = Walk()
        shape = list(shapes) if len(shapes) > 1 else shapes[0]
        walk.run(layer, start(layer, shape))
        (call,) = walk.calls
        single, double = (call.bound.rounding(a) for a in (FLOAT32, FLOAT64))
        with float64():
            copy = float64_copy(layer)
        for x in _inputs(shapes, random, sign):
            x = [a.astype("float32") for a in x]
            _compare(layer, copy, x, single, double)
        _has_digits(copy, x)


def _compare(layer, copy, x, single, double):
    found = layer(x if len(x) > 1 else x[0], training=False)
    with float64():
        wide = [as_float64(a) for a in x]
        exact = copy(wide if len(x) > 1 else wide[0], training=False)
        exact = to_numpy(exact)
    norm = sum(np.linalg.norm(a.astype("float64")) for a in x)
    error = np.linalg.norm(to_numpy(found) - exact)
    allowed = sum(c.relative * norm + c.absolute for c in (single, double))
    assert error <= allowed
    # What is said of the size of the output limits the next errors.
    size = single.zero + single.constant * norm
    assert np.linalg.norm(exact) <= size * (1 + 1e-9) + allowed


def _has_digits(copy, x):
    """Differences at steps of 2^-30 are those of float64.

    The quotients at a step and at twice the step agree for a function that has
    a slope there; float32 in between makes steps of 60 of them.
    """
    random = np.random.default_rng(0)
    x = [random.uniform(0.5, 1.5, a.shape) for a in x]
    moves = [random.standard_normal(a.shape) for a in x]

    def at(step):
        with float64():
            points = [
                as_float64(a + step * m) for a, m in zip(x, moves, strict=True)
            ]
            y = copy(points if len(x) > 1 else points[0], training=False)
            assert keras.backend.standardize_dtype(y.dtype) == "float64"
            return to_numpy(y)

    middle, step = at(0.0), 2.0**-30
    once, twice = (at(step) - middle) / step, (at(2 * step) - middle) / step / 2
    scale = np.linalg.norm(moves[0]) + np.linalg.norm(once)
    assert np.linalg.norm(once - twice) <= 1e-4 * scale


@rows(CONSTRAINED, OTHERS, slow=True)
def test_our_layers_round_by_no_more_than_their_rule_claims(row):
    _check(row.make, [row.input_shape], 0)


def _cases():
    for layer, shape in STOCK:
        name = type(layer).__name__
        # By the rule of those of two dimensions.
        marks = [pytest.mark.elsewhere] if name.endswith(("1D", "3D")) else []
        yield pytest.param(layer, shape, id=layer.name, marks=marks)


@pytest.mark.parametrize(("layer", "shape"), _cases())
def test_stock_layers_round_by_no_more_than_their_rule_claims(layer, shape):
    shapes = shape if isinstance(shape, list) else [shape]
    _check(lambda: type(layer).from_config(layer.get_config()), shapes, 1)


def test_every_class_with_a_rule_of_sums_is_compared_here():
    compared = {type(layer) for layer, _ in STOCK}
    compared |= {row.layer for row in CONSTRAINED + OTHERS}
    missing = {
        c.__name__
        for c in _registry._BOUNDS
        if c not in compared
        and c.__module__.startswith(("keras", "deel"))
        and inspect.unwrap(_registry._BOUNDS[c]) is not shapes._isometry
        # Identities at inference, and crops, add nothing.
        and _registry._BOUNDS[c].__module__ != augmentation.__name__
    }
    # Siblings in other dimensions, by the same rule, and exports of ours.
    assert missing <= {
        "Conv3DTranspose",
        "ConvPair2D",
        "DensePair",
        "GlobalMaxPooling1D",
        "GlobalMaxPooling3D",
        "PadConv1D",
        "PadConv2D",
        "PadConv3D",
        "ResidualConv2D",
        "ResidualDense",
        "UpSampling1D",
        "UpSampling3D",
    }
