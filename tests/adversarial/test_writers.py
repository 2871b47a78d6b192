"""Whoever writes to the weights: inference keeps its constant.

A search: each way of Keras, and of the backend, that writes variables, on each
of several layers, with each kind of hostile values. What is measured is the
operator of inference itself, from its response to impulses, eagerly and
compiled, and of the forward pass of training.
"""

import adversarial.backend_writers  # noqa: F401
import harness
import keras
import numpy as np
import pytest
from adversarial.writers import FAITHFUL
from adversarial.writers import UNSEEN
from adversarial.writers import WAYS
from adversarial.writers import Attack
from adversarial.writers import poisoned
from harness import JIT
from harness import assert_close
from harness import to_numpy

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
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=JIT)
    return model


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


@pytest.mark.parametrize("name", FAITHFUL)
@pytest.mark.parametrize(
    "kind",
    [
        "spectral",
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
            assert_close(variable, value, rtol=0, atol=1e-6)


# But where a step after it has moved the kernel.
@pytest.mark.parametrize("name", sorted({*FAITHFUL} - {"assign_within_a_step"}))
def test_a_refused_kernel_is_made_anew_of_what_came_with_it(name, tmp_path):
    model, found = attacked(
        "spectral", "stock", WAYS[name], "weights of k = 10", tmp_path / "x"
    )
    donor = build("spectral", "stock")
    donor.layers[0].kernel.assign(to_numpy(model.layers[0].kernel))
    donor.layers[0].condense()
    expected = to_numpy(donor.layers[0].wbar)
    for matrix in found.values():
        assert_close(matrix, expected, atol=1e-5)
