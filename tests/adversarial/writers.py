"""Ways of Keras, and of the backends, that write to the weights of a model."""

import copy
import dataclasses
import pathlib
import pickle
import typing

import harness
import keras
import numpy as np
import pytest
from harness import to_numpy
from keras import ops

BACKEND = keras.backend.backend()


def fit(model, **kwargs):
    x = np.zeros((4, *model.input_shape[1:]), "float32")
    y = np.zeros((4, *model.output_shape[1:]), "float32")
    model.fit(x, y, verbose=0, **kwargs)


def poisoned(model, values):
    """Makes a model hold these values, as one of another program might."""
    for variable, value in zip(model.weights, values, strict=True):
        value = ops.convert_to_tensor(value)
        harness.assign_unguarded(variable, value)
    return model


@dataclasses.dataclass
class Attack:
    """What a way in works with.

    Attributes:
        model: The model that is attacked.
        values: List of arrays, in the order of its weights.
        donor: Function that returns a second model, which holds the values.
        folder: Path of an empty folder.
    """

    model: keras.Model
    values: list
    donor: typing.Callable
    folder: pathlib.Path

    @property
    def pairs(self):
        return zip(self.model.weights, self.values, strict=True)

    def tensors(self):
        for variable, value in self.pairs:
            yield variable, ops.convert_to_tensor(value)

    @property
    def wbar(self):
        """The constrained kernel, and the value for it."""
        return next((v, w) for v, w in self.pairs if v.name == "wbar")


WAYS = {}
# Names of those that carry over all weights, as they are.
FAITHFUL = []
# Ways that nobody can see from within Keras; what they lead to is not exported.
UNSEEN = {}


def way(*backends, into=WAYS, faithful=False):
    """Decorator: adds a way, which returns None or another model."""

    def add(function):
        if not backends or BACKEND in backends:
            into[function.__name__] = function
            if faithful:
                FAITHFUL.append(function.__name__)
        return function

    return add


@way(faithful=True)
def set_weights_of_the_model(attack):
    attack.model.set_weights(attack.values)


@way()
def set_weights_of_the_layer(attack):
    attack.model.layers[0].set_weights(attack.values)


@way()
def set_weights_of_the_parametrization(attack):
    child = attack.model.layers[0].parametrization
    child.set_weights(attack.values[-len(child.weights) :])


@way(faithful=True)
def set_weights_of_tensors(attack):
    attack.model.set_weights([value for _, value in attack.tensors()])


@way(faithful=True)
def load_weights(attack):
    path = attack.folder / "x.weights.h5"
    attack.donor().save_weights(path)
    attack.model.load_weights(path)


@way()
def load_own_variables(attack):
    child = attack.model.layers[0].parametrization
    values = attack.values[-len(child.weights) :]
    child.load_own_variables({str(i): v for i, v in enumerate(values)})


@way(faithful=True)
def load_model(attack):
    path = attack.folder / "x.keras"
    attack.donor().save(path)
    return keras.models.load_model(path)


@way(faithful=True)
def pickled(attack):
    return pickle.loads(pickle.dumps(attack.donor()))


@way(faithful=True)
def deepcopy(attack):
    return copy.deepcopy(attack.donor())


@way(faithful=True)
def set_state_tree(attack):
    attack.model.set_state_tree(attack.donor().get_state_tree())


@way(faithful=True)
def set_state_tree_of_arrays(attack):
    tree = attack.donor().get_state_tree(value_format="numpy_array")
    attack.model.set_state_tree(tree)


@way(faithful=True)
def set_state_tree_in_reverse(attack):
    tree = attack.donor().get_state_tree()
    attack.model.set_state_tree(dict(reversed(list(tree.items()))))


@way(faithful=True)
def assign_arrays(attack):
    for variable, value in attack.pairs:
        variable.assign(value)


@way()
def assign_tensors(attack):
    for variable, value in attack.tensors():
        variable.assign(value)


@way(faithful=True)
def assign_in_reverse(attack):
    for variable, value in reversed(list(attack.tensors())):
        variable.assign(value)


@way(faithful=True)
def assign_variables(attack):
    donor = attack.donor()
    for variable, other in zip(
        attack.model.weights, donor.weights, strict=True
    ):
        variable.assign(other)


@way()
def assign_add(attack):
    for variable, value in attack.tensors():
        variable.assign_add(value - variable)


@way()
def assign_sub(attack):
    for variable, value in attack.tensors():
        variable.assign_sub(variable - value)


@way(faithful=True)
def assign_within_a_step(attack):
    """As a callback of `fit` does it."""
    model = attack.model
    values = attack.values

    class Writer(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            pairs = zip(self.model.weights, values, strict=True)
            for variable, value in pairs:
                variable.assign(ops.convert_to_tensor(value))

    fit(model, callbacks=[Writer()])


@way()
def an_array_changed_after_it_was_assigned(attack):
    variable, value = attack.wbar
    held = _aligned(to_numpy(variable))
    variable.assign(held)
    held[...] = value


@way()
def an_array_changed_after_it_was_a_tensor(attack):
    variable, value = attack.wbar
    held = _aligned(to_numpy(variable))
    if BACKEND == "jax":
        import jax.numpy as jnp

        variable.assign(jnp.asarray(held))
    else:
        variable.assign(ops.convert_to_tensor(held))
    held[...] = value


def _aligned(array):
    """A copy at an address that no backend needs to copy it from."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copied = room[start : start + array.nbytes].view(array.dtype)
    copied = copied.reshape(array.shape)
    copied[...] = array
    return copied


@way("jax", "torch")
def the_attribute_below(attack):
    variable, value = attack.wbar
    value = ops.convert_to_tensor(value)
    if BACKEND == "torch":
        import torch

        value = torch.nn.Parameter(value, requires_grad=False)
    variable._value = value


@way()
def averages_of_the_optimizer(attack):
    model = attack.model
    optimizer = keras.optimizers.SGD(0.0, use_ema=True)
    optimizer.build(model.trainable_variables)
    averages = optimizer._model_variables_moving_average
    for average, value in zip(averages, attack.values, strict=False):
        average.assign(value)
    optimizer.finalize_variable_values(model.trainable_variables)


@way()
def restored_by_backup(attack):
    folder = attack.folder / "backup"
    backup = keras.callbacks.BackupAndRestore(folder)
    donor = attack.donor()

    class Interrupted(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            poisoned(self.model, attack.values)

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(donor, epochs=2, callbacks=[Interrupted(), backup])
    fit(attack.model, callbacks=[keras.callbacks.BackupAndRestore(folder)])
