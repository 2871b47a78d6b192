"""Regularizers that draw kernels towards orthogonal ones.

They ask for orthogonality, where the Spectral layers impose it: a network
trained with them is Lipschitz only as far as the training succeeded.
"""

import warnings

import keras
from keras import ops

from deel.lip._register import register
from deel.lip._validation import ArgumentError
from deel.lip._validation import int_tuple
from deel.lip._validation import positive_int

__all__ = ["Lorth", "Lorth2D", "LorthRegularizer", "OrthDenseRegularizer"]


def __dir__():
    return __all__


@register("OrthDenseRegularizer")
class OrthDenseRegularizer(keras.regularizers.Regularizer):
    """Penalty on matrices whose rows or columns are not orthonormal.

    `lambda_orth * ||G - I||_F^2`, where G is the smaller of the two Gram
    matrices of the kernel. For dense layers; see `LorthRegularizer` for
    convolutions.

    Args:
        lambda_orth: Float, the weight of the penalty.

    Example:

    >>> import numpy as np
    >>> from deel.lip.regularizers import OrthDenseRegularizer
    >>> float(OrthDenseRegularizer()(np.array([[3.0, 0.0], [4.0, 2.0]])))
    713.0
    """

    def __init__(self, lambda_orth=1.0):
        self.lambda_orth = float(lambda_orth)

    def __call__(self, x):
        w = ops.convert_to_tensor(x)
        if len(w.shape) != 2:
            raise ValueError(
                "`OrthDenseRegularizer` expects the kernel of a dense layer, "
                f"a matrix. Received: x.shape={tuple(w.shape)}"
            )
        if w.shape[0] <= w.shape[1]:
            w = ops.transpose(w)
        defect = ops.matmul(ops.transpose(w), w)
        defect = defect - ops.eye(w.shape[1], dtype=w.dtype)
        return self.lambda_orth * ops.sum(ops.square(defect))

    def get_config(self):
        return {"lambda_orth": self.lambda_orth}


class Lorth:
    """How far a convolution is from an orthogonal one; abstract.

    A strided convolution with M filters on C channels is orthogonal if its
    filters, shifted by any multiple of the stride S, are orthonormal: if the
    convolution of the kernel with itself is the identity at shift zero and
    zero at all others. With more outputs than inputs, `M > S^dim C`, no kernel
    reaches this; the least distance, `delta`, is subtracted.

    The layers of one rank are a subclass, which implements `compute_lorth`.

    Args:
        dim: Integer, number of spatial axes.
        kernel_shape: Tuple `(R, ..., C, M)` with an odd R for each spatial
            axis, or None to set it later.
        stride: Positive integer.
        conv_transpose: Boolean, whether inputs and outputs change their roles.

    Attributes:
        padding: Integer, the largest shift; None while no shape is set.
        delta: Integer, what is subtracted; None while no shape is set.
        alphaNormSpectral: Integer, relates the distance to the singular values
            of the convolution; None while no shape is set.

    Raises:
        AssertionError: If the kernel size is even.
        ValueError: If no orthogonal convolution of this shape exists.

    Reference:
        - [Achour et al., 2022](https://arxiv.org/abs/2108.05623), "Existence,
          stability and scalability of orthogonal convolutional neural
          networks".
    """

    def __init__(self, dim, kernel_shape=None, stride=1, conv_transpose=False):
        self.dim = dim
        self.stride = positive_int("stride", stride)
        self.conv_transpose = conv_transpose
        self.set_kernel_shape(kernel_shape)

    def set_kernel_shape(self, shape):
        """Sets `kernel_shape`, and the attributes that follow from it."""
        if shape is None:
            self.kernel_shape = self.padding = None
            self.delta = self.alphaNormSpectral = None
            return
        shape = int_tuple(shape, self.dim + 2)
        self._check_form(shape)
        size, channels, filters = shape[0], shape[-2], shape[-1]
        self._check_existence(size, channels, filters)
        if self.conv_transpose:
            channels, filters = filters, channels
        surplus = filters - self.stride**self.dim * channels
        steps = (size - 1) // self.stride
        self.kernel_shape = shape
        self.padding = steps * self.stride
        self.delta = max(0, surplus)
        self.alphaNormSpectral = size * channels * filters
        if surplus <= 0:
            self.alphaNormSpectral = filters * (2 * steps + 1) ** self.dim
        if surplus >= 0:
            self.alphaNormSpectral = min(
                self.alphaNormSpectral, channels * (2 * size - 1) ** self.dim
            )

    def compute_lorth(self, w):
        """Squared distance of the kernel `w` from orthogonality, a scalar."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement `compute_lorth`."
        )

    def _check_form(self, shape):
        if len(shape) != self.dim + 2 or len(set(shape[: self.dim])) != 1:
            raise ValueError(
                f"Expected a kernel with {self.dim} spatial axes of one size, "
                f"then two axes of channels. Received: kernel_shape={shape}"
            )
        if shape[0] % 2 == 0:
            raise AssertionError(
                f"The kernel size must be odd. Received: kernel_shape={shape}"
            )

    def _check_existence(self, size, channels, filters):
        received = (
            f"Received: kernel size {size}, {channels} channels, "
            f"{filters} filters, stride={self.stride}"
        )
        inputs = channels * self.stride**self.dim
        if inputs >= filters and filters > channels * size**self.dim:
            raise ArgumentError(
                "Impossible RO configuration: there are more filters than "
                f"values in a window, so rows cannot be orthogonal. {received}"
            )
        if inputs < filters and self.stride > size:
            raise ArgumentError(
                "Impossible CO configuration: the stride exceeds the window, "
                "so some inputs are not read and columns cannot be orthogonal. "
                f"{received}"
            )
        if inputs == filters:
            warnings.warn(
                "A convolution with as many outputs as inputs is hard to "
                f"optimize with this regularizer. {received}",
                UserWarning,
                stacklevel=3,
            )


class Lorth2D(Lorth):
    """`Lorth` for 2-D convolutions, of kernels `(R, R, C, M)`.

    Takes the arguments of `Lorth`, but for `dim`.

    Example:

    >>> import numpy as np
    >>> from deel.lip.regularizers import Lorth2D
    >>> kernel = np.zeros((3, 3, 2, 1), "float32")
    >>> kernel[1, 1, 0, 0] = 1.0
    >>> float(Lorth2D(kernel.shape).compute_lorth(kernel))
    0.0
    """

    def __init__(self, kernel_shape=None, stride=1, conv_transpose=False):
        super().__init__(2, kernel_shape, stride, conv_transpose)

    def compute_lorth(self, w):
        w = ops.convert_to_tensor(w)
        if tuple(w.shape) != self.kernel_shape:
            raise ValueError(
                "Expected a kernel of the shape that was set. Received: "
                f"w.shape={tuple(w.shape)}, kernel_shape={self.kernel_shape}"
            )
        filters = w.shape[-1]
        around = [self.padding, self.padding]
        images = ops.transpose(w, (3, 0, 1, 2))
        products = ops.conv(
            ops.pad(images, [[0, 0], around, around, [0, 0]]),
            w,
            strides=self.stride,
            padding="valid",
            data_format="channels_last",
        )
        centre = [self.padding // self.stride] * 2
        identity = ops.eye(filters, dtype=w.dtype)
        target = ops.pad(
            ops.reshape(identity, (filters, 1, 1, filters)),
            [[0, 0], centre, centre, [0, 0]],
        )
        return ops.sum(ops.square(products - target)) - self.delta


@register("LorthRegularizer")
class LorthRegularizer(keras.regularizers.Regularizer):
    """Penalty on kernels of convolutions that are not orthogonal.

    To be passed as `kernel_regularizer` of a convolution, whose stride must be
    given again.

    Args:
        kernel_shape: Tuple `(R, R, C, M)`, or None to take the shape of each
            kernel that is regularized.
        stride: Positive integer, the stride of the convolution.
        lambda_lorth: Float, the weight of the penalty.
        dim: Must be 2, the number of spatial axes.
        conv_transpose: Boolean, see `Lorth`.

    Attributes:
        lorth: The `Lorth2D` that computes the distance.

    Raises:
        NotImplementedError: If `dim` is not 2. Else as `Lorth`.

    Example:

    >>> import keras
    >>> from deel.lip.regularizers import LorthRegularizer
    >>> layer = keras.layers.Conv2D(
    ...     4, 3, padding="same", kernel_regularizer=LorthRegularizer()
    ... )
    >>> layer.build((None, 8, 8, 2))
    >>> len(layer.losses)
    1
    """

    def __init__(
        self,
        kernel_shape=None,
        stride=1,
        lambda_lorth=1.0,
        dim=2,
        conv_transpose=False,
    ):
        if dim != 2:
            raise NotImplementedError(
                "Only 2-D convolutions can be regularized, `dim=2`. "
                f"Received: dim={dim}"
            )
        self.dim = dim
        self.stride = stride
        self.lambda_lorth = float(lambda_lorth)
        self.conv_transpose = conv_transpose
        self.lorth = Lorth2D(None, stride, conv_transpose)
        self.set_kernel_shape(kernel_shape)

    def set_kernel_shape(self, shape):
        """Sets `kernel_shape`."""
        self.lorth.set_kernel_shape(shape)
        self.kernel_shape = self.lorth.kernel_shape

    def __call__(self, x):
        shape = tuple(x.shape)
        # One regularizer may serve several layers: a shape that was not given
        # follows the kernel.
        if self.kernel_shape is None and self.lorth.kernel_shape != shape:
            self.lorth.set_kernel_shape(shape)
        return self.lambda_lorth * self.lorth.compute_lorth(x)

    def get_config(self):
        shape = self.kernel_shape
        return {
            "kernel_shape": None if shape is None else list(shape),
            "stride": self.lorth.stride,
            "lambda_lorth": self.lambda_lorth,
            "dim": self.dim,
            "conv_transpose": self.conv_transpose,
        }
