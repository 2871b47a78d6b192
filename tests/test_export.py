"""Files for serving, written and read by programs that are not Keras."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_all_equal
from harness import assert_close
from harness import normal
from harness import to_numpy
from test_every_layer import network

from deel.lip import layers
from deel.lip.export._formats import FORMATS
from deel.lip.losses import MulticlassHKRauto
from deel.lip.model import Model
from deel.lip.model import Sequential
from deel.lip.model import vanillaModel

BACKEND = keras.backend.backend()
# Scores are of the size of ten, so in relative terms, too.
WITHIN = {"rtol": 1e-5, "atol": 1e-5}

# What a format cannot take is the same for stock Keras; see doc/guide.
# On TensorFlow, Keras compiles grouped convolutions with XLA on the CPU, which
# tf2onnx cannot read, nor OpenVINO dilated ones. Pooling of three axes is not
# among the operations of LiteRT itself. On PyTorch, Keras orders the
# memory of kernels of three axes in a way that ONNX has no word for, and
# jax2onnx does not know such kernels.
LIMITS = {"groups": 1, "solid": False}
LIMITED = {
    ("tensorflow", "onnx"),
    ("tensorflow", "litert"),
    ("tensorflow", "openvino"),
    ("jax", "onnx"),
    ("torch", "onnx"),
}

pytestmark = [
    # Of the converters, about what they import or will change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    if BACKEND == "torch"
    else pytest.mark.filterwarnings("ignore:converters"),
    # A layer with a free factor is among them.
    pytest.mark.filterwarnings("ignore:.*not a 1-Lipschitz layer"),
    # Of PyTorch, about the steps of any recurrent layer.
    pytest.mark.filterwarnings("ignore:No complete tensor found"),
    # The mirror image of a kernel stays an operation of the graph.
    pytest.mark.filterwarnings("ignore:Constant folding"),
]


def only_on(*backends):
    return pytest.mark.skipif(
        BACKEND not in backends, reason=f"Keras has it on {backends}."
    )


stock_only_or_not = pytest.mark.parametrize("stock_only", [False, True])


def _trained(model):
    """The model after two steps, images, and its predictions of them."""
    x = normal(10, *model.input_shape[1:])
    y = np.eye(3, dtype="float32")[np.arange(len(x)) % 3]
    # Without XLA for the whole step, parts of it are compiled by XLA instead.
    loss = MulticlassHKRauto(10.0, 0.1, alpha_margin=0.1)
    model.compile("adam", loss, jit_compile=JIT)
    model.fit(x, y, batch_size=5, verbose=0)
    return model, x, model.predict(x, verbose=0)


@pytest.fixture(scope="module")
def trained():
    """By format, the network with all layers that the format can take."""
    made = {}

    def get(form):
        limited = (BACKEND, form) in LIMITED
        if limited not in made:
            keras.utils.set_random_seed(0)
            made[limited] = _trained(network(**(LIMITS if limited else {})))
        return made[limited]

    return get


def _run_saved_model(path, x, tmp_path):
    """Serves a SavedModel in a process without this library."""
    program = (
        "import sys, numpy as np, tensorflow as tf\n"
        "folder, x, y = sys.argv[1:]\n"
        "served = tf.saved_model.load(folder)\n"
        "np.save(y, served.serve(np.load(x)))\n"
        "assert 'keras' not in sys.modules or 'deel' not in sys.modules\n"
    )
    np.save(tmp_path / "x.npy", x)
    subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            str(path),
            str(tmp_path / "x.npy"),
            str(tmp_path / "y.npy"),
        ],
        check=True,
        timeout=120,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    return np.load(tmp_path / "y.npy")


@only_on("tensorflow")
@pytest.mark.slow
@stock_only_or_not
def test_saved_model_is_served_without_the_library(
    trained, stock_only, tmp_path
):
    model, x, expected = trained("tf_saved_model")
    path = tmp_path / "served"
    model.export(path, verbose=False, stock_only=stock_only)
    assert_close(_run_saved_model(path, x, tmp_path), expected, **WITHIN)
    layer = keras.layers.TFSMLayer(path, call_endpoint="serve")
    assert_close(np.array(layer(x)), expected, **WITHIN)


@only_on("tensorflow")
@pytest.mark.slow
def test_saved_model_holds_no_state_of_the_constraints(trained, tmp_path):
    import tensorflow as tf

    model, _, _ = trained("tf_saved_model")
    model.export(tmp_path / "served", verbose=False)
    names = [
        name
        for name, _ in tf.train.list_variables(
            str(tmp_path / "served" / "variables" / "variables")
        )
    ]
    variables = [name for name in names if "variables" in name]
    assert len(variables) <= 2 * len(model.vanilla_export().variables)
    served = tf.saved_model.load(tmp_path / "served")
    graph = served.signatures["serve"].graph
    # Training steps are compiled in parts, which other formats cannot hold.
    assert "AssignVariableOp" not in {
        operation.type for operation in graph.get_operations()
    }


def _assert_same_scores(trained, form, stock_only, tmp_path, **options):
    """Exports the network, and runs the file in its own runtime."""
    form = FORMATS[form]
    for module in (*form.writers[BACKEND], form.runtime):
        pytest.importorskip(module)
    model, x, expected = trained(form.name)
    path = tmp_path / f"model{form.suffix}"
    model.export(
        path, form.name, verbose=False, stock_only=stock_only, **options
    )
    assert_close(form.run(path, x), expected, **WITHIN)


@only_on("tensorflow", "jax", "torch")
@stock_only_or_not
def test_onnx_gives_the_same_scores(trained, stock_only, tmp_path):
    _assert_same_scores(trained, "onnx", stock_only, tmp_path)


@only_on("tensorflow")
@stock_only_or_not
def test_litert_gives_the_same_scores(trained, stock_only, tmp_path):
    _assert_same_scores(trained, "litert", stock_only, tmp_path)


# On PyTorch, OpenVINO has no word for how Keras gathers channels.
@only_on("tensorflow")
def test_openvino_gives_the_same_scores(trained, tmp_path):
    _assert_same_scores(trained, "openvino", True, tmp_path)


@only_on("torch")
@stock_only_or_not
def test_torch_export_gives_the_same_scores(trained, stock_only, tmp_path):
    import torch

    batch = torch.export.Dim("batch", min=2)
    _assert_same_scores(
        trained,
        "torch",
        stock_only,
        tmp_path,
        dynamic_shapes=({0: batch},),
    )


def test_exported_model_infers_where_nothing_says_how_it_runs():
    # The graph of a functional model remembers that constrained layers train
    # by default. Stock layers handed that on to all layers behind them.
    inputs = keras.Input((4,))
    x = layers.SpectralDense(6, activation=layers.GroupSort2())(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5)(x)
    model = Model(inputs=inputs, outputs=layers.SpectralDense(3)(x))
    x = 3 + normal(10, 4)
    exported = model.vanilla_export()
    before = exported.get_weights()
    assert_close(exported(x), model.predict(x, verbose=0), **WITHIN)
    assert_all_equal(before, exported.get_weights())


@only_on("tensorflow")
def test_a_list_of_layers_is_exported_before_any_call(tmp_path):
    import tensorflow as tf

    model = Sequential([keras.Input((4,)), layers.SpectralDense(3)])
    model.export(tmp_path / "served")
    x = np.ones((2, 4), "float32")
    served = tf.saved_model.load(tmp_path / "served")
    assert_close(served.serve(x), model.predict(x, verbose=0), **WITHIN)


def test_a_mode_that_the_user_chose_stays_in_the_exported_model():
    inputs = keras.Input((4,))
    x = layers.SpectralDense(4)(inputs)
    x = keras.layers.Dropout(0.5)(x, training=True)
    exported = vanillaModel(keras.Model(inputs, x))
    ones = np.ones((50, 4), "float32")
    outputs = to_numpy(exported(ones))
    assert 0 < np.sum(outputs == 0) < outputs.size


def test_model_with_a_call_of_its_own_is_not_exported_in_training_mode():
    class Custom(Sequential):
        def call(self, inputs, training=None, mask=None):
            return super().call(inputs, training=training, mask=mask)

    model = Custom([keras.Input((4,)), layers.SpectralDense(3)])
    with pytest.raises(ValueError, match="call` of their own"):
        model.export("never written", verbose=False)
