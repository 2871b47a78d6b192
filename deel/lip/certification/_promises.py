"""Constants that hold whatever training does to the weights."""

import itertools
import math
import warnings

import keras

from deel.lip._graph import nodes_of
from deel.lip._lipschitz import KnownConstant
from deel.lip._lipschitz import LipschitzLayer
from deel.lip._lipschitz import warn_of_activation
from deel.lip.certification._walk import Walk

# What rules may add to a constant of one.
ROUNDING_OF_RULES = 1e-5


def promised_constant(layer, within=None):
    """Constant of a layer that keeps it while it is trained.

    Layers that know a constant of their own count with it, also inside of
    others; layers without weights with what their rule says.

    Args:
        layer: A layer or model, built or not.
        within: The model that holds it, whose calls count; None for a call
            that is still to come, of which the shapes are not known.

    Returns:
        Float, an upper bound; None if there is none, or none is known.
    """
    is_chain = isinstance(layer, keras.Sequential)
    if is_chain and not layer.built and not isinstance(layer, KnownConstant):
        constants = [promised_constant(x) for x in layer.layers]
        return None if None in constants else math.prod(constants)
    known = {
        inner: constant_of_all_outputs(inner)
        for inner in layer._flatten_layers()
        if isinstance(inner, KnownConstant)
    }
    if layer in known:
        return known[layer]
    kept = {id(weight) for inner in known for weight in inner.weights}
    is_trained = any(id(weight) not in kept for weight in layer.weights)
    if is_trained or None in known.values():
        return None
    if layer._inbound_nodes:
        # At each of its places: what is cut off at a border may count.
        constants = [
            _bound(layer, shapes, known)
            for shapes in _known_shapes(layer, within)
        ]
        return None if None in constants else max(constants)
    constants = (_bound(layer, x, known) for x in _possible_shapes(layer))
    return next((x for x in constants if x is not None), None)


def constant_of_all_outputs(layer):
    """`_whole_constant` of the vector of outputs, also where it is by output.

    Args:
        layer: A `KnownConstant`.
    """
    constant = layer._whole_constant()
    return None if constant is None else constant * factor_of_all_outputs(layer)


def factor_of_all_outputs(layer):
    """Constant of all outputs, where a layer promises that of each of them."""
    is_chain = isinstance(layer, keras.Sequential)
    if is_chain and isinstance(layer, KnownConstant) and layer._layers:
        return factor_of_all_outputs(layer._layers[-1])
    by_output = getattr(layer, "disjoint_neurons", False)
    return math.sqrt(layer.units) if by_output else 1.0


def _bound(layer, shapes, known):
    try:
        return Walk(known).bound_inside(layer, shapes).value
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ):
        # No rule; weights that are still to be made; or another rank.
        return None


def _known_shapes(layer, within):
    """Lists of the shapes of the inputs of a layer, one for each call."""
    calls = [
        [tuple(x.shape) for x in node.input_tensors]
        for node in layer._inbound_nodes
        if within is not None and node in nodes_of(within)
    ]
    if calls or isinstance(layer, keras.Model):
        return calls or [[tuple(x.shape) for x in layer.inputs]]
    # Where it was called is somewhere else.
    tensors = layer._inbound_nodes[-1].input_tensors
    return [[(None,) * len(x.shape) for x in tensors]]


def _possible_shapes(layer):
    """Yields lists of shapes that the inputs of a layer may have.

    A layer that was never called may take any rank.
    """
    if isinstance(layer, keras.Model) and layer.built:
        yield [tuple(x.shape) for x in layer.inputs]
        return
    for rank, inputs in itertools.product(range(2, 6), (1, 2)):
        yield [(None,) * rank] * inputs


def warn_unless_promised(model, layers, stacklevel):
    """Warns of layers whose constant is not known, or is more than one.

    Returns:
        Dictionary from ids of layers to their constants, where those are known.
    """
    known = {}
    for layer in layers:
        if isinstance(layer, LipschitzLayer):
            warn_of_activation(layer, stacklevel + 1)
            continue
        if isinstance(layer, keras.layers.InputLayer):
            continue
        constant = promised_constant(layer, model)
        if constant is not None:
            known[id(layer)] = max(1.0, constant)
            if constant <= 1 + ROUNDING_OF_RULES:
                continue
        what = (
            " as far as is known"
            if constant is None
            else f": its constant is {constant:.6g}"
        )
        warnings.warn(
            f"Layer '{layer.name}' of type {type(layer).__name__} is not a "
            f"1-Lipschitz layer{what}. No `k_coef_lip` of '{model.name}' "
            "accounts for it; `lipschitz_constant()` does.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
    return known
