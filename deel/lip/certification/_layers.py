"""The Lipschitz constant of each type of layer, from its weights.

One table holds them all: a function `(layer, input_shapes) -> Bound` for each
class. Only the class itself counts, not its subclasses, which may compute
something else.
"""

import dataclasses
import functools
import math
import typing

import keras
import numpy as np
from keras import ops

from deel.lip import layers
from deel.lip._constrained import ConstrainedKernel
from deel.lip._slopes import SLOPES
from deel.lip._variables import host
from deel.lip.certification._norms import Axis
from deel.lip.certification._norms import convolution_norm
from deel.lip.certification._norms import matrix_norm
from deel.lip.certification._norms import nonnegative_convolution_norm
from deel.lip.certification._norms import nonnegative_norm
from deel.lip.certification._rounding import ELEMENTARY
from deel.lip.certification._rounding import Beside
from deel.lip.certification._rounding import Chain
from deel.lip.certification._rounding import Repeated
from deel.lip.certification._rounding import Step
from deel.lip.certification._rounding import Sum
from deel.lip.layers import unconstrained
from deel.lip.layers.conv_factor import spatial_shape


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

_NO_CONSTANT = {
    keras.layers.LayerNormalization: "divides by the deviation of each "
    "sample, which can be as small as the root of epsilon",
    keras.layers.GroupNormalization: "divides by the deviation of each "
    "sample, which can be as small as the root of epsilon",
    keras.layers.UnitNormalization: "divides by the norm of each sample, "
    "which can be as small as epsilon",
    keras.layers.Multiply: "multiplies its inputs, which are not bounded",
    keras.layers.Dot: "multiplies its inputs, which are not bounded",
    keras.layers.MultiHeadAttention: "multiplies its inputs, which are not "
    "bounded",
    keras.layers.Attention: "multiplies its inputs, which are not bounded",
    keras.layers.Masking: "jumps where a step has the value of the mask",
    keras.layers.Embedding: "maps integers",
}


# Blocks whose constant is that of the layer or model inside, and a formula.
BRANCHED = (layers.PartialResidual, layers.PrescaledResidual)


def register_bound(layer_class, bound=None):
    """Tells `lipschitz_bound` the constant of a class of layers.

    It counts for this class and not for its subclasses. With one argument it
    is a decorator of the function.

    Args:
        layer_class: A class of Keras layers.
        bound: Function `(layer, input_shapes)` that returns a `Bound`, or a
            float, for the inference function of the layer. `input_shapes` is a
            list of tuples, one for each input, with the batch axis first.

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
    _BOUNDS[layer_class] = bound
    return bound


def layer_bound(layer, input_shapes, constants):
    """Returns the `Bound` of a layer that is not a model.

    Args:
        layer: A built layer.
        input_shapes: List of tuples.
        constants: Dictionary from names or classes of layers to floats.
    """
    check_finite(layer)
    for key in (layer.name, type(layer)):
        if key in constants:
            _refuse_masks(layer)
            bound = Bound(checked_constant(key, constants[key]), "given")
            return _rounded_like_a_product(layer, bound, input_shapes)
    if type(layer) not in _BOUNDS:
        raise ValueError(_unknown(layer))
    if not keras.backend.is_float_dtype(layer.compute_dtype):
        raise ValueError(
            "Rounding to whole numbers has no Lipschitz constant. Received: "
            f"layer '{layer.name}', which computes in {layer.compute_dtype}"
        )
    if type(layer) not in _OWN:
        _refuse_masks(layer)
    bound = _BOUNDS[type(layer)](layer, input_shapes)
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
        return _rounded_like_a_product(layer, bound, input_shapes)
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
    is_sound = all(math.isfinite(x) and x >= 0 for x in numbers)
    if not is_sound or min(step.constant, step.growth) < least * (1 - 1e-9):
        raise ValueError(
            f"The step of layer '{layer.name}' needs finite numbers, zero or "
            "greater, and a constant that is not below that of the bound, "
            f"{least}. Received: rounding={step}"
        )


def _rounded_like_a_product(layer, bound, input_shapes):
    """A bound of which nothing is known but the constant; see `Bound`."""

    def make():
        outputs = output_shapes(layer, input_shapes)
        read = sum(_size(shape) for shape in input_shapes)
        written = sum(_size(shape) for shape in outputs)
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
    tensors = [
        keras.KerasTensor(shape, layer.compute_dtype) for shape in input_shapes
    ]
    outputs = layer.compute_output_spec(
        tensors if len(tensors) > 1 else tensors[0]
    )
    return [tuple(x.shape) for x in keras.tree.flatten(outputs)]


def _size(shape):
    """Number of values of a sample; infinite where it is not known."""
    return math.inf if None in shape[1:] else math.prod(shape[1:])


def _step(layer, input_shapes, constant, terms, offset=0.0, **kwargs):
    """The step of a layer that is no product.

    Args:
        layer: The layer.
        input_shapes: List of tuples.
        constant: Float.
        terms: Integer.
        offset: Float, or function without arguments that returns one.
        **kwargs: As of `Step`.
    """

    def make():
        shapes = [*input_shapes, *output_shapes(layer, input_shapes)]
        return Step(
            constant,
            terms,
            offset=offset() if callable(offset) else offset,
            entries=max(_size(shape) for shape in shapes),
            **kwargs,
        )

    return Later(make)


def _spread(values, shape, factors=1.0):
    """Norm of values that are broadcast to a shape, a function to call later.

    Args:
        values: Variable or array, or None for nothing.
        shape: Tuple, with the batch axis.
        factors: Float or array that multiplies the values.
    """

    def norm():
        if values is None:
            return 0.0
        array = np.asarray(host(values), "float64") * factors
        norm = np.linalg.norm(array) * math.sqrt(_size(shape) / array.size)
        # Some backends read a float64 array as float32.
        return float(norm) * (1 + 1e-6)

    return norm


def _inexact(*constants):
    """How many constants are other numbers in float32; see `Step`."""
    arrays = [np.asarray(x, "float64") for x in constants]
    return sum(bool(np.any(x != x.astype("float32"))) for x in arrays)


def half_unit(layer):
    """The rounding unit of a layer in half precision, 0 for any other."""
    dtype = layer.compute_dtype
    units = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
    return units.get(dtype, 0.0)


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
    for known, text in _NO_CONSTANT.items():
        if type(layer) is known:
            reason = f"is not bounded: it {text}"
    return (
        f"The Lipschitz constant of layer '{layer.name}' of type {name} "
        f"{reason}. If you can prove one, pass `constants={{'{layer.name}': "
        "value}`, or register a function for the class with "
        f"`deel.lip.certification.register_bound({name}, function)`. "
        f"Received: {layer}"
    )


def activation_bound(activation, input_shape):
    """Bound of what layers take as `activation`: a function or a layer."""
    if isinstance(activation, keras.layers.Layer):
        return layer_bound(activation, [input_shape], {})
    name = next((name for f, name in _NAMES if f is activation), None)
    if name is None:
        shown = getattr(activation, "__name__", activation)
        raise ValueError(
            f"The Lipschitz constant of the activation `{shown}` is not known, "
            "or not finite. Use a layer of your own, registered with "
            "`deel.lip.certification.register_bound`. "
            f"Received: activation={activation}"
        )
    terms = input_shape[-1] if name == "softmax" else 0
    return _of_slope(
        SLOPES[name],
        input_shape,
        name in _EXACT,
        terms,
        factor=0.2 if name == "leaky_relu" else 0.0,
    )


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
    count = _size(shape)
    if is_exact:
        terms = 0 if np.all(np.isin(factor, (0.0, 1.0))) else 2
        inexact = _inexact(factor)
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


# Functions that copy, multiply and compare only.
_EXACT = ("leaky_relu", "linear", "relu", "relu6")

# Not all are in the oldest Keras.
_NAMES = [
    (getattr(keras.activations, name), name)
    for name in SLOPES
    if hasattr(keras.activations, name)
]


def _bound_of(*classes):
    """Decorator: the function gives the bound of these classes."""

    def decorate(function):
        for layer_class in classes:
            register_bound(layer_class, function)
        return function

    return decorate


def _used(layer, weight):
    """A weight as the inference of a layer uses it, in float64."""
    policy = keras.dtype_policies.QuantizedDTypePolicy
    if isinstance(layer.dtype_policy, policy):
        raise ValueError(
            "Quantized layers have no bound. "
            f"Received: layer '{layer.name}' with {layer.dtype_policy}"
        )
    # Half precision rounds, which can make a norm larger.
    weight = ops.cast(ops.convert_to_tensor(weight), layer.compute_dtype)
    return host(weight).astype("float64")


def _factor(layer, value):
    """Magnitude of constants as a layer uses them, which may round them up."""
    rounded = ops.convert_to_tensor(value, dtype=layer.compute_dtype)
    rounded = host(rounded).astype("float64")
    return float(max(np.max(np.abs(value)), np.max(np.abs(rounded))))


def inference_kernel(layer):
    """The kernel of inference, in float64: `wbar` where there is one."""
    if isinstance(layer, ConstrainedKernel):
        layer.parametrization.require_sound(layer.name)
        # What runs, where a write to the variable was not seen.
        return _used(layer, layer.wbar.proven())
    return _used(layer, layer.kernel)


def _activated(layer, norm, magnified, terms, input_shape):
    """Bound of a linear map that is followed by the layer's activation.

    Args:
        layer: The layer.
        norm: Tuple of a float, a method, and whether that is exact.
        magnified: Function without arguments that returns the norm of the map
            with absolute values.
        terms: Integer, how many products are summed.
        input_shape: Tuple.
    """
    value, method, exact = norm
    shape = _linear_shape(layer, input_shape)
    activation = activation_bound(layer.activation, shape)
    rounding = Later(
        lambda: _linear_step(
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


def _linear_step(norm, magnified, terms, bias, input_shape, output_shape):
    """The step of `A x + b`; see `_activated`."""
    return Step(
        norm,
        terms + (bias is not None),
        # It is at least the norm itself, whatever is known of it.
        magnified=max(norm, magnified),
        offset=_spread(bias, output_shape)(),
        entries=max(_size(input_shape), _size(output_shape)),
        is_product=True,
    )


# Dense layers, which may be the last one; see `final_dense`.
DENSE = (
    keras.layers.Dense,
    layers.AOLDense,
    layers.FrobeniusDense,
    layers.OrthogonalDense,
    layers.SpectralDense,
)


@_bound_of(*DENSE)
def _dense(layer, input_shapes):
    kernel = inference_kernel(layer)
    return _activated(
        layer,
        _decomposed(kernel),
        lambda: nonnegative_norm(np.abs(kernel)),
        kernel.shape[0],
        input_shapes[0],
    )


def _decomposed(matrices):
    norm, exact = matrix_norm(matrices)
    return norm, "singular values" if exact else "Cholesky", exact


@_bound_of(keras.layers.EinsumDense)
def _einsum_dense(layer, input_shapes):
    operands, output = layer.equation.replace(" ", "").split("->")
    inputs, kernel = operands.replace("...", "").split(",")
    output = output.replace("...", "")
    summed = [c for c in kernel if c in inputs and c not in output]
    free = [c for c in kernel if c not in inputs]
    common = [c for c in kernel if c in inputs and c in output]
    is_matrix = all(
        len(set(labels)) == len(labels) for labels in (inputs, kernel, output)
    ) and set(output) == (set(inputs) - set(summed)) | set(free)
    if not is_matrix:
        raise ValueError(
            f"Layer '{layer.name}' is not a matrix product: each index must "
            "be summed in both operands, or be kept. "
            f"Received: equation={layer.equation}"
        )
    order = [kernel.index(c) for c in (*common, *summed, *free)]
    values = np.transpose(inference_kernel(layer), order)
    shape = values.shape
    blocks = math.prod(shape[: len(common)])
    rows = math.prod(shape[len(common) : len(common) + len(summed)])
    stack = values.reshape(blocks, rows, -1)
    return _activated(
        layer,
        _decomposed(stack),
        lambda: nonnegative_norm(np.abs(stack)),
        rows,
        input_shapes[0],
    )


_PLAIN_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    layers.AOLConv2D,
    layers.FrobeniusConv2D,
    layers.OrthogonalConv1D,
    layers.OrthogonalConv2D,
    layers.OrthogonalConv3D,
    layers.SpectralConv1D,
    layers.SpectralConv2D,
    layers.SpectralConv3D,
    layers.SpectralGroupedConv2D,
)
_PADDED_CONVOLUTIONS = (
    unconstrained.PadConv1D,
    unconstrained.PadConv2D,
    unconstrained.PadConv3D,
)


@_bound_of(*_PLAIN_CONVOLUTIONS, *_PADDED_CONVOLUTIONS)
def _convolution(layer, input_shapes):
    kernel = inference_kernel(layer)
    # The outputs, split by the group that they belong to.
    kernel = kernel.reshape(*kernel.shape[:-1], layer.groups, -1)
    return _convolved(layer, np.swapaxes(kernel, -2, -3), input_shapes)


@_bound_of(
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    layers.SpectralDepthwiseConv2D,
)
def _depthwise(layer, input_shapes):
    # Each channel is a group with one input.
    return _convolved(
        layer, inference_kernel(layer)[..., None, :], input_shapes
    )


@_bound_of(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
def _separable(layer, input_shapes):
    # Both steps are one convolution, whose kernel is their product. What stands
    # between them is rounded all the same, however much of it cancels.
    by_channel = _used(layer, layer.depthwise_kernel)
    mixing = _used(layer, layer.pointwise_kernel)
    channels, multiplier = by_channel.shape[-2:]
    between = channels * multiplier
    mixing = mixing.reshape(channels, multiplier, -1)
    kernel = np.einsum("...cm,cmf->...cf", by_channel, mixing)
    axes = _axes(layer, input_shapes[0])
    value, method, _ = convolution_norm(kernel[..., None, :, :], axes)
    # Each channel is a group with one input.
    by_channel = by_channel[..., None, :]
    matrix = mixing.reshape(between, -1)
    first = nonnegative_convolution_norm(np.abs(by_channel), axes)
    second = nonnegative_norm(np.abs(matrix))
    # The kernel is a float64 product.
    value += _PRODUCT_SLACK * multiplier * first * second
    shape = _linear_shape(layer, input_shapes[0])
    activation = activation_bound(layer.activation, shape)

    def make():
        positions = _size(shape) // layer.filters
        widened = (None, positions * between)
        depthwise = _linear_step(
            convolution_norm(by_channel, axes)[0],
            first,
            math.prod(layer.kernel_size),
            None,
            input_shapes[0],
            widened,
        )
        pointwise = _linear_step(
            _decomposed(matrix)[0], second, between, layer.bias, widened, shape
        )
        return Chain(depthwise, pointwise, activation.rounding)

    if layer.activation is not keras.activations.linear:
        method = f"{method}, activation"
    return Bound(value * activation.value, method, False, rounding=Later(make))


# Relative error of a float64 product of two factors, added up, for each term.
_PRODUCT_SLACK = 4 * float(np.finfo("float64").eps)


def _convolved(layer, kernel, input_shapes):
    (shape,) = input_shapes
    *taps, _, inputs, _ = kernel.shape
    axes = _axes(layer, shape)
    return _activated(
        layer,
        convolution_norm(kernel, axes),
        lambda: nonnegative_convolution_norm(np.abs(kernel), axes),
        math.prod(taps) * inputs,
        shape,
    )


def _axes(layer, shape):
    mode = getattr(layer, "_pad_mode", None)
    return [
        Axis(length, size, stride, dilation, mode or layer.padding)
        for length, size, stride, dilation in zip(
            spatial_shape(shape, layer.data_format),
            layer.kernel_size,
            _per_axis(layer, layer.strides),
            _per_axis(layer, layer.dilation_rate),
            strict=True,
        )
    ]


@_bound_of(layers.SLLDense, unconstrained.ResidualDense)
def _residual_dense(layer, input_shapes):
    kernel = inference_kernel(layer)
    return _symmetric_step(
        layer,
        _decomposed(kernel),
        lambda: nonnegative_norm(np.abs(kernel)),
        kernel.shape[0],
        kernel.shape[1],
        input_shapes[0],
    )


@_bound_of(layers.SLLConv2D, unconstrained.ResidualConv2D)
def _residual_convolution(layer, input_shapes):
    kernel = inference_kernel(layer)[..., None, :, :]
    axes = _axes(layer, input_shapes[0])
    *taps, _, inputs, outputs = kernel.shape
    return _symmetric_step(
        layer,
        convolution_norm(kernel, axes),
        lambda: nonnegative_convolution_norm(np.abs(kernel), axes),
        math.prod(taps) * inputs,
        math.prod(taps) * outputs,
        input_shapes[0],
    )


def _symmetric_step(layer, norm, magnified, terms, terms_back, shape):
    """Bound of `k x - 2/k A^T f(A x + b)`, slopes of f from 0 to 1.

    Its Jacobian is symmetric, with eigenvalues from `k - 2/k ||A||^2` to k.

    Args:
        layer: The layer.
        norm: As of `_activated`.
        magnified: As of `_activated`.
        terms: Integer, how many products each hidden value sums.
        terms_back: Integer, how many products each output sums.
        shape: Tuple, of the input.
    """
    unconstrained.require_monotone(layer.activation)
    value, method, _ = norm
    k = layer.k_coef_lip
    constant = max(k, 2.0 / k * value**2 - k) * (1 + 1e-12)
    constant *= (1 + half_unit(layer)) ** 2

    def make():
        growth = magnified()
        channels = layer.kernel.shape[-1]
        hidden = (None, _size(shape) // shape[-1] * channels)
        entries = max(_size(shape), _size(hidden))
        activation = activation_bound(layer.activation, hidden)
        # The step may be twice as long as the output, before they cancel.
        return Sum(
            Step(k, 2, entries=entries, inexact=_inexact(k)),
            Chain(
                _linear_step(value, growth, terms, layer.bias, shape, hidden),
                activation.rounding,
                _linear_step(value, growth, terms_back, None, hidden, shape),
                Step(2.0 / k, 3, entries=entries, inexact=_inexact(2.0 / k)),
            ),
            entries=entries,
        )

    return Bound(
        float(_factor(layer, constant)), method, False, rounding=Later(make)
    )


def _per_axis(layer, values):
    rank = len(layer.kernel_size)
    return (values,) * rank if isinstance(values, int) else tuple(values)


def _linear_shape(layer, shape):
    """Shape of the output before the activation, which may change it."""
    if isinstance(layer, ConstrainedKernel):
        return layer._linear_output_shape(shape)
    return tuple(layer.compute_output_shape(shape))


@_bound_of(
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    layers.OrthogonalConv2DTranspose,
    layers.SpectralConv2DTranspose,
)
def _transposed(layer, input_shapes):
    # The adjoint of the convolution that reads the whole output, of which a
    # part may then be cut off.
    (shape,) = input_shapes
    axes = []
    for length, size, stride, dilation in zip(
        spatial_shape(shape, layer.data_format),
        layer.kernel_size,
        _per_axis(layer, layer.strides),
        _per_axis(layer, layer.dilation_rate),
        strict=True,
    ):
        if length is not None:
            length = (length - 1) * stride + (size - 1) * dilation + 1
        axes.append(Axis(length, size, stride, dilation, "valid"))
    kernel = inference_kernel(layer)[..., None, :, :]
    value, method, exact = convolution_norm(kernel, axes)
    exact = exact and layer.padding == "valid"
    *taps, _, _, inputs = kernel.shape
    return _activated(
        layer,
        (value, method, exact),
        lambda: nonnegative_convolution_norm(np.abs(kernel), axes),
        math.prod(taps) * inputs,
        shape,
    )


def _pooling_axes(layer, shape):
    windows = zip(
        spatial_shape(shape, layer.data_format),
        layer.pool_size,
        layer.strides,
        strict=True,
    )
    return [
        Axis(length, size, stride, 1, layer.padding)
        for length, size, stride in windows
    ]


@_bound_of(
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
)
def _max_pooling(layer, input_shapes):
    # |max a - max b| is at most the largest |a - b| of a window, and a value
    # is read by `overlap` windows.
    axes = _pooling_axes(layer, input_shapes[0])
    overlap = math.prod(axis.overlap() for axis in axes)
    value = math.sqrt(overlap)
    rounding = _step(layer, input_shapes, value, 0)
    return Bound(value, "overlap", overlap <= 1, rounding=rounding)


@_bound_of(
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
)
def _average_pooling(layer, input_shapes):
    axes = _pooling_axes(layer, input_shapes[0])
    norms = [_average_norm(axis) for axis in axes]
    value = math.prod(norm for norm, _ in norms)
    value *= (1 + half_unit(layer)) ** 2
    terms = math.prod(layer.pool_size) + _FACTORS
    return Bound(
        value,
        "singular values",
        all(exact for _, exact in norms),
        rounding=_step(
            layer,
            input_shapes,
            value,
            terms,
            # Windows that overlap repeat values, whose sums the norm divides.
            partial=value * math.prod(layer.pool_size),
        ),
    )


# Roundings behind what a layer does besides sums: constants that it makes, such
# as roots and reciprocals, and products with them.
_FACTORS = 16


def _average_norm(axis):
    """Norm of the matrix of means along one axis.

    At the borders, windows divide by the number of values that are there; on
    the PyTorch backend of Keras, where the sides of some axis are not padded
    alike, they read the border itself instead. A bound counts on every backend.
    """
    if axis.length is None:
        # sqrt(norm_1 norm_inf): rows sum to one, and so many of them overlap,
        # each with at least one value, or with all.
        smallest = axis.size if axis.padding == "valid" else 1
        return math.sqrt(axis.overlap() / smallest), False
    reads = axis.selection()
    counts = np.sum(reads, axis=(1, 2), keepdims=True)
    norm, exact = _mean_norm(reads / np.maximum(counts, 1))
    if not any(axis.widths()):
        return norm, exact
    with_border, _ = _mean_norm(axis.selection(repeats_border=True) / axis.size)
    return max(norm, with_border), False


def _mean_norm(weights):
    """Norm of a matrix of means, from its array `(windows, taps, length)`."""
    matrix = np.sum(weights, axis=1)
    if min(matrix.shape) > 1024:
        sums = np.max(np.sum(matrix, axis=0)) * np.max(np.sum(matrix, axis=1))
        return math.sqrt(sums) * (1 + 1e-12), False
    return matrix_norm(matrix)


@_bound_of(
    layers.ScaledAveragePooling1D,
    layers.ScaledAveragePooling2D,
    layers.ScaledAveragePooling3D,
    layers.ScaledL2NormPooling1D,
    layers.ScaledL2NormPooling2D,
    layers.ScaledL2NormPooling3D,
)
def _scaled_pooling(layer, input_shapes):
    # Windows do not overlap. The mean of p values is 1/sqrt(p)-Lipschitz, and
    # so is the root of the mean of their squares.
    size = math.prod(layer.pool_size)
    value = _factor(layer, layer._get_coef()) / math.sqrt(size)
    return _pooled(layer, value, size, input_shapes)


def _pooled(layer, value, size, input_shapes):
    """Bound of a scaled mean or norm of so many values."""
    value *= (1 + 1e-12) * (1 + half_unit(layer)) ** 3
    epsilon = getattr(layer, "eps_grad_sqrt", None)

    def offset():
        if epsilon is None:
            return 0.0
        (shape,) = output_shapes(layer, input_shapes)
        return value * math.sqrt(size * epsilon * _size(shape))

    rounding = _step(
        layer,
        input_shapes,
        value,
        size + _FACTORS,
        offset=offset,
        squares=epsilon is not None,
        inexact=_inexact(layer.k_coef_lip),
        partial=max(value, 1.0) * math.sqrt(size),
    )
    if epsilon and _inexact(epsilon):
        # Another epsilon moves a norm by no more than its own share.
        of_epsilon = Later(
            lambda: Step(magnified=0.0, offset=offset(), inexact=1)
        )
        rounding = Chain(rounding, of_epsilon)
    return Bound(value, "formula", True, rounding=rounding)


@_bound_of(
    layers.ScaledAdaptiveAveragePooling2D,
    layers.ScaledAdaptiveL2NormPooling2D,
    layers.ScaledGlobalAveragePooling1D,
    layers.ScaledGlobalAveragePooling2D,
    layers.ScaledGlobalAveragePooling3D,
    layers.ScaledGlobalL2NormPooling1D,
    layers.ScaledGlobalL2NormPooling2D,
    layers.ScaledGlobalL2NormPooling3D,
)
def _scaled_global_pooling(layer, input_shapes):
    lengths = spatial_shape(input_shapes[0], layer.data_format)
    size = math.inf if None in lengths else math.prod(lengths)
    # The root of the number of values is a factor, too.
    value = _factor(layer, layer.k_coef_lip) * (1 + 1e-6)
    return _pooled(layer, value, size, input_shapes)


@_bound_of(
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
)
def _global_average(layer, input_shapes):
    lengths = spatial_shape(input_shapes[0], layer.data_format)
    is_known = None not in lengths
    size = math.prod(lengths) if is_known else math.inf
    value = (1 + 1e-12) / math.sqrt(size) if is_known else 1.0
    value *= (1 + half_unit(layer)) ** 2
    return Bound(
        value,
        "formula" if is_known else "image of unknown size",
        is_known,
        rounding=_step(
            layer,
            input_shapes,
            value,
            size + _FACTORS,
            partial=math.sqrt(size),
        ),
    )


@_bound_of(
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
    keras.layers.Identity,
    keras.layers.InputLayer,
    keras.layers.Permute,
    keras.layers.Reshape,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.ZeroPadding3D,
    layers.InvertibleDownSampling,
    layers.InvertibleUpSampling,
    layers.SpatialShift2D,
)
def _isometry(layer, input_shapes):
    return Bound(1.0, "formula", True, rounding=_copied(layer, input_shapes))


def _copied(layer, input_shapes, constant=1.0):
    """The step of a layer that only copies and compares."""
    return _step(layer, input_shapes, constant, 0)


@_bound_of(keras.layers.RepeatVector)
def _repetition(layer, input_shapes):
    value = math.sqrt(layer.n) * (1 + 1e-12)
    rounding = _copied(layer, input_shapes, value)
    return Bound(value, "formula", True, rounding=rounding)


@_bound_of(
    keras.layers.UpSampling1D,
    keras.layers.UpSampling2D,
    keras.layers.UpSampling3D,
)
def _up_sampling(layer, input_shapes):
    if getattr(layer, "interpolation", "nearest") != "nearest":
        raise ValueError(
            f"Layer '{layer.name}' interpolates in a way that depends on the "
            'backend. Expected `interpolation="nearest"`. '
            f"Received: interpolation={layer.interpolation}"
        )
    sizes = (
        layer.size if isinstance(layer.size, (tuple, list)) else [layer.size]
    )
    value = math.sqrt(math.prod(sizes)) * (1 + 1e-12)
    rounding = _copied(layer, input_shapes, value)
    return Bound(value, "formula", True, rounding=rounding)


@_bound_of(
    layers.Abs,
    layers.FullSort,
    layers.GroupSort,
    layers.GroupSort2,
    layers.MaxMin,
)
def _scaled_isometry(layer, input_shapes):
    value = _factor(layer, layer.k_coef_lip)
    inexact = _inexact(layer.k_coef_lip)
    rounding = _step(layer, input_shapes, value, 3, inexact=inexact)
    return Bound(value, "formula", True, rounding=rounding)


@_bound_of(layers.Householder)
def _folds(layer, input_shapes):
    # Sines and cosines that are rounded make a reflection that expands.
    fold = (1 + half_unit(layer)) ** 4
    value = _factor(layer, layer.k_coef_lip) * fold**layer.order
    entries = _size(input_shapes[0])
    # Points that are taken for those of the other side are reflected at a line
    # that is as near to them as the side was wrong.
    step = Step(fold, ELEMENTARY + 4, magnified=4.0, entries=entries)
    factor = _factor(layer, layer.k_coef_lip)
    scaling = Step(
        factor, 2, entries=entries, inexact=_inexact(layer.k_coef_lip)
    )
    rounding = Chain(*[step] * layer.order, scaling)
    return Bound(value, "formula", True, rounding=rounding)


@_bound_of(layers.LayerCentering)
def _layer_centering(layer, input_shapes):
    (shape,) = input_shapes
    value = _factor(layer, layer.k_coef_lip)
    means = [shape[axis] for axis in layer._axes]
    terms = math.inf if None in means else math.prod(means) + _FACTORS
    rounding = _step(
        layer,
        input_shapes,
        value,
        terms,
        # The mean and what it is subtracted from, both at most the input.
        magnified=2 * value,
        offset=_spread(layer.bias, shape),
        inexact=_inexact(layer.k_coef_lip),
        partial=max(value, 1.0) * math.sqrt(terms),
    )
    return Bound(value, "formula", True, rounding=rounding)


@_bound_of(layers.BatchCentering)
def _batch_centering(layer, input_shapes):
    value = _factor(layer, layer.k_coef_lip)
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
    shift, added = _spread(mean, shape, value), _spread(layer.bias, shape)
    return _step(
        layer,
        input_shapes,
        value,
        _FACTORS,
        offset=lambda: shift() + added(),
        inexact=_inexact(*constants),
    )


@_bound_of(layers.BatchLipNorm)
def _batch_lip_norm(layer, input_shapes):
    factor = float(ops.convert_to_numpy(layer.scaling_factor(training=False)))
    # The factor is a float32 root.
    value = abs(factor) * (1 + 1e-6) * (1 + half_unit(layer))
    mean = layer.mean if layer.centering else None
    rounding = _shifted(layer, input_shapes, value, mean)
    return Bound(value, "scaling factor", True, rounding=rounding)


@_bound_of(layers.ScaleBiasLayer)
def _scale_bias(layer, input_shapes):
    value = _factor(layer, layer.scalar)
    constants, mean = [layer.scalar], None
    if layer.mean is not None:
        mean = np.asarray(layer.mean, "float64")
        constants.append(mean)
    rounding = _shifted(layer, input_shapes, value, mean, constants)
    return Bound(value, "formula", True, rounding=rounding)


@_bound_of(keras.layers.Rescaling)
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
    value = _factor(layer, scale)
    offset = _spread(np.asarray(layer.offset, "float64"), shape)
    rounding = _step(
        layer,
        input_shapes,
        value,
        4,
        offset=offset,
        inexact=_inexact(scale, layer.offset),
    )
    return Bound(value, "formula", True, rounding=rounding)


@_bound_of(keras.layers.Normalization)
def _normalization(layer, input_shapes):
    (shape,) = input_shapes
    deviation = np.sqrt(host(layer.variance).astype("float64"))
    deviation = np.maximum(deviation, keras.backend.epsilon())
    factors = deviation if layer.invert else 1 / deviation
    value = float(np.max(factors)) * (1 + 1e-6)
    value *= (1 + half_unit(layer)) ** 3
    mean = _spread(layer.mean, shape, 1.0 if layer.invert else factors)
    # Statistics that were learned are float32 numbers.
    given = [
        x for x in (layer.input_mean, layer.input_variance) if x is not None
    ]
    if np.any(deviation <= keras.backend.epsilon()):
        given.append(keras.backend.epsilon())
    given = _inexact(*given)
    rounding = _step(
        layer, input_shapes, value, _FACTORS, offset=mean, inexact=given
    )
    return Bound(value, "formula", True, rounding=rounding)


@_bound_of(keras.layers.BatchNormalization)
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
    terms = _FACTORS + math.ceil(4 * cancelled)
    shift = _spread(layer.moving_mean, input_shapes[0], factors)
    bias = _spread(layer.beta if layer.center else None, input_shapes[0])
    rounding = _step(
        layer,
        input_shapes,
        value,
        terms,
        offset=lambda: shift() + bias(),
        # Only epsilon is read, and its share of the sum counts.
        inexact=_inexact(layer.epsilon)
        * float(np.max(layer.epsilon / variance)),
    )
    return Bound(value, "largest factor", True, rounding=rounding)


@_bound_of(keras.layers.Activation)
def _activation(layer, input_shapes):
    return activation_bound(layer.activation, input_shapes[0])


@_bound_of(keras.layers.ReLU)
def _relu(layer, input_shapes):
    if layer.threshold != 0:
        raise ValueError(
            f"Layer '{layer.name}' jumps at its threshold. Expected "
            f"`threshold=0`. Received: threshold={layer.threshold}"
        )
    limit = layer.max_value or 0.0
    return _of_slopes(layer, layer.negative_slope, input_shapes, limit=limit)


def _of_slopes(layer, factor, input_shapes, is_exact=True, limit=0.0):
    """Bound of a function of the slope one, and another one for negatives.

    Args:
        layer: The layer.
        factor: Float or array, the other slope.
        input_shapes: List of tuples.
        is_exact: As of `_of_slope`.
        limit: Float, a constant that cuts off.
    """
    slope = max(1.0, _factor(layer, factor))
    constants = np.append(factor, limit)
    bound = _of_slope(slope, input_shapes[0], is_exact, factor=constants)
    return dataclasses.replace(bound, method="slopes", exact=True)


@_bound_of(keras.layers.LeakyReLU)
def _leaky_relu(layer, input_shapes):
    return _of_slopes(layer, layer.negative_slope, input_shapes)


@_bound_of(keras.layers.ELU)
def _elu(layer, input_shapes):
    return _of_slopes(layer, layer.alpha, input_shapes, is_exact=False)


@_bound_of(keras.layers.PReLU)
def _prelu(layer, input_shapes):
    return _of_slopes(layer, _used(layer, layer.alpha), input_shapes)


@_bound_of(layers.LipschitzPReLU)
def _lipschitz_prelu(layer, input_shapes):
    slopes = np.ravel(_used(layer, layer.alpha))
    # Some are cut off at a constant, which float32 may read as less.
    if np.max(np.abs(slopes)) >= layer.k_coef_lip * (1 - 1e-2):
        slopes = np.append(slopes, layer.k_coef_lip)
    return _of_slopes(layer, slopes, input_shapes)


@_bound_of(keras.layers.Softmax)
def _softmax(layer, input_shapes):
    (shape,) = input_shapes
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    terms = math.prod(shape[axis] or math.inf for axis in axes)
    return _of_slope(0.5, shape, False, terms)


def _joined(layer, input_shapes, weights, adds, terms=None, method="formula"):
    """Bound of a layer that joins branches; see `Bound`."""
    squares = math.sqrt(math.fsum(w**2 for w in weights))
    value = squares * (1 + 1e-12) if adds else max(weights)
    terms = len(weights) if terms is None else terms
    # For inputs of which the norms add up.
    # What is averaged is added before it is divided.
    partial = len(weights) * max(weights) if adds else None
    rounding = _step(layer, input_shapes, max(weights), terms, partial=partial)
    return Bound(
        value, method, weights=tuple(weights), adds=adds, rounding=rounding
    )


def _repetitions(layer, input_shapes):
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


@_bound_of(keras.layers.Add, keras.layers.Subtract)
def _sum(layer, input_shapes):
    weights = _repetitions(layer, input_shapes)
    return _joined(layer, input_shapes, weights, adds=True)


@_bound_of(keras.layers.Average)
def _mean(layer, input_shapes):
    weights = _repetitions(layer, input_shapes)
    weights = [w / len(weights) for w in weights]
    terms = len(weights) + 4
    bound = _joined(layer, input_shapes, weights, adds=True, terms=terms)
    loosened = bound.value * (1 + half_unit(layer)) ** 2
    return dataclasses.replace(bound, value=loosened)


@_bound_of(keras.layers.Maximum, keras.layers.Minimum)
def _maximum(layer, input_shapes):
    # |max a - max b| is at most the largest |a - b|, hence its square at most
    # the sum of all squares.
    weights = _repetitions(layer, input_shapes)
    return _joined(layer, input_shapes, weights, adds=False, terms=0)


@_bound_of(keras.layers.Concatenate)
def _concatenation(layer, input_shapes):
    weights = [1.0] * len(input_shapes)
    return _joined(layer, input_shapes, weights, adds=False, terms=0)


@_bound_of(layers.LipResidual)
def _residual(layer, input_shapes):
    alpha = float(_used(layer, layer.alpha))
    weight = 1 / (1 + math.exp(-alpha)) if alpha > -700 else 0.0
    # The weight is a sigmoid, right to some units of one.
    excess = 1e-6 + 2 * half_unit(layer)
    weights = [weight + excess, 1 - weight + excess]
    bound = _joined(
        layer,
        input_shapes,
        weights,
        adds=True,
        method="weights",
    )
    # Each weight is wrong by units of one, not of itself.
    rounding = _step(layer, input_shapes, 1.0, ELEMENTARY + 4)
    return dataclasses.replace(bound, rounding=rounding)


def branched_bound(layer, branch, rounding, input_shapes):
    """Bound of a block from that of its branch.

    Args:
        layer: A layer of one of the classes in `BRANCHED`.
        branch: Float, the constant of the branch.
        rounding: As of `Bound`, for the branch.
        input_shapes: List of tuples.
    """
    check_finite(layer)
    factor = _factor(layer, layer._get_coef())
    value = factor * layer.joined_constant(branch) * (1 + 1e-12)
    value *= (1 + half_unit(layer)) ** 2
    entries = _size(input_shapes[0])
    passed = Step(entries=entries)
    if isinstance(layer, layers.PartialResidual):
        joined = Beside(passed, rounding)
    else:
        joined = Sum(passed, rounding, entries=entries)
    inexact = _inexact(layer._get_coef())
    scaled = Chain(joined, Step(factor, 2, entries=entries, inexact=inexact))
    return Bound(value, "branch", rounding=scaled)


@_bound_of(keras.layers.TimeDistributed)
def _time_distributed(layer, input_shapes):
    inner = [(shape[0], *shape[2:]) for shape in input_shapes]
    bound = layer_bound(layer.layer, inner, {})
    steps = input_shapes[0][1]
    times = math.inf if steps is None else steps
    rounding = Repeated(bound.rounding, times)
    return dataclasses.replace(bound, rounding=rounding)


# Classes whose functions are those of this module, not of a user.
_OWN = frozenset(_BOUNDS) | frozenset(BRANCHED)
