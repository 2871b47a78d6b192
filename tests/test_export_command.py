"""The command line of exports."""

import importlib
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from harness import assert_close
from small_networks import certified_classifier
from small_networks import linear_classifier
from small_networks import samples
from small_networks import stack

from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.export import _formats
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import SpectralDense

command = importlib.import_module("deel.lip.export.__main__")

BACKEND = keras.backend.backend()

pytestmark = [
    # Of the converters, about what they import or will change.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    if BACKEND == "torch"
    else pytest.mark.filterwarnings("ignore:converters"),
]


def run_command(tmp_path, model, out, *words):
    path = tmp_path / "model.keras"
    model.save(path)
    return command.main([str(path), str(tmp_path / out), *map(str, words)])


def in_folder(tmp_path):
    """Names of what is there beside the model."""
    return {x.name for x in tmp_path.iterdir()} - {"model.keras"}


@pytest.fixture(scope="module")
def classifier():
    model, x = certified_classifier(), samples(12)
    certificates = certify(model, x)
    labels = certificates.prediction.copy()
    # One of them is wrong.
    labels[0] = (labels[0] + 1) % 4
    return model, x, labels


@pytest.mark.parametrize(
    "form", _formats.FORMATS.values(), ids=lambda x: x.name
)
def test_command_writes_what_has_the_accuracy_and_scores_of_the_model(
    form, classifier, tmp_path, capsys
):
    needed = form.writers.get(BACKEND)
    if needed is None or _formats.missing([*needed, form.runtime]):
        pytest.skip("This backend does not write it, or a package is missing.")
    model, x, labels = classifier
    data = tmp_path / "data.npz"
    np.savez(data, x_test=x[..., 0], y_test=labels)
    out = f"served{form.suffix}"
    assert run_command(tmp_path, model, out, "--data", data) == 0
    printed = capsys.readouterr().out
    assert f"{lipschitz_bound(model):.6f}  of the vector of outputs" in printed
    assert f"Accuracy of what was written: {11 / 12:.4f}, with 0" in printed
    assert f"   0.000{11 / 12:11.4f}\n" in printed
    bin_file = {"served.bin"} if form.name == "openvino" else set()
    assert in_folder(tmp_path) == {out, "data.npz"} | bin_file
    scores = form.run(tmp_path / out, x)
    expected = model.predict(x, verbose=0)
    assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_command_writes_a_file_of_keras_alone(classifier, tmp_path, capsys):
    model, _, _ = classifier
    assert run_command(tmp_path, model, "out.keras") == 0
    assert "Run by keras: 2 samples" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "out.keras") as file:
        assert b"deel" not in file.read("config.json")


@pytest.mark.processes
def test_command_runs_as_a_module(tmp_path):
    model = stack(SpectralDense(4), FrobeniusDense(1))
    path, out = tmp_path / "model.keras", tmp_path / "out.keras"
    model.save(path)
    command = [sys.executable, "-W", "error::RuntimeWarning"]
    done = subprocess.run(
        [*command, "-m", "deel.lip.export", path, out],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "out.keras: format 'keras'" in done.stdout


def test_command_counts_the_classes_of_a_single_score(tmp_path, capsys):
    model = linear_classifier(np.eye(4, 1))
    x = np.array([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    np.savez(tmp_path / "data.npz", x=x, y=[1, -1])
    words = ("--data", tmp_path / "data.npz")
    assert run_command(tmp_path, model, "out.keras", *words) == 0
    printed = capsys.readouterr().out
    assert "Accuracy of what was written: 1.0000" in printed


def test_command_writes_nothing_where_the_bound_is_too_large(
    classifier, tmp_path, capsys
):
    model, _, _ = classifier
    assert run_command(tmp_path, model, "out.keras", "--max", 0.5) == 1
    assert "exceeds --max" in capsys.readouterr().err
    assert not in_folder(tmp_path)


def test_command_writes_nothing_of_which_it_proves_nothing(tmp_path, capsys):
    model = stack(keras.layers.LayerNormalization(name="planted"))
    assert run_command(tmp_path, model, "out.keras") == 2
    assert "'planted'" in capsys.readouterr().err
    words = ("--constant", "planted=3")
    assert run_command(tmp_path, model, "out.keras", *words) == 0
    assert "3.000000  of the vector" in capsys.readouterr().out


def _broken(monkeypatch, **changes):
    """Changes what the format of files of Keras does."""
    changed = {**_formats.FORMATS["keras"].__dict__, **changes}
    monkeypatch.setitem(_formats.FORMATS, "keras", _formats.Format(**changed))


@pytest.mark.parametrize("scores", [0.0, np.nan])
def test_command_writes_nothing_that_has_other_scores(
    scores, classifier, tmp_path, capsys, monkeypatch
):
    _broken(
        monkeypatch, open=lambda path: lambda x: np.full((len(x), 4), scores)
    )
    assert run_command(tmp_path, classifier[0], "out.keras") == 1
    assert "Received: difference=" in capsys.readouterr().err
    assert not in_folder(tmp_path)


def test_command_leaves_nothing_behind_if_a_converter_fails(
    classifier, tmp_path, capsys, monkeypatch
):
    def half_written(model, path):
        path.write_text("half")
        raise RuntimeError("no space left")

    monkeypatch.setattr(keras.Model, "save", half_written)
    path = tmp_path / "model.keras"
    keras.saving.save_model(classifier[0], path)
    assert command.main([str(path), str(tmp_path / "out.keras")]) == 2
    assert "no space left" in capsys.readouterr().err
    assert not in_folder(tmp_path)


def test_command_names_the_packages_that_are_missing(
    classifier, tmp_path, capsys, monkeypatch
):
    _broken(monkeypatch, writers={BACKEND: ("not_there", "nor_this")})
    assert run_command(tmp_path, classifier[0], "out.keras") == 2
    expected = "`pip install not-there nor-this`"
    assert expected in capsys.readouterr().err
    _broken(monkeypatch, writers={BACKEND: ()}, runtime="not_there")
    assert run_command(tmp_path, classifier[0], "out.keras") == 0
    expected = "Not compared with the model: that needs `pip install not-there`"
    assert expected in capsys.readouterr().out


def test_command_names_the_backends_of_a_format(
    classifier, tmp_path, capsys, monkeypatch
):
    _broken(monkeypatch, writers={"another": ()})
    assert run_command(tmp_path, classifier[0], "out.keras") == 2
    assert f"Received: backend={BACKEND}" in capsys.readouterr().err


def test_command_replaces_files_only_if_told(classifier, tmp_path, capsys):
    model, _, _ = classifier
    (tmp_path / "out.keras").write_text("mine")
    assert run_command(tmp_path, model, "out.keras") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out.keras").read_text() == "mine"
    assert run_command(tmp_path, model, "out.keras", "--overwrite") == 0
    assert zipfile.is_zipfile(tmp_path / "out.keras")
    # What can be trained further, and a folder of other things, stay.
    assert run_command(tmp_path, model, "model.keras", "--overwrite") == 2
    (tmp_path / "mine.keras").mkdir()
    assert run_command(tmp_path, model, "mine.keras", "--overwrite") == 2
    assert "no other folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "words", "expected"),
    [
        ("out.docx", (), ".onnx (onnx)"),
        ("out.onnx", ("--format", "keras"), "ends with .keras"),
        ("absent/out.keras", (), "folder that exists"),
    ],
)
def test_command_says_what_is_wrong_with_its_output(
    out, words, expected, classifier, tmp_path, capsys
):
    assert run_command(tmp_path, classifier[0], out, *words) == 2
    assert expected in capsys.readouterr().err
    assert not in_folder(tmp_path)


def test_command_says_what_is_wrong_with_its_files(tmp_path, capsys):
    out = str(tmp_path / "out.keras")
    assert command.main([str(tmp_path / "absent.keras"), out]) == 2
    assert "Expected the file of a Keras model" in capsys.readouterr().err
    text, empty = tmp_path / "text.keras", tmp_path / "empty.keras"
    text.write_text("hello")
    with zipfile.ZipFile(empty, "w") as file:
        file.writestr("other", "hello")
    for path in (text, empty):
        assert command.main([str(path), out]) == 2
        assert "Expected a file of Keras" in capsys.readouterr().err
    model = stack(SpectralDense(4))
    words = ("--data", tmp_path / "absent.npz")
    assert run_command(tmp_path, model, "out.keras", *words) == 2
    assert "There is no file" in capsys.readouterr().err


def test_command_names_a_class_that_it_does_not_know(tmp_path, capsys):
    class Mine(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    assert run_command(tmp_path, stack(Mine()), "out.keras") == 2
    error = capsys.readouterr().err
    assert "class 'Mine'" in error
    assert len(error) < 400
