"""The promise: k-Lipschitz at every step, for any kernel, however it came."""

import concurrent.futures
import sys

import harness
import keras
import numpy as np
import pytest
import registry
from harness import JIT
from harness import TOLERANCE
from harness import assert_all_equal
from harness import assert_close
from harness import built
from harness import normal
from harness import to_numpy
from keras import ops
from small_networks import image_classifier

from deel.lip import layers
from deel.lip.initializers import SpectralInitializer
from deel.lip.losses import MulticlassHKR
from deel.lip.model import Sequential

STOCK_INITIALIZERS = [
    "glorot_uniform",
    "ones",
    "orthogonal",
    "random_normal",
    "zeros",
    *(
        pytest.param(name, marks=pytest.mark.elsewhere)
        for name in (
            "glorot_normal",
            "he_normal",
            "lecun_uniform",
            "random_uniform",
            "truncated_normal",
            "variance_scaling",
        )
    ),
]

FAST = {"jit_compile": JIT}


class CheckBound(keras.callbacks.Callback):
    """Checks the exact norm of every constrained kernel while training."""

    def __init__(self, every=5):
        super().__init__()
        self.every = every
        self.checked = 0

    def on_train_batch_end(self, batch, logs=None):
        if batch % self.every == 0:
            # On JAX the state lives in the compiled step until it is synced.
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            for layer in harness.constrained_layers(self.model):
                harness.assert_bounded(layer)
                self.checked += 1


@registry.rows(registry.CONSTRAINED, slow=True, every_class=True)
def test_bound_holds_while_training_at_any_learning_rate(row):
    inputs = keras.Input(row.input_shape)
    layer = row.make()
    model = keras.Model(inputs, layer(inputs))
    # The loss pulls the output as far up as it can: nothing but the
    # constraint keeps the kernel from growing.
    model.compile("adam", lambda _, y: -ops.mean(ops.square(y)), **FAST)
    x = np.random.default_rng(0).standard_normal((320, *row.input_shape))
    y = np.zeros((320, 1))
    check = CheckBound(every=5)
    for learning_rate in (1e-3, 1e-2, 1e-1):
        model.optimizer.learning_rate = learning_rate
        model.fit(x, y, batch_size=16, verbose=0, callbacks=[check])
    assert check.checked == 12
    promise = row.arguments.get("k_coef_lip", 1.0)
    if not getattr(layer, "disjoint_neurons", False):
        linear = layer.vanilla_export()
        linear.activation = keras.activations.linear
        norm = harness.operator_norm(linear, row.input_shape)
        assert norm <= promise * (1 + TOLERANCE)


@registry.rows(registry.CONSTRAINED, slow=True, every_class=True)
def test_bound_holds_for_hostile_kernels(row):
    layer = row.built()
    shape = tuple(layer.kernel.shape)
    update = harness.update_of(layer)
    kernels = harness.hostile_matrices(shape, 45, seed=len(row.name))
    for index, (kind, kernel) in enumerate(kernels):
        layer.kernel.assign(kernel)
        update()
        assert harness.expansion(layer) <= 1 + TOLERANCE, kind
        # Each kind once.
        if index < 15:
            layer.condense()
            harness.assert_bounded(layer)


@pytest.mark.parametrize(
    ("kernel_size", "strides", "size", "channels", "filters"),
    [
        (3, 1, 5, 1, 16),
        (5, 1, 28, 1, 1),
        (3, 2, 8, 2, 3),
        (4, 2, 9, 1, 4),
        (5, 3, 11, 1, 2),
        (7, 1, 4, 1, 3),
        (2, 2, 8, 1, 4),
        (3, 1, 2, 2, 2),
    ],
)
def test_convolution_operator_is_bounded_on_the_whole_image(
    kernel_size, strides, size, channels, filters
):
    # C1: the mean coverage reaches 1.154 in the first row, 1.021 in the second.
    layer = layers.SpectralConv2D(filters, kernel_size, strides)
    layer.build((None, size, size, channels))
    x = np.zeros((1, size, size, channels), "float32")
    count = 15 if size < 20 else 5
    kernels = harness.hostile_matrices(tuple(layer.kernel.shape), count)
    for kind, kernel in kernels:
        layer.kernel.assign(kernel)
        layer(x, training=True)
        assert harness.operator_norm(layer, x.shape[1:]) <= 1 + TOLERANCE, kind
    layer.kernel.assign(np.ones(layer.kernel.shape))
    layer(x, training=True)
    assert harness.operator_norm(layer, x.shape[1:]) <= 1 + TOLERANCE


@pytest.mark.parametrize("initializer", STOCK_INITIALIZERS)
def test_bound_holds_before_training_for_any_initializer(initializer):
    # C3
    for layer in (
        layers.SpectralDense(7, kernel_initializer=initializer),
        layers.SpectralDense(
            7, kernel_initializer=initializer, eps_bjorck=None
        ),
        layers.FrobeniusDense(7, kernel_initializer=initializer),
        layers.SpectralConv2D(7, 3, kernel_initializer=initializer),
    ):
        is_conv = isinstance(layer, keras.layers.Conv2D)
        shape = (6, 6, 2) if is_conv else (20,)
        layer.build((None, *shape))
        harness.assert_bounded(layer)
        x = np.random.default_rng(0).standard_normal((4, *shape))
        inference = to_numpy(layer(x, training=False))
        training = to_numpy(layer(x, training=True))
        assert_close(inference, training, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 40.0])
@pytest.mark.parametrize("base", ["orthogonal", "glorot_uniform"])
@pytest.mark.parametrize("draws_orthogonal", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernel_at_the_start_is_the_one_that_the_draw_is_constrained_to(
    scale, base, draws_orthogonal, dtype
):
    # The layers trust some draws, and only those, to be constrained already.
    initializer = SpectralInitializer(
        k_coef_lip=scale,
        base_initializer=base,
        eps_bjorck=1e-3 if draws_orthogonal else None,
    )
    arguments = {"kernel_initializer": initializer, "dtype": dtype}
    for layer, shape in (
        (layers.SpectralDense(7, **arguments), (20,)),
        (layers.SpectralDense(70, k_coef_lip=2.0, **arguments), (200,)),
        (layers.SpectralDense(200, eps_bjorck=None, **arguments), (70,)),
        (layers.SpectralConv2D(6, 3, **arguments), (6, 6, 2)),
        (layers.SpectralGroupedConv2D(8, 1, groups=2, **arguments), (6, 6, 4)),
        (layers.SpectralConv2D(6, 3, bound="operator", **arguments), (6, 6, 2)),
    ):
        layer.build((None, *shape))
        harness.assert_bounded(layer)
        # Half precision of the variable must not reach what is used.
        start = to_numpy(layer.wbar)
        layer.wbar.refresh(layer.kernel)
        assert_close(start, layer.wbar, atol=2e-6)


class _Expanding(SpectralInitializer):
    """Draws anything, whatever the class that it comes from promises."""

    def __call__(self, shape, dtype=None, **kwargs):
        return 5.0 * super().__call__(shape, dtype)


@pytest.mark.parametrize(
    "initializer",
    [
        _Expanding(),
        SpectralInitializer(k_coef_lip=1e-40),
        SpectralInitializer(k_coef_lip=1e37),
    ],
)
def test_bound_holds_at_the_start_for_initializers_of_others(initializer):
    layer = built(layers.SpectralDense(7, kernel_initializer=initializer), 20)
    harness.assert_bounded(layer)


@pytest.mark.parametrize("container", [keras.Sequential, Sequential])
@pytest.mark.parametrize("factor", [10.0, -1e20, np.nan])
def test_bound_holds_after_foreign_weights(container, factor, tmp_path):
    # C3
    model = image_classifier(container, 4)
    finite = [w + 0.1 for w in model.get_weights()]
    names = [v.name for v in model.variables]
    # Kernels are scaled, constrained kernels replaced by anything at all.
    foreign = [
        factor * w if name == "wbar" else 7 * w
        for name, w in zip(names, finite, strict=True)
    ]
    model.set_weights(foreign)
    harness.assert_all_bounded(model)

    tensors = [ops.convert_to_tensor(w.astype("float32")) for w in foreign]
    # JAX leaves the results of each step in this way.
    if keras.backend.backend() != "jax":
        model.set_weights(tensors)
        harness.assert_all_bounded(model)

    # The same through a file.
    for variable, value in zip(model.variables, tensors, strict=True):
        harness.assign_unguarded(variable, value)
    path = tmp_path / "foreign.weights.h5"
    model.save_weights(path)
    other = image_classifier(container, 4)
    other.load_weights(path)
    harness.assert_all_bounded(other)


def test_valid_weights_are_loaded_bit_for_bit():
    model = image_classifier(keras.Sequential, 4)
    model(np.ones((1, 6, 6, 1), "float32"), training=True)
    twin = image_classifier(keras.Sequential, 4)
    twin.set_weights(model.get_weights())
    assert_all_equal(model.get_weights(), twin.get_weights())


def test_singular_values_are_one_with_orthogonalisation():
    rng = np.random.default_rng(0)
    for shape in [(64, 32), (32, 32), (20, 50), (200, 100)]:
        layer = built(layers.SpectralDense(shape[1]), shape[0])
        u, _, v = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
        values = np.geomspace(0.1, 1.0, min(shape))
        layer.kernel.assign(u * values @ v)
        layer(np.zeros((1, shape[0]), "float32"), training=True)
        found = harness.singular_values(harness.as_matrix(layer.wbar))
        assert found[-1] >= 1 - 1e-2
    layer = built(layers.SpectralDense(32), 64)
    layer(np.zeros((1, 64), "float32"), training=True)
    found = harness.singular_values(harness.as_matrix(layer.wbar))
    assert found[-1] >= 1 - 1e-3


@pytest.mark.parametrize("eps_bjorck", [1e-3, 1e6, float("inf")])
@pytest.mark.parametrize("maxiter_bjorck", [1, 15])
def test_bound_holds_for_any_tolerance(eps_bjorck, maxiter_bjorck):
    layer = layers.SpectralDense(
        6, eps_bjorck=eps_bjorck, maxiter_bjorck=maxiter_bjorck
    )
    layer.build((None, 9))
    for kind, kernel in harness.hostile_matrices((9, 6), 15):
        layer._after_update(ops.convert_to_tensor(kernel))
        assert harness.expansion(layer) <= 1 + harness.TOLERANCE, kind


def test_optimizer_leaves_the_kernel_on_the_manifold():
    model = image_classifier(keras.Sequential, 4)
    model.compile("adam", MulticlassHKR(10.0), **FAST)
    x = np.random.default_rng(0).standard_normal((64, 6, 6, 1))
    y = np.eye(4)[np.arange(64) % 4]
    model.fit(x, y, batch_size=16, epochs=2, verbose=0)
    for layer in harness.constrained_layers(model):
        if isinstance(layer, layers.FrobeniusDense):
            continue
        values = harness.singular_values(harness.as_matrix(layer.kernel))
        assert values[-1] >= (1 - 1e-2) * values[0]


def test_bound_holds_with_an_optimizer_that_ignores_constraints():
    layer = built(layers.SpectralDense(6), 5)
    x = normal(8, 5)
    rng = np.random.default_rng(1)
    for step in range(20):
        update = rng.standard_normal((5, 6)) * 10.0 ** (step % 5 - 2)
        layer.kernel.assign(to_numpy(layer.kernel) + update)
        layer(x, training=True)
        harness.assert_bounded(layer)


@pytest.mark.parametrize(
    "layer_class",
    [layers.SpectralDense, layers.AOLDense, layers.OrthogonalDense],
)
def test_user_constraint_is_kept_and_the_bound_holds(layer_class):
    layer = layer_class(4, kernel_constraint="non_neg")
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile("sgd", "mse", **FAST)
    model.fit(np.ones((16, 6)), np.ones((16, 4)), epochs=3, verbose=0)
    assert np.all(to_numpy(layer.kernel) >= 0)
    harness.assert_bounded(layer)


def test_short_axes_are_bounded_by_their_length_and_longer_ones_refused():
    layer = built(layers.SpectralConv2D(2, 3), 2, 8, 1)
    assert layer.coef_lip == pytest.approx(1 / 6**0.5)
    with pytest.raises(ValueError, match="incompatible"):
        layer(np.ones((1, 8, 8, 1), "float32"))


def test_unknown_image_size_gives_a_bound_for_all_sizes():
    # C14
    inputs = keras.Input((None, None, 1))
    layer = layers.SpectralConv2D(4, 3)
    model = keras.Model(inputs, layer(inputs))
    assert layer.coef_lip == pytest.approx(1 / 3)
    for size in (2, 5, 9):
        x = np.random.default_rng(size).standard_normal((2, size, size, 1))
        y = to_numpy(model(x))
        assert np.linalg.norm(y[0] - y[1]) <= np.linalg.norm(x[0] - x[1])


@pytest.mark.parametrize("rows", [5000, 50176, 150528])
@pytest.mark.parametrize(
    "kind",
    [
        "constant",
        *(
            pytest.param(kind, marks=pytest.mark.elsewhere)
            for kind in ("uniform", "normal")
        ),
    ],
)
def test_bound_holds_for_very_long_columns(rows, kind):
    # One sum of 50,000 float32 terms of one sign is wrong by 3e-4.
    rng = np.random.default_rng(0)
    for units in (1, 3):
        draws = {
            "constant": np.full((rows, units), 0.7301),
            "uniform": rng.uniform(0.0, 1.0, (rows, units)),
            "normal": rng.standard_normal((rows, units)),
        }
        for layer in (
            layers.SpectralDense(units, kernel_initializer="zeros"),
            layers.SpectralDense(
                units, kernel_initializer="zeros", eps_bjorck=None
            ),
            layers.FrobeniusDense(units, kernel_initializer="zeros"),
            layers.FrobeniusDense(
                units, kernel_initializer="zeros", disjoint_neurons=False
            ),
        ):
            layer.build((None, rows))
            layer.kernel.assign(draws[kind])
            layer(np.zeros((1, rows), "float32"), training=True)
            matrix = harness.as_matrix(layer.wbar)
            if getattr(layer, "disjoint_neurons", False):
                norm = np.max(np.linalg.norm(matrix, axis=0))
            else:
                norm = np.sqrt(np.linalg.eigvalsh(matrix.T @ matrix)[-1])
            assert norm <= 1 + TOLERANCE


def test_threads_do_not_see_the_kernels_of_each_other():
    layer = built(layers.SpectralDense(8, use_bias=False), 8)
    rng = np.random.default_rng(0)
    layer.kernel.assign(1000 * rng.standard_normal((8, 8)))
    x = ops.convert_to_tensor(rng.standard_normal((4, 8)).astype("float32"))
    expected = to_numpy(layer(x, training=False))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            results = list(
                pool.map(lambda _: layer(x, training=False), range(800))
            )
    finally:
        sys.setswitchinterval(interval)
    for result in results:
        assert_close(result, expected, atol=1e-5)


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="about compiled JAX functions"
)
def test_a_function_compiled_by_jax_leaves_the_state_usable():
    import jax

    model = image_classifier(keras.Sequential, 4)
    x = normal(2, 6, 6, 1)
    before = model.get_weights()
    expected = model.predict(x, verbose=0)
    found = jax.jit(lambda z: model(z))(x)
    assert_close(np.asarray(found), expected, atol=1e-4)
    jax.jit(jax.grad(lambda z: model(z).sum()))(x)
    assert_all_equal(before, model.get_weights())
