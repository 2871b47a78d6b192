"""Files and weights of the former Keras 3 branch are read.

There, a layer itself held `kernel`, `bias`, `sn`, `sigma` and `wbar`, in this
order; what Keras saved of a layer may be the first two alone.
"""

import shutil
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
from harness import assert_close
from harness import assert_equal
from harness import constrained_layers
from harness import normal
from harness import to_numpy

from deel.lip import layers
from deel.lip.model import Sequential

X = normal(4, 6, 6, 2).astype("float32")


def _model(seed=0):
    keras.utils.set_random_seed(seed)
    return Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.SpectralConv2D(3, 3, activation=layers.GroupSort(3)),
            layers.FrobeniusConv2D(2, 3, use_bias=False),
            keras.layers.Flatten(),
            layers.SpectralDense(4),
            layers.FrobeniusDense(2),
        ],
        name="former",
        k_coef_lip=2.0,
    )


def _trained():
    """A model whose free kernels are not those that are used."""
    model = _model()
    for index, layer in enumerate(constrained_layers(model)):
        kernel = 3 * normal(*layer.kernel.shape, seed=index)
        layer.kernel.assign(kernel)
    model.condense()
    for layer in constrained_layers(model):
        layer.kernel.assign(3 * layer.kernel)
    return model


def _rewrite(path, keeps_all):
    """Gives the variables of our layout the places that they had."""
    with h5py.File(path, "r+") as file:
        for group in list(file["layers"].values()):
            if "parametrization" not in group:
                continue
            inner = group["parametrization/vars"]
            if keeps_all:
                own = len(group["vars"])
                for index in range(len(inner)):
                    values = inner[str(index)][()]
                    # The coefficient of convolutions was larger.
                    is_last = index == len(inner) - 1
                    factor = 1.1 if is_last and values.ndim == 4 else 1.0
                    group["vars"][str(own + index)] = factor * values
            del group["parametrization"]


def _former_file(model, folder, suffix, keeps_all):
    path = folder / f"former{suffix}"
    if suffix == ".weights.h5":
        model.save_weights(path)
        _rewrite(path, keeps_all)
        return path
    model.save(path)
    unpacked = folder / "unpacked"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(unpacked)
    _rewrite(unpacked / "model.weights.h5", keeps_all)
    shutil.make_archive(str(path), "zip", unpacked)
    shutil.move(f"{path}.zip", path)
    return path


def _read(path):
    if path.suffix == ".keras":
        return keras.models.load_model(path)
    model = _model(seed=1)
    model.load_weights(path)
    return model


@pytest.mark.parametrize("keeps_all", [True, False])
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_former_files_are_read_with_a_warning(suffix, keeps_all, tmp_path):
    model = _trained()
    path = _former_file(model, tmp_path, suffix, keeps_all)
    with pytest.warns(UserWarning, match=r"layout of former.*convolutions"):
        loaded = _read(path)
    assert type(loaded) is Sequential
    pairs = zip(
        constrained_layers(model), constrained_layers(loaded), strict=True
    )
    for old, new in pairs:
        assert_equal(to_numpy(new.kernel), to_numpy(old.kernel))
        if old.bias is not None:
            assert_equal(to_numpy(new.bias), to_numpy(old.bias))
        # Made by the rule of today, not what the file says.
        assert_close(to_numpy(new.wbar), to_numpy(old.wbar), atol=1e-5)
    assert_close(
        loaded.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-4
    )
    # What is written then is read without a word.
    again = tmp_path / "again.keras"
    loaded.save(again)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        keras.models.load_model(again)


@pytest.mark.parametrize("keeps_all", [True, False])
def test_what_was_read_goes_on_training(keeps_all, tmp_path):
    path = _former_file(_trained(), tmp_path, ".keras", keeps_all)
    with pytest.warns(UserWarning, match="layout of former"):
        loaded = keras.models.load_model(path)
    loaded.compile("sgd", "mse")
    loaded.fit(X, np.zeros((4, 2)), verbose=0)
    for layer in constrained_layers(loaded):
        layer.wbar.require_sound(layer.name)


def test_files_of_other_layers_are_still_refused(tmp_path):
    path = tmp_path / "other.weights.h5"
    _model().save_weights(path)
    with h5py.File(path, "r+") as file:
        variables = file["layers/spectral_dense/vars"]
        variables["2"] = np.ones(3)
    with pytest.raises(ValueError, match="variables"):
        _model().load_weights(path)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: layers.SpectralDense(3), (4,)),
        (lambda: layers.FrobeniusDense(3), (4,)),
        (lambda: layers.SpectralConv2D(3, 3), (6, 6, 2)),
        (lambda: layers.FrobeniusConv2D(3, 3, use_bias=False), (6, 6, 2)),
    ],
)
def test_weights_as_former_layers_listed_them_are_taken_by_set_weights(
    layer, shape
):
    trained, new = layer(), layer()
    for each in (trained, new):
        each.build((None, *shape))
    trained.kernel.assign(3 * normal(*trained.kernel.shape))
    trained.condense()
    names = [x.name for x in new.weights]
    spectral = ["sn", "sigma"] if "sn" in names else []
    bias = ["bias"] if new.use_bias else []
    assert names == ["kernel", *bias, *spectral, "wbar"]
    weights = trained.get_weights()
    new.set_weights(weights)
    assert_close(to_numpy(new.wbar), weights[-1], atol=1e-6)
    # With a coefficient that is no bound, as that of convolutions was.
    new.set_weights([*weights[:-1], 1.1 * weights[-1]])
    assert_close(to_numpy(new.wbar), weights[-1], atol=1e-5)


@pytest.mark.parametrize(
    ("former", "name"),
    [
        ("niter_spectral", "maxiter_spectral"),
        ("niter_bjorck", "maxiter_bjorck"),
    ],
)
def test_former_names_of_arguments_are_answered_with_the_new_one(former, name):
    for make in (
        lambda **options: layers.SpectralDense(3, **options),
        lambda **options: layers.SpectralConv2D(3, 3, **options),
    ):
        message = rf"Expected `{name}`\. Received: {former}=3"
        with pytest.raises(ValueError, match=message):
            make(**{former: 3})
