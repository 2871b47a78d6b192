"""Refuses versions of Keras that lack what the library is written in.

Imported before all else, so that an old version, or a backend that is not
installed, is named instead of shown by an error somewhere inside of Keras.
"""

_OLDEST = (3, 4)

# Backends are named as the packages whose import fails without them.
_BACKENDS = ("tensorflow", "jax", "torch")

try:
    import keras
except ModuleNotFoundError as error:
    if error.name not in _BACKENDS:
        raise
    _others = " or ".join(f"`{x}`" for x in _BACKENDS if x != error.name)
    raise ImportError(
        f"Keras is set to the backend `{error.name}`, which is not installed: "
        f'`pip install "deel-lip-core[{error.name}]"` installs it; the '
        f"environment variable `KERAS_BACKEND` chooses another one, {_others}."
    ) from None

_found = tuple(int(part) for part in keras.__version__.split(".")[:2])
if _found < _OLDEST:
    raise ImportError(
        "deel.lip needs Keras 3.4 or newer; `pip install --upgrade keras` "
        "installs it. With TensorFlow, `TF_USE_LEGACY_KERAS` must not be set. "
        f"Received: keras.__version__={keras.__version__}"
    )
