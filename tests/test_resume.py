"""Killed while they train, programs go on as if nothing had happened."""

import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import resumable
from harness import assert_close

pytestmark = [pytest.mark.slow, pytest.mark.processes]

PROGRAM = pathlib.Path(resumable.__file__)


def _start(way, folder, output):
    environment = {
        **os.environ,
        "KERAS_BACKEND": keras.backend.backend(),
        "PYTHONPATH": str(PROGRAM.parents[1]),
        "PYTHONWARNINGS": "ignore",
    }
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), way, str(folder), str(output)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def _kill_at(step, process):
    """Kills the process as soon as it announces the step."""
    try:
        for line in process.stdout:
            if line.strip() == f"step {step}":
                break
        else:
            raise AssertionError(f"step {step} was never announced")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def _finish(process):
    try:
        process.communicate(timeout=240)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0


def train(way, folder, kills=()):
    """Figures of a training that was killed at these steps."""
    output = folder.with_suffix(".npz")
    for step in kills:
        _kill_at(step, _start(way, folder, output))
        assert not output.exists()
    _finish(_start(way, folder, output))
    return dict(np.load(output))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train("backup", tmp_path_factory.mktemp("undisturbed") / "run")


def test_the_training_that_is_killed_changes_all_of_its_state(undisturbed):
    names = {name.split(" ")[-1] for name in undisturbed}
    assert {"wbar", "sn", "sigma", "count", "optimizer"} <= names
    losses = undisturbed["losses"]
    assert losses[-1] < losses[0]
    (margins,) = (
        v for k, v in undisturbed.items() if k.endswith("margin_loss")
    )
    assert np.all(margins != np.float32(0.1))


@pytest.mark.parametrize(
    "way",
    [
        "backup",
        "whole",
        pytest.param("weights", marks=pytest.mark.elsewhere),
        "orbax",
    ],
)
def test_killed_training_ends_with_the_figures_of_an_undisturbed_one(
    way, undisturbed, tmp_path
):
    if way == "orbax":
        pytest.importorskip("orbax.checkpoint")
    if way == "weights":
        undisturbed = train(way, tmp_path / "undisturbed")
    middle = resumable.STEPS + resumable.STEPS // 2
    assert_same(train(way, tmp_path / "run", [middle]), undisturbed)
