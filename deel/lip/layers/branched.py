"""Residual blocks that hold their branch.

Note [Why the blocks never expand]

Let the branch f be b-Lipschitz. By the triangle inequality, `x + f(x)` moves by
at most `(1 + b) ||d||` where x moves by d. With x = [u, v], the squares of what
`[u, f(v)]` moves by add up to at most `||d_u||^2 + b^2 ||d_v||^2`, hence to
`max(1, b)^2 ||d||^2`. Each block divides by its factor.
"""

import keras
from keras import ops

from deel.lip._backend.tensors import scaled
from deel.lip._backend.tensors import scaled_sum
from deel.lip._export import condensable_layers
from deel.lip._export import copy_state
from deel.lip._export import stock_version
from deel.lip._lipschitz import Condensable
from deel.lip._lipschitz import LipschitzLayer
from deel.lip._lipschitz import warn_of_activation
from deel.lip._register import register
from deel.lip._validation import positive_float
from deel.lip._validation import require_built


class _Branched(LipschitzLayer, Condensable, keras.layers.Wrapper):
    """Base of the blocks: a branch of known constant, and a factor.

    A subclass says how the branch is joined, and what that does to constants.
    """

    def __init__(self, layer, k_coef_lip=1.0, k_branch=None, **kwargs):
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(
                f"The branch of {type(self).__name__} must be a Keras layer or "
                f"model. Received: layer={layer} (of type "
                f"{type(layer).__name__})"
            )
        is_known = isinstance(layer, LipschitzLayer)
        if is_known and k_branch is not None:
            raise ValueError(
                "The constant of the branch is its own `k_coef_lip`, "
                f"{layer.k_coef_lip}. Expected `k_branch=None`. "
                f"Received: k_branch={k_branch}"
            )
        if not is_known and k_branch is None:
            raise ValueError(
                f"The branch of {type(self).__name__} must have a Lipschitz "
                "constant: a layer with `k_coef_lip`, a "
                "`deel.lip.model.Sequential`, or any other one with "
                f"`k_branch=number`. Received: layer={layer}, k_branch=None"
            )
        if is_known:
            _require_joint_constant(layer)
            warn_of_activation(layer)
        super().__init__(layer, **kwargs)
        self.set_klip_factor(k_coef_lip)
        self.k_branch = (
            None if k_branch is None else positive_float("k_branch", k_branch)
        )

    @property
    def coef_lip(self):
        # Not stored, since the branch may be given another constant.
        return self._compute_lip_coef()

    def _compute_lip_coef(self, input_shape=None):
        return 1.0 / self.joined_constant(self._branch_constant())

    def _branch_constant(self):
        """The constant that the branch has now, its activation included."""
        if self.k_branch is not None:
            return self.k_branch
        promised = self.layer.k_coef_lip
        whole = self.layer._whole_constant()
        # A model may exceed what it promises, which it then warns of.
        return promised if whole is None else max(promised, whole)

    def joined_constant(self, k_branch):
        """Constant of the join, before it is divided by what is promised."""
        raise NotImplementedError

    def branch_shape(self, input_shape):
        """Shape of what enters the branch."""
        raise NotImplementedError

    def build(self, input_shape):
        if self.k_branch is None:
            # Again, since layers may have been added to a model.
            _require_joint_constant(self.layer)
        shape = self.branch_shape(input_shape)
        super().build(shape)
        outputs = self.layer.compute_output_spec(
            keras.KerasTensor(shape, self.compute_dtype)
        )
        found = [tuple(x.shape) for x in keras.tree.flatten(outputs)]
        if found != [shape]:
            raise ValueError(
                f"The branch of {type(self).__name__} must keep the shape of "
                f"its input, {shape}. Received: layer={self.layer}, with "
                f"outputs of shapes {found}"
            )
        self.built = True

    def call(self, inputs, training=None):
        # Keras hands `training` to what is called inside.
        return self._joined(inputs, self.layer)

    def _joined(self, inputs, branch):
        """What the block makes of its inputs and of a function, its branch."""
        raise NotImplementedError

    def _stock_call(self, inputs, convert):
        return self._joined(inputs, convert(self.layer))

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def _check_condensable(self):
        require_built(self, "condense")
        for layer in condensable_layers([self]):
            layer._check_condensable()

    def condense(self):
        """Overwrites the free kernels of the branch with constrained ones."""
        self._check_condensable()
        for layer in condensable_layers([self]):
            layer.condense()

    def vanilla_export(self):
        """Returns the same block around the stock version of its branch."""
        require_built(self, "vanilla_export")
        branch, is_copy = stock_version(self.layer)
        known = self.k_branch
        if not isinstance(branch, LipschitzLayer) and known is None:
            known = self._branch_constant()
        exported = type(self)(
            branch,
            k_coef_lip=self.k_coef_lip,
            k_branch=known,
            name=self.name,
            dtype=self.dtype_policy,
        )
        exported.build(self._build_shapes_dict["input_shape"])
        if is_copy:
            copy_state(self.layer, branch)
        return exported

    def get_config(self):
        return {
            **super().get_config(),
            "k_coef_lip": self.k_coef_lip,
            "k_branch": self.k_branch,
        }


def _require_joint_constant(branch):
    """Refuses layers whose `k_coef_lip` is that of each output by itself."""
    for layer in branch._flatten_layers():
        if getattr(layer, "disjoint_neurons", False):
            raise ValueError(
                "The constant of a branch must be that of all of its outputs "
                "together. Expected `disjoint_neurons=False`. "
                f"Received: layer '{layer.name}' with disjoint_neurons=True"
            )


@register("PrescaledResidual")
class PrescaledResidual(_Branched):
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
class PartialResidual(_Branched):
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
