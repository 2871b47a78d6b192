"""Bounds of operations of `keras.ops` in functional graphs."""

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import normal
from keras import ops
from registry import CONSTRAINED
from registry import OTHERS
from registry import rows

from deel.lip import layers
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.certification._network import Network
from deel.lip.model import Model
from deel.lip.model import Sequential
from deel.lip.model import vanillaModel

pytestmark = pytest.mark.filterwarnings("ignore:.*not a 1-Lipschitz layer")

ROOT = np.sqrt(2)
SCALES = np.array([1.0, -2.0, 3.0, 0.5], "float32")


def of(function, *shape):
    """A functional model of a function of one tensor."""
    x = keras.Input(shape or (4,))
    return keras.Model(x, function(x))


def halves(x):
    return ops.split(x, 2, axis=-1)


def sorted_pairs(x):
    a, b = halves(x)
    return ops.concatenate([ops.minimum(a, b), ops.maximum(a, b)], axis=-1)


def half_sorted(x):
    a, b = halves(x)
    pair = [3.0 * ops.minimum(a, b), ops.maximum(a, b)]
    return ops.concatenate(pair, axis=-1)


# The constant of each function, which is reached.
EXACT = {
    "a part": (lambda x: x[:, :3], 1.0),
    "parts that overlap": (
        lambda x: ops.concatenate([x[:, :3], x[:, 1:]], axis=-1),
        ROOT,
    ),
    "parts that do not": (
        lambda x: ops.concatenate([3.0 * x[:, :2], x[:, 2:]], axis=-1),
        3.0,
    ),
    "repetition": (lambda x: ops.repeat(x, 3, axis=-1), np.sqrt(3)),
    "a gather": (
        lambda x: ops.take(x, np.array([3, 0, 0, 0, 1]), axis=-1),
        np.sqrt(3),
    ),
    "zeros around": (lambda x: ops.pad(x, [[0, 0], [2, 1]]), 1.0),
    "a copy": (lambda x: ops.flip(ops.reshape(x, (-1, 2, 2)), axis=2), 1.0),
    "stack": (lambda x: ops.stack([x, x], axis=1), ROOT),
    "factors": (lambda x: x * SCALES, 3.0),
    "factors undone": (lambda x: (x * SCALES) / SCALES, 1.0),
    "a shift": (lambda x: 7.0 - x, 1.0),
    "sum": (lambda x: x + 2.0 * x, 3.0),
    "doubled": (lambda x: x + x, 2.0),
    "total": (lambda x: ops.sum(x, axis=-1), 2.0),
    "mean": (lambda x: ops.mean(x, axis=1, keepdims=True), 0.5),
    "largest": (lambda x: ops.max(x, axis=-1), 1.0),
    "a pair": (sorted_pairs, 1.0),
    "a pair of other scales": (half_sorted, 3.0),
    "larger of two": (lambda x: ops.maximum(x, 2.0), 1.0),
    "absolute value": (lambda x: ops.maximum(x, -x), 1.0),
    "two slopes": (lambda x: ops.maximum(x, x * SCALES), 3.0),
    "signs": (
        lambda x: ops.concatenate([ops.relu(x), ops.relu(-x)], axis=-1),
        1.0,
    ),
    "two activations": (
        lambda x: ops.concatenate([ops.relu(x), ops.tanh(x)], axis=-1),
        ROOT,
    ),
    "sorted": (lambda x: ops.sort(x, axis=-1), 1.0),
    "root of squares": (
        lambda x: ops.sqrt(ops.sum(ops.square(x), axis=-1) + 1e-3),
        1.0,
    ),
    "root of mean of squares": (
        lambda x: ops.sqrt(ops.mean(x * x, axis=-1, keepdims=True)),
        0.5,
    ),
    "centered": (lambda x: x - ops.mean(x, axis=-1, keepdims=True), 1.0),
    "clipped": (lambda x: ops.clip(2.0 * x, -1.0, 1.0), 2.0),
    "slopes of whole numbers": (lambda x: ops.maximum(x, x * 2), 2.0),
    "leaky": (lambda x: ops.leaky_relu(x, negative_slope=3.0), 3.0),
}


@pytest.mark.parametrize("name", EXACT)
def test_operations_have_the_constant_that_they_have(name):
    function, constant = EXACT[name]
    model = of(function)
    found = lipschitz_bound(model)
    assert_close(found, constant, rtol=1e-6)
    # The bound is reached, so nothing smaller would be one.
    assert _largest_slope(model, np.random.default_rng(0)) > 0.95 * constant


def _in_float64(model, x):
    """Outputs for an array `(samples, points, values)`, as vectors."""
    network = Network(model, x.shape[-1:], None, "exact")
    y, *_ = network._forward(x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:2], -1)


def _jacobians(model, x):
    """Differences along each axis, divided by their length, in float64."""
    step = 1e-5
    points = x[:, None] + step * np.eye(x.shape[-1])
    y = _in_float64(model, np.concatenate([x[:, None], points], axis=1))
    return (y[:, 1:] - y[:, :1]) / step


def _largest_slope(model, random):
    x = random.standard_normal((200, model.input_shape[-1]))
    return np.max(np.linalg.norm(_jacobians(model, x), 2, axis=(1, 2)))


def _random_function(random):
    """A function of tensors of four values, made of a few operations."""

    def pair(x):
        first, second = halves(x)
        parts = [ops.maximum(first, second), ops.minimum(first, second)]
        scale = random.uniform(0.5, 2.0, 2)
        parts = [float(c) * p for c, p in zip(scale, parts, strict=True)]
        return ops.concatenate(parts[:: random.choice([1, -1])], axis=-1)

    def branches(x):
        first, second = halves(x)
        return ops.concatenate([ops.tanh(2.0 * first), second - first], axis=-1)

    def fold(x):
        u = random.standard_normal((2, 2)).astype("float32")
        c = (2 * u + random.choice([0.0, 0.1])).astype("float32")
        first, second = halves(x)
        t = ops.relu(first * u[0] + second * u[1])
        return ops.concatenate([first - t * c[0], second - t * c[1]], axis=-1)

    def norms(x):
        pairs = ops.reshape(x, (-1, 2, 2))
        root = ops.sqrt(ops.sum(ops.square(pairs), axis=-1) + 1e-3)
        return ops.concatenate([root, x[:, 1:3]], axis=-1)

    steps = [
        pair,
        branches,
        fold,
        norms,
        lambda x: ops.take(x, random.integers(0, 4, 4), axis=-1),
        lambda x: x * random.standard_normal(4).astype("float32"),
        lambda x: ops.relu(x) - ops.relu(-x) * 0.5,
        lambda x: ops.concatenate([ops.relu(x), ops.relu(-x)], -1)[:, 2:6],
        lambda x: x + ops.roll(x, 1, axis=-1),
        lambda x: x - ops.mean(x, axis=-1, keepdims=True),
        lambda x: ops.maximum(x, x * random.uniform(-2, 2)),
        lambda x: ops.maximum(x, ops.flip(x, axis=-1)),
        lambda x: ops.sort(x, axis=-1),
    ]
    chosen = [steps[i] for i in random.integers(0, len(steps), 4)]

    def function(x):
        before = x
        for step in chosen:
            x = step(x)
        return x if random.random() < 0.7 else ops.stack([x, before], axis=-1)

    return function


@pytest.mark.parametrize("seed", range(20))
def test_bounds_of_graphs_of_operations_hold(seed):
    random = np.random.default_rng(seed)
    model = of(_random_function(random))
    found = lipschitz_bound(model)
    assert _largest_slope(model, random) <= found * (1 + 1e-6)
    x = random.standard_normal((50, 2, 4)) * 3
    y = _in_float64(model, x)
    moved = np.linalg.norm(y[:, 0] - y[:, 1], axis=-1)
    assert np.all(moved <= found * np.linalg.norm(x[:, 0] - x[:, 1], axis=-1))


REFUSED = {
    "products": lambda x: x * x,
    "a square": ops.square,
    "a root of sums": lambda x: ops.sqrt(ops.sum(x * 2, axis=-1) + 1.0),
    "a quotient": lambda x: 1.0 / x,
    "samples that are exchanged": lambda x: ops.flip(x, axis=0),
    "samples that are summed": lambda x: x - ops.mean(x, axis=0),
    "samples that are cut": lambda x: ops.reshape(x, (-1, 2)),
    "a constant beside": lambda x: ops.concatenate(
        [x, ops.ones((1, 4))], axis=0
    ),
    "padding with a number": lambda x: ops.pad(
        x, [[0, 0], [1, 1]], constant_values=3.0
    ),
    "a root without squares": lambda x: ops.sqrt(ops.relu(x) + 1.0),
    "a choice": lambda x: ops.where(x > 0, x, 2.0),
    "a constant that repeats": lambda x: x[:, :1] * np.ones(3, "float32"),
    "another norm": lambda x: ops.norm(x, ord=1, axis=-1),
    "whole numbers": lambda x: ops.cast(ops.cast(x, "int32"), "float32"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_operations_without_a_constant_are_refused_by_name(name):
    model = of(REFUSED[name])
    with pytest.raises(ValueError, match=r"[Oo]peration '"):
        lipschitz_bound(model)


def test_the_norm_of_a_tensor_moves_no_more_than_it_does():
    # By its rule alone: Keras cannot run this operation on JAX.
    model = of(lambda x: ops.norm(3.0 * x, axis=-1))
    assert lipschitz_bound(model) == pytest.approx(3.0)


def _of_batch(function, *shape):
    x = keras.Input(batch_shape=shape)
    return keras.Model(x, function(x))


class Square(keras.Operation):
    """Of the user, with a name of Keras."""

    def call(self, x):
        return x**4

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


ODD = {
    "an axis that meets the samples": lambda: _of_batch(
        lambda x: x + ops.reshape(x, (3, 1, 3)), 3, 3
    ),
    "a mean without its axis": lambda: of(
        lambda x: ops.mean(x, axis=-1) + x[:, :1]
    ),
    "a constant that adds an axis": lambda: _of_batch(
        lambda x: x + ops.sum(x * np.ones((1, 1, 1), "float32"), axis=1), 3, 4
    ),
    "samples that are rolled": lambda: of(lambda x: ops.roll(x, 2, axis=0)),
    "samples that are rolled from the end": lambda: of(
        lambda x: ops.roll(x, 2, axis=-2)
    ),
    "an operation of the user": lambda: of(
        lambda x: ops.sqrt(ops.sum(Square()(x), axis=-1))
    ),
    "a mask": lambda: of(
        lambda x: ops.sqrt(
            keras.layers.GlobalAveragePooling1D()(
                ops.square(x), mask=np.array([[True, False, False, False]])
            )
        ),
        4,
        1,
    ),
    "whole numbers beside": lambda: _of_batch(
        lambda x: keras.layers.Conv1D(1, 3)(
            ops.concatenate(
                [np.ones((1, 1, 1), "int32"), x, np.ones((1, 1, 1), "int32")],
                axis=1,
            )
        ),
        1,
        1,
        1,
    ),
    "nothing": lambda: of(lambda x: ops.mean(x[:, :0], axis=-1)),
    "no number": lambda: of(lambda x: ops.leaky_relu(x, np.nan)),
    "an index that is not there": lambda: of(
        lambda x: ops.broadcast_to(x, (5, 4))
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_known_for_each_sample_is_refused(name):
    model = ODD[name]()
    with pytest.raises(ValueError, match="peration"):
        lipschitz_bound(model)


def test_lengths_that_turn_out_to_differ_are_not_taken_for_one():
    x = keras.Input((None, 1))
    y = 100.0 * keras.layers.AveragePooling1D(2)(x)
    model = keras.Model(x, ops.maximum(x, y))
    # One mean of two values, for both places.
    found = lipschitz_bound(model, input_shape=(2, 1))
    assert found >= 100 / ROOT * ROOT * (1 - 1e-6)
    pair = keras.Model(x, [ops.maximum(x, y), ops.minimum(x, y)])
    with pytest.raises(ValueError, match="one shape"):
        lipschitz_bound(pair, input_shape=(2, 1))


def test_models_of_another_rank_are_refused():
    inner = of(lambda x: ops.sum(x, axis=-1, keepdims=True))
    model = of(inner, 4, 1)
    with pytest.raises(ValueError, match="ranks"):
        lipschitz_bound(model)


def test_the_smaller_factor_counts_where_it_is_subtracted():
    k, step = 0.2781, np.float32(0.8343)
    x = keras.Input((1,))
    hidden = keras.layers.Dense(1, activation="relu")
    back = keras.layers.Dense(1, use_bias=False)
    model = keras.Model(x, k * x - back(hidden(x)))
    hidden.set_weights([np.ones((1, 1)), np.zeros(1)])
    back.set_weights([np.full((1, 1), step)])
    assert lipschitz_bound(model) >= float(step) - k


def test_long_graphs_of_parts_are_bounded_in_time():
    def function(x):
        before = x
        for _ in range(60):
            parts = [x[:, :2], before[:, 2:]]
            before, x = x, ops.concatenate(parts, axis=-1) * SCALES
        return x

    assert np.isfinite(lipschitz_bound(of(function)))


def test_a_constant_may_be_given_for_an_operation():
    x = keras.Input((4,))
    y = ops.square(x)
    name = y._keras_history.operation.name
    model = keras.Model(x, 2.0 * y)
    assert lipschitz_bound(model, constants={name: 3.0}) == pytest.approx(6.0)
    # Then no pattern may take it in.
    model = of(lambda x: ops.sqrt(ops.sum(ops.square(x), axis=-1)))
    name = next(o.name for o in model.operations if "square" in o.name)
    with pytest.raises(ValueError, match="Sqrt"):
        lipschitz_bound(model, constants={name: 1.0})


def test_a_part_of_a_pattern_that_others_read_is_not_one():
    def function(x):
        squares = ops.square(x)
        root = ops.sqrt(ops.sum(squares, axis=-1, keepdims=True))
        return ops.concatenate([root, squares], axis=-1)

    with pytest.raises(ValueError, match="Square"):
        lipschitz_bound(of(function))


def test_the_halves_of_a_residual_block_count_by_themselves():
    branch = keras.layers.Rescaling(2.0)
    stock = vanillaModel(
        of(layers.PartialResidual(branch, k_branch=2.0)), stock_only=True
    )
    # Side by side the halves would have the root of five, halved.
    assert lipschitz_bound(stock) == pytest.approx(1.0)


@rows(CONSTRAINED, OTHERS, slow=True)
def test_exports_of_stock_operations_have_the_bound_of_the_layer(row):
    inputs = keras.Input(row.input_shape)
    model = keras.Model(inputs, row.make()(inputs))
    exported = vanillaModel(model, stock_only=True)
    # Rules of layers add up to 2e-6 where they are not sure of a constant.
    assert_close(lipschitz_bound(exported), lipschitz_bound(model), rtol=3e-6)


def _convolutional():
    return Sequential(
        [
            keras.Input((10, 10, 1)),
            layers.SpectralConv2D(8, 3, activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(2),
            layers.SpectralConv2D(
                16, 3, padding_mode="reflect", activation=layers.GroupSort2()
            ),
            layers.ScaledAveragePooling2D(5),
            keras.layers.Flatten(),
            layers.SpectralDense(8, activation=layers.GroupSort2()),
            layers.SpectralDense(3),
        ]
    )


def _residual():
    x = keras.Input((6, 6, 4))
    y = layers.SLLConv2D(6, 3)(x)
    y = layers.PartialResidual(layers.SpectralConv2D(2, 3))(y)
    y = layers.LayerCentering()(y)
    y = layers.Householder()(y)
    y = layers.ScaledL2NormPooling2D(2)(y)
    y = layers.PrescaledResidual(layers.SpectralConv2D(4, 3))(y)
    y = layers.SpectralDense(8, activation=layers.MaxMin())(
        keras.layers.Flatten()(y)
    )
    return Model(x, layers.SpectralDense(3)(y))


@pytest.mark.parametrize("make", [_convolutional, _residual])
@pytest.mark.parametrize("rounding", ["exact", "float32"])
def test_exports_of_stock_operations_have_the_radii_of_the_model(
    make, rounding
):
    model = make()
    x = 3 * normal(20, *model.input_shape[1:])
    exported = vanillaModel(model, stock_only=True)
    expected = certify(model, x, rounding=rounding, verbose=0).radius
    found = certify(exported, x, rounding=rounding, verbose=0).radius
    assert np.mean(expected) > 0.001
    # What float32 rounds is bounded operation by operation there.
    within = 1e-6 if rounding == "exact" else 0.05
    assert_close(found, expected, rtol=within, atol=within * expected.max())
