"""Normalisations that keep, or report, the Lipschitz constant.

Note [statistics of the batches]. At inference, the layers that use the batch
take the mean of the statistics of the training batches since the last call of
`reset_statistics`. That mean is kept as it is, with the number of batches
behind it: each batch moves it by `(batch - mean) / count`. Its first batch
replaces what was there before, so no initial value lingers, and the statistics
are ready at any moment, in files too.

Inference writes no variable, so it cannot mark where the next mean begins, and
a training loop that never evaluates would average over its whole past. Hence
`window`: the count stops there, and from then on the mean forgets, as that of
`keras.layers.BatchNormalization` with momentum `1 - 1 / window`. For the mean
since the previous evaluation exactly, pass `window=None` and reset where the
evaluation is known to end (see `BatchCentering`).
"""

import keras
from keras import ops

from deel.lip._backend.retraction import store
from deel.lip._backend.variables import float32_at_least
from deel.lip._backend.variables import host
from deel.lip._lipschitz import Condensable
from deel.lip._lipschitz import LipschitzLayer
from deel.lip._register import register
from deel.lip._validation import positive_float
from deel.lip._validation import positive_int
from deel.lip._validation import require_built
from deel.lip.layers._channel_bias import ChannelBias
from deel.lip.layers.scale_bias import ScaleBiasLayer


class _BatchStatistics(Condensable, ChannelBias):
    """Base of the layers that use the batch; see [statistics of the batches].

    The output is `(x - mean) * factor + bias`, with a mean for each channel
    and one factor. A subclass gets them from a batch and from its variables.
    """

    def __init__(self, axis, use_bias, bias_initializer, window, **kwargs):
        super().__init__(use_bias, bias_initializer, **kwargs)
        if not isinstance(axis, int):
            raise ValueError(
                "Argument `axis` must be an integer, the axis of the channels. "
                f"Received: axis={axis}"
            )
        self.axis = axis
        self.window = None if window is None else positive_int("window", window)

    def build(self, input_shape):
        self._add_bias(input_shape, self.axis)
        rank = len(input_shape)
        self._reduced = [i for i in range(rank) if i != self._channel_axis]
        channels = (input_shape[self._channel_axis],)
        self._add_statistics(channels)
        self.count = self._add_statistic("count", (), "zeros")

    def _add_statistics(self, shape):
        """Creates a variable for each statistic, of one value by channel."""
        raise NotImplementedError

    def _observe(self, x):
        """Returns the mean, or None, and the factor of a batch; records it."""
        raise NotImplementedError

    def _recall(self):
        """Returns the mean, or None, and the factor that inference uses."""
        raise NotImplementedError

    def call(self, inputs, training=None):
        x = float32_at_least(inputs)
        mean, factor = self._observe(x) if training else self._recall()
        if mean is not None:
            x = x - self._by_channel(mean, x)
        return self._biased(x * factor)

    def _add_statistic(self, name, shape, initializer):
        # Sums of a half-precision type would stop growing.
        dtype = keras.backend.result_type(self.variable_dtype, "float32")
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            trainable=False,
            autocast=False,
            dtype=dtype,
            # Replicas that see parts of a batch agree on the mean of all.
            aggregation="mean",
        )

    def _accumulate(self, pairs):
        """Moves means by pairs `(variable, value of the batch)`."""
        count = ops.convert_to_tensor(self.count) + 1
        if self.window is not None:
            count = ops.minimum(count, float(self.window))
        for variable, value in pairs:
            former = ops.convert_to_tensor(variable)
            value = ops.cast(ops.stop_gradient(value), former.dtype)
            store(variable, former + (value - former) / count)
        store(self.count, count)

    def reset_statistics(self):
        """Lets the next training batch begin new means.

        Until that batch, inference uses the former ones.
        """
        if self.built:
            self.count.assign(0.0)

    def condense(self):
        """Does nothing: no weight of this layer is constrained."""

    def vanilla_export(self):
        """Returns the `ScaleBiasLayer` with the same inference output."""
        require_built(self, "vanilla_export")
        mean, factor = self._recall()
        factor = float(ops.convert_to_numpy(factor))
        # The mean is not folded into the bias: where it is large, their sum
        # would lose the digits that the difference of input and mean keeps.
        exported = ScaleBiasLayer(
            scalar=factor,
            use_bias=self.use_bias,
            axis=self.axis,
            mean=None if mean is None else host(mean).tolist(),
            name=self.name,
            dtype=self.dtype_policy,
        )
        exported.build(self._build_shapes_dict["input_shape"])
        if self.bias is not None:
            exported.bias.assign(host(self.bias))
        return exported

    def get_config(self):
        config = super().get_config()
        return {**config, "axis": self.axis, "window": self.window}


@register("BatchCentering")
class BatchCentering(LipschitzLayer, _BatchStatistics):
    """Subtracts from each channel its mean over the batch and space.

    The output is `k_coef_lip * (x - mean) + bias`. Training uses the mean of
    the batch. Inference uses the mean of the batch means since the last call of
    `reset_statistics`, which is a translation: exactly `k_coef_lip`-Lipschitz.
    As it is linear in training too, it takes the place of batch normalisation
    in a Lipschitz network.

    For the mean since the previous evaluation, pass `window=None` and reset at
    the start of each epoch:

    ```python
    keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: layer.reset_statistics()
    )
    ```

    Args:
        axis: Integer, the axis of the channels.
        use_bias: Boolean, whether a trained bias for each channel is added.
        k_coef_lip: Float, the Lipschitz constant.
        window: Integer, the number of training batches from which on the mean
            forgets, as with momentum `1 - 1 / window`; None for a mean of all
            batches since `reset_statistics`.
        bias_initializer: Initializer of the bias.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, ..., channels)`, or with channels on `axis`.
        The output has the same.

    Raises:
        ValueError: If `axis` is not an axis of the input other than the batch.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import BatchCentering
    >>> layer = BatchCentering()
    >>> x = np.array([[1., 10.], [3., 20.]])
    >>> print(keras.ops.convert_to_numpy(layer(x, training=True)))
    [[-1. -5.]
     [ 1.  5.]]
    >>> print(keras.ops.convert_to_numpy(layer(0 * x)))
    [[ -2. -15.]
     [ -2. -15.]]
    """

    def __init__(
        self,
        axis=-1,
        use_bias=True,
        k_coef_lip=1.0,
        window=100,
        bias_initializer="zeros",
        **kwargs,
    ):
        super().__init__(axis, use_bias, bias_initializer, window, **kwargs)
        self.set_klip_factor(k_coef_lip)
        self._init_lip_coef(None)

    def _compute_lip_coef(self, input_shape=None):
        return 1.0

    def _add_statistics(self, shape):
        self.mean = self._add_statistic("mean", shape, "zeros")

    def _observe(self, x):
        mean = ops.mean(x, axis=self._reduced)
        self._accumulate([(self.mean, mean)])
        return mean, self.k_coef_lip

    def _recall(self):
        return ops.convert_to_tensor(self.mean), self.k_coef_lip

    def get_config(self):
        return {**super().get_config(), "k_coef_lip": self.k_coef_lip}


@register("SharedLipFactory")
class SharedLipFactory:
    """Product of the factors of the `BatchLipNorm` layers of a network.

    `BatchLipNorm` multiplies by a factor that depends on data. Layers that are
    given one factory report to it, and the product of their factors is the
    Lipschitz constant that they bring to a sequential network at inference.

    A model that is saved as a whole keeps the sharing: layers with one factory
    have one after loading, which holds the layers of the loaded model only.
    Layers copied one by one (`from_config`, `keras.models.clone_model`) get a
    factory each.

    Example:

    >>> import numpy as np
    >>> from deel.lip.layers import BatchLipNorm, SharedLipFactory
    >>> factory = SharedLipFactory()
    >>> layers = [BatchLipNorm(factory=factory) for _ in range(2)]
    >>> x = np.array([[0.], [4.], [8.]])
    >>> for layer in layers:
    ...     x = layer(x, training=True)
    >>> float(factory.get_current_product_value(training=False))
    0.25
    """

    def __init__(self):
        self._layers = []

    def register(self, layer):
        """Adds a `BatchLipNorm`, once; the layers do so themselves."""
        if not any(layer is known for known in self._layers):
            self._layers.append(layer)

    def get_current_product_value(self, training=False):
        """Returns the product of the factors, a scalar tensor.

        Args:
            training: See `BatchLipNorm.scaling_factor`.
        """
        product = ops.ones(())
        for layer in self._layers:
            product = product * layer.scaling_factor(training)
        return product

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@register("BatchLipNorm")
class BatchLipNorm(_BatchStatistics):
    """Batch normalisation with one factor for all channels.

    The output is `(x - mean) * s + bias`, with the mean of each channel over
    the batch and space, and `s = 1 / sqrt(v)` for v the largest variance of a
    channel. Dividing each channel by its own deviation, as batch normalisation
    does, would distort the space; one factor scales it. The factor is the
    Lipschitz constant of the layer at inference, and can be greater than 1, so
    a `deel.lip.model.Sequential` says that its own constant does not account
    for this layer: multiply it by the product of a `SharedLipFactory`.

    Training uses the statistics of the batch, inference the mean of those
    since the last call of `reset_statistics`.

    Args:
        axis, use_bias, window, bias_initializer: As for `BatchCentering`, whose
            shapes are those of this layer.
        centering: Boolean, whether the mean is subtracted.
        normalize: Boolean, whether the factor is applied; if not it is 1.
        factory: The `SharedLipFactory` to report the factor to, or None.
        eps: Float greater than zero. A variance below it counts as 1.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Raises:
        ValueError: As for `BatchCentering`; if `eps` is not greater than zero,
            or if `factory` is of another type.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.layers import BatchLipNorm
    >>> x = np.array([[1., 10.], [2., 12.], [3., 14.]])
    >>> print(keras.ops.convert_to_numpy(BatchLipNorm()(x, training=True)))
    [[-0.5 -1. ]
     [ 0.   0. ]
     [ 0.5  1. ]]
    """

    def __init__(
        self,
        axis=-1,
        centering=True,
        normalize=True,
        use_bias=True,
        factory=None,
        eps=1e-5,
        window=100,
        bias_initializer="zeros",
        **kwargs,
    ):
        super().__init__(axis, use_bias, bias_initializer, window, **kwargs)
        self.centering = centering
        self.normalize = normalize
        self.eps = positive_float("eps", eps)
        if isinstance(factory, dict):
            factory = keras.saving.deserialize_keras_object(factory)
        if factory is not None and not isinstance(factory, SharedLipFactory):
            raise ValueError(
                "Argument `factory` must be a SharedLipFactory or None. "
                f"Received: factory={factory}"
            )
        self.factory = factory
        if factory is not None:
            factory.register(self)

    def _add_statistics(self, shape):
        self.mean = self._add_statistic("mean", shape, "zeros")
        self.variance = self._add_statistic("variance", shape, "ones")
        self.scale = self._add_statistic("scale", (), "ones")

    def _observe(self, x):
        mean = ops.mean(x, axis=self._reduced)
        offset = x - self._by_channel(mean, x)
        squares = ops.sum(ops.square(offset), axis=self._reduced)
        # All values but those of the channels themselves.
        count = ops.cast(ops.size(x) // x.shape[self._channel_axis], x.dtype)
        variance = squares / ops.maximum(count - 1, 1)
        factor = self._factor(variance)
        self._accumulate([(self.mean, mean), (self.variance, variance)])
        store(self.scale, ops.stop_gradient(ops.cast(factor, "float32")))
        return (mean if self.centering else None), factor

    def _recall(self):
        mean = ops.convert_to_tensor(self.mean) if self.centering else None
        return mean, self._factor(ops.convert_to_tensor(self.variance))

    def _factor(self, variance):
        if not self.normalize:
            return ops.ones((), variance.dtype)
        ones = ops.ones_like(variance)
        largest = ops.max(ops.where(variance < self.eps, ones, variance))
        return 1.0 / ops.sqrt(largest)

    def scaling_factor(self, training=False):
        """Returns the factor s, a scalar tensor.

        Args:
            training: Boolean. True for that of the last training batch,
                without gradient; False for the one that inference uses.
        """
        if not self.built:
            return ops.ones(())
        if training:
            return ops.convert_to_tensor(self.scale)
        return self._recall()[1]

    def get_config(self):
        factory = self.factory
        if factory is not None:
            # Keras loads objects with the same identity once. By itself it
            # sees that objects are shared in lists of layers only.
            factory = {
                **keras.saving.serialize_keras_object(factory),
                "shared_object_id": id(factory),
            }
        return {
            **super().get_config(),
            "centering": self.centering,
            "normalize": self.normalize,
            "factory": factory,
            "eps": self.eps,
        }
