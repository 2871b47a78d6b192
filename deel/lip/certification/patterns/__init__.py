"""What several operations of a graph are together; see `_pieces`.

Importing this registers all patterns. Of two that fit, the first one counts.
"""

from deel.lip.certification.patterns import comparisons
from deel.lip.certification.patterns import folded_sorts
from deel.lip.certification.patterns import folds
from deel.lip.certification.patterns import norms
from deel.lip.certification.patterns import padded
from deel.lip.certification.patterns import sandwiches
from deel.lip.certification.patterns import symmetric_steps
