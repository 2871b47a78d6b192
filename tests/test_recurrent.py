"""A recurrent layer: no sequence moves its states by more than it promises."""

import inspect

import harness
import keras
import numpy as np
import pytest
import sequences64
from harness import JIT
from harness import assert_close
from harness import assert_equal
from harness import built
from harness import normal
from harness import reloaded
from harness import to_numpy
from keras import ops
from small_networks import stack

from deel.lip import layers
from deel.lip.model import Model
from deel.lip.model import Sequential

KINDS = [
    (memory, sequences)
    for memory in ("forgetting", "lasting")
    for sequences in (False, True)
]
kinds = pytest.mark.parametrize(("memory", "sequences"), KINDS)


def layer_of(memory, sequences=False, units=4, **arguments):
    return layers.OrthogonalRNN(
        units, memory=memory, return_sequences=sequences, **arguments
    )


def kernels_of(layer):
    bias = None if layer.bias is None else to_numpy(layer.bias)
    return *layer.used_kernels(), bias


def expansion(layer, x, **arguments):
    sequences = layer.return_sequences
    return sequences64.expansion(kernels_of(layer), x, sequences, **arguments)


@kinds
@pytest.mark.parametrize(
    "activation", ["linear", pytest.param("relu", marks=pytest.mark.slow)]
)
def test_bound_holds_while_training_at_any_learning_rate(
    memory, sequences, activation
):
    layer = layer_of(memory, sequences, activation=activation, k_coef_lip=2.0)
    model = stack(layer, shape=(9, 3), container=Sequential, k_coef_lip=2.0)
    # Pulls all states as far up as it can.
    model.compile("adam", lambda _, y: -ops.mean(ops.square(y)))
    x = normal(32, 9, 3)
    for learning_rate in (1e-2, 1.0, 100.0):
        model.optimizer.learning_rate = learning_rate
        model.fit(x, np.zeros((32, 1)), batch_size=8, verbose=0)
        # Not by any rounding either; see `SLACK` in the note of the layer.
        for sample in x[:3]:
            assert expansion(layer, sample, activation=activation) <= 2.0
    # And what training uses is what inference does.
    for dense in layer.cell.maps:
        harness.assert_current(dense)


@kinds
def test_bound_holds_for_hostile_kernels(memory, sequences):
    layer = built(layer_of(memory, sequences, k_coef_lip=0.5), 40, 3)
    x = np.zeros((40, 3))
    dense = layer.cell.maps[-1]
    kernels = harness.hostile_matrices(tuple(dense.kernel.shape), 15)
    for kind, kernel in kernels:
        dense.kernel.assign(kernel)
        dense.wbar.refresh(dense.kernel)
        assert expansion(layer, x) <= 0.5, kind
        layer.condense()
        assert expansion(layer, x) <= 0.5, kind


@pytest.mark.elsewhere
@pytest.mark.parametrize("steps", [1, 2, 7, 60])
def test_bounds_are_reached(steps):
    # One unit that copies its input, and one that adds up all of them.
    x = np.zeros((steps, 1))
    last = built(layer_of("forgetting", units=1, use_bias=False), steps, 1)
    last.cell.maps[0].kernel.assign([[1.0], [0.0]])
    last.condense()
    assert expansion(last, x) == pytest.approx(1.0, rel=2e-5)
    for sequences in (False, True):
        layer = built(
            layer_of("lasting", sequences, units=1, k_coef_lip=3.0), steps, 1
        )
        for dense in layer.cell.maps:
            dense.kernel.assign([[1.0]])
        layer.condense()
        # The margin of the kernels counts once for each step.
        assert expansion(layer, x) == pytest.approx(3.0, rel=2e-5 * steps)


def test_states_that_never_fade_add_up_over_the_steps():
    # Half of the constant of the whole, with a state that keeps what it has.
    layer = built(layer_of("forgetting", True, units=2), 400, 1)
    kernel = [[np.sin(0.05), 0.0], [np.cos(0.05), 0.0], [0.0, 1.0]]
    layer.cell.maps[0].kernel.assign(kernel)
    layer.condense()
    assert 0.5 < expansion(layer, np.zeros((400, 1))) <= 1.0


@kinds
@pytest.mark.parametrize(
    "activation",
    ["tanh", pytest.param(layers.GroupSort2, marks=pytest.mark.elsewhere)],
)
def test_export_is_a_simple_rnn_with_the_same_output(
    memory, sequences, activation, tmp_path
):
    made = activation if isinstance(activation, str) else activation()
    layer = layer_of(memory, sequences, activation=made, k_coef_lip=3.0)
    model = stack(layer, shape=(6, 3), container=Sequential, k_coef_lip=3.0)
    layer.bias.assign(normal(4))
    x = normal(5, 6, 3)
    expected = to_numpy(layer(x, training=False))
    exported = layer.vanilla_export()
    assert type(exported) is keras.layers.SimpleRNN
    assert exported.name == layer.name
    assert exported.count_params() == 3 * 4 + 4 * 4 + 4
    assert_close(exported(x), expected, atol=1e-6)
    stock = reloaded(model.vanilla_export(), tmp_path)
    assert_close(stock.predict(x, verbose=0), expected, atol=1e-6)
    assert_close(
        reloaded(model, tmp_path).predict(x, verbose=0), expected, atol=1e-6
    )
    if activation == "tanh":
        kernels = kernels_of(layer)
        states, _ = sequences64.states_and_jacobian(kernels, x[0], "tanh")
        expected = expected[0] if sequences else expected[:1]
        assert_close(states if sequences else states[-1:], expected, atol=1e-5)


def test_export_has_the_weights_of_the_activation():
    activation = layers.Householder()
    layer = built(layer_of("forgetting", activation=activation), 5, 3)
    activation.theta.assign([0.3, 2.0])
    x = normal(2, 5, 3)
    exported = layer.vanilla_export()
    assert_close(exported(x), layer(x, training=False), atol=1e-6)
    assert exported.activation is not activation


@kinds
def test_masked_steps_keep_the_state(memory, sequences):
    layer = layer_of(memory, sequences, activation="relu", k_coef_lip=1.0)
    layer = built(layer, 8, 3)
    layer.bias.assign(normal(4))
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, mask = rng.normal(size=(8, 3)), rng.uniform(size=8) < 0.6
        mask[0] = True
        states, _ = sequences64.states_and_jacobian(
            kernels_of(layer), x, "relu", mask
        )
        found = to_numpy(layer(x[None].astype("float32"), mask=mask[None]))
        expected = states if sequences else states[-1]
        assert_close(found[0], expected, atol=1e-5)
        assert expansion(layer, x, activation="relu", mask=mask) <= 1.0


def test_parts_of_a_sequence_are_the_whole_with_a_state():
    x = normal(2, 10, 3)
    layer = layers.OrthogonalRNN(4, return_state=True)
    expected, state = layer(x)
    assert_equal(state, expected)
    _, state = layer(x[:, :6])
    found, _ = layer(x[:, 6:], initial_state=[state])
    assert_close(found, expected, atol=1e-6)
    stateful = layers.OrthogonalRNN(4, stateful=True)
    stateful.build((2, 6, 3))
    stateful.cell.set_weights(layer.cell.get_weights())
    stateful(x[:, :6], training=False)
    assert_close(stateful(x[:, 6:], training=False), expected, atol=1e-6)
    stateful.reset_state()
    assert_close(stateful(x[:, :6], training=False), to_numpy(state), atol=1e-6)


def test_loops_of_all_kinds_train_the_same_network():
    x, y = normal(16, 5, 3), normal(16, 2, seed=1)
    kinds = [(False, JIT), (True, JIT)]
    if keras.backend.backend() == "tensorflow":
        kinds.append((False, True))
    found = []
    for unroll, jit_compile in kinds:
        keras.utils.set_random_seed(0)
        model = stack(
            layers.OrthogonalRNN(4, unroll=unroll, kernel_initializer="ones"),
            layers.FrobeniusDense(2, kernel_initializer="ones"),
            shape=(5, 3),
            container=Sequential,
        )
        model.compile("sgd", "mse", jit_compile=jit_compile)
        losses = model.fit(x, y, epochs=3, verbose=0).history["loss"]
        assert losses[-1] < losses[0]
        found.append(model.predict(x, verbose=0))
    for other in found[1:]:
        assert_close(other, found[0], atol=1e-5)


def test_both_directions_are_condensed_and_trained():
    both = keras.layers.Bidirectional(layers.OrthogonalRNN(4), "ave")
    model = stack(both, shape=(5, 3), container=Sequential)
    model.compile("sgd", "mse")
    model.fit(normal(8, 5, 3), np.zeros((8, 4)), verbose=0)
    denses = [*both.forward_layer.cell.maps, *both.backward_layer.cell.maps]
    for dense in denses:
        dense.kernel.assign(np.ones(dense.kernel.shape))
    model.condense()
    for dense in denses:
        assert_equal(dense.kernel, dense.wbar)


def test_both_directions_are_exported(tmp_path):
    sort = layers.GroupSort2()
    forward = layers.OrthogonalRNN(4, activation=sort, return_sequences=True)
    # One of both may be any other one.
    backward = keras.layers.GRU(4, return_sequences=True, go_backwards=True)
    inputs = keras.Input((5, 3))
    outputs = [
        keras.layers.Bidirectional(forward)(inputs),
        keras.layers.Bidirectional(forward, backward_layer=backward)(inputs),
    ]
    model = Model(inputs, outputs)
    x = normal(2, 5, 3)
    exported = reloaded(model.vanilla_export(), tmp_path)
    for layer in exported.layers[1:]:
        assert type(layer.forward_layer) is keras.layers.SimpleRNN
    expected = model.predict(x, verbose=0)
    for one, other in zip(
        exported.predict(x, verbose=0), expected, strict=True
    ):
        assert_close(one, other, atol=1e-6)


@pytest.mark.elsewhere
def test_keras_alone_takes_functions_as_activations():
    for activation, is_stock in (("tanh", True), (layers.GroupSort2(), False)):
        layer = layers.OrthogonalRNN(4, activation=activation)
        model = stack(layer, shape=(5, 3), container=Sequential)
        if is_stock:
            exported = model.vanilla_export(stock_only=True)
            x = normal(2, 5, 3)
            assert_close(exported(x), model(x, training=False), atol=1e-6)
        else:
            with pytest.raises(ValueError, match="GroupSort2 in layer"):
                model.vanilla_export(stock_only=True)


def test_models_share_out_their_constant_to_it():
    layer = layer_of("forgetting", activation=layers.GroupSort2())
    model = stack(
        layer, layers.SpectralDense(2), shape=(5, 3), container=Sequential
    )
    x = normal(2, 5, 3)
    before = to_numpy(layer(x, training=False))
    model.set_klip_factor(9.0)
    assert layer.k_coef_lip == 3.0
    # The scale is on the input alone; without bias all states follow.
    after = to_numpy(layer(x, training=False))
    assert_close(after, 3 * before, rtol=1e-5, atol=1e-6)


@pytest.mark.elsewhere
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
def test_half_precision_keeps_states_in_float32(policy):
    layer = layers.OrthogonalRNN(
        4, activation=layers.GroupSort2(dtype=policy), dtype=policy
    )
    x = normal(3, 200, 2)
    found = layer(x, training=False)
    assert keras.backend.standardize_dtype(found.dtype) == policy[-8:].strip(
        "_"
    )
    assert {weight.dtype for weight in layer.weights} == {"float32"}
    exported = layer.vanilla_export()
    assert_close(ops.cast(found, "float32"), exported(x), atol=1e-2)
    assert expansion(layer, np.zeros((200, 2))) <= 1.0


@pytest.mark.elsewhere
def test_arguments_are_those_of_simple_rnn_in_the_same_order():
    def names(layer):
        return list(inspect.signature(layer.__init__).parameters)[:21]

    assert names(layers.OrthogonalRNN) == names(keras.layers.SimpleRNN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "selu"}, "power of their number.*selu.*1.758"),
        ({"activation": abs}, "known constant"),
        ({"activation": layers.GroupSort2(k_coef_lip=2.0)}, "constant=2.0"),
        ({"activation": layers.GroupSort2}, "in place of the class"),
        ({"memory": "long"}, "Received: memory='long'"),
        ({"dropout": 0.1}, "Received: dropout=0.1"),
        ({"units": 0}, "Received: units=0"),
        ({"k_coef_lip": 0.0}, "Received: k_coef_lip=0.0"),
        ({"recurrent_initializer": "ones"}, "recurrent_initializer=ones"),
    ],
)
def test_arguments_that_break_the_constant_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        layers.OrthogonalRNN(**{"units": 4, **arguments})


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (layers.MaxMin(), "keep the shape"),
        (layers.BatchCentering(), "no state of its own"),
    ],
)
def test_layers_that_a_loop_cannot_take_are_refused(activation, message):
    layer = layers.OrthogonalRNN(4, activation=activation)
    with pytest.raises(ValueError, match=message):
        layer.build((None, 5, 3))


def test_activation_that_is_given_a_larger_constant_is_refused():
    activation = layers.GroupSort2()
    layer = built(layers.OrthogonalRNN(4, activation=activation), 5, 3)
    activation.set_klip_factor(2.0)
    with pytest.raises(ValueError, match=r"constant=2\.0"):
        layer(normal(1, 5, 3))


@kinds
def test_number_of_steps_is_known_where_it_counts(memory, sequences):
    layer = layer_of(memory, sequences)
    if memory == "forgetting" and not sequences:
        assert layer.build((None, None, 3)) is None
        return
    with pytest.raises(ValueError, match="depends on the number of steps"):
        layer.build((None, None, 3))
    layer = built(layer_of(memory, sequences), 5, 3)
    with pytest.raises(ValueError, match="axis 1"):
        layer(normal(1, 6, 3))


@pytest.mark.parametrize("stacked", [False, True])
def test_cell_by_itself_is_refused(stacked):
    cell = layers.OrthogonalRNN(4).cell
    if stacked:
        cell = keras.layers.StackedRNNCells([cell])
    with pytest.raises(ValueError, match="Expected `OrthogonalRNN`"):
        keras.layers.RNN(cell)(normal(1, 5, 3))
