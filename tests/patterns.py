"""Made-up image data: one noisy pattern for each of ten classes."""

import numpy as np


def images(shape, *counts):
    """Pairs of uint8 images and class numbers, of the same ten patterns.

    Args:
        shape: Shape of an image; an axis of length one is the same colour.
        *counts: Integers, the number of samples of each pair.
    """
    random = np.random.default_rng(0)
    patterns = random.integers(0, 200, (10, *shape))
    parts = []
    for count in counts:
        labels = np.arange(count) % 10
        noise = random.integers(0, 56, (count, *shape))
        parts.append(((patterns[labels] + noise).astype("uint8"), labels))
    return parts


def write(path, train, test):
    """Writes an archive like those of Keras."""
    arrays = {"x_train": train[0], "y_train": train[1]}
    np.savez(path, **arrays, x_test=test[0], y_test=test[1])
