"""Residual blocks that hold their branch.

Note [Why the blocks never expand]

Let the branch f be b-Lipschitz. By the triangle inequality, `x + f(x)` moves by
at most `(1 + b) ||d||` where x moves by d. With x = [u, v], the squares of what
`[u, f(v)]` moves by add up to at most `||d_u||^2 + b^2 ||d_v||^2`, hence to
`max(1, b)^2 ||d||^2`. Each block divides by its factor.
"""

from keras import ops

from deel.lip._backend.tensors import scaled
from deel.lip._backend.tensors import scaled_sum
from deel.lip._register import register
from deel.lip.layers._branched import Branched


class _Residual(Branched):
    """Base of the blocks whose branch keeps the shape."""

    def check_outputs(self, shape, outputs):
        if outputs != [shape]:
            raise ValueError(
                f"The branch of {type(self).__name__} must keep the shape of "
                f"its input, {shape}. Received: layer={self.layer}, with "
                f"outputs of shapes {outputs}"
            )

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)


@register("PrescaledResidual")
class PrescaledResidual(_Residual):
    """The sum of the input and a branch, divided by its constant.

    `k_coef_lip (x + f(x)) / (1 + b)`, where f is the branch and b its constant.
    The branch is a layer or a model that keeps the shape. A small b makes
    the block nearly the identity, and each block of a deep stack a small step.
    Where the weight of the branch shall be learned, take `LipResidual`.

    Args:
        layer: The branch: a layer with a constant `k_coef_lip`, a
            `deel.lip.model.Sequential`, or any other one with `k_branch`.
        k_coef_lip: Float, the Lipschitz constant of the block.
        k_branch: Float, the Lipschitz constant of a branch that has no
            `k_coef_lip`, which you know. None for all others; the constant
            of their activation counts.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, ...)`.
        The output has the same.

    Raises:
        ValueError: If the branch is no layer, changes the shape of its input,
            or has no constant; if it has one, and `k_branch` is given; or if
            it is that of each output by itself (`disjoint_neurons=True`).

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.activations import Abs
    >>> from deel.lip.layers import PrescaledResidual
    >>> x = np.array([[3., -2.]])
    >>> layer = PrescaledResidual(Abs(k_coef_lip=0.25))
    >>> print(keras.ops.convert_to_numpy(layer(x)))
    [[ 3.  -1.2]]

    Reference:
        - [He et al., 2016](https://arxiv.org/abs/1603.05027), "Identity
          mappings in deep residual networks".
    """

    def joined_constant(self, k_branch):
        return 1.0 + k_branch

    def branch_shape(self, input_shape):
        return tuple(input_shape)

    def _joined(self, inputs, branch):
        return scaled_sum(inputs, branch(inputs), self._get_coef())


@register("PartialResidual")
class PartialResidual(_Residual):
    """Half of the channels pass, the others go through a branch.

    `k_coef_lip [u, f(v)] / max(1, b)`, where u and v are the halves of the
    channels, f is the branch and b its constant. With b at most one nothing is
    divided. Unlike a sum, this loses nothing: it keeps distances where the
    branch does. Mix the channels between two such blocks, by an orthogonal
    layer.

    Args:
        layer: The branch, which keeps the shape of half of the channels.
        **kwargs: As for `PrescaledResidual`: `k_coef_lip`, `k_branch` and what
            Keras layers take.

    Input shape:
        Tensor `(batch_size, ..., channels)`, an even number of channels.
        The output has the same.

    Raises:
        ValueError: As for `PrescaledResidual`; or for an odd number of
            channels.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.activations import Abs
    >>> from deel.lip.layers import PartialResidual
    >>> x = np.array([[-3., -2., -1., 5.]])
    >>> print(keras.ops.convert_to_numpy(PartialResidual(Abs())(x)))
    [[-3. -2.  1.  5.]]

    Reference:
        - [Wang et al., 2019](https://arxiv.org/abs/1911.11929), "CSPNet: a new
          backbone that can enhance learning capability of CNN".
    """

    def joined_constant(self, k_branch):
        return max(1.0, k_branch)

    def branch_shape(self, input_shape):
        *leading, channels = input_shape
        if channels % 2:
            raise ValueError(
                "PartialResidual splits the channels in two halves, so their "
                f"number must be even. Received: channels={channels}"
            )
        return (*leading, channels // 2)

    def _joined(self, inputs, branch):
        passed, changed = ops.split(inputs, 2, axis=-1)
        joined = ops.concatenate([passed, branch(changed)], axis=-1)
        return scaled(joined, self._get_coef())
