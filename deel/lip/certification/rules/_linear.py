"""Linear maps that an activation follows."""

import keras

from deel.lip._constrained import ConstrainedKernel
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import Later
from deel.lip.certification._registry import size_of
from deel.lip.certification._rounding import Chain
from deel.lip.certification._rounding import Step
from deel.lip.certification.rules._steps import spread_norm
from deel.lip.certification.rules.activations import activation_bound


def activated(layer, norm, magnified, terms, input_shape, context):
    """Bound of a linear map that is followed by the layer's activation.

    Args:
        layer: The layer.
        norm: Tuple of a float, a method, and whether that is exact.
        magnified: Function without arguments that returns the norm of the map
            with absolute values.
        terms: Integer, how many products are summed.
        input_shape: Tuple.
        context: That of the rule.
    """
    value, method, exact = norm
    shape = linear_shape(layer, input_shape)
    activation = activation_bound(layer.activation, shape, context)
    rounding = Later(
        lambda: linear_step(
            value, magnified(), terms, layer.bias, input_shape, shape
        )
    )
    if layer.activation is not keras.activations.linear:
        method = f"{method}, activation"
        exact = False
        rounding = Chain(rounding, activation.rounding)
    return Bound(
        float(value * activation.value), method, exact, rounding=rounding
    )


def linear_step(norm, magnified, terms, bias, input_shape, output_shape):
    """The step of `A x + b`; see `activated`."""
    return Step(
        norm,
        terms + (bias is not None),
        # It is at least the norm itself, whatever is known of it.
        magnified=max(norm, magnified),
        offset=spread_norm(bias, output_shape)(),
        entries=max(size_of(input_shape), size_of(output_shape)),
        is_product=True,
    )


def linear_shape(layer, shape):
    """Shape of the output before the activation, which may change it."""
    if isinstance(layer, ConstrainedKernel):
        return layer._linear_output_shape(shape)
    return tuple(layer.compute_output_shape(shape))
