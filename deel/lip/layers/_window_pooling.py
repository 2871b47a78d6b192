"""Pooling layers scaled to a Lipschitz constant.

Note [large norms]. The square of 2e19 is infinite in float32. So squares are
cut off at half of the largest number (divided by that of the values in a mean,
so that none of their sums is infinite below it): what is computed is
`min(norm, 1.3e19)`, which is 1-Lipschitz as the norm is, and finite. The exact
norm would take a scale, hence another pass over the image: on two cores it
makes inference of these layers slower by 30 % (JAX) to 60 % (TensorFlow,
PyTorch), while the limit is one operation on the small tensor. Values below
1e-19, whose squares vanish, count as zero, an error as small as they are.
"""

import math

from deel.lip._lipschitz import LipschitzLayer
from deel.lip._validation import ArgumentError
from deel.lip._validation import int_tuple


class WindowPooling(LipschitzLayer):
    """Mixin of the pooling layers with disjoint windows, of any rank.

    The mean of p values is `1/sqrt(p)`-Lipschitz, hence the coefficient
    `sqrt(p)`. Overlapping windows would read a value several times, and
    padding would change the number of values behind a mean.

    A subclass names its rank and the stock layer of that rank as a base.
    """

    _spatial_rank = None

    def __init__(
        self,
        pool_size=2,
        strides=None,
        padding="valid",
        data_format=None,
        k_coef_lip=1.0,
        **kwargs,
    ):
        pool_size = int_tuple(pool_size, self._spatial_rank)
        strides = int_tuple(strides, self._spatial_rank)
        if strides is not None and tuple(strides) != tuple(pool_size):
            raise ArgumentError(
                f"{type(self).__name__} needs windows that do not overlap: "
                "expected `strides=None` or equal to `pool_size`. "
                f"Received: pool_size={pool_size}, strides={strides}"
            )
        if padding != "valid":
            raise ArgumentError(
                f'{type(self).__name__} supports `padding="valid"` only. '
                f"Received: padding={padding}"
            )
        super().__init__(
            pool_size=pool_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            **kwargs,
        )
        self.set_klip_factor(k_coef_lip)
        self._init_lip_coef(None)

    def _compute_lip_coef(self, input_shape=None):
        return math.sqrt(math.prod(self.pool_size))

    def get_config(self):
        return {**super().get_config(), "k_coef_lip": self.k_coef_lip}
