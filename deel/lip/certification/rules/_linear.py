"""Linear maps, and the layers that are made of one."""

import dataclasses
import math
import typing

import keras
import numpy as np

from deel.lip._backend.variables import host
from deel.lip._constrained import ConstrainedKernel
from deel.lip._numerics.activations import require_monotone
from deel.lip.certification._chain import Ellipsoid
from deel.lip.certification._image_steps import Convolution
from deel.lip.certification._norms import column_norm
from deel.lip.certification._norms import convolution_column_norm
from deel.lip.certification._norms import convolution_norm
from deel.lip.certification._norms import matrix_norm
from deel.lip.certification._norms import nonnegative_convolution_norm
from deel.lip.certification._norms import nonnegative_norm
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import Later
from deel.lip.certification._registry import size_of
from deel.lip.certification._rounding import ELEMENTARY
from deel.lip.certification._rounding import Chain
from deel.lip.certification._rounding import Step
from deel.lip.certification._rounding import Sum
from deel.lip.certification._spectrum import behind_convolution
from deel.lip.certification.rules._steps import FACTORS
from deel.lip.certification.rules._steps import count_inexact
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules._steps import inference_kernel
from deel.lip.certification.rules._steps import magnitude
from deel.lip.certification.rules._steps import spread_norm
from deel.lip.certification.rules.activations import activation_bound


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """What rules know of a linear map.

    Attributes:
        norm: Float, an upper bound.
        method: String, how it was found.
        exact: Boolean, whether it is the norm itself.
        magnified: Function without arguments that returns a bound of the norm
            of the map with absolute values.
        terms: Integer, how many products each output sums.
        matrix: Array `(inputs, outputs)`, the map; None for a convolution.
        convolution: `Convolution`, the map; None if the chain knows it not.
        columns: Float, as of `Step`, where the layer is this map.
    """

    norm: float
    method: str
    exact: bool
    magnified: typing.Callable
    terms: int
    matrix: np.ndarray | None = None
    convolution: Convolution | None = None
    columns: float | None = None

    def step(self, bias, input_shape, output_shape, terms=None):
        """The `Step` of `A x + b`; with `terms` of its transpose."""
        return Step(
            self.norm,
            (terms or self.terms) + (bias is not None),
            # It is at least the norm itself, whatever is known of it.
            magnified=max(self.norm, self.magnified()),
            offset=spread_norm(bias, output_shape)(),
            entries=max(size_of(input_shape), size_of(output_shape)),
            is_product=True,
            columns=None if terms else self.columns,
        )


def of_matrix(matrices):
    """The map of a matrix `(inputs, outputs)`, or of a stack side by side."""
    norm, exact = matrix_norm(matrices)
    return LinearMap(
        norm,
        "singular values" if exact else "Cholesky",
        exact,
        lambda: nonnegative_norm(np.abs(matrices)),
        matrices.shape[-2],
        matrices if matrices.ndim == 2 else None,
        columns=column_norm(matrices),
    )


def of_convolution(kernel, axes, exact=True):
    """The map of a convolution.

    Args:
        kernel: Array `(taps..., groups, inputs, outputs)`.
        axes: List of `Axis`.
        exact: Boolean, whether the layer is all of the convolution.
    """
    norm, method, is_exact = convolution_norm(kernel, axes)
    *taps, _, inputs, _ = kernel.shape
    return LinearMap(
        norm,
        method,
        exact and is_exact,
        lambda: nonnegative_convolution_norm(np.abs(kernel), axes),
        math.prod(taps) * inputs,
        columns=convolution_column_norm(kernel, axes),
    )


def linear_shape(layer, shape):
    """Shape of the output before the activation, which may change it."""
    if isinstance(layer, ConstrainedKernel):
        return layer._linear_output_shape(shape)
    return tuple(layer.compute_output_shape(shape))


def activated(layer, linear, input_shape, context):
    """Bound of a linear map that is followed by the layer's activation.

    Args:
        layer: The layer.
        linear: `LinearMap`.
        input_shape: Tuple.
        context: That of the rule.
    """
    shape = linear_shape(layer, input_shape)
    activation = activation_bound(layer.activation, shape, context)
    chain = _chain_of(linear, activation, input_shape)
    rounding = Later(lambda: linear.step(layer.bias, input_shape, shape))
    if layer.activation is keras.activations.linear:
        value = float(linear.norm * activation.value)
        return Bound(
            value, linear.method, linear.exact, rounding=rounding, chain=chain
        )
    return Bound(
        float(linear.norm * activation.value),
        f"{linear.method}, activation",
        rounding=Chain(rounding, activation.rounding),
        chain=chain,
    )


def _chain_of(linear, activation, input_shape):
    """The `chain` of a map that an activation follows."""
    is_matrix = linear.matrix is not None and len(input_shape) == 2
    if linear.convolution is None and not is_matrix:
        return None

    def chain(spread):
        if linear.convolution is not None:
            spread = behind_convolution(spread, linear.convolution, linear.norm)
        else:
            spread = spread.through_matrix(linear.matrix, linear.norm)
        if activation.chain is None:
            return Ellipsoid(spread.radius * activation.value)
        return activation.chain(spread)

    return chain


def symmetric(layer, linear, terms_back, shape, context):
    """Bound of `k x - 2/k A^T f(A x + b)`, slopes of f from 0 to 1.

    Its Jacobian is symmetric, with eigenvalues from `k - 2/k ||A||^2` to k.

    Args:
        layer: The layer.
        linear: `LinearMap`, A.
        terms_back: Integer, how many products each output sums.
        shape: Tuple, of the input.
        context: That of the rule.
    """
    require_monotone(layer.activation)
    k = layer.k_coef_lip
    constant = max(k, 2.0 / k * linear.norm**2 - k) * (1 + 1e-12)
    constant *= (1 + half_unit(layer)) ** 2

    def make():
        channels = layer.kernel.shape[-1]
        hidden = (None, size_of(shape) // shape[-1] * channels)
        entries = max(size_of(shape), size_of(hidden))
        back = Chain(
            linear.step(None, hidden, shape, terms_back),
            scaling(2.0 / k, 3, entries),
        )
        return stepped(
            layer, linear, scaling(k, 2, entries), back, shape, hidden, context
        )

    value = float(magnitude(layer, constant))
    return Bound(value, linear.method, rounding=Later(make))


def scaling(factor, terms, entries):
    """The step of a product with a number."""
    inexact = count_inexact(factor)
    return Step(factor, terms, entries=entries, inexact=inexact)


def stepped(layer, linear, passed, back, shape, hidden, context):
    """What a residual block with a step that is computed by itself rounds.

    The step may be twice as long as the output, before they cancel.

    Args:
        layer: The layer that maps to the hidden values.
        linear: `LinearMap` of it, without its activation.
        passed: What is rounded of the input that the step is added to.
        back: What is rounded on the way from the hidden values to the step.
        shape: Tuple, of the input.
        hidden: Tuple, of the hidden values.
        context: That of the rule.
    """
    activation = activation_bound(layer.activation, hidden, context)
    there = linear.step(layer.bias, shape, hidden)
    return Sum(
        passed,
        Chain(there, activation.rounding, back),
        entries=max(size_of(shape), size_of(hidden)),
    )


def sandwich_norm(there, back, map_of):
    """Bound of the slopes of `B^T f(A x)`, those of f from 0 to 1.

    The smaller one of the product of norms and of half the square of the norm
    of both side by side: see the note of `deel.lip.layers.sandwich`. It bounds
    smaller factors of hidden values as well, which are smaller slopes.

    Args:
        there: Array `(taps..., inputs, hidden)`, the kernel of A.
        back: Array `(taps..., outputs, hidden)`, the kernel of B, which is read
            from the outputs.
        map_of: Function of such a kernel, its `LinearMap`.

    Returns:
        Pair: a float, and how it was found.
    """
    both = map_of(np.concatenate([there, back], axis=-2))
    product = map_of(there).norm * map_of(back).norm
    return min(product, 0.5 * both.norm**2) * (1 + 1e-12), both.method


# Roundings behind `exp(4 tanh(psi / 4))`: a hyperbolic tangent of a number that
# is not large, four times; an exponential of one up to four.
_OF_SCALES = FACTORS + (4 * 2 + 5) * ELEMENTARY


def paired(layer, map_of, shape, hidden, context):
    """Bound of `A^T P f(P^-1 B x + b)`, both kernels in one.

    Args:
        layer: The layer, one of `deel.lip.layers._pairs`.
        map_of: Function of a kernel, its `LinearMap`.
        shape: Tuple, of the input.
        hidden: Tuple, of the hidden values.
        context: That of the rule.
    """
    kernel = inference_kernel(layer)
    before, after = (host(x).astype("float64") for x in layer.factors())
    halves = [-kernel.shape[-1]]
    # Only products of the two count; see the note of the layer. They are 2 / k,
    # but for how the factors were rounded.
    products = np.maximum(before * after, 2.0 / layer.k_coef_lip)
    there, back = np.split(kernel * np.sqrt(products), halves, axis=-2)
    value, method = sandwich_norm(there, back, map_of)
    value *= (1 + half_unit(layer)) ** 2

    def make():
        there, back = np.split(kernel, halves, axis=-2)
        linear = map_of(back * after)
        outputs = (*hidden[:-1], back.shape[-2])
        terms = back[..., 0, :].size + _OF_SCALES
        step = linear.step(None, hidden, outputs, terms)
        # Roots of two are other numbers in float32.
        step = dataclasses.replace(step, inexact=2)
        first = map_of(there * before)
        return between(layer, first, step, shape, hidden, context, _OF_SCALES)

    return Bound(value, method, rounding=Later(make))


def between(layer, linear, back, shape, hidden, context, terms=0):
    """What `f(A x + b) B` rounds.

    Args:
        layer: The layer that has the bias and the activation.
        linear: `LinearMap` of A.
        back: Step, what is rounded of the hidden values.
        shape: Tuple, of the input.
        hidden: Tuple, of the hidden values.
        context: That of the rule.
        terms: Integer, how many roundings stand behind an entry of A.
    """
    activation = activation_bound(layer.activation, hidden, context)
    first = linear.step(layer.bias, shape, hidden, linear.terms + terms)
    return Chain(first, activation.rounding, back)
