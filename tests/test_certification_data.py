"""What data certificates take, and in what units they are."""

import keras
import numpy as np
import pytest
from small_networks import linear_classifier

from deel.lip.certification import certified_accuracy
from deel.lip.certification import certify
from deel.lip.certification import certify_pixels
from deel.lip.certification import lipschitz_bound

pytestmark = pytest.mark.elsewhere


def test_summary_says_in_what_units_radii_are():
    model = linear_classifier(np.eye(2))
    x = np.array([[0.0, 255.0], [3.0, 128.0], [17.0, 1.0]])
    for batch_size in (1, 3):
        certificates = certify(model, x, batch_size=batch_size)
        assert certificates.input_range == (0.0, 255.0)
        assert "radii are for inputs       from 0 to 255" in repr(certificates)
    assert certificates.to_dict()["input_range"] == [0.0, 255.0]
    assert certify(model, iter([x[1:] / 255])).input_range[1] < 1


def test_summary_of_pixels_says_in_what_units_radii_are():
    model = keras.Sequential(
        [keras.Input((2, 2, 3)), keras.layers.Dense(2, use_bias=False)]
    )
    x = np.arange(12.0).reshape(1, 2, 2, 3)
    certificates = certify_pixels(model, x)
    assert certificates.input_range == (0.0, 11.0)
    assert "radii are for inputs       from 0 to 11" in repr(certificates)
    for index in (1, 99, -2):
        with pytest.raises(ValueError, match=f"Received: index={index}"):
            certificates.plot_map(index)


@pytest.mark.parametrize("rest", [[np.ones((3, 2))], ["a"], [[1.0]]])
def test_lists_that_are_no_array_are_refused(rest):
    model = linear_classifier(np.eye(2))
    with pytest.raises(ValueError, match=r"iter\(batches.*Received: x of"):
        certify(model, [np.ones((2, 2)), *rest])


def test_labels_are_checked_before_anything_is_computed(monkeypatch):
    model = linear_classifier(np.eye(2))

    def predict_on_batch(x):
        raise AssertionError("It has been called.")

    monkeypatch.setattr(model, "predict_on_batch", predict_on_batch)
    with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
        certify(model, np.ones((4, 2)), [0, 1, 1, 2], batch_size=1)


def test_errors_show_strings_in_quotes_and_no_long_arrays():
    model, x = linear_classifier(np.eye(2)), np.ones((1, 2))
    with pytest.raises(ValueError, match="Received: rounding='float16'"):
        certify(model, x, rounding="float16")
    with pytest.raises(ValueError, match=r"=ndarray of shape \(999,\)$"):
        certified_accuracy(model, x, [0], epsilons=-np.ones(999))
    with pytest.raises(ValueError, match=r"epsilons=\[-1.0\]$"):
        certified_accuracy(model, x, [0], epsilons=[-1.0])


def test_tables_hold_plain_numbers():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.AveragePooling2D(2),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    bound, table = lipschitz_bound(model, return_table=True)
    assert {type(x) for row in table for x in (row.value, row.chain)} == {float}
    assert type(bound) is float
