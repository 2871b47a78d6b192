"""Bounds of layers: measured, never too small, refused with the reason."""

import keras
import numpy as np
import pytest
from harness import assert_close
from harness import built
from harness import operator_norm
from registry import CONSTRAINED
from registry import OTHERS
from registry import rows
from small_networks import stack

from deel.lip import layers
from deel.lip.certification import Bound
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.certification import register_bound


@rows(CONSTRAINED, slow=True)
def test_bound_of_our_layers_is_measured_and_within_their_promise(row):
    layer = row.built()
    bound = lipschitz_bound(layer)
    assert bound <= row.constant * (1 + 2e-5)
    if row.arguments.get("activation") is None and not row.residual:
        assert bound >= operator_norm(layer, row.input_shape) * (1 - 1e-6)
    # Weights that inference uses are measured, and no promise.
    wbar = keras.ops.copy(layer.wbar)
    layer.wbar.assign_proven(0.5 * wbar)
    if not row.residual:
        smaller = bound / 2**row.degree
        assert_close(lipschitz_bound(layer), smaller, rtol=1e-5)
    # What breaks its promise got past the guard, which is to be known.
    layer.wbar.assign_proven(3.0 * wbar)
    with pytest.raises(ValueError, match="exceeds its promise"):
        lipschitz_bound(layer)


@rows(OTHERS)
def test_bound_of_our_layers_without_kernel_is_their_constant(row):
    layer = row.built()
    bound = lipschitz_bound(layer)
    if row.layer is layers.LipschitzPReLU:
        assert bound == 1.0
    elif row.layer is layers.OrthogonalRNN:
        # Of kernels that leave room for what each step may exceed.
        assert (1 - 1e-4) * row.constant <= bound <= row.constant
    else:
        assert_close(bound, row.constant, rtol=1e-5)
        assert bound >= row.constant


def test_half_precision_kernels_are_bounded_as_they_are_rounded():
    # 1 + 2^-8 is rounded up by 2^-8 in bfloat16, which has 8 bits.
    layer = built(keras.layers.Dense(1, dtype="mixed_bfloat16"), 1)
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
    assert lipschitz_bound(layer) >= operator_norm(layer, shape) * (1 - 1e-6)


def test_constants_that_float32_rounds_up_are_bounded_as_they_are_used():
    for layer, value in (
        (keras.layers.LeakyReLU(1.1), 1.1),
        (keras.layers.ELU(1.1), 1.1),
        (keras.layers.Rescaling([0.1, 0.1]), 0.1),
        (layers.GroupSort2(k_coef_lip=0.3), 0.3),
        (layers.ScaleBiasLayer(0.1), 0.1),
    ):
        assert float(np.float32(value)) > value
        bound = lipschitz_bound(stack(layer, shape=(2,)))
        assert bound >= float(np.float32(value))


def test_scales_and_offsets_that_repeat_the_input_are_refused():
    fits = keras.layers.Rescaling([1.0, 3.0], offset=[[1.0], [2.0]])
    assert lipschitz_bound(stack(fits, shape=(2, 2))) == 3.0
    for arguments in (
        {"scale": [1.0, 2.0, 3.0]},
        {"scale": 1.0, "offset": [1.0, 2.0, 3.0]},
    ):
        layer = keras.layers.Rescaling(**arguments, name="wide")
        for shape in ((4, 1), (4, None)):
            with pytest.raises(ValueError, match="'wide' repeats its input"):
                lipschitz_bound(stack(layer, shape=shape))


class Unknown(keras.layers.Dense):
    """What it computes is not that of its base."""

    def call(self, x):
        return 5 * super().call(x)


def test_unknown_layers_are_an_error_that_says_what_to_do():
    model = stack(Unknown(3, name="odd"))
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

    assert lipschitz_bound(stack(Halved())) == 0.5
    register_bound(Halved, lambda layer, input_shapes: np.nan)
    with pytest.raises(ValueError, match="finite"):
        lipschitz_bound(stack(Halved()))
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
        lipschitz_bound(stack(layer, shape=shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    model = stack(keras.layers.Dense(2, name="broken"))
    model.layers[0].bias.assign([value, 0.0])
    with pytest.raises(ValueError, match="'broken' with 1 such"):
        lipschitz_bound(model)


def test_rounding_to_whole_numbers_has_no_bound():
    whole = keras.layers.Rescaling(1.0, dtype="int32", name="whole")
    with pytest.raises(ValueError, match="'whole', which computes in int32"):
        lipschitz_bound(stack(whole))
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
            lipschitz_bound(stack(layer, shape=(4, 1)))
    wide = [keras.layers.Rescaling(1e38) for _ in range(9)]
    with pytest.raises(ValueError, match="too large"):
        lipschitz_bound(stack(*wide))


@pytest.mark.elsewhere
def test_slopes_that_are_not_there_yet_are_an_error():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, activation=keras.layers.PReLU()),
        ]
    )
    if not model.layers[0].activation.built:
        with pytest.raises(ValueError, match="a model that was called"):
            lipschitz_bound(model)
    model.predict(np.ones((1, 4)), verbose=0)
    product = float(np.linalg.norm(model.get_weights()[0], 2))
    assert lipschitz_bound(model) <= product * (1 + 1e-6)
