"""A training loop in JAX: pure functions, and an optimizer of Keras or optax.

    KERAS_BACKEND=jax python examples/custom_loop_jax.py --optimizer optax

A Keras optimizer keeps each kernel on its constraint, in `stateless_apply`,
too. One of optax (`pip install optax`) knows nothing of constraints: the next
forward pass in training mode brings kernels back. The bound holds with both.
"""

import sys

import keras
from custom_loop import batches
from custom_loop import build_loss
from custom_loop import parse_arguments
from custom_loop import run


def keras_optimizer(model, learning_rate):
    """Returns the state of a Keras optimizer, and its pure update."""
    optimizer = keras.optimizers.Adam(learning_rate)
    optimizer.build(model.trainable_variables)

    def update(state, gradients, trainable):
        return optimizer.stateless_apply(state, gradients, trainable)

    return [v.value for v in optimizer.variables], update


def optax_optimizer(model, learning_rate):
    """Returns the state of an optax optimizer, and its pure update."""
    import optax

    optimizer = optax.adam(learning_rate)

    def update(state, gradients, trainable):
        steps, state = optimizer.update(gradients, state, trainable)
        return optax.apply_updates(trainable, steps), state

    return optimizer.init([v.value for v in model.trainable_variables]), update


OPTIMIZERS = {"keras": keras_optimizer, "optax": optax_optimizer}


def train(model, x, y, args):
    """Trains the model; yields the mean loss after each epoch."""
    import jax

    optimizer, update = OPTIMIZERS[args.optimizer](model, args.learning_rate)
    loss = build_loss()

    def loss_and_state(trainable, state, images, labels):
        scores, state = model.stateless_call(
            trainable, state, images, training=True
        )
        return loss(labels, scores), state

    @jax.jit
    def step(trainable, state, optimizer, images, labels):
        differentiated = jax.value_and_grad(loss_and_state, has_aux=True)
        (value, state), gradients = differentiated(
            trainable, state, images, labels
        )
        trainable, optimizer = update(optimizer, gradients, trainable)
        return value, trainable, state, optimizer

    variables = model.trainable_variables + model.non_trainable_variables
    trainable = [v.value for v in model.trainable_variables]
    # Constrained kernels are among the state that a call returns.
    state = [v.value for v in model.non_trainable_variables]
    for epoch in range(args.epochs):
        values = []
        for batch in batches(x, y, args.batch_size, seed=epoch):
            value, trainable, state, optimizer = step(
                trainable, state, optimizer, *batch
            )
            values.append(float(value))
        for variable, array in zip(variables, trainable + state, strict=True):
            variable.assign(array)
        yield sum(values) / len(values)


def main(argv=None):
    """Trains; returns the exit status."""
    description = "Trains with pure functions of JAX."
    return run(
        train, "jax", parse_arguments(argv, description, list(OPTIMIZERS))
    )


if __name__ == "__main__":
    sys.exit(main())
