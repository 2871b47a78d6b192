"""A process that trains with others, or on several devices of its own.

    python distribution_worker.py PROGRAM FOLDER [RANK ADDRESS]

`test_distribution.py` starts it. What a program returns goes to
`FOLDER/RANK.npz`.
"""

import functools
import importlib
import sys
from pathlib import Path

import keras
import numpy as np
import split_batches
from keras import ops

from deel.lip.layers import BatchCentering

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


def mirrored(rank, address):
    """Replicas of TensorFlow on two devices of one process, with `fit`."""
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    yield "losses", _losses_in_replicas(strategy)
    yield "statistics", _statistics_in_replicas(strategy)
    for case in split_batches.CLASSES:
        run = split_batches.fit(case, strategy.scope())
        found = split_batches.results(*run, _replicas_of)
        found["evaluated"] = split_batches.evaluate(run[0], case)
        yield case, found


# Whether the labels of a problem hold the weights of the whole batch.
_WEIGHTED = {"binary": True, "multiclass": False}


def workers(rank, address):
    """Replicas of TensorFlow in two processes, with the example's loop."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    for case in _WEIGHTED:
        yield case, train_in_loop(strategy, case)


def train_in_loop(strategy, case):
    """What training with the example's loop leaves, under a strategy."""
    import tensorflow as tf

    example = importlib.import_module("distributed_tensorflow")
    multi_gpu = _WEIGHTED[case]
    x, y = split_batches.batches(case)
    with strategy.scope():
        model = split_batches.network(case)
        loss = split_batches.loss_of(case, multi_gpu)
        optimizer = keras.optimizers.Adam(0.01)
    y = split_batches.weighted(y) if multi_gpu else y
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    dataset = dataset.batch(split_batches.BATCH_SIZE)
    values = example.train(strategy, model, loss, optimizer, dataset)
    return split_batches.results(model, values, _replicas_of)


def _replicas_of(variable):
    import tensorflow as tf

    value = variable.value
    copies = getattr(value, "values", [value])
    return np.stack([tf.convert_to_tensor(copy).numpy() for copy in copies])


def _in_replicas(strategy, function, *arrays):
    """Calls a function in each replica with its part of some arrays."""
    import tensorflow as tf

    def part_of(array, context):
        parts = np.split(array, strategy.num_replicas_in_sync)
        return tf.constant(parts[context.replica_id_in_sync_group])

    return strategy.run(
        function,
        args=[
            strategy.experimental_distribute_values_from_function(
                functools.partial(part_of, array)
            )
            for array in arrays
        ],
    )


def _losses_in_replicas(strategy):
    """Values and gradients of losses, where each replica has a half."""
    import tensorflow as tf

    with strategy.scope():
        cases = split_batches.kr_losses()
    found = {}
    for index, (loss, labels, scores) in enumerate(cases):

        def differentiated(labels, scores, loss=loss):
            with tf.GradientTape() as tape:
                tape.watch(scores)
                value = loss(labels, scores)
            return value, tape.gradient(value, scores)

        values, gradients = _in_replicas(
            strategy, differentiated, labels, scores
        )
        found[f"{index}/value"] = sum(values.values)
        found[f"{index}/gradient"] = np.concatenate(gradients.values)
    return found


def _statistics_in_replicas(strategy):
    """The mean that each replica recalls, where each has seen a half."""
    x, _ = split_batches.batches("multiclass")
    with strategy.scope():
        layer = BatchCentering()
        layer.build(x.shape)
    _in_replicas(strategy, lambda x: layer(x, training=True), x)
    return {"means": _replicas_of(layer.non_trainable_variables[0])}


def devices(rank, address):
    """Four devices of one process with JAX, with `fit`."""
    available = keras.distribution.list_devices()
    data = keras.distribution.DataParallel(devices=available[:2])
    yield "binary", _fit_on_jax("binary", data)

    mesh = keras.distribution.DeviceMesh((2, 2), ["batch", "model"], available)
    layout = keras.distribution.LayoutMap(mesh)
    # What is trained and what is made of it, by columns and by rows.
    layout[".*conv2d.*(kernel|wbar)"] = (None, None, None, "model")
    layout[".*dense.*(kernel|wbar)"] = ("model", None)
    model = keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch"
    )
    yield "multiclass", _fit_on_jax("multiclass", model)


def processes(rank, address):
    """Two processes of one device each with JAX, with `fit`."""
    keras.distribution.initialize(address, 2, rank)
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    example = importlib.import_module("distributed_jax")

    def part(array):
        return example.part_of(array, split_batches.BATCH_SIZE, distribution)

    yield "multiclass", _fit_on_jax("multiclass", distribution, part)


def _fit_on_jax(case, distribution, part=None):
    run = split_batches.fit(case, distribution.scope(), part)
    sharded = [
        variable.value.sharding.shard_shape(variable.shape) != variable.shape
        for variable in run[0].trainable_weights
    ]
    return {**split_batches.results(*run, _copies_of), "sharded": sharded}


def _copies_of(variable):
    """The whole value, put together by each device that holds all of it."""
    value = variable.value
    shards = [x.data for x in value.addressable_shards]
    if all(shard.shape == value.shape for shard in shards):
        return np.stack([np.asarray(shard) for shard in shards])
    return ops.convert_to_numpy(value)[None]


def ranks(rank, address):
    """Two processes with PyTorch, with the example's loop."""
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"tcp://{address}", rank=rank, world_size=2
    )
    for case in split_batches.CLASSES:
        yield case, train_on_torch(case)
    dist.destroy_process_group()


def train_on_torch(case):
    """Trains with the example's loop, in the process group that there is."""
    import torch

    example = importlib.import_module("distributed_torch")
    model = split_batches.network(case)
    if case == "binary":
        optimizer = keras.optimizers.Adam(0.01)
    else:
        # It knows nothing of constraints, and retracts no kernel.
        parameters = [weight.value for weight in model.trainable_weights]
        optimizer = torch.optim.Adam(parameters, 0.01)
    losses = example.train(
        model,
        split_batches.loss_of(case, multi_gpu=True),
        optimizer,
        *split_batches.batches(case),
        split_batches.BATCH_SIZE,
    )
    return split_batches.results(model, losses, _own_copy_of)


def _own_copy_of(variable):
    return ops.convert_to_numpy(variable)[None]


PROGRAMS = {
    program.__name__: program
    for program in (mirrored, workers, devices, processes, ranks)
}


def main(program, folder, rank="0", address=None):
    found = {
        f"{name}/{key}": np.asarray(value)
        for name, values in PROGRAMS[program](int(rank), address)
        for key, value in values.items()
    }
    np.savez(Path(folder) / f"{rank}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
