"""Long sums, means and norms, and what cancels within a layer."""

import keras
import numpy as np
from adversarial.families.base import Family
from adversarial.families.base import row
from adversarial.families.base import sequence

from deel.lip import layers

stock = keras.layers


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
    return Family((int(size * 20000),), sequence(stock.Dense(2)))


@row(slow=True)
def deep_means(random, size):
    widths = [int(size * 256)] * int(random.integers(3, 8))
    dense = [stock.Dense(w, activation="relu") for w in widths]
    return Family((int(size * 256),), sequence(*dense))


@row
def shared_dense_repeated(random, size):
    dense = stock.Dense(64, activation="relu")
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

    dense = [stock.Dense(width, activation) for _ in range(4)]
    return Family((width,), sequence(*dense), weigh)


@row(slow=True)
def einsum(random, size):
    dense = stock.EinsumDense(
        "abc,bcd->abd", output_shape=(4, 3), bias_axes="d"
    )
    return Family((4, int(size * 512)), sequence(dense))


@row
def time_distributed_sum(random, size):
    dense = stock.TimeDistributed(stock.Dense(2))
    return Family((4, int(size * 512)), sequence(dense))


# Means and norms.


@row
def global_average(random, size):
    side = int(size * random.choice([56, 112]))
    pool = stock.GlobalAveragePooling2D()
    return Family((side, side, 2), sequence(pool))


@row(slow=True)
def global_average_of_224(random, size):
    pool = stock.GlobalAveragePooling2D()
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
        stock.AveragePooling2D(8, strides=4, padding="same"),
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
    layer = stock.TimeDistributed(layers.BatchCentering())
    return _large_means(layer, random, 10.0 ** random.integers(0, 7))


@row
def batch_normalization(random, size):
    layer = stock.BatchNormalization(epsilon=1e-9)
    return _large_means(layer, random, 10.0 ** random.integers(0, 7))


@row
def normalization(random, size):
    layer = stock.Normalization(
        mean=random.uniform(1e3, 2e3, 3), variance=random.uniform(0.1, 2, 3)
    )
    return Family((4, 3), sequence(layer), None, 1e3, False)


@row(slow=True)
def batch_lip_norm(random, size):
    return _large_means(layers.BatchLipNorm(), random, 1e3)


@row
def rescaling_with_offset(random, size):
    offset = 10.0 ** random.integers(0, 7)
    steps = [stock.Rescaling(1.0, offset)]
    steps.append(stock.Rescaling(1 / 3, -offset / 3))
    return Family((16,), sequence(*steps))


@row(slow=True)
def large_offset_before_gelu(random, size):
    offset = 10.0 ** random.integers(0, 5)
    shifts = (
        stock.Rescaling(1 / 3, offset=-offset),
        stock.Normalization(mean=offset, variance=2.0),
    )
    steps = shifts[random.integers(2)], stock.Activation("gelu")
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
        layer = stock.SeparableConv1D(1, 9, depth_multiplier=2)
        return _cancelling(layer, (9, 16), random)
    layer = stock.SeparableConv2D(2, 3, depth_multiplier=2)
    return _cancelling(layer, (3, 3, 16), random)


@row(slow=True)
def separable_of_one_sign(random, size):
    layer = stock.SeparableConv2D(4, 5, depth_multiplier=2, activation="relu")
    return Family((9, 9, int(size * 32)), sequence(layer))


@row
def dense_that_cancels(random, size):
    def weigh(model):
        for layer in model.layers[1:-1]:
            kernel = random.uniform(0.5, 1.5, layer.kernel.shape)
            kernel[1::2] = -kernel[::2]
            layer.kernel.assign(kernel)

    return Family((512,), sequence(stock.Dense(3)), weigh, 1e3, True)


@row(slow=True)
def residual_families(random, size):
    makers = (
        lambda: layers.SLLDense(64),
        lambda: layers.unconstrained.ResidualDense(64, k_coef_lip=0.5),
        lambda: layers.PrescaledResidual(stock.Dense(64), k_branch=1.0),
        lambda: layers.PrescaledResidual(layers.SLLDense(32)),
        lambda: layers.PartialResidual(
            stock.Dense(32, activation="tanh"), k_branch=1.0
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
        branch = stock.Dense(64, activation="relu")(tensor)
        return layers.LipResidual()([tensor, branch])

    return Family((64,), body)


@row(slow=True)
def joins(random, size):
    def body(tensor):
        many = [stock.Dense(32)(tensor) for _ in range(5)]
        joined = [
            stock.Add()(many),
            stock.Average()(many),
            stock.Subtract()(many[:2]),
            stock.Maximum()(many),
            stock.Minimum()(many[1:3]),
        ]
        return stock.Concatenate()(joined)

    return Family((32,), body)


@row
def subtracted_branches(random, size):
    def body(tensor):
        one = stock.Dense(16, name="one")(tensor)
        other = stock.Dense(16, name="other")(tensor)
        return stock.Subtract()([one, other])

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
            [keras.Input((32,)), stock.Dense(32), stock.ReLU()]
        )

    inner = nested()
    return Family((32,), sequence(inner, nested(), inner))
