"""What stands between the free kernel of a layer and the kernel it uses."""

import keras
import numpy as np
from keras import ops

from deel.lip._backend.guarded_variable import GuardedVariable
from deel.lip._backend.retraction import store
from deel.lip._backend.variables import float32_at_least
from deel.lip._backend.variables import host
from deel.lip._validation import normal_range

# Relative slack under which a kernel from outside counts as within its bound.
SLACK = 1e-5

# Products after which `wbar` is computed anew: each adds two roundings, 1e-7.
_MOST_RATIOS = 8


class Parametrization(keras.layers.Layer):
    """Abstract map from a free kernel to a kernel of norm at most one.

    A parametrization is a child layer of the layer whose kernel it constrains
    (`deel.lip._constrained.ConstrainedKernel`). It owns the constrained kernel
    `wbar`, which is always valid: what was not written by this class has to
    pass `expansion` before it is used, see
    `deel.lip._backend.guarded_variable.GuardedVariable`.

    To write one, subclass and implement `constrain`. Where the matrix norm
    says too much (independent outputs, say), implement `expansion` as well.
    Where what is trained is not a kernel but the factors that one is made of,
    implement `free_variable` and `condense`: both then say what the variable
    holds, and everything that is called `kernel` here is that variable.

    Attributes:
        coefficient: Float. What a constrained kernel of norm one is multiplied
            by: `k_coef_lip * coef_lip` of the host layer.
        wbar: Variable of the shape of the kernel that the stock layer uses, not
            trainable, float32 at least: `coefficient * constrain(kernel)`.
    """

    def __init__(self, **kwargs):
        # Mixed precision must not round what is computed here.
        super().__init__(name="parametrization", autocast=False, **kwargs)
        self.coefficient = None
        self.wbar = None
        self._ratios = 0

    def free_variable(self, shape, initializer):
        """Shape and initializer of the variable that is trained.

        By default those of the kernel itself. Called before `add_state`.

        Args:
            shape: Tuple, the shape of the kernel that the stock layer uses.
            initializer: Initializer that the user has chosen.

        Returns:
            Pair of a tuple and an initializer.
        """
        self._kernel_shape = shape
        return shape, initializer

    def constrain(self, kernel):
        """Returns the constrained version of a kernel.

        A pure, differentiable function, sound for every finite kernel.

        Args:
            kernel: Tensor, float32 at least, any finite values.

        Returns:
            Tensor of the shape that the stock layer uses, of norm at most one
            (see `expansion`); zeros where a free kernel is zero.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must implement `constrain`."
        )

    def expansion(self, kernel):
        """Norm that the constraint bounds by one, exactly, of a NumPy array."""
        matrix = kernel.reshape(-1, kernel.shape[-1]).astype("float64")
        if matrix.shape[0] < matrix.shape[1]:
            matrix = matrix.T
        return np.sqrt(max(0.0, np.linalg.eigvalsh(matrix.T @ matrix)[-1]))

    def add_state(self, kernel, coefficient):
        """Creates the variables, `wbar` last.

        Args:
            kernel: The free kernel, a variable.
            coefficient: Float, see the class.
        """
        self.coefficient = coefficient
        self.dtype_policy = keras.DTypePolicy(
            keras.backend.result_type(kernel.dtype, "float32")
        )
        self._add_own_state(kernel)

        # A function, since under a deferred build the kernel has no value yet.
        def constrained(shape, dtype):
            return ops.cast(self._initial(kernel), dtype)

        with keras.name_scope(self.name):
            self.wbar = GuardedVariable(
                constrained,
                shape=self._kernel_shape,
                dtype=self.variable_dtype,
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
                name="wbar",
                is_sound=lambda value: self._is_sound(value, kernel),
                remade=lambda: self._scaled(
                    self.constrain(float32_at_least(kernel))
                ),
            )
        self.built = True

    def _initial(self, kernel):
        """What `wbar` holds for a kernel that has just been drawn."""
        return self._made_of(kernel)

    def _made_of(self, kernel):
        return self._scaled(self.constrain(float32_at_least(kernel)))

    def _add_own_state(self, kernel):
        """Creates the variables of a subclass, before `wbar`."""

    def update(self, kernel):
        """Constrained kernel for a training step; also stored as `wbar`."""
        return self.refresh(kernel)

    def refresh(self, kernel):
        """Makes `wbar` the constrained version of `kernel`, and returns it."""
        return self._store(self.constrain(float32_at_least(kernel)))

    def condense(self, kernel):
        """Overwrites the free kernel by one that is constrained to itself."""
        kernel.assign(ops.copy(self.refresh(kernel)))

    def retract(self, kernel):
        """Kernel that replaces the one that an optimizer has moved.

        By default the same, which `wbar` follows.
        """
        self.follow(kernel)
        return kernel

    def follow(self, kernel):
        """Makes `wbar` follow what an optimizer has done to the kernel.

        So inference after a training step uses what the step has learned. (JAX
        compiles the update as a function of the trained variables alone: there
        `wbar` follows in the forward pass of the next step.)
        """
        self.refresh(kernel)

    def exported(self, dtype):
        """The constrained kernel as an array that keeps its bound in a dtype.

        Half precision rounds, which may make a norm larger by a few
        thousandths. The kernel is made as much smaller before.

        Args:
            dtype: String, the dtype of the variable that takes the values.

        Raises:
            ValueError: If none of the values is a normal number of the dtype.
        """
        value = host(self.wbar.proven())
        if keras.backend.result_type(dtype, "float32") == dtype:
            return value
        least, largest = normal_range(dtype)
        size = float(np.max(np.abs(value)))
        if size > largest or 0 < size < least:
            raise ValueError(
                f"A kernel of dtype {dtype} holds normal numbers from "
                f"{least:.3g} to {largest:.3g}. Expected a largest magnitude "
                f"in that range. Received: {size}"
            )
        bound = self.coefficient * (1.0 + SLACK)
        factor, excess = 1.0, np.inf
        while excess > 1.0:
            tensor = ops.convert_to_tensor(factor * value)
            rounded = host(ops.cast(tensor, dtype)).astype("float32")
            excess = self.expansion(rounded) / bound
            # By no less than this: steps in proportion might never end.
            factor /= max(excess, 1.0 + SLACK)
        return rounded

    def require_sound(self, name):
        """Raises an error if what inference uses breaks its promise.

        `GuardedVariable` says who can bring that about. Asked before others
        are told to rely on the promise: exports, certificates.

        Args:
            name: String, the name of the layer.

        Raises:
            ValueError: If the constrained kernel is not finite, or its norm is
                above the coefficient by more than `SLACK`.
        """
        value = host(self.wbar.proven())
        if not self.wbar.is_sound(value):
            raise ValueError(
                f"The constrained kernel `wbar` of layer '{name}' exceeds its "
                "promise: it was written to in a way that is not checked. Call "
                "`condense()` to make it anew. Expected a norm of at most "
                f"{self.coefficient}. Received: "
                f"norm={self.expansion(value)}"
            )

    def rescale(self, kernel, coefficient):
        """Changes the coefficient; `wbar` follows.

        Each product with a ratio rounds, and thousands of them would add up to
        more than the slack of the bound. So every few times `wbar` is computed
        anew from the kernel, which does not drift. Not each time: while layers
        are added to a model, all of them get new constants again and again.

        Args:
            kernel: The free kernel.
            coefficient: Float, see the class.
        """
        if coefficient == self.coefficient:
            return
        ratio = coefficient / self.coefficient
        # Read while it is judged by the constant that it was made for.
        stored = float32_at_least(self.wbar)
        self.coefficient = coefficient
        self._ratios += 1
        if self._ratios == _MOST_RATIOS:
            self._ratios = 0
            self.refresh(kernel)
        else:
            store(self.wbar, ratio * stored)

    def _scaled(self, constrained):
        if self.coefficient == 1.0:
            return constrained
        return self.coefficient * constrained

    def _store(self, constrained):
        constrained = self._scaled(constrained)
        store(self.wbar, ops.stop_gradient(constrained))
        return constrained

    def _is_sound(self, value, kernel):
        """Whether an array may stand in `wbar`.

        Args:
            value: NumPy array of the shape of `wbar`.
            kernel: The free kernel, which may tell sooner.
        """
        if not np.all(np.isfinite(value)):
            return False
        return self.expansion(value) <= self.coefficient * (1.0 + SLACK)
