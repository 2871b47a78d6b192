"""Invertible resampling: the order of the values, and the inverse."""

import numpy as np
import pytest
from harness import assert_equal
from harness import to_numpy

from deel.lip import layers


def test_golden_values():
    x = np.arange(32.0).reshape(1, 4, 4, 2)
    y = to_numpy(layers.InvertibleDownSampling(2)(x))
    assert_equal(y[0, 0, 0], [0, 2, 8, 10, 1, 3, 9, 11])
    assert_equal(y[0, 0, 1], [4, 6, 12, 14, 5, 7, 13, 15])
    first = np.transpose(x, (0, 3, 1, 2))
    layer = layers.InvertibleDownSampling(2, data_format="channels_first")
    assert_equal(np.transpose(to_numpy(layer(first)), (0, 2, 3, 1)), y)


@pytest.mark.parametrize("pool_size", [2, (2, 3), (3, 1)])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_up_sampling_is_the_exact_inverse(pool_size, data_format):
    # C9: height and width used to be exchanged.
    x = np.random.default_rng(0).standard_normal((2, 6, 12, 3))
    if data_format == "channels_first":
        x = np.transpose(x, (0, 3, 1, 2))
    x = x.astype("float32")
    down = layers.InvertibleDownSampling(pool_size, data_format)
    up = layers.InvertibleUpSampling(pool_size, data_format)
    assert_equal(up(down(x)), x)
    found = down.compute_output_shape((None, *x.shape[1:]))
    assert up.compute_output_shape(found) == (None, *x.shape[1:])


@pytest.mark.parametrize(
    ("layer", "arguments", "shape"),
    [
        (layers.InvertibleDownSampling, {"pool_size": (2, 2, 2)}, None),
        (layers.InvertibleUpSampling, {"pool_size": (2,)}, None),
        (layers.InvertibleDownSampling, {"pool_size": 2}, (1, 5, 4, 1)),
        (layers.InvertibleDownSampling, {"pool_size": (1, 3)}, (1, 3, 4, 1)),
        (layers.InvertibleUpSampling, {"pool_size": 2}, (1, 2, 2, 6)),
        (layers.InvertibleDownSampling, {"pool_size": 0}, None),
    ],
)
def test_sizes_that_do_not_divide_are_refused(layer, arguments, shape):
    with pytest.raises(ValueError, match="Received: "):
        layer(**arguments).build(shape)


def test_unknown_image_size_is_accepted():
    layer = layers.InvertibleDownSampling(2)
    assert layer.compute_output_shape((None, None, 4, 3)) == (None, None, 2, 12)
