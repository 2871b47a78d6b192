"""A dense layer that is made orthogonal in one of several ways."""

import functools

import keras

from deel.lip._constrained import ConstrainedKernel
from deel.lip._register import register
from deel.lip._validation import positive_int
from deel.lip.initializers import SpectralInitializer
from deel.lip.parametrizations import BlockReflector
from deel.lip.parametrizations import CholeskyQR
from deel.lip.parametrizations import Skew
from deel.lip.parametrizations import Spectral

_PARAMETRIZATIONS = {
    "newton_schulz": Spectral,
    "cholesky_qr": CholeskyQR,
    "cayley": functools.partial(Skew, "cayley"),
    "exponential": functools.partial(Skew, "exponential"),
    "block_reflector": BlockReflector,
}


@register("OrthogonalDense")
class OrthogonalDense(ConstrainedKernel, keras.layers.Dense):
    """A dense layer with an orthogonal kernel, made so by a chosen method.

    As in `SpectralDense`, `x @ kernel + bias` is `k_coef_lip`-Lipschitz for any
    free kernel and learning rate, and all singular values of the kernel that is
    used are `k_coef_lip`, if those of the free kernel differ by a factor of 100
    at most. Initializers and training keep them alike. Columns (or rows) that
    depend on each other, as in a kernel of ones, say less than a matrix, and
    the layer then contracts: values below `k_coef_lip` remain, those that are
    zero with the first method, and all of the dependent ones with the second.
    The others complete what is missing. The methods differ in the path that
    training takes, and in cost:

    - `"newton_schulz"`: the orthogonal matrix nearest to the free kernel, as in
      `SpectralDense`. Nothing but matrix products, few of them: the fastest,
      above all on accelerators, and the one to take without a reason for
      another.
    - `"cholesky_qr"`: the factor Q of its QR decomposition, by two Cholesky
      factorisations and triangular systems of the smaller side. Its
      derivative is that of the algorithm itself. Faster than Newton-Schulz
      where a kernel is far from orthogonal at each step, as with an optimizer
      that ignores constraints. The first columns change least.
    - `"cayley"`: Cayley's map of a skew matrix, one linear system of the
      smaller side. Free parameters are a plain vector space, which no
      retraction interferes with: for optimizers with a long memory, averages
      of weights, or regularizers that pull to the identity (the zero kernel).
      Eigenvalues of -1 are out of reach.
    - `"exponential"`: the exponential of a skew matrix, of the *larger* side,
      about fifteen products of it: for small or square kernels. A vector space
      as well, and every rotation is within reach.
    - `"block_reflector"`: `I - 2 V (V^T V)^-1 V^T`, the reflection of what the
      columns of the free matrix V span, cut to the columns that are needed. V
      has the larger side for its rows, and only `rank` columns, so there is
      less to train and to factorise. What it reaches are reflections, which
      keep all but `rank` directions of a square kernel. Columns of V that
      nearly depend on each other lose their reflection. Zero gives the
      identity.

    Args:
        units: Positive integer, dimension of the output.
        method: `"newton_schulz"`, `"cholesky_qr"`, `"cayley"`,
            `"exponential"` or `"block_reflector"`.
        rank: Integer, less than the larger side of the kernel: the number of
            eigenvalues -1 of a block reflector, of which the free matrix has
            the columns. None means a quarter of that side. For this method
            only.
        **kwargs: The other arguments of `SpectralDense`, but for the five of
            the orthogonalisation.

    Input shape:
        As for `SpectralDense`.

    Output shape:
        As for `SpectralDense`.

    Raises:
        ValueError: If an argument is out of its range, if `lora_rank` is
            given, or `rank` for another method.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import OrthogonalDense
    >>> layer = OrthogonalDense(4, method="cayley")
    >>> layer(np.ones((2, 8), "float32")).shape[1]
    4
    >>> kernel = keras.ops.convert_to_numpy(layer.wbar)
    >>> bool(np.allclose(kernel.T @ kernel, np.eye(4), atol=1e-5))
    True

    Reference:
        - [Trockman and Kolter, 2021](https://arxiv.org/abs/2104.07167),
          "Orthogonalizing convolutional layers with the Cayley transform".
        - [Lezcano-Casado and Martinez-Rubio,
          2019](https://arxiv.org/abs/1901.08428), "Cheap orthogonal constraints
          in neural networks".
        - [Fukaya et al., 2020](https://arxiv.org/abs/1809.11085), "Shifted
          Cholesky QR for computing the QR factorization of ill-conditioned
          matrices".
        - [Lai et al., 2025](https://arxiv.org/abs/2505.15174), "Enhancing
          certified robustness via block reflector orthogonal layers and logit
          annealing loss".
    """

    def __init__(
        self,
        units,
        activation=None,
        use_bias=True,
        kernel_initializer=None,
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        lora_rank=None,
        k_coef_lip=1.0,
        method="newton_schulz",
        rank=None,
        **kwargs,
    ):
        if method not in _PARAMETRIZATIONS:
            raise ValueError(
                f"Argument `method` must be one of {tuple(_PARAMETRIZATIONS)}. "
                f"Received: method={method}"
            )
        own = {}
        if method == "block_reflector":
            own["rank"] = None if rank is None else positive_int("rank", rank)
        elif rank is not None:
            raise ValueError(
                'Argument `rank` is that of `method="block_reflector"`. '
                f"Expected `rank=None` for {method!r}. Received: rank={rank}"
            )
        super().__init__(
            positive_int("units", units),
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer or SpectralInitializer(),
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            lora_rank=lora_rank,
            k_coef_lip=k_coef_lip,
            parametrization=_PARAMETRIZATIONS[method](**own),
            **kwargs,
        )
        self.method = method
        self.rank = own.get("rank")

    def get_config(self):
        return {
            **super().get_config(),
            "method": self.method,
            "rank": self.rank,
        }
