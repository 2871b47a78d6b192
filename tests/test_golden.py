"""Files that were saved before the modules moved: they load, and say the same.

Written with TensorFlow at version 2.0.0 of the library, before its layout had
folders. Classes are found by their registered names.
"""

import json
import pathlib

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import to_numpy

import deel.lip  # noqa: F401

FOLDER = pathlib.Path(__file__).parent / "golden"


def _objects():
    for file in ("losses.json", "objects.json"):
        yield from json.loads((FOLDER / file).read_text()).items()


def test_every_layer_loads_and_predicts_the_same():
    model = keras.saving.load_model(FOLDER / "layers.keras")
    with np.load(FOLDER / "layers.npz") as arrays:
        inputs = [arrays[x.name.split(":")[0]] for x in model.inputs]
        expected = [arrays[f"y{x.name.split(':')[0]}"] for x in model.inputs]
    for found, y in zip(model(inputs, training=False), expected, strict=True):
        found = to_numpy(found)
        assert_close(found, y, rtol=1e-5, atol=1e-5)


def test_compiled_model_resumes():
    model = keras.saving.load_model(FOLDER / "trained.keras")
    with np.load(FOLDER / "trained.npz") as arrays:
        x, y, scores = arrays["x"], arrays["y"], arrays["scores"]
    found = model.predict(x, verbose=0)
    assert_close(found, scores, rtol=1e-5, atol=1e-5)
    loss = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    model.fit(x, y, epochs=1, verbose=0)
    trained = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert trained < loss
    model.load_weights(FOLDER / "trained.weights.h5")
    found = model.predict(x, verbose=0)
    assert_close(found, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "saved"), list(_objects()))
def test_losses_and_other_objects_keep_their_configs(name, saved):
    found = keras.saving.deserialize_keras_object(saved)
    again = keras.saving.serialize_keras_object(found)
    assert again["registered_name"] == saved["registered_name"]
    assert again["config"] == saved["config"]
