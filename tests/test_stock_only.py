"""Exports that Keras alone can load and run."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import normal
from harness import to_numpy
from keras import ops
from registry import CONSTRAINED
from registry import OTHERS
from registry import rows
from test_every_layer import network

from deel.lip import layers
from deel.lip.certification import lipschitz_bound
from deel.lip.initializers import SpectralInitializer
from deel.lip.losses import MulticlassHKRauto
from deel.lip.model import Model
from deel.lip.model import Sequential
from deel.lip.model import vanillaModel

WITHIN = {"rtol": 1e-5, "atol": 1e-5}

pytestmark = [
    # A layer with a free factor is among them.
    pytest.mark.filterwarnings("ignore:.*not a 1-Lipschitz layer"),
]

# Runs as a process of its own: whoever serves a model need not have this
# library. `numpy.save` holds the samples, and what is expected of them.
SERVE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "deel":
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
import keras, numpy as np

for name in sys.argv[1:]:
    model = keras.saving.load_model(name + ".keras")
    found = model.predict(np.load(name + ".x.npy"), verbose=0)
    np.testing.assert_allclose(
        found, np.load(name + ".y.npy"), rtol=1e-5, atol=1e-5, err_msg=name
    )
assert "deel" not in sys.modules
"""


def _is_of_keras(model):
    parts = [*model._flatten_layers(), *model.operations]
    return {type(part).__module__.split(".")[0] for part in parts} == {"keras"}


def _constants(model):
    """What operations take beside symbolic tensors.

    A tensor of the backend is a number in none of the files: to tf2onnx, it is
    another input of the network.
    """
    for operation in model.operations:
        if isinstance(operation, keras.Model):
            yield from _constants(operation)
        for node in operation._inbound_nodes:
            given = node.arguments.args, node.arguments.kwargs
            for x in keras.tree.flatten(given):
                if not isinstance(x, keras.KerasTensor):
                    yield x


def _around(row):
    inputs = keras.Input(row.input_shape)
    return keras.Model(inputs, row.make()(inputs))


def _write(model, path):
    """Writes the stock model, samples, and the predictions of the model."""
    x = normal(3, *model.input_shape[1:])
    vanillaModel(model, stock_only=True).save(f"{path}.keras")
    np.save(f"{path}.x.npy", x)
    np.save(f"{path}.y.npy", model.predict(x, verbose=0))
    return str(path)


def _serve(paths):
    subprocess.run([sys.executable, "-c", SERVE, *paths], check=True)


@rows(CONSTRAINED, OTHERS, slow=True)
def test_every_layer_has_a_stock_form(row):
    model = _around(row)
    exported = vanillaModel(model, stock_only=True)
    assert _is_of_keras(exported)
    assert not any(map(ops.is_tensor, _constants(exported)))
    assert not any(
        mine is theirs
        for mine in model.variables
        for theirs in exported.variables
    )
    x = normal(3, *row.input_shape)
    expected = model.predict(x, verbose=0)
    assert_close(exported.predict(x, verbose=0), expected, **WITHIN)


@pytest.mark.slow
@pytest.mark.processes
def test_every_layer_is_loaded_without_the_library(tmp_path):
    from registry.row import _can_run

    made = [row for row in [*CONSTRAINED, *OTHERS] if _can_run(row)]
    _serve(
        [_write(_around(row), tmp_path / f"{i}") for i, row in enumerate(made)]
    )


@pytest.mark.processes
def test_a_trained_network_is_served_without_the_library(tmp_path):
    model = network()
    x = normal(10, *model.input_shape[1:])
    y = np.eye(model.output_shape[-1], dtype="float32")[np.arange(10) % 3]
    loss = MulticlassHKRauto(10.0, 0.1, alpha_margin=0.1)
    model.compile("adam", loss, jit_compile=JIT)
    model.fit(x, y, batch_size=5, verbose=0)
    _serve([_write(model, tmp_path / "network")])


def _small():
    return Sequential(
        [
            keras.Input((6,), name="digits"),
            layers.SpectralDense(
                8, activation=layers.GroupSort2(), name="first"
            ),
            layers.SpectralDense(4, name="last"),
        ]
    )


def test_names_and_weights_are_kept():
    model = _small()
    exported = model.vanilla_export(stock_only=True)
    assert type(exported).__name__ == "Functional"
    assert exported.name == model.name
    assert [x.name for x in exported.inputs] == ["digits"]
    names = [layer.name for layer in exported.layers]
    assert [x for x in names if x in ("first", "last")] == ["first", "last"]
    expected = model.vanilla_export().get_layer("last")
    found = exported.get_layer("last")
    assert found.kernel.shape == expected.kernel.shape
    assert found.activation is keras.activations.linear


def test_objects_of_training_are_left_behind():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(
        3,
        kernel_initializer=SpectralInitializer(),
        activation=layers.MaxMin(),
    )(inputs)
    model = keras.Model(inputs, x)
    exported = vanillaModel(model, stock_only=True)
    assert _is_of_keras(exported)
    x = normal(5, 4)
    assert_close(exported(x), to_numpy(model(x)), **WITHIN)


def test_sorts_need_no_gather_between_layers_with_kernels():
    model = Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.SpectralConv2D(4, 3, activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(),
            layers.SpectralConv2D(6, 3),
            keras.layers.Dropout(0.5),
            layers.GroupSort2(k_coef_lip=2.0),
            keras.layers.AveragePooling2D(2),
            keras.layers.Flatten(),
            layers.SpectralDense(8, activation=layers.GroupSort2()),
            layers.FrobeniusDense(3),
        ]
    )
    exported = model.vanilla_export(stock_only=True, verify=2.1)
    kinds = {type(x).__name__ for x in exported.operations}
    assert "Minimum" in kinds
    assert "Take" not in kinds
    x = normal(5, 8, 8, 2)
    expected = model.predict(x, verbose=0)
    assert_close(exported.predict(x, verbose=0), expected, **WITHIN)


def test_joins_and_batch_statistics_need_no_gather():
    x = start = keras.Input((8, 8, 2))
    for _ in range(2):
        x = layers.SpectralConv2D(8, 3, activation=layers.GroupSort2())(x)
        y = layers.SpectralConv2D(8, 3, activation=layers.GroupSort2())(x)
        x = keras.layers.BatchNormalization()(keras.layers.Average()([x, y]))
    x = layers.FrobeniusDense(3)(keras.layers.Flatten()(x))
    model = keras.Model(start, x)
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights(
                [random.uniform(0.5, 1.5, w.shape) for w in layer.weights]
            )
    exported = vanillaModel(model, stock_only=True)
    assert "Take" not in {type(x).__name__ for x in exported.operations}
    x = normal(4, 8, 8, 2)
    expected = model.predict(x, verbose=0)
    found = exported.predict(x, verbose=0)
    assert_close(found, expected, **WITHIN)
    # Channels of another order are put back before they are joined.
    y = layers.SpectralConv2D(8, 3, activation="relu")(start)
    z = layers.SpectralConv2D(8, 3, activation=layers.GroupSort2())(start)
    model = keras.Model(start, keras.layers.Add()([y, z]))
    exported = vanillaModel(model, stock_only=True)
    expected = model.predict(x, verbose=0)
    found = exported.predict(x, verbose=0)
    assert_close(found, expected, **WITHIN)


def test_scales_of_poolings_are_in_the_next_kernel():
    model = Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.SpectralConv2D(4, 3, activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(),
            keras.layers.Conv2D(3, 3, activation="tanh"),
            layers.ScaledAveragePooling2D(k_coef_lip=0.7),
            keras.layers.Flatten(),
            layers.SpectralDense(8),
        ]
    )
    exported = vanillaModel(model, stock_only=True)
    kinds = {type(x).__name__ for x in exported.operations}
    assert not {"Multiply", "Take"} & kinds
    x = normal(5, 8, 8, 2)
    expected = model.predict(x, verbose=0)
    assert_close(exported.predict(x, verbose=0), expected, **WITHIN)
    constant = lipschitz_bound(model)
    assert lipschitz_bound(exported) == pytest.approx(constant, rel=1e-6)


@pytest.mark.elsewhere
def test_scales_stay_for_whoever_reads_them():
    inputs = keras.Input((8, 8, 2))
    pooled = layers.ScaledAveragePooling2D()(inputs)
    again = layers.ScaledAveragePooling2D()(
        keras.layers.ZeroPadding2D()(pooled)
    )
    ends = [pooled, layers.SpectralConv2D(3, 3)(pooled), again]
    ends += [keras.layers.ReLU()(pooled - 1.0), layers.SpectralDense(2)(again)]
    hidden = keras.layers.Dense(4, activation="tanh")(again)
    ends += [layers.GroupSort2()(hidden)]
    model = keras.Model(inputs, ends)
    exported = vanillaModel(model, stock_only=True)
    x = normal(5, 8, 8, 2)
    for found, expected in zip(
        exported.predict(x, verbose=0), model.predict(x, verbose=0), strict=True
    ):
        assert_close(found, expected, **WITHIN)


@pytest.mark.elsewhere
def test_quantized_layers_take_what_they_took():
    inputs = keras.Input((4, 4, 2))
    x = layers.SpectralConv2D(4, 3, activation=layers.GroupSort2())(inputs)
    x = keras.layers.Flatten()(layers.ScaledAveragePooling2D()(x))
    dense = keras.layers.Dense(6)
    model = keras.Model(inputs, layers.GroupSort2()(dense(x)))
    dense.quantize("int8")
    exported = vanillaModel(model, stock_only=True)
    x = normal(5, 4, 4, 2)
    expected = model.predict(x, verbose=0)
    assert_close(exported.predict(x, verbose=0), expected, **WITHIN)


def test_channels_are_as_they_were_where_somebody_reads_them():
    inputs = keras.Input((4, 6))
    hidden = layers.SpectralDense(6, activation=layers.GroupSort2())(inputs)
    dense = layers.SpectralDense(6)
    twice = layers.GroupSort2()(dense(hidden))
    again = layers.GroupSort2()(dense(twice))
    joined = keras.layers.Concatenate()([hidden, again])
    sort = layers.GroupSort2()(keras.layers.LayerNormalization()(joined))
    # Two readers, of which one takes no other order.
    outputs = [hidden, keras.layers.Flatten()(sort), sort + again[..., :1]]
    model = keras.Model(inputs, outputs)
    exported = vanillaModel(model, stock_only=True)
    x = normal(5, 4, 6)
    for found, expected in zip(
        exported.predict(x, verbose=0), model.predict(x, verbose=0), strict=True
    ):
        assert_close(found, expected, **WITHIN)


def test_what_is_shared_stays_shared():
    inputs = [keras.Input((4,)), keras.Input((4,))]
    shared = keras.Sequential(
        [
            layers.SpectralDense(6, activation=layers.GroupSort2()),
            layers.SLLDense(3),
            layers.LipschitzPReLU(),
        ]
    )
    one_by_one = [layers.SLLDense(5), layers.LipschitzPReLU(), shared]
    ends = inputs
    for layer in one_by_one:
        ends = [layer(x) for x in ends]
    joined = keras.layers.Concatenate()(ends)
    model = Model(inputs=inputs, outputs=layers.SpectralDense(2)(joined))
    exported = model.vanilla_export(stock_only=True)
    # Each of the two residual blocks has its kernel once for each direction.
    further = 4 * 5 + 6 * 3
    expected = model.vanilla_export().count_params() + further
    assert exported.count_params() == expected
    x = [normal(5, 4), normal(5, 4, seed=1)]
    assert_close(
        exported.predict(x, verbose=0), model.predict(x, verbose=0), **WITHIN
    )


def test_activations_inside_of_cells_stay_inside():
    inputs = keras.Input((5, 3))
    slope = keras.layers.LeakyReLU(0.3)
    x = keras.layers.SimpleRNN(4, activation=slope)(inputs)
    model = keras.Model(inputs, layers.GroupSort2()(x))
    exported = vanillaModel(model, stock_only=True)
    x = normal(6, 5, 3)
    expected = model.predict(x, verbose=0)
    assert_close(exported.predict(x, verbose=0), expected, **WITHIN)


def test_layers_of_images_are_shared():
    padded = layers.SpectralConv2D(2, 3, padding_mode="circular")
    around = layers.PrescaledResidual(
        layers.SpectralConv2D(2, 3, padding_mode="circular")
    )
    pools = [
        layers.ScaledAveragePooling2D(),
        layers.ScaledL2NormPooling2D(),
        layers.ScaledGlobalAveragePooling2D(),
    ]
    inputs = keras.Input((8, 8, 2))
    ends = [inputs, inputs + 1.0]
    for layer in [padded, around, *pools]:
        ends = [layer(x) for x in ends]
    model = keras.Model(inputs, keras.layers.Concatenate()(ends))
    exported = vanillaModel(model, stock_only=True)
    x = normal(3, 8, 8, 2)
    expected = model.predict(x, verbose=0)
    assert_close(exported.predict(x, verbose=0), expected, **WITHIN)


def test_initializers_deep_inside_are_left_behind():
    drawn = SpectralInitializer()
    inputs = keras.Input((5, 3))
    x = keras.layers.TimeDistributed(
        keras.layers.Dense(4, kernel_initializer=drawn)
    )(inputs)
    cell = keras.layers.LSTMCell(4, kernel_initializer=drawn)
    x = keras.layers.RNN(cell)(x)
    model = keras.Model(inputs, x)
    exported = vanillaModel(model, stock_only=True)
    assert "deel" not in exported.to_json()
    x = normal(6, 5, 3)
    expected = model.predict(x, verbose=0)
    assert_close(exported.predict(x, verbose=0), expected, **WITHIN)


def test_names_inside_of_blocks_may_be_those_of_others():
    inputs = x = keras.Input((4,))
    for _ in range(2):
        branch = [
            layers.SpectralDense(6, activation=layers.GroupSort2(), name="a"),
            layers.SpectralDense(4, name="b"),
        ]
        x = layers.PrescaledResidual(Sequential(branch, name="branch"))(x)
    x = layers.PrescaledResidual(layers.SpectralDense(4, name="head"))(x)
    x = keras.layers.Dense(4, name="head")(x)
    # As in a file of another process, whose operations count anew.
    x = keras.layers.Multiply(name="multiply")([x, x])
    model = keras.Model(inputs, keras.layers.Add(name="add")([x, inputs]))
    exported = vanillaModel(model, stock_only=True)
    for name in ("head", "multiply", "add"):
        assert isinstance(exported.get_layer(name), keras.layers.Layer)
    kernel = to_numpy(exported.get_layer("head").kernel)
    assert_close(kernel, to_numpy(model.get_layer("head").kernel), **WITHIN)
    x = normal(6, 4)
    expected = model.predict(x, verbose=0)
    assert_close(exported.predict(x, verbose=0), expected, **WITHIN)


@pytest.mark.parametrize("activation", [layers.Householder, keras.layers.PReLU])
def test_activations_are_exported_before_they_see_data(activation):
    inputs = keras.Input((8, 8, 2))
    layer = keras.layers.Conv2D(6, 3, activation=activation())
    model = keras.Model(inputs, layer(inputs))
    exported = vanillaModel(model, stock_only=True)
    x = normal(3, 8, 8, 2)
    expected = model.predict(x, verbose=0)
    assert_close(exported.predict(x, verbose=0), expected, **WITHIN)


def test_models_and_wrappers_inside_are_converted():
    inner = Sequential(
        [layers.SpectralDense(4), layers.Householder()], name="inner"
    )
    inputs = keras.Input((5, 4))
    x = keras.layers.TimeDistributed(inner, name="steps")(inputs)
    x = keras.layers.TimeDistributed(layers.GroupSort2(), name="sorts")(x)
    x = keras.layers.TimeDistributed(keras.layers.Dense(2), name="ends")(x)
    model = keras.Model(inputs, x + 1.0)
    exported = vanillaModel(model, stock_only=True)
    assert _is_of_keras(exported)
    assert exported.get_layer("steps").layer.name == "inner"
    x = normal(3, 5, 4)
    assert_close(
        exported.predict(x, verbose=0), model.predict(x, verbose=0), **WITHIN
    )


@keras.saving.register_keras_serializable("tests")
class Mine(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def mine(x):
    return x


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Mine(name="my_layer"), "'my_layer' of type Mine"),
        (keras.layers.Dense(2, activation=mine, name="tail"), "mine .*'tail'"),
        (keras.layers.Lambda(mine, name="body"), "safe mode.*'body'"),
        (keras.layers.Masking(name="hole"), "take no mask.*'hole'"),
        (
            keras.layers.LSTM(4, activation=layers.GroupSort2(), name="cells"),
            "GroupSort2 in layer 'cells'",
        ),
        (
            keras.layers.Bidirectional(
                keras.layers.LSTM(4, recurrent_activation=layers.Abs())
            ),
            "Abs in layer 'bidirectional",
        ),
    ],
    ids=["layer", "function", "lambda", "mask", "inside", "deep_inside"],
)
def test_what_keras_could_not_load_is_refused_by_name(layer, message):
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, layers.GroupSort2()(layer(inputs)))
    with pytest.raises(ValueError, match=message):
        vanillaModel(model, stock_only=True)


def test_half_precision_is_kept():
    keras.config.set_dtype_policy("mixed_bfloat16")
    inputs = keras.Input((8, 8, 2))
    x = layers.SpectralConv2D(4, 3, activation=layers.GroupSort2())(inputs)
    x = layers.ScaledL2NormPooling2D()(x)
    x = layers.LayerCentering()(x)
    model = Model(inputs=inputs, outputs=layers.Householder()(x))
    exported = model.vanilla_export(stock_only=True)
    x = normal(3, 8, 8, 2)
    found, expected = (
        to_numpy(keras.ops.cast(m(x, training=False), "float32"))
        for m in (exported, model)
    )
    assert_close(found, expected, rtol=2e-2, atol=2e-2)
