"""Layers that join or hold others."""

import dataclasses
import math

import keras
import numpy as np

from deel.lip import layers
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import output_shapes
from deel.lip.certification._registry import rule
from deel.lip.certification._registry import size_of
from deel.lip.certification._rounding import ELEMENTARY
from deel.lip.certification._rounding import Beside
from deel.lip.certification._rounding import Chain
from deel.lip.certification._rounding import Repeated
from deel.lip.certification._rounding import Step
from deel.lip.certification._rounding import Sum
from deel.lip.certification.rules._steps import as_used
from deel.lip.certification.rules._steps import count_inexact
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules._steps import magnitude
from deel.lip.certification.rules._steps import step_of


def joined(layer, input_shapes, weights, adds, terms=None, method="formula"):
    """Bound of a layer that joins branches; see `Bound`."""
    squares = math.sqrt(math.fsum(w**2 for w in weights))
    value = squares * (1 + 1e-12) if adds else max(weights)
    terms = len(weights) if terms is None else terms
    # For inputs of which the norms add up.
    # What is averaged is added before it is divided.
    partial = len(weights) * max(weights) if adds else None
    rounding = step_of(
        layer, input_shapes, max(weights), terms, partial=partial
    )
    return Bound(
        value, method, weights=tuple(weights), adds=adds, rounding=rounding
    )


def repetitions(layer, input_shapes):
    """For each input, the root of how often it is broadcast."""
    rank = max(len(shape) for shape in input_shapes)
    shapes = [(1,) * (rank - len(s)) + tuple(s[1:]) for s in input_shapes]
    if len(set(shapes)) == 1:
        return [1.0] * len(shapes)
    if any(None in shape for shape in shapes):
        raise ValueError(
            f"Layer '{layer.name}' may broadcast its inputs, whose shapes are "
            f"not known. Pass `input_shape`. Received: shapes={input_shapes}"
        )
    sizes = [math.prod(shape) for shape in shapes]
    largest = math.prod(np.max(np.array(shapes), axis=0).tolist())
    return [math.sqrt(largest / size) * (1 + 1e-12) for size in sizes]


@rule(keras.layers.Add, keras.layers.Subtract)
def _sum(layer, input_shapes):
    weights = repetitions(layer, input_shapes)
    bound = joined(layer, input_shapes, weights, adds=True)
    is_sum = type(layer) is keras.layers.Add
    return dataclasses.replace(bound, is_sum=is_sum)


@rule(keras.layers.Average)
def _mean(layer, input_shapes):
    weights = repetitions(layer, input_shapes)
    weights = [w / len(weights) for w in weights]
    terms = len(weights) + 4
    bound = joined(layer, input_shapes, weights, adds=True, terms=terms)
    loosened = bound.value * (1 + half_unit(layer)) ** 2
    return dataclasses.replace(bound, value=loosened)


@rule(keras.layers.Maximum, keras.layers.Minimum)
def _maximum(layer, input_shapes):
    # |max a - max b| is at most the largest |a - b|, hence its square at most
    # the sum of all squares.
    weights = repetitions(layer, input_shapes)
    return joined(layer, input_shapes, weights, adds=False, terms=0)


@rule(keras.layers.Concatenate)
def _concatenation(layer, input_shapes):
    weights = [1.0] * len(input_shapes)
    bound = joined(layer, input_shapes, weights, adds=False, terms=0)
    axis = layer.axis % len(input_shapes[0])

    def pull(amplitudes):
        (a,) = amplitudes
        if np.ndim(a) == 0 or axis == 0:
            return [np.max(a)] * len(input_shapes)
        ends = np.cumsum([shape[axis] for shape in input_shapes])
        return np.split(a, ends[:-1], axis=axis - 1)

    return dataclasses.replace(bound, pull=pull)


@rule(layers.LipResidual)
def _residual(layer, input_shapes):
    alpha = float(as_used(layer, layer.alpha))
    weight = 1 / (1 + math.exp(-alpha)) if alpha > -700 else 0.0
    # The weight is a sigmoid, right to some units of one.
    excess = 1e-6 + 2 * half_unit(layer)
    weights = [weight + excess, 1 - weight + excess]
    bound = joined(
        layer,
        input_shapes,
        weights,
        adds=True,
        method="weights",
    )
    # Each weight is wrong by units of one, not of itself.
    rounding = step_of(layer, input_shapes, 1.0, ELEMENTARY + 4)
    return dataclasses.replace(bound, rounding=rounding)


@rule(layers.PartialResidual, layers.PrescaledResidual)
def _branched(layer, input_shapes, context):
    (shape,) = input_shapes
    branch = context.bound(layer.layer, [layer.branch_shape(shape)])
    factor = magnitude(layer, layer._get_coef())
    value = factor * layer.joined_constant(branch.value) * (1 + 1e-12)
    value *= (1 + half_unit(layer)) ** 2
    entries = size_of(shape)
    inexact = count_inexact(layer._get_coef())
    passed = Step(entries=entries)
    if isinstance(layer, layers.PartialResidual):
        joined = Beside(passed, branch.rounding)
    else:
        # What is added may have been scaled, and rounded, before.
        passed = Step(1.0, 2, entries=entries, inexact=inexact)
        joined = Sum(passed, Chain(branch.rounding, passed), entries=entries)
    scaled = Chain(joined, Step(factor, 2, entries=entries, inexact=inexact))
    return Bound(value, "branch", rounding=scaled)


@rule(layers.Monotone)
def _monotone(layer, input_shapes, context):
    (shape,) = input_shapes
    branch = context.bound(layer.layer, [shape])
    (outputs,) = output_shapes(layer, input_shapes)
    weights, coefficient = layer.weights_of_inputs(), layer._get_coef()
    factor = magnitude(layer, coefficient)
    # Each output adds the same product with the weights.
    largest = magnitude(layer, weights)
    added = largest * math.sqrt(np.count_nonzero(weights) * outputs[-1])
    value = (factor * branch.value + added) * (1 + 1e-12)
    value *= (1 + half_unit(layer)) ** 2
    entries = max(size_of(shape), size_of(outputs))
    inexact = count_inexact(coefficient)
    scaled = Step(factor, 2, entries=entries, inexact=inexact)
    directed = Step(
        added,
        size_of(shape) + 2,
        entries=entries,
        inexact=count_inexact(weights),
    )
    rounding = Sum(Chain(branch.rounding, scaled), directed, entries=entries)
    return Bound(value, "branch", rounding=rounding)


@rule(keras.layers.TimeDistributed)
def _time_distributed(layer, input_shapes, context):
    inner = [(shape[0], *shape[2:]) for shape in input_shapes]
    bound = context.bound(layer.layer, inner)
    steps = input_shapes[0][1]
    times = math.inf if steps is None else steps
    rounding = Repeated(bound.rounding, times)
    # What else is known is of tensors of another rank.
    return dataclasses.replace(
        bound, rounding=rounding, pull=None, chain=None, is_sum=False
    )
