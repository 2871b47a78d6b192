"""Cross-entropies for scores that cannot grow at will."""

import keras
import numpy as np
from keras import ops

from deel.lip._backend.variables import float32_at_least
from deel.lip._backend.variables import host
from deel.lip._constrained import ConstrainedKernel
from deel.lip._labels import aligned
from deel.lip._register import register
from deel.lip.losses._base import LipschitzLoss
from deel.lip.losses._base import number_of_classes
from deel.lip.losses._base import parameter
from deel.lip.losses._base import positive_parameter
from deel.lip.losses._base import true_score


class _TauCrossentropy(LipschitzLoss):
    """Base of the cross-entropies with a temperature; see the first of them."""

    _arguments = ("tau",)

    def __init__(self, tau, reduction="sum_over_batch_size", name=None):
        super().__init__(reduction, name)
        self.tau = positive_parameter("tau", tau)

    def call(self, y_true, y_pred):
        crossentropy = self._crossentropy(y_true, y_pred)
        return crossentropy / ops.convert_to_tensor(self.tau)

    def _crossentropy(self, y_true, y_pred):
        """Cross-entropy of each sample, of the scores times `tau`."""
        raise NotImplementedError


@register("TauCategoricalCrossentropy")
class TauCategoricalCrossentropy(_TauCrossentropy):
    """Cross-entropy of `softmax(tau * y_pred)`, divided by `tau`.

    The scores of a Lipschitz network are bounded, so its cross-entropy cannot
    vanish. Multiplying the scores by `tau` (and dividing the loss by it) moves
    the loss between a mean of margins, for small `tau`, and a hinge, for large
    ones.

    Args:
        tau: Float greater than zero, the inverse temperature.
        reduction, name: As for `keras.losses.Loss`.
    """

    def _crossentropy(self, y_true, y_pred):
        y_true, y_pred = aligned(y_true, y_pred)
        number_of_classes(y_pred)
        return keras.losses.categorical_crossentropy(
            y_true, self.tau * y_pred, from_logits=True
        )


@register("TauSparseCategoricalCrossentropy")
class TauSparseCategoricalCrossentropy(_TauCrossentropy):
    """`TauCategoricalCrossentropy` for integer labels, with its arguments."""

    def _crossentropy(self, y_true, y_pred):
        return keras.losses.sparse_categorical_crossentropy(
            y_true, self.tau * y_pred, from_logits=True
        )


@register("TauBinaryCrossentropy")
class TauBinaryCrossentropy(_TauCrossentropy):
    """Binary cross-entropy of `sigmoid(tau * y_pred)`, divided by `tau`.

    Takes the arguments of `TauCategoricalCrossentropy`.
    """

    def _crossentropy(self, y_true, y_pred):
        y_true, y_pred = aligned(y_true, y_pred)
        positive = ops.cast(y_true > 0, y_pred.dtype)
        return keras.losses.binary_crossentropy(
            positive, self.tau * y_pred, from_logits=True
        )


class _OffsetCrossentropy(LipschitzLoss):
    """Base of the cross-entropies that take a margin off the true class."""

    _arguments = ("offset", "temperature")

    def __init__(self, offset, temperature, reduction, name):
        super().__init__(reduction, name)
        self.offset = parameter("offset", offset)
        self.temperature = positive_parameter("temperature", temperature)

    def _crossentropy(self, y_true, y_pred):
        """Cross-entropy of each sample, not multiplied by the temperature."""
        y_true, y_pred = aligned(y_true, y_pred)
        number_of_classes(y_pred)
        scores = (y_pred - self.offset * y_true) / self.temperature
        return keras.losses.categorical_crossentropy(
            y_true, scores, from_logits=True
        )


@register("OffsetCategoricalCrossentropy")
class OffsetCategoricalCrossentropy(_OffsetCrossentropy):
    """Cross-entropy that asks the true class to lead by an offset.

    `T * CE(softmax((y_pred - offset * y_true) / T))`, with `T = temperature`.
    The gradient stays large until the true class leads by about `offset`, and
    vanishes beyond. For a certified radius `epsilon` of a network whose vector
    of scores is 1-Lipschitz, the lead has to be `2**0.5 * epsilon`; an offset
    of twice that leaves room for samples that were not seen. Without offset it
    is `TauCategoricalCrossentropy(1 / temperature)`.

    Args:
        offset: Float, zero or more. A larger one favours robustness, a smaller
            one accuracy.
        temperature: Float greater than zero. A smaller one makes the end of
            the margin sharper.
        reduction, name: As for `keras.losses.Loss`.

    Example:

    >>> from deel.lip.losses import OffsetCategoricalCrossentropy
    >>> loss = OffsetCategoricalCrossentropy(offset=1.0, temperature=0.5)
    >>> round(float(loss([[1, 0, 0]], [[2.0, 0.0, 0.0]])), 4)
    0.1198

    Reference:
        - [Prach and Lampert, 2022](https://arxiv.org/abs/2208.03160),
          "Almost-orthogonal layers for efficient general-purpose Lipschitz
          networks".
    """

    def __init__(
        self,
        offset=2**0.5,
        temperature=0.25,
        reduction="sum_over_batch_size",
        name=None,
    ):
        super().__init__(offset, temperature, reduction, name)

    def call(self, y_true, y_pred):
        return self.temperature * self._crossentropy(y_true, y_pred)


@register("LogitAnnealing")
class LogitAnnealing(_OffsetCrossentropy):
    """Cross-entropy with an offset that lets go of what is learned.

    `(1 - p)^beta * T * CE`, with the cross-entropy CE of
    `OffsetCategoricalCrossentropy` and `p = exp(-CE)`, the probability that it
    gives to the true class. A Lipschitz network has only so much margin to
    give away: the factor takes it from samples that have more than enough.

    Args:
        offset, temperature: As for `OffsetCategoricalCrossentropy`.
        beta: Float, zero or more. How soon a sample is let go; 0 leaves
            `OffsetCategoricalCrossentropy`.
        reduction, name: As for `keras.losses.Loss`.

    Example:

    >>> from deel.lip.losses import LogitAnnealing
    >>> loss = LogitAnnealing(offset=1.0, temperature=1.0, beta=1.0)
    >>> round(float(loss([[1, 0]], [[1.0, 0.0]])), 4)
    0.3466

    Reference:
        - [Lai et al., 2025](https://arxiv.org/abs/2505.15174), "Enhancing
          certified robustness via block reflector orthogonal layers and logit
          annealing loss".
    """

    _arguments = ("offset", "temperature", "beta")

    def __init__(
        self,
        offset=2.0,
        temperature=0.75,
        beta=5.0,
        reduction="sum_over_batch_size",
        name=None,
    ):
        super().__init__(offset, temperature, reduction, name)
        self.beta = parameter("beta", beta)

    def call(self, y_true, y_pred):
        crossentropy = self._crossentropy(y_true, y_pred)
        # Kept from zero, where the gradient of the power may be infinite.
        missing = ops.maximum(-ops.expm1(-crossentropy), keras.config.epsilon())
        return missing**self.beta * self.temperature * crossentropy


@register("EMMA")
class EMMA(LipschitzLoss):
    """Cross-entropy of the scores of an attack, strong where it has a chance.

    With the true class y, the score of each other class i is raised by
    `e_i * epsilon * K_iy`. K_iy is the Lipschitz constant of `f_i - f_y`, so
    `epsilon * K_iy` is the most that any attack of norm `epsilon` can gain.
    `e_i`, the share of it that would make both scores equal, is clipped to
    `[0.01, 1]` and counts as a constant: classes that are out of reach ask for
    no more than their own radius.

    Args:
        epsilon: Float greater than zero, the radius of the attack. Where the
            constants below leave out a factor, such as that of the layers
            before `last_layer`, multiply `epsilon` by it.
        constants: K: a float for all pairs of classes, or a list of lists with
            a number for each pair. None means those of `last_layer`, or
            `2**0.5`, which is right if the vector of scores is 1-Lipschitz.
        last_layer: None, or the dense layer that makes the scores from
            1-Lipschitz features: K_ij is then the distance of its columns i
            and j, as they are at each step. A loss that is loaded from a file
            keeps the constants of the moment when it was saved.
        reduction, name: As for `keras.losses.Loss`.

    Raises:
        ValueError: If an argument is out of its range, if `constants` is not
            symmetric or does not fit the scores, or if `constants` and
            `last_layer` are both given.

    Example:

    >>> from deel.lip.losses import EMMA
    >>> loss = EMMA(epsilon=0.5, constants=2.0)
    >>> round(float(loss([[1, 0]], [[3.0, 0.0]])), 4)
    0.1269

    Reference:
        - [Hu et al., 2023](https://arxiv.org/abs/2301.12549), "Unlocking
          deterministic robustness certification on ImageNet".
    """

    _arguments = ("epsilon",)

    def __init__(
        self,
        epsilon=36 / 255,
        constants=None,
        last_layer=None,
        reduction="sum_over_batch_size",
        name=None,
    ):
        super().__init__(reduction, name)
        self.epsilon = positive_parameter("epsilon", epsilon)
        if constants is not None and last_layer is not None:
            raise ValueError(
                "Give either `constants` or the `last_layer` that has them. "
                f"Received: constants={constants}, last_layer={last_layer}"
            )
        self.constants = _checked_constants(constants)
        self.last_layer = last_layer

    def call(self, y_true, y_pred):
        y_true, y_pred = aligned(y_true, y_pred)
        classes = number_of_classes(y_pred)
        lag = y_pred - true_score(y_true > 0, y_pred, keepdims=True)
        is_true = ops.cast(y_true > 0, y_pred.dtype)
        gain = self.epsilon * self._constants_of(is_true, classes)
        share = -lag / ops.maximum(gain, keras.config.epsilon())
        share = ops.stop_gradient(ops.clip(share, 0.01, 1.0))
        # The score of the true class is 0 now, and nothing is added to it.
        return ops.logsumexp(lag + share * gain, axis=-1)

    def _constants_of(self, is_true, classes):
        """K_iy for each sample, `(batch_size, classes)`; 0 for i = y."""
        if self.last_layer is not None:
            pairs = _distances(self._kernel())
        else:
            shape = np.shape(self.constants) or (classes, classes)
            pairs = self.constants * (1.0 - np.eye(*shape))
        if tuple(pairs.shape) != (classes, classes):
            raise ValueError(
                "The constants must be those of all pairs of classes. Expected "
                f"shape=({classes}, {classes}). "
                f"Received: shape={tuple(pairs.shape)}"
            )
        pairs = ops.cast(pairs, is_true.dtype)
        return ops.matmul(is_true, pairs)

    def _kernel(self):
        layer = self.last_layer
        constrained = isinstance(layer, ConstrainedKernel)
        return float32_at_least(layer.wbar if constrained else layer.kernel)

    def get_config(self):
        constants = self.constants
        if self.last_layer is not None:
            constants = host(_distances(self._kernel())).tolist()
        return {**super().get_config(), "constants": constants}


def _checked_constants(constants):
    """A float, or a list of lists, that is plain enough for a config."""
    if constants is None:
        return 2**0.5
    values = np.asarray(constants, "float64")
    is_matrix = values.ndim == 2 and values.shape[0] == values.shape[1]
    fits = values.ndim == 0 or (is_matrix and np.array_equal(values, values.T))
    if not fits or not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError(
            "Argument `constants` must be a number, or a symmetric matrix of "
            f"numbers, zero or greater. Received: constants={constants}"
        )
    return values.tolist()


def _distances(kernel):
    """Distances of all pairs of columns, zero on the diagonal."""
    gram = ops.matmul(ops.transpose(kernel), kernel)
    squares = ops.sum(ops.square(kernel), axis=0)
    squares = squares + ops.expand_dims(squares, -1) - 2.0 * gram
    # Kept from zero, where the root has no finite gradient.
    tiny = keras.config.epsilon() ** 2
    apart = 1.0 - ops.eye(kernel.shape[-1], dtype=kernel.dtype)
    return apart * ops.sqrt(ops.maximum(squares, tiny))
