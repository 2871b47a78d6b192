"""The kernel that a layer uses, and all that keeps it within its bound."""

import keras
import numpy as np
from keras import ops

from deel.lip._backend.guarded_variable import GuardedVariable
from deel.lip._backend.guarded_variable import assign_together
from deel.lip._backend.guarded_variable import is_compiling
from deel.lip._backend.guarded_variable import mark_of
from deel.lip._backend.retraction import is_carried
from deel.lip._backend.retraction import is_retracted
from deel.lip._backend.retraction import postpone
from deel.lip._backend.retraction import store
from deel.lip._backend.variables import float32_at_least
from deel.lip._backend.variables import host
from deel.lip._validation import normal_range

# Relative slack under which a kernel from outside counts as within its bound.
SLACK = 1e-5

# Products after which `wbar` is computed anew: each adds two roundings, 1e-7.
_MOST_RATIOS = 8


class ConstrainedVariable(GuardedVariable):
    """The constrained kernel of a layer, `wbar`, and its one owner. Final.

    It is `coefficient * parametrization.constrain(kernel)`, in float32 at
    least, and always valid: what the parametrization has not made has to pass
    `Parametrization.admits` before it is used, see `GuardedVariable`.

    Args:
        parametrization: The `Parametrization` that makes it.
        kernel: Variable, the free kernel.
        coefficient: Float. What a constrained kernel of norm one is multiplied
            by: `k_coef_lip * coef_lip` of the layer.

    Attributes:
        coefficient: As above.
        retracts: Boolean, whether a kernel that an optimizer has moved is
            replaced by what `retract` returns.
    """

    retracts = True

    def __init__(self, parametrization, kernel, coefficient):
        self.coefficient = coefficient
        self._parametrization = parametrization
        self._kernel = kernel
        self._ratios = 0
        self._made_of = None
        self._is_used = False

        # A function, since under a deferred build the kernel has no value yet.
        def constrained(shape, dtype):
            return ops.cast(self._fresh_kernel(), dtype)

        super().__init__(
            constrained,
            shape=parametrization.kernel_shape,
            dtype=parametrization.variable_dtype,
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="wbar",
            is_sound=self._is_admitted,
            remade=self._fresh_kernel,
        )
        self.note_current()

    def is_current(self):
        """Whether it is known to be that of the kernel, without a look at it.

        See the note [who moves a kernel] of `deel.lip._backend.retraction`.
        """
        if keras.backend.backend() != "torch":
            return is_carried(self._kernel)
        mark = mark_of(self._kernel)
        if mark is None or self._made_of != mark:
            return False
        # Once for each retraction: a loop that moves kernels by `.data` has
        # none. `fit` may call a layer several times.
        return not self._is_used or is_retracted(self._kernel)

    def is_retracted(self):
        """Whether the kernel is known to be what a retraction has returned."""
        if not self.retracts:
            return False
        if keras.backend.backend() == "torch":
            # A compiled function cannot tell, and must not ask.
            return self.is_current() or is_compiling()
        return is_retracted(self._kernel)

    def note_use(self):
        """Notes that a training step uses what is held."""
        self._is_used = True
        self._made_of = mark_of(self._kernel)

    def note_current(self, writes=0):
        """Notes that what is held belongs to the kernel.

        Args:
            writes: Integer, how often the kernel is written to after this.
        """
        self._is_used = False
        self._made_of = mark_of(self._kernel, writes)

    def _was_given(self):
        # Files and checkpoints bring the kernel first, then this: with both,
        # training goes on as if it had not been interrupted.
        if keras.backend.backend() == "torch":
            free, used = host(self._kernel), host(self._unguarded)
            if self._parametrization.is_left_by_retraction(free, used):
                self.note_current()

    def scale(self, constrained):
        """A kernel of norm one, multiplied by the coefficient."""
        if self.coefficient == 1.0:
            return constrained
        return self.coefficient * constrained

    def hold(self, constrained):
        """Stores what the parametrization has made, and returns it scaled.

        Args:
            constrained: Tensor of norm at most one, float32 at least.
        """
        scaled = self.scale(constrained)
        store(self, ops.stop_gradient(scaled))
        return scaled

    def refresh(self, kernel):
        """Holds the constrained version of a kernel, and returns it."""
        kernel = float32_at_least(kernel)
        return self.hold(self._parametrization.constrain(kernel))

    def make_anew(self):
        """Holds the constrained version of the free kernel as it is."""
        self.refresh(self._kernel)

    def retract(self, kernel):
        """Returns what replaces a kernel that an optimizer has moved.

        So inference after a training step uses what the step has learned. (JAX
        compiles the update as a function of the trained variables alone: there
        `wbar` follows in the forward pass of the next step, unless the model is
        one of `deel.lip.model`.)
        """
        moved = float32_at_least(kernel)
        retracted, constrained = self._parametrization.retract(moved)
        self.hold(constrained)
        # The optimizer assigns what is returned.
        self.note_current(writes=1)
        return ops.cast(retracted, kernel.dtype)

    def postpone_retraction(self):
        """Leaves the retraction to `retract_together`, if that will be called.

        Kernels of one shape and coefficient are one operand there.

        Returns:
            Boolean, whether it will.
        """
        kind, kernel = self._parametrization.kind(), self._kernel._value
        # What PyTorch has split over devices stays as it is.
        if kind is None or hasattr(kernel, "placements"):
            return False
        family = type(self._parametrization), self._kernel.dtype
        if keras.backend.backend() == "torch":
            family = *family, kernel.device
        return postpone(self, family, (kind, self.coefficient))

    @staticmethod
    def retract_together(groups):
        """Retracts kernels that an optimizer has moved.

        Args:
            groups: List of lists of `ConstrainedVariable`, each list of kernels
                that are one operand.
        """
        if keras.backend.backend() != "torch":
            # Compilers join small operations by themselves.
            for wbar in [wbars[0] for wbars in groups if len(wbars) == 1]:
                wbar._kernel.assign(wbar.retract(wbar._kernel.value))
            groups = [wbars for wbars in groups if len(wbars) > 1]
            if not groups:
                return
        retract_stacks = groups[0][0]._parametrization.retract_stacks
        stacks = [
            ops.stop_gradient(_stacked([wbar._kernel.value for wbar in wbars]))
            for wbars in groups
        ]
        pairs = []
        for wbars, (free, constrained, *states) in zip(
            groups,
            retract_stacks(list(map(float32_at_least, stacks))),
            strict=True,
        ):
            found = free, wbars[0].scale(constrained), *states
            for wbar, *values in zip(wbars, *found, strict=True):
                own = wbar._kernel, wbar, *wbar._parametrization.states()
                pairs += zip(own, values, strict=True)
        assign_together(*zip(*pairs, strict=True))
        for wbars in groups:
            for wbar in wbars:
                wbar.note_current()

    def condense(self):
        """Overwrites the free kernel by one that is constrained to itself."""
        kernel = float32_at_least(self._kernel)
        constrained = self.refresh(kernel)
        free = self._parametrization.free_kernel_of(constrained, kernel)
        self._kernel.assign(ops.copy(free))
        self.note_current()

    def rescale(self, coefficient):
        """Changes the coefficient; the kernel follows.

        Each product with a ratio rounds, and thousands of them would add up to
        more than the slack of the bound. So every few times the kernel is
        computed anew from the free one, which does not drift. Not each time:
        while layers are added to a model, all of them get new constants again
        and again.

        Args:
            coefficient: Float, see the class.
        """
        if coefficient == self.coefficient:
            return
        ratio = coefficient / self.coefficient
        # Read while it is judged by the constant that it was made for.
        stored = float32_at_least(self)
        self.coefficient = coefficient
        self._ratios += 1
        if self._ratios == _MOST_RATIOS:
            self._ratios = 0
            self.refresh(self._kernel)
        else:
            store(self, ratio * stored)

    def exported(self, dtype):
        """The values as an array that keeps its bound in a dtype.

        Half precision rounds, which may make a norm larger by a few
        thousandths. The kernel is made as much smaller before.

        Args:
            dtype: String, the dtype of the variable that takes the values.

        Raises:
            ValueError: If none of the values is a normal number of the dtype.
        """
        value = host(self.proven())
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
            excess = self._parametrization.expansion(rounded) / bound
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
        value = host(self.proven())
        if not self._is_admitted(value):
            raise ValueError(
                f"The constrained kernel `wbar` of layer '{name}' exceeds its "
                "promise: it was written to in a way that is not checked (call "
                "`condense()` to make it anew), or `constrain` of "
                f"{type(self._parametrization).__name__} does not bound it. "
                "Expected a norm of at most "
                f"{self.coefficient}. Received: "
                f"norm={self._parametrization.expansion(value)}"
            )

    def _fresh_kernel(self):
        kernel = float32_at_least(self._kernel)
        return self.scale(self._parametrization.constrain(kernel))

    def _is_admitted(self, value):
        """Whether an array may stand here."""
        if not np.all(np.isfinite(value)):
            return False
        bound = self.coefficient * (1.0 + SLACK)
        return self._parametrization.admits(value, bound, self._kernel)


def _stacked(tensors):
    return tensors[0][None] if len(tensors) == 1 else ops.stack(tensors)
