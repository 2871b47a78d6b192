"""What replicas of a model must know of each other while they train."""

import keras


def summed_over_replicas(*tensors):
    """Sums over the replicas of TensorFlow that have parts of one batch.

    Each of them calls this in each step, so none waits for the others in vain.
    Elsewhere it returns what it is given: with `keras.distribution` a tensor is
    already that of the whole batch, and what processes of PyTorch do is up to
    their own program, which may well call a loss on one of them alone.

    Args:
        *tensors: Tensors, whose gradient is not needed.

    Returns:
        List of tensors of the same shapes.
    """
    if keras.backend.backend() != "tensorflow":
        return list(tensors)
    import tensorflow as tf

    # None outside of replicas, within the scope of a strategy.
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return list(tensors)
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors))
