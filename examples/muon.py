"""Muon for constrained kernels of any rank."""

import math
import re

import keras
from keras import ops


class Muon(keras.optimizers.Muon):
    """`keras.optimizers.Muon`, which convolutions use as well.

    That of Keras takes matrices and leaves other kernels to Adam. Here all axes
    but the last are rows, as they are for the constraint of a kernel. The scale
    of such a kernel has no effect, so there is no weight decay, and three steps
    towards equal singular values are enough: the constraint follows.

    Args:
        learning_rate: As there; of Adam too, which gets what is no kernel, and
            the layers below.
        exclude_layers: List of strings, regular expressions of names of layers
            or variables; the last layer, whose neurons should not be
            orthogonal, belongs there.
        ns_steps: Integer, as there.
        **kwargs: The other arguments of `keras.optimizers.Muon`.
    """

    def __init__(
        self, learning_rate=0.1, exclude_layers=None, ns_steps=3, **kwargs
    ):
        super().__init__(
            learning_rate,
            exclude_layers=exclude_layers,
            ns_steps=ns_steps,
            **{"weight_decay": None, "adam_weight_decay": None, **kwargs},
        )

    def _should_use_adamw(self, variable):
        excluded = (re.search(x, variable.path) for x in self.exclude_layers)
        return len(variable.shape) < 2 or any(excluded)

    def _muon_update_step(self, gradient, variable, lr, m):
        self.assign_add(m, gradient + (self.momentum - 1) * m)
        direction = gradient + self.momentum * m if self.nesterov else m
        rows = math.prod(variable.shape[:-1])
        matrix = ops.reshape(direction, (rows, variable.shape[-1]))
        update = self.lr_adjust(
            lr * self.zeropower_via_newtonschulz5(matrix, self.ns_steps)
        )
        self.assign_sub(variable, ops.reshape(update, variable.shape))
