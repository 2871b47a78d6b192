"""What a newcomer gets wrong is said, with what was expected."""

import warnings

import keras
import numpy as np
import pytest
from harness import normal
from harness import to_numpy
from small_networks import linear_classifier

from deel.lip import layers
from deel.lip import losses
from deel.lip.certification import attack_distances
from deel.lip.certification import certify
from deel.lip.certification import lipschitz_bound
from deel.lip.model import LossVariableSequential
from deel.lip.model import Model
from deel.lip.model import Sequential
from deel.lip.model import vanillaModel


def _model(outputs=1, container=Sequential, **options):
    hidden = layers.SpectralDense(4, activation=layers.GroupSort2())
    return container(
        [keras.Input((4,)), hidden, layers.SpectralDense(outputs)], **options
    )


X = normal(12, 4).astype("float32")
PARITY = np.arange(12) % 2


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    "make",
    [
        lambda **options: layers.SpectralDense(4, **options),
        lambda **options: layers.FrobeniusDense(4, **options),
        lambda **options: layers.OrthogonalDense(4, **options),
        lambda **options: layers.SpectralConv2D(4, 3, **options),
        lambda **options: layers.OrthogonalConv2D(4, 3, **options),
        lambda **options: layers.AOLDense(4, **options),
    ],
)
def test_a_class_as_activation_is_refused(make):
    message = r"Expected `GroupSort2\(\)`.*Received: activation=<class"
    with pytest.raises(ValueError, match=message):
        make(activation=layers.GroupSort2)
    make(activation=layers.GroupSort2())
    make(activation="relu")
    make(activation=keras.activations.relu)


@pytest.mark.elsewhere
@pytest.mark.parametrize("shape", [(4,), (4, 4, 1)])
def test_a_sample_without_its_batch_axis_is_refused(shape):
    model = keras.Sequential(
        [keras.Input(shape), keras.layers.Flatten(), layers.SpectralDense(3)]
    )
    one = np.ones(shape, "float32")
    message = rf"`x\[np.newaxis\]`.*Received: x of shape \({shape[0]}"
    for labels in (None, [0], np.arange(shape[0])):
        with pytest.raises(ValueError, match=message):
            certify(model, one, labels)
    with pytest.raises(ValueError, match=message):
        certify(model, iter([(one, [0])]))
    with pytest.raises(ValueError, match=message):
        attack_distances(model, one, np.arange(shape[0]), [0.5])
    assert len(certify(model, one[np.newaxis], [0])) == 1


@pytest.mark.elsewhere
def test_samples_of_another_shape_are_refused():
    model = linear_classifier(np.eye(4))
    with pytest.raises(ValueError, match=r"need the shape \(None, 4\)\. Rec"):
        certify(model, np.ones((3, 5)))


@pytest.mark.elsewhere
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_a_model_of_tokens_is_refused_with_the_reason(dtype):
    model = keras.Sequential(
        [
            keras.Input((5,), dtype=dtype),
            keras.layers.Embedding(10, 4),
            keras.layers.Flatten(),
            layers.SpectralDense(2),
        ]
    )
    tokens = np.ones((3, 5), dtype)
    with pytest.raises(ValueError, match=r"token numbers.*type Embedding"):
        certify(model, tokens)
    with pytest.raises(ValueError, match="model of the vectors"):
        lipschitz_bound(model)
    # What the error advises works.
    vectors = model.layers[0](tokens)
    behind = keras.Sequential([keras.Input((5, 4)), *model.layers[1:]])
    assert np.all(certify(behind, to_numpy(vectors)).radius > 0)


def _messages(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [
        str(x.message) for x in caught if issubclass(x.category, UserWarning)
    ]


AUTO = [
    (losses.HKRauto, 1),
    pytest.param(losses.HingeMarginAuto, 1, marks=pytest.mark.elsewhere),
    pytest.param(losses.MulticlassHKRauto, 3, marks=pytest.mark.elsewhere),
    (losses.MulticlassHingeAuto, 3),
]


def _auto(loss_class):
    is_mixed = loss_class in (losses.HKRauto, losses.MulticlassHKRauto)
    return loss_class(10.0) if is_mixed else loss_class()


def _labels(outputs):
    return PARITY if outputs == 1 else np.eye(3)[np.arange(12) % 3]


@pytest.mark.parametrize(("loss_class", "outputs"), AUTO)
@pytest.mark.parametrize("container", [keras.Sequential, Sequential])
def test_margins_that_are_not_learned_are_warned_of(
    loss_class, outputs, container
):
    model = _model(outputs, container)
    model.compile("sgd", _auto(loss_class))

    def fit():
        model.fit(X, _labels(outputs), epochs=2, batch_size=4, verbose=0)

    found = [x for x in _messages(fit) if "margins" in x]
    assert len(found) == 1
    assert "LossVariableSequential" in found[0]
    assert _messages(fit) == []


@pytest.mark.parametrize(("loss_class", "outputs"), AUTO)
def test_margins_that_are_learned_or_only_read_are_not_warned_of(
    loss_class, outputs
):
    model = _model(outputs, LossVariableSequential)
    loss = _auto(loss_class)
    model.compile("sgd", loss)
    fit = lambda: model.fit(X, _labels(outputs), verbose=0)  # noqa: E731
    assert _messages(fit) == []
    # Scores at hand, such as those of `predict`.
    scores = normal(12, outputs).astype("float32")
    labels = _labels(outputs).astype("float32")
    assert _messages(lambda: _auto(loss_class)(labels, scores)) == []


HKR_LOSSES = [losses.HKR(10.0), losses.HKRauto(10.0)]


@pytest.mark.parametrize("loss", HKR_LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize(
    "is_column", [True, pytest.param(False, marks=pytest.mark.elsewhere)]
)
def test_labels_that_the_two_terms_read_differently_are_refused(
    loss, is_column
):
    is_auto = isinstance(loss, losses.HKRauto)
    model = _model(container=LossVariableSequential if is_auto else Sequential)
    model.compile("sgd", loss)
    before = [np.array(x) for x in model.get_weights()]
    for wrong in (1 + PARITY, 255 * PARITY, 0.9 * PARITY):
        y = wrong[:, None] if is_column else wrong
        with pytest.raises(ValueError, match="Expected labels 0 or -1, and 1"):
            model.fit(X, y, verbose=0)
        with pytest.raises(ValueError, match="Received: y_true with the val"):
            loss(y, np.ones((12, 1), "float32"))
    for old, new in zip(before, model.get_weights(), strict=True):
        assert np.array_equal(old, new)
    for right in (PARITY, 2 * PARITY - 1, PARITY == 1, PARITY.astype("uint8")):
        y = right[:, None] if is_column else right
        model.fit(X, y, verbose=0)


def test_labels_that_hold_weights_are_not_refused():
    loss = losses.HKR(10.0, multi_gpu=True)
    weights = np.array([[4.0], [-4 / 3], [-4 / 3], [-4 / 3]], "float32")
    assert np.isfinite(float(loss(weights, np.ones((4, 1), "float32"))))


def test_one_hot_labels_of_two_classes_are_pointed_to_the_loss_for_them():
    y = np.eye(2, dtype="float32")[PARITY]
    two = _model(2)
    two.compile("sgd", losses.HKR(10.0))
    found = _messages(lambda: two.fit(X, y, verbose=0))
    assert found
    assert all("`MulticlassHKR`" in x for x in found)
    two.compile("sgd", losses.MulticlassHKR(10.0))
    assert _messages(lambda: two.fit(X, y, verbose=0)) == []
    one = _model()
    one.compile("sgd", losses.HKR(10.0))
    with pytest.raises(ValueError, match="A single score takes one label"):
        one.fit(X, y, verbose=0)


# Keras says so of each model.
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have")
@pytest.mark.parametrize(
    "convert",
    [lambda x: x, lambda x: keras.Sequential([keras.Input((4,)), *x.layers])],
)
def test_quantization_that_would_break_the_constraint_is_refused(convert):
    model = _model(3)
    before = model.predict(X, verbose=0)
    chosen = convert(model)
    with pytest.raises(ValueError, match="Received: mode=int8"):
        chosen.quantize("int8")
    assert np.array_equal(model.predict(X, verbose=0), before)
    # What the error advises works.
    exported = vanillaModel(model)
    exported.layers[-1].quantize("int8")
    assert exported.layers[-1].quantization_mode == "int8"


def test_our_models_are_not_half_quantized_when_they_refuse():
    inputs = keras.Input((4,))
    stock = keras.layers.Dense(4)
    model = Model(inputs, layers.SpectralDense(2)(stock(inputs)))
    with pytest.raises(ValueError, match="constrained kernel"):
        model.quantize("int8")
    assert stock.quantization_mode is None


@pytest.mark.elsewhere
def test_a_clone_is_stock_with_the_same_constants_and_a_rebuilt_one_is_ours():
    model = _model(3, k_coef_lip=4.0)
    clone = keras.models.clone_model(model)
    assert type(clone) is keras.Sequential
    rebuilt = Sequential.from_config(model.get_config())
    assert type(rebuilt) is Sequential
    assert rebuilt.k_coef_lip == 4.0
    for copy in (clone, rebuilt):
        copy.set_weights(model.get_weights())
        assert [x.k_coef_lip for x in copy.layers] == [2.0, 2.0]
        assert np.array_equal(
            copy.predict(X, verbose=0), model.predict(X, verbose=0)
        )


@pytest.mark.elsewhere
@pytest.mark.parametrize("error", [ValueError, RuntimeError])
@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.SpectralConv2D(3, 3, padding="valid"),
        lambda: layers.SpectralConv2D(3, 3, dilation_rate=2),
        lambda: layers.FrobeniusConv2D(3, 3, strides=2),
        lambda: layers.ScaledAveragePooling2D(3, strides=2),
        lambda: layers.ScaledL2NormPooling2D(2, eps_grad_sqrt=-1.0),
        lambda: layers.ScaledAdaptiveAveragePooling2D((2, 2)),
        lambda: layers.GroupSort(2)(np.ones((2, 3), "float32")),
        lambda: layers.GroupSort(2, data_format="channels_first"),
        lambda: layers.Householder().build((None, 3)),
    ],
)
def test_refused_values_are_value_errors_and_stay_runtime_errors(make, error):
    with pytest.raises(error, match="Received: "):
        make()
