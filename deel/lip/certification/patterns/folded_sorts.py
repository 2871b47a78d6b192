"""Sorts of pairs that convolutions do.

Note [Sums that sort]

`z = y + (r, r)` with `r = relu(R x + c)` and `y = (Y1 x + b1, Y2 x + b2)`, two
halves, with `R = E - Y1 - Y2`. Where s is the slope of r, from 0 to 1, the
Jacobian is `(I - s (1, 1)^T (1, 1)) (Y1, Y2) + s (E, E)` for each pair. The
first factor is symmetric with the eigenvalues 1 and `1 - 2 s`, so the norm is
at most `||Y|| + sqrt(2) ||E||`. Where `y = x`, Y is the identity.

That s is the same for both of a pair takes two equal halves of the kernel, and
of the bias, of r.
"""

import math

import keras
import numpy as np

from deel.lip._backend.variables import host
from deel.lip.certification._nodes import is_tensor
from deel.lip.certification._nodes import operands
from deel.lip.certification._pieces import Piece
from deel.lip.certification._pieces import pattern
from deel.lip.certification._registry import Bound
from deel.lip.certification._registry import Later
from deel.lip.certification._registry import size_of
from deel.lip.certification._rounding import Chain
from deel.lip.certification._rounding import Step
from deel.lip.certification._rounding import Sum
from deel.lip.certification.rules._linear import of_convolution
from deel.lip.certification.rules._steps import inference_kernel
from deel.lip.certification.rules.activations import activation_bound
from deel.lip.certification.rules.convolutions import axes_of


@pattern("Add")
def _folded_sort(node, graph):
    """A convolution with relu, added to what it reads, or to another one."""
    for passed, step in (operands(node), operands(node)[::-1]):
        if not is_tensor(passed) or not is_tensor(step):
            return None
        fold = graph.layer_call(step, keras.layers.Conv2D)
        if fold is None or tuple(passed.shape) != tuple(step.shape):
            continue
        (x,) = fold.input_tensors
        nodes = [fold, node]
        if passed is not x:
            plain = graph.layer_call(passed, keras.layers.Conv2D)
            if plain is None or plain.input_tensors[0] is not x:
                continue
            nodes.insert(0, plain)
        if _rest(*(n.operation for n in nodes[-2::-1])) is not None:
            return Piece(nodes, [x], node.outputs, _folded_sort_rule)
    return None


def _rest(fold, plain=None):
    """E of [Sums that sort] as a kernel, or None where it is another sum."""
    if (
        fold.activation is not keras.activations.relu
        or fold.data_format != "channels_last"
        or fold.groups != 1
        or fold.filters % 2
    ):
        return None
    steps = inference_kernel(fold)
    if plain is None:
        if tuple(fold.kernel_size) != (1, 1) or tuple(fold.strides) != (1, 1):
            return None
        kernel = np.eye(fold.filters)[None, None]
    else:
        is_alike = _windows(plain) == _windows(fold)
        if plain.activation is not keras.activations.linear or not is_alike:
            return None
        kernel = inference_kernel(plain)
    if steps.shape != kernel.shape:
        return None
    first, second = np.split(steps, 2, axis=-1)
    bias = np.zeros(2) if fold.bias is None else host(fold.bias)
    if not np.array_equal(first, second) or not np.array_equal(
        *np.split(bias, 2)
    ):
        return None
    rest = first + sum(np.split(kernel, 2, axis=-1))
    is_near = np.linalg.norm(rest) <= 1e-3 * np.linalg.norm(kernel)
    return rest if is_near else None


def _windows(layer):
    """How a convolution reads an image."""
    sizes = (layer.kernel_size, layer.strides, layer.dilation_rate)
    return (
        *(tuple(x) for x in sizes),
        layer.padding,
        layer.data_format,
        layer.groups,
    )


def _folded_sort_rule(piece, input_shapes, context):
    (shape,) = input_shapes
    *plain, fold, _ = piece.operations
    rest = _rest(fold, *plain)
    axes = axes_of(fold, shape, fold.padding)

    def linear_of(kernel):
        return of_convolution(kernel[..., None, :, :], axes)

    norm, method = 1.0, "formula"
    if plain:
        linear = linear_of(inference_kernel(plain[0]))
        norm, method = linear.norm, linear.method
    others = linear_of(rest)
    # What `rest` loses to the rounding of float64 sums.
    steps = linear_of(inference_kernel(fold))
    lost = 8 * float(np.finfo("float64").eps) * steps.magnified()
    value = norm + math.sqrt(2) * (others.norm + lost) * (1 + 1e-12)

    def make():
        outputs = tuple(fold.compute_output_shape(shape))
        entries = max(size_of(shape), size_of(outputs))
        passed = Step(entries=entries)
        if plain:
            passed = linear.step(plain[0].bias, shape, outputs)
        relu = activation_bound(fold.activation, outputs, context)
        step = Chain(steps.step(fold.bias, shape, outputs), relu.rounding)
        return Sum(passed, step, entries=entries)

    return Bound(value, method, rounding=Later(make))
