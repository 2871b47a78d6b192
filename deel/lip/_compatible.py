"""Refuses versions of Keras that lack what the library is written in.

Imported before all else, so that an old version is named instead of shown by
an error somewhere inside.
"""

import keras

_OLDEST = (3, 4)

_found = tuple(int(part) for part in keras.__version__.split(".")[:2])
if _found < _OLDEST:
    raise ImportError(
        "deel.lip needs Keras 3.4 or newer; `pip install --upgrade keras` "
        "installs it. With TensorFlow, `TF_USE_LEGACY_KERAS` must not be set. "
        f"Received: keras.__version__={keras.__version__}"
    )
