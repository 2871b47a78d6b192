"""One network on many GPUs, or on many machines, with TensorFlow.

    python examples/distributed_tensorflow.py

uses all GPUs of this machine. To use several machines, start it on each, with
their addresses in the variable `TF_CONFIG`, as TensorFlow's guide of
`tf.distribute.MultiWorkerMirroredStrategy` says.

It trains with a loop of its own rather than with `fit`, which Keras 3 does not
run on several machines.
"""

import argparse

if __name__ == "__main__":
    # Before the import of a backend that may not be installed.
    argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()

import os

import keras
import tensorflow as tf
from common import two_classes

from deel.lip.activations import GroupSort2
from deel.lip.layers import SpectralDense
from deel.lip.losses import HKR

BATCH_SIZE = 64


def train(strategy, model, loss, optimizer, dataset):
    """Trains on each batch of a data set, split over the replicas.

    Args:
        strategy: A strategy of `tf.distribute`, under which the model, the loss
            and the optimizer were made.
        model: A Keras model.
        loss: A loss of `deel.lip.losses`. It counts the classes of the whole
            batch by itself.
        optimizer: A Keras optimizer.
        dataset: A `tf.data.Dataset` of batches `(x, y)`, the same everywhere.

    Returns:
        List of floats, the loss of each whole batch.
    """
    with strategy.scope():
        optimizer.build(model.trainable_variables)

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            # Keras divides a mean by the number of replicas.
            value = loss(y, model(x, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return value

    @tf.function
    def step(x, y):
        values = strategy.run(replica_step, args=(x, y))
        return strategy.reduce("SUM", values, axis=None)

    parts = strategy.experimental_distribute_dataset(dataset)
    return [float(step(x, y)) for x, y in parts]


def main():
    # Before all else: it connects the machines.
    if "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        strategy = tf.distribute.MirroredStrategy()
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((32,)),
                SpectralDense(64, activation=GroupSort2()),
                SpectralDense(1),
            ]
        )
        loss = HKR(alpha=10.0, min_margin=1.0)
        optimizer = keras.optimizers.Adam(1e-2)
    dataset = tf.data.Dataset.from_tensor_slices(two_classes(4096))
    dataset = dataset.batch(BATCH_SIZE, drop_remainder=True)
    losses = train(strategy, model, loss, optimizer, dataset)
    print(f"{strategy.num_replicas_in_sync} replicas")
    print(f"loss: {losses[0]:.4f} at first, {losses[-1]:.4f} at last")
    return losses


if __name__ == "__main__":
    main()
