"""A user's first program, for an installed package without its source tree."""

import pathlib
import tempfile

import keras
import numpy as np

import deel.lip
from deel.lip.activations import GroupSort2
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import SpectralDense
from deel.lip.losses import MulticlassHKR


def main():
    """Trains, saves, loads and exports a small network."""
    model = deel.lip.Sequential(
        [
            keras.Input((4,)),
            SpectralDense(16, activation=GroupSort2()),
            FrobeniusDense(3, use_bias=False),
        ]
    )
    model.compile("adam", MulticlassHKR(10.0))
    x = np.random.default_rng(0).standard_normal((60, 4))
    y = np.eye(3)[np.arange(60) % 3]
    model.fit(x, y, epochs=2, verbose=0)
    expected = model.predict(x, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    exported = loaded.vanilla_export()
    found = exported.predict(x, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    package = pathlib.Path(deel.lip.__file__).parent
    print("deel.lip", deel.lip.__version__, "works from", package)


if __name__ == "__main__":
    main()
