"""Families of networks whose rounding is searched for broken certificates.

A row of `FAMILIES` is a function of a NumPy generator and of a size. It returns
a `Family`: what stands between the input and the last Dense layer, and samples.
A new idea of what may go wrong adds a row.
"""

from adversarial.families import numbers
from adversarial.families import sums
from adversarial.families.base import FAMILIES
from adversarial.families.base import SLOW
from adversarial.families.base import build
from adversarial.families.base import scores_of
from adversarial.families.base import whole_copy
