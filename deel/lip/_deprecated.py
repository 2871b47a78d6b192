"""Names of former releases, each with a warning that names the new one.

All of them live here. `install` gives the public modules a `__getattr__`,
which Python asks for names that a module does not have: the modules know
nothing of the past, and `dir()` and `__all__` do not show it. To drop a name,
delete its line; to drop all, delete this file.
"""

import functools
import math
import warnings

import keras
from keras import ops

from deel.lip import constraints
from deel.lip import initializers
from deel.lip import losses
from deel.lip import normalizers
from deel.lip import utils
from deel.lip.losses._kantorovich import _kr


def _mean_of(value):
    """Factory of a function `(y_true, y_pred) -> scalar`."""
    return lambda y_true, y_pred: ops.mean(value(y_true, y_pred))


def _full_margin(hinge, min_margin):
    # The former losses asked for the margin on each side of zero.
    return lambda y, p: hinge(y, p, 2.0 * min_margin)


def _with_kr(hinge, alpha):
    if math.isinf(alpha):
        return hinge
    return lambda y, p: alpha * hinge(y, p) - _kr(y, p)


def _KR_loss():
    return _mean_of(_kr)


def _neg_KR_loss():
    return _mean_of(lambda y, p: -_kr(y, p))


def _negative_KR(y_true, y_pred):
    return ops.mean(-_kr(y_true, y_pred))


def _hinge_margin_loss(min_margin=1):
    return _mean_of(_full_margin(losses.hinge_margin, min_margin))


def _HKR_loss(alpha, min_margin=1):
    hinge = _full_margin(losses.hinge_margin, min_margin)
    return _mean_of(_with_kr(hinge, alpha))


def _Hinge_multiclass_loss(min_margin=1):
    return _mean_of(_full_margin(losses.multiclass_hinge, min_margin))


def _HKR_multiclass_loss(alpha=0.0, min_margin=1):
    hinge = _full_margin(losses.multiclass_hinge, min_margin)
    return _mean_of(_with_kr(hinge, alpha))


def _MultiMarginLoss(min_margin=1):
    # The margin of this loss was never halved.
    return _mean_of(losses.MultiMargin(min_margin).call)


def _set_swap_memory(value):
    """Had an effect on loops, which are gone."""


def _model_from_yaml(*args, **kwargs):
    raise RuntimeError(
        "Keras does not read YAML any more, which can run code. Save models "
        "as `.keras` files, or with `to_json`."
    )


# For each module: old name, what to use instead, and what the old name gives
# where that is not the same.
_NAMES = {
    losses: {
        "KR_loss": ("KR", _KR_loss),
        "neg_KR_loss": ("HKR(alpha=0.0)", _neg_KR_loss),
        "negative_KR": ("HKR(alpha=0.0)", _negative_KR),
        "HKR_loss": ("HKR", _HKR_loss),
        "hinge_margin_loss": ("HingeMargin", _hinge_margin_loss),
        "KR_multiclass_loss": ("MulticlassKR", _KR_loss),
        "Hinge_multiclass_loss": ("MulticlassHinge", _Hinge_multiclass_loss),
        "HKR_multiclass_loss": ("MulticlassHKR", _HKR_multiclass_loss),
        "MultiMarginLoss": ("MultiMargin", _MultiMarginLoss),
    },
    constraints: {
        "WeightClip": "WeightClipConstraint",
        "AutoWeightClip": "AutoWeightClipConstraint",
        "FrobeniusNormalizer": "FrobeniusConstraint",
        "SpectralNormalizer": (
            "SpectralConstraint(eps_bjorck=None)",
            functools.partial(constraints.SpectralConstraint, eps_bjorck=None),
        ),
        "BjorckNormalizer": "SpectralConstraint",
    },
    initializers: {"BjorckInitializer": "SpectralInitializer"},
    normalizers: {
        "DEFAULT_NITER_BJORCK": ("DEFAULT_MAXITER_BJORCK", 15),
        "DEFAULT_NITER_SPECTRAL": ("DEFAULT_MAXITER_SPECTRAL", 3),
        "DEFAULT_NITER_SPECTRAL_INIT": ("DEFAULT_MAXITER_SPECTRAL", 10),
        "set_swap_memory": ("nothing: it has no effect", _set_swap_memory),
    },
    utils: {
        "load_model": ("keras.models.load_model", keras.models.load_model),
        "model_from_json": (
            "keras.models.model_from_json",
            keras.models.model_from_json,
        ),
        "model_from_yaml": ("keras.models.model_from_json", _model_from_yaml),
    },
}


def install():
    """Makes the former names available in the public modules."""
    for module, names in _NAMES.items():
        module.__getattr__ = functools.partial(_former_attribute, module, names)


def _former_attribute(module, names, name):
    if name not in names:
        raise AttributeError(
            f"module '{module.__name__}' has no attribute '{name}'"
        )
    entry = names[name]
    if isinstance(entry, str):
        entry = entry, getattr(module, entry)
    replacement, value = entry
    warnings.warn(
        f"`{module.__name__}.{name}` is deprecated. Use {replacement} instead.",
        DeprecationWarning,
        stacklevel=2,
    )
    return value
