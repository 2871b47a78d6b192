"""The program that trains for certified accuracy."""

import csv
import importlib
import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from harness import to_numpy

from deel.lip.certification import certify

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
program = importlib.import_module("train_certified")
common = importlib.import_module("common")

pytest.importorskip("sklearn")

SHORT = ["--limit", "1000", "--epochs", "2", "--verbose", "0", "--size", "S"]
SHORT += ["--batch-size", "50", "--offset", "0.7", "--lr", "0.05"]


class Interruption(keras.callbacks.Callback):
    """Stops the program like Ctrl-C, as the second epoch begins."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def _epochs(output):
    with open(output / "history.csv", encoding="utf-8") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A network of a size that tests can afford."""
    monkeypatch.setitem(program.MLP_UNITS, "S", (64, 32))


# Keras leaves its log open where a training is interrupted.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_training_goes_on_and_is_certified(monkeypatch, tmp_path):
    usual = program.callbacks
    with monkeypatch.context() as patch:
        patch.setattr(
            program, "callbacks", lambda args: [*usual(args), Interruption()]
        )
        with pytest.raises(KeyboardInterrupt):
            program.main([*SHORT, "--output", str(tmp_path)])
    assert _epochs(tmp_path) == [0]
    assert not (tmp_path / "results.json").exists()

    assert program.main([*SHORT, "--output", str(tmp_path), "--resume"]) == 0
    assert _epochs(tmp_path) == [0, 1]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["accuracy"] > 0.7
    assert results["certified_accuracy"][0] > 0.1
    exported = keras.models.load_model(tmp_path / "model.keras")
    assert type(exported) is keras.Sequential
    _, (x, y) = common.load_digits()
    again = certify(exported, common.as_images(x), y)
    assert_equal(
        again.certified_accuracy(results["epsilons"]),
        results["certified_accuracy"],
    )


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        ("emma", ["--shift", "0.1", "--rotate", "5", "--zoom", "0.1"]),
        *(
            pytest.param(loss, ["--flip"], marks=pytest.mark.elsewhere)
            for loss in ("annealing", "hkr")
        ),
    ],
)
def test_each_loss_trains_with_augmentation(loss, changes, tmp_path):
    options = ["--loss", loss, "--epsilon", "0.5", "--margin", "0.5"]
    arguments = [*SHORT, *options, *changes, "--output", str(tmp_path)]
    assert program.main(arguments) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["accuracy"] > 0.4
    assert results["certified_accuracy"][0] > 0.05


@pytest.mark.elsewhere
def test_a_convolutional_network_trains_with_muon(tmp_path):
    arguments = [*SHORT, "--model", "cnn", "--optimizer", "muon"]
    arguments += ["--center", "0.125", "--rounding", "float32"]
    assert program.main([*arguments, "--output", str(tmp_path)]) == 0
    exported = keras.models.load_model(tmp_path / "model.keras")
    assert exported.layers[1].offset == -0.125
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["accuracy"] > 0.7
    assert results["certified_accuracy"][0] > 0.1


def test_other_networks_have_no_center(capsys):
    with pytest.raises(SystemExit):
        program.parse_arguments(["--model", "mlp", "--center", "0.5"])
    assert "--center 0.5 --model mlp" in capsys.readouterr().err


@pytest.mark.elsewhere
def test_certificates_of_half_precision_training_are_those_of_float32(tmp_path):
    arguments = [*SHORT, "--policy", "mixed_bfloat16"]
    assert program.main([*arguments, "--output", str(tmp_path)]) == 0
    exported = keras.models.load_model(tmp_path / "model.keras")
    assert exported.compute_dtype == "float32"
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["accuracy"] > 0.6
    assert results["certified_accuracy"][0] > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", program.MODELS)
def test_each_network_fits_the_program(name):
    args = program.parse_arguments(["--model", name, "--size", "S"])
    assert args.model == name
    model = program.build(args, (32, 32, 3), 4)
    exported = model.vanilla_export()
    x = np.random.default_rng(0).random((2, 32, 32, 3), "float32")
    scores = to_numpy(exported(x))
    assert scores.shape == (2, 4)
    assert_close(scores, model(x, training=False), atol=1e-5)
