"""What floating point makes of the scores of a network."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from deel.lip.certification._data import checked_labels
from deel.lip.certification._data import require_finite
from deel.lip.certification._data import require_one_each
from deel.lip.certification._device import rounding_of_factors
from deel.lip.certification._device import rounding_unit
from deel.lip.certification._float64 import as_float64
from deel.lip.certification._float64 import float64
from deel.lip.certification._float64 import float64_copy
from deel.lip.certification._float64 import norms
from deel.lip.certification._flow import joint_gain
from deel.lip.certification._flow import propagate
from deel.lip.certification._local import LocalChain
from deel.lip.certification._local import largest_radii
from deel.lip.certification._norms import matrix_norm
from deel.lip.certification._outcomes import BestClass
from deel.lip.certification._pieces import Piece
from deel.lip.certification._refined import refined
from deel.lip.certification._rounding import FLOAT32
from deel.lip.certification._rounding import FLOAT64
from deel.lip.certification._rounding import Computed
from deel.lip.certification._rounding import Estimated
from deel.lip.certification._rounding import Step
from deel.lip.certification._rounding import followed
from deel.lip.certification._scores import LastLayer
from deel.lip.certification._scores import Leads
from deel.lip.certification._scores import Ranges
from deel.lip.certification._scores import Scores
from deel.lip.certification._walk import METHODS
from deel.lip.certification._walk import Walk
from deel.lip.certification._walk import final_dense
from deel.lip.certification._walk import start
from deel.lip.certification.bounds import score_gains
from deel.lip.certification.bounds import spreads_of


class Network:
    """What certificates need to know of a network, for one input shape.

    Args:
        model: The model.
        input_shape: Tuple, without the batch axis.
        constants: See `certify`.
        rounding: See `certify`.
        method: See `certify`.
        refine: See `certify`.
        local: See `certify`.
    """

    def __init__(
        self,
        model,
        input_shape,
        constants,
        rounding,
        method=METHODS[0],
        refine=False,
        local=False,
    ):
        self.model = model
        self.rounding = rounding
        self.features = math.prod(input_shape)
        walk = Walk(constants, method)
        (self.input,) = start(model, tuple(int(n) for n in input_shape))
        (self.output,) = walk.run(model, [self.input])
        walk.require_known_names()
        self.calls = walk.calls
        self.constant = joint_gain([self.output])
        self.last = None
        last = final_dense(model, walk)
        if last is not None:
            _, kernel, flow = last
            # What counts are leads.
            rows = kernel.T - np.mean(kernel.T, axis=0) * (kernel.shape[1] > 1)
            spreads = spreads_of(flow, rows, refine)
            self.last = LastLayer(*last, spreads)
            if refine and spreads:
                norm, _ = matrix_norm(kernel)
                behind = spreads[-1].through_matrix(kernel, norm)
                self.constant = min(self.constant, behind.radius)
            self.score_constants = score_gains(last, spreads)
        else:
            if refine:
                spread = refined(self.output.spread)
                self.constant = min(self.constant, spread.radius)
            # Operations alone may leave no axis but that of the samples.
            outputs = self.output.shape[1:][-1:]
            self.score_constants = np.full(outputs, self.constant)
        self.local = LocalChain(self.last, model) if local else None
        self.copies = {}
        self.float32 = dataclasses.replace(
            FLOAT32, factors=rounding_of_factors()
        )

    @property
    def lead_constant(self):
        """The largest of the constants by which radii divide leads."""
        classes = self.model.output_shape[-1]
        # Each class leads once.
        values = np.eye(classes) if classes > 1 else np.ones((1, 1))
        scores = Scores(values, BestClass())
        return float(np.max(self._slopes(scores)[np.isfinite(scores.leads)]))

    def certify(self, x, y, outcome):
        """Returns what `Certificates` has for each sample, a dictionary.

        Args:
            x: Array of samples.
            y: Labels, or None.
            outcome: What is predicted, of `_outcomes`.
        """
        require_finite(x)
        label = None
        if y is not None:
            label = checked_labels(y, self.model.output_shape[-1])
            require_one_each(x, label)
            label = outcome.of_labels(label)
        if self.rounding == "estimated":
            found = self._estimated(x, outcome)
        else:
            found = self._proven(x, outcome)
        return {**found, "label": label}

    def _estimated_error(self, x):
        """`Computed` of what rounding usually does; norms of samples."""
        unit = rounding_unit()
        arithmetic = Estimated(unit, FLOAT32.smallest, FLOAT32.largest)
        known = propagate(self.calls, {self.input: Computed(1.0)}, arithmetic)
        sizes = np.linalg.norm(x.reshape(len(x), -1).astype("float64"), axis=1)
        return known[self.output], sizes

    def _estimated(self, x, outcome):
        error, sizes = self._estimated_error(x)
        scores = Scores(self._float32_scores(x), outcome)
        at_sample = error.relative * sizes + error.absolute
        rounding = scores.root * at_sample
        slopes = self._slopes(scores) + scores.root * error.relative
        radius = scores.radius(2 * rounding[:, None, None], slopes)
        return {
            "radius": radius,
            "prediction": scores.prediction,
            "margin": scores.margin,
            "rounding": rounding,
            "float32_radius": None,
        }

    def ranges(self, x):
        """How far each output of some samples may be from what is computed.

        Args:
            x: Array of samples.

        Returns:
            A `Ranges`, of what `rounding` says.
        """
        require_finite(x)
        with np.errstate(over="ignore", invalid="ignore"):
            return self._ranges(x)

    def _ranges(self, x):
        if self.rounding == "estimated":
            error, sizes = self._estimated_error(x)
            values = np.asarray(self._float32_scores(x), "float64")
            at_sample = error.relative * sizes + error.absolute
            errors = np.repeat(at_sample[:, None], values.shape[1], axis=1)
            # Both ends are rounded.
            growth = self.score_constants + error.relative
            return Ranges(values, 2 * errors, growth, np.inf)
        values, exact, rounded, _, _ = self._computed(x)
        values = _finite(values)
        errors, _ = self._score_errors(exact, values, FLOAT64)
        if self.rounding == "exact":
            return Ranges(values, errors, self.score_constants, np.inf)
        more, growth = self._score_errors(rounded, values, self.float32)
        reach = np.nan_to_num(rounded[self.output].reach, nan=0.0)
        growth = growth + self.score_constants
        return Ranges(values, errors + more, growth, reach)

    def _computed(self, x):
        """Scores in float64, and what floating point makes of them.

        Returns:
            Tuple: the scores; dictionaries from flows to `Computed`, of float64
            and of float32; the scores that the model returns; and what the
            local chain asks for.
        """
        values, sizes, kept = self._forward(x)
        start = Computed(1.0, zero=sizes[self.input])
        exact = propagate(self.calls, {self.input: start}, FLOAT64, sizes)
        # What is measured is the norm of what float64 computes.
        sizes = {f: sizes[f] + exact[f].absolute for f in sizes}
        given = Step(terms=1, entries=self.features)(self.float32)
        start = followed(Computed(1.0, zero=sizes[self.input]), given)
        start = dataclasses.replace(start, zero=sizes[self.input])
        rounded = propagate(
            self.calls, {self.input: start}, self.float32, sizes
        )
        found = np.asarray(self.model.predict_on_batch(x), "float64")
        self._check_scores(
            found, values, rounded[self.output], exact[self.output]
        )
        return values, exact, rounded, found, kept

    def _proven(self, x, outcome):
        # What overflows is an infinite error, and a radius of zero.
        with np.errstate(over="ignore", invalid="ignore"):
            *computed, kept = self._computed(x)
            leads = self._leads_of(outcome, *computed)
            radius, float32_radius = self._radii(leads, computed[1], kept)
        if self.rounding == "float32":
            radius = float32_radius
        return {
            "radius": radius,
            "prediction": leads.scores.prediction,
            "margin": leads.scores.margin,
            "rounding": leads.rounding(self.rounding),
            "float32_radius": float32_radius,
        }

    def _radii(self, leads, exact, kept):
        """Radii of samples, of real numbers and in float32, a pair."""

        def radii(slopes):
            return leads.radius(slopes), leads.float32_radius(slopes)

        slopes = self._slopes(leads.scores)
        if self.local is None:
            return radii(slopes)
        before = self.local.before_slopes(kept, exact)
        members = leads.scores.members
        return largest_radii(
            radii, slopes, lambda r: self.local.leads(before, members, r)
        )

    def leads(self, x, outcome):
        """`Leads` of some samples, at each position where there are several.

        Args:
            x: Array of samples.
            outcome: What is predicted, of `_outcomes`.
        """
        require_finite(x)
        with np.errstate(over="ignore", invalid="ignore"):
            *computed, _ = self._computed(x)
            return self._leads_of(outcome, *computed)

    def _leads_of(self, outcome, values, exact, rounded, found):
        shape = values.shape[:-1]
        count = math.prod(shape[1:])
        values = _finite(values).reshape(-1, values.shape[-1])
        as_it_runs = None
        if self.rounding == "float32":
            # The prediction is that of the network as it runs.
            as_it_runs = _finite(found).reshape(values.shape)
        seen = Scores(values, outcome, as_it_runs)
        end = self.output if self.last is None else self.last.flow
        own, _ = self._lead_errors(_repeated(exact[end], count), seen, FLOAT64)
        errors, growth = self._lead_errors(
            _repeated(rounded[end], count), seen, self.float32
        )
        reach = np.nan_to_num(rounded[self.output].reach, nan=0.0)
        reach = np.broadcast_to(reach, shape[:1])
        return Leads(seen, shape, own, errors, growth, np.repeat(reach, count))

    def _float32_scores(self, x):
        return _finite(self.model.predict_on_batch(x))

    def _forward(self, x):
        """Scores in float64, and what is known of all that is computed before.

        Returns:
            Tuple: the scores, norms of all flows, and values of those that the
            local chain asks for.
        """
        asked = self.local.flows if self.local else ()
        kept = {}
        last_use = {
            flow: index
            for index, call in enumerate(self.calls)
            for flow in call.inputs
        }
        sizes = {}
        with float64():
            values = {self.input: as_float64(x)}
            sizes[self.input] = norms(values[self.input])
            for index, call in enumerate(self.calls):
                inputs = [values[flow] for flow in call.inputs]
                if isinstance(call.layer, Piece):
                    outputs = call.layer.run(inputs, self._in_float64)
                else:
                    outputs = self._in_float64(call.layer)(
                        inputs if len(inputs) > 1 else inputs[0]
                    )
                outputs = keras.tree.flatten(outputs)
                for flow, value in zip(call.outputs, outputs, strict=True):
                    _require_float64(value, call.layer)
                    values[flow] = value
                    sizes[flow] = norms(value)
                for flow in call.inputs:
                    if last_use[flow] == index and flow is not self.output:
                        value = values.pop(flow, None)
                        if flow in asked and value is not None:
                            kept[flow] = ops.convert_to_numpy(value)
            scores = ops.convert_to_numpy(values[self.output])
        return np.asarray(scores, "float64"), sizes, kept

    def _in_float64(self, operation):
        """A layer at inference, or operation, that computes in float64."""
        if not isinstance(operation, keras.layers.Layer):
            return operation
        if id(operation) not in self.copies:
            self.copies[id(operation)] = float64_copy(operation)
        copy = self.copies[id(operation)]
        # Whatever it was called with, where it is a part of a piece.
        return lambda inputs, **kwargs: copy(inputs, training=False)

    def _check_scores(self, found, exact, float32, float64):
        """Raises ValueError where scores differ by more than rounding can.

        A layer may have state that its config does not tell, and a device units
        of its own, which no constant tells.

        Args:
            found: Array, scores of the model.
            exact: Array, scores in float64.
            float32: `Computed` of the model.
            float64: `Computed` of the scores in float64.
        """
        with np.errstate(invalid="ignore"):
            error = (found - exact).reshape(len(exact), -1)
            error = np.linalg.norm(error, axis=1)
        allowed = float32.absolute + float64.absolute
        # Where float32 overflows, nothing is claimed.
        is_wrong = ~(error <= allowed) & (float32.reach > 0)
        if np.any(is_wrong):
            worst = int(np.argmax(is_wrong))
            raise ValueError(
                "The scores of the model differ from those that are computed "
                "in float64 by more than float32 can be wrong: a layer has "
                "state that is not in its config, or this device computes with "
                "fewer digits than float32 has. Expected at most "
                f"{allowed[worst]:.3g}. Received: {error[worst]:.3g}. "
                '`rounding="estimated"` needs no scores in float64.'
            )

    def _slopes(self, scores):
        """How fast each lead can change."""
        slopes = np.full(scores.leads.shape, scores.root * self.constant)
        if self.last is None:
            return slopes
        return np.minimum(slopes, self.last.lead_constants(scores))

    def joint_slopes(self, scores):
        """Slopes of leads at several positions, which share one distance.

        For each array, the squares of what leads change by, one at each
        position, over their slopes, add up to at most the square of the
        distance; see [Many pixels].

        Args:
            scores: `Scores`, with a row for each position.

        Returns:
            List of arrays of the shape of the leads.
        """
        slope = scores.root * self.constant
        general = np.full(scores.leads.shape, slope)
        if self.last is None:
            return [general]
        by_pair = self.last.lead_constants(scores)
        # Usually no pair is faster than the whole; more than slacks counts.
        if self.last.largest_lead <= slope * (1 + 1e-6):
            return [by_pair]
        return [by_pair, general]

    def _score_errors(self, known, values, arithmetic):
        """Errors of each score at samples, and for each unit of distance."""
        if self.last is not None:
            entering = known[self.last.flow]
            return self.last.score_errors(entering, arithmetic)
        error = known[self.output]
        at_sample = np.broadcast_to(error.absolute, values.shape[:1])
        return (
            np.repeat(at_sample[:, None], values.shape[1], axis=1),
            np.full(values.shape[1], error.relative),
        )

    def _lead_errors(self, error, scores, arithmetic):
        """Errors of each lead at the samples, and for each unit of distance.

        Args:
            error: `Computed` of what enters the last layer; of the scores,
                where that is not known.
            scores: `Scores`.
            arithmetic: `Arithmetic`.
        """
        if self.last is not None:
            return self.last.errors(error, scores, arithmetic)
        shape = scores.leads.shape
        at_sample = np.reshape(error.absolute, (-1, 1, 1))
        return (
            scores.root * np.broadcast_to(at_sample, shape),
            np.full(shape, scores.root * error.relative),
        )


def _repeated(error, count):
    """`Computed` of so many positions of each sample.

    What is known of a whole tensor bounds each of its parts.
    """
    if count == 1:
        return error
    zero, absolute = (
        np.repeat(x, count) if np.ndim(x) else x
        for x in (error.zero, error.absolute)
    )
    return dataclasses.replace(error, zero=zero, absolute=absolute)


def _require_float64(tensor, layer):
    """Raises ValueError where a layer of its own choice rounds its output."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype != "float64":
        raise ValueError(
            "Scores are computed in float64, by copies of the layers with that "
            "dtype. Expected a layer whose output has its `compute_dtype`. "
            f"Received: layer '{layer.name}' of type {type(layer).__name__}, "
            f"whose output is {dtype}"
        )


def _finite(scores):
    scores = np.asarray(scores, "float64")
    if not np.all(np.isfinite(scores)):
        raise ValueError(
            "Scores must be finite to be certified. Received: "
            f"{int(np.sum(~np.isfinite(scores)))} NaN or infinite scores "
            f"out of {scores.size}"
        )
    return scores
