"""Families of networks whose rounding is searched for broken certificates.

A row of `FAMILIES` is a function of a NumPy generator and of a size. It returns
a `Family`: what stands between the input and the last Dense layer, and samples.
A new idea of what may go wrong adds a row.
"""

import dataclasses
import typing

import keras
import numpy as np
from harness import assign_unguarded
from harness import to_numpy

from deel.lip import layers
from deel.lip.certification import register_bound
from deel.lip.certification._float64 import in_float64
from deel.lip.model import Model

FAMILIES = {}

# Families that take more than a moment, for which there are slow tests.
SLOW = set()


@dataclasses.dataclass
class Family:
    """One network, but for its last layer.

    Attributes:
        shape: Tuple, the shape of a sample.
        body: Function from a tensor to a tensor.
        weigh: Function of the model, which sets weights; None for `weigh`,
            whose weights have one sign and add up to about one.
        scale: Float, of the values of samples.
        spread: Pair of floats, between which values of scale one are drawn.
        is_constant: Boolean, whether all values of a sample are the same.
    """

    shape: tuple
    body: typing.Callable
    weigh: typing.Callable | None = None
    scale: float = 1.0
    is_constant: bool = True
    spread: tuple = (0.5, 2.0)


def row(function=None, slow=False):
    """Decorator: adds a row to the table."""
    if function is None:
        return lambda function: row(function, slow)
    name = function.__name__.strip("_")
    FAMILIES[name] = function
    if slow:
        SLOW.add(name)
    return function


def build(name, seed, size=1.0):
    """Returns a classifier of two classes, and one sample near its boundary.

    Args:
        name: String, a row of the table.
        seed: Integer.
        size: Float, multiplies lengths of sums.

    Returns:
        Pair: a model whose last layer is `Dense(2)`, and an array.
    """
    random = np.random.default_rng([seed, *name.encode()])
    family = FAMILIES[name](random, size)
    inputs = keras.Input(family.shape)
    tensor = family.body(inputs)
    if len(tensor.shape) > 2:
        tensor = keras.layers.Flatten()(tensor)
    model = Model(inputs, keras.layers.Dense(2)(tensor))
    one_sign(model, random)
    if family.weigh is not None:
        family.weigh(model)
    x = np.full(family.shape, random.uniform(*family.spread))
    if not family.is_constant:
        x *= random.uniform(0.5, 1.5, family.shape)
    x = (family.scale * x).astype("float32")
    return model, x


def scores_of(copy, x):
    tensor = keras.ops.convert_to_tensor(x, dtype="float64")
    return to_numpy(copy(tensor, training=False))


def whole_copy(model):
    """The model, rebuilt at once under a policy of float64.

    Not layer by layer, as `certify` does it. Within `float64()`.
    """

    copy = type(model).from_config(in_float64(model.get_config()))
    for old, new in zip(model.weights, copy.weights, strict=True):
        value = np.asarray(to_numpy(old.value), "float64")
        value = keras.ops.convert_to_tensor(value, dtype="float64")
        # The kernels of inference are what they are, not normalised again.
        assign_unguarded(new, value)
    for layer in copy._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return copy


def one_sign(model, random):
    """Weights of one sign, of which those of an output add up to about one."""
    for variable in model.weights:
        if variable.name in ("seed_generator_state", "count"):
            continue
        shape = variable.shape
        if variable.name in ("kernel", "pointwise_kernel"):
            terms = int(np.prod(shape[:-1]))
            value = random.uniform(0.5, 1.5, shape) / terms
        elif variable.name == "depthwise_kernel":
            value = random.uniform(0.5, 1.5, shape) / np.prod(shape[:-2])
        elif "variance" in variable.name or variable.name == "gamma":
            value = random.uniform(0.5, 1.5, shape)
        elif len(shape) == 1 and shape[0] is not None:
            value = random.uniform(0.0, 1.0, shape)
        else:
            continue
        variable.assign(value.astype("float32"))
    for layer in model.layers:
        if hasattr(layer, "wbar"):
            layer.condense()
    # All errors of what enters the last layer move the lead the same way.
    last = model.layers[-1]
    kernel = random.uniform(0.5, 1.5, last.kernel.shape) * [1.0, 0.1]
    last.set_weights([kernel / len(kernel), np.zeros(2)])


def sequence(*steps):
    def body(tensor):
        for step in steps:
            tensor = step(tensor)
        return tensor

    return body


# Long sums.


@row
def long_sum(random, size):
    length = int(size * random.choice([784, 3072]))

    def weigh(model):
        # 1.5 on one half and 0.5 on the other, which round differently.
        halves = np.where(np.arange(length) < length // 2, 1.5, 0.5)
        kernel = np.stack([halves, halves[::-1]], axis=1)
        model.layers[-1].set_weights([kernel / length, np.zeros(2)])

    return Family((length,), sequence(), weigh)


@row(slow=True)
def single_score_of_a_longer_sum(random, size):
    return Family((int(size * 20000),), sequence(keras.layers.Dense(2)))


@row(slow=True)
def deep_means(random, size):
    widths = [int(size * 256)] * int(random.integers(3, 8))
    dense = [keras.layers.Dense(w, activation="relu") for w in widths]
    return Family((int(size * 256),), sequence(*dense))


@row
def shared_dense_repeated(random, size):
    dense = keras.layers.Dense(64, activation="relu")
    return Family((64,), sequence(*[dense] * 6))


@row(slow=True)
def equal_terms(random, size):
    """Sums of equal terms, all of which are rounded in the same direction."""
    width = int(size * random.choice([16, 64, 256]))
    activation = random.choice(["linear", "softplus", "tanh"])

    def weigh(model):
        for layer in model.layers[1:-1]:
            kernel = np.tile(random.uniform(0.5, 1.5, width), (width, 1))
            kernel[: width // 2] *= random.uniform(0.3, 3)
            layer.kernel.assign(kernel / width)

    dense = [keras.layers.Dense(width, activation) for _ in range(4)]
    return Family((width,), sequence(*dense), weigh)


@row(slow=True)
def einsum(random, size):
    dense = keras.layers.EinsumDense(
        "abc,bcd->abd", output_shape=(4, 3), bias_axes="d"
    )
    return Family((4, int(size * 512)), sequence(dense))


@row
def time_distributed_sum(random, size):
    dense = keras.layers.TimeDistributed(keras.layers.Dense(2))
    return Family((4, int(size * 512)), sequence(dense))


# Means and norms.


@row
def global_average(random, size):
    side = int(size * random.choice([56, 112]))
    pool = keras.layers.GlobalAveragePooling2D()
    return Family((side, side, 2), sequence(pool))


@row(slow=True)
def global_average_of_224(random, size):
    pool = keras.layers.GlobalAveragePooling2D()
    return Family((224, 224, 2), sequence(pool))


@row
def scaled_global_average(random, size):
    pool = layers.ScaledGlobalAveragePooling2D()
    return Family((48, 48, 2), sequence(pool))


@row
def global_l2_norm(random, size):
    pool = layers.ScaledGlobalL2NormPooling2D(eps_grad_sqrt=1e-12)
    return Family((48, 48, 2), sequence(pool))


@row(slow=True)
def windows(random, size):
    pools = (
        layers.ScaledAveragePooling2D(8),
        layers.ScaledL2NormPooling2D(8, eps_grad_sqrt=0.0),
        keras.layers.AveragePooling2D(8, strides=4, padding="same"),
    )
    return Family((32, 32, 2), sequence(pools[random.integers(3)]))


@row
def layer_centering(random, size):
    side = int(size * 32)

    def weigh(model):
        # The mean is all that there is.
        model.layers[1].bias.assign(random.uniform(0, 1e-3, 2))

    return Family(
        (side, side, 2),
        sequence(layers.LayerCentering()),
        weigh,
        10.0 ** random.integers(0, 4),
    )


def _large_means(layer, random, scale):
    def weigh(model):
        inner = getattr(model.layers[1], "layer", model.layers[1])
        for variable in inner.weights:
            if "mean" in variable.name:
                values = scale * random.uniform(0.5, 1.5, variable.shape)
                variable.assign(values)

    return Family((4, 3), sequence(layer), weigh, scale, False)


@row
def batch_centering(random, size):
    return _large_means(
        layers.BatchCentering(), random, 10.0 ** random.integers(0, 7)
    )


@row
def time_distributed_batch_centering(random, size):
    layer = keras.layers.TimeDistributed(layers.BatchCentering())
    return _large_means(layer, random, 10.0 ** random.integers(0, 7))


@row
def batch_normalization(random, size):
    layer = keras.layers.BatchNormalization(epsilon=1e-9)
    return _large_means(layer, random, 10.0 ** random.integers(0, 7))


@row
def normalization(random, size):
    layer = keras.layers.Normalization(
        mean=random.uniform(1e3, 2e3, 3), variance=random.uniform(0.1, 2, 3)
    )
    return Family((4, 3), sequence(layer), None, 1e3, False)


@row(slow=True)
def batch_lip_norm(random, size):
    return _large_means(layers.BatchLipNorm(), random, 1e3)


@row
def rescaling_with_offset(random, size):
    offset = 10.0 ** random.integers(0, 7)
    steps = [keras.layers.Rescaling(1.0, offset)]
    steps.append(keras.layers.Rescaling(1 / 3, -offset / 3))
    return Family((16,), sequence(*steps))


@row(slow=True)
def large_offset_before_gelu(random, size):
    offset = 10.0 ** random.integers(0, 5)
    shifts = (
        keras.layers.Rescaling(1 / 3, offset=-offset),
        keras.layers.Normalization(mean=offset, variance=2.0),
    )
    steps = shifts[random.integers(2)], keras.layers.Activation("gelu")
    return Family((3, 4), sequence(*steps), None, offset, False)


# Cancellation within a layer.


def _cancelling(separable, shape, random):
    """Two equal depthwise kernels, and a mixing that takes them away."""

    def weigh(model):
        layer = model.layers[1]
        kernel = random.uniform(0.5, 1.5, layer.depthwise_kernel.shape)
        kernel[..., 1] = kernel[..., 0]
        mixing = random.uniform(0.5, 1.5, layer.pointwise_kernel.shape)
        mixing[..., 1::2, :] = -mixing[..., ::2, :]
        noise = 10.0 ** random.integers(-12, -3)
        mixing += noise * random.uniform(0, 1, mixing.shape)
        layer.depthwise_kernel.assign(1e3 * kernel)
        layer.pointwise_kernel.assign(mixing)

    return Family(shape, sequence(separable), weigh, 1e2, False)


@row
def separable_that_cancels(random, size):
    if random.random() < 0.5:
        layer = keras.layers.SeparableConv1D(1, 9, depth_multiplier=2)
        return _cancelling(layer, (9, 16), random)
    layer = keras.layers.SeparableConv2D(2, 3, depth_multiplier=2)
    return _cancelling(layer, (3, 3, 16), random)


@row(slow=True)
def separable_of_one_sign(random, size):
    layer = keras.layers.SeparableConv2D(
        4, 5, depth_multiplier=2, activation="relu"
    )
    return Family((9, 9, int(size * 32)), sequence(layer))


@row
def dense_that_cancels(random, size):
    def weigh(model):
        for layer in model.layers[1:-1]:
            kernel = random.uniform(0.5, 1.5, layer.kernel.shape)
            kernel[1::2] = -kernel[::2]
            layer.kernel.assign(kernel)

    return Family((512,), sequence(keras.layers.Dense(3)), weigh, 1e3, True)


@row(slow=True)
def residual_families(random, size):
    makers = (
        lambda: layers.SLLDense(64),
        lambda: layers.unconstrained.ResidualDense(64, k_coef_lip=0.5),
        lambda: layers.PrescaledResidual(keras.layers.Dense(64), k_branch=1.0),
        lambda: layers.PrescaledResidual(layers.SLLDense(32)),
        lambda: layers.PartialResidual(
            keras.layers.Dense(32, activation="tanh"), k_branch=1.0
        ),
    )
    index = random.integers(len(makers))
    return Family((64,), sequence(*[makers[index]() for _ in range(3)]))


@row(slow=True)
def residual_convolution(random, size):
    return Family((6, 6, 8), sequence(layers.SLLConv2D(16, 3)))


@row
def lip_residual(random, size):
    def body(tensor):
        branch = keras.layers.Dense(64, activation="relu")(tensor)
        return layers.LipResidual()([tensor, branch])

    return Family((64,), body)


@row(slow=True)
def joins(random, size):
    def body(tensor):
        many = [keras.layers.Dense(32)(tensor) for _ in range(5)]
        joined = [
            keras.layers.Add()(many),
            keras.layers.Average()(many),
            keras.layers.Subtract()(many[:2]),
            keras.layers.Maximum()(many),
            keras.layers.Minimum()(many[1:3]),
        ]
        return keras.layers.Concatenate()(joined)

    return Family((32,), body)


@row
def subtracted_branches(random, size):
    def body(tensor):
        one = keras.layers.Dense(16, name="one")(tensor)
        other = keras.layers.Dense(16, name="other")(tensor)
        return keras.layers.Subtract()([one, other])

    def weigh(model):
        kernel = random.uniform(0.5, 1.5, (256, 16))
        model.get_layer("one").kernel.assign(kernel)
        model.get_layer("other").kernel.assign(
            kernel + 1e-6 * random.uniform(0, 1, kernel.shape)
        )

    return Family((256,), body, weigh, 1e2)


@row(slow=True)
def nested_models(random, size):
    def nested():
        return keras.Sequential(
            [keras.Input((32,)), keras.layers.Dense(32), keras.layers.ReLU()]
        )

    inner = nested()
    return Family((32,), sequence(inner, nested(), inner))


# Convolutions.


@row(slow=True)
def convolutions(random, size):
    kinds = (
        keras.layers.Conv2D(4, 5, padding="same"),
        keras.layers.Conv2D(4, 3, strides=2),
        keras.layers.Conv2D(4, 3, dilation_rate=2, groups=2),
        keras.layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
        keras.layers.DepthwiseConv2D(5, depth_multiplier=2),
        layers.unconstrained.PadConv2D(4, 3, padding="reflect"),
    )
    layer = kinds[random.integers(len(kinds))]
    return Family((12, 12, 16), sequence(layer))


@row(slow=True)
def convolutions_of_other_ranks(random, size):
    if random.random() < 0.5:
        causal = keras.layers.Conv1D(4, 9, padding="causal", activation="relu")
        return Family((16, 32), sequence(causal, keras.layers.Conv1D(4, 5)))
    cubes = keras.layers.Conv3D(2, 3), keras.layers.AveragePooling3D(2)
    return Family((6, 6, 6, 4), sequence(*cubes))


@row(slow=True)
def constrained(random, size):
    steps = (
        layers.SpectralConv2D(4, 3, activation=layers.MaxMin()),
        layers.ScaledL2NormPooling2D(),
        keras.layers.Flatten(),
        layers.SpectralDense(32, activation=layers.GroupSort2()),
        layers.OrthogonalDense(16, activation=layers.FullSort()),
    )
    return Family((8, 8, 2), sequence(*steps), None, 1.0, False)


# Activations.


@row
def activations(random, size):
    names = ("softmax", "gelu", "tanh", "sigmoid", "softplus", "elu", "selu")
    names += ("mish", "silu", "log_sigmoid", "softsign", "hard_silu")
    name = names[random.integers(len(names))]
    scale = 10.0 ** random.integers(-3, 3)
    steps = [keras.layers.Activation(name)] * int(random.integers(1, 4))
    return Family((64,), sequence(*steps), None, scale, False)


@row(slow=True)
def activations_with_weights(random, size):
    steps = [layers.Householder(), layers.LipschitzPReLU(), layers.Abs()]
    steps += [keras.layers.PReLU(), keras.layers.LeakyReLU(0.3)]
    kept = [steps[i] for i in random.permutation(len(steps))[:3]]
    return Family((64,), sequence(*kept), None, 1.0, False)


# Underflow and overflow.


def _scaled_identities(values, random):
    """Dense layers that multiply by numbers, by the last one from their end."""

    def weigh(model):
        for layer, value in zip(model.layers[1:-1], values, strict=True):
            layer.kernel.assign(value * np.eye(2))

    dense = [keras.layers.Dense(2, use_bias=False) for _ in values]
    return Family((2,), sequence(*dense), weigh, 1.0, False)


@row
def rescaled_to_nothing(random, size):
    scale = float(random.choice([1.2e-38, 1.6e-38, 3e-38]))

    def weigh(model):
        model.layers[2].kernel.assign(2.0**126 * np.eye(2))
        model.layers[2].bias.assign(np.zeros(2))

    steps = keras.layers.Rescaling(scale), keras.layers.Dense(2)
    # What comes out is just not too small.
    body, size = sequence(*steps), 2.0**-126 / scale
    return Family((2,), body, weigh, size, spread=(1.00001, 1.001))


@row
def tiny_and_large_weights(random, size):
    powers = [2.0**-70, 2.0**-60, 2.0**65, 2.0**60]
    return _scaled_identities(powers, random)


@row
def subnormal_weights(random, size):
    return _scaled_identities([1e-39, 1e38], random)


@row
def subnormal_biases(random, size):
    def weigh(model):
        first, second = model.layers[1:3]
        first.set_weights([1e-38 * np.eye(4), random.uniform(0, 1e-38, 4)])
        second.set_weights([2.0**125 * np.eye(4), np.zeros(4)])

    steps = keras.layers.Dense(4), keras.layers.Dense(4)
    return Family((4,), sequence(*steps), weigh, 0.1, False)


@row
def tiny_inputs(random, size):
    def weigh(model):
        model.layers[1].kernel.assign(2.0**100 * np.eye(4))
        model.layers[1].bias.assign(np.zeros(4))

    scale = float(random.choice([1e-38, 1e-39, 1e-37]))
    body = sequence(keras.layers.Dense(4))
    return Family((4,), body, weigh, scale, False)


@row
def squares_that_vanish(random, size):
    def weigh(model):
        model.layers[-2].kernel.assign(np.full((1, 1), 1e18))
        model.layers[-2].bias.assign(np.zeros(1))

    pools = (
        layers.ScaledGlobalL2NormPooling2D(eps_grad_sqrt=0.0),
        layers.ScaledL2NormPooling2D(4, eps_grad_sqrt=0.0),
    )
    steps = [pools[random.integers(2)], keras.layers.Flatten()]
    steps.append(keras.layers.Dense(1))
    body, spread = sequence(*steps), (1.00001, 1.001)
    return Family((4, 4, 1), body, weigh, 2.0**-63, spread=spread)


@row
def sums_beyond_the_largest_number(random, size):
    pools = (
        keras.layers.GlobalAveragePooling2D(),
        layers.ScaledGlobalAveragePooling2D(),
        keras.layers.AveragePooling2D(16),
        layers.LayerCentering(),
        layers.ScaledAveragePooling2D(16),
    )
    pool = pools[random.integers(len(pools))]
    return Family((16, 16, 1), sequence(pool), None, 5e35)


@row
def large_inputs_and_weights(random, size):
    def weigh(model):
        model.layers[1].kernel.assign(
            2.0**100 * random.uniform(0.5, 1, (16, 4))
        )

    body = sequence(keras.layers.Dense(4))
    return Family((16,), body, weigh, 10.0 ** random.integers(0, 7))


# Layers of users.


@keras.saving.register_keras_serializable("deel.lip.tests.adversarial")
class Reversed(keras.layers.Layer):
    """A layer of a user: sums from the other end."""

    def call(self, x):
        return keras.ops.cumsum(x, axis=-1) / x.shape[-1]


# The sums of n values, divided by n, have a norm of at most one.
register_bound(Reversed, lambda layer, input_shapes: 1.0)


@row
def registered(random, size):
    return Family((256,), sequence(Reversed()))
