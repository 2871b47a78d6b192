"""Muon moves constrained kernels alike in all directions, and nothing else."""

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import normal
from harness import singular_values
from harness import to_numpy
from keras import ops

from deel.lip.layers import FrobeniusDense
from deel.lip.layers import OrthogonalConv2D
from deel.lip.layers import SpectralConv2D
from deel.lip.layers import SpectralDense
from deel.lip.optimizers import Muon


def _steps(layer, shape, gradients, **options):
    """What steps at a rate of one make of the variables of a layer."""
    layer.build(shape)
    # As if nobody constrained them.
    layer.kernel.constraint._function = lambda value: value
    variables = layer.trainable_variables
    optimizer = Muon(1.0, **options)
    optimizer.build(variables)
    before = [to_numpy(x) for x in variables]
    optimizer.apply([ops.cast(x, "float32") for x in gradients(before)])
    return [to_numpy(x) - y for x, y in zip(variables, before, strict=True)]


def _uneven(variables, scale=1.0):
    """Gradients with singular values that are far apart."""
    for x in variables:
        factors = np.geomspace(0.1, 1.0, x.shape[-1])
        yield scale * normal(*x.shape, seed=1) * factors


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: SpectralDense(4), (None, 12)),
        (lambda: SpectralDense(12), (None, 4)),
        (lambda: SpectralConv2D(4, 3), (None, 8, 8, 2)),
        (lambda: OrthogonalConv2D(4, 2, strides=2), (None, 8, 8, 1)),
    ],
)
def test_all_singular_values_of_a_step_are_alike(layer, shape, scale):
    step, _ = _steps(layer(), shape, lambda x: _uneven(x, scale))
    step = step.reshape(-1, step.shape[-1])
    values = singular_values(step) / (0.2 * np.sqrt(max(step.shape)))
    # Three steps of a polynomial that is steep at zero and not exact at one.
    assert np.all((values > 0.5) & (values < 1.3))


def test_other_variables_take_a_step_of_adam():
    layer = FrobeniusDense(4)
    # The first step of Adam has one length in all entries, but for an epsilon
    # beside the gradients.
    large = _steps(
        layer, (None, 12), lambda x: _uneven(x, 1e4), adam_lr_ratio=0.5
    )
    for step in large:
        assert_close(np.abs(step), 0.5 * np.ones(step.shape), atol=1e-5)
    kernel = keras.layers.Dense(4)
    kernel.build((None, 12))
    optimizer = Muon(1.0)
    optimizer.build(kernel.trainable_variables)
    before = to_numpy(kernel.kernel)
    gradients = [np.ones((12, 4), "float32"), np.ones(4, "float32")]
    optimizer.apply([ops.convert_to_tensor(x) for x in gradients])
    assert_close(before - to_numpy(kernel.kernel), np.ones((12, 4)), atol=1e-5)


def test_no_gradient_is_no_step():
    step, _ = _steps(
        SpectralDense(4), (None, 12), lambda x: [np.zeros(v.shape) for v in x]
    )
    assert not np.any(step)


def test_gradients_are_averaged():
    """Two opposite gradients: the second one counts for the average alone."""
    layer = SpectralDense(4, use_bias=False)
    layer.build((None, 12))
    layer.kernel.constraint._function = lambda value: value
    (gradient,) = _uneven([to_numpy(layer.kernel)])
    moved = []
    for nesterov in (False, True):
        optimizer = Muon(1.0, momentum=0.5, nesterov=nesterov, ns_steps=12)
        optimizer.build([layer.kernel])
        for factor in (3.0, -1.0):
            before = to_numpy(layer.kernel)
            optimizer.apply([ops.cast(factor * gradient, "float32")])
            moved.append(to_numpy(layer.kernel) - before)
    # Averages 3, then 0.5; with the gradient once more, 4.5, then -0.75.
    assert np.sum(moved[0] * moved[1]) > 0
    assert np.sum(moved[2] * moved[3]) < 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("ns_steps", 0),
        ("ns_steps", 1.5),
        ("adam_lr_ratio", 0.0),
    ],
)
def test_what_is_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=f"Received: {name}={value}"):
        Muon(**{name: value})


def test_a_model_with_it_is_saved_and_goes_on(tmp_path):
    model = keras.Sequential(
        [keras.Input((6,)), SpectralDense(6), FrobeniusDense(2)]
    )
    model.compile(Muon(0.05, momentum=0.8, clipnorm=1.0), "mse")
    x, y = normal(8, 6), normal(8, 2, seed=1)
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    for network in (model, loaded):
        network.fit(x, y, epochs=1, shuffle=False, verbose=0)
    for one, other in zip(model.variables, loaded.variables, strict=True):
        assert_close(to_numpy(one), to_numpy(other), atol=1e-5)
