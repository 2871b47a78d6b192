"""Losses for networks with a known Lipschitz constant.

The Kantorovich-Rubinstein (KR) term is the dual of the Wasserstein-1 distance:
the largest `E[f | positive] - E[f | negative]` over all 1-Lipschitz functions f
is the distance between the two classes. The hinge term asks for a margin, which
a 1-Lipschitz network turns into a robustness radius. HKR is their sum.

All losses take raw scores, `(batch_size, 1)` or `(batch_size, classes)`. They
are `keras.losses.Loss` objects and take the same `reduction`, or `"auto"`; and
the same `name`, where None means that of the class.

Reference:
    - [Serrurier et al., 2021](https://arxiv.org/abs/2006.06520), "Achieving
      robustness in classification using optimal transport with hinge
      regularization".
"""

from deel.lip.losses._crossentropies import EMMA
from deel.lip.losses._crossentropies import LogitAnnealing
from deel.lip.losses._crossentropies import OffsetCategoricalCrossentropy
from deel.lip.losses._crossentropies import TauBinaryCrossentropy
from deel.lip.losses._crossentropies import TauCategoricalCrossentropy
from deel.lip.losses._crossentropies import TauSparseCategoricalCrossentropy
from deel.lip.losses._hinges import CategoricalHinge
from deel.lip.losses._hinges import HingeMargin
from deel.lip.losses._hinges import MulticlassHinge
from deel.lip.losses._hinges import MultiMargin
from deel.lip.losses._hinges import hinge_margin
from deel.lip.losses._hinges import multiclass_hinge
from deel.lip.losses._hinges import multiclass_soft_hinge
from deel.lip.losses._hkr import HKR
from deel.lip.losses._hkr import MulticlassHKR
from deel.lip.losses._hkr import MulticlassLseHKR
from deel.lip.losses._hkr import MulticlassSoftHKR
from deel.lip.losses._kantorovich import KR
from deel.lip.losses._kantorovich import MulticlassKR
from deel.lip.losses._kantorovich import NegKR
from deel.lip.losses._kantorovich import _kr as _kr
from deel.lip.losses._kantorovich import _kr_multi_gpu as _kr_multi_gpu
from deel.lip.losses._learned_margins import HingeMarginAuto
from deel.lip.losses._learned_margins import HKRAuto
from deel.lip.losses._learned_margins import HKRauto
from deel.lip.losses._learned_margins import MulticlassHingeAuto
from deel.lip.losses._learned_margins import MulticlassHKRAuto
from deel.lip.losses._learned_margins import MulticlassHKRauto

__all__ = [
    "EMMA",
    "HKR",
    "KR",
    "CategoricalHinge",
    "HKRAuto",
    "HKRauto",
    "HingeMargin",
    "HingeMarginAuto",
    "LogitAnnealing",
    "MultiMargin",
    "MulticlassHKR",
    "MulticlassHKRAuto",
    "MulticlassHKRauto",
    "MulticlassHinge",
    "MulticlassHingeAuto",
    "MulticlassKR",
    "MulticlassLseHKR",
    "MulticlassSoftHKR",
    "NegKR",
    "OffsetCategoricalCrossentropy",
    "TauBinaryCrossentropy",
    "TauCategoricalCrossentropy",
    "TauSparseCategoricalCrossentropy",
    "hinge_margin",
    "multiclass_hinge",
    "multiclass_soft_hinge",
]


def __dir__():
    return __all__
