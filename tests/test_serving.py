"""The benchmark of serving measures what the formats write."""

import importlib
import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from small_networks import stack

from deel.lip.export import _formats

# The benchmarks import each other by their bare names, as scripts do.
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
serving = importlib.import_module("serving")


def test_table_has_the_bytes_and_the_times_of_a_file_and_its_twin(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        serving, "FORMATS", {"keras": _formats.FORMATS["keras"]}
    )
    path = tmp_path / "figures.json"
    words = ["mnist-mlp", "--batches", "1", "3", "--rounds", "2"]
    serving.main([*words, "--seconds", "0.01", "--json", str(path)])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| `keras` | `keras` | ")
    found = json.loads(path.read_text())["results"]["mnist-mlp"]["keras"]
    # The layers are as many, and what sorts is no layer.
    assert found["size"]["ours"] > 4 * 784 * 32
    assert found["size"]["stock"] > 4 * 784 * 32
    assert found["1"]["ours"]["median"] > 0
    assert found["3"]["ratio"] > 0


def test_what_gives_other_scores_is_not_measured(tmp_path):
    form = _formats.Format(
        **{
            **_formats.FORMATS["keras"].__dict__,
            "open": lambda path: lambda x: np.zeros((len(x), 2)),
        }
    )
    model = stack(keras.layers.Dense(2))
    x = np.ones((3, 4), "float32")
    with pytest.raises(AssertionError, match="Mismatched"):
        serving.served(form, model, x, tmp_path / "files")


def test_network_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit):
        serving.main(["absent"])
    assert "networks must be among" in capsys.readouterr().err
