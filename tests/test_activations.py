"""Golden values of the activations, and gradients at ties."""

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_close
from harness import assert_equal
from harness import built
from harness import normal
from harness import reloaded
from harness import to_numpy
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import ops

from deel.lip import activations
from deel.lip import layers
from deel.lip._backend import compilation as _compilation
from deel.lip._backend.differentiation import compiled
from deel.lip.certification import lipschitz_bound
from deel.lip.model import Sequential

X = [3.0, 1.0, -2.0, -5.0, 0.0, 4.0]


@pytest.mark.parametrize(
    ("layer", "x", "expected"),
    [
        (layers.GroupSort2(), X, [1, 3, -5, -2, 0, 4]),
        (layers.GroupSort2(n=6), X, [1, 3, -5, -2, 0, 4]),
        (layers.GroupSort(3), X, [-2, 1, 3, -5, 0, 4]),
        (layers.GroupSort(2.0), X, [1, 3, -5, -2, 0, 4]),
        (layers.GroupSort(1), X, X),
        (layers.GroupSort(100), X, sorted(X)),
        (layers.GroupSort(), X, sorted(X)),
        (layers.FullSort(), X, sorted(X)),
        (layers.FullSort(n=2), X, sorted(X)),
        (layers.GroupSort(2, k_coef_lip=2.0), X, [2, 6, -10, -4, 0, 8]),
        (layers.MaxMin(), [3, -2], [3, 0, 0, 2]),
        (layers.MaxMin(k_coef_lip=0.5), [3, -2], [1.5, 0, 0, 1]),
    ],
)
def test_golden_values(layer, x, expected):
    assert_equal(layer(np.array([x], "float32")), [expected])


@pytest.mark.parametrize("channels", [2, 6, 16, 32, 48, 50, 2050])
@pytest.mark.parametrize("leading", [(5,), (2, 3), (2, 4, 3)])
def test_pair_sort_is_exact_and_sorts_neighbours(channels, leading):
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-20, 20, (*leading, channels))
    x = (scale * rng.standard_normal(scale.shape)).astype("float32")
    x[..., :2] = 7.0
    found = to_numpy(layers.GroupSort2()(x))
    pairs = x.reshape(*leading, channels // 2, 2)
    assert_equal(found, np.sort(pairs, axis=-1).reshape(x.shape))


@pytest.mark.parametrize("size", [2, 3, 6])
def test_gradient_is_the_permutation_of_the_sort(size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 6)).astype("float32")
    upstream = rng.standard_normal((4, 6)).astype("float32")
    layer = layers.GroupSort(size)
    (found,) = harness.gradient(
        lambda z: ops.sum(ops.multiply(layer(z), upstream)), x
    )
    groups = x.reshape(4, -1, size)
    order = np.argsort(groups, axis=-1)
    expected = np.zeros_like(groups)
    np.put_along_axis(expected, order, upstream.reshape(groups.shape), -1)
    assert_equal(found, expected.reshape(x.shape))


def test_gradient_at_ties_keeps_its_norm():
    upstream = np.array([[1.0, 2.0, 3.0, 4.0]], "float32")
    layer = layers.GroupSort2()
    (found,) = harness.gradient(
        lambda z: ops.sum(ops.multiply(layer(z), upstream)),
        np.zeros((1, 4), "float32"),
    )
    assert_equal(found, upstream)


@pytest.mark.parametrize(
    "layer", [layers.GroupSort2(), layers.MaxMin(), layers.FullSort()]
)
def test_norm_is_kept(layer):
    x = normal(10, 8)
    y = to_numpy(layer(x))
    assert_close(
        np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-6
    )


def test_output_shapes_accept_tuples_and_are_not_mutated():
    # C8
    shape = (None, 4, 3)
    assert layers.MaxMin().compute_output_shape(shape) == (None, 4, 6)
    listed = [None, 4, 3]
    first = layers.MaxMin(data_format="channels_first")
    assert first.compute_output_shape(listed) == (None, 8, 3)
    assert listed == [None, 4, 3]
    assert layers.GroupSort(3).compute_output_shape(shape) == shape


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.GroupSort(2, data_format="channels_first"),
        lambda: layers.GroupSort2(data_format="channels_first"),
        lambda: layers.FullSort(data_format="other"),
        lambda: layers.MaxMin(data_format="other"),
        lambda: layers.GroupSort(4).build((None, 6)),
        lambda: layers.GroupSort(4)(np.zeros((1, 6), "float32")),
    ],
)
def test_wrong_arguments_are_refused(make):
    with pytest.raises(RuntimeError, match="Received: "):
        make()


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", True])
def test_group_size_and_order_must_be_positive_integers(n):
    with pytest.raises(ValueError, match="Received: n="):
        layers.GroupSort(n)
    with pytest.raises(ValueError, match="Received: order="):
        layers.Householder(order=n)


def test_activations_are_also_in_layers():
    for name in activations.__all__:
        assert getattr(activations, name) is getattr(layers, name)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [-2, 1, 3, 5]),
        ({"k_coef_lip": 2.0}, [-4, 2, 6, 10]),  # C11
        (
            {"theta_initializer": keras.initializers.Constant(np.pi / 3)},
            [-0.2320508, 1, 3.5980762, 5],
        ),
        # The pairs (3, -2) and (1, 5) are sorted. The second fold leaves both,
        # since |x| < y; the third changes the sign of x < 0.
        ({"order": 2}, [-2, 1, 3, 5]),
        ({"order": 3, "k_coef_lip": 2.0}, [4, 2, 6, 10]),
        # A second fold at the same line finds nothing to reflect.
        (
            {
                "order": 2,
                "theta_initializer": keras.initializers.Constant(np.pi / 3),
            },
            [-0.2320508, 1, 3.5980762, 5],
        ),
    ],
)
def test_householder_golden_values(arguments, expected):
    x = np.array([[3.0, 1.0, -2.0, 5.0]], "float32")
    assert_close(layers.Householder(**arguments)(x), [expected], atol=1e-6)


def test_householder_of_second_order_reflects_both_pieces_of_the_first():
    # All of (3, 1), (1, 3), (-1, -3) and (-3, -1) become (1, 3).
    x = np.array([[3, 1, 1, 3], [-1, -3, -3, -1]], "float32").reshape(4, 2)
    assert_close(layers.Householder(order=2)(x), [[1, 3]] * 4, atol=1e-6)


def _folds(angles, k_coef_lip=1.0):
    """An activation of two channels with these angles."""
    layer = layers.Householder(order=len(angles), k_coef_lip=k_coef_lip)
    layer.build((None, 2))
    layer.theta.assign(np.reshape(angles, layer.theta.shape))
    return layer


angles_of_folds = st.lists(
    st.floats(-7.0, 7.0, allow_nan=False, width=32), min_size=1, max_size=4
)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(angles_of_folds, st.floats(0.1, 10.0))
def test_householder_is_continuous_and_expands_nothing(angles, radius):
    # Neighbours on a circle, which crosses each line twice. At a jump they
    # would be far apart.
    turns = np.linspace(0, 2 * np.pi, 2001)
    x = radius * np.stack([np.cos(turns), np.sin(turns)], axis=-1)
    layer = _folds(angles, k_coef_lip=2.0)
    y = to_numpy(layer(x.astype("float32"))).astype("float64")
    steps = np.linalg.norm(np.diff(x, axis=0), axis=1)
    moved = np.linalg.norm(np.diff(y, axis=0), axis=1)
    assert np.all(moved <= 2.0 * steps + 1e-5 * radius)
    # Norms are kept, and points far apart do not part either.
    assert_close(np.linalg.norm(y, axis=1), 2.0 * radius, rtol=1e-5)
    for shift in (137, 500, 1000):
        gap = np.linalg.norm(x[shift:] - x[:-shift], axis=1)
        moved = np.linalg.norm(y[shift:] - y[:-shift], axis=1)
        assert np.all(moved <= 2.0 * gap + 1e-5 * radius)


@settings(max_examples=20, deadline=None, database=None, derandomize=True)
@given(angles_of_folds, st.integers(0, 1000))
def test_jacobian_of_householder_is_orthogonal(angles, seed):
    x = normal(20, 2, seed=seed)
    layer = _folds(angles)
    rows = [
        harness.gradient(lambda z, i=i: ops.sum(layer(z)[:, i]), x)[0]
        for i in range(2)
    ]
    jacobians = np.stack(rows, axis=1)
    assert_close(np.linalg.svd(jacobians, compute_uv=False), 1.0, atol=1e-5)


def test_each_fold_of_householder_halves_what_those_before_have_left():
    turns = np.linspace(0, 2 * np.pi, 1000)
    x = np.stack([np.cos(turns), np.sin(turns)], axis=-1).astype("float32")
    for order in (1, 2, 3, 4):
        y = to_numpy(layers.Householder(order=order)(x))
        angles = np.arctan2(y[:, 1], y[:, 0]) - np.pi / 4
        # Counted from a little before the diagonal, where the sector begins.
        angles = np.mod(angles + 1e-3, 2 * np.pi) - 1e-3
        sector = np.pi / 2 ** (order - 1)
        assert sector - 1e-2 <= np.max(angles) <= sector + 1e-3


def test_householder_of_first_order_is_what_it_was_without_an_order():
    config = layers.Householder(name="h").get_config()
    assert config.pop("order") == 1
    layer = built(layers.Householder.from_config(config), 6)
    assert tuple(layer.theta.shape) == (3,)
    assert_equal(layer.theta, np.full(3, np.pi / 2, "float32"))
    assert layers.Householder("channels_last", 1.0, None, 2).order == 2


@pytest.mark.parametrize("order", [1, 2])
def test_householder_is_trained_bounded_and_saved_within_a_layer(
    order, tmp_path
):
    layer = layers.SpectralDense(4, activation=layers.Householder(order=order))
    model = Sequential([keras.Input((3,)), layer], k_coef_lip=2.0)
    names = [v.name for v in model.trainable_variables]
    assert names == ["kernel", "bias", "theta"]
    theta = to_numpy(layer.activation.theta[:])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=JIT)
    x = np.random.default_rng(0).standard_normal((8, 3))
    model.fit(x, np.ones((8, 4)), verbose=0)
    # Each of the folds has learned something.
    moved = to_numpy(layer.activation.theta[:]) != theta
    assert np.all(np.any(moved.reshape(order, -1), axis=1))
    assert lipschitz_bound(model) <= 2 * (1 + 1e-4)
    expected = model.predict(x, verbose=0)
    loaded = reloaded(model, tmp_path)
    assert_equal(loaded.predict(x, verbose=0), expected)
    exported = model.vanilla_export()
    assert_close(exported.predict(x, verbose=0), expected, atol=1e-5)
    assert exported.layers[0].activation is not layer.activation


def test_householder_refuses_what_it_cannot_pair():
    with pytest.raises(RuntimeError, match="Received: data_format"):
        layers.Householder(data_format="channels_first")
    with pytest.raises(RuntimeError, match="Received: channels=3"):
        layers.Householder().build((None, 3))


def test_prelu_slopes_are_bounded_one_by_one():
    # C12: a bound of the norm of all slopes would shrink each of them.
    model = keras.Sequential([keras.Input((4,)), layers.PReLUlip(0.5)])
    (alpha,) = model.trainable_variables
    alpha.assign([3.0, -2.0, 0.25, 0.5])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=JIT)
    model.fit(np.ones((4, 4)), np.ones((4, 4)), verbose=0)
    assert_close(alpha[:], [0.5, -0.5, 0.25, 0.5])
    with pytest.raises(ValueError, match="Received: k_coef_lip"):
        layers.PReLUlip(-1.0)


def test_clipped_prelu_clips_where_the_slope_is_used():
    layer = built(layers.LipschitzPReLU(0.5), 4)
    (slopes,) = layer.trainable_variables
    assert_equal(slopes[:], [0.25] * 4)
    slopes.assign([3.0, -2.0, 0.25, 0.5])
    x = np.array([[-2.0] * 4, [2.0] * 4], "float32")
    assert_close(layer(x), [[-1, 1, -0.5, -1], [2] * 4])
    # The variable keeps what it was given.
    assert_close(slopes[:], [3.0, -2.0, 0.25, 0.5])
    assert isinstance(layer, keras.layers.PReLU)


def test_clipped_prelu_is_bounded_while_it_is_trained():
    layer = layers.LipschitzPReLU(1.0, shared_axes=[1])
    model = keras.Sequential([keras.Input((3, 2)), layer])
    # The wanted slope is 3.
    model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=JIT)
    x = -np.ones((8, 3, 2), "float32")
    model.fit(x, 3 * x, epochs=5, verbose=0)
    assert np.all(to_numpy(layer.weights[0][:]) > 1.0)
    assert_close(model.predict(x, verbose=0), x)


def test_clipped_prelu_counts_as_1_lipschitz_up_to_slope_one():
    model = Sequential(
        [keras.Input((3,)), layers.LipschitzPReLU()], k_coef_lip=0.5
    )
    # Positive values pass unchanged, so it can take no share below 1.
    assert model.layers[0].k_coef_lip == 1.0
    assert model._get_coef() == 1.0
    with pytest.warns(UserWarning, match="not a 1-Lipschitz layer"):
        Sequential([keras.Input((3,)), layers.LipschitzPReLU(1.5)])
    with pytest.raises(ValueError, match="Received: k_coef_lip"):
        layers.LipschitzPReLU(0.0)
    # PyTorch replaces the message, which asks to build the layer first.
    with pytest.raises(AttributeError, match="alpha"):
        _ = layers.LipschitzPReLU().alpha


@pytest.mark.parametrize(
    ("channels", "dtype"),
    [
        (2, "float32"),
        (6, "float32"),
        (16, "float32"),
        (34, "float32"),
        (6, "float64"),
        (6, "float16"),
        (6, "bfloat16"),
    ],
)
def test_pairs_are_sorted_the_same_in_training_and_inference(
    channels, dtype, monkeypatch
):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has float64 only where the whole process does")
    # Training takes another way with large tensors, so all are large here.
    monkeypatch.setattr(_compilation, "_LARGE", 0)
    random = np.random.default_rng(channels)
    # Few values, so that many pairs are tied; zeros of both signs among them.
    x = random.integers(-2, 3, (4, 5, 3, channels)).astype("float32")
    x *= random.choice([-1.0, 1.0], x.shape).astype("float32")
    # No dtype rounds these.
    factors = random.integers(-99, 100, x.shape).astype("float32")
    layer = activations.GroupSort2(dtype=dtype)
    outputs, gradients = [], []
    for training in (True, False):

        def sort(x, factors, training=training):
            y = layer(ops.cast(x, dtype), training=training)
            return ops.cast(y, "float32")

        def weighted(x, factors, sort=sort):
            return ops.sum(sort(x, factors) * factors, axis=(1, 2, 3))

        outputs.append(compiled(sort)[0](x, factors))
        gradients.append(compiled(weighted)[1](x, factors))
    pairs = x.reshape(-1, 2)
    assert_equal(outputs[0], np.sort(pairs).reshape(x.shape))
    assert_equal(outputs[1], outputs[0])
    assert_equal(gradients[1], gradients[0])
    swapped = pairs[:, :1] > pairs[:, 1:]
    factors = factors.reshape(-1, 2)
    expected = np.where(swapped, factors[:, ::-1], factors)
    assert_equal(gradients[0], expected.reshape(x.shape))
