"""What certificates of all kinds share: arguments, batches, networks."""

import keras
import numpy as np

from deel.lip._validation import positive_int
from deel.lip._validation import require_one_of
from deel.lip.certification._data import check_precision
from deel.lip.certification._data import check_samples
from deel.lip.certification._data import float_type
from deel.lip.certification._data import in_batches
from deel.lip.certification._data import require_one_each
from deel.lip.certification._network import Network
from deel.lip.certification._walk import METHODS
from deel.lip.certification.bounds import require_refinable

# From so many samples on, `verbose="auto"` shows a progress bar.
_MANY = 2000

# The same where each sample has a chain of its own, which go in such batches.
_FEW = 32

# What each kind of rounding certifies, in words.
ROUNDINGS = {
    "exact": "the network of real numbers",
    "float32": "the network in float32, any order of summation",
    "estimated": "scores in float32, their rounding estimated, not proven",
}


class Networks:
    """A model, once for each shape of inputs: each has a bound of its own.

    Args:
        model: A model that was checked to have one input and one output.
        constants: See `certify`.
        rounding: See `certify`.
        method: See `certify`.
        refine: See `certify`.
        local: See `certify`.
    """

    def __init__(
        self,
        model,
        constants,
        rounding,
        method,
        refine=False,
        local=False,
    ):
        check_precision(model)
        require_one_of("method", method, METHODS, ValueError)
        require_one_of("rounding", rounding, ROUNDINGS, ValueError)
        require_refinable(refine, method)
        if local and method != "chain":
            raise ValueError(
                'What is local is the chain. Expected `method="chain"`. '
                f"Received: local={local}, method={method!r}"
            )
        if local and rounding == "estimated":
            raise ValueError(
                "What a ReLU does within a radius is proven. Expected "
                '`rounding="exact"` or `"float32"` with `local=True`. '
                f"Received: rounding={rounding!r}"
            )
        self.model = model
        self._local = local
        self._arguments = (constants, rounding, method, refine, local)
        self._found = {}
        self.input_range = None

    def of(self, x):
        """The `Network` of inputs as these."""
        shape = x.shape[1:]
        if shape not in self._found:
            self._found[shape] = Network(self.model, shape, *self._arguments)
        return self._found[shape]

    def batches(self, x, y, batch_size, verbose, check_labels=None):
        """Iterator over samples and labels, in NumPy, with a progress bar.

        Args:
            x: See `certify`.
            y: See `certify`.
            batch_size: See `certify`.
            verbose: See `certify`.
            check_labels: See `in_batches`.

        Raises:
            ValueError: For bad arguments, and where there are no samples.
        """
        batch_size = positive_int("batch_size", batch_size)
        many = _MANY
        if self._local:
            # One sample after the other, so that progress is seen.
            batch_size, many = min(batch_size, _FEW), _FEW
        batches, count = in_batches(self.model, x, y, batch_size, check_labels)
        shows = verbose == 1 or (verbose == "auto" and (count or 0) >= many)
        bar = keras.utils.Progbar(count) if shows else None
        is_empty = True
        for x_batch, y_batch in batches:
            x_batch = float_type(x_batch)
            check_samples(self.model, x_batch)
            self._note_range(x_batch)
            yield x_batch, y_batch
            is_empty = False
            if bar is not None:
                bar.add(len(x_batch))
        if is_empty:
            raise ValueError(
                "There is nothing to certify. Received: empty data"
            )

    def _note_range(self, x):
        """Keeps the least and the largest value of all samples."""
        if x.size:
            values = np.min(x), np.max(x), *(self.input_range or ())
            self.input_range = float(min(values)), float(max(values))

    def ranges(self, x, y, batch_size, verbose, checked):
        """Iterator over pairs of `Ranges` and labels, or None, of batches.

        Args:
            x: See `certify`.
            y: See `certify`.
            batch_size: See `certify`.
            verbose: See `certify`.
            checked: Function of labels of a batch, or None, that checks them
                and returns an array, or None.
        """
        for x_batch, y_batch in self.batches(
            x, y, batch_size, verbose, checked
        ):
            labels = checked(y_batch)
            if labels is not None:
                require_one_each(x_batch, labels)
            yield self.of(x_batch).ranges(x_batch), labels

    @property
    def constant(self):
        """The constant of the vector of all scores, the largest."""
        return max(n.constant for n in self._found.values())

    @property
    def score_constants(self):
        """The constants of each score by itself, the largest, an array."""
        found = [n.score_constants for n in self._found.values()]
        return np.max(found, axis=0)

    @property
    def score_constant(self):
        """The constant of the score that changes fastest by itself."""
        return float(np.max(self.score_constants))

    @property
    def lead_constant(self):
        """The largest of the constants by which radii divide leads."""
        return max(n.lead_constant for n in self._found.values())


def joined(parts):
    """Arrays of all samples, from those of batches.

    Args:
        parts: List of dictionaries of arrays, with None for what is not known.
    """
    columns = {name: [part[name] for part in parts] for name in parts[0]}
    return {
        name: None if any(x is None for x in values) else np.concatenate(values)
        for name, values in columns.items()
    }
