"""The command line of certification."""

import importlib

import keras
import numpy as np
import pytest
from harness import assert_close
from small_networks import certified_classifier
from small_networks import samples
from small_networks import stack

from deel.lip._command import read_samples
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import GroupSort2
from deel.lip.layers import SpectralDense
from deel.lip.model import vanillaModel

command = importlib.import_module("deel.lip.certification.__main__")


def run_command(tmp_path, model, *words):
    path = tmp_path / "model.keras"
    model.save(path)
    return command.main([str(path), *map(str, words)])


def test_command_prints_the_table_and_the_curve(tmp_path, capsys):
    model, x = certified_classifier(), samples(12)
    data = tmp_path / "data.npz"
    np.savez(data, x_test=x[..., 0], y_test=certify(model, x).prediction)
    words = ("--data", data, "--max", 2.0, "--epsilons", "0,0.01")
    assert run_command(tmp_path, model, *words, "--attack", 5) == 0
    printed = capsys.readouterr().out
    assert "FrobeniusDense" in printed
    assert "Proven Lipschitz constant" in printed
    assert "accuracy                   1.0000" in printed
    assert "0.010" in printed
    assert "0 certificates broken" in printed


def test_command_certifies_sets_by_the_method_that_it_is_told(tmp_path, capsys):
    hidden = keras.layers.Dense(8, activation="relu")
    model = stack(hidden, keras.layers.Dense(3))
    data = tmp_path / "data.npz"
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    np.savez(data, x=x, y=np.arange(12) % 3)
    words = ("--data", data, "--top-k", 2, "--method", "product")
    assert run_command(tmp_path, model, *words) == 0
    printed = capsys.readouterr().out
    assert f"{lipschitz_bound(model, method='product'):.6f}  of the" in printed
    expected = certify(model, x, method="product", top_k=2)
    assert f"median radius              {np.median(expected.radius):.4g}" in (
        printed
    )
    assert run_command(tmp_path, model, *words, "--attack", 3) == 2
    assert "without --top-k" in capsys.readouterr().err
    assert run_command(tmp_path, model, "--local") == 2
    assert "need --data" in capsys.readouterr().err
    words = ("--data", data, "--refine", "--local")
    assert run_command(tmp_path, model, *words) == 0
    printed = capsys.readouterr().out
    assert f"{lipschitz_bound(model, refine=True):.6f}  of the" in printed
    expected = certify(model, x, refine=True, local=True)
    assert f"median radius              {np.median(expected.radius):.4g}" in (
        printed
    )


def test_command_prints_the_constants_of_vector_and_output_and_limits_one(
    tmp_path, capsys
):
    hidden = SpectralDense(8, activation=GroupSort2())
    model = stack(hidden, FrobeniusDense(5, kernel_initializer="ones"))
    of_vector, of_output = (
        lipschitz_bound(model, by_output=x) for x in (False, True)
    )
    assert of_vector > 1.01
    assert run_command(tmp_path, model, "--max", 1.0) == 1
    printed = capsys.readouterr().out
    assert f"{of_vector:.6f}  of the vector of outputs, limited to 1" in printed
    assert f"{of_output:.6f}  of each output by itself\n" in printed
    lead = min(2**0.5 * of_vector, 2 * of_output)
    assert f"{lead:.6f}  at most, of the lead" in printed
    assert run_command(tmp_path, model, "--max", 1.0, "--by-output") == 0
    assert "by itself, limited to 1" in capsys.readouterr().out


def test_command_of_a_single_output_speaks_of_no_lead(tmp_path, capsys):
    assert run_command(tmp_path, stack(FrobeniusDense(1)), "--max", 1.0) == 0
    assert "lead" not in capsys.readouterr().out


def test_command_fails_where_the_bound_is_too_large(tmp_path, capsys):
    model = certified_classifier()
    too_small = 0.99 * lipschitz_bound(model)
    assert run_command(tmp_path, model, "--max", too_small) == 1
    assert run_command(tmp_path, model, "--max", "nan") == 1
    assert "exceeds --max" in capsys.readouterr().err


@pytest.mark.parametrize("plant", ["expanding", "foreign kernel", "unknown"])
def test_command_catches_planted_violations(tmp_path, plant, capsys):
    inner = {
        "expanding": keras.layers.Dense(4, kernel_initializer="ones"),
        "foreign kernel": SpectralDense(4),
        "unknown": keras.layers.LayerNormalization(name="planted"),
    }[plant]
    model = stack(SpectralDense(4), inner)
    assert run_command(tmp_path, stack(SpectralDense(4)), "--max", 1) == 0
    if plant == "foreign kernel":
        # Loading repairs our layers; an exported network has no such care.
        model = vanillaModel(model)
        model.layers[1].kernel.assign(np.full((4, 4), 0.3))
    status = run_command(tmp_path, model, "--max", 1.0)
    assert status == (2 if plant == "unknown" else 1)
    if plant == "unknown":
        assert "'planted'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--limit", "--attack"])
def test_command_refuses_negative_counts(option, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_command(tmp_path, certified_classifier(), option, -1)
    assert "expected zero or more" in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "factor"), [("uint8", 255), ("int64", 1)])
def test_command_divides_pixels_and_no_other_integers(dtype, factor, tmp_path):
    x = np.arange(12).reshape(3, 4).astype(dtype)
    np.savez(tmp_path / "data.npz", x=x, y=np.zeros(3))
    found, _ = read_samples(tmp_path / "data.npz", (None, 4))
    assert_close(found, x / factor, rtol=1e-6)


def test_command_says_what_is_wrong_with_its_files(tmp_path, capsys):
    assert command.main([str(tmp_path / "absent.keras")]) == 2
    model = certified_classifier()
    path = tmp_path / "wrong.npz"
    np.savez(path, z=np.zeros(3))
    assert run_command(tmp_path, model, "--data", path) == 2
    assert "x_test and y_test" in capsys.readouterr().err
    assert run_command(tmp_path, model, "--data", tmp_path / "no.npz") == 2
