"""What Keras alone can load, and what it cannot."""

import keras

from deel.lip._lipschitz import Condensable

# What training needs and inference does not.
_TRAINING = ("initializer", "regularizer", "constraint")


def without_training(config):
    """The config of a stock layer, without foreign objects for training.

    Also of what is inside: layers of wrappers, cells.
    """
    if isinstance(config, (list, tuple)):
        return type(config)(map(without_training, config))
    if not isinstance(config, dict):
        return config
    return {
        key: without_training(value)
        for key, value in config.items()
        if not (key.endswith(_TRAINING) and _is_foreign(value))
    }


def require_known(layer):
    """Raises ValueError for a layer that has no form; see [forms]."""
    described = f"layer '{layer.name}' of type {type(layer).__name__}"
    if not is_stock(type(layer)):
        if _is_ours(type(layer)) or isinstance(layer, Condensable):
            return
        raise ValueError(
            "Keras alone cannot load a layer of your own. Expected layers of "
            f"Keras and of this library. Received: {described}"
        )
    if isinstance(layer, keras.layers.Lambda):
        raise ValueError(
            "What is in a `Lambda` layer is not loaded in safe mode. Expected "
            "operations of `keras.ops`, on the tensors of a functional model. "
            f"Received: {described}"
        )
    if isinstance(layer, keras.layers.Masking) or getattr(
        layer, "mask_zero", False
    ):
        raise ValueError(
            "Operations take no mask. Expected a model that makes none. "
            f"Received: {described}"
        )
    if isinstance(layer, keras.Model):
        return
    found = next(_unknown_in(without_training(layer.get_config())), None)
    if found is not None:
        raise ValueError(
            "Keras alone cannot load functions and objects of your own. "
            f"Expected those of Keras. Received: {found} in {described}"
        )


def _unknown_in(config):
    """Yields the names, at any depth, of what is of neither library."""
    if isinstance(config, dict):
        if "class_name" in config and "module" in config:
            module = config["module"] or ""
            if not _is_foreign(config) or module.startswith("deel.lip."):
                yield from _unknown_in(config.get("config"))
            else:
                is_function = config["class_name"] == "function"
                yield config["config" if is_function else "class_name"]
            return
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for part in config:
            yield from _unknown_in(part)


def require_stock(model):
    """Raises ValueError if a part of a model is not one of Keras."""
    for operation in model.operations:
        if isinstance(operation, keras.Model):
            continue
        config = keras.saving.serialize_keras_object(operation)
        found = next(_foreign_in(config), None)
        if found is not None:
            raise ValueError(
                "Keras alone could not load what is not its own, and it has no "
                "stock form where it is. Expected activations of this library "
                "behind layers or as that of dense layers and convolutions. "
                f"Received: {found} in layer '{operation.name}' of type "
                f"{type(operation).__name__}"
            )


def _foreign_in(config):
    """Yields the class names, at any depth, of what is not of Keras."""
    if isinstance(config, dict):
        is_object = "class_name" in config and "module" in config
        if is_object and _is_foreign(config):
            yield config["class_name"]
            return
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for part in config:
            yield from _foreign_in(part)


def _is_foreign(config):
    """Whether a config names a class or function that is not of Keras."""
    if not isinstance(config, dict):
        return False
    return (config.get("module") or "").split(".")[0] != "keras"


def is_stock(kind):
    return kind.__module__.split(".")[0] == "keras"


def _is_ours(kind):
    return kind.__module__.startswith("deel.lip.")
