"""The variable that inference reads, whoever wrote it."""

import contextlib
import sys
import weakref
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from deel.lip._backend.variables import host

# Note [who wrote wbar]
#
# Any code that holds a variable can write to it: loops and files through
# `assign`, checkpoints of TensorFlow and PyTorch below it, optimizers and
# averages in place. So soundness does not rest on a list of writers. What the
# library has proven is remembered together with what tells it from anything
# else; whoever reads something else has it checked first:
#
# * JAX (and NumPy): arrays do not change, so the proof is of one array, and
#   any other array in the variable is unproven.
# * PyTorch: tensors count what is written to them (`_version`), and are at an
#   address. `.data` would go round the count, and is made to take part.
# * TensorFlow: nothing tells. There, what is known to write is checked as it
#   writes: `assign`, and what restores a checkpoint.
#
# Seen in constant time, so inference pays nothing. Where a function is being
# compiled there is nothing to see yet: `assign` checks for those as well.
#
# Note [whole kernels]
#
# On PyTorch a variable is written in place, while inference in another thread
# may read it: half a kernel from before and half from after have a larger norm
# than either (1.3 was seen). So what is proven is published beforehand, as a
# tensor that nobody else holds and nobody writes to. Inference reads that one,
# by a single reference; the variable is what files, optimizers and other
# programs see. JAX replaces arrays, and TensorFlow buffers, by themselves.

# In place of a mark: the variable is being written to by this library.
_WRITING = object()


class _Proof(NamedTuple):
    """What has been proven to satisfy the constraint.

    Attributes:
        held: What the variable held: an array, or a tensor that can change.
        mark: What changes when somebody writes to `held`; see `_mark`.
        whole: The tensor that was proven.
    """

    held: Any
    mark: Any
    whole: Any

    def covers(self, held):
        if self.held is not held:
            return False
        return self.mark is _WRITING or self.mark == _mark(held)


class GuardedVariable(keras.Variable):
    """A variable whose readers get values that satisfy a constraint.

    Values from outside are checked, and replaced where they break the
    constraint; see the note [who wrote wbar]. What the library itself has
    proven it hands to `assign_proven`. Not checked are values of a function
    that is being compiled, and what the JAX trainer of Keras brings back of its
    steps.

    Args:
        *args: Positional arguments of `keras.Variable`.
        is_sound: Function of a NumPy array: whether it satisfies the
            constraint.
        remade: Function without arguments that returns a tensor which does,
            made of what is trained.
        **kwargs: Further arguments of `keras.Variable`.

    Attributes:
        is_sound: As above; None until the constructor ends, which keeps what
            the initializer gives from being checked.
    """

    is_sound = None
    _proof = None
    _taken = staticmethod(lambda: None)
    # Whether a value was refused since the last proof: what is trained may
    # have been restored after it, and is what the user wants.
    _refused = False

    def __init__(self, *args, is_sound, remade, **kwargs):
        super().__init__(*args, **kwargs)
        self.is_sound = is_sound
        self._remade = remade
        if self._value is not None:
            self._trust()

    # By another name: TorchDynamo does not follow `super` into a property.
    _unguarded = keras.Variable.value

    @property
    def value(self):
        self._settle()
        return self._unguarded

    def proven(self, lasting=False):
        """What inference reads: a whole tensor that satisfies the constraint.

        Args:
            lasting: Boolean, whether the tensor must stay what it is when the
                variable is written to. It does unless TorchDynamo compiles the
                call, where it takes a copy.

        Returns:
            Tensor. Where a function is being compiled, whatever stands for the
            variable.
        """
        self._settle()
        proof, current = self._proof, self._unguarded
        if is_compiling():
            current = ops.convert_to_tensor(current)
            return ops.copy(current) if lasting else current
        if proof is not None and proof.held is current:
            return ops.convert_to_tensor(proof.whole)
        # Of a `keras.StatelessScope`: this library's own, or somebody's.
        if self.is_sound is not None and current is not self._taken():
            current = self._admitted(current)
        return ops.convert_to_tensor(current)

    def assign(self, value):
        """Assigns a value from outside, or one that satisfies the constraint.

        Args:
            value: Array, tensor or variable.
        """
        if isinstance(value, keras.Variable):
            value = value.value
        if is_compiling() or _is_synchronisation(sys._getframe(1)):
            return self.assign_proven(value)
        # A copy: JAX uses the memory of NumPy arrays as it is, in which their
        # owner may write other numbers later.
        copied = ops.copy if ops.is_tensor(value) else np.array
        value = copied(value)
        admitted = self._admitted(value)
        assigned = self.assign_proven(admitted)
        self._refused = admitted is not value
        if not self._refused:
            self._was_given()
        return assigned

    def _was_given(self):
        """Called after a value from outside was assigned as it is."""

    def assign_proven(self, value):
        """Assigns a tensor without a question."""
        assigned = super().assign(value)
        if keras.backend.backend() == "jax":
            # Each step of a stateless loop hands it to the next one. Weak, for
            # a traced value must not outlive its function.
            self._taken = weakref.ref(assigned)
        return assigned

    def _admitted(self, value):
        """`value`, unless it is known to break the constraint."""
        array = _known_array(value)
        # Wrong shapes are for Keras to report.
        is_kernel = array is not None and array.shape == tuple(self.shape)
        if not is_kernel or self.is_sound(array):
            return value
        with _computing_now():
            return ops.stop_gradient(self._remade())

    def _settle(self):
        """Checks what somebody has written past `assign`.

        Returns:
            The `_Proof` of what the variable holds by now; None where nothing
            is known of it.
        """
        if self.is_sound is None or self._value is None or is_compiling():
            return None
        proof = self._proof
        while proof is None or not proof.covers(self._value):
            # Unless another thread has published in the meantime.
            if self._proof is proof:
                return self._proved()
            proof = self._proof
        return self._proved() if self._refused else proof

    def _proved(self):
        held, refused = self._value, self._refused
        with _computing_now():
            # In this order: what is written from now on has another mark.
            mark = _mark(held)
            whole = _private(held)
            array = _known_array(whole)
            if array is None:
                return None
            if self.is_sound(array) and not refused:
                self._proof = _Proof(held, mark, whole)
                return self._proof
            remade = ops.stop_gradient(self._remade())
            if _known_array(remade) is None:
                return None
            self._direct_assign(ops.cast(remade, self._dtype))
        return self._proof

    def _trust(self):
        """Takes what the variable holds for proven."""
        self._proof = _Proof(
            self._value, _mark(self._value), _private(self._value)
        )

    def _direct_assign(self, value):
        # Keras calls this for all that is assigned outside of a stateless
        # scope. Here it has been admitted.
        self._refused = False
        if keras.backend.backend() != "torch":
            super()._direct_assign(value)
            self._proof = _Proof(self._value, None, self._value)
            return
        if is_compiling():
            # The mark tells, afterwards, that this was written.
            super()._direct_assign(value)
            return
        with _computing_now():
            whole = self._value.new_empty(self._value.shape).copy_(value)
            with self._published(whole):
                super()._direct_assign(whole)

    @contextlib.contextmanager
    def _published(self, whole):
        """Surrounds the one write of a tensor that has been proven."""
        self._refused = False
        held = self._value
        version, address = _mark(held)
        if version is not None:
            version += 1
        # Before the first number is written; see the note [whole kernels].
        self._proof = _Proof(held, _WRITING, whole)
        yield
        # If somebody else wrote meanwhile, the mark is another one.
        self._proof = _Proof(held, (version, address), whole)

    def _initialize(self, value):
        super()._initialize(value)
        if keras.backend.backend() == "torch":
            self._value = _watched(self._value)

    def _deferred_initialize(self):
        super()._deferred_initialize()
        self._trust()

    def _restore_from_tensors(self, restored_tensors):
        # Called by checkpoints of TensorFlow, which write below Keras.
        restored = super()._restore_from_tensors(restored_tensors)
        self._proof = None
        self._settle()
        return restored


def assign_together(variables, values):
    """Assigns tensors that have just been made; PyTorch in one operation.

    Args:
        variables: Sequence of variables; those that are guarded take their
            values for proven, and keep them.
        values: Sequence of tensors, which nobody else writes to.
    """
    if keras.backend.backend() != "torch":
        for variable, value in zip(variables, values, strict=True):
            if isinstance(variable, GuardedVariable):
                variable.assign_proven(value)
            else:
                variable.assign(value)
        return
    import torch

    pairs = zip(variables, values, strict=True)
    values = [
        value.to(variable._value.dtype).contiguous()
        if isinstance(variable, GuardedVariable)
        else value
        for variable, value in pairs
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_computing_now())
        for variable, value in zip(variables, values, strict=True):
            if isinstance(variable, GuardedVariable):
                stack.enter_context(variable._published(value.detach()))
        torch._foreach_copy_([x._value for x in variables], values)


def _is_synchronisation(caller):
    """Whether a frame is the JAX trainer, which brings back its own results.

    Keras has no other sign of it: a compiled step returns arrays, and these
    are assigned after each epoch, or after each step of `train_on_batch`,
    where a check would cost more than the step.
    """
    if keras.backend.backend() != "jax":
        return False
    return caller.f_code is keras.Model.jax_state_sync.__code__


# What backends differ in, of which Keras knows nothing.


def is_compiling():
    """Whether TorchDynamo reads this program instead of running it."""
    if keras.backend.backend() != "torch":
        return False
    import torch

    return torch.compiler.is_compiling()


@contextlib.contextmanager
def _computing_now():
    """Computes with values, also while a function around it is being traced."""
    backend = keras.backend.backend()
    with contextlib.ExitStack() as stack:
        if backend == "jax":
            import jax

            stack.enter_context(jax.ensure_compile_time_eval())
        elif backend == "tensorflow":
            import tensorflow as tf

            stack.enter_context(tf.init_scope())
        elif backend == "torch":
            import torch

            # Tensors of inference mode could not take part in training.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        yield


def _mark(held):
    """What changes when somebody writes to the tensor of a variable."""
    if keras.backend.backend() != "torch":
        return None
    version = None if held.is_inference() else held._version
    return version, held.data_ptr()


def mark_of(variable, writes=0):
    """What tells that a variable is written to; None where nothing does.

    Args:
        variable: A built `keras.Variable`.
        writes: Integer, how many writes are to be expected.
    """
    held = variable._value
    if keras.backend.backend() != "torch" or held is None or is_compiling():
        return None
    version, address = _mark(held)
    return None if version is None else (version + writes, address)


def known_or_tensor(variable):
    """A scalar variable as a number, where that is known without a look at it.

    That is on PyTorch, since the last time that it was written to, but not
    through an array of NumPy that shares its memory. What a number decides is
    then decided by Python, and needs no operation.

    Args:
        variable: A scalar variable that is not trained, or a number.
    """
    if not isinstance(variable, keras.Variable):
        return variable
    mark = mark_of(variable)
    # Another value, where a `keras.StatelessScope` has one.
    if mark is None or variable.value is not variable._value:
        return ops.convert_to_tensor(variable)
    if getattr(variable, "_known", (None,))[0] != mark:
        if type(variable._value) not in _WATCHED:
            variable._value = _watched(variable._value)
            mark = mark_of(variable)
        variable._known = mark, float(host(variable))
    return variable._known[1]


def _private(tensor):
    """A tensor with these values that does not change by itself."""
    backend = keras.backend.backend()
    if backend == "torch":
        # By its methods: Keras would move it to the device of the moment. In
        # the usual layout: products of another one round differently.
        return tensor.new_empty(tensor.shape).copy_(tensor)
    return tensor


def _known_array(value):
    """NumPy array of a tensor; None where it has no values by now, or here."""
    if not ops.is_tensor(value):
        return np.asarray(value)
    try:
        return host(value)
    except (TypeError, NotImplementedError, RuntimeError, ValueError):
        # Traced, of the meta device of PyTorch, or in parts on other machines.
        return None


def _watched(parameter):
    """The parameter of PyTorch, of which `.data` counts what is written."""
    import torch

    if not _WATCHED:

        class WatchedParameter(torch.nn.Parameter):
            """`torch.nn.Parameter` without a way past its count of writes.

            `.data` gives a tensor with a count of its own, through which
            averages and target networks are often written. `detach` gives the
            same tensor with the count of this one.
            """

            @property
            def data(self):
                return self.detach()

            @data.setter
            def data(self, value):
                torch.Tensor.data.__set__(self, value)

        _WATCHED.append(WatchedParameter)
    return _WATCHED[0](parameter.detach(), requires_grad=False)


_WATCHED = []
