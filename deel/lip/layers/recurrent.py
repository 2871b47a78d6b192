"""A recurrent layer with a constrained kernel.

Note [How far a sequence moves the states]

Let `h_t = f(h_{t-1} W + s x_t U + b)` for t = 1 ... T, with f 1-Lipschitz as a
map of vectors. Two sequences that differ by e_t at each step, from the same
state h_0, lead to states that differ by d_t, with d_0 = 0. The distance of the
sequences is ||e||, the root of the sum of the squares of all ||e_t||.

* Forgetting: the matrix of U above W has norm 1 at most. It maps `[s e_t,
  d_{t-1}]`, so `||d_t||^2 <= s^2 ||e_t||^2 + ||d_{t-1}||^2`, hence
  `||d_T||^2 <= s^2 (||e_1||^2 + ... + ||e_T||^2)`: the last state is
  s-Lipschitz, for any length. The squares of T states add up to at most
  `T s^2 ||e||^2`: all states together are `s sqrt(T)`-Lipschitz.
* Lasting: U and W have norm 1 at most, each, so
  `||d_t|| <= s (||e_1|| + ... + ||e_t||)`. By Cauchy and Schwarz the last state
  is `s sqrt(T)`-Lipschitz. The norms of all differences are bounded by s times
  those of `L (||e_1||, ..., ||e_T||)`, where L has ones on and below the
  diagonal. Its inverse has ones on the diagonal and -1 below it, and
  `L^-1 L^-T` is the second difference, 2 on the diagonal but for a 1 in the
  corner, and -1 beside it, of which the smallest eigenvalue is
  `4 sin^2(pi / (4 T + 2))`. So all states are `s / (2 sin(pi / (4 T + 2)))`-
  Lipschitz together.

A step that is masked keeps the state, `d_t = d_{t-1}`, and returns it again, or
zeros. So all that holds for any mask, which must be the same for both
sequences: a mask that is computed of their values may jump.

What a kernel may exceed its norm by in floating point, `SLACK`, would count to
the power of T. The layer uses kernels that are smaller by as much.
"""

import functools
import math

import keras

from deel.lip._backend.variables import host
from deel.lip._export import build_once
from deel.lip._export import copy_state
from deel.lip._lipschitz import Condensable
from deel.lip._lipschitz import LipschitzLayer
from deel.lip._lipschitz import activation_constant
from deel.lip._register import register
from deel.lip._validation import positive_int
from deel.lip._validation import require_built
from deel.lip._validation import require_one_of
from deel.lip.layers._recurrent_cell import OrthogonalRNNCell
from deel.lip.layers._recurrent_cell import check_activation
from deel.lip.layers.dense import SpectralDense
from deel.lip.parametrizations.constrained_variable import SLACK

_OF_KERNEL = ("initializer", "regularizer", "constraint")

_OF_LOOP = (
    "return_sequences",
    "return_state",
    "go_backwards",
    "stateful",
    "unroll",
    "zero_output_for_mask",
)


@register("OrthogonalRNN")
class OrthogonalRNN(LipschitzLayer, Condensable, keras.layers.RNN):
    """A recurrent layer that is Lipschitz from the sequence to its states.

    It takes the place of `keras.layers.SimpleRNN` and takes its arguments, in
    the same order: `h_t = activation(h_{t-1} W + s x_t U + b)`. Whatever the
    kernels, the map from the whole sequence, with the Euclidean norm over steps
    and features together, to what the layer returns is `k_coef_lip`-Lipschitz:
    the last state, or all states together with `return_sequences=True`. Two
    kinds of memory keep it so:

    - `"forgetting"`: the matrix of U above W has all singular values equal to
      one. What the inputs write, the state forgets, so the bound of the last
      state needs no factor, for sequences of any length: the usual choice.
    - `"lasting"`: W is orthogonal, and so is U. With an activation that keeps
      norms, such as `GroupSort2`, a state never fades, and each step adds to
      it. For this the input is divided by the root of the number of steps.

    The number s is `k_coef_lip`, divided by what the states of T steps may
    expand: 1 for the last state of a forgetting layer, `sqrt(T)` for all
    states, or for the last one of a lasting layer, and about `2 T / pi` for all
    states of a lasting layer. Where T counts, all sequences have that length.

    Masks, `return_state`, `Bidirectional` and the like work as for other
    recurrent layers. The constant holds for a fixed mask and a fixed initial
    state; with `return_state`, for each of the outputs by itself. The states
    of a `stateful` layer that forgets are `k_coef_lip`-Lipschitz in the whole
    sequence too, in however many calls it comes.

    In half precision the states are computed in float32 all the same, for each
    step would add its rounding; so does the `SimpleRNN` that `vanilla_export`
    returns.

    Args:
        units: Positive integer, dimension of the state.
        activation: Activation function, or an activation layer such as
            `GroupSort2()`, whose constant is known and at most 1.
        use_bias: Boolean, whether the layer has a bias.
        kernel_initializer: Initializer of U; of both kernels, which are one
            matrix of U above W, where the memory forgets. None means a new
            `SpectralInitializer()`.
        recurrent_initializer: Initializer of W. As the other arguments of W, it
            is for a lasting memory only, and must be None for the other.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the free kernel, that of U or both.
        recurrent_regularizer: Regularizer of the free kernel of W.
        bias_regularizer: Regularizer of the bias.
        activity_regularizer: Regularizer of the output.
        kernel_constraint: Constraint of the free kernel, that of U or both,
            applied by the optimizer.
        recurrent_constraint: Constraint of the free kernel of W.
        bias_constraint: Constraint of the bias.
        dropout: Must be 0: it would expand in training.
        recurrent_dropout: Must be 0.
        return_sequences: Boolean, whether to return the states of all steps.
        return_state: Boolean, whether to return the last state besides.
        go_backwards: Boolean, whether to begin with the last step.
        stateful: Boolean, whether to go on from the states of the last batch.
        unroll: Boolean, whether to compute without a loop.
        memory: `"forgetting"` or `"lasting"`.
        k_coef_lip: Float, the Lipschitz constant of the layer.
        **kwargs: `name`, `dtype` and what else Keras layers take.

    Input shape:
        Tensor `(batch_size, steps, features)`.

    Output shape:
        Tensor `(batch_size, units)`, or `(batch_size, steps, units)` with
        `return_sequences=True`.

    Raises:
        ValueError: If an argument is out of its range; if the number of steps
            is not known where it counts; or for an activation that expands,
            changes the shape, or keeps a state of its own.

    Example:

    >>> import numpy as np
    >>> from deel.lip.activations import GroupSort2
    >>> from deel.lip.layers import OrthogonalRNN
    >>> layer = OrthogonalRNN(4, activation=GroupSort2())
    >>> layer(np.ones((2, 50, 3), "float32")).shape[1]
    4
    >>> layer.coef_lip  # Of the last state, for any number of steps.
    1.0
    >>> states = OrthogonalRNN(4, return_sequences=True)
    >>> states.build((None, 25, 3))
    >>> states.coef_lip
    0.2
    """

    def __init__(
        self,
        units,
        activation="tanh",
        use_bias=True,
        kernel_initializer=None,
        recurrent_initializer=None,
        bias_initializer="zeros",
        kernel_regularizer=None,
        recurrent_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        recurrent_constraint=None,
        bias_constraint=None,
        dropout=0.0,
        recurrent_dropout=0.0,
        return_sequences=False,
        return_state=False,
        go_backwards=False,
        stateful=False,
        unroll=False,
        memory="forgetting",
        k_coef_lip=1.0,
        **kwargs,
    ):
        require_one_of("memory", memory, ("forgetting", "lasting"))
        own = {
            "kernel_initializer": recurrent_initializer,
            "kernel_regularizer": recurrent_regularizer,
            "kernel_constraint": recurrent_constraint,
        }
        _check_arguments(memory, own, dropout, recurrent_dropout)
        activation = keras.activations.get(activation)
        check_activation(activation)
        dtype = keras.dtype_policies.get(kwargs.get("dtype"))
        if dtype.compute_dtype in ("bfloat16", "float16"):
            dtype = keras.DTypePolicy("float32")
            if isinstance(activation, keras.layers.Layer):
                activation.dtype_policy = dtype
        dense = functools.partial(
            SpectralDense,
            positive_int("units", units),
            k_coef_lip=1 / (1 + SLACK),
            dtype=dtype,
        )
        maps = [
            dense(
                use_bias=use_bias,
                kernel_initializer=kernel_initializer,
                bias_initializer=bias_initializer,
                kernel_regularizer=kernel_regularizer,
                bias_regularizer=bias_regularizer,
                kernel_constraint=kernel_constraint,
                bias_constraint=bias_constraint,
                name="kernel",
            )
        ]
        if memory == "lasting":
            own["name"] = "recurrent_kernel"
            maps.append(dense(use_bias=False, **own))
        super().__init__(
            OrthogonalRNNCell(maps, activation, dtype=dtype),
            return_sequences=return_sequences,
            return_state=return_state,
            go_backwards=go_backwards,
            stateful=stateful,
            unroll=unroll,
            activity_regularizer=activity_regularizer,
            # The cell casts inputs, to its own dtype.
            autocast=False,
            **kwargs,
        )
        self.memory = memory
        self.dropout = self.recurrent_dropout = 0.0
        self.input_spec = [keras.layers.InputSpec(ndim=3)]
        self.set_klip_factor(k_coef_lip)

    @property
    def units(self):
        return self.cell.state_size

    @property
    def activation(self):
        return self.cell.activation

    @property
    def bias(self):
        """The bias, a variable; None without one."""
        return self.cell.maps[0].bias

    def build(self, sequences_shape, initial_state_shape=None):
        # First: what is refused later counts as built, for Keras.
        self._init_lip_coef(sequences_shape)
        super().build(sequences_shape)
        _, steps, channels = sequences_shape
        axes = {2: channels}
        if self._counts_steps():
            axes[1] = steps
        self.input_spec = [keras.layers.InputSpec(ndim=3, axes=axes)]

    def call(self, sequences, initial_state=None, mask=None, training=True):
        return super().call(sequences, initial_state, mask, training)

    def inner_loop(self, sequences, initial_state, mask, training=False):
        # Again, since it may have been given another constant.
        check_activation(self.activation)
        if self._counts_steps():
            _require_steps(self, sequences.shape[1])
        kernel, recurrent = self.cell.kernels(training)
        scale = self._input_scale()
        kernel = kernel if scale == 1.0 else kernel * scale
        driven = self.cell.driven(sequences, kernel)
        with self.cell.using(recurrent):
            return super().inner_loop(driven, initial_state, mask, training)

    def used_kernels(self):
        """What inference multiplies inputs and states by, a pair of arrays.

        The first is a product that is exact in float64, and rounded in float32.

        Raises:
            ValueError: If a kernel breaks its promise.
        """
        for dense in self.cell.maps:
            dense._check_exportable()
        kernel, recurrent = (
            host(x).astype("float64") for x in self.cell.kernels(training=False)
        )
        return self._input_scale() * kernel, recurrent

    def _input_scale(self):
        """The number s of the note, with the 24 bits of float32."""
        mantissa, exponent = math.frexp(self._get_coef())
        return math.ldexp(math.floor(mantissa * 2**24), exponent - 24)

    def _counts_steps(self):
        return self.return_sequences or self.memory == "lasting"

    def _compute_lip_coef(self, input_shape=None):
        if not self._counts_steps():
            return 1.0
        steps = input_shape[1]
        _require_steps(self, steps)
        if self.return_sequences and self.memory == "lasting":
            return 2.0 * math.sin(math.pi / (4 * steps + 2))
        return steps**-0.5

    def _whole_constant(self):
        factor = activation_constant(self.activation)
        if factor is None:
            return None
        # Calls are refused then.
        return self.k_coef_lip if factor <= 1 else math.inf

    def _check_condensable(self):
        require_built(self, "condense")
        for dense in self.cell.maps:
            dense._check_condensable()

    def condense(self):
        """Overwrites the free kernels with the constrained ones."""
        self._check_condensable()
        for dense in self.cell.maps:
            dense.condense()

    def vanilla_export(self):
        """Returns the stock `SimpleRNN` with the same inference output."""
        require_built(self, "vanilla_export")
        kernel, recurrent = self.used_kernels()
        config = self.get_config()
        for key in ("memory", "k_coef_lip"):
            config.pop(key)
        for owner in ("kernel", "recurrent"):
            for what in _OF_KERNEL:
                config.pop(f"{owner}_{what}")
        config["dtype"] = self.cell.dtype_policy
        exported = keras.layers.SimpleRNN.from_config(config)
        exported.build(self._build_shapes_dict["sequences_shape"])
        exported.cell.kernel.assign(kernel)
        exported.cell.recurrent_kernel.assign(recurrent)
        if self.bias is not None:
            exported.cell.bias.assign(host(self.bias))
        if isinstance(self.activation, keras.layers.Layer):
            build_once(exported.activation, (None, self.units))
            copy_state(self.activation, exported.activation)
        return exported

    def get_config(self):
        first, *others = (dense.get_config() for dense in self.cell.maps)
        config = {
            **keras.layers.Layer.get_config(self),
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": first["use_bias"],
            "activity_regularizer": keras.regularizers.serialize(
                self.activity_regularizer
            ),
            "dropout": self.dropout,
            "recurrent_dropout": self.recurrent_dropout,
            **{name: getattr(self, name) for name in _OF_LOOP},
            "memory": self.memory,
            "k_coef_lip": self.k_coef_lip,
        }
        for what in _OF_KERNEL:
            key = f"kernel_{what}"
            config[key] = first[key]
            config[f"bias_{what}"] = first[f"bias_{what}"]
            config[f"recurrent_{what}"] = others[0][key] if others else None
        return config

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _check_arguments(memory, own, dropout, recurrent_dropout):
    """Raises ValueError for arguments that this layer has no use for."""
    for name, value in own.items():
        if memory == "forgetting" and value is not None:
            name = name.replace("kernel", "recurrent")
            raise ValueError(
                "The kernels of a forgetting memory are one matrix, which the "
                f"arguments of `kernel` are for. Expected `{name}=None`. "
                f"Received: {name}={value}"
            )
    if dropout or recurrent_dropout:
        raise ValueError(
            "Dropout multiplies what it keeps, which would break the constant "
            "in training. Expected `dropout=0` and `recurrent_dropout=0`. "
            f"Received: dropout={dropout}, "
            f"recurrent_dropout={recurrent_dropout}"
        )


def _require_steps(layer, steps):
    """Raises ValueError where the number of steps is not known."""
    if steps is None:
        raise ValueError(
            f"What the states of layer '{layer.name}' may expand depends on "
            "the number of steps. Expected sequences of a known length, or "
            '`memory="forgetting"` and `return_sequences=False`. '
            "Received: steps=None"
        )
