"""A training loop in TensorFlow: a gradient tape and a Keras optimizer.

    KERAS_BACKEND=tensorflow python examples/custom_loop_tensorflow.py

Keras optimizers keep each kernel on its constraint after the update, here as
within `fit`.
"""

import sys

import keras
from custom_loop import batches
from custom_loop import build_loss
from custom_loop import parse_arguments
from custom_loop import run


def train(model, x, y, args):
    """Trains the model; yields the mean loss after each epoch."""
    import tensorflow as tf

    optimizer = keras.optimizers.Adam(args.learning_rate)
    optimizer.build(model.trainable_variables)
    loss = build_loss()

    @tf.function
    def step(images, labels):
        with tf.GradientTape() as tape:
            value = loss(labels, model(images, training=True))
        variables = model.trainable_variables
        gradients = tape.gradient(value, [v.value for v in variables])
        optimizer.apply(gradients, variables)
        return value

    for epoch in range(args.epochs):
        values = [
            float(step(tf.constant(images), tf.constant(labels)))
            for images, labels in batches(x, y, args.batch_size, seed=epoch)
        ]
        yield sum(values) / len(values)


def main(argv=None):
    """Trains; returns the exit status."""
    description = "Trains with a gradient tape of TensorFlow."
    args = parse_arguments(argv, description, ["keras"])
    return run(train, "tensorflow", args)


if __name__ == "__main__":
    sys.exit(main())
