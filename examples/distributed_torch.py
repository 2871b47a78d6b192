"""One network on many GPUs, or on many machines, with PyTorch.

    KERAS_BACKEND=torch torchrun --nproc_per_node=2 \\
        examples/distributed_torch.py

starts two processes on this machine; `torchrun` has options for more machines.
"""

import argparse
import os

if __name__ == "__main__":
    # Before the import of a backend that may not be installed.
    argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import torch
import torch.distributed as dist
from common import two_classes
from torch.nn.parallel import DistributedDataParallel

from deel.lip.activations import GroupSort2
from deel.lip.layers import SpectralDense
from deel.lip.losses import HKR
from deel.lip.utils import process_labels_for_multi_gpu

BATCH_SIZE = 64


def train(model, loss, optimizer, x, y, batch_size=BATCH_SIZE):
    """Trains on batches that are split over the processes of a group.

    Args:
        model: A Keras model, which becomes that of the first process.
        loss: A loss of `deel.lip.losses`, with `multi_gpu=True`.
        optimizer: A Keras optimizer, or one of `torch.optim` for the trained
            parameters of the model.
        x: Array of all samples, the same in all processes.
        y: Array of their labels.
        batch_size: Integer, the size of the whole batches.

    Returns:
        List of floats, the loss of each whole batch.
    """
    rank, processes = dist.get_rank(), dist.get_world_size()
    replica = DistributedDataParallel(model)
    losses = []
    for first in range(0, len(x) - batch_size + 1, batch_size):
        whole = slice(first, first + batch_size)
        # The labels get their weights before the batch is split.
        labels = process_labels_for_multi_gpu(y[whole])[rank::processes]
        scores = replica(x[whole][rank::processes], training=True)
        value = loss(labels, scores)
        model.zero_grad()
        value.backward()
        update(optimizer, model)
        value = value.detach()
        dist.all_reduce(value)
        losses.append(float(value) / processes)
    return losses


def update(optimizer, model):
    """One step of an optimizer, of Keras or of PyTorch."""
    if isinstance(optimizer, torch.optim.Optimizer):
        optimizer.step()
        return
    weights = model.trainable_weights
    with torch.no_grad():
        optimizer.apply([weight.value.grad for weight in weights], weights)


def main():
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((32,)),
            SpectralDense(64, activation=GroupSort2()),
            SpectralDense(1),
        ]
    )
    loss = HKR(alpha=10.0, min_margin=1.0, multi_gpu=True)
    optimizer = keras.optimizers.Adam(1e-2)
    losses = train(model, loss, optimizer, *two_classes(4096))
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} processes")
        print(f"loss: {losses[0]:.4f} at first, {losses[-1]:.4f} at last")
    dist.destroy_process_group()
    return losses


if __name__ == "__main__":
    main()
