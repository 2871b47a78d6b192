"""One network with every layer of the library in it."""

import harness
import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from harness import reloaded
from keras import ops

from deel.lip import layers
from deel.lip import losses
from deel.lip.layers import unconstrained
from deel.lip.model import LossVariableModel

pytestmark = [
    pytest.mark.slow,
    # Layers with a free factor are among them.
    pytest.mark.filterwarnings("ignore:.*not a 1-Lipschitz layer"),
]

# Makes up for what the bound of a convolution takes away, so that the input
# can be told from the output of so many layers.
GAIN = {"k_coef_lip": 3.0}


def _image_branch(x, groups):
    x = layers.SpectralConv2D(8, 3, activation=layers.GroupSort2(), **GAIN)(x)
    x = layers.SpectralGroupedConv2D(
        8, 3, groups=groups, dilation_rate=2, **GAIN
    )(x)
    x = layers.GroupSort(4)(x)
    x = layers.FrobeniusConv2D(8, 3, padding_mode="circular", **GAIN)(x)
    x = layers.SpectralDepthwiseConv2D(3, activation=layers.FullSort(), **GAIN)(
        x
    )
    x = layers.BatchCentering()(x)
    y = layers.SpectralConv2D(8, 3, padding_mode="reflect", **GAIN)(x)
    x = layers.LipResidual()([x, layers.Householder()(y)])
    x = layers.PartialResidual(layers.OrthogonalConv2D(4, 3))(x)
    x = layers.LayerCentering()(x)
    x = layers.BatchLipNorm()(x)
    x = layers.ScaleBiasLayer(0.5)(x)
    x = layers.PReLUlip()(x)
    x = layers.LipschitzPReLU()(x)
    x = layers.AOLConv2D(8, 3, activation=layers.Abs(0.5), **GAIN)(x)
    x = layers.SpatialShift2D()(x)
    x = layers.SLLConv2D(8, 3)(x)
    x = unconstrained.ResidualConv2D(4, 3, kernel_initializer="glorot_normal")(
        x
    )
    x = layers.ScaledL2NormPooling2D()(x)
    x = layers.SpectralConv2DTranspose(4, 2, strides=2)(x)
    x = layers.OrthogonalConv2D(4, 3, groups=groups)(x)
    x = layers.OrthogonalConv2D(16, 2, strides=2)(x)
    x = layers.OrthogonalConv2DTranspose(4, 3, strides=2)(x)
    x = layers.MaxMin()(x)
    x = layers.InvertibleDownSampling(2)(x)
    x = layers.InvertibleUpSampling(2)(x)
    x = layers.SandwichConv2D(4, 3)(x)
    x = unconstrained.ConvPair2D(4, 1)(x)
    x = unconstrained.PadConv2D(4, 3, padding="symmetric")(x)
    return layers.ScaledAveragePooling2D()(x)


def _solid_branch(x):
    x = layers.SpectralConv3D(2, 3, **GAIN)(x)
    x = layers.OrthogonalConv3D(2, 2)(x)
    x = unconstrained.PadConv3D(2, 3, padding="circular")(x)
    return [
        layers.ScaledGlobalAveragePooling3D()(x),
        layers.ScaledGlobalL2NormPooling3D()(x),
        keras.layers.Flatten()(layers.ScaledAveragePooling3D()(x)),
        keras.layers.Flatten()(layers.ScaledL2NormPooling3D()(x)),
    ]


def network(groups=2, solid=True):
    """The network; some formats have no grouped or no solid layers."""
    inputs = keras.Input((8, 8, 3))
    x = _image_branch(inputs, groups)
    flat = keras.layers.Flatten()
    heads = [
        layers.ScaledGlobalAveragePooling2D()(x),
        layers.ScaledGlobalL2NormPooling2D()(x),
        flat(layers.ScaledAdaptiveAveragePooling2D((1, 1))(x)),
        flat(layers.ScaledAdaptiveL2NormPooling2D((1, 1))(x)),
    ]
    line = keras.layers.Reshape((16, 4))(x)
    line = layers.SpectralConv1D(4, 3, **GAIN)(line)
    line = layers.OrthogonalConv1D(4, 3, padding="circular")(line)
    line = unconstrained.PadConv1D(4, 3, padding="replicate")(line)
    heads += [
        layers.ScaledGlobalAveragePooling1D()(line),
        layers.ScaledGlobalL2NormPooling1D()(line),
        keras.layers.Flatten()(layers.ScaledAveragePooling1D(4)(line)),
        keras.layers.Flatten()(layers.ScaledL2NormPooling1D(4)(line)),
        layers.OrthogonalRNN(4, unroll=True)(line),
    ]
    if solid:
        heads += _solid_branch(keras.layers.Reshape((4, 4, 4, 1))(x))
    x = keras.layers.Concatenate()(heads)
    x = layers.SpectralDense(16, activation=layers.Householder())(x)
    x = layers.OrthogonalDense(16)(x)
    x = layers.PrescaledResidual(layers.OrthogonalDense(16), **GAIN)(x)
    x = layers.Monotone(layers.OrthogonalDense(16), [1] + [0] * 15, **GAIN)(x)
    x = layers.AOLDense(16)(x)
    x = layers.SLLDense(16)(x)
    x = unconstrained.ResidualDense(8)(x)
    x = layers.SandwichDense(16)(x)
    x = unconstrained.DensePair(16)(x)
    outputs = layers.FrobeniusDense(3, use_bias=False)(x)
    return LossVariableModel(inputs=inputs, outputs=outputs)


def _parts(model):
    """The classes of the layers of a model, activations inside included."""
    for layer in model.layers:
        yield type(layer)
        yield type(getattr(layer, "activation", None))


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 96)
    x = rng.standard_normal((96, 8, 8, 3)).astype("float32")
    # A ramp, since centering takes away what is the same everywhere.
    slopes = (labels - 1.0)[:, None, None, None]
    x += 2.0 * slopes * np.linspace(-1, 1, 8)[:, None].astype("float32")
    model = network()
    model.compile(
        keras.optimizers.Adam(3e-3),
        losses.MulticlassHKRauto(10.0, 0.1, alpha_margin=0.1),
        metrics=["accuracy", losses.MulticlassKR()],
    )
    y = np.eye(3, dtype="float32")[labels]
    history = model.fit(
        x, y, epochs=9, batch_size=16, validation_split=0.25, verbose=0
    ).history
    return model, x, y, history


def test_no_layer_is_missing():
    protocols = {"Condensable", "ConstrainedKernel"}
    protocols |= {"LipschitzLayer", "SharedLipFactory"}
    modules = (layers, unconstrained)
    wanted = {
        value
        for module in modules
        for name in dir(module)
        if isinstance(value := getattr(module, name), type)
        and name not in protocols
    }
    assert wanted - set(_parts(network())) == set()


def test_it_learns(trained):
    _, _, _, history = trained
    assert np.all(np.isfinite(history["loss"]))
    assert history["loss"][-1] < history["loss"][0]
    assert history["val_loss"][-1] < history["val_loss"][0]
    assert history["accuracy"][-1] > 0.6


def test_outputs_depend_on_inputs(trained):
    # Else nothing that compares predictions says anything.
    model, x, _, _ = trained
    assert np.min(np.std(model.predict(x, verbose=0), axis=0)) > 0.05


def test_it_is_saved_and_loaded_bit_for_bit(trained, tmp_path):
    model, x, y, _ = trained
    loaded = reloaded(model, tmp_path)
    assert_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    assert loaded.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)
    loaded.fit(x, y, verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = network()
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert_equal(fresh.predict(x, verbose=0), model.predict(x, verbose=0))


def test_it_is_cloned(trained):
    model, x, _, _ = trained
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_equal(clone.predict(x, verbose=0), model.predict(x, verbose=0))


def test_it_is_exported_and_condensed(trained):
    model, x, _, _ = trained
    before = model.predict(x, verbose=0)
    exported = model.vanilla_export()
    # A few roundings of the largest score.
    rounding = 4 * np.finfo("float32").eps * np.max(np.abs(before))
    assert_close(exported.predict(x, verbose=0), before, atol=rounding)
    constrained = [
        layer
        for layer in exported.layers
        if isinstance(layer, layers.Condensable)
    ]
    # Only those stay that no stock layer can stand for.
    assert all(
        type(layer).__name__.startswith(
            ("PadConv", "Partial", "Prescaled", "Monotone")
        )
        for layer in constrained
    )
    model.condense()
    condensed = model.predict(x, verbose=0)
    # On JAX, inference after `fit` uses the kernels before the last update, and
    # condensing takes those after it.
    if keras.backend.backend() != "jax":
        # Training leaves singular values within `eps_bjorck` of 1, and
        # condensing goes on from there, in several layers after each other.
        layers_behind = 3
        assert_close(
            condensed,
            before,
            atol=layers_behind * 1e-3 * np.max(np.abs(before)),
        )
    model.condense()
    assert_close(
        model.predict(x, verbose=0),
        condensed,
        atol=1e-5 * np.max(np.abs(condensed)),
    )


def test_exported_network_is_differentiable_and_callable(trained):
    model, x, _, _ = trained
    exported = model.vanilla_export()
    assert_close(exported(x[:4]), exported.predict(x[:4], verbose=0), atol=1e-5)
    (slope,) = harness.gradient(lambda x: ops.sum(exported(x)), x[:4])
    assert np.all(np.isfinite(slope))
    assert np.all(np.any(slope != 0, axis=(1, 2, 3)))
