"""Convolutions."""

import dataclasses
import math

import keras
import numpy as np

from deel.lip import layers
from deel.lip._numerics.windows import Axis
from deel.lip._numerics.windows import spatial_shape
from deel.lip.certification._image_steps import on_torus
from deel.lip.certification._norms import column_norm
from deel.lip.certification._registry import Later
from deel.lip.certification._registry import rule
from deel.lip.certification._registry import size_of
from deel.lip.certification._rounding import Chain
from deel.lip.certification.rules._linear import activated
from deel.lip.certification.rules._linear import linear_shape
from deel.lip.certification.rules._linear import of_convolution
from deel.lip.certification.rules._linear import of_matrix
from deel.lip.certification.rules._linear import paired
from deel.lip.certification.rules._linear import symmetric
from deel.lip.certification.rules._steps import as_used
from deel.lip.certification.rules._steps import inference_kernel
from deel.lip.certification.rules.activations import activation_bound
from deel.lip.layers import unconstrained

# Convolutions, which may be the last layer; see `final_dense`.
CONVOLUTIONS = (
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


@rule(*CONVOLUTIONS, *_PADDED_CONVOLUTIONS)
def _convolution(layer, input_shapes, context):
    axes = _axes(layer, input_shapes[0])
    return convolved(layer, axes, input_shapes[0], context)


def convolved(layer, axes, shape, context):
    """Bound of a convolution of which each output reads its group of inputs.

    Args:
        layer: The layer.
        axes: List of `Axis`, as the kernel reads them.
        shape: Tuple, of what the layer is called with.
        context: That of the rule.
    """
    kernel = inference_kernel(layer)
    # The outputs, split by the group that they belong to.
    kernel = kernel.reshape(*kernel.shape[:-1], layer.groups, -1)
    linear = _mapped(layer, np.swapaxes(kernel, -2, -3), axes)
    return activated(layer, linear, shape, context)


def _mapped(layer, kernel, axes):
    """The `LinearMap` of a layer, with what the chain of images knows."""
    linear = of_convolution(kernel, axes)
    if layer.data_format != "channels_last":
        return linear
    return dataclasses.replace(linear, convolution=on_torus(kernel, axes))


@rule(
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    layers.SpectralDepthwiseConv2D,
)
def _depthwise(layer, input_shapes, context):
    # Each channel is a group with one input.
    kernel = inference_kernel(layer)[..., None, :]
    linear = _mapped(layer, kernel, _axes(layer, input_shapes[0]))
    return activated(layer, linear, input_shapes[0], context)


@rule(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
def _separable(layer, input_shapes, context):
    # Both steps are one convolution, whose kernel is their product. What stands
    # between them is rounded all the same, however much of it cancels.
    (shape,) = input_shapes
    by_channel = as_used(layer, layer.depthwise_kernel)
    mixing = as_used(layer, layer.pointwise_kernel)
    channels, multiplier = by_channel.shape[-2:]
    between = channels * multiplier
    mixing = mixing.reshape(channels, multiplier, -1)
    kernel = np.einsum("...cm,cmf->...cf", by_channel, mixing)
    axes = _axes(layer, shape)
    joint = of_convolution(kernel[..., None, :, :], axes, exact=False)
    # Each channel is a group with one input.
    first = of_convolution(by_channel[..., None, :], axes)
    second = of_matrix(mixing.reshape(between, -1))
    # The kernel is a float64 product.
    excess = _PRODUCT_SLACK * multiplier * first.magnified()
    norm = joint.norm + excess * second.magnified()
    bound = activated(
        layer, dataclasses.replace(joint, norm=norm), shape, context
    )

    def make():
        outputs = linear_shape(layer, shape)
        positions = size_of(outputs) // layer.filters
        widened = (None, positions * between)
        return Chain(
            first.step(None, shape, widened),
            second.step(layer.bias, widened, outputs),
            activation_bound(layer.activation, outputs, context).rounding,
        )

    return dataclasses.replace(bound, rounding=Later(make))


# Relative error of a float64 product of two factors, added up, for each term.
_PRODUCT_SLACK = 4 * float(np.finfo("float64").eps)


def _axes(layer, shape):
    padding = getattr(layer, "_pad_mode", None) or layer.padding
    return axes_of(layer, shape, padding)


def keeps_images(*layers):
    """Whether the adjoint of each convolution is one with the same windows."""
    return all(
        layer.padding == "same"
        and layer.groups == 1
        and set(_per_axis(layer, layer.strides)) == {1}
        and set(_per_axis(layer, layer.dilation_rate)) == {1}
        and all(size % 2 for size in layer.kernel_size)
        and layer.data_format == layers[0].data_format
        for layer in layers
    )


def axes_of(layer, shape, padding):
    """How the windows of a layer read an image of a shape, a list of `Axis`."""
    return [Axis(*window, padding) for window in _windows(layer, shape)]


def _windows(layer, shape):
    """Length, size, stride and dilation of each axis."""
    return zip(
        spatial_shape(shape, layer.data_format),
        layer.kernel_size,
        _per_axis(layer, layer.strides),
        _per_axis(layer, layer.dilation_rate),
        strict=True,
    )


@rule(layers.SLLConv2D, unconstrained.ResidualConv2D)
def _residual_convolution(layer, input_shapes, context):
    kernel = inference_kernel(layer)[..., None, :, :]
    linear = of_convolution(kernel, _axes(layer, input_shapes[0]))
    *taps, _, _, outputs = kernel.shape
    terms_back = math.prod(taps) * outputs
    return symmetric(layer, linear, terms_back, input_shapes[0], context)


@rule(layers.SandwichConv2D, unconstrained.ConvPair2D)
def _convolution_pair(layer, input_shapes, context):
    (shape,) = input_shapes
    hidden = tuple(layer.compute_output_shape(shape))
    axes = _axes(layer, shape)

    def map_of(kernel):
        return of_convolution(kernel[..., None, :, :], axes)

    return paired(layer, map_of, shape, hidden, context)


def _per_axis(layer, values):
    rank = len(layer.kernel_size)
    return (values,) * rank if isinstance(values, int) else tuple(values)


@rule(
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    layers.OrthogonalConv2DTranspose,
    layers.SpectralConv2DTranspose,
)
def _transposed(layer, input_shapes, context):
    # The adjoint of the convolution that reads the whole output, of which a
    # part may then be cut off.
    (shape,) = input_shapes
    axes = []
    for length, size, stride, dilation in _windows(layer, shape):
        if length is not None:
            length = (length - 1) * stride + (size - 1) * dilation + 1
        axes.append(Axis(length, size, stride, dilation, "valid"))
    kernel = inference_kernel(layer)[..., None, :, :]
    linear = of_convolution(kernel, axes, exact=layer.padding == "valid")
    *taps, _, _, inputs = kernel.shape
    linear = dataclasses.replace(
        linear,
        terms=math.prod(taps) * inputs,
        columns=column_norm(kernel.reshape(-1, inputs).T),
    )
    return activated(layer, linear, shape, context)
