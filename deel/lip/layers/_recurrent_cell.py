"""One step of a recurrent layer with constrained kernels."""

import keras
from keras import ops

from deel.lip._export import build_once
from deel.lip._lipschitz import activation_constant
from deel.lip._validation import require_instance


class OrthogonalRNNCell(keras.layers.Layer):
    """`activation(driven + state W)`, a part of `OrthogonalRNN`.

    The kernels belong to constrained dense layers, which are never called:
    the layer asks for their kernels once, before it runs over the steps. What
    is assigned within the loops of JAX would be lost, and a kernel that is
    constrained at each step takes their number of times as long.

    Args:
        maps: List of one `SpectralDense`, of inputs and state side by side; or
            of two, of the inputs and of the state. The first has the bias.
        activation: A function or layer that keeps the shape.
        **kwargs: What Keras layers take.
    """

    def __init__(self, maps, activation, **kwargs):
        super().__init__(**kwargs)
        self.maps = maps
        self.activation = activation
        self.state_size = self.output_size = maps[0].units

    def build(self, input_shape):
        self.channels = input_shape[-1]
        sizes = self.channels, self.state_size
        if len(self.maps) == 1:
            sizes = (sum(sizes),)
        for dense, size in zip(self.maps, sizes, strict=True):
            build_once(dense, (None, size))
        if isinstance(self.activation, keras.layers.Layer):
            # All state must exist before the first step.
            build_once(self.activation, (None, self.state_size))
            _check_layer(self.activation, self.state_size)

    def split(self, kernels):
        """The kernels of inputs and state, a pair, from those of `maps`."""
        if len(self.maps) == 2:
            return tuple(kernels)
        (joint,) = kernels
        return joint[: self.channels], joint[self.channels :]

    def kernels(self, training):
        """The kernels of inputs and state in one call, a pair of tensors."""
        return self.split([x.constrained_kernel(training) for x in self.maps])

    def driven(self, sequences, kernel):
        """What the inputs of all steps add to the states, a tensor.

        Args:
            sequences: Tensor `(batch_size, steps, channels)`.
            kernel: Tensor `(channels, units)`.
        """
        sequences = ops.cast(sequences, self.compute_dtype)
        driven = ops.matmul(sequences, kernel)
        bias = self.maps[0].bias
        return driven if bias is None else ops.add(driven, bias)

    def using(self, kernel):
        """Surrounds the loop over the steps.

        Args:
            kernel: Tensor `(units, units)`, that of the state.
        """
        return self.maps[-1].using(kernel)

    def call(self, inputs, states):
        if not self.maps[-1].is_using():
            raise ValueError(
                "This cell has no kernel by itself: the layer that it belongs "
                "to constrains it once for all steps. Expected `OrthogonalRNN`"
                ", several of them with `return_sequences=True` to stack them, "
                "and `initial_state` or `stateful=True` to go on from a state. "
                f"Received: a call of the cell '{self.name}'"
            )
        (state,) = states
        outputs = ops.add(inputs, ops.matmul(state, self.maps[-1].kernel))
        outputs = ops.cast(self.activation(outputs), self.compute_dtype)
        return outputs, [outputs]


def check_activation(activation):
    """Raises ValueError for an activation that is not known to contract."""
    require_instance("activation", activation)
    constant = activation_constant(activation)
    if constant is None or constant > 1:
        raise ValueError(
            "The activation follows each step, so what it expands would count "
            "to the power of their number. Expected one with a known constant "
            f"of at most 1. Received: activation={activation}, with "
            f"constant={constant}"
        )


def _check_layer(activation, units):
    """Raises ValueError for a layer that a loop over steps cannot take."""
    shape = tuple(activation.compute_output_shape((None, units)))
    if shape != (None, units):
        raise ValueError(
            "The activation of a recurrent layer must keep the shape of its "
            f"states, (None, {units}). Received: activation={activation}, "
            f"which returns {shape}"
        )
    state = [variable.name for variable in activation.non_trainable_variables]
    if state:
        raise ValueError(
            "The activation of a recurrent layer must have no state of its "
            f"own, which loops lose. Received: activation={activation}, with "
            f"{state}"
        )
