"""How the device at hand rounds products, from a few of them."""

import math

import numpy as np
from keras import ops


def rounding_of_factors():
    """By how much this device rounds the factors of float32 products.

    Zero where a product with an identity matrix is exact, and so is a
    convolution with one. TensorFloat-32 keeps ten digits after the first, hence
    2^-11; the power of two above what is seen counts.
    """
    random = np.random.default_rng(0)
    values = random.uniform(1.0, 2.0, (1, 8, 8, 64)).astype("float32")
    kernel = np.zeros((3, 3, 64, 64), "float32")
    kernel[1, 1] = np.eye(64)
    tensor = ops.convert_to_tensor(values)
    product = ops.matmul(
        ops.reshape(tensor, (64, 64)), ops.convert_to_tensor(kernel[1, 1])
    )
    convolved = ops.conv(
        tensor,
        ops.convert_to_tensor(kernel),
        padding="same",
        data_format="channels_last",
    )
    worst = 0.0
    for found in (product, convolved):
        found = ops.convert_to_numpy(found).reshape(values.shape)
        worst = max(worst, float(np.max(np.abs(found / values - 1))))
    return 2.0 ** math.ceil(math.log2(worst)) if worst else 0.0


def rounding_unit():
    """How far products of this backend and device are from exact ones.

    At least the rounding unit of float32. Some devices round the factors of
    float32 products to fewer digits, and fast algorithms for convolutions add
    errors of their own; one product and two convolutions show it.
    """
    generator = np.random.default_rng(0)
    image = generator.standard_normal((1, 8, 8, 64)).astype("float32")
    kernel = generator.standard_normal((3, 3, 64, 64)).astype("float32")
    pixels, matrix = image.reshape(64, 64), kernel[0, 0]
    exact = image.astype("float64")
    windows = np.lib.stride_tricks.sliding_window_view(exact, (3, 3), (1, 2))
    product = ops.matmul(
        ops.convert_to_tensor(pixels), ops.convert_to_tensor(matrix)
    )
    pairs = [(product, exact.reshape(64, 64) @ matrix.astype("float64"))]
    for taps, expected in (
        (kernel[:1, :1], exact @ matrix.astype("float64")),
        (kernel, np.einsum("bhwcij,ijco->bhwo", windows, kernel)),
    ):
        found = ops.conv(
            ops.convert_to_tensor(image),
            ops.convert_to_tensor(taps),
            data_format="channels_last",
        )
        pairs.append((found, expected))
    unit = float(np.finfo("float32").eps) / 2
    for found, expected in pairs:
        found = ops.convert_to_numpy(found)
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        # Sums of 64 terms and more are wrong by less than eight units.
        unit = max(unit, float(error) / 8)
    return unit
