"""The spectral parametrization: kernels with singular values of one."""

import keras
import numpy as np
from keras import ops

from deel.lip._backend.compilation import fused
from deel.lip._backend.control_flow import cond
from deel.lip._backend.control_flow import value_now
from deel.lip._backend.gradient import custom_gradient
from deel.lip._backend.retraction import store
from deel.lip._backend.tensors import reshaped
from deel.lip._backend.variables import float32_at_least
from deel.lip._numerics.norm_bounds import as_matrix
from deel.lip._numerics.norm_bounds import unit_scale
from deel.lip._numerics.polar import SCALES
from deel.lip._numerics.polar import by_group
from deel.lip._numerics.polar import nearest_factor
from deel.lip._numerics.polar import spectral_constraint
from deel.lip._numerics.polar import with_tangent_gradient
from deel.lip.parametrizations.base import Parametrization

# In the forward pass of a training step: inference, which uses a kernel
# normalised at another moment, then gives the same values within 1e-4.
_FORWARD = 1e-5

# Relative difference, in units of the last digit, of entries that are the same
# but for the order in which three numbers were multiplied; and what counts as
# zero besides.
_ROUNDING = 4

_NOTHING = 1e-30

# Sides from which on a matrix has a cheaper gradient for small batches.
_LARGE = 256

# What the retracted matrix is, as multiples of the constrained one.
USUAL_FACTORS = (1e-12, 1e12)


def is_multiple(matrix, stored, factor):
    """Whether `matrix` is `factor * stored`, up to the rounding of each."""
    # What PyTorch computes eagerly has no other order: equal bit by bit, as a
    # rule, which takes a third of the time to see.
    is_eager = keras.backend.backend() == "torch"
    if is_eager and value_now(ops.all(matrix == factor * stored)):
        return True
    return ops.all(_columns_agree(matrix, stored, factor))


@fused
def _columns_agree(matrix, stored, factor):
    # By column, which XLA does at the speed of memory, unlike a single answer.
    expected = factor * stored
    error = abs(matrix - expected)
    dtype = keras.backend.standardize_dtype(matrix.dtype)
    rounding = _ROUNDING * float(np.finfo(dtype).eps)
    agree = error <= rounding * abs(expected) + _NOTHING
    return ops.all(agree, axis=0)


def _product_of_few(inputs, matrix, value, coefficient):
    """`inputs @ value`, its gradient sent to `matrix`, for a small batch.

    The gradient is that of `with_tangent_gradient`. With X for the inputs, Y
    for the outputs, D for their gradient, V = c Q for the value, and Q tall,

        c (X^T D - Q sym(Q^T X^T D))
            = c ((X - Y V^T / 2c^2)^T D - (D V^T)^T Y / 2c^2).

    Its products have a row for each input, where those on the left have one
    for each column of Q; and D V^T is what the layer before needs anyway. A
    wide Q has D - D V^T V / 2c^2 in place of D, and X as it is.
    """

    @custom_gradient
    def multiply(inputs, matrix, value):
        outputs = ops.matmul(inputs, value)

        def gradient(upstream):
            transposed = ops.transpose(value)
            before = ops.matmul(upstream, transposed)
            half = 0.5 / coefficient**2
            left, right = inputs, upstream
            if value.shape[0] >= value.shape[1]:
                left = inputs - half * ops.matmul(outputs, transposed)
            else:
                right = upstream - half * ops.matmul(before, value)
            tangent = ops.matmul(ops.transpose(left), right)
            tangent -= half * ops.matmul(ops.transpose(before), outputs)
            return before, coefficient * tangent, ops.zeros_like(value)

        return outputs, gradient

    return multiply(inputs, matrix, value)


class Spectral(Parametrization):
    """Kernels whose matrix `(-1, last dimension)` has norm at most one.

    Between training steps the free kernel is kept a multiple of a (semi-)
    orthogonal matrix: `retract` replaces it after each update of a Keras
    optimizer, which leaves the training step nothing to do but to see that the
    kernel is the one already proven. Any other kernel is normalised from
    scratch, so soundness does not depend on the optimizer.

    The multiple is that of the kernel which the optimizer has left, and not
    one: it grows with each step across the manifold, more with longer ones. So
    the steps become shorter in proportion to the kernel, as they do for any
    weight whose scale has no effect, and a learning rate that is far too large
    at first, such as Adam's 0.1, calms down by itself. With a multiple of one
    a step of that length would turn the kernel at random for ever.

    Attributes:
        sn: Variable of shape `(1, last dimension)`, the power-iteration vector.
        sigma: Variable of shape `(1, 1)`, the last estimate of the largest
            singular value of the free kernel. For monitoring: it bounds from
            below, hence nothing is ever divided by it.
    """

    def __init__(
        self,
        eps_spectral,
        eps_bjorck,
        beta_bjorck,
        maxiter_spectral,
        maxiter_bjorck,
        groups=1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.groups = groups
        self.eps_spectral = eps_spectral
        self.eps_bjorck = eps_bjorck
        self.maxiter_spectral = maxiter_spectral
        self.maxiter_bjorck = maxiter_bjorck
        self.orthogonal = eps_bjorck is not None and beta_bjorck is not None
        self._drawn_scale = None

    def free_variable(self, shape, initializer):
        # What `SpectralInitializer` draws is a multiple of what it would be
        # constrained to: half of the time that building takes is saved.
        scale = getattr(initializer, "_proven_scale", None)
        is_usual = (
            scale is not None and USUAL_FACTORS[0] < scale < USUAL_FACTORS[1]
        )
        self._drawn_scale = scale if is_usual and self.groups == 1 else None
        return super().free_variable(shape, initializer)

    def _initial(self, kernel):
        drawn = float32_at_least(kernel)
        dtype = keras.backend.standardize_dtype(drawn.dtype)
        has_all_digits = dtype == kernel.dtype
        if self._drawn_scale is None or not has_all_digits:
            return super()._initial(kernel)
        # A new tensor: JAX donates the memory of each variable.
        matrix = as_matrix(drawn * (1.0 / self._drawn_scale))
        return ops.reshape(self._used(matrix, drawn.shape), drawn.shape)

    def constrain(self, kernel):
        return spectral_constraint(
            kernel, self.orthogonal, self.maxiter_bjorck, self.groups
        )

    def expansion(self, kernel):
        blocks = np.split(kernel, self.groups, axis=-1)
        return max(super(Spectral, self).expansion(block) for block in blocks)

    def _add_own_state(self, kernel):
        columns = kernel.shape[-1]
        self.sn = self.add_weight(
            name="sn",
            shape=(1, columns),
            initializer=keras.initializers.RandomNormal(0.0, 1.0),
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )
        self.sigma = self.add_weight(
            name="sigma",
            shape=(1, 1),
            initializer="ones",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    def update(self, kernel):
        kernel = float32_at_least(kernel)
        matrix = as_matrix(kernel)
        if not self.orthogonal:
            vector = ops.convert_to_tensor(self.sn)
            known = ops.stop_gradient(matrix)
            self._record(*self._power_step(known, vector))
            return super().update(kernel)
        value = self._current(matrix, kernel.shape)
        followed = self._followed(matrix, value)
        return self._differentiable(reshaped(followed, kernel.shape))

    def multiply(self, inputs, kernel):
        """`inputs @ update(kernel)`, with the cheaper gradient of two.

        Args:
            inputs: Tensor `(batch_size, rows)`, of the dtype of the kernel.
            kernel: The free kernel, a matrix.
        """
        matrix = float32_at_least(kernel)
        value = self._current(matrix, matrix.shape)

        def few():
            return _product_of_few(inputs, matrix, value, self.coefficient)

        def many():
            return ops.matmul(inputs, self._followed(matrix, value))

        return cond(ops.shape(inputs)[0] < min(matrix.shape), few, many)

    def multiplies(self, inputs, kernel):
        """Whether `multiply` is of use, and gives what `update` would."""
        return (
            self.orthogonal
            and len(inputs.shape) == len(kernel.shape) == 2
            and min(kernel.shape) >= _LARGE
            and inputs.dtype == float32_at_least(kernel).dtype
        )

    def _followed(self, matrix, value):
        """`value`, as a function of `matrix`."""
        return with_tangent_gradient(
            matrix, value, self.groups, self._coefficient_of
        )

    def _current(self, matrix, shape):
        """The constrained matrix, also stored as `wbar`: a constant.

        Args:
            matrix: Tensor, the free matrix.
            shape: Tuple, the shape of the kernel.
        """
        known = ops.stop_gradient(matrix)
        vector = ops.convert_to_tensor(self.sn)

        def keep():
            return stored, vector, sigma

        def renew():
            nearest, _ = self._nearest(known, _FORWARD)
            used = self._used(nearest, shape)
            return used, *self._power_step(known, vector)

        # Lasting: on torch the variable is written before the gradient needs
        # what it held.
        stored = ops.stop_gradient(self.wbar.proven(lasting=True))
        stored = as_matrix(stored)
        sigma = ops.convert_to_tensor(self.sigma)
        value, vector, sigma = cond(
            self._proven(known, stored, sigma), keep, renew
        )
        if value is stored:
            # Computed eagerly, hence known to be there already.
            return stored
        self._record(vector, sigma)
        value = ops.stop_gradient(value)
        store(self.wbar, reshaped(value, self.wbar.shape))
        return value

    def condense(self, kernel):
        matrix = ops.stop_gradient(as_matrix(float32_at_least(kernel)))
        vector = ops.convert_to_tensor(self.sn)
        for _ in range(self.maxiter_spectral):
            previous = vector
            vector, sigma = self._power_step(matrix, previous)
            if float(ops.norm(vector - previous)) < self.eps_spectral:
                break
        self._record(vector, sigma)
        super().condense(kernel)

    def retract(self, kernel):
        if not self.orthogonal:
            return super().retract(kernel)
        moved = float32_at_least(kernel)
        matrix = as_matrix(moved)
        nearest, scale = self._nearest(matrix, self.eps_bjorck)
        # It has no effect, so it is kept where every dtype has its digits.
        sigma = ops.clip(scale, *SCALES)
        stored = self._used(nearest, moved.shape)
        store(self.wbar, reshaped(stored, moved.shape))
        store(self.sigma, sigma)
        retracted = self._multiple(stored, sigma)
        retracted = reshaped(retracted, moved.shape)
        return ops.cast(retracted, kernel.dtype)

    def _nearest(self, matrix, tolerance):
        return nearest_factor(
            matrix, tolerance, self.maxiter_bjorck, self.groups
        )

    def _used(self, nearest, shape):
        """The constrained matrix that belongs to an orthogonal one.

        Args:
            nearest: Tensor, (semi-)orthogonal.
            shape: Tuple, the shape of the kernel.
        """
        return self._scaled(nearest)

    def _coefficient_of(self, stored):
        """What multiple of an orthogonal matrix a constrained one is."""
        return self.coefficient

    def _differentiable(self, constrained):
        """A constrained kernel with what else its gradient depends on."""
        return constrained

    def _multiple(self, stored, sigma):
        """The free matrix of scale `sigma` that is constrained to `stored`."""
        return (sigma / self._coefficient_of(stored)) * stored

    def _proven(self, matrix, stored, sigma):
        """Whether `wbar` belongs to the kernel at hand.

        It is valid whatever the kernel is, by the proof made when it was
        written, so the answer decides about nothing but which kernel is used.
        Compilers round products in orders of their own, hence the tolerance.
        """
        return is_multiple(matrix, stored, sigma / self.coefficient)

    def _power_step(self, matrix, vector):
        """One step of the power iteration, from the vector of the last call."""

        def applied(matrix, vector):
            return ops.matmul(ops.matmul(vector, ops.transpose(matrix)), matrix)

        matrix, scale = unit_scale(matrix)
        renewed = by_group(applied, self.groups, matrix, vector)
        length = ops.norm(vector)
        # ||v W^T||^2 = <v W^T W, v>
        stretched = ops.sqrt(ops.maximum(ops.sum(renewed * vector), 0.0))
        sigma = ops.reshape(stretched / length, (1, 1)) * scale
        renewed_length = ops.norm(renewed)
        alive = renewed_length > 0
        safe_length = ops.where(
            alive, renewed_length, ops.ones_like(renewed_length)
        )
        return ops.where(alive, renewed / safe_length, vector), sigma

    def _record(self, vector, sigma):
        store(self.sn, vector)
        store(self.sigma, sigma)
