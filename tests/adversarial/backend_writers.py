"""Ways of one backend that write to the weights of a model."""

import os

import keras
import pytest
from adversarial.writers import UNSEEN
from adversarial.writers import fit
from adversarial.writers import way
from keras import ops


@way("tensorflow", faithful=True)
def tf_checkpoint(attack):
    import tensorflow as tf

    path = str(attack.folder / "checkpoint")
    path = tf.train.Checkpoint(model=attack.donor()).write(path)
    tf.train.Checkpoint(model=attack.model).restore(path).expect_partial()


@way("tensorflow", faithful=True)
def tf_checkpoint_of_variables(attack):
    import tensorflow as tf

    def items(model):
        return {f"v{i}": v for i, v in enumerate(model.weights)}

    path = str(attack.folder / "checkpoint")
    path = tf.train.Checkpoint(**items(attack.donor())).write(path)
    tf.train.Checkpoint(**items(attack.model)).read(path)


@way("tensorflow", faithful=True)
def tf_checkpoint_restored_before_the_model_is_built(attack):
    import tensorflow as tf

    path = str(attack.folder / "checkpoint")
    path = tf.train.Checkpoint(model=attack.donor()).write(path)
    model = keras.Sequential.from_config(
        {"name": "model", "layers": attack.model.get_config()["layers"][1:]}
    )
    checkpoint = tf.train.Checkpoint(model=model)
    checkpoint.restore(path).expect_partial()
    model.build(attack.model.input_shape)
    return model


@way("tensorflow", faithful=True)
def tf_checkpoint_manager(attack):
    import tensorflow as tf

    folder = str(attack.folder / "managed")
    donor = tf.train.Checkpoint(model=attack.donor())
    tf.train.CheckpointManager(donor, folder, 1).save()
    own = tf.train.Checkpoint(model=attack.model)
    tf.train.CheckpointManager(own, folder, 1).restore_or_initialize()


@way("tensorflow", into=UNSEEN)
def the_variable_of_tensorflow_below(attack):
    variable, value = attack.wbar
    variable.value.assign(value)


@way("tensorflow", into=UNSEEN)
def a_compiled_function_of_ones_own(attack):
    import tensorflow as tf

    variable, value = attack.wbar
    tf.function(lambda x: variable.assign(x))(value)


@way("jax")
def tree_map_over_the_state(attack):
    import jax

    own = attack.model.get_state_tree()
    other = attack.donor().get_state_tree()
    # A step of one half back from the other: all kinds stay hostile.
    tree = jax.tree.map(lambda w, v: 3.0 * v - 2.0 * w, own, other)
    attack.model.set_state_tree(tree)


@way("jax", faithful=True)
def assign_what_a_compiled_function_returns(attack):
    import jax

    variables = attack.model.weights
    computed = jax.jit(lambda values: [1.0 * v for v in values])(attack.values)
    for variable, value in zip(variables, computed, strict=True):
        variable.assign(value)


@way("jax")
def stateless_call_eagerly(attack):
    model = attack.model
    count = len(model.trainable_variables)
    values = [ops.convert_to_tensor(v) for v in attack.values]
    trained, others = values[:count], values[count:]

    def call(x, training):
        return model.stateless_call(trained, others, x, training=training)[0]

    return call


@way("jax", faithful=True)
def orbax_callback_and_load_weights(attack):
    _save_by_orbax(attack)
    attack.model.load_weights(attack.folder / "orbax")


@way("jax")
def orbax_callback_and_load_model(attack):
    # Keras 3.15 puts nothing back: the variables of the model that it makes
    # have other paths, those of a stock `Dense` as well.
    _save_by_orbax(attack)
    return keras.models.load_model(attack.folder / "orbax")


@way("jax", faithful=True)
def orbax_checkpointer_and_set_state_tree(attack):
    ocp = pytest.importorskip("orbax.checkpoint")
    checkpointer = ocp.StandardCheckpointer()
    path = os.path.abspath(attack.folder / "tree")
    checkpointer.save(path, attack.donor().get_state_tree())
    checkpointer.wait_until_finished()
    tree = checkpointer.restore(path, attack.model.get_state_tree())
    attack.model.set_state_tree(tree)


def _save_by_orbax(attack):
    pytest.importorskip("orbax.checkpoint")
    if not hasattr(keras.callbacks, "OrbaxCheckpoint"):
        pytest.skip("Keras before 3.13 has no OrbaxCheckpoint")
    donor = attack.donor()
    callback = keras.callbacks.OrbaxCheckpoint(
        str(attack.folder / "orbax"), save_on_background=False
    )
    callback.set_model(donor)
    callback.on_train_begin()
    callback.on_epoch_end(0, {})
    callback.on_train_end()


@way("jax", into=UNSEEN)
def a_train_step_of_ones_own(attack):
    """What it returns is the state that the trainer brings back."""
    model = attack.model
    values = [ops.convert_to_tensor(v) for v in attack.values]
    count = len(model.trainable_variables)

    class Hostile(type(model)):
        def train_step(self, state, data):
            logs, (trained, others, optimizer, metrics) = super().train_step(
                state, data
            )
            for i, (old, new) in enumerate(
                zip(others, values[count:], strict=False)
            ):
                others[i] = new + 0.0 * old
            return logs, (trained, others, optimizer, metrics)

    model.__class__ = Hostile
    fit(model)


@way("torch", faithful=True)
def load_state_dict(attack):
    attack.model.load_state_dict(attack.donor().state_dict())


@way("torch")
def load_state_dict_by_assignment(attack):
    state = attack.donor().state_dict()
    attack.model.load_state_dict(state, assign=True)


@way("torch", faithful=True)
def in_place(attack):
    import torch

    with torch.no_grad():
        for variable, value in attack.tensors():
            variable.value.copy_(value)


@way("torch", faithful=True)
def in_place_by_data(attack):
    for variable, value in attack.tensors():
        variable.value.data.copy_(value)


@way("torch", faithful=True)
def data_replaced(attack):
    for variable, value in attack.tensors():
        variable.value.data = value.clone()


@way("torch")
def data_of_a_detached_tensor(attack):
    variable, value = attack.wbar
    variable.value.detach().data.copy_(ops.convert_to_tensor(value))


@way("torch", faithful=True)
def tensors_of_a_state_dict_written_later(attack):
    # Tensors of their own, of the same memory.
    state = attack.model.state_dict().values()
    tensors = {tensor.data_ptr(): tensor for tensor in state}
    for variable, value in attack.tensors():
        tensors[variable.value.data_ptr()].copy_(value)


@way("torch")
def memory_shared_with_numpy(attack):
    variable, value = attack.wbar
    variable.value.detach().numpy()[...] = value


@way("torch", faithful=True)
def vector_to_parameters(attack):
    import torch

    parameters = [variable.value for variable in attack.model.weights]
    vector = torch.cat([v.reshape(-1) for _, v in attack.tensors()])
    torch.nn.utils.vector_to_parameters(vector, parameters)


@way("torch", faithful=True)
def averaged_model(attack):
    import torch

    # Lookahead: the second value is not averaged in but stepped over.
    averaged = torch.optim.swa_utils.AveragedModel(
        attack.model, avg_fn=lambda average, new, count: new
    )
    averaged.update_parameters(attack.model)
    averaged.update_parameters(attack.donor())
    return averaged.module


@way("torch")
def optimizer_of_torch_on_all_parameters(attack):
    import torch

    parameters = [variable.value for variable in attack.model.weights]
    for variable, value in attack.tensors():
        variable.value.requires_grad_(True)
        variable.value.grad = variable.value.detach() - value
    torch.optim.SGD(parameters, lr=1.0).step()
    for variable in attack.model.weights:
        variable.value.requires_grad_(variable.trainable)
        variable.value.grad = None


@way("torch")
def swapped_to_another_dtype_and_back(attack):
    in_place(attack)
    attack.model.double()
    attack.model.float()
