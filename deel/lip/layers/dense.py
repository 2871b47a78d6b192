"""Dense layers with a constrained kernel."""

import keras

from deel.lip._constrained import ConstrainedKernel
from deel.lip._defaults import DEFAULT_BETA_BJORCK
from deel.lip._defaults import DEFAULT_EPS_BJORCK
from deel.lip._defaults import DEFAULT_EPS_SPECTRAL
from deel.lip._defaults import DEFAULT_MAXITER_BJORCK
from deel.lip._defaults import DEFAULT_MAXITER_SPECTRAL
from deel.lip._register import register
from deel.lip._validation import positive_int
from deel.lip.initializers import SpectralInitializer
from deel.lip.layers._spectral_arguments import SpectralKernel
from deel.lip.parametrizations import Frobenius


@register("SpectralDense")
class SpectralDense(SpectralKernel, keras.layers.Dense):
    """A dense layer whose kernel has all singular values equal to `k_coef_lip`.

    It takes the place of `keras.layers.Dense` and takes its arguments, in the
    same order. `x @ kernel + bias` is then `k_coef_lip`-Lipschitz for the
    Euclidean norm, and keeps distances exactly on the directions it does not
    drop, so gradients do not vanish with depth. The bound holds at each step
    of training, for any kernel and learning rate.

    Use a gradient-preserving activation with it (`GroupSort2`, `FullSort`).
    As the last layer of a classifier `FrobeniusDense` is often better.

    Args:
        units: Positive integer, dimension of the output.
        activation: Activation function, or an activation layer such as
            `GroupSort2()`.
        use_bias: Boolean, whether the layer has a bias.
        kernel_initializer: Initializer of the kernel; None means a new
            `SpectralInitializer()` for each layer. Whatever it draws, the
            kernel that is used is constrained from the start.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the free kernel.
        bias_regularizer: Regularizer of the bias.
        activity_regularizer: Regularizer of the output.
        kernel_constraint: Constraint of the free kernel, applied by the
            optimizer. The Lipschitz constraint does not need one.
        bias_constraint: Constraint of the bias.
        lora_rank: Must be None: LoRA would break the constraint.
        k_coef_lip: Float, the Lipschitz constant of the affine part.
        eps_spectral: Float greater than zero, precision of the power iteration
            behind the monitored value `layer.sig`.
        eps_bjorck: Float greater than zero, accepted for compatibility: a
            training step takes one step of the iteration, all else ends it.
            None disables the orthogonalisation: the layer is then at most
            `k_coef_lip`-Lipschitz, its other singular values are free.
        beta_bjorck: Float in `]0, 0.5]`, accepted for compatibility: the
            iteration always takes steps of 1/2, the only ones that cannot
            overshoot. None disables the orthogonalisation.
        maxiter_spectral: Positive integer, limit of the power iteration.
        maxiter_bjorck: Positive integer, limit of the orthogonalisation outside
            of training steps. Stopping early costs closeness to `k_coef_lip`,
            never the bound.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, ..., input_dim)`.

    Output shape:
        Tensor `(batch_size, ..., units)`.

    Raises:
        ValueError: If an argument is out of its range, or `lora_rank` is given.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import SpectralDense
    >>> layer = SpectralDense(4)
    >>> layer(np.ones((2, 8), "float32")).shape[1]
    4
    >>> kernel = keras.ops.convert_to_numpy(layer.wbar)
    >>> bool(np.allclose(np.linalg.norm(kernel, 2), 1.0, atol=1e-5))
    True

    Reference:
        - [Anil et al., 2019](https://arxiv.org/abs/1811.05381), "Sorting out
          Lipschitz function approximation".
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
        eps_spectral=DEFAULT_EPS_SPECTRAL,
        eps_bjorck=DEFAULT_EPS_BJORCK,
        beta_bjorck=DEFAULT_BETA_BJORCK,
        maxiter_spectral=DEFAULT_MAXITER_SPECTRAL,
        maxiter_bjorck=DEFAULT_MAXITER_BJORCK,
        **kwargs,
    ):
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
            eps_spectral=eps_spectral,
            eps_bjorck=eps_bjorck,
            beta_bjorck=beta_bjorck,
            maxiter_spectral=maxiter_spectral,
            maxiter_bjorck=maxiter_bjorck,
            **kwargs,
        )


@register("FrobeniusDense")
class FrobeniusDense(ConstrainedKernel, keras.layers.Dense):
    """A dense layer whose kernel is divided by its Euclidean norm.

    The natural last layer of a Lipschitz classifier. With one output it is
    the same as `SpectralDense`. With several, `disjoint_neurons=True` makes
    each output `k_coef_lip`-Lipschitz *by itself*, as a classifier with one
    score for each class wants it. The vector of outputs is then bounded by
    `k_coef_lip * sqrt(units)` only, and the difference of two scores by
    `2 * k_coef_lip`, which certificates have to count.

    Args:
        units: Positive integer, dimension of the output.
        disjoint_neurons: Boolean. True divides each column of the kernel by
            its own norm, False divides the kernel by its Frobenius norm, which
            bounds the whole map.
        **kwargs: The other arguments of `SpectralDense`, but for the five of
            the orthogonalisation.

    Input shape:
        As for `SpectralDense`.

    Output shape:
        As for `SpectralDense`.

    Raises:
        ValueError: If an argument is out of its range, or `lora_rank` is given.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import FrobeniusDense
    >>> layer = FrobeniusDense(2, use_bias=False)
    >>> layer.build((None, 2))
    >>> _ = layer.kernel.assign(np.array([[3.0, 0.0], [4.0, 2.0]]))
    >>> print(keras.ops.convert_to_numpy(layer(np.eye(2))).round(4))
    [[0.6 0. ]
     [0.8 1. ]]
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
        disjoint_neurons=True,
        k_coef_lip=1.0,
        **kwargs,
    ):
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
            parametrization=Frobenius(axis=-1 if disjoint_neurons else None),
            **kwargs,
        )
        self.disjoint_neurons = disjoint_neurons

    def get_config(self):
        config = super().get_config()
        return {**config, "disjoint_neurons": self.disjoint_neurons}
