"""The two protocols of the library: a known constant, and an export."""

from deel.lip._validation import positive_float


class LipschitzLayer:
    """Mixin of the layers that take a Lipschitz constant `k_coef_lip`.

    A layer of this kind multiplies a 1-Lipschitz map by `k_coef_lip`. Most
    maps have to be divided by their own norm first: `coef_lip` is that
    structural coefficient (1 for a dense layer, the inverse root of the
    window overlap for a convolution), known as soon as the layer is built.

    The mixin by itself guarantees nothing. It is how
    `deel.lip.model.Sequential` hands each layer its share of the constant.
    """

    k_coef_lip = 1.0
    coef_lip = None

    def set_klip_factor(self, klip_factor):
        """Sets the Lipschitz constant of the layer.

        A model that was compiled before has to be compiled again, as for any
        attribute that Keras reads when it traces the training step.

        Args:
            klip_factor: Float, finite and greater than zero.
        """
        self.k_coef_lip = positive_float("k_coef_lip", klip_factor)

    def _compute_lip_coef(self, input_shape=None):
        """Returns the structural coefficient for `input_shape`, a float."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement `_compute_lip_coef`."
        )

    def _init_lip_coef(self, input_shape):
        self.coef_lip = self._compute_lip_coef(input_shape)

    def _get_coef(self):
        """Returns `coef_lip * k_coef_lip`, a float."""
        if self.coef_lip is None:
            raise RuntimeError(
                f"The Lipschitz coefficient of {type(self).__name__} is known "
                "once the layer is built. Call `build` first. "
                f"Received: coef_lip={self.coef_lip}"
            )
        return self.coef_lip * self.k_coef_lip


class Condensable:
    """Mixin of the objects that can be turned into their stock equivalent."""

    def _check_condensable(self):
        """Raises the error that `condense` would, before anything changes."""

    def condense(self):
        """Overwrites the free weights with the constrained ones."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement `condense`."
        )

    def vanilla_export(self):
        """Returns a stock Keras object with the same inference output."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement `vanilla_export`."
        )
