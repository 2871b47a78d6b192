"""Residual blocks around a branch."""

import harness
import keras
import numpy as np
import pytest
from harness import JIT
from harness import assert_all_equal
from harness import assert_close
from harness import assert_equal
from harness import built
from harness import normal
from harness import reloaded
from harness import to_numpy
from keras import ops
from small_networks import stack

from deel.lip._constrained import ConstrainedKernel
from deel.lip.activations import GroupSort2
from deel.lip.activations import MaxMin
from deel.lip.certification import lipschitz_bound
from deel.lip.certification._rounding import FLOAT32
from deel.lip.certification._rounding import Computed
from deel.lip.certification._walk import Walk
from deel.lip.certification._walk import propagate
from deel.lip.certification._walk import start
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import PartialResidual
from deel.lip.layers import PrescaledResidual
from deel.lip.layers import SpectralConv2D
from deel.lip.layers import SpectralDense
from deel.lip.model import Model
from deel.lip.model import Sequential

BLOCKS = (PrescaledResidual, PartialResidual)


every_block = pytest.mark.parametrize("block", BLOCKS)


def _width(block):
    """Channels of a block whose branch has four."""
    return 8 if block is PartialResidual else 4


X = [1, 2, 3, 4]


def _exchange(factor=1.0):
    """A stock layer that exchanges two channels, of norm `factor`."""
    layer = built(keras.layers.Dense(2, use_bias=False), 2)
    layer.kernel.assign(factor * np.array([[0.0, 1.0], [1.0, 0.0]]))
    return layer


def _branch(k_coef_lip=1.0):
    return stack(
        SpectralDense(6, activation=GroupSort2()),
        SpectralDense(4),
        container=Sequential,
        k_coef_lip=k_coef_lip,
        name="branch",
    )


def _deep(block):
    return stack(
        SpectralDense(_width(block), activation=GroupSort2()),
        block(SpectralDense(4, activation=GroupSort2()), name="first"),
        block(_branch(0.5), name="second"),
        SpectralDense(3),
        shape=(8,),
        container=Sequential,
        k_coef_lip=2.0,
    )


def _growth(_, outputs):
    """A loss that nothing but the constraint keeps from falling."""
    return -ops.mean(ops.square(outputs))


def _inner(model):
    """All layers with a constrained kernel, inside of blocks too."""
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, ConstrainedKernel)
    ]


@pytest.mark.parametrize(
    ("layer", "x", "expected"),
    [
        # ([1, 2] + [2, 1]) / 2
        (PrescaledResidual(_exchange(), k_branch=1.0), [1, 2], [1.5, 1.5]),
        # 2 ([1, 2] + 3 [2, 1]) / 4
        (
            PrescaledResidual(_exchange(3.0), k_coef_lip=2.0, k_branch=3.0),
            [1, 2],
            [3.5, 2.5],
        ),
        (PartialResidual(_exchange(), k_branch=1.0), X, [1, 2, 4, 3]),
        # A branch that shrinks is no reason to divide.
        (PartialResidual(_exchange(0.5), k_branch=0.5), X, [1, 2, 2, 1.5]),
        # 3 [1, 2, 2 * 4, 2 * 3] / 2
        (
            PartialResidual(_exchange(2.0), k_coef_lip=3.0, k_branch=2.0),
            X,
            [1.5, 3, 12, 9],
        ),
    ],
)
def test_block_golden_values(layer, x, expected):
    assert_close(layer(np.array([x], "float32")), [expected], rtol=1e-6)
    # The constant is reached, not just kept.
    norm = harness.operator_norm(layer, (len(x),))
    assert norm == pytest.approx(layer.k_coef_lip, abs=1e-6)
    assert lipschitz_bound(layer) == pytest.approx(norm, rel=1e-6)


def test_constant_of_the_branch_is_followed():
    branch = SpectralDense(4, k_coef_lip=2.0)
    sum_of_both, halves = PrescaledResidual(branch), PartialResidual(branch)
    assert (sum_of_both.coef_lip, halves.coef_lip) == (1 / 3, 1 / 2)
    branch.set_klip_factor(0.25)
    assert (sum_of_both.coef_lip, halves.coef_lip) == (1 / 1.25, 1.0)
    halves.build((None, 8))
    halves.set_klip_factor(3.0)
    assert branch.k_coef_lip == 0.25
    assert harness.operator_norm(halves, (8,)) == pytest.approx(3.0, abs=1e-4)


@every_block
def test_bound_of_a_block_is_proven_from_the_weights_inside(block):
    def of_branch(b):
        return (1 + b) / 2 if block is PrescaledResidual else max(1.0, b)

    layer = block(SpectralDense(4, name="inner"), name="block")
    layer.build((None, _width(block)))
    bound, table = lipschitz_bound(layer, return_table=True)
    assert bound == pytest.approx(1.0, abs=1e-5)
    assert [row.name for row in table] == ["block/inner", "block"]
    # Weights are measured, and no promise.
    layer.layer.wbar.assign_proven(
        0.5 * ops.convert_to_tensor(layer.layer.wbar)
    )
    assert lipschitz_bound(layer) == pytest.approx(of_branch(0.5), rel=1e-4)
    norm = harness.operator_norm(layer, (_width(block),))
    assert norm <= lipschitz_bound(layer) * (1 + 1e-6)
    # Constants that the user knows count inside, too, and for the block.
    for constants, expected in [
        ({"inner": 2.0}, of_branch(2.0)),
        ({SpectralDense: 5.0}, of_branch(5.0)),
        ({"block": 7.0}, 7.0),
        ({block: 9.0}, 9.0),
    ]:
        found = lipschitz_bound(layer, constants=constants)
        assert found == pytest.approx(expected, rel=1e-9)

    claimed = built(block(_exchange(3.0), k_branch=1.0), _width(block) // 2)
    assert lipschitz_bound(claimed) == pytest.approx(of_branch(3.0))
    unknown = built(block(keras.layers.LayerNormalization(), k_branch=1.0), 4)
    with pytest.raises(ValueError, match="not bounded"):
        lipschitz_bound(unknown)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="XLA's text")
def test_a_chain_of_blocks_is_not_computed_anew_for_each_of_them():
    import jax

    def instructions(blocks):
        inputs = x = keras.Input((8, 8, 4))
        for _ in range(blocks):
            branch = SpectralConv2D(4, 3, activation=GroupSort2())
            x = PrescaledResidual(branch)(x)
        model = keras.Model(inputs, x)

        def forward(x):
            return model(x, training=False)

        x = np.zeros((2, 8, 8, 4), "float32")
        return jax.jit(forward).lower(x).compile().as_text().count(" = ")

    few, some, many = map(instructions, (4, 8, 12))
    # Each block adds as many as the others.
    assert many - some <= 1.1 * (some - few)


def _computed(model):
    """What is known of the float32 arithmetic of a model or layer."""
    walk, inputs = Walk(), start(model)
    (end,) = walk.run(model, inputs)
    return propagate(walk.calls, {inputs[0]: Computed(1.0)}, FLOAT32)[end]


@every_block
def test_rounding_inside_of_a_block_counts(block):
    layer, branch = block(_branch()), _branch()
    layer.build((None, _width(block)))
    for each in (*layer.layer.layers, *branch.layers):
        each.bias.assign(np.ones(each.bias.shape))
    inside, around = _computed(branch), _computed(layer)
    factor = layer.coef_lip
    # What the factor, before the sum or after it, and the sum add is of the
    # size of the output.
    unit = FLOAT32.unit
    own = 6 * unit * factor * layer.joined_constant(1.0)
    assert factor * inside.relative <= around.relative
    assert around.relative <= factor * inside.relative + own
    own = 6 * unit * factor * inside.zero
    assert factor * inside.absolute <= around.absolute
    assert around.absolute <= factor * inside.absolute + own
    # The errors of a stack add up, and are not multiplied.
    model = Sequential([keras.Input((8,))])
    for _ in range(10):
        model.add(PartialResidual(_branch()))
    many = _computed(model)
    alone = sum(_computed(layer).relative for layer in model.layers)
    assert_close(many.relative, alone, rtol=1e-4)


@every_block
def test_blocks_are_trained_within_their_bound_saved_and_exported(
    block, tmp_path
):
    model = _deep(block)
    # Each of the four layers has its share; branches keep their own constants.
    assert model.get_layer("first").k_coef_lip == pytest.approx(2**0.25)
    assert model.get_layer("second").layer.k_coef_lip == 0.5
    assert len(_inner(model)) == 5
    x = normal(32, 8)
    before = [to_numpy(layer.kernel) for layer in _inner(model)]
    model.compile(keras.optimizers.Adam(0.1), _growth, jit_compile=JIT)
    model.fit(x, x[:, :3], epochs=3, batch_size=8, verbose=0)
    for layer, kernel in zip(_inner(model), before, strict=True):
        harness.assert_bounded(layer)
        assert np.any(to_numpy(layer.kernel) != kernel)
    assert lipschitz_bound(model) <= 2 * (1 + 1e-4)

    expected = model.predict(x, verbose=0)
    loaded = reloaded(model, tmp_path, compile=False)
    assert_all_equal(model.get_weights(), loaded.get_weights())
    # Not compiled, so JAX rounds it in another way.
    assert_close(loaded.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-5)
    assert loaded.get_layer("second").layer.k_coef_lip == 0.5
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = _deep(block)
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert_close(fresh.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-5)

    exported = model.vanilla_export(verify=True)
    assert not _inner(exported)
    assert_close(exported.predict(x, verbose=0), expected, atol=1e-5)
    # One around a layer of Keras, and one around a model.
    hidden = np.ones((2, _width(block)), "float32")
    for name in ("first", "second"):
        once = exported.get_layer(name)
        assert_equal(once.vanilla_export()(hidden), once(hidden))
    loaded = reloaded(exported, tmp_path)
    assert_close(loaded.predict(x, verbose=0), expected, atol=1e-5)


@every_block
def test_condensing_a_model_reaches_into_blocks_or_changes_nothing(block):
    model = _deep(block)
    for layer in _inner(model):
        layer.kernel.assign(normal(*layer.kernel.shape))
    # The last to be condensed, but for one.
    broken = model.get_layer("second").layer.layers[1].kernel
    sound = to_numpy(broken)
    broken.assign(np.full(broken.shape, np.nan))
    before = model.get_weights()
    for one in (model, model.get_layer("second")):
        with pytest.raises(ValueError, match="must be finite"):
            one.condense()
    assert_all_equal(before, model.get_weights())
    broken.assign(sound)
    model.condense()
    for layer in _inner(model):
        assert_equal(layer.kernel, layer.wbar)


def test_condensing_reaches_into_wrappers_of_keras():
    inner = SpectralDense(4)
    inputs = keras.Input((3, 4))
    outputs = keras.layers.TimeDistributed(inner)(inputs)
    model = Model(inputs=inputs, outputs=outputs)
    inner.kernel.assign(normal(4, 4))
    model.condense()
    assert_equal(inner.kernel, inner.wbar)


@every_block
def test_averaged_weights_are_used_inside_of_blocks_too(block):
    model = _deep(block)
    optimizer = keras.optimizers.Adam(0.1, use_ema=True)
    model.compile(optimizer, "mse", jit_compile=JIT)
    x = normal(32, 8)
    model.fit(x, x[:, :3], batch_size=8, verbose=0)
    for layer in _inner(model):
        found = layer.parametrization.constrain(
            ops.convert_to_tensor(layer.kernel)
        )
        assert_close(layer.wbar, layer._get_coef() * to_numpy(found), atol=1e-5)


@every_block
def test_blocks_are_layers_of_functional_models_and_inside_of_blocks(block):
    inputs = keras.Input((4, 4, 8))
    x = SpectralConv2D(8, 3, padding_mode="circular")(inputs)
    inner = Sequential(
        [block(SpectralConv2D(4 if block is PartialResidual else 8, 3))]
    )
    outputs = PrescaledResidual(inner, name="outer")(x)
    model = Model(inputs=inputs, outputs=outputs)
    x = normal(3, 4, 4, 8)
    exported = model.vanilla_export()
    assert not _inner(exported)
    assert_close(
        exported.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5
    )
    assert lipschitz_bound(model) <= 1 + 1e-4
    # Within the weights of the whole, and their gradients.
    trained = model(x, training=True)
    assert_close(trained, model.predict(x, verbose=0), atol=1e-4)


def test_training_is_handed_to_the_branch():
    class Told(keras.layers.Layer):
        def call(self, inputs, training=None):
            told.append(training)
            return inputs

    told = []
    for block in BLOCKS:
        layer = block(Told(), k_branch=1.0)
        layer(np.ones((1, 4)), training=True)
        layer(np.ones((1, 4)), training=False)
    assert told[-1] is False
    assert set(told) >= {True, False}


@every_block
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "dense"}, "must be a Keras layer.*Received: layer=dense"),
        ({"layer": None}, "must be a Keras layer.*Received: layer=None"),
        ({"layer": keras.layers.Dense(4)}, "k_branch=number.*k_branch=None"),
        (
            {"layer": SpectralDense(4), "k_branch": 2.0},
            r"`k_branch=None`.*Received: k_branch=2\.0",
        ),
        ({"layer": keras.layers.ReLU(), "k_branch": 0.0}, "k_branch=0.0"),
        ({"layer": SpectralDense(4), "k_coef_lip": -1.0}, r"k_coef_lip=-1\.0"),
        ({"layer": FrobeniusDense(4)}, "disjoint_neurons=True"),
        (
            {"layer": Sequential([SpectralDense(4), FrobeniusDense(4)])},
            "disjoint_neurons=True",
        ),
    ],
)
def test_branches_of_unknown_constant_are_refused(block, arguments, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        block(**arguments)


@every_block
def test_outputs_by_themselves_are_refused_when_added_later_too(block):
    branch = Sequential([SpectralDense(4)])
    layer = block(branch)
    branch.add(FrobeniusDense(4))
    with pytest.raises(ValueError, match="disjoint_neurons=True"):
        layer.build((None, _width(block)))


@every_block
@pytest.mark.parametrize("branch", [SpectralDense(3), MaxMin()])
def test_branch_that_changes_the_shape_is_refused(block, branch):
    copy = type(branch).from_config(branch.get_config())
    with pytest.raises(
        ValueError, match=r"(?s)keep the shape.*Received: layer"
    ):
        block(copy).build((None, _width(block)))


def test_odd_number_of_channels_is_refused():
    with pytest.raises(ValueError, match=r"even\. Received: channels=5"):
        PartialResidual(SpectralDense(2)).build((None, 5))


@every_block
def test_block_that_is_not_built_is_neither_condensed_nor_exported(block):
    for method in ("condense", "vanilla_export"):
        with pytest.raises(ValueError, match=rf"{method}.*built"):
            getattr(block(SpectralDense(4)), method)()


@every_block
def test_activation_of_the_branch_counts_with_its_constant(block):
    sort = GroupSort2(k_coef_lip=5.0)
    layer = block(SpectralDense(4, activation=sort, use_bias=False))
    layer.build((None, _width(block)))
    assert lipschitz_bound(layer) <= 1 + 1e-5
    x = normal(5, _width(block))
    assert_close(layer.vanilla_export()(x), layer(x, training=False), atol=1e-5)


def test_block_around_a_model_that_exceeds_its_promise_keeps_its_own():
    branch = Sequential([keras.Input((2,)), SpectralDense(2)])
    layer = built(PrescaledResidual(branch), 2)
    with pytest.warns(UserWarning, match="exceed what the model promises"):
        branch.layers[0].set_klip_factor(7.0)
    assert lipschitz_bound(layer) <= 1 + 1e-5
    with pytest.warns(UserWarning, match="activation of layer"):
        PrescaledResidual(SpectralDense(2, activation=lambda x: 2 * x))
