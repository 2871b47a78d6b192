"""The one spelling under which the classes of this library are saved."""

import keras

PACKAGE = "deel-lip"


def register(name=None):
    """Decorator: registers a class or function as `deel-lip>name`."""
    return keras.saving.register_keras_serializable(package=PACKAGE, name=name)
