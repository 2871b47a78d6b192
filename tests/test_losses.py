"""Golden values of the losses, their labels, reductions and configs."""

import functools
import inspect
import math

import harness
import keras
import numpy as np
import pytest
from golden_scores import BINARY
from golden_scores import CLASSES
from golden_scores import column
from harness import JIT
from harness import assert_close
from harness import assert_equal
from harness import normal
from harness import reloaded

from deel.lip import losses
from deel.lip.losses import HKR
from deel.lip.losses import KR
from deel.lip.losses import HingeMargin
from deel.lip.losses import MulticlassHinge
from deel.lip.losses import MulticlassHKR
from deel.lip.losses import MulticlassKR

D1, D3 = BINARY, CLASSES


D2 = column(1, 0, 0, 0), column(1, 0.5, -2, -0.5)


D3_SPARSE = (np.array([0, 0, 0, 1, 1, 2]), D3[1])


D1_SIGNED = (2 * D1[0] - 1, D1[1])


GOLDEN = [
    (KR(), D1, 1.0),
    (KR(reduction="sum"), D1, 6.0),
    (KR(), D2, 1.6666665),
    (KR(), (column(1, 1), column(1, 3)), 2.0),
    (HingeMargin(1.0), D1, 0.3333333),
    (HingeMargin(2.0), D1, 0.6666667),
    (HKR(alpha=10.0, min_margin=1.0), D1, 2.3333333),
    (HKR(0.0), D1, -1.0),
    (HKR(math.inf), D1, 0.3333333),
    (MulticlassKR(), D3, 761 / 1800),
    (MulticlassHinge(1.0), D3, 0.7277778),
    (MulticlassHinge(2.0), D3, 1.1555556),
    (MulticlassHKR(alpha=5.0, min_margin=2.0), D3, 5.3550000),
    (MulticlassHKR(), D3, 6.8550000),
    (MulticlassHKR(alpha=math.inf, min_margin=2.0), D3, 1.1555556),
    (MulticlassHKR(alpha=0.0), D3, -761 / 1800),
    (MulticlassHinge(1.0, soft_hinge_tau=1.0), D3, 1.5404028),
    (MulticlassHinge(1.0, soft_hinge_tau=20.0), D3, 1.6999961),
    (MulticlassHKR(10.0, 1.0, soft_hinge_tau=1.0), D3, 14.9812501),
    (losses.MultiMargin(1.0), D3, 0.55),
    (losses.CategoricalHinge(1.0), D3, 1.4333333),
    (losses.TauCategoricalCrossentropy(0.5), D3, 2.1013348),
    (losses.TauCategoricalCrossentropy(1.0), D3, 1.2175579),
    (losses.TauCategoricalCrossentropy(2.0), D3, 0.9380688),
    (losses.TauSparseCategoricalCrossentropy(2.0), D3_SPARSE, 0.9380688),
    (losses.TauBinaryCrossentropy(2.0), D1, 0.2791851),
    (losses.TauBinaryCrossentropy(0.5), D1_SIGNED, 1.1925000),
    (losses.NegKR(), D1, -1.0),
    (losses.NegKR(), D3, -761 / 1800),
    (losses.MulticlassLseHKR(1.0), D3, 1.8221791),
    (losses.MulticlassLseHKR(0.9), D3, 1.6821791),
    (losses.MulticlassLseHKR(0.0), D3, 0.4221791),
    (MulticlassHKR(math.inf, 1.0, soft_hinge_tau=20.0), D3, 1.6999961),
]


ALL = [
    KR(),
    KR(multi_gpu=True),
    MulticlassKR(reduction="sum", name="kr"),
    HingeMargin(0.3),
    HKR(alpha=3.0, min_margin=0.5, multi_gpu=True),
    HKR(alpha=math.inf),
    MulticlassHinge(0.2, soft_hinge_tau=4.0),
    MulticlassHKR(),
    MulticlassHKR(2.0, 0.1, soft_hinge_tau=3.0, reduction="none"),
    losses.MultiMargin(0.3),
    losses.CategoricalHinge(0.3),
    losses.TauCategoricalCrossentropy(3.0),
    losses.TauBinaryCrossentropy(3.0),
    losses.NegKR(multi_gpu=True),
    losses.MulticlassLseHKR(0.5, temperature=2.0, penalty=0.5, min_margin=0.1),
    losses.MulticlassSoftHKR(5.0, 0.2, alpha_mean=1.0, temperature=2.0),
]


@pytest.mark.parametrize(("loss", "data", "value"), GOLDEN)
def test_golden_values(loss, data, value):
    assert float(loss(*data)) == pytest.approx(value, abs=2e-6)


def test_value_of_each_sample():
    assert_close(KR(reduction="none")(*D1), [1, 3, -1, 1, 3, -1], atol=1e-5)
    assert_close(
        HingeMargin(1.0, reduction="none")(*D1), [0, 0, 1, 0, 0, 1], atol=1e-6
    )


def test_processed_labels_give_the_same_value():
    weights = column(3.9999995, -1.3333334, -1.3333334, -1.3333334)
    value = float(KR(multi_gpu=True)(weights, D2[1]))
    assert value == pytest.approx(1.6666665, abs=1e-6)
    loss = HKR(10.0, multi_gpu=True)
    assert float(loss(weights, D2[1])) == pytest.approx(
        float(HKR(10.0)(*D2)), abs=1e-5
    )


@pytest.mark.parametrize("loss", [KR(), HingeMargin(), HKR(10.0)])
def test_label_conventions_and_dtypes_agree_exactly(loss):
    labels, scores = D1
    expected = float(loss(labels, scores))
    for encoded in (
        2 * labels - 1,
        labels.astype("int32"),
        labels.astype("bool"),
        (2 * labels - 1).astype("int64"),
        labels.astype("float64"),
    ):
        assert float(loss(encoded, scores)) == expected


@pytest.mark.parametrize("loss", [KR(), HingeMargin(), HKR(10.0)])
def test_ranks_are_aligned_and_never_broadcast(loss):
    # C13: (B,) against (B, 1) used to make a (B, B) matrix.
    labels, scores = D1
    expected = float(loss(labels, scores))
    assert float(loss(labels[:, 0], scores)) == expected
    assert float(loss(labels, scores[:, 0])) == expected
    assert float(loss(labels[:, 0], scores[:, 0])) == expected


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
@pytest.mark.parametrize(
    ("labels", "scores"),
    [((6,), (6, 3)), ((6, 1), (6, 3)), ((6, 2), (6, 3)), ((5, 3), (6, 3))],
)
def test_labels_that_do_not_fit_are_refused(loss, labels, scores):
    with pytest.raises(ValueError, match=r"Received: y_true\.shape"):
        loss.call(np.zeros(labels, "float32"), np.zeros(scores, "float32"))


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.name)
def test_config_is_plain_and_rebuilds_an_equal_loss(loss):
    # C7
    rebuilt = harness.rebuilt(loss)
    binary = (KR, HingeMargin, HKR, losses.TauBinaryCrossentropy)
    data = D1 if isinstance(loss, binary) else D3
    assert_equal(rebuilt(*data), loss(*data))


def test_parameters_can_be_assigned_while_training():
    loss = MulticlassHKR(alpha=10.0)
    before = float(loss(*D3))
    loss.alpha.assign(5.0)
    loss.min_margin.assign(2.0)
    assert float(loss(*D3)) == pytest.approx(5.355, abs=1e-5)
    assert float(loss(*D3)) != before
    loss.soft_hinge_tau.assign(20.0)
    soft = MulticlassHKR(5.0, 2.0, soft_hinge_tau=20.0)
    assert float(loss(*D3)) == pytest.approx(float(soft(*D3)), abs=1e-5)
    assert loss.get_config()["alpha"] == 5.0
    assert loss.hingeloss.get_config()["min_margin"] == 2.0


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_in_a_batch_stays_finite_when_compiled(label):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(loss=losses.NegKR(), metrics=[losses.KR()])
    x, y = np.ones((500, 2), "float32"), np.full((500, 1), label)
    assert np.all(np.isfinite(model.evaluate(x, y, batch_size=500, verbose=0)))


@pytest.mark.parametrize("loss", [KR(), HKR(10.0), MulticlassHKR()])
def test_one_class_in_a_batch_stays_finite(loss):
    width = 3 if isinstance(loss, MulticlassHKR) else 1
    for index in (0, width - 1):
        scores = np.arange(4.0 * width).reshape(4, width).astype("float32")
        labels = np.zeros((4, width), "float32")
        labels[:, index] = 1.0
        value = float(loss(labels, scores))
        assert math.isfinite(value)
        assert abs(value) < 100
        (slope,) = harness.gradient(functools.partial(loss, labels), scores)
        assert np.all(np.isfinite(slope))


def test_a_multi_class_loss_needs_two_classes():
    for loss in (
        MulticlassHinge(),
        MulticlassHKR(),
        losses.MulticlassSoftHKR(),
        losses.MulticlassLseHKR(),
    ):
        with pytest.raises(ValueError, match="two classes"):
            loss(*D1)


@pytest.mark.parametrize("reduction", ["auto", "sum_over_batch_size"])
def test_auto_is_the_reduction_of_keras(reduction):
    assert KR(reduction=reduction).reduction == "sum_over_batch_size"
    with pytest.raises(ValueError, match="reduction"):
        KR(reduction="other")


@pytest.mark.parametrize("value", [-1.0, float("nan")])
@pytest.mark.parametrize(
    "make",
    [
        lambda v: HingeMargin(v),
        lambda v: HKR(alpha=v),
        lambda v: MulticlassHKR(min_margin=v),
        lambda v: MulticlassHinge(soft_hinge_tau=v),
        losses.MultiMargin,
        losses.CategoricalHinge,
        losses.TauCategoricalCrossentropy,
        losses.TauSparseCategoricalCrossentropy,
        losses.TauBinaryCrossentropy,
    ],
)
def test_parameters_out_of_range_are_refused(make, value):
    with pytest.raises(ValueError, match="Received: "):
        make(value)
    with pytest.raises(ValueError, match=r"Received: tau=0\.0"):
        losses.TauCategoricalCrossentropy(0.0)


@pytest.mark.parametrize(
    "metrics",
    [[KR], [KR()], [HingeMargin(min_margin=1.0), KR]],
    ids=["class", "instance", "both"],
)
def test_losses_serve_as_metrics(metrics):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", HKR(10.0), metrics=metrics, jit_compile=JIT)
    x = np.random.default_rng(0).standard_normal((8, 2))
    y = np.array([1, -1] * 4)
    history = model.fit(x, y, epochs=1, verbose=0, batch_size=8).history
    names = {m.__name__ if isinstance(m, type) else m.name for m in metrics}
    assert set(history) == {"loss"} | names
    found = model.evaluate(x, y, verbose=0, return_dict=True, batch_size=8)
    scores = model.predict(x, verbose=0)
    assert found["KR"] == pytest.approx(float(KR()(y, scores)), abs=1e-5)


_CLASSES = sorted(
    {x for x in vars(losses).values() if isinstance(x, type)}
    & {getattr(losses, name) for name in losses.__all__},
    key=lambda loss: loss.__name__,
)


# A stock model does not train them, which is of no matter here.
@pytest.mark.filterwarnings("ignore:The margins of loss")
@pytest.mark.parametrize("loss_class", _CLASSES)
def test_compiled_model_is_loaded_with_its_loss_and_goes_on(
    loss_class, tmp_path
):
    name = loss_class.__name__
    several = not name.startswith(("KR", "NegKR", "HKR", "HingeMargin"))
    x = normal(6, 2)
    y = D3[0] if several and "Binary" not in name else D1[0]
    if "Sparse" in name:
        y = np.argmax(y, axis=-1)
    units = 1 if y is D1[0] else 3
    parameters = inspect.signature(loss_class).parameters.values()
    required = [2.0 for p in parameters if p.default is p.empty][:1]
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units)])
    metrics = [KR()] if units == 1 else [] if y.ndim == 1 else [MulticlassKR()]
    model.compile(
        keras.optimizers.Adam(0.1),
        loss_class(*required),
        metrics=metrics,
        run_eagerly=keras.backend.backend() == "tensorflow",
    )
    model.train_on_batch(x, y)
    loaded = reloaded(model, tmp_path)
    assert type(loaded.loss) is type(model.loss)
    assert loaded.loss.get_config() == model.loss.get_config()
    for _ in range(2):
        # What the model has counted before is not in the file.
        model.reset_metrics()
        loaded.reset_metrics()
        found, expected = (m.train_on_batch(x, y) for m in (loaded, model))
        assert_close(found, expected, rtol=1e-5)


@pytest.mark.parametrize("loss_class", _CLASSES)
def test_loss_has_the_name_of_its_class_unless_it_is_given_one(loss_class):
    parameters = inspect.signature(loss_class).parameters
    assert {"reduction", "name"} <= set(parameters)
    required = [2.0 for p in parameters.values() if p.default is p.empty][:1]
    assert loss_class(*required).name == loss_class.__name__
    assert loss_class(*required, name="mine").get_config()["name"] == "mine"


def test_functions_are_what_the_classes_compute():
    assert_equal(
        losses.hinge_margin(*D1, 1.0), HingeMargin(1.0, reduction="none")(*D1)
    )
    soft = losses.multiclass_soft_hinge(*D3, 1.0, 0.0)
    classical = losses.multiclass_hinge(*D3, 1.0)
    assert_equal(soft, classical)


def test_one_model_takes_labels_of_both_ranks_in_turn():
    # TensorFlow then traces the step again, with labels of unknown rank.
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", HKR(10.0), metrics=[KR()], jit_compile=JIT)
    x = np.random.default_rng(0).standard_normal((8, 2))
    y = np.array([1.0, -1.0] * 4)
    found = [
        model.evaluate(x, labels, verbose=0, batch_size=8)
        for labels in (y.reshape(-1, 1), y, y.reshape(-1, 1))
    ]
    assert_close(found[1], found[0], rtol=1e-6)
    assert_close(found[2], found[0], rtol=1e-6)


def _writes():
    """Ways to change a parameter of a loss between two steps."""
    ways = {"assign": lambda variable: variable.assign(5.0)}
    if keras.backend.backend() == "torch":
        ways["data"] = lambda variable: variable.value.data.fill_(5.0)
        ways["in place"] = lambda variable: variable.value.fill_(5.0)
    return ways


@pytest.mark.parametrize("way", _writes())
@pytest.mark.parametrize("name", ["alpha", "min_margin"])
def test_parameters_that_change_between_steps_are_seen(name, way):
    y_true, y_pred = np.eye(3), normal(3, 3)
    loss = MulticlassHKR(2.0, 1.0)
    before = float(loss(y_true, y_pred))
    _writes()[way](getattr(loss, name))
    after = float(loss(y_true, y_pred))
    arguments = {"alpha": 2.0, "min_margin": 1.0} | {name: 5.0}
    expected = float(MulticlassHKR(**arguments)(y_true, y_pred))
    assert after == pytest.approx(expected)
    assert after != pytest.approx(before)


def test_parameters_of_a_stateless_scope_are_seen():
    y_true, y_pred = np.eye(3), normal(3, 3)
    loss = MulticlassHKR(2.0)
    float(loss(y_true, y_pred))
    five = keras.ops.convert_to_tensor(5.0)
    with keras.StatelessScope(state_mapping=[(loss.alpha, five)]):
        found = float(loss(y_true, y_pred))
    assert found == pytest.approx(float(MulticlassHKR(5.0)(y_true, y_pred)))
