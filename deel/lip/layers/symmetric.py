"""Residual blocks whose step is symmetric, hence cannot go too far.

Note [Why the blocks never expand]

Let A be linear with norm at most one, and f a function of one number with
slopes from 0 to 1, applied to each entry. The Jacobian of
`x - 2 A^T f(A x + b)` is `J = I - 2 A^T D A`, D diagonal with entries in
[0, 1]. `A^T D A` is symmetric, and between 0 and `A^T A <= I`. So the
eigenvalues of J are between -1 and 1, and J is symmetric: its norm is at most
one, wherever there is a derivative, hence everywhere (all these functions are
integrals of their slopes).

With rescaled channels (`deel.lip.parametrizations.almost_orthogonal`),
`A = T^(-1/2) P`, and with ReLU, through which positive factors pass, this is
the block of Araujo et al., `x - 2 P^T T^-1 relu(P x + b)`, up to the scale of
the bias. Their weights q are the norms of the columns of the free kernel.

References:
    - Araujo et al., "A unified algebraic perspective on Lipschitz neural
      networks", ICLR 2023 (arXiv:2303.03169).
    - Meunier et al., "A dynamical system perspective for Lipschitz neural
      networks", ICML 2022 (arXiv:2110.12690).
"""

from deel.lip._constrained import ConstrainedKernel
from deel.lip._register import register
from deel.lip.initializers import SpectralInitializer
from deel.lip.layers.unconstrained import ResidualConv2D
from deel.lip.layers.unconstrained import ResidualDense
from deel.lip.parametrizations import AlmostOrthogonal


class _Symmetric(ConstrainedKernel):
    """Base of the blocks: AOL kernels, for the hidden units."""

    def __init__(self, *args, kernel_initializer=None, rank, **kwargs):
        super().__init__(
            *args,
            kernel_initializer=kernel_initializer or SpectralInitializer(),
            parametrization=AlmostOrthogonal((1,) * rank, by_output=True),
            **kwargs,
        )

    def _whole_constant(self):
        # The activation is inside of the block.
        return self.k_coef_lip


@register("SLLDense")
class SLLDense(_Symmetric, ResidualDense):
    """A dense residual block that is 1-Lipschitz, and nearly the identity.

    `x - 2 act(x V + b) V^T`, where V is the kernel with its columns rescaled to
    norm one at most (as in `AOLDense`). The step of an ordinary residual adds
    to the norm; this one can only turn and shrink. Gradients find their way
    through deep stacks of it, and it needs no activation after it.

    Args:
        units: Positive integer, the number of hidden units; the output has as
            many as the input.
        activation: Name or function with slopes from 0 to 1: `"relu"`,
            `"leaky_relu"`, `"elu"`, `"softplus"`, `"tanh"`, ... Sorting is none
            of them.
        kernel_initializer: Initializer of the kernel; None means a new
            `SpectralInitializer()` for each layer.
        k_coef_lip: Float, the Lipschitz constant of the block.
        **kwargs: What else `keras.layers.Dense` takes, but for `lora_rank`.

    Input shape:
        Tensor `(batch_size, ..., input_dim)`.

    Output shape:
        The same as the input shape.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import SLLDense
    >>> layer = SLLDense(1, use_bias=False)
    >>> layer.build((None, 2))
    >>> _ = layer.kernel.assign([[5.0], [0.0]])
    >>> x = np.array([[3.0, 1.0], [-3.0, 1.0]], "float32")
    >>> y = keras.ops.convert_to_numpy(layer(x, training=True))
    >>> print(y.round(4))
    [[-3.  1.]
     [-3.  1.]]

    Reference:
        - [Araujo et al., 2023](https://arxiv.org/abs/2303.03169), "A unified
          algebraic perspective on Lipschitz neural networks".
    """

    def __init__(self, units, activation="relu", k_coef_lip=1.0, **kwargs):
        super().__init__(
            units,
            activation=activation,
            k_coef_lip=k_coef_lip,
            rank=0,
            **kwargs,
        )


@register("SLLConv2D")
class SLLConv2D(_Symmetric, ResidualConv2D):
    """A convolutional residual block that is 1-Lipschitz.

    `x - 2 conv^T(act(conv(x) + b))`, with a kernel whose hidden channels are
    rescaled as those of `AOLConv2D`, and the adjoint of the convolution. See
    `SLLDense`. Two convolutions, so twice the time of one at inference too.

    Args:
        filters: Positive integer, the number of hidden channels; the output
            has as many as the input.
        kernel_size: Odd integer or pair of odd integers, the window.
        activation: See `SLLDense`.
        kernel_initializer: Initializer of the kernel; None means a new
            `SpectralInitializer()` for each layer.
        k_coef_lip: Float, the Lipschitz constant of the block.
        **kwargs: What else `keras.layers.Conv2D` takes; `padding` must be
            `"same"`, `strides`, `dilation_rate` and `groups` 1.

    Input shape:
        Tensor `(batch_size, height, width, channels)`, or channels first.

    Output shape:
        The same as the input shape.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import SLLConv2D
    >>> layer = SLLConv2D(16, 3)
    >>> tuple(layer(np.ones((2, 8, 8, 4), "float32")).shape)
    (2, 8, 8, 4)

    Reference:
        - [Araujo et al., 2023](https://arxiv.org/abs/2303.03169), "A unified
          algebraic perspective on Lipschitz neural networks".
    """

    def __init__(
        self, filters, kernel_size, activation="relu", k_coef_lip=1.0, **kwargs
    ):
        super().__init__(
            filters,
            kernel_size,
            activation=activation,
            k_coef_lip=k_coef_lip,
            rank=2,
            **kwargs,
        )
