"""Random numbers for initial values, drawn by NumPy where that is faster."""

import keras
import numpy as np


def normal(shape, seed, dtype):
    """Normal random numbers that an initializer of Keras would draw.

    On JAX, by NumPy: there each shape is compiled first. Which numbers belong
    to a seed is a matter of the backend anyway.

    Args:
        shape: Tuple.
        seed: As of initializers: an integer, or a generator of Keras.
        dtype: String.
    """
    if keras.backend.backend() != "jax" or not isinstance(seed, int):
        return keras.random.normal(shape, dtype=dtype, seed=seed)
    drawn = np.random.default_rng(seed).standard_normal(shape)
    return keras.ops.convert_to_tensor(drawn, dtype=dtype)


class Normal(keras.initializers.RandomNormal):
    """Standard normal numbers by `normal`."""

    def __init__(self):
        super().__init__(0.0, 1.0)

    def __call__(self, shape, dtype=None):
        return normal(shape, self.seed, dtype or keras.config.floatx())
