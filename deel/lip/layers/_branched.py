"""What the layers that hold a branch share."""

import keras

from deel.lip._export import condensable_layers
from deel.lip._export import copy_state
from deel.lip._export import stock_version
from deel.lip._lipschitz import Condensable
from deel.lip._lipschitz import LipschitzLayer
from deel.lip._lipschitz import warn_of_activation
from deel.lip._validation import positive_float
from deel.lip._validation import require_built


class Branched(LipschitzLayer, Condensable, keras.layers.Wrapper):
    """Base of these layers: a branch of known constant, and a factor.

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

    def check_outputs(self, shape, outputs):
        """Raises ValueError for a branch that does not fit.

        Args:
            shape: Tuple, the shape of what enters the branch.
            outputs: List of tuples, the shapes of what it returns.
        """
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
        self.check_outputs(
            shape, [tuple(x.shape) for x in keras.tree.flatten(outputs)]
        )
        self.built = True

    def call(self, inputs, training=None):
        # Keras hands `training` to what is called inside.
        return self._joined(inputs, self.layer)

    def _joined(self, inputs, branch):
        """What the layer makes of its inputs and of a function, its branch."""
        raise NotImplementedError

    def _stock_call(self, inputs, convert):
        return self._joined(inputs, convert(self.layer))

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
        """Returns the same layer around the stock version of its branch."""
        require_built(self, "vanilla_export")
        branch, is_copy = stock_version(self.layer)
        known = self.k_branch
        if not isinstance(branch, LipschitzLayer) and known is None:
            known = self._branch_constant()
        arguments = {**self.own_config(), "k_branch": known}
        exported = type(self)(
            branch, name=self.name, dtype=self.dtype_policy, **arguments
        )
        exported.build(self._build_shapes_dict["input_shape"])
        if is_copy:
            copy_state(self.layer, branch)
        return exported

    def own_config(self):
        """The arguments beside the branch and those of every layer."""
        return {"k_coef_lip": self.k_coef_lip, "k_branch": self.k_branch}

    def get_config(self):
        return {**super().get_config(), **self.own_config()}


def _require_joint_constant(branch):
    """Refuses layers whose `k_coef_lip` is that of each output by itself."""
    for layer in branch._flatten_layers():
        # One output by itself is all of them.
        if getattr(layer, "disjoint_neurons", False) and layer.units > 1:
            raise ValueError(
                "The constant of a branch must be that of all of its outputs "
                "together. Expected `disjoint_neurons=False`. "
                f"Received: layer '{layer.name}' with disjoint_neurons=True"
            )
