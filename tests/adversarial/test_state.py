"""State that changes behind the back of bounds, certificates and models."""

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import normal
from harness import to_numpy
from keras import ops

from deel.lip import layers
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.certification import register_bound
from deel.lip.model import Model
from deel.lip.model import Sequential

X = normal(16, 4)


def expansion(function):
    """Largest ratio of distances, of outputs and inputs, on some pairs."""
    y = np.asarray(function(X), "float64")
    pairs = np.triu_indices(len(X), 1)
    before = np.linalg.norm(X[pairs[0]] - X[pairs[1]], axis=1)
    return np.max(np.linalg.norm(y[pairs[0]] - y[pairs[1]], axis=1) / before)


def eager(model):
    return lambda x: to_numpy(model(ops.convert_to_tensor(x), training=False))


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="PyTorch shares memory"
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_bound_is_that_of_the_kernel_which_runs(wrapped):
    dense = layers.SpectralDense(4)
    layer, shape = dense, (4,)
    if wrapped:
        layer, shape = keras.layers.TimeDistributed(dense), (1, 4)
    model = keras.Sequential(
        [
            keras.Input(shape),
            layer,
            keras.layers.Flatten(),
            keras.layers.Dense(2, kernel_initializer="orthogonal"),
        ]
    )
    x = X.reshape(-1, *shape)
    before = certify(model, x)
    dense.wbar.value.detach().numpy()[...] *= 0.01
    assert lipschitz_bound(dense) == pytest.approx(1.0, abs=1e-5)
    assert_close(certify(model, x).radius, before.radius)


class FirstStepOnly(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x):
        return 1.0 * x

    def compute_mask(self, x, mask=None):
        steps = ops.arange(x.shape[1])
        return ops.zeros_like(x[..., 0], dtype="int32") + steps < 1


@pytest.mark.parametrize("known", ["registered", "given", "stock", "nested"])
def test_layers_that_make_a_mask_are_refused(known):
    register_bound(FirstStepOnly, lambda layer, shapes: 1.0)
    mask = FirstStepOnly(name="mask")
    constants = {}
    if known == "stock":
        mask = keras.layers.Masking(name="mask")
    if known in ("given", "stock"):
        constants = {"mask": 1.0}
    inner = [mask, keras.layers.GlobalAveragePooling1D()]
    model = keras.Sequential([keras.Input((9, 2)), *inner])
    if known == "nested":
        inputs = keras.Input((9, 2))
        model = keras.Model(inputs, keras.layers.Dense(2)(model(inputs)))
    with pytest.raises(ValueError, match="compute_mask"):
        lipschitz_bound(model, constants=constants)


def test_statistics_that_were_set_are_certified_as_they_are_used():
    normalization = keras.layers.Normalization(axis=-1)
    normalization.adapt(np.array([[-1, -1], [1, 1]], "float32"))
    dense = keras.layers.Dense(2, use_bias=False)
    model = keras.Sequential([keras.Input((2,)), normalization, dense])
    dense.kernel.assign([[0.5, -0.5], [-0.5, 0.5]])
    x = np.array([[2e4 + 0.002, 2e4]], "float32")
    model.predict(x, verbose=0)
    mean, variance, count, kernel = model.get_weights()
    model.set_weights([mean, 0 * variance + 1 / 16, count, kernel])
    certificates = certify(model, x)
    # Both scores agree where both inputs do.
    distance = (x[0, 0].astype("float64") - x[0, 1]) / np.sqrt(2)
    assert certificates.radius[0] <= distance


def functional(layer):
    inputs = keras.Input((4,))
    return Model(inputs=inputs, outputs=layer(inputs))


@pytest.mark.parametrize("make", [functional, lambda x: Sequential([x])])
@pytest.mark.filterwarnings("ignore:The constants of the layers")
def test_steps_of_a_model_follow_the_constants_of_its_layers(make):
    dense = layers.SpectralDense(4, use_bias=False)
    model = make(dense)
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    model.fit(X, X, epochs=1, verbose=0)
    assert expansion(eager(model)) > 0.9
    dense.set_klip_factor(0.1)
    model.fit(X, X, epochs=1, verbose=0)
    assert expansion(eager(model)) <= 0.1 * (1 + 1e-4)
    assert expansion(lambda x: model.predict(x, verbose=0)) <= 0.1 * (1 + 1e-4)
    assert lipschitz_bound(model) <= 0.1 * (1 + 1e-4)


def test_predictions_follow_the_constant_of_an_activation():
    sort = layers.GroupSort2(k_coef_lip=10.0)
    model = functional(sort)
    assert expansion(lambda x: model.predict(x, verbose=0)) > 1
    sort.set_klip_factor(0.1)
    assert expansion(lambda x: model.predict(x, verbose=0)) <= 0.1 * (1 + 1e-5)


def test_constant_of_a_branch_counts_after_predictions():
    branch = layers.SpectralDense(4, use_bias=False)
    model = functional(layers.PrescaledResidual(branch))
    model.predict(X, verbose=0)
    branch.set_klip_factor(5.0)
    assert expansion(lambda x: model.predict(x, verbose=0)) <= 1 + 1e-4


@pytest.mark.parametrize("when", ["on_epoch_begin", "on_epoch_end"])
def test_constants_may_be_set_while_a_model_trains(when):
    model = Sequential(
        [keras.Input((4,)), layers.SpectralDense(4, use_bias=False)]
    )
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    callback = keras.callbacks.LambdaCallback(
        **{
            when: lambda epoch, logs=None: model.set_klip_factor(
                0.5 / (1 + epoch)
            )
        }
    )
    model.fit(X, X, epochs=3, verbose=0, callbacks=[callback])
    assert expansion(eager(model)) <= 0.5 / 3 * (1 + 1e-4)
    assert lipschitz_bound(model) <= 0.5 / 3 * (1 + 1e-4)


def test_slopes_that_are_let_loose_later_are_warned_of():
    prelu = layers.LipschitzPReLU()
    model = Sequential([keras.Input((4,)), layers.SpectralDense(4), prelu])
    with pytest.warns(UserWarning, match="exceed what the model promises"):
        prelu.k_coef_lip = 5.0
    assert lipschitz_bound(model) <= 5 * (1 + 1e-4)


def test_predictions_of_a_model_that_exceeds_its_promise_warn():
    model = Sequential([keras.Input((4,)), layers.SpectralDense(4)])
    model.layers[0].activation = keras.activations.selu
    with pytest.warns(UserWarning, match="exceed what the model promises"):
        model.predict(X, verbose=0)
