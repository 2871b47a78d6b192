"""Functions that are monotone in some of their inputs."""

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import built
from harness import normal
from harness import reloaded
from harness import to_numpy
from keras import ops

from deel.lip.activations import Abs
from deel.lip.activations import GroupSort2
from deel.lip.activations import MaxMin
from deel.lip.certification import lipschitz_bound
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import Monotone
from deel.lip.layers import SpectralDense
from deel.lip.model import Sequential

DIRECTIONS = [1, 0, -1, 1]


def _branch(units=1, k_coef_lip=1.0):
    last = FrobeniusDense(units, disjoint_neurons=units == 1)
    hidden = SpectralDense(8, activation=GroupSort2())
    return Sequential([hidden, last], k_coef_lip=k_coef_lip, name="branch")


def _linear(matrix, k_branch):
    """A stock layer with that matrix."""
    rows, columns = np.shape(matrix)
    layer = built(keras.layers.Dense(columns, use_bias=False), rows)
    layer.kernel.assign(matrix)
    return {"layer": layer, "k_branch": k_branch}


def _steps(layer, x, length=0.5):
    """What a step along each input does to the outputs, signs of s included."""
    x = x.astype("float32")
    start = to_numpy(layer(x, training=False)).astype("float64")
    moves = [x + length * row for row in np.eye(x.shape[1], dtype="float32")]
    ends = [to_numpy(layer(x, training=False)) for x in moves]
    signs = zip(DIRECTIONS, ends, strict=True)
    return [sign * (end - start) for sign, end in signs if sign]


@pytest.mark.parametrize("place", [0, 2, 3])
def test_no_branch_within_its_constant_can_turn_a_direction(place):
    # All that the branch may do, against one of the inputs.
    matrix = np.zeros((4, 2))
    matrix[place] = -3.0 * DIRECTIONS[place], 0.0
    layer = Monotone(**_linear(matrix, 3.0), directions=DIRECTIONS)
    for change in _steps(layer, normal(50, 4)):
        assert np.min(change) > 0
    slopes = harness.operator_matrix(layer, (4,))
    signed = np.array(DIRECTIONS)[:, None] * slopes
    smallest, largest = np.min(signed[place]), np.max(signed[place])
    # Nothing but the margin is left of it.
    assert 0 < smallest < 2e-3 * largest


@pytest.mark.parametrize(
    "units", [1, pytest.param(3, marks=pytest.mark.elsewhere)]
)
def test_it_stays_monotone_while_training_pulls_the_other_way(units):
    layer = Monotone(_branch(units, 2.0), DIRECTIONS, k_coef_lip=3.0)
    model = keras.Sequential([keras.Input((4,)), layer])
    x = np.random.default_rng(0).uniform(-1, 1, (256, 4))
    y = np.repeat(-5.0 * (x @ DIRECTIONS)[:, None], units, axis=1)
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=JIT)
    model.fit(x, y, epochs=6, verbose=0)
    for change in _steps(layer, x):
        assert np.min(change) > 0
    assert lipschitz_bound(layer.layer) <= layer.slope
    assert lipschitz_bound(model) <= 3.0 * (1 + 1e-4)


def test_inputs_without_a_direction_may_go_both_ways():
    layer = Monotone(Abs(), DIRECTIONS)
    x = np.array([[0, -1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]], "float32")
    left, middle, right = to_numpy(layer(x))[:, 1]
    assert middle < min(left, right)


@pytest.mark.elsewhere
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("directions", [DIRECTIONS, [0, -1, 0, 0], [0] * 4])
def test_constant_is_reached_and_proven(outputs, directions):
    # A branch that points where the directions do.
    column = np.array(directions, float) if any(directions) else np.ones(4)
    matrix = np.outer(column, np.ones(outputs))
    matrix *= 2.0 / np.linalg.norm(matrix, 2)
    layer = built(
        Monotone(**_linear(matrix, 2.0), directions=directions, k_coef_lip=0.7),
        4,
    )
    assert lipschitz_bound(layer) == pytest.approx(0.7, rel=1e-6)
    assert harness.operator_norm(layer, (4,)) == pytest.approx(0.7, rel=1e-5)


def test_bound_is_that_of_the_weights_inside_and_not_of_their_promise():
    layer = built(Monotone(**_linear(np.eye(4), 0.1), directions=DIRECTIONS), 4)
    norm = harness.operator_norm(layer, (4,))
    assert norm > 2.0
    assert norm <= lipschitz_bound(layer)


def test_constant_of_the_branch_is_followed():
    branch = SpectralDense(1)
    layer = built(Monotone(branch, [1, 1]), 2)
    slope, factor = layer.slope, layer.coef_lip
    assert 1.0 < slope < 1.01
    branch.set_klip_factor(5.0)
    assert layer.slope == pytest.approx(5.0 * slope)
    assert layer.coef_lip == pytest.approx(factor / 5.0)
    # An activation that expands counts as well.
    branch = SpectralDense(1, activation=GroupSort2(k_coef_lip=2.0))
    assert Monotone(branch, [1, 1]).slope == pytest.approx(2.0 * slope)


@pytest.mark.elsewhere
def test_it_is_saved_and_exported_and_takes_its_share_of_a_model(tmp_path):
    model = Sequential(
        [
            keras.Input((4,)),
            Monotone(_branch(2), np.array(DIRECTIONS), name="first"),
            Monotone(_branch(), [1, 1], name="second"),
        ],
        k_coef_lip=4.0,
    )
    assert model.get_layer("first").k_coef_lip == pytest.approx(2.0)
    x = normal(20, 4)
    expected = model.predict(x, verbose=0)
    loaded = reloaded(model, tmp_path)
    assert_close(loaded.predict(x, verbose=0), expected, atol=1e-6)
    assert loaded.get_layer("first").directions == DIRECTIONS
    exported = model.vanilla_export(verify=True)
    assert_close(exported.predict(x, verbose=0), expected, atol=1e-5)
    first = exported.get_layer("first")
    assert type(first.layer) is keras.Sequential
    assert first.slope == pytest.approx(model.get_layer("first").slope)
    # Functions of a monotone function that increase are monotone.
    for change in _steps(reloaded(exported, tmp_path), x):
        assert np.min(change) > 0
    served = model.vanilla_export(stock_only=True, verify=True)
    assert_close(served.predict(x, verbose=0), expected, atol=1e-5)
    model.condense()
    assert_close(model.predict(x, verbose=0), expected, atol=1e-5)


def test_half_precision_is_bounded_as_it_rounds():
    branch = SpectralDense(2, dtype="mixed_bfloat16")
    layer = Monotone(branch, DIRECTIONS, dtype="mixed_bfloat16")
    layer.build((None, 4))
    x = normal(200, 4)
    y = to_numpy(ops.cast(layer(x, training=False), "float32"))
    gaps = np.linalg.norm(x[1:] - x[:-1], axis=1)
    moved = np.linalg.norm(y[1:] - y[:-1], axis=1)
    bound = lipschitz_bound(layer)
    assert 1.0 <= bound <= 1.05
    # Each output is rounded once more, and each input.
    lost = 2**-7 * (np.abs(x).max() * 4 + np.abs(y).max())
    assert np.all(moved <= bound * gaps + lost)


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    "directions",
    [[], [2], [0.5, 1], ["1"], [True, False], "1", 1, None, [[1, 0]], [np.nan]],
)
def test_directions_are_minus_one_zero_or_one(directions):
    with pytest.raises(ValueError, match=r"-1, 0 and 1.*Received: directions="):
        Monotone(SpectralDense(1), directions)


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (SpectralDense(1), (3,), r"a direction for each value.*\(None, 3\)"),
        (SpectralDense(1), (5, 4), r"takes vectors.*\(None, 5, 4\)"),
        (
            Sequential([keras.layers.Reshape((2, 2)), MaxMin()]),
            (4,),
            r"return a vector.*\(None, 2, 4\)",
        ),
    ],
    ids=["length", "rank", "outputs"],
)
def test_only_vectors_have_directions(layer, shape, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        Monotone(layer, DIRECTIONS).build((None, *shape))


@pytest.mark.elsewhere
def test_branches_of_unknown_constant_are_refused():
    with pytest.raises(ValueError, match=r"k_branch=number"):
        Monotone(keras.layers.Dense(1), DIRECTIONS)
    with pytest.raises(ValueError, match="disjoint_neurons=True"):
        Monotone(FrobeniusDense(2), DIRECTIONS)
    # One output by itself is all of them.
    assert built(Monotone(FrobeniusDense(1), [1, 0]), 2).coef_lip < 0.5


@pytest.mark.elsewhere
def test_its_coefficient_is_known_once_it_is_built():
    layer = Monotone(SpectralDense(1), DIRECTIONS)
    assert layer.coef_lip is None
    with pytest.raises(RuntimeError, match="once the layer is built"):
        layer.weights_of_inputs()
