"""Kernels made of the (semi-)orthogonal matrix nearest to the free one."""

import numpy as np
from keras import ops

from deel.lip._backend.drawing import Normal
from deel.lip._backend.linear_algebra import jointly
from deel.lip._backend.linear_algebra import limited
from deel.lip._backend.tensors import reshaped
from deel.lip._backend.variables import float32_at_least
from deel.lip._defaults import DEFAULT_BETA_BJORCK
from deel.lip._defaults import DEFAULT_EPS_BJORCK
from deel.lip._defaults import DEFAULT_EPS_SPECTRAL
from deel.lip._defaults import DEFAULT_MAXITER_BJORCK
from deel.lip._defaults import DEFAULT_MAXITER_SPECTRAL
from deel.lip._numerics.norm_bounds import as_matrix
from deel.lip._numerics.norm_bounds import unit_scale
from deel.lip._numerics.one_step import steps
from deel.lip._numerics.polar import SCALES
from deel.lip._numerics.polar import by_group
from deel.lip._numerics.polar import factor_in_training
from deel.lip._numerics.polar import spectral_constraint
from deel.lip._numerics.polar import stepped
from deel.lip._numerics.polar import with_tangent_gradient
from deel.lip.parametrizations.base import Parametrization


class Polar(Parametrization):
    """Base of the parametrizations by an orthogonal matrix. Abstract.

    Between training steps the free kernel is kept near to a multiple of a
    (semi-)orthogonal matrix: `retract` replaces it after each update by what
    one step makes of it, which is all that the next forward pass needs. Kernels
    that nobody has retracted are normalised to the end there. Soundness depends
    on neither.

    The multiple is that of the kernel which the optimizer has left, and not
    one: it grows with each step across the manifold, more with longer ones. So
    the steps become shorter in proportion to the kernel, as they do for any
    weight whose scale has no effect, and a learning rate that is far too large
    at first, such as Adam's 0.1, calms down by itself. With a multiple of one
    a step of that length would turn the kernel at random for ever.

    It starts at `coef_lip` of the layer, which the kernel in use has: 1/3
    for a convolution of 3x3. A step turns that three times as far as it would
    turn a kernel with singular values of one.

    Args:
        groups: Integer, the number of blocks of columns, each constrained by
            itself.
        eps_spectral: Float, precision of the power iteration behind `sigma`.
        eps_bjorck: Float, or None to divide by a bound of the norm instead.
        beta_bjorck: Float, or None, which has the same effect.
        maxiter_spectral: Integer, limit of the power iteration.
        maxiter_bjorck: Integer, limit of the orthogonalisation.

    Attributes:
        sn: Variable of shape `(1, last dimension)`, the power-iteration vector.
        sigma: Variable of shape `(1, 1)`, the last estimate of the largest
            singular value of the free kernel. For monitoring: it bounds from
            below, hence nothing is ever divided by it.
    """

    starts_at_coefficient = True

    def __init__(
        self,
        groups=1,
        eps_spectral=DEFAULT_EPS_SPECTRAL,
        eps_bjorck=DEFAULT_EPS_BJORCK,
        beta_bjorck=DEFAULT_BETA_BJORCK,
        maxiter_spectral=DEFAULT_MAXITER_SPECTRAL,
        maxiter_bjorck=DEFAULT_MAXITER_BJORCK,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.groups = groups
        self.eps_spectral = eps_spectral
        self.eps_bjorck = eps_bjorck
        self.maxiter_spectral = maxiter_spectral
        self.maxiter_bjorck = maxiter_bjorck
        self.orthogonal = eps_bjorck is not None and beta_bjorck is not None

    def multiple_of(self, matrix):
        """What multiple of an orthogonal matrix one of `wbar` is."""
        raise NotImplementedError

    def bounded_kernel(self, kernel):
        """A kernel whose matrix has norm one at most, divided by its norm."""
        return kernel

    def with_norm_gradient(self, kernel):
        """`kernel`, of `wbar`, with the gradient of what it is divided by."""
        return kernel

    def add_state(self, input_shape):
        shape = (1, self.kernel_shape[-1])
        self.sn = self.add_weight(shape, Normal(), name="sn")
        self.sigma = self.add_weight((1, 1), "ones", name="sigma")

    def constrain(self, kernel):
        return self.bounded_kernel(
            spectral_constraint(
                kernel, self.orthogonal, self.maxiter_bjorck, self.groups
            )
        )

    def update(self, kernel):
        kernel = float32_at_least(kernel)
        if not self.orthogonal:
            self._follow_sigma(kernel)
            return super().update(kernel)
        if self.wbar.is_current():
            # Lasting: on torch the variable is written before the gradient
            # needs what it held.
            value = self.wbar.proven(lasting=True)
        else:
            self._follow_sigma(kernel)
            nearest = factor_in_training(
                as_matrix(ops.stop_gradient(kernel)),
                self.wbar.is_retracted(),
                self.groups,
                self.maxiter_bjorck,
            )
            nearest = reshaped(nearest, self.kernel_shape)
            value = self.wbar.hold(self.bounded_kernel(nearest))
        self.wbar.note_use()
        followed = with_tangent_gradient(
            as_matrix(kernel),
            as_matrix(ops.stop_gradient(value)),
            self.groups,
            self.multiple_of,
        )
        return self.with_norm_gradient(reshaped(followed, kernel.shape))

    def retract(self, kernel):
        if not self.orthogonal:
            return super().retract(kernel)
        matrix = as_matrix(kernel)
        nearest, scale = stepped(matrix, self.groups)
        sigma = _usual(scale)
        self.store(self.sigma, sigma)
        nearest = reshaped(nearest, self.kernel_shape)
        return sigma * nearest, self.bounded_kernel(nearest)

    @staticmethod
    def retract_stacks(stacks):
        matrices = [reshaped(x, (len(x), -1, x.shape[-1])) for x in stacks]
        factors, scales = zip(*steps(matrices), strict=True)
        sigmas = jointly(_usual, scales)
        found = []
        for stack, factor, sigma in zip(stacks, factors, sigmas, strict=True):
            free = reshaped(sigma * factor, stack.shape)
            found.append((free, reshaped(factor, stack.shape), sigma))
        return found

    def states(self):
        return (self.sigma,)

    def is_left_by_retraction(self, free, used):
        # A multiple, up to the rounding of each entry.
        lengths = [np.linalg.norm(x.astype("float64")) for x in (free, used)]
        if not self.orthogonal or not all(0 < x < np.inf for x in lengths):
            return False
        distance = np.max(np.abs(free / lengths[0] - used / lengths[1]))
        return distance <= 4 * np.finfo("float32").eps

    def free_kernel_of(self, constrained, kernel):
        matrix = ops.stop_gradient(as_matrix(kernel))
        vector = ops.convert_to_tensor(self.sn)
        for _ in range(self.maxiter_spectral):
            previous = vector
            vector, sigma = power_step(matrix, previous, self.groups)
            if float(ops.norm(vector - previous)) < self.eps_spectral:
                break
        self._record(vector, sigma)
        return constrained

    def _follow_sigma(self, kernel):
        matrix = ops.stop_gradient(as_matrix(kernel))
        vector = ops.convert_to_tensor(self.sn)
        self._record(*power_step(matrix, vector, self.groups))

    def _record(self, vector, sigma):
        self.store(self.sn, vector)
        self.store(self.sigma, sigma)


def _usual(scale):
    """A scale without effect, kept where every dtype has its digits."""
    return limited(scale, *SCALES)


def power_step(matrix, vector, groups):
    """One step of the power iteration, from the vector of the last call.

    Returns:
        The new vector, and the estimate of the largest singular value.
    """

    def applied(matrix, vector):
        return ops.matmul(ops.matmul(vector, ops.transpose(matrix)), matrix)

    matrix, scale = unit_scale(matrix)
    renewed = by_group(applied, groups, matrix, vector)
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
