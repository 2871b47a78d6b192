"""Golden values of the metrics, and both ways of using them."""

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_equal
from harness import reloaded

from deel.lip.metrics import BinaryProvableAvgRobustness
from deel.lip.metrics import BinaryProvableRobustAccuracy
from deel.lip.metrics import CategoricalProvableAvgRobustness
from deel.lip.metrics import CategoricalProvableRobustAccuracy

D4 = (
    np.eye(3, dtype="float32")[[0, 0, 1, 1]],
    np.array([[1, 0, 0], [0.1, 0, 0], [0, 0, 1], [0, 0, 0.1]], "float32"),
)
D5 = (
    np.array([[1], [1], [-1], [-1], [-1], [-1], [1], [1]], "float32"),
    np.array([[1], [0.1], [1], [0.1], [-1], [-0.1], [-1], [-0.1]], "float32"),
)

GOLDEN = [
    (CategoricalProvableRobustAccuracy(0.25, 1.0, False), D4, 0.25),
    (CategoricalProvableRobustAccuracy(0.6, 1.0, True), D4, 0.0),
    (CategoricalProvableRobustAccuracy(0.6, 1.0, False), D4, 0.25),
    (CategoricalProvableAvgRobustness(1.0, False), D4, 0.1944544),
    (CategoricalProvableAvgRobustness(1.0, True), D4, 0.1375),
    (CategoricalProvableAvgRobustness(1.0, True, True), D4, 0.0),
    (BinaryProvableRobustAccuracy(0.25), D5, 0.25),
    (BinaryProvableAvgRobustness(), D5, 0.275),
    (BinaryProvableAvgRobustness(2.0), D5, 0.1375),
    (BinaryProvableAvgRobustness(2.0, True), D5, 0.0),
]
METRICS = [metric for metric, _, _ in GOLDEN]


@pytest.mark.parametrize(("metric", "data", "value"), GOLDEN)
def test_golden_values(metric, data, value):
    assert float(metric(*data)) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("metric", "data", "value"), GOLDEN)
def test_metric_accumulates_over_batches_of_any_size(metric, data, value):
    # C5
    assert isinstance(metric, keras.metrics.Metric)
    metric.reset_state()
    labels, scores = data
    for part in (slice(0, 1), slice(1, 3), slice(3, None)):
        metric.update_state(labels[part], scores[part])
        # A call in between leaves the state untouched.
        metric(labels[:1], scores[:1])
    assert float(metric.result()) == pytest.approx(value, abs=1e-6)
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_samples_can_be_weighted():
    metric = BinaryProvableAvgRobustness()
    weights = np.array([1.0, 3, 0, 0, 0, 0, 0, 0])
    expected = (1.0 + 3 * 0.1) / 4
    assert float(metric(*D5, weights)) == pytest.approx(expected)
    metric.update_state(*D5, sample_weight=weights)
    assert float(metric.result()) == pytest.approx(expected)


def test_reductions_of_a_call():
    total = BinaryProvableRobustAccuracy(0.25, reduction="sum")
    assert float(total(*D5)) == 2.0
    single = BinaryProvableRobustAccuracy(0.25, reduction="none")
    assert_equal(single(*D5), [1, 0, 0, 0, 1, 0, 0, 0])


@pytest.mark.parametrize("metric", METRICS[:1] + METRICS[3:4])
def test_label_conventions_agree(metric):
    labels, scores = D4
    expected = float(metric(labels, scores))
    assert float(metric(2 * labels - 1, scores)) == expected
    assert float(metric(labels.astype("int32"), scores)) == expected


def test_binary_labels_agree():
    labels, scores = D5
    metric = BinaryProvableAvgRobustness()
    expected = float(metric(labels, scores))
    assert float(metric((labels + 1) / 2, scores)) == expected
    assert float(metric(labels[:, 0], scores)) == expected
    assert float(metric(labels, scores[:, 0])) == expected


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_config_is_plain_and_rebuilds_an_equal_metric(metric):
    rebuilt = harness.rebuilt(metric)
    assert rebuilt.certificate_factor == metric.certificate_factor


@pytest.mark.parametrize("jit_compile", [False, True])
def test_metrics_in_a_compiled_model(jit_compile, tmp_path):
    if keras.backend.backend() == "torch" and jit_compile:
        pytest.skip("torch.compile needs a C++ toolchain of its own")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Identity()])
    metrics = [
        CategoricalProvableRobustAccuracy(0.25, 1.0, False),
        CategoricalProvableAvgRobustness(1.0, False),
    ]
    model.compile("sgd", "mse", metrics=metrics, jit_compile=jit_compile)
    labels, scores = D4
    found = model.evaluate(
        scores, labels, batch_size=3, verbose=0, return_dict=True
    )
    assert found[metrics[0].name] == pytest.approx(0.25)
    assert found[metrics[1].name] == pytest.approx(0.1944544, abs=1e-6)
    loaded = reloaded(model, tmp_path)
    again = loaded.evaluate(
        scores, labels, batch_size=3, verbose=0, return_dict=True
    )
    assert again == pytest.approx(found)


def test_metric_serves_as_a_loss_to_evaluate():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Identity()])
    loss = CategoricalProvableAvgRobustness(1.0, False)
    model.compile("sgd", loss, jit_compile=JIT)
    labels, scores = D4
    found = model.evaluate(scores, labels, batch_size=4, verbose=0)
    assert found == pytest.approx(0.1944544, abs=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CategoricalProvableRobustAccuracy(epsilon=-0.1),
        lambda: BinaryProvableRobustAccuracy(epsilon=float("nan")),
        lambda: BinaryProvableAvgRobustness(lip_const=0.0),
        lambda: CategoricalProvableAvgRobustness(reduction="other"),
        lambda: BinaryProvableAvgRobustness()(D4[0], D4[1]),
        lambda: CategoricalProvableAvgRobustness()(D5[0], D4[1]),
    ],
)
def test_wrong_arguments_are_refused(make):
    with pytest.raises(ValueError, match="Received: "):
        make()
