"""One seed for each test; the backend is chosen by `KERAS_BACKEND`."""

import keras
import pytest


@pytest.fixture(autouse=True)
def _fresh_session():
    keras.utils.clear_session()
    keras.utils.set_random_seed(1234)
    yield
    keras.config.set_dtype_policy("float32")
