"""One network on many GPUs, or on many machines, with JAX.

    KERAS_BACKEND=jax python examples/distributed_jax.py

uses all devices of this machine. To use several machines, start it on each with
the variables that `keras.distribution.initialize` reads:
`KERAS_DISTRIBUTION_JOB_ADDRESSES`, that of the first machine,
`KERAS_DISTRIBUTION_NUM_PROCESSES` and `KERAS_DISTRIBUTION_PROCESS_ID`.
"""

import argparse
import os

if __name__ == "__main__":
    # Before the import of a backend that may not be installed.
    argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from common import two_classes

from deel.lip.activations import GroupSort2
from deel.lip.layers import SpectralDense
from deel.lip.losses import HKR

BATCH_SIZE = 64


def part_of(array, batch_size, distribution):
    """The samples that this process contributes to each whole batch.

    Args:
        array: Array of all samples, a multiple of `batch_size`.
        batch_size: Integer, the size of the whole batches.
        distribution: The `keras.distribution.Distribution` in use.
    """
    processes = distribution.num_processes
    shape = array.shape[1:]
    parts = array.reshape(-1, processes, batch_size // processes, *shape)
    return parts[:, distribution.data_shard_id].reshape(-1, *shape)


def main():
    # Before all else: it connects the machines.
    if "KERAS_DISTRIBUTION_JOB_ADDRESSES" in os.environ:
        keras.distribution.initialize()
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    keras.distribution.set_distribution(distribution)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((32,)),
            SpectralDense(64, activation=GroupSort2()),
            SpectralDense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), HKR(alpha=10.0, min_margin=1.0))
    x, y = (part_of(z, BATCH_SIZE, distribution) for z in two_classes(4096))
    history = model.fit(
        x,
        y,
        batch_size=BATCH_SIZE // distribution.num_processes,
        epochs=2,
        shuffle=False,
        verbose=0,
    )
    losses = history.history["loss"]
    print(f"{len(keras.distribution.list_devices())} devices")
    print(f"loss: {losses[0]:.4f} at first, {losses[-1]:.4f} at last")
    return losses


if __name__ == "__main__":
    main()
