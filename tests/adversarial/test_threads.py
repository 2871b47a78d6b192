"""Inference in one thread beside whoever writes weights in another."""

import threading

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import to_numpy
from keras import ops

from deel.lip import layers

BACKEND = keras.backend.backend()

# Long enough a kernel that half of one is seen now and then.
SIZE = 256
LAYERS = {
    "spectral": lambda: layers.SpectralDense(SIZE, use_bias=False),
    "frobenius": lambda: layers.FrobeniusDense(
        SIZE, use_bias=False, disjoint_neurons=False
    ),
    "orthogonal": lambda: layers.OrthogonalDense(SIZE, use_bias=False),
}


def _model(kind):
    model = keras.Sequential([keras.Input((SIZE,)), LAYERS[kind]()])
    # Long steps: one kernel has little to do with the next.
    optimizer = keras.optimizers.SGD(10.0 * SIZE)
    model.compile(optimizer, "mse", jit_compile=JIT)
    return model


def kernels_seen(model, write, limit=1000):
    """Kernels that inference uses while a function writes.

    Args:
        model: A model of one linear layer.
        write: Function without arguments, which this thread calls.
        limit: Integer, the largest number of kernels that are kept.

    Returns:
        Pair of lists: arrays, and exceptions of inference.
    """
    impulses = ops.eye(SIZE)
    kernels, errors = [], []
    started, ended = threading.Event(), threading.Event()

    def infer():
        while not ended.is_set():
            started.set()
            try:
                outputs = model(impulses, training=False)
                kernel = np.array(to_numpy(outputs))
            except Exception as error:
                errors.append(error)
                continue
            if len(kernels) < limit and not any(
                np.array_equal(kernel, known) for known in kernels[-1:]
            ):
                kernels.append(kernel)

    thread = threading.Thread(target=infer)
    thread.start()
    started.wait()
    try:
        write()
    finally:
        ended.set()
        thread.join()
    return kernels, errors


def _fit(model, steps=150):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps * 8, SIZE)).astype("float32")
    y = rng.standard_normal((steps * 8, SIZE)).astype("float32")
    return lambda: model.fit(x, y, batch_size=8, epochs=1, verbose=0)


def norms(kernels):
    return [harness.singular_values(x.astype("float64"))[0] for x in kernels]


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYERS)
def test_inference_beside_training_uses_whole_kernels(kind):
    model = _model(kind)
    kernels, errors = kernels_seen(model, _fit(model))
    if BACKEND == "jax":
        # Keras takes the values out of variables for the time of `fit`: a call
        # fails, instead of using something that is no kernel.
        kernels.append(to_numpy(model.layers[0].wbar))
    else:
        assert not errors
        # Otherwise the threads have not met.
        assert len(kernels) > 1
    assert max(norms(kernels)) <= 1 + harness.TOLERANCE


@pytest.mark.slow
@pytest.mark.skipif(BACKEND == "jax", reason="as above")
@pytest.mark.parametrize("kind", LAYERS)
def test_inference_beside_a_loop_of_ones_own_uses_whole_kernels(kind):
    model = _model(kind)
    layer = model.layers[0]
    rng = np.random.default_rng(0)

    def write():
        for _ in range(150):
            drawn = rng.standard_normal((SIZE, SIZE)).astype("float32")
            layer.kernel.assign(drawn)
            model(np.zeros((1, SIZE), "float32"), training=True)

    kernels, errors = kernels_seen(model, write)
    assert not errors
    assert len(kernels) > 1
    assert max(norms(kernels)) <= 1 + harness.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYERS)
def test_inference_beside_set_weights_uses_one_kernel_or_the_other(kind):
    model = _model(kind)
    states = [m.get_weights() for m in (model, _model(kind))]
    found = [weights[-1] for weights in states]

    def write():
        for index in range(100):
            model.set_weights(states[index % 2])

    kernels, errors = kernels_seen(model, write)
    assert not errors
    assert kernels
    for kernel in kernels:
        assert any(
            np.allclose(kernel, expected, atol=1e-6) for expected in found
        )


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="in place, by PyTorch alone")
@pytest.mark.parametrize("kind", LAYERS)
def test_inference_beside_load_state_dict_stays_within_its_bound(kind):
    model = _model(kind)
    states = [
        {name: value.clone() for name, value in m.state_dict().items()}
        for m in (model, _model(kind))
    ]
    states = [
        dict(zip(model.state_dict(), state.values(), strict=True))
        for state in states
    ]

    def write():
        for index in range(100):
            model.load_state_dict(states[index % 2])

    kernels, errors = kernels_seen(model, write)
    assert not errors
    assert max(norms(kernels)) <= 1 + harness.TOLERANCE
