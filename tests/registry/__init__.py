"""One row for each layer and interesting argument: a new layer adds a row.

`test_layers.py` and `test_lipschitz_property.py` do the rest.
"""

from registry.constrained import CONSTRAINED
from registry.others import OTHERS
from registry.row import Row
from registry.row import rows

__all__ = ["CONSTRAINED", "OTHERS", "Row", "rows"]
