"""The contract of a parametrization."""

import warnings

import keras
import numpy as np

from deel.lip._backend.retraction import store
from deel.lip._backend.variables import float32_at_least
from deel.lip.parametrizations.constrained_variable import ConstrainedVariable


class Parametrization(keras.layers.Layer):
    """Abstract map from a free kernel to a kernel of norm at most one.

    A parametrization is handed to a `deel.lip.layers.ConstrainedKernel`, whose
    child layer it becomes. It says how a kernel is constrained, and what norm
    that bounds. The constrained kernel itself, `wbar`, is a
    `ConstrainedVariable`: when it is computed, stored, checked, scaled and
    exported is decided there, for all parametrizations alike.

    To write one, subclass and implement `constrain`. All else has a default:

    - `expansion`, where the norm of the matrix `(-1, last dimension)` is not
      what is bounded;
    - `free_variable` and `free_kernel_of`, where what is trained is not a
      kernel but what one is made of. Everything that is called `kernel` here
      is then that variable;
    - `retract`, where an optimizer should go on from another kernel;
    - `add_state`, `update` and `admits`, to keep variables, to save time;
    - `kind`, `retract_stacks` and `states`, where PyTorch is to retract many
      kernels at once.

    Sound means: for every finite kernel, zero, tiny, huge and rank one. So
    divide by an upper bound that is proven, never by an estimate from below.

    Attributes:
        kernel_shape: Tuple, the shape of the kernel that the stock layer uses;
            None before it is built.
        wbar: The `ConstrainedVariable`; None before it is built.
        starts_at_coefficient: Boolean, whether the initial free kernel is
            multiplied by `coef_lip` of the layer.
        bounds_matrix: Boolean, whether the kernel is constrained as a matrix,
            whose rows and columns are mixed, and not each unit by itself.
            Optimizers ask for it; see `deel.lip.optimizers.Muon`.

    Example:

    >>> import keras
    >>> from deel.lip.layers import ConstrainedKernel
    >>> from deel.lip.parametrizations import Parametrization
    >>> class Clipped(Parametrization):  # No entry exceeds the root of 1/size.
    ...     def constrain(self, kernel):
    ...         limit = (kernel.shape[0] * kernel.shape[1]) ** -0.5
    ...         return keras.ops.clip(kernel, -limit, limit)
    >>> class ClippedDense(ConstrainedKernel, keras.layers.Dense):
    ...     def __init__(self, units, **kwargs):
    ...         super().__init__(units, parametrization=Clipped(), **kwargs)
    >>> layer = ClippedDense(4, kernel_initializer="ones")
    >>> layer.build((None, 9))
    >>> print(round(float(keras.ops.max(layer.wbar)), 4))
    0.1667
    """

    kernel_shape = None
    wbar = None
    starts_at_coefficient = False
    bounds_matrix = True

    def __init__(self, **kwargs):
        # Mixed precision must not round what is computed here.
        super().__init__(name="parametrization", autocast=False, **kwargs)

    def load_own_variables(self, store):
        # Older versions of Keras hand over no dictionary.
        if self.variables and not len(store.keys()):
            self._make_anew()
        else:
            super().load_own_variables(store)

    def _make_anew(self):
        """Makes the constrained kernel of a file that has none of its own."""
        warnings.warn(
            "This file has the layout of former releases. Their constrained "
            "kernels are made anew from the free ones: divided by a proven "
            "bound of the norm and, in convolutions, by the root of the "
            "largest number of windows that read a value instead of the mean "
            "one. So outputs may differ. `save` writes a file of this release.",
            UserWarning,
            stacklevel=2,
        )
        self.wbar.make_anew()

    def quantize(self, mode=None, *args, **kwargs):
        # Keras asks the innermost layers, which the layer with the kernel is
        # not, and goes on where they cannot.
        raise ValueError(
            "A constrained kernel would be replaced by an unconstrained one. "
            "Expected the stock model that `deel.lip.model.vanillaModel` "
            f"returns. Received: mode={mode}"
        )

    def constrain(self, kernel):
        """Returns the constrained version of a kernel.

        A pure, differentiable function of the tensor, in `keras.ops`, sound
        for every finite kernel. Its gradients are finite, also at zero: no
        unguarded root or division. JAX cannot differentiate loops whose number
        of steps depends on data.

        Args:
            kernel: Tensor, float32 at least, any finite values.

        Returns:
            Tensor of the shape `kernel_shape`, of norm at most one (see
            `expansion`).
        """
        # Keras' `Sequential` takes a NotImplementedError for a layer that does
        # not know its output shape, and hides it.
        raise TypeError(f"{type(self).__name__} must implement `constrain`.")

    def expansion(self, array):
        """Returns the norm that the constraint bounds by one.

        Values of `wbar` from outside, such as those of a file, are judged by
        it. By default the largest singular value.

        Args:
            array: NumPy array of the shape `kernel_shape`.

        Returns:
            Float, never below the norm by more than float64 rounds.
        """
        matrix = array.reshape(-1, array.shape[-1]).astype("float64")
        if matrix.shape[0] < matrix.shape[1]:
            matrix = matrix.T
        return np.sqrt(max(0.0, np.linalg.eigvalsh(matrix.T @ matrix)[-1]))

    def free_variable(self, shape, initializer):
        """Returns shape and initializer of the variable that is trained.

        Pure, and called before the variables exist. By default those of the
        kernel itself.

        Args:
            shape: Tuple, the shape of the kernel that the stock layer uses.
            initializer: Initializer that the user has chosen.
        """
        return shape, initializer

    def free_kernel_of(self, constrained, kernel):
        """Returns the free kernel that condensing a layer leaves.

        One that is constrained to the same again; by default the constrained
        kernel itself. Variables of `add_state` may be stored here.

        Args:
            constrained: Tensor, what `kernel` is constrained to, multiplied by
                the coefficient of the layer.
            kernel: Tensor, the free kernel so far.
        """
        return constrained

    def retract(self, kernel):
        """Returns what replaces a kernel that an optimizer has moved.

        By default the same kernel. Variables of `add_state` may be stored here.

        Args:
            kernel: Tensor, float32 at least.

        Returns:
            Pair of tensors: a free kernel, and what it is constrained to.
        """
        return kernel, self.constrain(kernel)

    def kind(self):
        """What tells whose kernels may be retracted as one operand.

        None, by default, where `retract_stacks` is not implemented. Else a
        hashable object: kernels of one shape that are retracted alike.
        """
        return

    @staticmethod
    def retract_stacks(stacks):
        """Returns what `retract` does of many kernels, without storing it.

        Args:
            stacks: List of tensors. Each holds kernels of one `kind` along its
                first axis.

        Returns:
            List of tuples, one for each stack: free kernels, what they are
            constrained to, and values of `states`, along the first axis.
        """
        raise TypeError("Expected a parametrization of some `kind`.")

    def states(self):
        """Returns the variables of `add_state` that a retraction changes."""
        return ()

    def add_state(self, input_shape):
        """Creates further variables by `add_weight`; they are not trained.

        Called once, after `kernel_shape` is known and before `wbar` exists.
        They are saved with the layer; assign to them by `store`.

        Args:
            input_shape: Tuple, the shape of the inputs of the layer.
        """

    def add_weight(self, *args, **kwargs):
        kwargs.update(trainable=False, autocast=False)
        kwargs.setdefault("aggregation", "only_first_replica")
        return super().add_weight(*args, **kwargs)

    def is_left_by_retraction(self, free, used):
        """Whether a retraction leaves these two together.

        By default it is not known. To be overridden where the arrays tell.

        Args:
            free: NumPy array, a free kernel.
            used: NumPy array, `wbar`.
        """
        return False

    def update(self, kernel):
        """Returns the scaled kernel of a training step, also held by `wbar`.

        By default what `constrain` makes of it. To be overridden where less
        than that will do.

        Args:
            kernel: The free kernel, a variable or a tensor.
        """
        if not self.wbar.is_current():
            return self.wbar.refresh(kernel)
        self.wbar.note_use()
        return self.wbar.scale(self.constrain(float32_at_least(kernel)))

    def admits(self, array, bound, kernel):
        """Whether an array from outside may stand in `wbar`.

        By default, whether its `expansion` is within the bound. To be
        overridden where the free kernel tells sooner.

        Args:
            array: NumPy array, finite, of the shape `kernel_shape`.
            bound: Float, the coefficient of the layer with a relative slack.
            kernel: The free kernel, a variable.
        """
        return self.expansion(array) <= bound

    @staticmethod
    def store(variable, value):
        """Assigns a tensor to a variable of `add_state`.

        Where a user compiles with `jax.jit`, which has no place for new state,
        it is dropped.
        """
        store(variable, value)

    def attach(self, kernel, kernel_shape, input_shape, coefficient):
        """Creates the variables, `wbar` last, for the layer that is built.

        Not to be overridden; `ConstrainedKernel` calls it.

        Args:
            kernel: Variable, the free kernel.
            kernel_shape: Tuple, see the class.
            input_shape: Tuple, the shape of the inputs of the layer.
            coefficient: Float, see `ConstrainedVariable`.

        Raises:
            ValueError: If another layer has it already.
        """
        self.require_free()
        self.kernel_shape = kernel_shape
        self.dtype_policy = keras.DTypePolicy(
            keras.backend.result_type(kernel.dtype, "float32")
        )
        self.add_state(input_shape)
        with keras.name_scope(self.name):
            self.wbar = ConstrainedVariable(self, kernel, coefficient)
        self.built = True

    def require_free(self):
        """Raises ValueError if a layer has it already."""
        if self.wbar is not None:
            raise ValueError(
                "A parametrization belongs to one layer. Expected a new one. "
                f"Received: that of variable '{self.wbar.path}'"
            )
