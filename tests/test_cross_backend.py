"""Files written under one backend are read under the others.

The files in `tests/data` were written under each backend, with the predictions
made there. To renew them all, run this program once under each backend:

    KERAS_BACKEND=jax PYTHONPATH=.:tests python tests/test_cross_backend.py
"""

import json
import pathlib
import zipfile

import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import assert_equal
from harness import to_numpy

from deel.lip import layers
from deel.lip.losses import MulticlassHKRauto
from deel.lip.metrics import CategoricalProvableRobustAccuracy
from deel.lip.model import LossVariableModel

DATA = pathlib.Path(__file__).parent / "data"
BACKENDS = ["tensorflow", "jax", "torch"]

WITHIN = {"rtol": 0, "atol": 1e-5}


def _samples():
    x = np.random.default_rng(0).standard_normal((6, 4, 4, 2))
    return x.astype("float32"), np.eye(3, dtype="float32")[[0, 1, 2] * 2]


def _network():
    inputs = keras.Input((4, 4, 2))
    x = layers.SpectralConv2D(4, 3, activation=layers.GroupSort2())(inputs)
    x = layers.FrobeniusConv2D(4, 3, padding_mode="circular")(x)
    x = layers.BatchCentering()(x)
    x = layers.Householder()(x)
    x = layers.ScaledL2NormPooling2D()(x)
    x = layers.InvertibleDownSampling(2)(x)
    x = keras.layers.Flatten()(x)
    x = layers.SpectralDense(6, activation=layers.MaxMin())(x)
    x = layers.LipschitzPReLU()(x)
    outputs = layers.FrobeniusDense(3, use_bias=False)(x)
    return LossVariableModel(inputs=inputs, outputs=outputs)


def _write():
    """Writes the file of this backend, and what the model in it says."""
    keras.utils.set_random_seed(0)
    x, y = _samples()
    model = _network()
    # Without momentum, which would double the size of the file.
    model.compile(
        keras.optimizers.SGD(0.05),
        MulticlassHKRauto(10.0, 0.1, alpha_margin=0.5),
        metrics=["accuracy", CategoricalProvableRobustAccuracy(0.1)],
        # Written into the file, where PyTorch takes it for a wish to compile.
        jit_compile=JIT,
    )
    model.fit(x, y, batch_size=2, epochs=3, verbose=0)
    name = keras.backend.backend()
    model.save(DATA / f"{name}.keras")
    _compress(DATA / f"{name}.keras")
    loaded = keras.models.load_model(DATA / f"{name}.keras")
    np.savez(
        DATA / f"{name}.npz",
        losses=_train_on(loaded),
        predicted=model.predict(x, verbose=0),
        exported=model.vanilla_export().predict(x, verbose=0),
        evaluated=model.evaluate(x, y, verbose=0),
        margins=to_numpy(keras.ops.copy(model.loss.hinge_margins)),
    )


def _train_on(model):
    """Losses of two more epochs."""
    history = model.fit(
        *_samples(), batch_size=2, epochs=2, shuffle=False, verbose=0
    )
    return history.history["loss"]


def _compress(path):
    """A tenth of the size; Keras reads archives of either kind."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def _numbers(version):
    return tuple(int(number) for number in version.split(".")[:2])


@pytest.fixture(scope="module", params=BACKENDS)
def written(request):
    """A model that another backend saved, and what it said there."""
    # Under PyTorch, Keras writes an optimizer that no other backend can read.
    compiled = request.param in ("tensorflow", "jax", keras.backend.backend())
    path = DATA / f"{request.param}.keras"
    with zipfile.ZipFile(path) as archive:
        writer = json.loads(archive.read("metadata.json"))["keras_version"]
    if _numbers(writer) > _numbers(keras.__version__):
        pytest.skip(f"Layers of Keras {writer} have more arguments.")
    model = keras.models.load_model(path, compile=compiled)
    return model, np.load(DATA / f"{request.param}.npz")


@pytest.fixture
def compiled(written):
    """The same, for what needs the loss and the optimizer."""
    if not written[0].compiled:
        pytest.skip("Keras reads the optimizers of PyTorch with PyTorch only.")
    return written


def test_files_of_every_backend_predict_the_same(written):
    model, golden = written
    x, _ = _samples()
    predicted = model.predict(x, verbose=0)
    assert_close(predicted, golden["predicted"], **WITHIN)
    assert np.min(np.std(predicted, axis=0)) > 5e-3
    exported = model.vanilla_export().predict(x, verbose=0)
    assert_close(exported, golden["exported"], **WITHIN)


def test_files_of_every_backend_keep_loss_margins_and_metrics(compiled):
    model, golden = compiled
    assert type(model) is LossVariableModel
    margins = to_numpy(keras.ops.copy(model.loss.hinge_margins))
    assert_equal(margins, golden["margins"])
    assert np.any(margins > 0.15)
    evaluated = model.evaluate(*_samples(), verbose=0)
    assert_close(evaluated, golden["evaluated"], **WITHIN)


def test_files_of_every_backend_train_on_in_the_same_way(compiled):
    model, golden = compiled
    losses = _train_on(model)
    assert losses[1] != losses[0]
    # Each step leaves kernels within about a thousandth of orthogonal ones; in
    # stock containers JAX uses those of one step more.
    assert_close(losses, golden["losses"], rtol=1e-3)


if __name__ == "__main__":
    _write()
