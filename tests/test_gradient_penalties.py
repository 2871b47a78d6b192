"""Second derivatives, which penalties of the gradient need."""

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import normal
from harness import to_numpy
from keras import ops

from deel.lip import layers
from deel.lip._backend import compilation as _compilation
from deel.lip.activations import GroupSort2
from deel.lip.model import vanillaModel


def gradients_of_penalty(model, x, variable):
    """Gradients of the squared norm of an input gradient.

    Args:
        model: A model in training.
        x: Array of samples.
        variable: The trained variable of the gradients.

    Returns:
        List of arrays: the gradient computed eagerly and, on TensorFlow, the
        compiled one; on JAX, which traces either of them, the latter alone.
    """
    return _WAYS[keras.backend.backend()](model, x, variable)


def _on_tensorflow(model, x, variable):
    import tensorflow as tf

    def compute(x):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(model(x, training=True) ** 2)
            penalty = tf.reduce_sum(inner.gradient(y, x) ** 2)
        return outer.gradient(penalty, variable.value)

    x = tf.constant(x)
    return [way(x).numpy() for way in (compute, tf.function(compute))]


def _on_torch(model, x, variable):
    import torch

    x = torch.tensor(x, requires_grad=True)
    y = (model(x, training=True) ** 2).sum()
    (slope,) = torch.autograd.grad(y, x, create_graph=True)
    (found,) = torch.autograd.grad((slope**2).sum(), variable.value)
    return [found.numpy()]


def _on_jax(model, x, variable):
    import jax

    state = [v.value for v in model.non_trainable_variables]
    values = [v.value for v in model.trainable_variables]
    place = [v is variable for v in model.trainable_variables].index(True)

    def penalty(values):
        def squares(x):
            y, _ = model.stateless_call(values, state, x, training=True)
            return (y**2).sum()

        return (jax.grad(squares)(x) ** 2).sum()

    return [np.asarray(jax.jit(jax.grad(penalty))(values)[place])]


_WAYS = {"tensorflow": _on_tensorflow, "torch": _on_torch, "jax": _on_jax}


class PlainSort(keras.layers.Layer):
    """Sorted pairs, differentiated by the backend alone."""

    def call(self, x):
        first, second = x[..., ::2], x[..., 1::2]
        pairs = [ops.minimum(first, second), ops.maximum(first, second)]
        return ops.reshape(ops.stack(pairs, axis=-1), ops.shape(x))


class PlainNorms(keras.layers.AveragePooling2D):
    """Norms of windows, differentiated by the backend alone."""

    def call(self, x):
        return 2 * ops.sqrt(super().call(x**2) + 1e-6)


# XLA called by TensorFlow or not; the other backends know one way.
@pytest.mark.parametrize(
    "large", [0, pytest.param(10**9, marks=pytest.mark.elsewhere)]
)
def test_sorts_and_norms_have_the_second_derivatives_of_their_formulas(
    large, monkeypatch
):
    monkeypatch.setattr(_compilation, "_LARGE", large)
    x = normal(3, 4, 4, 2)
    found = []
    for sort, norms in (
        (GroupSort2(), layers.ScaledL2NormPooling2D()),
        (PlainSort(), PlainNorms(2)),
    ):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((4, 4, 2)),
                keras.layers.Conv2D(6, 3, padding="same"),
                sort,
                norms,
                keras.layers.Flatten(),
                keras.layers.Dense(1),
            ]
        )
        found.append(gradients_of_penalty(model, x, model.layers[0].kernel))
    ours, plain = found
    expected = plain[0]
    assert np.max(np.abs(expected)) > 1
    for gradient in ours:
        assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


# Gradients of kernels are made in one of two ways; the size of a batch decides.
@pytest.mark.parametrize("batch_size", [5, 300])
@pytest.mark.parametrize(
    "shape",
    [(6, 8), (8, 4), pytest.param((64, 48), marks=pytest.mark.elsewhere)],
)
def test_penalties_move_kernels_along_the_orthogonal_matrices(
    shape, batch_size
):
    rows, columns = shape
    x = normal(batch_size, rows)
    inputs = keras.Input((rows,))
    hidden = layers.SpectralDense(columns, activation=GroupSort2())(inputs)
    model = keras.Model(inputs, layers.FrobeniusDense(1)(hidden))
    stock = vanillaModel(model)
    kernel = stock.layers[1].kernel
    free = gradients_of_penalty(stock, x, kernel)[0].astype("float64")
    q = to_numpy(kernel).astype("float64")
    # What is symmetric would change the singular values.
    if rows >= columns:
        change = q.T @ free
        expected = free - q @ (change + change.T) / 2
    else:
        change = free @ q.T
        expected = free - (change + change.T) @ q / 2
    assert np.max(np.abs(expected)) > 0.1
    for gradient in gradients_of_penalty(model, x, model.layers[1].kernel):
        assert_close(
            gradient, expected, rtol=1e-4, atol=1e-5 * np.max(np.abs(expected))
        )
