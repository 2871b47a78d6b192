"""Former names: each still works, warns, and does not show."""

import importlib

import keras
import numpy as np
import pytest
from golden_scores import BINARY
from golden_scores import CLASSES
from harness import assert_close
from harness import to_numpy

import deel.lip
from deel.lip import _deprecated
from deel.lip import constraints
from deel.lip import initializers
from deel.lip import losses
from deel.lip import normalizers
from deel.lip import utils
from deel.lip.layers import unconstrained

ALL = [
    (module, name)
    for module, names in _deprecated._NAMES.items()
    for name in names
]


def _former(module, name):
    with pytest.warns(DeprecationWarning, match=f"{name}` is deprecated"):
        return getattr(module, name)


@pytest.mark.parametrize(("module", "name"), ALL, ids=[name for _, name in ALL])
def test_former_names_warn_where_they_are_used_and_do_not_show(module, name):
    with pytest.warns(DeprecationWarning, match=r"Use .+ instead") as record:
        value = getattr(module, name)
    assert value is not None
    assert [warning.filename for warning in record] == [__file__]
    assert name not in dir(module)
    assert name not in getattr(module, "__all__", [])


def test_statements_that_import_a_former_name_warn():
    with pytest.warns(DeprecationWarning, match="Use HKR instead") as record:
        from deel.lip.losses import HKR_loss
    assert callable(HKR_loss)
    assert __file__ in [warning.filename for warning in record]


@pytest.mark.parametrize("module", list(_deprecated._NAMES))
def test_unknown_names_are_still_errors(module):
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        _ = module.unknown


@pytest.mark.parametrize(
    ("name", "arguments", "data", "expected"),
    [
        ("KR_loss", (), BINARY, 1.0),
        ("neg_KR_loss", (), BINARY, -1.0),
        # Full margins: those of golden values with twice the margin.
        ("hinge_margin_loss", (0.5,), BINARY, 1 / 3),
        ("hinge_margin_loss", (), BINARY, 2 / 3),
        ("HKR_loss", (10.0, 0.5), BINARY, 7 / 3),
        ("HKR_loss", (float("inf"), 1), BINARY, 2 / 3),
        ("HKR_loss", (0.0,), BINARY, -1.0),
        ("KR_multiclass_loss", (), CLASSES, 0.4227778),
        ("Hinge_multiclass_loss", (0.5,), CLASSES, 0.7277778),
        ("Hinge_multiclass_loss", (), CLASSES, 1.1555556),
        ("HKR_multiclass_loss", (5.0,), CLASSES, 5.355),
        ("HKR_multiclass_loss", (), CLASSES, -0.4227778),
        ("HKR_multiclass_loss", (float("inf"),), CLASSES, 1.1555556),
        ("MultiMarginLoss", (), CLASSES, 0.55),
    ],
)
def test_former_losses_ask_for_the_full_margin(name, arguments, data, expected):
    loss = _former(losses, name)(*arguments)
    assert float(loss(*data)) == pytest.approx(expected, rel=1e-6)


def test_former_loss_of_two_tensors_gives_its_value():
    negative = _former(losses, "negative_KR")
    assert float(negative(*BINARY)) == pytest.approx(-1.0, rel=1e-6)


def test_models_train_with_former_losses():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    loss = _former(losses, "HKR_loss")(1.0)
    model.compile("sgd", loss, metrics=[_former(losses, "KR_loss")()])
    model.fit(np.ones((6, 2)), BINARY[0], verbose=0)


def test_former_constraints_and_initializers_are_the_new_ones():
    w = np.diag([2.0, 1.0]).astype("float32")
    normalizer = _former(constraints, "SpectralNormalizer")()
    assert normalizer.eps_bjorck is None
    found = to_numpy(normalizer(w))
    assert_close(found, w / 2, atol=1e-2)
    found = _former(constraints, "WeightClip")
    assert found is constraints.WeightClipConstraint
    found = _former(initializers, "BjorckInitializer")
    assert found is initializers.SpectralInitializer


def test_former_constants_and_functions():
    assert _former(normalizers, "DEFAULT_NITER_BJORCK") == 15
    assert _former(normalizers, "DEFAULT_NITER_SPECTRAL") == 3
    assert _former(normalizers, "DEFAULT_NITER_SPECTRAL_INIT") == 10
    assert _former(normalizers, "set_swap_memory")(True) is None
    assert _former(utils, "load_model") is keras.models.load_model
    with pytest.raises(RuntimeError, match="YAML"):
        _former(utils, "model_from_yaml")("")


def test_former_module_of_unconstrained_layers():
    former = importlib.import_module("deel.lip.unconstrained_layers")
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        _ = former.unknown
    assert "PadConv2D" not in dir(former)
    with pytest.warns(DeprecationWarning, match=r"Use .+unconstrained"):
        assert former.PadConv2D is unconstrained.PadConv2D


def test_public_modules_are_attributes_of_the_package():
    assert deel.lip.regularizers.Lorth2D().dim == 2
    assert deel.lip.utils is utils
    assert "_deprecated" not in deel.lip.__all__
