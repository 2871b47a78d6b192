"""Models ask the rules of certification before they warn of a layer."""

import warnings

import keras
import pytest

from deel.lip import layers
from deel.lip.certification import lipschitz_bound
from deel.lip.certification import register_bound
from deel.lip.model import Model
from deel.lip.model import Sequential

IMAGE = (6, 6, 2)


class Tripled(keras.layers.Layer):
    def call(self, x):
        return 3 * x


class Halved(keras.layers.Layer):
    def call(self, x):
        return x / 2


register_bound(Tripled, lambda layer, input_shapes: 3.0)
register_bound(Halved, lambda layer, input_shapes: 0.5)

PROVEN = [
    (keras.layers.Identity, (4,)),
    (lambda: keras.layers.Dropout(0.5), (4,)),
    (lambda: keras.layers.SpatialDropout2D(0.5), IMAGE),
    (keras.layers.ZeroPadding2D, IMAGE),
    (keras.layers.Cropping2D, IMAGE),
    (keras.layers.RandomFlip, IMAGE),
    (lambda: keras.layers.AveragePooling2D(2), IMAGE),
    (keras.layers.GlobalAveragePooling2D, IMAGE),
    (lambda: keras.layers.Rescaling(1 / 255), IMAGE),
    (lambda: keras.layers.Rescaling(-1.0, offset=1.0), IMAGE),
    (lambda: keras.layers.TimeDistributed(layers.SpectralDense(3)), (5, 4)),
    (
        lambda: keras.layers.TimeDistributed(
            keras.layers.TimeDistributed(layers.SpectralDense(3))
        ),
        (5, 5, 4),
    ),
    (
        lambda: keras.Sequential(
            [layers.SpectralDense(3), keras.layers.ReLU()]
        ),
        (4,),
    ),
    (lambda: keras.layers.MaxPooling2D(2, strides=3), IMAGE),
    (lambda: keras.layers.MaxPooling2D(3, strides=3, padding="same"), IMAGE),
    (lambda: keras.layers.Activation("tanh"), IMAGE),
    (Halved, (4,)),
]

# With the constant that the warning must say; None where there is none.
OTHERS = [
    (lambda: keras.layers.MaxPooling2D(3, strides=1), IMAGE, 3.0),
    (lambda: keras.layers.UpSampling2D(2), IMAGE, 2.0),
    (lambda: keras.layers.Rescaling(2.0), (4,), 2.0),
    (lambda: keras.layers.RepeatVector(9), (4,), 3.0),
    (lambda: keras.layers.Activation("selu"), (4,), 1.7581),
    (Tripled, (4,), 3.0),
    (
        lambda: keras.layers.TimeDistributed(
            layers.SpectralDense(3, k_coef_lip=4.0)
        ),
        (5, 4),
        4.0,
    ),
    (lambda: keras.layers.Dense(3), (4,), None),
    (lambda: keras.layers.TimeDistributed(keras.layers.Dense(3)), (5, 4), None),
    (keras.layers.BatchNormalization, (4,), None),
    (keras.layers.Normalization, (4,), None),
    (keras.layers.LayerNormalization, (4,), None),
    (lambda: keras.layers.Lambda(lambda x: x), (4,), None),
    (keras.layers.PReLU, (4,), None),
]


def _ours(caught):
    # Keras warns of its own conversions on PyTorch.
    return [x for x in caught if x.category is UserWarning]


def _names(cases):
    return [str(index) for index in range(len(cases))]


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize(("make", "shape"), PROVEN, ids=_names(PROVEN))
def test_layers_that_are_proven_at_most_one_are_not_warned_of(
    make, shape, is_known
):
    start = [keras.Input(shape)] if is_known else []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = Sequential([*start, make()])
        model.add(keras.layers.Flatten())
        model.compile("sgd", "mse")
    model.build((None, *shape))
    assert lipschitz_bound(model) <= 1 + 1e-5


@pytest.mark.parametrize(
    ("make", "shape", "constant"), OTHERS, ids=_names(OTHERS)
)
def test_other_layers_are_warned_of_with_their_constant(make, shape, constant):
    layer = make()
    text = "as far as is known" if constant is None else f"is {constant:.6g}"
    model = Sequential([keras.Input(shape)])
    with pytest.warns(UserWarning, match=text) as caught:
        model.add(layer)
    (warning,) = _ours(caught)
    assert f"'{layer.name}'" in str(warning.message)
    assert warning.filename == __file__
    # What is known counts where the model is the branch of a block.
    assert model._whole_constant() == pytest.approx(constant or 1.0, rel=1e-4)
    with pytest.warns(UserWarning, match=text) as caught:
        Sequential([keras.Input(shape), layer])
    assert [warning.filename for warning in _ours(caught)] == [__file__]


@pytest.mark.parametrize(
    ("make", "shape", "constant"), OTHERS, ids=_names(OTHERS)
)
def test_functional_models_warn_when_they_are_compiled(make, shape, constant):
    x = keras.Input(shape)
    model = Model(x, make()(x))
    text = "as far as is known" if constant is None else f"is {constant:.6g}"
    with pytest.warns(UserWarning, match=text) as caught:
        model.compile("sgd", "mse")
    (warning,) = _ours(caught)
    assert warning.filename == __file__


def test_functional_models_warn_of_sums_and_not_of_averages():
    def model(join):
        x = keras.Input((4,))
        y = layers.SpectralDense(4)(x)
        return Model(x, join([x, y]))

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for join in (
            layers.LipResidual(),
            keras.layers.Average(),
            keras.layers.Concatenate(),
        ):
            model(join).compile("sgd", "mse")
    with pytest.warns(UserWarning, match="its constant is 1.41421"):
        model(keras.layers.Add()).compile("sgd", "mse")


def test_block_divides_by_what_its_branch_expands():
    with pytest.warns(UserWarning, match="its constant is 3"):
        branch = Sequential([keras.Input((4,)), Tripled()])
    block = layers.PrescaledResidual(branch)
    block.build((None, 4))
    assert block.coef_lip == pytest.approx(1 / 4)
    assert lipschitz_bound(block) == pytest.approx(1.0, rel=1e-5)
