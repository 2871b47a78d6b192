"""The promise holds where products of matrices are rounded, as on GPUs."""

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_all_close
from harness import assert_equal
from harness import built
from harness import normal
from harness import to_numpy
from keras import ops
from small_networks import image_classifier

from deel.lip import layers
from deel.lip._backend import products as _products
from deel.lip._backend.compilation import traced_once
from deel.lip._defaults import DEFAULT_MAXITER_BJORCK
from deel.lip._numerics import norm_bounds
from deel.lip._numerics import polar
from deel.lip._numerics.polar import spectral_constraint
from deel.lip.losses import MulticlassHKR

BACKEND = keras.backend.backend()

# TensorFloat-32 and bfloat16.
DIGITS = [11, 8]


def only(backend):
    return pytest.mark.skipif(backend != BACKEND, reason=f"about {backend}")


def rounded(x, digits):
    """Rounds to so many significant digits."""
    if BACKEND == "jax":
        import jax

        return jax.lax.reduce_precision(x, 8, digits - 1)
    # What is large rounds away what does not fit under it.
    large = x * (2.0 ** (24 - digits) + 1)
    return large - (large - x)


class Rounding:
    """Makes products of matrices round their factors, as a GPU does.

    On TensorFlow and PyTorch the library is told so, in place of the settings
    that it asks for. On JAX a product is exact where the trace wants it so.
    """

    def __init__(self, patch, digits, told=True):
        self.digits = digits
        self.count = 0
        self.exact = ops.matmul
        if BACKEND == "torch":
            import torch

            self.exact = torch.matmul
            patch.setattr(torch, "matmul", self)
        else:
            patch.setattr(ops, "matmul", self)
        if not told:
            patch.setattr(_products, "product", self)
            patch.setattr(norm_bounds, "product", self)
            patch.setattr(polar, "product", self)
        elif BACKEND == "tensorflow":
            patch.setattr(_products, "_digits_on_tensorflow", lambda: digits)
        elif BACKEND == "torch":
            patch.setattr(_products, "_digits_on_torch", lambda x: digits)

    def __call__(self, a, b):
        if BACKEND == "jax":
            import jax

            if jax.config.jax_default_matmul_precision == "highest":
                return self.exact(a, b)
        self.count += 1
        factors = [
            x + ops.stop_gradient(rounded(x, self.digits) - x) for x in (a, b)
        ]
        return self.exact(*factors)


# Fewer than the default, for which JAX leaves eager products to NumPy.
STEPS = DEFAULT_MAXITER_BJORCK - 1


def constrained(kernel, orthogonal=True, constraint=spectral_constraint):
    kernel = ops.convert_to_tensor(kernel)
    return to_numpy(constraint(kernel, orthogonal, STEPS))


@pytest.mark.parametrize("digits", DIGITS)
def test_product_keeps_the_digits_of_float32(digits, monkeypatch):
    random = np.random.default_rng(0)
    Rounding(monkeypatch, digits)
    for make in (random.standard_normal, random.random):
        a, b = (make((9, 40, 40)).astype("float32") for _ in range(2))
        found = to_numpy(
            _products.product(
                ops.convert_to_tensor(a), ops.convert_to_tensor(b)
            )
        )
        a, b = a.astype("float64"), b.astype("float64")
        scale = np.abs(a) @ np.abs(b)
        assert np.max(np.abs(found - a @ b) / scale) < 2.0**-20
        plain = to_numpy(ops.matmul(a.astype("float32"), b))
        assert np.max(np.abs(plain - a @ b) / scale) > 2.0 ** -(digits + 4)


@pytest.mark.parametrize("digits", DIGITS)
def test_gradient_passes_through_all_parts_of_a_product(digits, monkeypatch):
    random = np.random.default_rng(0)
    a, b, weights = (
        random.standard_normal((5, 5)).astype("float32") for _ in range(3)
    )
    Rounding(monkeypatch, digits)
    found = harness.gradient(
        lambda a, b: ops.sum(ops.multiply(weights, _products.product(a, b))),
        a,
        b,
    )
    assert_all_close(found, (weights @ b.T, a.T @ weights), atol=5e-2)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_bound_holds_for_hostile_kernels(orthogonal, monkeypatch):
    Rounding(monkeypatch, 11)
    constraint = spectral_constraint
    if BACKEND == "tensorflow":
        import tensorflow as tf

        # Eagerly, it takes ten times as long.
        constraint = tf.function(constraint)
    for kind, kernel in harness.hostile_matrices((70, 66), 15):
        result = constrained(kernel, orthogonal, constraint)
        harness.assert_contracts(result, kind)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_rounded_products_alone_would_break_the_bound(orthogonal, monkeypatch):
    # Without it the tests here would prove nothing.
    Rounding(monkeypatch, 11, told=False)
    largest = [
        harness.singular_values(constrained(kernel, orthogonal))[0]
        for _, kernel in harness.hostile_matrices((20, 18), 8)
    ]
    assert max(largest) > 1 + 10 * harness.TOLERANCE


@pytest.mark.parametrize("kind", ["constant", "orthogonal"])
def test_bound_holds_for_long_columns(kind, monkeypatch):
    # More columns than those for which all products are made in blocks.
    shape = (2500, 65)
    rounding = Rounding(monkeypatch, 11)
    sums = []
    multiply = rounding.exact

    def recorded(a, b):
        sums.append(a.shape[-1])
        return multiply(a, b)

    rounding.exact = recorded
    random = np.random.default_rng(0)
    kernel = {
        "constant": np.full(shape, 0.7301),
        "orthogonal": np.linalg.qr(np.abs(random.standard_normal(shape)))[0],
    }[kind].astype("float32")
    harness.assert_contracts(constrained(kernel, False))
    if BACKEND != "jax":
        # Units for few digits cut off what does not fit into their sums.
        assert max(sums) <= 1024


def test_bound_holds_while_training(monkeypatch):
    rounding = Rounding(monkeypatch, 11)
    model = image_classifier(pooled=False)
    optimizer = keras.optimizers.Adam(1e-1)
    model.compile(optimizer, MulticlassHKR(10.0), jit_compile=JIT)
    x = np.random.default_rng(0).standard_normal((8, 6, 6, 1))
    y = np.eye(3)[np.arange(8) % 3]
    for _ in range(4):
        model.fit(x, y, verbose=0)
        harness.assert_all_bounded(model)
    # The network's own products are not touched.
    assert rounding.count > 0


@pytest.mark.parametrize("training", [True, False])
def test_sorted_pairs_are_the_values_themselves(training, monkeypatch):
    Rounding(monkeypatch, 11)
    x = normal(50, 16)
    found = to_numpy(layers.GroupSort2()(x, training=training))
    assert_equal(found, np.sort(x.reshape(50, 8, 2), axis=-1).reshape(50, 16))


def test_nothing_changes_on_this_processor():
    x = ops.ones((2, 2), "float32")
    assert _products.digits_of_products(x) is None


@only("tensorflow")
def test_tensorflow_rounds_on_the_devices_that_can(monkeypatch):
    import tensorflow as tf

    def digits(name, kind, **details):
        # Names differ, since each device is asked for its details once.
        device = tf.config.PhysicalDevice(name, kind)
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda: [device])
        monkeypatch.setattr(
            tf.config.experimental, "get_device_details", lambda _: details
        )
        return _products.digits_of_products(tf.zeros((2, 2)))

    assert digits("ampere", "GPU", compute_capability=(8, 6)) == 11
    assert digits("turing", "GPU", compute_capability=(7, 5)) is None
    assert digits("other", "GPU") == 11
    assert digits("tpu", "TPU") == 8
    assert digits("cpu", "CPU") is None
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        assert digits("ampere", "GPU", compute_capability=(8, 6)) is None
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(True)


@only("tensorflow")
def test_shared_graphs_are_traced_anew_where_products_change(monkeypatch):
    import tensorflow as tf

    seen = []

    @traced_once
    def function(x):
        seen.append(_products.digits_of_products(x))
        return x + 1.0

    def traced():
        return tf.function(lambda: function(tf.zeros((2, 2))))()

    traced()
    traced()
    monkeypatch.setattr(_products, "_digits_on_tensorflow", lambda: 11)
    traced()
    assert seen == [None, 11]


@only("torch")
@pytest.mark.parametrize(
    ("setting", "digits"), [("highest", None), ("high", 11), ("medium", 8)]
)
def test_torch_rounds_where_it_is_told_to(setting, digits):
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        assert _products.digits_of_products(torch.zeros(2, 2)) == digits
    finally:
        torch.set_float32_matmul_precision(before)


@only("torch")
def test_bound_holds_within_autocast_of_torch():
    import torch

    layer = built(layers.SpectralDense(16), 12)
    kernels = harness.hostile_matrices((12, 16), 15)
    for kind, kernel in kernels:
        layer.kernel.assign(kernel)
        with torch.autocast(layer.kernel.value.device.type):
            layer(np.ones((2, 12), "float32"), training=True)
        assert harness.expansion(layer) <= 1 + harness.TOLERANCE, kind


def _matrix_products(jaxpr):
    """All `dot_general` of a jaxpr, also those inside of others."""
    import jax

    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            if hasattr(inner, "eqns"):
                yield from _matrix_products(inner)
            elif hasattr(inner, "jaxpr"):
                yield from _matrix_products(inner.jaxpr)


def _precisions(function, *arguments):
    import jax

    highest = (jax.lax.Precision.HIGHEST,) * 2
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    found = [x.params["precision"] for x in _matrix_products(jaxpr)]
    return [precision == highest for precision in found]


@only("jax")
@pytest.mark.parametrize("eps_bjorck", [1e-3, None])
def test_jax_normalises_with_all_digits_and_nothing_else(eps_bjorck):
    layer = built(layers.SpectralDense(8, eps_bjorck=eps_bjorck), 80)
    state = [layer.kernel, *layer.parametrization.variables]
    values = [variable.value for variable in state]
    x = np.ones((2, 80), "float32")

    def within(function, values, *arguments):
        mapping = list(zip(state, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return function(*arguments)

    retract = _precisions(
        lambda values, kernel: within(layer._after_update, values, kernel),
        values,
        values[0],
    )
    constrain = _precisions(layer.parametrization.constrain, values[0])
    assert len(constrain) > 6
    assert all(constrain)
    assert all(retract)
    # The power iteration, which nothing rests on, and the layer's own.
    call = _precisions(
        lambda values: within(lambda: layer(x, training=True), values), values
    )
    assert call.count(False) == 3
    assert call.count(True) == len(constrain)
