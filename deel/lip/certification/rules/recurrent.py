"""Recurrent layers."""

import dataclasses
import math

import keras
import numpy as np

from deel.lip import layers
from deel.lip.certification._norms import matrix_norm
from deel.lip.certification._recurrences import Recurrence
from deel.lip.certification._recurrences import state_bounds
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import Later
from deel.lip.certification._registry import output_shapes
from deel.lip.certification._registry import rule
from deel.lip.certification._registry import size_of
from deel.lip.certification._rounding import Chain
from deel.lip.certification._rounding import Step
from deel.lip.certification._rounding import Sum
from deel.lip.certification.rules._linear import of_matrix
from deel.lip.certification.rules._steps import as_used
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules.activations import activation_bound


@rule(layers.OrthogonalRNN)
def _orthogonal(layer, input_shapes, context):
    weights = *layer.used_kernels(), layer.bias
    return _bound(layer, weights, input_shapes, context, layer._get_coef())


@rule(keras.layers.RNN, keras.layers.SimpleRNN)
def _simple(layer, input_shapes, context):
    cell = layer.cell
    if type(cell) is not keras.layers.SimpleRNNCell:
        raise ValueError(
            "Of recurrent cells, the constant is known of `SimpleRNNCell` "
            f"alone. Received: layer '{layer.name}' with a cell of type "
            f"{type(cell).__name__}"
        )
    kernel = as_used(cell, cell.kernel)
    recurrent = as_used(cell, cell.recurrent_kernel)
    return _bound(layer, (kernel, recurrent, cell.bias), input_shapes, context)


def _bound(layer, weights, input_shapes, context, scale=None):
    """Bound of a recurrent layer.

    Args:
        layer: The layer.
        weights: Tuple of arrays `(channels, units)` and `(units, units)`, the
            kernels, and the bias or None.
        input_shapes: List of tuples.
        context: That of the rule.
        scale: As of `state_bounds`.
    """
    if layer.stateful:
        raise ValueError(
            "Bounds are known for layers whose outputs depend on their inputs "
            "alone, not on those of former calls. Expected `stateful=False`. "
            f"Received: layer '{layer.name}' with stateful=True"
        )
    kernel, recurrent, bias = weights
    steps, hidden = input_shapes[0][1], (None, len(recurrent))
    activation = activation_bound(layer.cell.activation, hidden, context)
    factor = activation.value
    last, every = state_bounds(
        factor * kernel, factor * recurrent, steps, scale
    )
    value = every if layer.return_sequences else last
    norm = factor * matrix_norm(recurrent)[0]
    if not math.isfinite(value):
        _refuse_growth(layer, steps, norm)

    def make():
        joint = of_matrix(np.concatenate([kernel, recurrent]))
        # Two sums, and the kernel, which may have been scaled.
        step = joint.step(
            bias, (None, joint.terms), hidden, joint.terms + _MORE_TERMS
        )
        return Recurrence(
            Chain(step, activation.rounding),
            norm,
            (last, every),
            steps,
            (layer.return_sequences, layer.return_state),
        )

    bound = Bound(value, "recurrence", rounding=Later(make))
    if not layer.return_state:
        return bound

    def pull(amplitudes):
        states, state = (float(np.max(a, initial=0.0)) for a in amplitudes)
        return [math.hypot(value * states, last * state) * (1 + 1e-12)]

    (both,) = pull([1.0, 1.0])
    return dataclasses.replace(bound, value=both, pull=pull)


# Roundings of a step besides those of one product: the sum of two, and the
# kernel, which may have been scaled.
_MORE_TERMS = 3


def _refuse_growth(layer, steps, norm):
    """Raises ValueError for states of which no bound is a number."""
    if steps is not None:
        raise ValueError(
            f"The bound of layer '{layer.name}' after {steps} steps is too "
            f"large for a float. Received: a kernel of states of norm {norm}"
        )
    raise ValueError(
        f"Layer '{layer.name}' may expand more with each step, and how many "
        "there are is not known. Pass `input_shape`. Received: steps=None, and "
        f"a kernel of states of norm {norm}"
    )


@rule(keras.layers.Bidirectional)
def _bidirectional(layer, input_shapes, context):
    parts = [layer.forward_layer, layer.backward_layer]
    if layer.return_state or layer.merge_mode not in _MERGED:
        raise ValueError(
            "The constant of two directions is known for one output that is "
            f"merged by one of {tuple(_MERGED)}. Received: layer "
            f"'{layer.name}' with merge_mode={layer.merge_mode} and "
            f"return_state={layer.return_state}"
        )
    bounds = [context.bound(part, input_shapes) for part in parts]
    value = _MERGED[layer.merge_mode](*(bound.value for bound in bounds))
    value *= (1 + 1e-12) * (1 + half_unit(layer)) ** 2

    def make():
        (outputs,) = output_shapes(layer, input_shapes)
        entries = size_of(outputs)
        # Side by side, they are wrong by no more than their sum is.
        joined = Sum(*(bound.rounding for bound in bounds), entries=entries)
        if layer.merge_mode == "ave":
            return Chain(joined, Step(0.5, 1, entries=entries))
        return joined

    return Bound(value, "both directions", rounding=Later(make))


_MERGED = {
    "concat": math.hypot,
    "sum": lambda a, b: a + b,
    "ave": lambda a, b: 0.5 * (a + b),
}
