"""Bounds and certificates of recurrent layers, ours and those of Keras."""

import functools
import itertools
import math

import keras
import numpy as np
import pytest
import sequences64
from harness import built
from harness import normal
from harness import to_numpy
from small_networks import stack

from deel.lip import layers
from deel.lip.certification import attack_distances
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.certification._registry import layer_bound
from deel.lip.certification._rounding import FLOAT32
from deel.lip.certification._walk import Context
from deel.lip.certification._walk import Walk
from deel.lip.model import Sequential

KINDS = [(m, s) for m in ("forgetting", "lasting") for s in (False, True)]


def simple(kernel, recurrent, bias=None, activation="linear", **arguments):
    """A stock layer with these weights, the same one for the same shapes."""
    layer = _simple(*kernel.shape, bias is not None, activation, **arguments)
    layer.set_weights([kernel, recurrent] + [bias] * (bias is not None))
    return layer


@functools.cache
def _simple(channels, units, use_bias, activation, **arguments):
    layer = keras.layers.SimpleRNN(
        units, activation=activation, use_bias=use_bias, **arguments
    )
    layer.build((None, None, channels))
    return layer


def random_weights(rng):
    """Kernels of any norms, of full rank or of one, and a bias."""
    channels, units = rng.integers(1, 5, 2)
    kernel = rng.normal(size=(channels, units)) * 10 ** rng.uniform(-2, 1)
    recurrent = rng.normal(size=(units, units))
    kind = rng.integers(4)
    if kind == 0:
        recurrent = np.outer(recurrent[0], recurrent[0])
    if kind == 1:
        recurrent = np.linalg.qr(recurrent)[0]
    if kind == 2:
        joint = np.linalg.qr(rng.normal(size=(channels + units, units)))[0]
        kernel, recurrent = joint[:channels], joint[channels:]
    recurrent = recurrent * rng.choice(
        [1.0, 1.0, 0.9, 10 ** rng.uniform(-2, 0)]
    )
    weights = kernel, recurrent, rng.normal(size=units)
    return tuple(w.astype("float32") for w in weights)


@pytest.mark.elsewhere
def test_no_random_network_expands_by_more_than_its_bound():
    rng = np.random.default_rng(0)
    ratios = []
    for index in range(400):
        weights = random_weights(rng)
        steps, sequences = int(rng.integers(1, 10)), bool(index % 2)
        activation = ["linear", "relu", "tanh"][index % 3]
        layer = simple(*weights, activation, return_sequences=sequences)
        shape = steps, len(weights[0])
        bound = lipschitz_bound(layer, input_shape=shape)
        found = max(
            sequences64.expansion(
                weights,
                scale * rng.normal(size=shape),
                sequences,
                activation=activation,
            )
            for scale in (0.1, 1.0)
        )
        assert found <= bound, (index, weights, shape)
        ratios.append(found / bound)
    # Nearly reached by some, and not far off for most linear ones.
    assert max(ratios) > 1 - 1e-6
    assert np.median(ratios[::3]) > 0.6


@pytest.mark.elsewhere
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.2])
def test_bound_of_a_number_that_is_multiplied_is_reached(factor, sequences):
    kernel, recurrent = np.full((2, 1, 1), factor, "float32")
    layer = simple(kernel, recurrent, return_sequences=sequences)
    for steps in (1, 2, 10, 300):
        x = np.zeros((steps, 1))
        found = sequences64.expansion((kernel, recurrent, None), x, sequences)
        bound = lipschitz_bound(layer, input_shape=(steps, 1))
        # Matrices of more rows than that are bounded by a formula.
        slack = 2.0 if sequences and steps > 256 else 1 + 1e-6
        assert found <= bound <= slack * found


@pytest.mark.elsewhere
@pytest.mark.parametrize(("memory", "sequences"), KINDS)
def test_layer_of_this_library_has_the_constant_that_it_promises(
    memory, sequences
):
    layer = layers.OrthogonalRNN(
        5, memory=memory, return_sequences=sequences, k_coef_lip=3.0
    )
    for source in (built(layer, 30, 4), layer.vanilla_export()):
        bound = lipschitz_bound(source, input_shape=(30, 4))
        assert bound == pytest.approx(3.0, rel=1e-3)
    # What the kernels leave room for covers all that is rounded.
    assert lipschitz_bound(layer) <= 3.0


@pytest.mark.elsewhere
def test_kernels_of_any_size_are_bounded():
    rng = np.random.default_rng(0)
    sizes = 0.0, 1e-30, 1.0, 1e15, 1e38
    for first, second in itertools.product(sizes, sizes):
        kernel, recurrent = rng.uniform(size=(2, 3, 3)).astype("float32")
        weights = first * kernel, second * recurrent, None
        layer = simple(*weights[:2], return_sequences=True)
        bound = lipschitz_bound(layer, input_shape=(3, 3))
        assert sequences64.expansion(weights, np.zeros((3, 3)), True) <= bound
        assert np.isfinite(bound)


@pytest.mark.elsewhere
def test_any_number_of_steps_is_bounded_where_states_fade():
    layer = layers.OrthogonalRNN(5, k_coef_lip=2.0)
    layer.build((None, None, 4))
    assert lipschitz_bound(layer) <= 2.0
    kernel, half = np.ones((2, 1, 1), "float32") * [[[1.0]], [[0.5]]]
    layer = simple(kernel, half, return_sequences=True)
    assert lipschitz_bound(layer) == pytest.approx(2.0, rel=1e-6)
    layer = simple(kernel, 2 * half)
    with pytest.raises(ValueError, match="how many there are is not known"):
        lipschitz_bound(layer)
    assert lipschitz_bound(layer, input_shape=(9, 1)) == pytest.approx(3.0)
    layer = simple(kernel, 20 * half)
    with pytest.raises(ValueError, match="after 9999 steps is too large"):
        lipschitz_bound(layer, input_shape=(9999, 1))


def test_activation_counts_at_each_step():
    ones = np.ones((1, 1), "float32")
    bound = lipschitz_bound(
        simple(ones, ones, None, "selu"), input_shape=(3, 1)
    )
    expected = math.sqrt(sum(1.7581 ** (2 * t) for t in (1, 2, 3)))
    assert bound == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("concat", 2**0.5),
        pytest.param("sum", 2.0, marks=pytest.mark.elsewhere),
        pytest.param("ave", 1.0, marks=pytest.mark.elsewhere),
    ],
)
def test_both_directions_take_the_same_sequence(mode, expected):
    both = keras.layers.Bidirectional(layers.OrthogonalRNN(4), mode)
    model = stack(both, shape=(7, 3))
    assert lipschitz_bound(model) == pytest.approx(expected, rel=1e-4)
    assert lipschitz_bound(model) <= expected
    x = normal(4, 7, 3)
    certify(model, x, rounding="float32")


@pytest.mark.elsewhere
@pytest.mark.parametrize("mode", ["mul", None])
def test_directions_that_are_multiplied_or_returned_are_refused(mode):
    both = keras.layers.Bidirectional(layers.OrthogonalRNN(4), mode)
    both.build((None, 7, 3))
    with pytest.raises(ValueError, match=f"merge_mode={mode}"):
        lipschitz_bound(both, input_shape=(7, 3))


@pytest.mark.elsewhere
def test_last_state_counts_beside_the_states():
    inputs = keras.Input((4, 3))
    layer = layers.OrthogonalRNN(
        2, memory="lasting", return_sequences=True, return_state=True
    )
    states, state = layer(inputs)
    tripled = keras.layers.Rescaling(3.0)(state)
    joined = [keras.layers.Flatten()(states), tripled]
    joined = keras.layers.Concatenate()(joined)
    last = 2 * layer.coef_lip
    for outputs, expected in (
        (states, 1.0),
        (state, last),
        (joined, math.hypot(1.0, 3 * last)),
    ):
        bound = lipschitz_bound(keras.Model(inputs, outputs))
        assert bound == pytest.approx(expected, rel=1e-3)


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (keras.layers.LSTM(4), "multiplies its gates.*`OrthogonalRNN`"),
        (keras.layers.GRU(4), "multiplies its gates.*`OrthogonalRNN`"),
        (keras.layers.RNN(keras.layers.LSTMCell(4)), "LSTMCell"),
        (
            keras.layers.RNN([keras.layers.SimpleRNNCell(4)] * 2),
            "StackedRNNCells",
        ),
        (keras.layers.Bidirectional(keras.layers.LSTM(4)), "multiplies its"),
    ],
)
def test_cells_without_a_constant_are_refused_by_name(layer, message):
    model = stack(layer, shape=(5, 3))
    with pytest.raises(ValueError, match=message):
        lipschitz_bound(model)


@pytest.mark.elsewhere
def test_mask_of_the_values_is_refused():
    # Two sequences that hardly differ, of which one loses a step.
    hole = keras.layers.Masking(name="hole")
    model = stack(hole, layers.OrthogonalRNN(4), shape=(5, 3))
    x = np.ones((1, 5, 3), "float32")
    z = np.copy(x)
    x[:, 2] = 1e-6
    z[:, 2] = 0.0
    apart = model.predict(x, verbose=0) - model.predict(z, verbose=0)
    assert np.linalg.norm(apart) > 10 * np.linalg.norm(x - z)
    with pytest.raises(ValueError, match=r"'hole' of type Masking.*jumps"):
        lipschitz_bound(model)
    with pytest.raises(ValueError, match="may make one"):
        lipschitz_bound(model, constants={"hole": 1.0})


def test_state_from_elsewhere_is_refused():
    inputs, state = keras.Input((5, 3)), keras.Input((4,))
    outputs = layers.OrthogonalRNN(4)(inputs, initial_state=state)
    model = keras.Model([inputs, state], outputs)
    with pytest.raises(ValueError, match="with their input alone"):
        lipschitz_bound(model)
    stateful = layers.OrthogonalRNN(4, stateful=True)
    stateful.build((2, 5, 3))
    with pytest.raises(ValueError, match="stateful=True"):
        lipschitz_bound(stateful, input_shape=(5, 3))


def rounding_of(layer, shape):
    shapes = [(None, *shape)]
    context = Context(Walk(), "")
    return layer_bound(layer, shapes, context).rounding(FLOAT32)


@pytest.mark.elsewhere
@pytest.mark.parametrize("sequences", [False, True])
def test_float32_is_wrong_by_no_more_than_is_proven(sequences):
    rng = np.random.default_rng(1)
    shares = []
    for index in range(60):
        steps, activation = (
            int(rng.integers(1, 40)),
            ["linear", "relu"][index % 2],
        )
        kernel, recurrent, _ = weights = random_weights(rng)
        if index % 3 == 0:
            # All of one sign: errors add up.
            weights = tuple(map(np.abs, weights))
        if np.linalg.norm(recurrent, 2) > 1.5:
            continue
        layer = simple(*weights, activation, return_sequences=sequences)
        x = rng.normal(size=(8, steps, len(kernel))) * 10 ** rng.uniform(-3, 3)
        x = (np.abs(x) if index % 3 == 0 else x).astype("float32")
        known = rounding_of(layer, x.shape[1:])
        for found, sample in zip(to_numpy(layer(x)), x, strict=True):
            states, _ = sequences64.states_and_jacobian(
                weights, sample, activation
            )
            states = states if sequences else states[-1]
            size = np.linalg.norm(sample.astype("float64"))
            claimed = known.relative * size + known.absolute
            error = np.linalg.norm(found - states)
            assert error <= claimed
            assert size <= known.reach
            shares.append(error / claimed)
    # The worst case is no guess, and not out of all proportion.
    assert max(shares) > 1e-2


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"memory": "lasting", "return_sequences": True, "unroll": True},
    ],
)
def test_no_attack_is_within_a_certificate(arguments):
    keras.utils.set_random_seed(0)
    model = stack(
        layers.OrthogonalRNN(8, activation=layers.GroupSort2(), **arguments),
        keras.layers.Flatten(),
        layers.FrobeniusDense(3),
        shape=(6, 2),
        container=Sequential,
    )
    x = normal(12, 6, 2)
    y = np.argmax(model.predict(x, verbose=0), axis=-1)
    for network in (model, model.vanilla_export()):
        certificates = certify(network, x, y, rounding="float32")
        assert certificates.accuracy == 1.0
        assert np.all(certificates.radius > 0)
        radii = [certificates.radius, 8 * certificates.radius]
        found = attack_distances(network, x, y, radii, steps=10, restarts=1)
        assert np.all(found >= certificates.radius)
    # The search does find something, further out.
    assert np.any(np.isfinite(found))
