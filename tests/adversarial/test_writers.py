"""Whoever writes to the weights: inference keeps its constant.

A search: each way of Keras, and of the backend, that writes variables, on each
of several layers, with each kind of hostile values. What is measured is the
operator of inference itself, from its response to impulses, eagerly and
compiled, and of the forward pass of training.
"""

import copy
import os
import pickle

import harness
import keras
import numpy as np
import pytest
from harness import assert_close
from harness import to_numpy
from keras import ops

import deel.lip.model
from deel.lip import layers

BACKEND = keras.backend.backend()

# Of orbax, which restores arrays as they were saved.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info:UserWarning")


# Each makes a linear layer, so its response to impulses is all of it.
LAYERS = {
    "spectral": (
        lambda k: layers.SpectralDense(5, use_bias=False, k_coef_lip=k),
        (7,),
    ),
    "frobenius": (
        lambda k: layers.FrobeniusDense(
            5, use_bias=False, disjoint_neurons=False, k_coef_lip=k
        ),
        (7,),
    ),
    "convolution": (
        lambda k: layers.SpectralConv2D(
            4, 3, use_bias=False, bound="operator", k_coef_lip=k
        ),
        (4, 4, 2),
    ),
    "almost orthogonal": (
        lambda k: layers.AOLDense(5, use_bias=False, k_coef_lip=k),
        (7,),
    ),
    "orthogonal convolution": (
        lambda k: layers.OrthogonalConv2D(4, 3, use_bias=False, k_coef_lip=k),
        (4, 4, 2),
    ),
}
QUICK = ("spectral",)
CONTAINERS = {"stock": keras.Sequential, "deel": deel.lip.model.Sequential}


def build(kind, container, k=1.0):
    make, shape = LAYERS[kind]
    if container == "deel":
        # The model shares out its own constant.
        model = deel.lip.model.Sequential(
            [keras.Input(shape), make(1.0)], k_coef_lip=k, name="model"
        )
    else:
        model = keras.Sequential([keras.Input(shape), make(k)], name="model")
    # A learning rate of zero: what was written is what stays.
    model.compile(
        keras.optimizers.SGD(0.0), "mse", jit_compile=BACKEND == "jax"
    )
    return model


def fit(model, **kwargs):
    x = np.zeros((4, *model.input_shape[1:]), "float32")
    y = np.zeros((4, *model.output_shape[1:]), "float32")
    model.fit(x, y, verbose=0, **kwargs)


def named_alike(kind, container, k=1.0):
    """A model whose variables have the paths of those of any other."""
    keras.utils.clear_session(free_memory=False)
    return build(kind, container, k)


def arrays_of(model):
    return [np.array(to_numpy(v)) for v in model.weights]


def _ten(model, donors):
    return arrays_of(donors["k = 10"])


def _extrapolated(model, donors):
    own, other = arrays_of(model), arrays_of(donors["k = 1"])
    return [1.5 * w - 0.5 * v for w, v in zip(own, other, strict=True)]


def _only_wbar(function):
    # The rest of the state stays valid, so there is something to go back to.
    def values(model, donors):
        return [
            function(w) if v.name == "wbar" else w
            for v, w in zip(model.weights, arrays_of(model), strict=True)
        ]

    return values


HOSTILE = {
    "weights of k = 10": _ten,
    "1.5 w - 0.5 v": _extrapolated,
    "NaN": _only_wbar(lambda w: np.full_like(w, np.nan)),
    "huge": _only_wbar(lambda w: 1e20 * w),
    "tiny": _only_wbar(lambda w: 1e-30 * w),
    "scaled by 1.001": _only_wbar(lambda w: 1.001 * w),
    "a pair that proves itself": lambda model, donors: [
        3.0 * w if v.name in ("wbar", "kernel") else w
        for v, w in zip(model.weights, arrays_of(model), strict=True)
    ],
}


def poisoned(model, values):
    """Makes a model hold these values, as one of another program might."""
    for variable, value in zip(model.weights, values, strict=True):
        value = ops.convert_to_tensor(value)
        harness.assign_unguarded(variable, value)
    return model


class Attack:
    """What a way in works with.

    Attributes:
        model: The model that is attacked.
        values: List of arrays, in the order of its weights.
        donor: Function that returns a second model, which holds the values.
        folder: Path of an empty folder.
    """

    def __init__(self, model, values, donor, folder):
        self.model = model
        self.values = values
        self.donor = donor
        self.folder = folder

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
# Ways that nobody can see from within Keras; what they lead to is not exported.
UNSEEN = {}


def way(*backends, into=WAYS):
    def add(function):
        if not backends or BACKEND in backends:
            into[function.__name__] = function
        return function

    return add


# Each returns None, or another model than the one attacked.


@way()
def set_weights_of_the_model(attack):
    attack.model.set_weights(attack.values)


@way()
def set_weights_of_the_layer(attack):
    attack.model.layers[0].set_weights(attack.values)


@way()
def set_weights_of_the_parametrization(attack):
    child = attack.model.layers[0].parametrization
    child.set_weights(attack.values[-len(child.weights) :])


@way()
def set_weights_of_tensors(attack):
    attack.model.set_weights([value for _, value in attack.tensors()])


@way()
def load_weights(attack):
    path = attack.folder / "x.weights.h5"
    attack.donor().save_weights(path)
    attack.model.load_weights(path)


@way()
def load_own_variables(attack):
    child = attack.model.layers[0].parametrization
    values = attack.values[-len(child.weights) :]
    child.load_own_variables({str(i): v for i, v in enumerate(values)})


@way()
def load_model(attack):
    path = attack.folder / "x.keras"
    attack.donor().save(path)
    return keras.models.load_model(path)


@way()
def pickled(attack):
    return pickle.loads(pickle.dumps(attack.donor()))


@way()
def deepcopy(attack):
    return copy.deepcopy(attack.donor())


@way()
def set_state_tree(attack):
    attack.model.set_state_tree(attack.donor().get_state_tree())


@way()
def set_state_tree_of_arrays(attack):
    tree = attack.donor().get_state_tree(value_format="numpy_array")
    attack.model.set_state_tree(tree)


@way()
def set_state_tree_in_reverse(attack):
    tree = attack.donor().get_state_tree()
    attack.model.set_state_tree(dict(reversed(list(tree.items()))))


@way()
def assign_arrays(attack):
    for variable, value in attack.pairs:
        variable.assign(value)


@way()
def assign_tensors(attack):
    for variable, value in attack.tensors():
        variable.assign(value)


@way()
def assign_in_reverse(attack):
    for variable, value in reversed(list(attack.tensors())):
        variable.assign(value)


@way()
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


@way()
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


@way("tensorflow")
def tf_checkpoint(attack):
    import tensorflow as tf

    path = str(attack.folder / "checkpoint")
    path = tf.train.Checkpoint(model=attack.donor()).write(path)
    tf.train.Checkpoint(model=attack.model).restore(path).expect_partial()


@way("tensorflow")
def tf_checkpoint_of_variables(attack):
    import tensorflow as tf

    def items(model):
        return {f"v{i}": v for i, v in enumerate(model.weights)}

    path = str(attack.folder / "checkpoint")
    path = tf.train.Checkpoint(**items(attack.donor())).write(path)
    tf.train.Checkpoint(**items(attack.model)).read(path)


@way("tensorflow")
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


@way("tensorflow")
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


@way("jax")
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


@way("jax")
def orbax_callback_and_load_weights(attack):
    _save_by_orbax(attack)
    attack.model.load_weights(attack.folder / "orbax")


@way("jax")
def orbax_callback_and_load_model(attack):
    # Keras 3.15 puts nothing back: the variables of the model that it makes
    # have other paths, those of a stock `Dense` as well.
    _save_by_orbax(attack)
    return keras.models.load_model(attack.folder / "orbax")


@way("jax")
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


@way("torch")
def load_state_dict(attack):
    attack.model.load_state_dict(attack.donor().state_dict())


@way("torch")
def load_state_dict_by_assignment(attack):
    state = attack.donor().state_dict()
    attack.model.load_state_dict(state, assign=True)


@way("torch")
def in_place(attack):
    import torch

    with torch.no_grad():
        for variable, value in attack.tensors():
            variable.value.copy_(value)


@way("torch")
def in_place_by_data(attack):
    for variable, value in attack.tensors():
        variable.value.data.copy_(value)


@way("torch")
def data_replaced(attack):
    for variable, value in attack.tensors():
        variable.value.data = value.clone()


@way("torch")
def data_of_a_detached_tensor(attack):
    variable, value = attack.wbar
    variable.value.detach().data.copy_(ops.convert_to_tensor(value))


@way("torch")
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


@way("torch")
def vector_to_parameters(attack):
    import torch

    parameters = [variable.value for variable in attack.model.weights]
    vector = torch.cat([v.reshape(-1) for _, v in attack.tensors()])
    torch.nn.utils.vector_to_parameters(vector, parameters)


@way("torch")
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


def matrices(model, shape):
    """Operators of inference, from responses to impulses.

    Returns:
        Dictionary of float64 arrays.
    """
    size = int(np.prod(shape))
    impulses = np.eye(size, dtype="float32").reshape(size, *shape)

    def matrix(outputs):
        outputs = to_numpy(outputs).astype("float64")
        return outputs.reshape(size, -1)

    found = {"eager": matrix(model(impulses, training=False))}
    if hasattr(model, "predict"):
        found["compiled"] = matrix(
            model.predict(impulses, batch_size=size, verbose=0)
        )
    return found


def training_matrix(model, shape):
    """The operator of the forward pass of training, which renews `wbar`."""
    size = int(np.prod(shape))
    impulses = np.eye(size, dtype="float32").reshape(size, *shape)
    outputs = to_numpy(model(impulses, training=True))
    return outputs.astype("float64").reshape(size, -1)


def constant(matrix):
    if not np.all(np.isfinite(matrix)):
        return np.inf
    return harness.singular_values(matrix)[0]


def attacked(kind, container, enter, hostile, folder):
    """Runs one attack.

    Returns:
        Pair: the model that it has led to, and the `matrices` of it.
    """
    model = named_alike(kind, container)
    shape = LAYERS[kind][1]
    # Compiled steps exist before the values are written.
    impulse = np.zeros((1, *shape), "float32")
    model.predict(impulse, verbose=0)
    donors = {
        "k = 10": build(kind, container, 10.0),
        "k = 1": build(kind, container),
    }
    # Somewhere on the way that training goes, not as it was drawn.
    model(impulse, training=True)
    values = HOSTILE[hostile](model, donors)

    def donor():
        return poisoned(named_alike(kind, container), values)

    folder.mkdir(parents=True)
    found = enter(Attack(model, values, donor, folder))
    found = model if found is None else found
    return found, matrices(found, shape)


# The guard is the same for all layers: where the kernel is made in another way,
# in one kind of model each.
ROWS = [
    ("spectral", "stock"),
    pytest.param("spectral", "deel", marks=pytest.mark.slow),
    pytest.param("convolution", "stock", marks=pytest.mark.slow),
    pytest.param("almost orthogonal", "deel", marks=pytest.mark.slow),
    pytest.param("orthogonal convolution", "stock", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("enter", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("kind", "container"), ROWS)
def test_no_way_to_write_weights_breaks_the_constant(
    kind, container, enter, tmp_path
):
    past = {}
    for index, hostile in enumerate(HOSTILE):
        model, found = attacked(
            kind, container, enter, hostile, tmp_path / str(index)
        )
        found["training"] = training_matrix(model, LAYERS[kind][1])
        for mode, matrix in found.items():
            if constant(matrix) > 1 + harness.TOLERANCE:
                past[hostile, mode] = constant(matrix)
    assert not past


@pytest.mark.parametrize("enter", UNSEEN.values(), ids=UNSEEN)
@pytest.mark.parametrize(("kind", "container"), ROWS)
def test_what_cannot_be_seen_is_not_exported(kind, container, enter, tmp_path):
    broken = 0
    for index, hostile in enumerate(HOSTILE):
        model, found = attacked(
            kind, container, enter, hostile, tmp_path / str(index)
        )
        if constant(found["eager"]) > 1 + harness.TOLERANCE:
            broken += 1
            with pytest.raises(ValueError, match=model.layers[0].name):
                model.layers[0].vanilla_export()
            # As the error advises.
            model.layers[0].condense()
            shape = LAYERS[kind][1]
            for matrix in matrices(model, shape).values():
                assert constant(matrix) <= 1 + harness.TOLERANCE
            model.layers[0].vanilla_export()
    assert broken, "This way is seen: it belongs to the others."


# Ways that carry over all weights, as they are.
FAITHFUL = [
    name
    for name in (
        "set_weights_of_the_model",
        "set_weights_of_tensors",
        "load_weights",
        "load_model",
        "pickled",
        "deepcopy",
        "set_state_tree",
        "set_state_tree_of_arrays",
        "set_state_tree_in_reverse",
        "assign_arrays",
        "assign_in_reverse",
        "assign_variables",
        "assign_within_a_step",
        "tf_checkpoint",
        "tf_checkpoint_of_variables",
        "tf_checkpoint_restored_before_the_model_is_built",
        "tf_checkpoint_manager",
        "assign_what_a_compiled_function_returns",
        "orbax_callback_and_load_weights",
        "orbax_checkpointer_and_set_state_tree",
        "load_state_dict",
        "in_place",
        "in_place_by_data",
        "data_replaced",
        "tensors_of_a_state_dict_written_later",
        "vector_to_parameters",
        "averaged_model",
    )
    if name in WAYS
]


@pytest.mark.parametrize("name", FAITHFUL)
@pytest.mark.parametrize(
    "kind",
    [
        *QUICK,
        pytest.param("frobenius", marks=pytest.mark.slow),
        pytest.param("convolution", marks=pytest.mark.slow),
    ],
)
def test_what_was_trained_predicts_the_same_once_restored(kind, name, tmp_path):
    trained = named_alike(kind, "stock")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, *trained.input_shape[1:])).astype("float32")
    y = rng.standard_normal((16, *trained.output_shape[1:])).astype("float32")
    trained.optimizer.learning_rate = 0.1
    trained.fit(x, y, batch_size=4, epochs=2, verbose=0)
    values = arrays_of(trained)
    expected = trained.predict(x, verbose=0)
    model = named_alike(kind, "stock")
    model.predict(x, verbose=0)

    def donor():
        return poisoned(named_alike(kind, "stock"), values)

    found = WAYS[name](Attack(model, values, donor, tmp_path)) or model
    assert_close(found.predict(x, verbose=0), expected, rtol=0, atol=1e-6)
    for variable, value in zip(found.weights, values, strict=True):
        if variable.name == "wbar":
            kept = to_numpy(variable)
            assert_close(kept, value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FAITHFUL)
def test_a_refused_kernel_is_made_anew_of_what_came_with_it(name, tmp_path):
    model, found = attacked(
        "spectral", "stock", WAYS[name], "weights of k = 10", tmp_path / "x"
    )
    if name == "assign_within_a_step":
        # The step after it has moved the kernel.
        return
    donor = build("spectral", "stock")
    donor.layers[0].kernel.assign(to_numpy(model.layers[0].kernel))
    donor.layers[0].condense()
    expected = to_numpy(donor.layers[0].wbar)
    for matrix in found.values():
        assert_close(matrix, expected, atol=1e-5)
