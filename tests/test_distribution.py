"""Training on many devices is training on one, with the same batches.

What needs several devices runs in processes of its own, see
`distribution_worker.py`.
"""

import functools
import json

import distribution_worker
import harness
import keras
import numpy as np
import pytest
import split_batches
from harness import assert_close
from harness import assert_equal
from harness import to_numpy
from processes import ROOT
from processes import TESTS
from processes import addresses
from processes import run_together

pytestmark = [pytest.mark.slow, pytest.mark.processes]

WORKER = TESTS / "distribution_worker.py"
EXAMPLES = ROOT / "examples"
BACKEND = keras.backend.backend()

# Of each backend: pairs of a program of `distribution_worker.py` and a problem.
RUNS = {
    "tensorflow": [
        ("mirrored", "binary"),
        ("mirrored", "multiclass"),
        ("workers", "binary"),
        ("workers", "multiclass"),
    ],
    "jax": [
        ("devices", "binary"),
        ("devices", "multiclass"),
        ("processes", "multiclass"),
    ],
    "torch": [("ranks", "binary"), ("ranks", "multiclass")],
}.get(BACKEND, [])

many_devices = pytest.mark.parametrize(("program", "case"), RUNS)


def only_on(backend):
    return pytest.mark.skipif(
        backend != BACKEND, reason=f"Processes of {backend}."
    )


def environments(program):
    """Variables that the processes of a program need, for each of them."""
    if program == "devices":
        return [{"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}]
    if program == "workers":
        cluster = {"worker": addresses(2)}
        return [
            {
                "TF_CONFIG": json.dumps(
                    {
                        "cluster": cluster,
                        "task": {"type": "worker", "index": rank},
                    }
                )
            }
            for rank in range(2)
        ]
    return [{}] * {"mirrored": 1, "processes": 2, "ranks": 2}[program]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Function that returns what the processes of a program have found."""

    @functools.cache
    def found(program):
        folder = tmp_path_factory.mktemp(program)
        (address,) = addresses(1)
        needed = environments(program)
        commands = [
            [WORKER, program, folder, rank, address]
            for rank in range(len(needed))
        ]
        run_together(commands, needed, folder)
        return [
            dict(np.load(folder / f"{rank}.npz")) for rank in range(len(needed))
        ]

    return found


@pytest.fixture(scope="module")
def one_device():
    """Function that returns the results of training on one device."""

    @functools.cache
    def found(case, program=None):
        if (BACKEND, case) == ("torch", "multiclass"):
            return _with_optimizer_of_torch(case)
        if program == "workers":
            return _with_loop_of_tensorflow(case)
        model, losses = split_batches.fit(case)
        results = split_batches.results(model, losses, to_numpy)
        return {**results, "evaluated": split_batches.evaluate(model, case)}

    return found


def _with_loop_of_tensorflow(case):
    # Not `fit`, whose steps leave kernels as near as one step brings them.
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    return _of_one_copy(distribution_worker.train_in_loop(strategy, case))


def _of_one_copy(found):
    """Results with one copy of each weight, where many devices have several."""
    return {
        key: value[0] if key.startswith("state/") else value
        for key, value in found.items()
    }


def _with_optimizer_of_torch(case):
    import torch.distributed as dist

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        return _of_one_copy(distribution_worker.train_on_torch(case))
    finally:
        dist.destroy_process_group()


def weights(found, case):
    """What each process holds of each weight, `(devices, ...)`."""
    names = sorted(x for x in found[0] if x.startswith(f"{case}/state/"))
    return [
        np.concatenate([process[name] for process in found]) for name in names
    ]


@many_devices
def test_losses_and_kernels_are_those_of_one_device(
    runs, one_device, program, case
):
    found = runs(program)
    expected = one_device(case, program if program == "workers" else None)
    assert len(expected["losses"]) == split_batches.STEPS
    assert np.mean(expected["losses"][-5:]) < np.mean(expected["losses"][:5])
    for process in found:
        assert_close(process[f"{case}/losses"], expected["losses"], atol=1e-4)
    for name in expected:
        # The vector of the power iteration turns each time that the kernel
        # comes from elsewhere, as from the first device.
        if name.startswith("state/") and not name.endswith("/sn"):
            assert_close(
                found[0][f"{case}/{name}"][0], expected[name], atol=1e-4
            )


@many_devices
def test_all_devices_hold_the_same_weights(runs, program, case):
    for copies in weights(runs(program), case):
        assert_equal(copies, np.broadcast_to(copies[:1], copies.shape))


@many_devices
def test_bound_holds_after_training_on_many_devices(runs, program, case):
    for process in runs(program):
        expansions = process[f"{case}/expansions"]
        assert np.max(expansions) <= 1 + harness.TOLERANCE
        assert np.min(expansions) > 0.99


@only_on("tensorflow")
@pytest.mark.parametrize("case", split_batches.CLASSES)
def test_replicas_evaluate_as_one_device_also_a_smaller_last_batch(
    runs, one_device, case
):
    (found,) = runs("mirrored")
    assert_close(
        found[f"{case}/evaluated"], one_device(case)["evaluated"], atol=1e-4
    )


@only_on("tensorflow")
@pytest.mark.parametrize("index", range(len(split_batches.kr_losses())))
def test_losses_of_replicas_add_up_to_that_of_the_whole_batch(runs, index):
    (found,) = runs("mirrored")
    loss, labels, scores = split_batches.kr_losses()[index]
    expected = float(loss(labels, scores))
    assert found[f"losses/{index}/value"] == pytest.approx(expected, abs=1e-5)
    # The same state as in the first call.
    loss = split_batches.kr_losses()[index][0]
    (gradient,) = harness.gradient(lambda p: loss(labels, p), scores)
    assert_close(found[f"losses/{index}/gradient"], gradient, atol=1e-5)


@only_on("tensorflow")
def test_replicas_recall_the_mean_of_what_all_have_seen(runs):
    (found,) = runs("mirrored")
    x, _ = split_batches.batches("multiclass")
    mean = x.mean(axis=(0, 1, 2))
    for recalled in found["statistics/means"]:
        assert_close(recalled, mean, atol=1e-5)


@only_on("jax")
def test_layout_map_splits_kernels_over_devices(runs):
    (found,) = runs("devices")
    assert list(found["multiclass/sharded"]) == [True, False, True, False]
    assert not np.any(found["binary/sharded"])


@pytest.mark.skipif(not RUNS, reason="A backend without devices.")
def test_example_of_the_backend_trains_in_two_processes(tmp_path):
    example = EXAMPLES / f"distributed_{BACKEND}.py"
    (address,) = addresses(1)
    host, port = address.split(":")
    needed = {
        "tensorflow": environments("workers"),
        "jax": [
            {
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
                "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
                "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
            }
            for rank in range(2)
        ],
        # As `torchrun` sets them.
        "torch": [
            {
                "MASTER_ADDR": host,
                "MASTER_PORT": port,
                "WORLD_SIZE": "2",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            }
            for rank in range(2)
        ],
    }[BACKEND]
    outputs = run_together([[example]] * 2, needed, tmp_path)
    assert "loss: " in outputs[0]
    assert "2 " in outputs[0]
