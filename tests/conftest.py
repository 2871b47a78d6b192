"""One seed for each test; the backend is chosen by `KERAS_BACKEND`."""

import keras
import pytest


@pytest.fixture(autouse=True)
def _fresh_session():
    # Without the garbage collection, which takes longer than most tests.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1234)
    yield
    keras.config.set_dtype_policy("float32")
