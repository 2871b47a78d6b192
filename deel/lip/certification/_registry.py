"""The table of rules, and what is checked of each."""

import dataclasses
import functools
import inspect
import math
import typing

import keras
import numpy as np

from deel.lip._backend.variables import host
from deel.lip._constrained import ConstrainedKernel
from deel.lip.certification._rounding import Step


@dataclasses.dataclass(frozen=True)
class Bound:
    """A proven upper bound of the Lipschitz constant of a layer.

    Attributes:
        value: Float. With several inputs, the constant for the Euclidean norm
            of all of them together.
        method: String, how it was found.
        exact: Boolean, whether it is the constant, but for rounding.
        weights: None, or a tuple with a constant for each input.
        adds: Boolean. With `weights`, whether what the inputs contribute adds
            up, instead of standing side by side.
        rounding: What the layer computes in floating point: a `Step`. None for
            one product with a matrix, of the norm `value`, in which every input
            is a term of every output.
        pull: None, or what is known beyond `value`: a function of a list with a
            nonnegative float or array a for each output, that returns one with
            such a b for each input. For any two inputs, the squares of the
            changes of the outputs times `a**2` add up to at most those of the
            inputs times `b**2`. Arrays have shapes without the batch axis.
        chain: None, or a function for a layer of vectors: from the `Ellipsoid`
            of the differences of its input to that of its output; see
            `deel.lip.certification._chain`.
        is_sum: Boolean, whether the output is the sum of the inputs, without
            factors.

    Example:

    >>> import math
    >>> from deel.lip.certification import Bound, Step
    >>> def bound(layer, input_shapes):  # Of `3 * x + 1`, for `register_bound`.
    ...     count = math.prod(input_shapes[0][1:])
    ...     ones = math.sqrt(count)
    ...     step = Step(3.0, terms=2, offset=ones, entries=count)
    ...     return Bound(3.0, "slope", exact=True, rounding=step)
    >>> bound(None, [(None, 4)]).rounding.offset
    2.0
    """

    value: float
    method: str
    exact: bool = False
    weights: tuple | None = None
    adds: bool = False
    rounding: typing.Callable | None = None
    pull: typing.Callable | None = None
    chain: typing.Callable | None = None
    is_sum: bool = False


class Later:
    """A step that is made when it is first asked for.

    Args:
        make: Function without arguments that returns a step.
    """

    def __init__(self, make):
        self._make = functools.cache(make)

    def __call__(self, arithmetic):
        return self._make()(arithmetic)


_BOUNDS = {}

# Classes whose functions are those of this library, not of a user.
_OWN = set()

_NO_CONSTANT = {
    keras.layers.LayerNormalization: "divides by the deviation of each "
    "sample, which can be as small as the root of epsilon",
    keras.layers.GroupNormalization: "divides by the deviation of each "
    "sample, which can be as small as the root of epsilon",
    keras.layers.UnitNormalization: "divides by the norm of each sample, "
    "which can be as small as epsilon",
    **{
        getattr(keras.layers, name): "divides by the root of the mean of the "
        "squares of each sample, which can be as small as the root of epsilon"
        for name in ["RMSNormalization"]
        if hasattr(keras.layers, name)
    },
    keras.layers.Multiply: "multiplies its inputs, which are not bounded",
    keras.layers.Dot: "multiplies its inputs, which are not bounded",
    keras.layers.MultiHeadAttention: "multiplies its inputs, which are not "
    "bounded",
    keras.layers.Attention: "multiplies its inputs, which are not bounded",
    **{
        getattr(keras.layers, name): "multiplies its gates by its states, and "
        "the inputs move both; `OrthogonalRNN` of this library is bounded, and "
        "so is `SimpleRNN`"
        for name in ("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "GRU", "LSTM")
    },
    keras.layers.Masking: "jumps where a step has the value of the mask",
    keras.layers.Embedding: "maps integers; bound a model of the vectors that "
    "it returns",
    keras.layers.Resizing: "interpolates with places and weights that depend "
    "on the backend and are rounded to float32; resize images before the "
    "network, or in it by pooling, `UpSampling2D` or `InvertibleUpSampling`",
}


def register_bound(layer_class, bound=None):
    """Tells `lipschitz_bound` the constant of a class of layers.

    It counts for this class and not for its subclasses. With one argument it
    is a decorator of the function.

    Args:
        layer_class: A class of Keras layers.
        bound: Function `(layer, input_shapes)` that returns a `Bound`, or a
            float, for the inference function of the layer. `input_shapes` is a
            list of tuples, one for each input, with the batch axis first. A
            layer that holds others takes a function of three arguments, the
            last of which has the method `bound(inner, input_shapes)`: the
            `Bound` of a layer or model inside.

    Returns:
        The function.

    Example:

    >>> import keras
    >>> from deel.lip.certification import lipschitz_bound, register_bound
    >>> class Doubled(keras.layers.Layer):
    ...     def call(self, x):
    ...         return 2 * x
    >>> _ = register_bound(Doubled, lambda layer, input_shapes: 2.0)
    >>> lipschitz_bound(keras.Sequential([keras.Input((3,)), Doubled()]))
    2.0
    """
    is_layer = isinstance(layer_class, type) and issubclass(
        layer_class, keras.layers.Layer
    )
    if not is_layer:
        raise ValueError(
            "`register_bound` expects a class of Keras layers. "
            f"Received: layer_class={layer_class}"
        )
    if bound is None:
        return lambda function: register_bound(layer_class, function)
    if not callable(bound):
        raise ValueError(
            "Expected a function `(layer, input_shapes) -> bound`. "
            f"Received: bound={bound}"
        )
    takes_context = _takes_context(bound)
    _BOUNDS[layer_class] = bound if takes_context else _without_context(bound)
    return bound


def _takes_context(bound):
    try:
        parameters = list(inspect.signature(bound).parameters.values())
    except (TypeError, ValueError):
        return False
    # One with a default holds a value of the function's own.
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    needed = [x for x in parameters if x.kind in kinds and x.default is x.empty]
    return len(needed) == 3


def _without_context(bound):
    @functools.wraps(bound)
    def rule(layer, input_shapes, context):
        return bound(layer, input_shapes)

    return rule


def layer_bound(layer, input_shapes, context):
    """Returns the `Bound` of a layer that is not a model.

    Args:
        layer: A built layer.
        input_shapes: List of tuples.
        context: What a rule may ask besides, a `Context`.
    """
    check_finite(layer)
    constant = context.given(layer)
    if constant is not None:
        _refuse_masks(layer)
        bound = Bound(checked_constant(layer.name, constant), "given")
        return rounded_like_a_product(layer, bound, input_shapes)
    if type(layer) not in _BOUNDS:
        raise ValueError(_unknown(layer))
    if not keras.backend.is_float_dtype(layer.compute_dtype):
        raise ValueError(
            "Rounding to whole numbers has no Lipschitz constant. Received: "
            f"layer '{layer.name}', which computes in {layer.compute_dtype}"
        )
    if type(layer) not in _OWN:
        _refuse_masks(layer)
    bound = _BOUNDS[type(layer)](layer, input_shapes, context)
    if not isinstance(bound, Bound):
        bound = Bound(checked_constant(layer.name, bound), "registered")
    for value in (bound.value, *(bound.weights or ())):
        checked_constant(layer.name, value)
    is_registered = bound.method == "registered"
    if len(input_shapes) > 1 and bound.weights is None and not is_registered:
        raise ValueError(
            f"Layer '{layer.name}' of type {type(layer).__name__} takes "
            f"one tensor. Received: {len(input_shapes)} tensors"
        )
    if bound.rounding is None:
        return rounded_like_a_product(layer, bound, input_shapes)
    _check_rounding(layer, bound)
    return bound


def _refuse_masks(layer):
    """Raises ValueError for a layer that may hand a mask to those behind it.

    With a mask, these compute something else than what is bounded: a mean of
    fewer values, say. Layers that only pass masks on are known.
    """
    for inner in layer._flatten_layers():
        makes_mask = type(inner).compute_mask is not _PASSES_ON
        if makes_mask and type(inner) not in _OWN:
            raise ValueError(
                "Layers are bounded as they are without a mask. Received: "
                f"layer '{inner.name}' of type {type(inner).__name__}, whose "
                "`compute_mask` may make one"
            )


_PASSES_ON = keras.layers.Layer.compute_mask


def _check_rounding(layer, bound):
    """Raises ValueError for a step that contradicts the bound it belongs to."""
    step = bound.rounding
    if not callable(step):
        raise ValueError(
            f"What layer '{layer.name}' rounds is a `Step`, or a function "
            "of an arithmetic. Received: "
            f"rounding={step} (of type {type(step).__name__})"
        )
    if not isinstance(step, Step):
        return
    least = max(bound.weights) if bound.weights else bound.value
    numbers = [step.constant, step.growth, step.offset, step.terms]
    # Of images of unknown size, some are infinite.
    is_sound = all(x >= 0 for x in numbers) and math.isfinite(step.constant)
    if not is_sound or min(step.constant, step.growth) < least * (1 - 1e-9):
        raise ValueError(
            f"The step of layer '{layer.name}' needs finite numbers, zero or "
            "greater, and a constant that is not below that of the bound, "
            f"{least}. Received: rounding={step}"
        )


def rounded_like_a_product(layer, bound, input_shapes):
    """A bound of which nothing is known but the constant; see `Bound`."""

    def make():
        outputs = output_shapes(layer, input_shapes)
        read = sum(size_of(shape) for shape in input_shapes)
        written = sum(size_of(shape) for shape in outputs)
        zeros = [np.zeros((1, *x[1:]), "float32") for x in input_shapes]
        of_zeros = layer(zeros if len(zeros) > 1 else zeros[0], training=False)
        squares = [
            np.sum(host(x).astype("float64") ** 2)
            for x in keras.tree.flatten(of_zeros)
        ]
        return Step(
            bound.value,
            terms=read + 1,
            # A matrix and its absolute values have the same Frobenius norm.
            magnified=bound.value * math.sqrt(min(read, written)),
            offset=math.sqrt(sum(squares)) * (1 + 1e-3),
            entries=max(read, written),
            is_product=True,
            # It may have a constant such as 0.1; nobody has said.
            inexact=1,
        )

    return dataclasses.replace(bound, rounding=Later(make))


def output_shapes(layer, input_shapes):
    """Shapes of the outputs of a layer, a list of tuples."""
    if not isinstance(layer, keras.layers.Layer):
        return layer.output_shapes(input_shapes)
    tensors = [
        keras.KerasTensor(shape, layer.compute_dtype) for shape in input_shapes
    ]
    outputs = layer.compute_output_spec(
        tensors if len(tensors) > 1 else tensors[0]
    )
    return [tuple(x.shape) for x in keras.tree.flatten(outputs)]


def size_of(shape):
    """Number of values of a sample; infinite where it is not known."""
    return math.inf if None in shape[1:] else math.prod(shape[1:])


def checked_constant(name, value):
    """Returns a constant that a user gave as a float, zero or more."""
    value = float(value)
    if not math.isfinite(value) or value < 0:
        raise ValueError(
            "A Lipschitz constant is a finite number, zero or greater. "
            f"Received: {value} for '{name}'"
        )
    return value


def check_finite(layer):
    """Raises ValueError if a weight of a layer is NaN or infinite."""
    for variable in layer.weights:
        if not keras.backend.is_float_dtype(variable.dtype):
            continue
        values = host(variable).astype("float64")
        if not np.all(np.isfinite(values)):
            raise ValueError(
                "A network with NaN or infinite weights has no Lipschitz "
                f"constant. Received: layer '{layer.name}' with "
                f"{int(np.sum(~np.isfinite(values)))} such values out of "
                f"{values.size} in `{variable.name}`"
            )


def _unknown(layer):
    name = type(layer).__name__
    reason = "is not known"
    if type(layer) in _NO_CONSTANT:
        reason = f"is not bounded: it {_NO_CONSTANT[type(layer)]}"
    advice = ""
    if isinstance(layer, ConstrainedKernel):
        advice = "Certify what `vanilla_export()` of the model returns. "
    return (
        f"The Lipschitz constant of layer '{layer.name}' of type {name} "
        f"{reason}. {advice}If you can prove one, pass "
        f"`constants={{'{layer.name}': value}}`, or register a function for "
        "the class with "
        f"`deel.lip.certification.register_bound({name}, function)`. "
        f"Received: {layer}"
    )


def rule(*classes):
    """Decorator: the function gives the bound of these classes."""

    def decorate(function):
        for layer_class in classes:
            register_bound(layer_class, function)
            _OWN.add(layer_class)
        return function

    return decorate
