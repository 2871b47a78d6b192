"""Programs of container operations: no promise is broken in silence.

After each operation the constant that is proven from the weights is at most
what the model promises, or a warning or an error has said that it is not.
"""

import copy
import json
import warnings

import keras
import numpy as np
from harness import JIT
from harness import normal
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from deel.lip import layers
from deel.lip.certification import lipschitz_bound
from deel.lip.model import LossVariableSequential
from deel.lip.model import Sequential

WITHIN = 1 + 1e-4
WIDTH = 4
X = normal(6, WIDTH)

constants = st.sampled_from([0.01, 0.5, 1.0, 3.0, 100.0])
places = st.integers(0, 9)


def _dense(activation):
    return layers.SpectralDense(WIDTH, activation=activation)


LAYERS = {
    "dense": lambda: _dense(None),
    "sorted": lambda: _dense(layers.GroupSort2()),
    "expanding": lambda: _dense(layers.GroupSort2(k_coef_lip=5.0)),
    "selu": lambda: _dense("selu"),
    "contracting": lambda: _dense("sigmoid"),
    "joint": lambda: layers.FrobeniusDense(WIDTH, disjoint_neurons=False),
    "by score": lambda: layers.FrobeniusDense(WIDTH),
    "sort": layers.GroupSort2,
    "flat": keras.layers.Flatten,
    "relu": keras.layers.ReLU,
    "symmetric": lambda: layers.SLLDense(WIDTH),
    "prescaled": lambda: layers.PrescaledResidual(_dense("selu")),
    "partial": lambda: layers.PartialResidual(layers.SpectralDense(2)),
    "around a model": lambda: layers.PrescaledResidual(_model(["selu"], 0.5)),
    "model": lambda: _model(["dense", "selu"], 2.0),
    "model of nothing": lambda: _model(["flat"], 0.5),
    "stock model": lambda: keras.Sequential(
        [keras.Input((WIDTH,)), _dense(None)]
    ),
    "stock": lambda: keras.layers.Dense(WIDTH, kernel_initializer="ones"),
}
kinds = st.lists(st.sampled_from(sorted(LAYERS)), max_size=4)


def _model(kinds, k_coef_lip, container=Sequential):
    return container(
        [keras.Input((WIDTH,)), *(LAYERS[kind]() for kind in kinds)],
        k_coef_lip=k_coef_lip,
    )


def _inner(model, place):
    """One of the layers at any depth that have a constant, or None."""
    found = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, layers.LipschitzLayer)
    ]
    return found[place % len(found)] if found else None


def _reloaded(model):
    config = json.loads(json.dumps(model.get_config()))
    loaded = type(model).from_config(config)
    loaded.set_weights(model.get_weights())
    return loaded


def _trained(model):
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=JIT)
    model.fit(X, X, batch_size=6, verbose=0)


# Functions of the models so far and of what was drawn; they may add a model.
OPERATIONS = {
    "add": lambda models, at, kind, k: models[at].add(LAYERS[kind]()),
    "pop": lambda models, at, kind, k: models[at].pop(),
    "set": lambda models, at, kind, k: models[at].set_klip_factor(k),
    "assign": lambda models, at, kind, k: setattr(models[at], "k_coef_lip", k),
    "set a layer": lambda models, at, kind, k: _inner(
        models[at], len(kind)
    ).set_klip_factor(k),
    "assign to a layer": lambda models, at, kind, k: setattr(
        _inner(models[at], len(kind)), "k_coef_lip", k
    ),
    "share layers": lambda models, at, kind, k: models.append(
        Sequential(
            [keras.Input((WIDTH,)), *models[at].layers[:2]], k_coef_lip=k
        )
    ),
    "layer twice": lambda models, at, kind, k: models[at].add(
        models[at].layers[0]
    ),
    "layer of another": lambda models, at, kind, k: models[at].add(
        models[0].layers[-1]
    ),
    "nest": lambda models, at, kind, k: models.append(
        Sequential(
            [keras.Input((WIDTH,)), models[at], LAYERS[kind]()], k_coef_lip=k
        )
    ),
    "learned margins": lambda models, at, kind, k: models.append(
        _model([kind], k, LossVariableSequential)
    ),
    "build": lambda models, at, kind, k: models[at].build((None, WIDTH)),
    "copy": lambda models, at, kind, k: models.append(copy.copy(models[at])),
    "deep copy": lambda models, at, kind, k: models.append(
        copy.deepcopy(models[at])
    ),
    "config": lambda models, at, kind, k: models.append(_reloaded(models[at])),
    "fit": lambda models, at, kind, k: _trained(models[at]),
    "condense": lambda models, at, kind, k: models[at].condense(),
}


def _proven(model):
    """The proven constant; by output where that is what is promised."""
    last = model
    while isinstance(last, Sequential) and last.layers:
        last = last.layers[-1]
    by_score = getattr(last, "disjoint_neurons", False)
    if by_score and last is not model.layers[-1]:
        # The bound by output is for the last layer of the model itself.
        return lipschitz_bound(model) / np.sqrt(last.units)
    return lipschitz_bound(model, by_output=by_score)


def _is_kept(model):
    if not model.built or not model.layers:
        return True
    model(X)
    return _proven(model) <= model.k_coef_lip * WITHIN


programs = st.lists(
    st.tuples(
        st.sampled_from(sorted(OPERATIONS)),
        places,
        st.sampled_from(sorted(LAYERS)),
        constants,
    ),
    min_size=1,
    max_size=6,
)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(kinds=kinds, k_coef_lip=constants, program=programs)
def test_no_program_breaks_a_promise_in_silence(kinds, k_coef_lip, program):
    # Models of which it was said that they do not keep their promise, by name.
    spoken_of = set()

    def run(function, *arguments):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                return function(*arguments)
            except (ValueError, IndexError, AttributeError, TypeError):
                return None
            finally:
                spoken_of.update(
                    str(warning.message)
                    for warning in caught
                    if issubclass(warning.category, UserWarning)
                )

    models = [run(_model, kinds, k_coef_lip)]
    for name, place, kind, constant in program:
        place %= len(models)
        run(OPERATIONS[name], models, place, kind, constant)
        for model in models:
            kept = run(_is_kept, model)
            names = {layer.name for layer in model._flatten_layers()}
            # Of the model itself, or of a layer without a known constant.
            said = [f"The constants of the layers of '{model.name}' exceed"]
            said += [f"ayer '{name}'" for name in names]
            warned = any(
                text in message for message in spoken_of for text in said
            )
            assert kept or warned, (name, kind, model.get_config())
