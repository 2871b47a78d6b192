"""Centering and normalization."""

import math

import keras
import numpy as np
from keras import ops

from deel.lip import layers
from deel.lip._backend.variables import host
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import rule
from deel.lip.certification.rules._steps import FACTORS
from deel.lip.certification.rules._steps import count_inexact
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules._steps import magnitude
from deel.lip.certification.rules._steps import spread_norm
from deel.lip.certification.rules._steps import step_of


@rule(layers.LayerCentering)
def _layer_centering(layer, input_shapes):
    (shape,) = input_shapes
    value = magnitude(layer, layer.k_coef_lip)
    means = [shape[axis] for axis in layer._axes]
    terms = math.inf if None in means else math.prod(means) + FACTORS
    rounding = step_of(
        layer,
        input_shapes,
        value,
        terms,
        # The mean and what it is subtracted from, both at most the input.
        magnified=2 * value,
        offset=spread_norm(layer.bias, shape),
        inexact=count_inexact(layer.k_coef_lip),
        partial=max(value, 1.0) * math.sqrt(terms),
    )
    return Bound(value, "formula", True, rounding=rounding)


@rule(layers.BatchCentering)
def _batch_centering(layer, input_shapes):
    value = magnitude(layer, layer.k_coef_lip)
    rounding = _shifted(
        layer, input_shapes, value, layer.mean, [layer.k_coef_lip]
    )
    return Bound(value, "formula", True, rounding=rounding)


def _shifted(layer, input_shapes, value, mean, constants=()):
    """The step of `(x - mean) * factor + bias`, which may cancel.

    Args:
        layer: The layer, with a `bias`.
        input_shapes: List of tuples.
        value: Float, the factor.
        mean: Variable or array, or None.
        constants: Sequence of floats, what the layer multiplies by or adds
            that is no variable.
    """
    (shape,) = input_shapes
    shift, added = (
        spread_norm(mean, shape, value),
        spread_norm(layer.bias, shape),
    )
    return step_of(
        layer,
        input_shapes,
        value,
        FACTORS,
        offset=lambda: shift() + added(),
        inexact=count_inexact(*constants),
    )


@rule(layers.BatchLipNorm)
def _batch_lip_norm(layer, input_shapes):
    factor = float(ops.convert_to_numpy(layer.scaling_factor(training=False)))
    # The factor is a float32 root.
    value = abs(factor) * (1 + 1e-6) * (1 + half_unit(layer))
    mean = layer.mean if layer.centering else None
    rounding = _shifted(layer, input_shapes, value, mean)
    return Bound(value, "scaling factor", True, rounding=rounding)


@rule(layers.ScaleBiasLayer)
def _scale_bias(layer, input_shapes):
    value = magnitude(layer, layer.scalar)
    constants, mean = [layer.scalar], None
    if layer.mean is not None:
        mean = np.asarray(layer.mean, "float64")
        constants.append(mean)
    rounding = _shifted(layer, input_shapes, value, mean, constants)
    return Bound(value, "formula", True, rounding=rounding)


@rule(keras.layers.Rescaling)
def _rescaling(layer, input_shapes):
    scale = np.asarray(layer.scale, "float64")
    (shape,) = input_shapes
    for values in (scale, np.asarray(layer.offset)):
        # The batch axis counts as one value.
        kept = (1, *shape[1:])[len(shape) - values.ndim :]
        if values.ndim > len(shape) or any(
            n not in (1, size)
            for n, size in zip(values.shape, kept, strict=True)
        ):
            raise ValueError(
                f"Layer '{layer.name}' repeats its input to fit its scale or "
                "offset, or may do so. Expected shapes that fit an input of "
                f"shape {shape}. Received: shape={values.shape}"
            )
    value = magnitude(layer, scale)
    offset = spread_norm(np.asarray(layer.offset, "float64"), shape)
    rounding = step_of(
        layer,
        input_shapes,
        value,
        4,
        offset=offset,
        inexact=count_inexact(scale, layer.offset),
    )
    return Bound(value, "formula", True, rounding=rounding)


@rule(keras.layers.Normalization)
def _normalization(layer, input_shapes):
    (shape,) = input_shapes
    deviation = np.sqrt(host(layer.variance).astype("float64"))
    deviation = np.maximum(deviation, keras.backend.epsilon())
    factors = deviation if layer.invert else 1 / deviation
    value = float(np.max(factors)) * (1 + 1e-6)
    value *= (1 + half_unit(layer)) ** 3
    mean = spread_norm(layer.mean, shape, 1.0 if layer.invert else factors)
    # Statistics that were learned are float32 numbers.
    given = [
        x for x in (layer.input_mean, layer.input_variance) if x is not None
    ]
    if np.any(deviation <= keras.backend.epsilon()):
        given.append(keras.backend.epsilon())
    given = count_inexact(*given)
    rounding = step_of(
        layer, input_shapes, value, FACTORS, offset=mean, inexact=given
    )
    return Bound(value, "formula", True, rounding=rounding)


@rule(keras.layers.BatchNormalization)
def _batch_normalization(layer, input_shapes):
    moving = host(layer.moving_variance).astype("float64")
    variance = moving + layer.epsilon
    if np.any(variance <= 0):
        raise ValueError(
            f"The moving variance of layer '{layer.name}' plus epsilon must "
            f"be greater than zero. Received: {float(np.min(variance))}"
        )
    factors = 1 / np.sqrt(variance)
    if layer.scale:
        factors = factors * np.abs(host(layer.gamma).astype("float64"))
    # A variance that is negative cancels, and its sum with epsilon is rounded.
    cancelled = float(np.max((np.abs(moving) + layer.epsilon) / variance))
    excess = 2e-7 * cancelled
    # Float32 roots are wrong by less.
    value = float(np.max(factors)) * (1 + 1e-6 + excess)
    value *= (1 + half_unit(layer)) ** 4
    terms = FACTORS + math.ceil(4 * cancelled)
    chain = None
    if layer.axis in (-1, len(input_shapes[0]) - 1):
        by_value = factors * (value / float(np.max(factors) or 1.0))
        if layer.scale:
            # In which direction a vector moves is up to the signs.
            by_value *= np.sign(host(layer.gamma).astype("float64"))

        def chain(spread):
            return spread.through_factors(by_value)

    shift = spread_norm(layer.moving_mean, input_shapes[0], factors)
    bias = spread_norm(layer.beta if layer.center else None, input_shapes[0])
    rounding = step_of(
        layer,
        input_shapes,
        value,
        terms,
        offset=lambda: shift() + bias(),
        # Only epsilon is read, and its share of the sum counts.
        inexact=count_inexact(layer.epsilon)
        * float(np.max(layer.epsilon / variance)),
    )
    return Bound(value, "largest factor", True, rounding=rounding, chain=chain)
