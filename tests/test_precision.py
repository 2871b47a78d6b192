"""Every precision policy trains, and what it exports keeps its bound."""

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import built
from harness import to_numpy
from keras import ops
from small_networks import image_classifier

from deel.lip import layers
from deel.lip.losses import MulticlassHKR

POLICIES = [
    "float32",
    "float64",
    "mixed_bfloat16",
    "mixed_float16",
    "bfloat16",
    "float16",
]
HALF = ["bfloat16", "float16"]


@pytest.fixture(params=POLICIES)
def policy(request):
    if keras.backend.backend() == "jax" and request.param == "float64":
        pytest.skip("JAX computes in float32 unless x64 is enabled at start")
    keras.config.set_dtype_policy(request.param)
    return request.param


def exact_norm(kernel):
    return harness.singular_values(harness.as_matrix(kernel))[0]


def test_network_learns_and_its_export_keeps_the_bound(policy):
    model = image_classifier()
    optimizer = keras.optimizers.SGD(0.05)
    if policy.endswith("float16"):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    loss = MulticlassHKR(alpha=10.0, min_margin=0.5)
    model.compile(optimizer, loss, jit_compile=JIT)
    y = np.eye(3)[np.arange(24) % 3]
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 6, 6, 1))[np.arange(24) % 3]
    history = model.fit(x, y, batch_size=8, epochs=4, verbose=0)
    losses = history.history["loss"]
    assert np.all(np.isfinite(losses))
    assert losses[-1] < losses[0]
    # On PyTorch, Keras multiplies float64 in float32 by itself.
    variables = keras.DTypePolicy(policy).variable_dtype
    widest = keras.backend.result_type(variables, "float32")
    exported = model.vanilla_export()
    for layer in harness.constrained_layers(model):
        dtype = keras.backend.standardize_dtype(layer.wbar.dtype)
        assert dtype == widest
        harness.assert_bounded(layer)
        stock = exported.get_layer(layer.name)
        assert stock.dtype_policy.name == policy
        promise = layer._get_coef() * (1 + harness.TOLERANCE)
        assert exact_norm(stock.kernel) <= promise


@pytest.mark.parametrize("dtype", HALF)
def test_kernels_exported_to_half_precision_keep_the_bound(dtype):
    random = np.random.default_rng(0)
    exceeded = 0
    for units, k_coef_lip in ((40, 1.0), (40, 0.01), (7, 300.0), (1, 1.0)):
        layer = layers.SpectralDense(units, k_coef_lip=k_coef_lip, dtype=dtype)
        layer.build((None, 30))
        layer.kernel.assign(random.standard_normal((30, units)))
        layer.condense()
        promise = k_coef_lip * (1 + harness.TOLERANCE)
        exported = layer.vanilla_export().kernel
        assert keras.backend.standardize_dtype(exported.dtype) == dtype
        norm = exact_norm(exported)
        assert norm <= promise
        # Not smaller than it has to be.
        assert norm >= 0.99 * k_coef_lip
        exceeded += exact_norm(ops.cast(layer.wbar, dtype)) > promise
    # Without a correction some would not.
    assert exceeded


@pytest.mark.parametrize("training", [True, False])
def test_norms_of_large_values_are_finite_in_float16(training):
    x = np.full((1, 4, 4, 2), 3000.0, "float16")
    for layer, expected in (
        (layers.ScaledL2NormPooling2D(dtype="float16"), 6000.0),
        (layers.ScaledGlobalL2NormPooling2D(dtype="float16"), 12000.0),
    ):
        found = layer(x, training=training)
        assert keras.backend.standardize_dtype(found.dtype) == "float16"
        assert_close(to_numpy(found).astype("float32"), expected, rtol=1e-3)


@pytest.mark.parametrize("policy", ["float16", "mixed_float16"])
@pytest.mark.parametrize("k_coef_lip", [1e6, 1e-9])
def test_constants_that_float16_cannot_hold_are_refused(policy, k_coef_lip):
    message = r"float16, whose normal numbers are from 6.1e-05 to .* Received: "
    layer = layers.SpectralDense(3, k_coef_lip=k_coef_lip, dtype=policy)
    with pytest.raises(ValueError, match=message):
        layer.build((None, 4))
    layer = built(layers.SpectralDense(3, dtype=policy), 4)
    with pytest.raises(ValueError, match=message):
        layer.set_klip_factor(k_coef_lip)
    assert layer.k_coef_lip == 1.0
    harness.assert_bounded(layer)


@pytest.mark.parametrize("k_coef_lip", [1e6, 1e-9])
def test_kernels_that_float16_cannot_hold_are_not_exported(k_coef_lip):
    layer = built(layers.SpectralDense(3, k_coef_lip=k_coef_lip), 4)
    with pytest.raises(ValueError, match=r"of dtype float16 .* Received: "):
        layer.wbar.exported("float16")
    # bfloat16 has the exponents of float32.
    exported = layer.wbar.exported("bfloat16")
    norm = exact_norm(exported)
    assert 0.9 * k_coef_lip <= norm <= k_coef_lip * (1 + harness.TOLERANCE)
