"""Certificates hold for the rounding of float32 and of float64."""

import math
import sys

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from harness import to_numpy
from small_networks import certified_classifier
from small_networks import linear_classifier
from small_networks import samples
from small_networks import stack

from deel.lip import layers
from deel.lip._numerics.windows import Axis
from deel.lip.certification import Bound
from deel.lip.certification import Step
from deel.lip.certification import certify
from deel.lip.certification import register_bound
from deel.lip.certification._network import Network
from deel.lip.certification._norms import convolution_column_norm
from deel.lip.certification._norms import explicit_matrix
from deel.lip.certification._rounding import FLOAT32
from deel.lip.certification._rounding import sums_of_nodes


def exact_margins(model, x):
    """Leads of `small_network`, of float64 sums written by hand."""
    exact = x.astype("float64").reshape(len(x), -1)
    exported = model.vanilla_export()
    weights = [np.asarray(w, "float64") for w in exported.get_weights()]
    conv, bias, first, first_bias, last, last_bias = weights
    matrix = explicit_matrix(conv[:, :, None], [Axis(6, 3, 1, 1, "same")] * 2)

    def sorted_pairs(z):
        return np.sort(z.reshape(len(z), -1, 2), axis=-1).reshape(len(z), -1)

    hidden = sorted_pairs(exact @ matrix[0] + np.tile(bias, 36))
    hidden = sorted_pairs(hidden @ first + first_bias)
    scores = np.sort(hidden @ last + last_bias, axis=1)
    return scores[:, -1] - scores[:, -2]


def test_scores_of_float64_are_right_within_what_is_taken_off():
    model, x = certified_classifier(), 10 * samples(200)
    certificates = certify(model, x)
    error = np.abs(exact_margins(model, x) - certificates.margin)
    assert np.all(error <= certificates.rounding)
    assert np.max(certificates.rounding) < 1e-11 * np.max(certificates.margin)


@pytest.mark.parametrize(
    ("rounding", "share"), [("float32", 1e-3), ("estimated", 2e-4)]
)
def test_rounding_of_the_scores_is_below_what_is_taken_off(rounding, share):
    model, x = certified_classifier(), 10 * samples(200)
    certificates = certify(model, x, rounding=rounding)
    scores = np.sort(np.asarray(model.predict(x, verbose=0), "float64"), axis=1)
    error = np.abs(exact_margins(model, x) - (scores[:, -1] - scores[:, -2]))
    assert np.all(error < certificates.rounding)
    # And it is small.
    assert np.max(certificates.rounding) < share * np.max(certificates.margin)


def test_radii_are_the_larger_the_less_is_proven_of_rounding():
    model, x = certified_classifier(), samples(200)
    exact, float32, estimated = (
        certify(model, x, rounding=rounding)
        for rounding in ("exact", "float32", "estimated")
    )
    assert np.all(float32.radius <= exact.radius)
    assert_equal(float32.radius, exact.float32_radius)
    assert_equal(float32.radius, float32.float32_radius)
    assert estimated.float32_radius is None
    assert_close(estimated.radius, exact.radius, atol=1e-4)
    assert np.median(float32.radius) > 0.99 * np.median(exact.radius)
    with pytest.raises(ValueError, match="rounding='float16'"):
        certify(model, x, rounding="float16")


def test_a_device_with_fewer_digits_than_float32_is_noticed(monkeypatch):
    model, x = certified_classifier(), samples(4)
    predict = model.predict_on_batch
    monkeypatch.setattr(
        model, "predict_on_batch", lambda x: predict(x) * (1 + 1e-3)
    )
    for rounding in ("exact", "float32"):
        with pytest.raises(ValueError, match="fewer digits than float32"):
            certify(model, x, rounding=rounding)


@pytest.mark.parametrize(
    "rounding",
    [
        Step(terms=1),
        Step(-3.0, terms=1),
        Step(np.nan),
        Step(3.0, terms=1, magnified=2.0),
        [Step(3.0)],
    ],
)
def test_steps_that_contradict_their_bound_are_refused(rounding):
    class Odd(keras.layers.Layer):
        def call(self, x):
            return 3.0 * x

    register_bound(
        Odd, lambda layer, shapes: Bound(3.0, "odd", rounding=rounding)
    )
    model = stack(Odd(), keras.layers.Dense(2))
    with pytest.raises(ValueError, match="rounding="):
        certify(model, np.ones((1, 4)))


class Tripled(keras.layers.Layer):
    factor = 1.0

    def call(self, x):
        return self.factor * x


def test_state_that_no_config_tells_is_noticed():
    layer = Tripled()
    layer.factor = 3.0
    model = stack(layer, keras.layers.Dense(2), shape=(4,))
    given = {Tripled: 3.0}
    x = np.ones((1, 4), "float32")
    with pytest.raises(ValueError, match="not in its config"):
        certify(model, x, constants=given)
    assert certify(model, x, constants=given, rounding="estimated").radius > 0


def test_layers_that_cannot_be_copied_are_named():
    class Unknown(keras.layers.Layer):
        def __init__(self, function, **kwargs):
            super().__init__(**kwargs)
            self.function = function

        def call(self, x):
            return self.function(x)

    unknown = Unknown(lambda x: 2 * x, name="odd")
    model = stack(unknown, keras.layers.Dense(2))
    with pytest.raises(ValueError, match="failed for layer 'odd'"):
        certify(model, np.ones((1, 4)), constants={"odd": 2.0})


@pytest.mark.parametrize("name", ["BatchNormalization", "BatchCentering"])
def test_rounding_counts_what_is_subtracted_and_added_again(name):
    normalize = {
        "BatchNormalization": keras.layers.BatchNormalization(epsilon=1e-9),
        "BatchCentering": layers.BatchCentering(),
    }[name]
    model = stack(normalize, keras.layers.Dense(1), shape=(1,))
    values = {"mean": 1e6, "moving_mean": 1e6, "beta": 1e6, "bias": 1e6}
    for weight in normalize.weights:
        weight.assign(np.full(weight.shape, values.get(weight.name, 1.0)))
    model.layers[-1].set_weights([np.ones((1, 1)), np.zeros(1)])
    # Numbers near a million are 1/16 apart in float32.
    certificates = certify(model, [[0.05]], rounding="float32")
    assert certificates.rounding[0] > 1 / 16
    assert certificates.radius[0] == 0
    # The network of real numbers has no such trouble.
    certificates = certify(model, [[0.05]])
    assert certificates.radius[0] == pytest.approx(0.05, rel=0.02)
    assert certificates.float32_radius[0] == 0


def test_scores_that_are_not_finite_are_not_certified():
    model = linear_classifier(np.array([[3e38, 0.0], [0.0, 1.0]]))
    x = [[10.0, 0.0], [0.0, 1.0]]
    for rounding in ("float32", "estimated"):
        with pytest.raises(ValueError, match="1 NaN or infinite scores"):
            certify(model, x, rounding=rounding)
    # A float64 score is finite, and proven of the network of real numbers.
    certificates = certify(model, x)
    assert certificates.radius[0] == pytest.approx(10.0)
    assert certificates.float32_radius[0] == 0


def test_reduced_precision_of_products_is_noticed(monkeypatch):
    module = sys.modules["deel.lip.certification._device"]
    usual = module.rounding_unit()
    assert usual < 1e-6
    assert module.rounding_of_factors() == 0
    model, x = certified_classifier(), samples(10)
    radius = certify(model, x).float32_radius
    matmul = keras.ops.matmul

    def coarse(x, y):
        if keras.backend.standardize_dtype(x.dtype) != "float32":
            return matmul(x, y)
        x, y = (np.asarray(to_numpy(z)).view("uint32") for z in (x, y))
        # Ten bits of the mantissa, as TF32 keeps.
        x, y = ((z & 0xFFFFE000).view("float32") for z in (x, y))
        return matmul(keras.ops.convert_to_tensor(x), y)

    monkeypatch.setattr(module.ops, "matmul", coarse)
    assert module.rounding_unit() > 100 * usual
    # Cut off after ten bits, instead of rounded to the nearest.
    assert module.rounding_of_factors() == 2.0**-10
    certificates = certify(model, x)
    assert np.all(certificates.float32_radius < radius)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_not_certified(dtype):
    model = stack(keras.layers.Dense(2, dtype=dtype))
    # Keras 3.4 has it round the inputs, too.
    with pytest.raises(ValueError, match=r"half precision|must not be rounded"):
        certify(model, np.ones((1, 4)))


def one_by_one(leaves):
    """The nodes of a tree that adds one leaf after the other."""
    return [leaves[:end] for end in range(2, len(leaves) + 1)]


def split_at_random(leaves, rng):
    """The nodes of a tree that is split anywhere, down to its leaves."""
    if len(leaves) == 1:
        return []
    at = rng.integers(1, len(leaves))
    halves = (leaves[:at], leaves[at:])
    return [leaves, *(x for half in halves for x in split_at_random(half, rng))]


def hardest_terms(nodes, start, offset):
    """Terms whose sums at the nodes are large, beside their spread."""
    terms = start
    for _ in range(20):
        signs = [np.sign(np.sum(terms[node])) for node in nodes]
        counts = np.zeros(len(terms))
        for node, sign in zip(nodes, signs, strict=True):
            counts[node] += sign
        terms = counts - offset * np.mean(counts)
        if not np.any(terms):
            return start
    return terms


@pytest.mark.elsewhere
def test_no_order_makes_sums_in_the_middle_larger_than_what_is_proven():
    rng = np.random.default_rng(0)
    largest = 0.0
    for _ in range(400):
        count = int(rng.integers(2, 60))
        leaves = rng.permutation(count)
        nodes = one_by_one(leaves)
        if rng.random() < 0.6:
            nodes = split_at_random(leaves, rng)
        start = rng.normal(size=count)
        for terms in (
            start,
            np.abs(start),
            np.sort(start),
            hardest_terms(nodes, start, rng.choice([0.0, 0.5, 1.0])),
        ):
            sums = sum(abs(np.sum(terms[node])) for node in nodes)
            sums += np.sum(np.abs(terms))
            # One of them may be a bias.
            for bias, products in ((0.0, terms), (terms[0], terms[1:])):
                bound = count * abs(bias) + sums_of_nodes(
                    count,
                    abs(np.sum(products)),
                    np.sum(np.abs(products)),
                    np.linalg.norm(products),
                )
                assert sums <= bound * (1 + 1e-12)
                largest = max(largest, sums / bound)
    # Some orders come near.
    assert largest > 0.99


@pytest.mark.elsewhere
@pytest.mark.parametrize("padding", ["same", "valid", "circular", "reflect"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_what_one_value_of_an_image_is_multiplied_by_is_bounded(
    padding, stride, dilation
):
    rng = np.random.default_rng(1)
    for size in (2, 3):
        if padding == "reflect" and size == 2:
            continue
        axes = [Axis(9, size, stride, dilation, padding)] * 2
        kernel = rng.normal(size=(size, size, 2, 3, 4))
        # A window may read one value with several taps.
        squares = explicit_matrix(kernel**2, axes)
        largest = math.sqrt(np.max(np.sum(squares, axis=-1)))
        bound = convolution_column_norm(kernel, axes)
        assert largest <= bound
        if padding in ("same", "valid"):
            assert largest == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (keras.layers.Dense(3), (5,)),
        (keras.layers.EinsumDense("abc,cd->abd", (4, 3)), (4, 2)),
        (keras.layers.Conv1D(3, 3, strides=2, padding="causal"), (7, 2)),
        (keras.layers.Conv2D(4, (2, 3), groups=2), (5, 5, 4)),
        (keras.layers.Conv3D(2, 2, padding="same"), (3, 3, 3, 2)),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (5, 5, 2)),
        (keras.layers.Conv2DTranspose(1, 3, strides=2), (3, 3, 4)),
        (keras.layers.Conv2DTranspose(4, 2, padding="same"), (4, 4, 1)),
        (layers.OrthogonalConv2D(5, 4, strides=2), (8, 8, 2)),
        (layers.SpectralConv2D(2, 3, strides=(1, 2)), (6, 6, 3)),
        (layers.SpectralConv2DTranspose(2, 3), (4, 4, 3)),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_columns_of_a_step_are_those_of_the_layer(layer, shape):
    class Recorder:
        def computed(self, step):
            self.step = step
            return FLOAT32.computed(step)

    model = keras.Sequential([keras.Input(shape), layer])
    network = Network(model, shape, None, "float32")
    recorder = Recorder()
    network.calls[0].bound.rounding(recorder)
    count = math.prod(shape)
    x = np.eye(count, dtype="float32").reshape(count, *shape)
    outputs = to_numpy(model(x, training=False)).reshape(count, -1)
    columns = np.linalg.norm(outputs, axis=1)
    assert recorder.step.columns == pytest.approx(np.max(columns), rel=1e-3)
    assert recorder.step.columns >= np.max(columns) * (1 - 1e-6)


@pytest.mark.elsewhere
def test_sums_of_an_orthogonal_kernel_are_proven_to_lose_less():
    matrix, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(512, 512)))
    known = {
        "constant": 1.0,
        "terms": 513,
        "magnified": np.linalg.norm(np.abs(matrix), 2),
        "is_product": True,
    }
    of_any = FLOAT32.of_sums(Step(**known))
    assert FLOAT32.of_sums(Step(**known, columns=1.0)) < 0.45 * of_any
    # Where all terms have one sign, nothing is better.
    known["magnified"] = 1.0
    assert FLOAT32.of_sums(Step(**known, columns=1.0)) <= of_any
