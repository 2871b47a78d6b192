"""Activations."""

import dataclasses
import math

import keras
import numpy as np

from deel.lip import layers
from deel.lip._numerics.activations import facts_of
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import rule
from deel.lip.certification._registry import size_of
from deel.lip.certification._rounding import ELEMENTARY
from deel.lip.certification._rounding import Chain
from deel.lip.certification._rounding import Step
from deel.lip.certification.rules._steps import as_used
from deel.lip.certification.rules._steps import count_inexact
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules._steps import magnitude
from deel.lip.certification.rules._steps import step_of


def activation_bound(activation, input_shape, context):
    """Bound of what layers take as `activation`: a function or a layer."""
    if isinstance(activation, keras.layers.Layer):
        return context.bound(activation, [input_shape])
    facts = facts_of(activation)
    if facts is None:
        shown = getattr(activation, "__name__", activation)
        raise ValueError(
            f"The Lipschitz constant of the activation `{shown}` is not known, "
            "or not finite. Use a layer of your own, registered with "
            "`deel.lip.certification.register_bound`. "
            f"Received: activation={activation}"
        )
    terms = input_shape[-1] if facts.name == "softmax" else 0
    bound = _of_slope(
        facts.largest,
        input_shape,
        facts.is_exact,
        terms,
        factor=facts.smallest,
    )
    if facts.smallest is None:
        return bound
    chain = chain_of_slopes(facts.smallest, facts.largest)
    return dataclasses.replace(bound, chain=chain)


def chain_of_slopes(smallest, largest):
    """The `chain` of a function of one number whose slopes are known."""
    if smallest < 0:
        return None
    if smallest == largest:
        return lambda spread: spread.through_factors(np.full(1, largest))
    return lambda spread: spread.through_slopes(largest)


def _of_slope(slope, shape, is_exact, terms=0, factor=0.0):
    """Bound of a function of one number, or of softmax.

    Args:
        slope: Float, the largest magnitude of its slope.
        shape: Tuple, of the input.
        is_exact: Boolean, whether it copies, multiplies and compares only.
        terms: Integer, how many terms are summed besides.
        factor: Float or array, the constants that numbers are multiplied by,
            or compared with.
    """
    count = size_of(shape)
    if is_exact:
        terms = 0 if np.all(np.isin(factor, (0.0, 1.0))) else 2
        inexact = count_inexact(factor)
        rounding = Step(slope, terms, entries=count, inexact=inexact)
    else:
        # Values near zero are differences of numbers near one.
        rounding = Step(
            slope,
            ELEMENTARY + terms,
            magnified=1 + 2 * slope,
            offset=math.sqrt(count) * max(1.0, slope),
            entries=count,
            inexact=2,
        )
    return Bound(slope, "largest slope", rounding=rounding)


@rule(
    layers.Abs,
    layers.FullSort,
    layers.GroupSort,
    layers.GroupSort2,
    layers.MaxMin,
)
def _scaled_isometry(layer, input_shapes):
    value = magnitude(layer, layer.k_coef_lip)
    inexact = count_inexact(layer.k_coef_lip)
    rounding = step_of(layer, input_shapes, value, 3, inexact=inexact)
    return Bound(value, "formula", True, rounding=rounding)


@rule(layers.Householder)
def _folds(layer, input_shapes):
    # Sines and cosines that are rounded make a reflection that expands.
    fold = (1 + half_unit(layer)) ** 4
    value = magnitude(layer, layer.k_coef_lip) * fold**layer.order
    entries = size_of(input_shapes[0])
    # Points that are taken for those of the other side are reflected at a line
    # that is as near to them as the side was wrong.
    step = Step(fold, ELEMENTARY + 4, magnified=4.0, entries=entries)
    factor = magnitude(layer, layer.k_coef_lip)
    scaling = Step(
        factor, 2, entries=entries, inexact=count_inexact(layer.k_coef_lip)
    )
    rounding = Chain(*[step] * layer.order, scaling)
    return Bound(value, "formula", True, rounding=rounding)


@rule(keras.layers.Activation)
def _activation(layer, input_shapes, context):
    return activation_bound(layer.activation, input_shapes[0], context)


@rule(keras.layers.ReLU)
def _relu(layer, input_shapes):
    if layer.threshold != 0:
        raise ValueError(
            f"Layer '{layer.name}' jumps at its threshold. Expected "
            f"`threshold=0`. Received: threshold={layer.threshold}"
        )
    return _of_slopes(
        layer, layer.negative_slope, input_shapes, limit=layer.max_value
    )


def _of_slopes(layer, factor, input_shapes, is_exact=True, limit=None):
    """Bound of a function of the slope one, and another one for negatives.

    Args:
        layer: The layer.
        factor: Float or array, the other slope.
        input_shapes: List of tuples.
        is_exact: As of `_of_slope`.
        limit: Float, a constant that cuts off, or None.
    """
    slope = max(1.0, magnitude(layer, factor))
    constants = np.append(factor, limit or 0.0)
    bound = _of_slope(slope, input_shapes[0], is_exact, factor=constants)
    smallest = min(1.0, float(np.min(factor)))
    if limit is not None or not is_exact:
        # Cut off, or bent: slopes down to zero, whatever the other one is.
        smallest = min(0.0, smallest)
    chain = chain_of_slopes(smallest, slope)
    return dataclasses.replace(bound, method="slopes", exact=True, chain=chain)


@rule(keras.layers.LeakyReLU)
def _leaky_relu(layer, input_shapes):
    return _of_slopes(layer, layer.negative_slope, input_shapes)


@rule(keras.layers.ELU)
def _elu(layer, input_shapes):
    return _of_slopes(layer, layer.alpha, input_shapes, is_exact=False)


@rule(keras.layers.PReLU)
def _prelu(layer, input_shapes):
    _require_slopes(layer)
    return _of_slopes(layer, as_used(layer, layer.alpha), input_shapes)


def _require_slopes(layer):
    """Raises ValueError for an activation that a layer has not called yet."""
    if not layer.built:
        raise ValueError(
            f"The slopes of '{layer.name}' are made when the model is first "
            "called. Expected a model that was called. "
            f"Received: layer '{layer.name}' of type {type(layer).__name__}, "
            "without weights"
        )


@rule(layers.LipschitzPReLU)
def _lipschitz_prelu(layer, input_shapes):
    _require_slopes(layer)
    slopes = np.ravel(as_used(layer, layer.alpha))
    # Some are cut off at a constant, which float32 may read as less.
    if np.max(np.abs(slopes)) >= layer.k_coef_lip * (1 - 1e-2):
        slopes = np.append(slopes, layer.k_coef_lip)
    return _of_slopes(layer, slopes, input_shapes)


@rule(keras.layers.Softmax)
def _softmax(layer, input_shapes):
    (shape,) = input_shapes
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    terms = math.prod(shape[axis] or math.inf for axis in axes)
    return _of_slope(0.5, shape, False, terms)
