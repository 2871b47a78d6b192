"""The constant of each type of layer, from its weights: a rule for each class.

Only the class itself counts, not its subclasses, which may compute something
else. Operations of functional graphs have theirs in `copying` and `operations`.
Importing this registers all rules.
"""

from deel.lip.certification.rules import activations
from deel.lip.certification.rules import augmentation
from deel.lip.certification.rules import convolutions
from deel.lip.certification.rules import copying
from deel.lip.certification.rules import dense
from deel.lip.certification.rules import joins
from deel.lip.certification.rules import normalization
from deel.lip.certification.rules import operations
from deel.lip.certification.rules import pooling
from deel.lip.certification.rules import recurrent
from deel.lip.certification.rules import shapes
