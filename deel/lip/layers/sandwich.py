"""Pairs of layers with an activation inside that share what they may expand.

Note [Why a sandwich never expands]

Let `f(h) = r/k A^T P s(r P^-1 B h + b)`, with r the root of two, P diagonal and
positive, and s a function of one number with slopes from 0 to 1, applied to
each entry. For any two inputs there is a diagonal D with entries in [0, 1], the
slopes between the two values of each hidden unit, such that f moves by
`2/k A^T D B v` where h moves by v: P cancels. For unit vectors u and v, with
`a = D^(1/2) A u` and `c = D^(1/2) B v`,

    2 u^T A^T D B v = 2 a . c <= 1/2 ||a + c||^2 <= 1/2 ||A u + B v||^2
                    <= 1/2 ||[A B]||^2 (||u||^2 + ||v||^2) = ||[A B]||^2,

since `4 a . c = ||a + c||^2 - ||a - c||^2`. So f is `||[A B]||^2 / k`-Lipschitz
for any A and B: k-Lipschitz, if the matrix of both has norm k or less. It need
not have orthonormal rows; these, times k, are what loses least.

Nor need they be matrices. For convolutions that keep the size of images, with
one scale for each channel, so that P still cancels, `[A B]` is the convolution
of the channels of both, and A^T the adjoint of the one for those of A.

References:
    - Wang and Manchester, "Direct parameterization of Lipschitz-bounded deep
      networks", ICML 2023 (arXiv:2301.11526), who find orthonormal rows by
      Cayley's map and prove it by a linear matrix inequality.
"""

from deel.lip._backend.variables import host
from deel.lip._constrained import ConstrainedKernel
from deel.lip._register import register
from deel.lip.initializers import SpectralInitializer
from deel.lip.layers._pairs import ConvPair2D
from deel.lip.layers._pairs import DensePair
from deel.lip.parametrizations import BlockConvolution
from deel.lip.parametrizations import Spectral


class _Sandwich(ConstrainedKernel):
    """Base of the sandwiches; it stands before the pair of two kernels."""

    # The scales.
    _further_weights = 1

    def _whole_constant(self):
        # The activation is inside.
        return self.k_coef_lip

    def vanilla_export(self):
        exported = super().vanilla_export()
        exported.psi.assign(host(self.psi))
        return exported


@register("SandwichDense")
class SandwichDense(_Sandwich, DensePair):
    """A dense layer between two kernels that are bounded together.

    `sqrt(2) act(sqrt(2) x B / p + b) p A`, where the kernel, B with the
    transpose of A below it, has all singular values equal to one (as in
    `SpectralDense`), and p > 0 is a trained scale for each hidden unit. What
    one factor does not expand the other may. The whole is 1-Lipschitz, the
    activation inside included, and needs none after it. For shallow networks
    that have to use ReLU and the like; with sorting, `SpectralDense` passes
    more on, and so does `SLLDense` in deep stacks.

    Args:
        units: Positive integer, the number of hidden units, and of outputs.
        activation: Name or function with slopes from 0 to 1: `"relu"`,
            `"leaky_relu"`, `"elu"`, `"softplus"`, `"tanh"`, ... Sorting is none
            of them.
        kernel_initializer: Initializer of the kernel; None means a new
            `SpectralInitializer()` for each layer.
        k_coef_lip: Float, the Lipschitz constant of the layer.
        **kwargs: What else `keras.layers.Dense` takes, but for `lora_rank`.

    Input shape:
        Tensor `(batch_size, ..., input_dim)`.

    Output shape:
        Tensor `(batch_size, ..., units)`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import SandwichDense
    >>> layer = SandwichDense(1, use_bias=False)
    >>> layer.build((None, 1))
    >>> _ = layer.kernel.assign([[3.0], [3.0]])
    >>> x = np.array([[2.0], [-2.0]], "float32")
    >>> y = keras.ops.convert_to_numpy(layer(x, training=True))
    >>> print(abs(y.round(4)))
    [[2.]
     [0.]]

    Reference:
        - [Wang and Manchester, 2023](https://arxiv.org/abs/2301.11526),
          "Direct parameterization of Lipschitz-bounded deep networks".
    """

    def __init__(
        self,
        units,
        activation="relu",
        kernel_initializer=None,
        k_coef_lip=1.0,
        **kwargs,
    ):
        super().__init__(
            units,
            activation=activation,
            kernel_initializer=kernel_initializer or SpectralInitializer(),
            parametrization=Spectral(),
            k_coef_lip=k_coef_lip,
            **kwargs,
        )


@register("SandwichConv2D")
class SandwichConv2D(_Sandwich, ConvPair2D):
    """A pair of convolutions that are bounded together.

    `SandwichDense` for images: `sqrt(2) convA^T(p act(sqrt(2) convB(x) / p +
    b))`, where convB and convA are one convolution of the channels of the input
    and of the output, side by side. It is an orthogonal one, as
    `OrthogonalConv2D` is: of the three ways to bound it, this one wastes
    nothing, while a division by a norm, or by overlaps, leaves most directions
    below one. The whole is 1-Lipschitz, the activation inside included, and
    needs none after it. For shallow networks that have to use ReLU and the
    like. Two convolutions, so twice the time of one at inference too.

    Args:
        filters: Positive integer, the number of hidden channels, and of output
            channels.
        kernel_size: Odd integer or pair of odd integers, the window.
        activation: See `SandwichDense`.
        kernel_initializer: Initializer of the factors, as in
            `OrthogonalConv2D`.
        k_coef_lip: Float, the Lipschitz constant of the layer.
        **kwargs: What else `keras.layers.Conv2D` takes; `padding` must be
            `"same"`, `strides`, `dilation_rate` and `groups` 1.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        Tensor `(batch_size, height, width, filters)`, or channels first.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import SandwichConv2D
    >>> layer = SandwichConv2D(16, 3)
    >>> tuple(layer(np.ones((2, 8, 8, 4), "float32")).shape)
    (2, 8, 8, 16)

    Reference:
        - [Wang and Manchester, 2023](https://arxiv.org/abs/2301.11526),
          "Direct parameterization of Lipschitz-bounded deep networks".
    """

    def __init__(
        self,
        filters,
        kernel_size,
        activation="relu",
        kernel_initializer="orthogonal",
        k_coef_lip=1.0,
        **kwargs,
    ):
        super().__init__(
            filters,
            kernel_size,
            activation=activation,
            kernel_initializer=kernel_initializer,
            parametrization=BlockConvolution((1, 1)),
            k_coef_lip=k_coef_lip,
            **kwargs,
        )
