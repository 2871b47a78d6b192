"""Programs that run beside the tests, and are stopped in any case."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras

TESTS = Path(__file__).parent
ROOT = TESTS.parent

# Seconds; they take a twentieth of it where the machine is not busy.
TIMEOUT = 600


def addresses(count):
    """Addresses of this machine that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def run_together(commands, environments, folder):
    """Runs Python programs that wait for each other.

    Args:
        commands: List of lists, the arguments of Python for each program.
        environments: List of dictionaries, the variables that each gets beside
            those that all need.
        folder: Folder for their output.

    Returns:
        List of strings, what each has printed.

    Raises:
        AssertionError: If one of them fails, or lasts too long. The others,
            which may wait for it, are stopped.
    """
    keep = ("PATH", "HOME", "TMPDIR")
    common = {
        "KERAS_BACKEND": keras.backend.backend(),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OMP_NUM_THREADS": "1",
        **{key: os.environ[key] for key in keep if key in os.environ},
        **{k: v for k, v in os.environ.items() if k.startswith("JAX_")},
    }
    logs = [Path(folder) / f"{index}.log" for index in range(len(commands))]
    with contextlib.ExitStack() as stack:
        started = []
        for command, environment, log in zip(
            commands, environments, logs, strict=True
        ):
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                env={**common, **environment},
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            started.append(process)
            stack.callback(process.wait)
            stack.callback(process.kill)
        deadline = time.monotonic() + TIMEOUT
        codes = [None]
        while None in codes and not any(codes):
            codes = [process.poll() for process in started]
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
    outputs = [log.read_text() for log in logs]
    for code, output in zip(codes, outputs, strict=True):
        assert code in (0, None), output[-4000:]
    assert None not in codes, f"Not done after {TIMEOUT} s: {outputs}"
    return outputs
