"""Residual layers with a symmetric Jacobian."""

from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import Later
from deel.lip.certification._registry import size_of
from deel.lip.certification._rounding import Chain
from deel.lip.certification._rounding import Step
from deel.lip.certification._rounding import Sum
from deel.lip.certification.rules._linear import linear_step
from deel.lip.certification.rules._steps import count_inexact
from deel.lip.certification.rules._steps import half_unit
from deel.lip.certification.rules._steps import magnitude
from deel.lip.certification.rules.activations import activation_bound
from deel.lip.layers import unconstrained


def symmetric_bound(layer, norm, magnified, terms, terms_back, shape, context):
    """Bound of `k x - 2/k A^T f(A x + b)`, slopes of f from 0 to 1.

    Its Jacobian is symmetric, with eigenvalues from `k - 2/k ||A||^2` to k.

    Args:
        layer: The layer.
        norm: As of `_activated`.
        magnified: As of `_activated`.
        terms: Integer, how many products each hidden value sums.
        terms_back: Integer, how many products each output sums.
        shape: Tuple, of the input.
        context: That of the rule.
    """
    unconstrained.require_monotone(layer.activation)
    value, method, _ = norm
    k = layer.k_coef_lip
    constant = max(k, 2.0 / k * value**2 - k) * (1 + 1e-12)
    constant *= (1 + half_unit(layer)) ** 2

    def make():
        growth = magnified()
        channels = layer.kernel.shape[-1]
        hidden = (None, size_of(shape) // shape[-1] * channels)
        entries = max(size_of(shape), size_of(hidden))
        activation = activation_bound(layer.activation, hidden, context)
        # The step may be twice as long as the output, before they cancel.
        return Sum(
            Step(k, 2, entries=entries, inexact=count_inexact(k)),
            Chain(
                linear_step(value, growth, terms, layer.bias, shape, hidden),
                activation.rounding,
                linear_step(value, growth, terms_back, None, hidden, shape),
                Step(
                    2.0 / k, 3, entries=entries, inexact=count_inexact(2.0 / k)
                ),
            ),
            entries=entries,
        )

    return Bound(
        float(magnitude(layer, constant)), method, False, rounding=Later(make)
    )
