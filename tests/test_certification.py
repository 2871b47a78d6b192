"""Proven bounds are never too small, and certificates are never broken."""

import importlib
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from harness import normal
from harness import operator_norm
from harness import singular_values
from harness import to_numpy
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from registry import CONSTRAINED
from registry import OTHERS
from registry import rows

from deel.lip import layers
from deel.lip._numerics.windows import Axis
from deel.lip.activations import GroupSort2
from deel.lip.certification import Bound
from deel.lip.certification import Step
from deel.lip.certification import attack_accuracy
from deel.lip.certification import attack_distances
from deel.lip.certification import certified_accuracy
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.certification import register_bound
from deel.lip.certification._norms import convolution_norm
from deel.lip.certification._norms import explicit_matrix
from deel.lip.certification._norms import matrix_norm
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import SpectralConv2D
from deel.lip.layers import SpectralDense
from deel.lip.metrics import CategoricalProvableRobustAccuracy
from deel.lip.model import Model
from deel.lip.model import Sequential
from deel.lip.model import vanillaModel

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
fuzz = importlib.import_module("fuzz_certificates")

PADDINGS = (
    "valid",
    "same",
    "causal",
    "zeros",
    "reflect",
    "replicate",
    "symmetric",
    "circular",
)


@st.composite
def axes(draw, paddings=PADDINGS, known=True):
    padding = draw(st.sampled_from(paddings))
    size = draw(st.integers(1, 4))
    dilation = draw(st.integers(1, 3))
    shortest = (size - 1) * dilation + 1
    length = shortest + draw(st.integers(0, 4))
    return Axis(length, size, draw(st.integers(1, 3)), dilation, padding)


@st.composite
def convolutions(draw):
    """Kernels, random or of one sign, and the axes that they run along."""
    chosen = draw(st.lists(axes(), min_size=1, max_size=2))
    sizes = [axis.size for axis in chosen]
    groups, inputs, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kernel = random.standard_normal((*sizes, groups, inputs, outputs))
    kind = draw(st.sampled_from(["normal", "positive", "constant", "tiny"]))
    if kind == "positive":
        kernel = np.abs(kernel)
    elif kind == "constant":
        kernel = np.full(kernel.shape, kernel.flat[0])
    elif kind == "tiny":
        kernel = kernel * 1e-30
    return kernel, chosen


def exact_norm(kernel, chosen):
    return max(singular_values(m)[0] for m in explicit_matrix(kernel, chosen))


def without_explicit_matrices(patch):
    """Leaves the bounds that large convolutions have."""
    module = sys.modules["deel.lip.certification._norms"]
    patch.setattr(module, "_EXPLICIT_ENTRIES", 0)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(convolutions())
def test_bound_of_a_convolution_is_never_below_its_singular_values(case):
    kernel, chosen = case
    exact = exact_norm(kernel, chosen)
    value, _, is_exact = convolution_norm(kernel, chosen)
    assert value >= exact * (1 - 1e-14)
    if is_exact:
        assert value <= exact * (1 + 1e-8)


@settings(max_examples=50, deadline=None, database=None, derandomize=True)
@given(convolutions(), st.booleans())
def test_bound_from_frequencies_is_never_below_the_singular_values(
    case, sizes_are_known
):
    kernel, chosen = case
    exact = exact_norm(kernel, chosen)
    if not sizes_are_known:
        chosen = [
            Axis(None, a.size, a.stride, a.dilation, a.padding) for a in chosen
        ]
    with pytest.MonkeyPatch.context() as patch:
        without_explicit_matrices(patch)
        value, _, _ = convolution_norm(kernel, chosen)
    assert value >= exact * (1 - 1e-14)


@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(convolutions(), st.sampled_from([1.01, 1.1, 1.5]))
def test_coarse_grids_of_frequencies_are_still_upper_bounds(case, excess):
    kernel, chosen = case
    with pytest.MonkeyPatch.context() as patch:
        without_explicit_matrices(patch)
        module = sys.modules["deel.lip.certification._norms"]
        patch.setattr(module, "_FREQUENCY_PRODUCTS", 0)
        patch.setattr(module, "_COARSENESS", (excess,))
        value, _, _ = convolution_norm(kernel, chosen)
    assert value >= exact_norm(kernel, chosen) * (1 - 1e-14)


@pytest.mark.parametrize("padding", ["valid", "same", "circular"])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("length", [16, 24])
def test_bound_is_within_two_percent_on_maps_of_16_and_more(
    length, size, padding
):
    random = np.random.default_rng(0)
    chosen = [Axis(length, size, 1, 1, padding)] * 2
    kernel = random.standard_normal((size, size, 1, 2, 1))
    exact = exact_norm(kernel, chosen)
    value, _, _ = convolution_norm(kernel, chosen)
    assert exact * (1 - 1e-14) <= value <= 1.02 * exact


@pytest.mark.parametrize("padding", ["same", "circular"])
def test_bound_from_frequencies_is_within_two_percent_on_larger_maps(padding):
    random = np.random.default_rng(0)
    chosen = [Axis(30, 3, 1, 1, padding)] * 2
    kernel = random.standard_normal((3, 3, 1, 1, 1))
    exact = exact_norm(kernel, chosen)
    with pytest.MonkeyPatch.context() as patch:
        without_explicit_matrices(patch)
        value, method, _ = convolution_norm(kernel, chosen)
    assert method == "Fourier"
    assert exact * (1 - 1e-14) <= value <= 1.02 * exact


def test_worst_kernel_of_a_map_of_16_is_within_two_percent():
    # A constant kernel feels the border most: the frequencies alone would be
    # 2.3 % too high.
    chosen = [Axis(16, 3, 1, 1, "same")] * 2
    kernel = np.ones((3, 3, 1, 1, 1))
    exact = (1 + 2 * np.cos(np.pi / 17)) ** 2
    value, _, is_exact = convolution_norm(kernel, chosen)
    assert is_exact
    assert_close(value, exact, rtol=1e-8)


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (7, 2), (2, 3, 4)])
def test_norm_of_a_matrix_is_the_singular_value_and_never_less(shape):
    random = np.random.default_rng(0)
    for scale in (1e-200, 1.0, 1e200):
        matrix = random.standard_normal(shape)
        exact = np.max(np.linalg.svd(matrix, compute_uv=False))
        value, is_exact = matrix_norm(scale * matrix)
        assert is_exact
        assert exact <= value / scale <= exact * (1 + 1e-8)
    assert matrix_norm(np.zeros(shape)) == (0.0, True)


@pytest.mark.parametrize("spectrum", ["alone", "all equal", "clustered"])
def test_norm_that_is_proven_by_cholesky_is_close_and_never_less(spectrum):
    module = sys.modules["deel.lip.certification._norms"]
    random = np.random.default_rng(0)
    u, _, v = np.linalg.svd(random.standard_normal((80, 60)), False)
    values = {
        "alone": np.r_[1.0, np.full(59, 0.1)],
        "all equal": np.ones(60),
        "clustered": 1 - 1e-3 * random.uniform(size=60),
    }[spectrum]
    matrix = 3.0 * (u * values) @ v
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_EXACT_SIDE", 10)
        value, is_exact = matrix_norm(matrix)
    exact = singular_values(matrix)[0]
    assert not is_exact
    assert exact <= value <= 1.003 * exact


@rows(CONSTRAINED, slow=True)
def test_bound_of_our_layers_is_measured_and_within_their_promise(row):
    layer = row.make()
    layer.build((None, *row.input_shape))
    bound = lipschitz_bound(layer)
    assert bound <= row.constant * (1 + 2e-5)
    if row.arguments.get("activation") is None and not row.residual:
        assert bound >= operator_norm(layer, row.input_shape) * (1 - 1e-6)
    # Weights that inference uses are measured, and no promise.
    wbar = keras.ops.copy(layer.wbar)
    layer.wbar.assign_proven(0.5 * wbar)
    if not row.residual:
        assert_close(lipschitz_bound(layer), bound / 2, rtol=1e-5)
    # What breaks its promise got past the guard, which is to be known.
    layer.wbar.assign_proven(3.0 * wbar)
    with pytest.raises(ValueError, match="exceeds its promise"):
        lipschitz_bound(layer)


@rows(OTHERS)
def test_bound_of_our_layers_without_kernel_is_their_constant(row):
    layer = row.make()
    layer.build((None, *row.input_shape))
    bound = lipschitz_bound(layer)
    if row.layer is layers.LipschitzPReLU:
        assert bound == 1.0
    else:
        assert_close(bound, row.constant, rtol=1e-5)
        assert bound >= row.constant


def test_fuzzed_layers_stay_within_their_bounds():
    assert fuzz.fuzz_layers(24) == []


def test_fuzzed_models_stay_within_their_bounds():
    assert fuzz.fuzz_models(3) == []


@pytest.mark.parametrize("rounding", ["float32", "exact"])
def test_fuzzed_certificates_are_not_broken_by_rounding(rounding):
    count, failures = fuzz.fuzz_rounding(40, rounding)
    assert count >= 40
    assert failures == []


def test_half_precision_kernels_are_bounded_as_they_are_rounded():
    # 1 + 2^-8 is rounded up by 2^-8 in bfloat16, which has 8 bits.
    layer = keras.layers.Dense(1, dtype="mixed_bfloat16")
    layer.build((None, 1))
    layer.kernel.assign([[1 + 3 * 2**-9]])
    assert lipschitz_bound(layer) >= 1 + 2**-7


@pytest.mark.parametrize("lengths", [(5,), (7,), (6, 5)])
@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_means_of_padded_windows_are_bounded_on_every_backend(
    size, strides, lengths
):
    # Backends read the borders in different ways.
    stock = (keras.layers.AveragePooling1D, keras.layers.AveragePooling2D)
    layer = stock[len(lengths) - 1](size, strides, "same")
    shape = (*lengths, 1)
    layer.build((None, *shape))
    exact = operator_norm(layer, shape)
    assert lipschitz_bound(layer) >= exact * (1 - 1e-6)


def test_constants_that_float32_rounds_up_are_bounded_as_they_are_used():
    for layer, value in (
        (keras.layers.LeakyReLU(1.1), 1.1),
        (keras.layers.ELU(1.1), 1.1),
        (keras.layers.Rescaling([0.1, 0.1]), 0.1),
        (GroupSort2(k_coef_lip=0.3), 0.3),
        (layers.ScaleBiasLayer(0.1), 0.1),
    ):
        assert float(np.float32(value)) > value
        bound = lipschitz_bound(with_layers(layer, shape=(2,)))
        assert bound >= float(np.float32(value))


def test_scales_and_offsets_that_repeat_the_input_are_refused():
    fits = keras.layers.Rescaling([1.0, 3.0], offset=[[1.0], [2.0]])
    assert lipschitz_bound(with_layers(fits, shape=(2, 2))) == 3.0
    for arguments in (
        {"scale": [1.0, 2.0, 3.0]},
        {"scale": 1.0, "offset": [1.0, 2.0, 3.0]},
    ):
        layer = keras.layers.Rescaling(**arguments, name="wide")
        for shape in ((4, 1), (4, None)):
            with pytest.raises(ValueError, match="'wide' repeats its input"):
                lipschitz_bound(with_layers(layer, shape=shape))


def with_layers(*inner, shape=(4,)):
    return keras.Sequential([keras.Input(shape), *inner])


def test_constants_multiply_along_a_path():
    doubled = keras.layers.Rescaling(2.0)
    tripled = keras.layers.Rescaling(-3.0)
    assert lipschitz_bound(with_layers(doubled, tripled)) == 6.0


def branches(join, constants=(3.0, 4.0), two_inputs=False):
    inputs = [keras.Input((4,))]
    if two_inputs:
        inputs.append(keras.Input((4,)))
    tensors = [
        keras.layers.Rescaling(c)(inputs[i % len(inputs)])
        for i, c in enumerate(constants)
    ]
    return keras.Model(inputs if two_inputs else inputs[0], join(tensors))


@pytest.mark.parametrize(
    ("join", "one_input", "two_inputs"),
    [
        (keras.layers.Add, 7.0, 5.0),
        (keras.layers.Subtract, 7.0, 5.0),
        (keras.layers.Average, 3.5, 2.5),
        (keras.layers.Concatenate, 5.0, 4.0),
        (keras.layers.Maximum, 5.0, 4.0),
        (keras.layers.Minimum, 5.0, 4.0),
        (layers.LipResidual, 3.5, 2.5),
    ],
)
def test_branches_are_joined_as_their_layer_joins_them(
    join, one_input, two_inputs
):
    found = lipschitz_bound(branches(join()))
    assert_close(found, one_input, rtol=1e-5)
    found = lipschitz_bound(branches(join(), two_inputs=True))
    assert_close(found, two_inputs, rtol=1e-5)


def test_sum_that_broadcasts_counts_the_repetitions():
    x, y = keras.Input((4, 1)), keras.Input((1, 9))
    model = keras.Model([x, y], keras.layers.Add()([x, y]))
    # Nine copies of x, four of y.
    assert_close(lipschitz_bound(model), np.sqrt(9 + 4))


def test_several_outputs_are_one_vector():
    x = keras.Input((4,))
    outputs = [keras.layers.Rescaling(c)(x) for c in (3.0, 4.0)]
    assert lipschitz_bound(keras.Model(x, outputs)) == pytest.approx(5.0)


def test_shared_and_nested_layers_count_at_each_use():
    x = keras.Input((4,))
    doubled = keras.layers.Rescaling(2.0)
    nested = with_layers(doubled, keras.layers.Rescaling(3.0))
    y = keras.layers.Add()([doubled(doubled(x)), nested(x)])
    bound, table = lipschitz_bound(keras.Model(x, y), return_table=True)
    assert bound == pytest.approx(4.0 + 6.0)
    names = [row.name for row in table]
    # One row for each layer, wherever it is used.
    assert (
        names.count(doubled.name) + names.count(f"{nested.name}/{doubled.name}")
        == 1
    )
    assert len(table) == 3


def test_table_tells_exact_bounds_from_upper_ones():
    model = with_layers(
        keras.layers.Conv2D(2, 3),
        keras.layers.MaxPooling2D(3, 1),
        keras.layers.Flatten(),
        keras.layers.Dense(2, activation="tanh"),
        shape=(8, 8, 1),
    )
    _, table = lipschitz_bound(model, return_table=True)
    exact = {row.type: row.exact for row in table}
    assert exact == {
        "Conv2D": True,
        "MaxPooling2D": False,
        "Flatten": True,
        "Dense": False,
    }


def test_images_of_unknown_size_have_a_bound_that_a_size_makes_tighter():
    model = with_layers(
        keras.layers.Conv2D(2, 3, padding="same"), shape=(None, None, 1)
    )
    anywhere = lipschitz_bound(model)
    assert lipschitz_bound(model, input_shape=(4, 5, 1)) < anywhere
    large = lipschitz_bound(model, input_shape=(24, 24, 1))
    assert large < anywhere < 1.05 * large


class Unknown(keras.layers.Dense):
    """What it computes is not that of its base."""

    def call(self, x):
        return 5 * super().call(x)


def test_unknown_layers_are_an_error_that_says_what_to_do():
    model = with_layers(Unknown(3, name="odd"))
    with pytest.raises(ValueError, match="'odd' of type Unknown") as error:
        lipschitz_bound(model)
    assert "register_bound(Unknown" in str(error.value)
    assert "constants={'odd'" in str(error.value)
    assert lipschitz_bound(model, constants={"odd": 7}) == 7.0
    assert lipschitz_bound(model, constants={Unknown: 8.0}) == 8.0


def test_registered_layers_are_known():
    class Halved(keras.layers.Layer):
        def call(self, x):
            return x / 2

    @register_bound(Halved)
    def bound(layer, input_shapes):
        return Bound(0.5, "formula", exact=True)

    assert lipschitz_bound(with_layers(Halved())) == 0.5
    register_bound(Halved, lambda layer, input_shapes: np.nan)
    with pytest.raises(ValueError, match="finite"):
        lipschitz_bound(with_layers(Halved()))
    with pytest.raises(ValueError, match="class of Keras layers"):
        register_bound(3)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (keras.layers.LayerNormalization(), "deviation"),
        (keras.layers.GroupNormalization(2), "deviation"),
        (keras.layers.UnitNormalization(), "norm"),
        (keras.layers.ReLU(threshold=1.0), "jumps"),
        (keras.layers.Activation("exponential"), "exponential"),
        (keras.layers.Dense(2, activation=lambda x: x), "lambda"),
        (keras.layers.Masking(), "jumps"),
        (keras.layers.UpSampling2D(interpolation="bilinear"), "nearest"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_layers_without_a_constant_are_refused_with_the_reason(layer, message):
    shape = (4, 4, 2) if isinstance(layer, keras.layers.UpSampling2D) else (4,)
    if isinstance(layer, keras.layers.Masking):
        shape = (3, 4)
    with pytest.raises(ValueError, match=message):
        lipschitz_bound(with_layers(layer, shape=shape))


def test_products_of_branches_are_refused():
    model = branches(keras.layers.Multiply())
    with pytest.raises(ValueError, match="multiplies its inputs"):
        lipschitz_bound(model)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    model = with_layers(keras.layers.Dense(2, name="broken"))
    model.layers[0].bias.assign([value, 0.0])
    with pytest.raises(ValueError, match="'broken' with 1 such"):
        lipschitz_bound(model)


class OwnCall(keras.Model):
    """A model whose graph is not known."""

    def call(self, x):
        return 2 * x


def test_bad_arguments_of_the_bound_are_errors():
    model = with_layers(keras.layers.Dense(2))
    with pytest.raises(ValueError, match="p=1"):
        lipschitz_bound(model, p=1)
    with pytest.raises(ValueError, match="input_shape"):
        lipschitz_bound(model, input_shape=(5,))
    with pytest.raises(ValueError, match="input_shape"):
        lipschitz_bound(model, input_shape=(4, 4))
    with pytest.raises(ValueError, match="Keras model or layer"):
        lipschitz_bound(3)
    with pytest.raises(ValueError, match="unbuilt"):
        lipschitz_bound(keras.layers.Dense(2))
    with pytest.raises(ValueError, match="unbuilt"):
        lipschitz_bound(keras.Sequential([keras.layers.Dense(2)]))
    own = OwnCall()
    own.build((None, 3))
    with pytest.raises(ValueError, match="`call` of their own"):
        lipschitz_bound(own)


def test_operations_on_tensors_are_refused_with_the_layer_to_use():
    x = keras.Input((4,))
    with pytest.raises(ValueError, match=r"keras\.layers\.Add"):
        lipschitz_bound(keras.Model(x, x + x))


def test_nested_models_of_several_inputs_take_them_in_their_order():
    a, z = keras.Input((2,), name="a"), keras.Input((2,), name="z")
    tenfold = keras.layers.Rescaling(10.0)(z)
    inner = keras.Model([z, a], keras.layers.Add()([tenfold, a]))
    x = keras.Input((2,))
    large = keras.layers.Rescaling(100.0)(x)
    model = keras.Model(x, inner([large, x]))
    assert lipschitz_bound(model) == pytest.approx(1001.0)
    # Keras finds the inputs of a dictionary by their names.
    model = keras.Model(x, inner({"a": x, "z": large}))
    with pytest.raises(ValueError, match="a dictionary"):
        lipschitz_bound(model)


def test_rounding_to_whole_numbers_has_no_bound():
    whole = keras.layers.Rescaling(1.0, dtype="int32", name="whole")
    with pytest.raises(ValueError, match="'whole', which computes in int32"):
        lipschitz_bound(with_layers(whole))
    inputs = keras.Input((4,), dtype="int32")
    nested = keras.Model(inputs, keras.layers.Rescaling(1.0)(inputs))
    x = keras.Input((4,))
    with pytest.raises(ValueError, match="of dtype int32"):
        lipschitz_bound(keras.Model(x, nested(x)))
    for dtype in ("int32", "float16"):
        x = keras.Input((4,), dtype=dtype)
        model = keras.Model(x, keras.layers.Dense(2)(x))
        if model.inputs[0].dtype != dtype:
            continue  # Keras 3.4 does not round them.
        with pytest.raises(ValueError, match="must not be rounded"):
            certify(model, np.ones((1, 4)))


def test_bounds_that_are_no_numbers_are_refused():
    class Odd(keras.layers.Layer):
        def call(self, x):
            return x

    register_bound(Odd, lambda layer, input_shapes: Bound(np.nan, "odd"))
    undefined = keras.layers.Normalization(mean=[0.0], variance=[np.nan])
    for layer in (Odd(), keras.layers.Rescaling(np.nan), undefined):
        with pytest.raises(ValueError, match="finite"):
            lipschitz_bound(with_layers(layer, shape=(4, 1)))
    wide = [keras.layers.Rescaling(1e38) for _ in range(9)]
    with pytest.raises(ValueError, match="too large"):
        lipschitz_bound(with_layers(*wide))


def linear_classifier(kernel, bias=None):
    model = with_layers(
        keras.layers.Dense(kernel.shape[1]), shape=kernel.shape[:1]
    )
    bias = np.zeros(kernel.shape[1]) if bias is None else bias
    model.set_weights([kernel, bias])
    return model


def test_certificate_of_a_linear_classifier_is_the_exact_distance():
    kernel = np.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    x = np.array([[3.0, 1.0], [1.0, 1.5], [-2.0, 1.0], [1.0, 1.0]])
    # To the lines x = y (twice), x = -y, and on the line x = y.
    exact = np.array([2.0, 0.5, 1.0, 0.0]) / np.sqrt(2)
    certificates = certify(linear_classifier(kernel), x, [0, 1, 2, 0])
    assert np.all(certificates.radius <= exact)
    assert_close(certificates.radius, exact, atol=1e-4)
    assert_equal(certificates.prediction, [0, 1, 2, 0])
    assert_close(certificates.margin, [2, 0.5, 1, 0], atol=1e-6)
    assert certificates.accuracy == 1.0


def test_certificate_of_one_score_is_the_distance_to_zero():
    model = linear_classifier(np.array([[3.0], [4.0]]), np.array([5.0]))
    certificates = certify(model, [[1.0, 2.0], [-3.0, -4.0]], [1, -1])
    assert_close(certificates.radius, [16 / 5, 4.0], atol=1e-4)
    assert_equal(certificates.prediction, [1, 0])
    assert certificates.accuracy == 1.0


def small_network(scale=1.0):
    keras.utils.set_random_seed(0)
    model = Sequential(
        [
            keras.Input((6, 6, 1)),
            SpectralConv2D(4, 3, activation=GroupSort2()),
            keras.layers.Flatten(),
            SpectralDense(16, activation=GroupSort2()),
            FrobeniusDense(4),
        ]
    )
    last = model.layers[-1]
    last.kernel.assign(normal(16, 4))
    last.condense()
    last.bias.assign(np.array([0.1, 0.0, -0.1, 0.0]))
    return model


def samples(count=40, seed=0):
    random = np.random.default_rng(seed)
    return random.uniform(size=(count, 6, 6, 1)).astype("float32")


def test_radius_by_pairs_is_never_below_the_one_for_the_whole_network():
    model, x = small_network(), samples()
    certificates = certify(model, x)
    usual = certificates.margin - certificates.rounding
    usual /= np.sqrt(2) * certificates.lipschitz_constant
    assert np.all(certificates.radius >= usual * (1 - 1e-4))
    assert np.mean(certificates.radius) > 1.1 * np.mean(usual)


def test_attacks_break_no_certificate_but_succeed_beyond():
    model, x = small_network(), samples()
    certificates = certify(model, x)
    distances = attack_distances(
        model, x, certificates.prediction, [certificates.radius, 5.0]
    )
    assert np.all(distances > certificates.radius)
    assert np.mean(np.isfinite(distances)) > 0.9


def test_certified_accuracy_is_below_the_accuracy_under_attack():
    model, x = small_network(), samples()
    y = certify(model, x).prediction
    y[:4] = (y[:4] + 1) % 4
    epsilons = [0.0, 0.01, 0.05, 0.2, 1.0]
    lower = certified_accuracy(model, x, y, epsilons)
    upper = attack_accuracy(model, x, y, epsilons, steps=10)
    assert lower[0] == upper[0] == 0.9
    assert np.all(np.diff(lower) <= 0)
    assert np.all(lower <= upper)
    again = attack_accuracy(model, x, y, epsilons, steps=10, batch_size=40)
    assert_equal(upper, again)


def test_attack_finds_the_boundary_of_a_linear_classifier():
    kernel = np.array([[1.0, 0.0], [0.0, 1.0]])
    model = linear_classifier(kernel)
    x, exact = np.array([[3.0, 1.0]]), np.sqrt(2)
    (found,) = attack_distances(model, x, [0], [1.02 * exact])
    assert exact - 1e-6 <= found <= 1.02 * exact
    assert attack_distances(model, x, [0], [0.99 * exact]) == [np.inf]
    assert attack_distances(model, x, [1], [0.1]) == [0.0]
    one_score = linear_classifier(np.array([[1.0], [0.0]]))
    (found,) = attack_distances(one_score, x, [1], [3.05])
    assert 3.0 - 1e-6 <= found <= 3.05


def test_attack_stays_within_the_bounds_of_valid_inputs():
    # Only negative values would bring the sum below zero.
    model = linear_classifier(np.ones((4, 1)), np.array([0.1]))
    x = np.zeros((1, 4), "float32")
    found = attack_distances(model, x, [1], [10.0], bounds=(0, 1))
    assert found == [np.inf]
    assert np.isfinite(attack_distances(model, x, [1], [10.0]))
    with pytest.raises(ValueError, match="within the bounds"):
        attack_distances(model, x - 1, [1], [10.0], bounds=(0, 1))


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
    model, x = small_network(), 10 * samples(200)
    certificates = certify(model, x)
    error = np.abs(exact_margins(model, x) - certificates.margin)
    assert np.all(error <= certificates.rounding)
    assert np.max(certificates.rounding) < 1e-11 * np.max(certificates.margin)


@pytest.mark.parametrize(
    ("rounding", "share"), [("float32", 1e-3), ("estimated", 2e-4)]
)
def test_rounding_of_the_scores_is_below_what_is_taken_off(rounding, share):
    model, x = small_network(), 10 * samples(200)
    certificates = certify(model, x, rounding=rounding)
    scores = np.sort(np.asarray(model.predict(x, verbose=0), "float64"), axis=1)
    error = np.abs(exact_margins(model, x) - (scores[:, -1] - scores[:, -2]))
    assert np.all(error < certificates.rounding)
    # And it is small.
    assert np.max(certificates.rounding) < share * np.max(certificates.margin)


def test_radii_are_the_larger_the_less_is_proven_of_rounding():
    model, x = small_network(), samples(200)
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
    with pytest.raises(ValueError, match="rounding=float16"):
        certify(model, x, rounding="float16")


def test_a_device_with_fewer_digits_than_float32_is_noticed(monkeypatch):
    model, x = small_network(), samples(4)
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
    model = with_layers(Odd(), keras.layers.Dense(2))
    with pytest.raises(ValueError, match="rounding="):
        certify(model, np.ones((1, 4)))


class Tripled(keras.layers.Layer):
    factor = 1.0

    def call(self, x):
        return self.factor * x


def test_state_that_no_config_tells_is_noticed():
    layer = Tripled()
    layer.factor = 3.0
    model = with_layers(layer, keras.layers.Dense(2), shape=(4,))
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
    model = with_layers(unknown, keras.layers.Dense(2))
    with pytest.raises(ValueError, match="failed for layer 'odd'"):
        certify(model, np.ones((1, 4)), constants={"odd": 2.0})


@pytest.mark.parametrize("name", ["BatchNormalization", "BatchCentering"])
def test_rounding_counts_what_is_subtracted_and_added_again(name):
    normalize = {
        "BatchNormalization": keras.layers.BatchNormalization(epsilon=1e-9),
        "BatchCentering": layers.BatchCentering(),
    }[name]
    model = with_layers(normalize, keras.layers.Dense(1), shape=(1,))
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


def test_images_of_each_size_have_a_bound_of_their_own():
    model = with_layers(
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(2, use_bias=False),
        shape=(None, None, 2),
    )
    model.set_weights([np.eye(2)])
    images = [np.ones((1, n, n, 2)) * [1.0, 0.0] for n in (32, 2)]
    certificates = certify(model, iter(images))
    # All values of the second channel may rise, all of the first one fall.
    exact = np.array([32, 2]) / np.sqrt(2)
    assert np.all(certificates.radius <= exact)
    assert_close(certificates.radius, exact, rtol=1e-3)
    assert certificates.lipschitz_constant == pytest.approx(0.5)


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


@pytest.mark.parametrize("where", ["in the layer", "after it", "nested"])
def test_single_scores_that_are_never_negative_are_refused(where):
    inner = {
        "in the layer": [keras.layers.Dense(1, activation="sigmoid")],
        "after it": [keras.layers.Dense(1), keras.layers.Activation("sigmoid")],
        "nested": [with_layers(keras.layers.Dense(1, activation="sigmoid"))],
    }[where]
    model = with_layers(*inner)
    for check in (certify, lambda *data: attack_distances(*data, [1.0])):
        with pytest.raises(ValueError, match="activation=sigmoid"):
            check(model, np.ones((1, 4)), [0])


def test_reduced_precision_of_products_is_noticed(monkeypatch):
    module = sys.modules["deel.lip.certification.certificates"]
    usual = module._rounding_unit()
    assert usual < 1e-6
    assert module.rounding_of_factors() == 0
    model, x = small_network(), samples(10)
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
    assert module._rounding_unit() > 100 * usual
    # Cut off after ten bits, instead of rounded to the nearest.
    assert module.rounding_of_factors() == 2.0**-10
    certificates = certify(model, x)
    assert np.all(certificates.float32_radius < radius)


def test_data_sets_are_certified_batch_by_batch():
    model, x = small_network(), samples(10)
    y = np.arange(10) % 4
    expected = certify(model, x, y)
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    found = certify(model, batches and iter(batches))
    assert_close(found.radius, expected.radius, atol=1e-6)
    assert_equal(found.label, y)

    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return batches[index]

    found = certify(model, Data())
    assert_close(found.radius, expected.radius, atol=1e-6)
    assert certify(model, iter([x])).label is None
    one_hot = certify(model, x, np.eye(4)[y], batch_size=4)
    assert_equal(one_hot.label, y)


def test_many_samples_show_a_progress_bar(capsys):
    model = linear_classifier(np.eye(2))
    certify(model, np.ones((4, 2)))
    assert capsys.readouterr().out == ""
    certify(model, np.ones((4, 2)), verbose=1)
    assert "4/4" in capsys.readouterr().out


def test_summary_is_plain_and_readable():
    import json

    certificates = certify(small_network(), samples(8), np.arange(8) % 4)
    summary = json.loads(json.dumps(certificates.to_dict()))
    assert summary["samples"] == 8
    assert summary["accuracy"] == certificates.accuracy
    assert len(summary["certified_accuracy"]) == len(summary["epsilons"])
    assert "Certificates of 8 samples" in repr(certificates)
    assert "certified within 0.5" in repr(certificates)
    without = certify(small_network(), samples(8))
    assert "accuracy" not in without.to_dict()
    with pytest.raises(ValueError, match="labels"):
        without.certified_accuracy([0.1])


def test_curves_are_drawn():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    certificates = certify(small_network(), samples(8), np.arange(8) % 4)
    drawn = certificates.plot()
    assert len(drawn.lines) == 1
    drawn = certificates.plot(drawn, [0.0, 0.1], [1.0, 0.5])
    assert len(drawn.lines) == 3
    matplotlib.pyplot.close("all")


def test_bad_data_is_an_error():
    model = small_network()
    x = samples(4)
    for y, message in (
        ([0, 1, 2, 4], "from 0 to 3"),
        ([0, 1, 2, -1], "from 0 to 3"),
        ([0, 1, 2, 0.5], "from 0 to 3"),
        ([0, 1], "one label"),
        (3, "one label"),
        (np.array(["a", "b", "c", "d"]), "must be numbers"),
        (np.ones((4, 4)), "one-hot"),
        (np.ones((4, 3)), "class numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            certify(model, x, y)
    with pytest.raises(ValueError, match="without samples"):
        certify(model, x[:0])
    with pytest.raises(ValueError, match="empty data"):
        certify(model, iter([]))
    with pytest.raises(ValueError, match="y=None"):
        certify(model, iter([x]), [0, 1, 2, 3])
    with pytest.raises(ValueError, match="input_shape"):
        certify(model, x[:, :5])
    with pytest.raises(ValueError, match="finite"):
        certify(model, x * np.nan)
    for epsilons in (-0.1, [0.1, np.nan]):
        with pytest.raises(ValueError, match="zero or greater"):
            certified_accuracy(model, x, [0, 1, 2, 3], epsilons)
        with pytest.raises(ValueError, match="zero or greater"):
            attack_accuracy(model, x, [0, 1, 2, 3], epsilons)
    with pytest.raises(ValueError, match="0 samples"):
        attack_accuracy(model, x[:0], [], [0.1])
    with pytest.raises(ValueError, match="unbuilt"):
        certify(keras.Sequential([keras.layers.Dense(2)]), x)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_not_certified(dtype):
    model = with_layers(keras.layers.Dense(2, dtype=dtype))
    # Keras 3.4 has it round the inputs, too.
    with pytest.raises(ValueError, match=r"half precision|must not be rounded"):
        certify(model, np.ones((1, 4)))


def test_several_inputs_or_outputs_are_not_certified():
    model = branches(keras.layers.Add(), two_inputs=True)
    with pytest.raises(ValueError, match="one input"):
        certify(model, np.ones((1, 4)))
    x = keras.Input((4,))
    several = keras.Model(x, [keras.layers.Dense(2)(x) for _ in range(2)])
    for check in (certify, lambda *data: attack_distances(*data, [1.0])):
        with pytest.raises(ValueError, match="one output"):
            check(several, np.ones((1, 4)), [0])
    named = keras.Model(x, {"scores": keras.layers.Dense(2)(x)})
    with pytest.raises(ValueError, match="one output"):
        certify(named, np.ones((1, 4)))


def test_layers_that_are_built_from_the_start_take_the_shape_of_an_input():
    layer = keras.layers.AveragePooling2D(2)
    if not layer.built:
        pytest.skip("The oldest Keras builds each layer for a shape.")
    bound = lipschitz_bound(layer, input_shape=(8, 8, 2))
    assert bound == pytest.approx(0.5)
    with pytest.raises(ValueError, match="Expected `input_shape`"):
        lipschitz_bound(layer)
    with pytest.raises(ValueError, match="input_shape="):
        lipschitz_bound(layer, input_shape=(8, 0, 2))


def test_models_know_their_constant_and_certify():
    model, x = small_network(), samples(5)
    assert model.lipschitz_constant() == lipschitz_bound(model)
    assert_equal(model.certify(x).radius, certify(model, x).radius)
    inputs = keras.Input((4,))
    functional = Model(inputs=inputs, outputs=SpectralDense(3)(inputs))
    assert functional.lipschitz_constant() == pytest.approx(1.0, abs=1e-5)
    assert len(functional.certify(np.ones((2, 4)))) == 2


def test_export_is_refused_if_the_promise_is_broken():
    model = small_network()
    # One score is 1-Lipschitz, the vector of four is not.
    assert lipschitz_bound(model, by_output=True) <= 1 + 1e-4
    assert lipschitz_bound(model) > 1 + 1e-3
    assert type(model.vanilla_export(verify=True)) is keras.Sequential
    with pytest.raises(ValueError, match="exceeds its promise"):
        model.vanilla_export(verify=0.5)
    # A foreign kernel, written past the guard of the weights of inference.
    wbar = model.layers[0].wbar
    wbar.assign_proven(1.5 * keras.ops.convert_to_tensor(wbar))
    for refused in (
        model.vanilla_export,
        model.lipschitz_constant,
        lambda: model.certify(samples()),
    ):
        with pytest.raises(ValueError, match="exceeds its promise"):
            refused()
    model.condense()
    model.vanilla_export(verify=True)
    inputs = keras.Input((4,))
    functional = Model(inputs=inputs, outputs=SpectralDense(3)(inputs))
    with pytest.raises(ValueError, match="does not promise"):
        functional.vanilla_export(verify=True)
    functional.vanilla_export(verify=1.0)


def test_metrics_with_the_proven_constant_are_below_certified_accuracy():
    model, x = small_network(), samples()
    certificates = certify(model, x, np.arange(40) % 4)
    metric = CategoricalProvableRobustAccuracy(
        epsilon=0.02, lip_const=model.lipschitz_constant(by_output=True)
    )
    scores = model.predict(x, verbose=0)
    value = float(metric(np.eye(4)[certificates.label], scores))
    assert value <= certificates.certified_accuracy(0.02)[0] + 1e-6


def run_command(tmp_path, model, *words):
    command = importlib.import_module("deel.lip.certification.__main__")
    path = tmp_path / "model.keras"
    model.save(path)
    return command.main([str(path), *map(str, words)])


def test_command_prints_the_table_and_the_curve(tmp_path, capsys):
    model, x = small_network(), samples(12)
    data = tmp_path / "data.npz"
    np.savez(data, x_test=x[..., 0], y_test=certify(model, x).prediction)
    words = ("--data", data, "--max", 2.0, "--epsilons", "0,0.01")
    assert run_command(tmp_path, model, *words, "--attack", 5) == 0
    printed = capsys.readouterr().out
    assert "FrobeniusDense" in printed
    assert "Proven Lipschitz constant" in printed
    assert "accuracy                   1.0000" in printed
    assert "0.010" in printed
    assert "0 certificates broken" in printed


def test_command_fails_where_the_bound_is_too_large(tmp_path, capsys):
    model = small_network()
    assert run_command(tmp_path, model, "--max", 1.0) == 1
    assert run_command(tmp_path, model, "--max", "nan") == 1
    assert "exceeds --max" in capsys.readouterr().err


@pytest.mark.parametrize("plant", ["expanding", "foreign kernel", "unknown"])
def test_command_catches_planted_violations(tmp_path, plant, capsys):
    inner = {
        "expanding": keras.layers.Dense(4, kernel_initializer="ones"),
        "foreign kernel": SpectralDense(4),
        "unknown": keras.layers.LayerNormalization(name="planted"),
    }[plant]
    model = with_layers(SpectralDense(4), inner)
    assert run_command(tmp_path, with_layers(SpectralDense(4)), "--max", 1) == 0
    if plant == "foreign kernel":
        # Loading repairs our layers; an exported network has no such care.
        model = vanillaModel(model)
        model.layers[1].kernel.assign(np.full((4, 4), 0.3))
    status = run_command(tmp_path, model, "--max", 1.0)
    assert status == (2 if plant == "unknown" else 1)
    if plant == "unknown":
        assert "'planted'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--limit", "--attack"])
def test_command_refuses_negative_counts(option, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_command(tmp_path, small_network(), option, -1)
    assert "expected zero or more" in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "factor"), [("uint8", 255), ("int64", 1)])
def test_command_divides_pixels_and_no_other_integers(dtype, factor, tmp_path):
    command = importlib.import_module("deel.lip.certification.__main__")
    x = np.arange(12).reshape(3, 4).astype(dtype)
    np.savez(tmp_path / "data.npz", x=x, y=np.zeros(3))
    found, _ = command._read(tmp_path / "data.npz", (None, 4))
    assert_close(found, x / factor, rtol=1e-6)


def test_command_says_what_is_wrong_with_its_files(tmp_path, capsys):
    command = importlib.import_module("deel.lip.certification.__main__")
    assert command.main([str(tmp_path / "absent.keras")]) == 2
    model = small_network()
    path = tmp_path / "wrong.npz"
    np.savez(path, z=np.zeros(3))
    assert run_command(tmp_path, model, "--data", path) == 2
    assert "x_test and y_test" in capsys.readouterr().err
    assert run_command(tmp_path, model, "--data", tmp_path / "no.npz") == 2
