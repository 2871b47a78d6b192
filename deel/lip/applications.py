"""Networks of known constant, in the manner of `keras.applications`.

Each network ends in one layer of neurons of norm `k_coef_lip`
(`FrobeniusDense`), so each score is `k_coef_lip`-Lipschitz, and everything
before that layer is 1-Lipschitz as a vector. `deel.lip.certification.certify`
compares the scores pair by pair.

There are no weights to load: what a network should certify depends on the loss
and on the units of the pixels. `examples/train_certified.py` trains the
classifiers of images, `deel.lip.sampling` what `DistanceField` needs.
"""

import keras

from deel.lip._validation import positive_int
from deel.lip._validation import require_one_of
from deel.lip.initializers import DiracInitializer
from deel.lip.layers import Abs
from deel.lip.layers import FrobeniusDense
from deel.lip.layers import FullSort
from deel.lip.layers import GroupSort2
from deel.lip.layers import InvertibleDownSampling
from deel.lip.layers import LipResidual
from deel.lip.layers import OrthogonalConv2D
from deel.lip.layers import ScaledAveragePooling2D
from deel.lip.layers import ScaledGlobalAveragePooling2D
from deel.lip.layers import SpatialShift2D
from deel.lip.layers import SpectralConv2D
from deel.lip.layers import SpectralDense
from deel.lip.model import Model

__all__ = ["VGG", "DistanceField", "LiResNet", "LipNeXt", "OrthogonalResNet"]


def __dir__():
    return __all__


SIZES = ("S", "M", "L")


def VGG(
    size="S",
    input_shape=(32, 32, 3),
    classes=10,
    k_coef_lip=1.0,
    include_top=True,
    name="vgg",
):
    """Eleven convolutions of three widths, averaged in between.

    The classic network of `SpectralConv2D` layers: cheap, and a baseline. Each
    convolution is bounded by how often its windows overlap, so the signal
    fades with depth; the other networks of this module keep it.

    Args:
        size: `"S"`, `"M"` or `"L"`: 32, 64 or 128 filters in the first block,
            four times as many in the last (0.5, 2.1 and 8.4 million
            parameters).
        input_shape: Tuple `(height, width, channels)`; height and width
            multiples of 4.
        classes: Integer, number of scores.
        k_coef_lip: Float, the Lipschitz constant of each score.
        include_top: Boolean, whether to add the scores; else the output are
            the features, as a vector.
        name: String, the name of the model.

    Returns:
        A `deel.lip.model.Model`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> from deel.lip.applications import VGG
    >>> VGG("S", classes=10).output_shape
    (None, 10)

    Reference:
        - [Serrurier et al., 2021](https://arxiv.org/abs/2006.06520),
          "Achieving robustness in classification using optimal transport with
          hinge regularization".
    """
    (width,) = _of_size(size, width=(32, 64, 128))
    x = inputs = _image_input(input_shape, multiple=4)
    for block, depth in enumerate((4, 4, 3)):
        if block > 0:
            x = ScaledAveragePooling2D()(x)
        for _ in range(depth):
            x = SpectralConv2D(width * 2**block, 3, activation=GroupSort2())(x)
    x = ScaledGlobalAveragePooling2D()(x)
    return _with_top(inputs, x, classes, k_coef_lip, include_top, name)


def LiResNet(
    size="S",
    input_shape=(32, 32, 3),
    classes=10,
    k_coef_lip=1.0,
    include_top=True,
    name="liresnet",
):
    """Linear residual convolutions, then dense layers.

    A linear residual `x + conv(x)` is a convolution whose middle tap starts
    near the identity; here it is one layer, of which the norm of the operator
    is bounded as a whole (`SpectralConv2D` with `bound="operator"`): a sum of
    two branches would have to be halved, and this loses what the bound is too
    large by, 2 % to 8 % along each axis. Dense layers on the whole image
    follow.

    Args:
        size: `"S"`, `"M"` or `"L"`: 64, 128 or 512 filters, 4, 8 or 12
            residuals, 2, 4 or 8 dense layers of 512, 1,024 or 2,048 neurons.
        input_shape: Tuple `(height, width, channels)`; height and width
            multiples of 8.
        classes, k_coef_lip, include_top, name: As for `VGG`.

    Reference:
        - [Hu et al., 2023](https://arxiv.org/abs/2301.12549), "Unlocking
          deterministic robustness certification on ImageNet".
    """
    width, depth, layers, units = _of_size(
        size,
        width=(64, 128, 512),
        depth=(4, 8, 12),
        layers=(2, 4, 8),
        units=(512, 1024, 2048),
    )
    x = inputs = _image_input(input_shape, multiple=8)
    x = OrthogonalConv2D(width, 4, strides=2, activation=GroupSort2())(x)
    for _ in range(depth):
        x = SpectralConv2D(
            width,
            3,
            bound="operator",
            kernel_initializer=DiracInitializer(),
            activation=GroupSort2(),
        )(x)
    x = OrthogonalConv2D(width, 4, strides=4, activation=GroupSort2())(x)
    x = keras.layers.Flatten()(x)
    for _ in range(layers):
        x = SpectralDense(units, activation=GroupSort2())(x)
    return _with_top(inputs, x, classes, k_coef_lip, include_top, name)


def OrthogonalResNet(
    size="S",
    input_shape=(32, 32, 3),
    classes=10,
    k_coef_lip=1.0,
    include_top=True,
    name="orthogonal_resnet",
):
    """Residual blocks of orthogonal convolutions, halved with a stride.

    The convolutions without stride keep norms but for what leaves the image at
    its border; those with a stride are projections. A block is the learned
    average of its input and of two convolutions (`LipResidual`).

    Args:
        size: `"S"`, `"M"` or `"L"`: 32, 64 or 128 filters at first, twice as
            many after each of three halvings; 1, 2 or 3 blocks in between.
        input_shape: Tuple `(height, width, channels)`; height and width
            multiples of 8.
        classes, k_coef_lip, include_top, name: As for `VGG`.

    Reference:
        - [Boissin et al., 2025](https://arxiv.org/abs/2501.07930), "An adaptive
          orthogonal convolution scheme for efficient and flexible CNN
          architectures".
    """
    width, blocks = _of_size(size, width=(32, 64, 128), blocks=(1, 2, 3))
    x = inputs = _image_input(input_shape, multiple=8)
    x = OrthogonalConv2D(width, 3, activation=GroupSort2())(x)
    for stage in range(3):
        filters = width * 2**stage
        for _ in range(blocks):
            y = OrthogonalConv2D(filters, 3, activation=GroupSort2())(x)
            y = OrthogonalConv2D(filters, 3)(y)
            x = GroupSort2()(LipResidual()([x, y]))
        x = OrthogonalConv2D(
            2 * filters, 4, strides=2, activation=GroupSort2()
        )(x)
    x = keras.layers.Flatten()(x)
    x = SpectralDense(8 * width, activation=GroupSort2())(x)
    return _with_top(inputs, x, classes, k_coef_lip, include_top, name)


def LipNeXt(
    size="S",
    input_shape=(32, 32, 3),
    classes=10,
    k_coef_lip=1.0,
    include_top=True,
    name="lipnext",
):
    """Patches that are shifted and mixed, without a window anywhere.

    Each block shifts a part of the channels by one patch in each direction
    (`SpatialShift2D`), mixes the channels of each patch by an orthogonal
    matrix, and takes absolute values. All three keep norms, and products of
    matrices are all that it costs.

    Args:
        size: `"S"`, `"M"` or `"L"`: 128, 512 or 1,024 channels and 8, 16 or 32
            blocks.
        input_shape: Tuple `(height, width, channels)`; height and width
            multiples of 4, the side of a patch.
        classes, k_coef_lip, include_top, name: As for `VGG`.

    Reference:
        - [LipNeXt, 2026](https://arxiv.org/abs/2601.18513).
    """
    width, depth = _of_size(size, width=(128, 512, 1024), depth=(8, 16, 32))
    x = inputs = _image_input(input_shape, multiple=4)
    x = InvertibleDownSampling(4)(x)
    x = SpectralConv2D(width, 1)(x)
    for _ in range(depth):
        x = SpatialShift2D(fraction=0.5)(x)
        x = SpectralConv2D(width, 1, activation=Abs(beta=0.5))(x)
    x = ScaledGlobalAveragePooling2D()(x)
    x = SpectralDense(width, activation=GroupSort2())(x)
    return _with_top(inputs, x, classes, k_coef_lip, include_top, name)


def DistanceField(
    size="S", input_shape=(2,), k_coef_lip=1.0, name="distance_field"
):
    """Dense layers and one score: a signed distance, or a detector.

    The score is positive inside of what it has learned, and negative outside.
    Its magnitude never exceeds `k_coef_lip` times the distance of its zero set,
    for any weights: `deel.lip.certification.sphere_trace` follows rays through
    it. All hidden layers are orthogonal and sort: trained with `HKR`,
    its gradient has a norm near `k_coef_lip`, and then it is that distance.
    `deel.lip.sampling.OneClassDataset` makes the samples outside of data that
    has none.

    Args:
        size: `"S"`, `"M"` or `"L"`: 3, 4 or 6 layers of 64, 128 or 256 units.
        input_shape: Tuple, the shape of a point, or of an image, which is
            flattened.
        k_coef_lip: Float, the Lipschitz constant of the score.
        name: String, the name of the model.

    Returns:
        A `deel.lip.model.Model`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> from deel.lip.applications import DistanceField
    >>> from deel.lip.certification import lipschitz_bound
    >>> model = DistanceField("S", input_shape=(3,))
    >>> model.output_shape, round(lipschitz_bound(model), 3)
    ((None, 1), 1.0)

    Reference:
        - [Bethune et al., 2023](https://arxiv.org/abs/2303.01978), "Robust
          one-class classification with signed distance function using
          1-Lipschitz neural networks".
    """
    units, depth = _of_size(size, units=(64, 128, 256), depth=(3, 4, 6))
    shape = () if isinstance(input_shape, int) else tuple(input_shape)
    if not shape or not all(side is not None and side > 0 for side in shape):
        raise ValueError(
            "Argument `input_shape` must be a tuple of one known length or "
            f"more, such as (2,). Received: input_shape={input_shape}"
        )
    x = inputs = keras.Input(shape)
    if len(shape) > 1:
        x = keras.layers.Flatten()(x)
    for _ in range(depth):
        x = SpectralDense(units, activation=FullSort())(x)
    x = FrobeniusDense(1, k_coef_lip=k_coef_lip, name="score")(x)
    return Model(inputs=inputs, outputs=x, name=name)


def _of_size(size, **choices):
    """The entry for a size of each of the triples, as a list."""
    require_one_of("size", size, SIZES)
    return [choice[SIZES.index(size)] for choice in choices.values()]


def _image_input(input_shape, multiple):
    """The input tensor, if the network can divide such an image."""
    shape = tuple(input_shape)
    if len(shape) != 3 or not all(
        side is not None and side > 0 and side % multiple == 0
        for side in shape[:2]
    ):
        raise ValueError(
            "Argument `input_shape` must be (height, width, channels), with a "
            f"height and a width that are multiples of {multiple}. "
            f"Received: input_shape={input_shape}"
        )
    return keras.Input(shape)


def _with_top(inputs, x, classes, k_coef_lip, include_top, name):
    if include_top:
        x = FrobeniusDense(
            positive_int("classes", classes),
            use_bias=False,
            k_coef_lip=k_coef_lip,
            name="scores",
        )(x)
    return Model(inputs=inputs, outputs=x, name=name)
