"""Empirical Lipschitz constants, labels for several devices, small tensors.

An empirical constant is a lower bound of the true one: it can show that a
model expands more than it promises, never that it does not.
"""

import math

import keras
import numpy as np
from keras import ops

from deel.lip._backend.differentiation import vector_jacobian
from deel.lip._labels import kr_weights
from deel.lip._numerics.padding import pad
from deel.lip._validation import positive_float
from deel.lip._validation import positive_int
from deel.lip.normalizers import (
    _maybe_transpose_kernel as _maybe_transpose_kernel,
)
from deel.lip.normalizers import _zero_upscale2D as _zero_upscale2D

__all__ = [
    "evaluate_lip_const",
    "evaluate_lip_const_gen",
    "l2_normalize",
    "process_labels_for_multi_gpu",
]


def __dir__():
    return __all__


# Numbers in a batch that a Jacobian is computed with, and samples in it.
_BATCH_NUMBERS = 2**20

_BATCH_SAMPLES = 1024

# Samples that are drawn where an input shape leaves their number open.
_DRAWN_SAMPLES = 32

# How far rounding may take a measured constant above the expected one.
_SLACK = 1e-4


def l2_normalize(x, axis=None, epsilon=1e-12):
    """Divides by the Euclidean norm, `x / sqrt(max(sum(x^2), epsilon))`.

    Args:
        x: Tensor.
        axis: Integer, tuple of integers, or None for a single norm.
        epsilon: Float, keeps the square of the norm from zero.

    Returns:
        Tensor of the shape of `x`.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.utils import l2_normalize
    >>> print(keras.ops.convert_to_numpy(l2_normalize(np.array([3.0, 4.0]))))
    [0.6 0.8]
    """
    x = ops.convert_to_tensor(x)
    squares = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x / ops.sqrt(ops.maximum(squares, epsilon))


def evaluate_lip_const(
    model,
    x=None,
    eps=1e-4,
    seed=None,
    evaluation_type="jacobian_norm",
    disjoint_neurons=False,
    input_shape=None,
    expected_value=None,
    num_noisy_samples=10,
    epsilon_noise=1.0,
    num_iterations=100,
    step_size=1e-2,
    double_attack=False,
):
    """Largest expansion of a model that is found at, or around, some samples.

    Use it to check a model, or to see how tight its promise is. The result is
    a lower bound of the Lipschitz constant. The model runs in inference mode.

    Args:
        model: A Keras layer or model with one input and one output, or a
            function of a tensor. Samples of a batch must not influence each
            other.
        x: Array `(batch_size, ...)`, or None to draw from a normal
            distribution; needs `input_shape` then.
        eps: Float, the size of finite differences. They are taken on the NumPy
            backend only, with the rounding of its float32.
        seed: Integer or None, of the random numbers.
        evaluation_type: One of the following, a list of them, or `"all"`; the
            largest value counts.
            `"jacobian_norm"`: spectral norm of the Jacobian at each sample.
            `"noise_norm"`: expansion between a sample and the sample plus
            noise. `"attack"`: the same, where gradient ascent improves the
            noise.
        disjoint_neurons: Boolean. Whether to measure each output alone and to
            take the largest, for layers that promise their constant for each
            output, as `FrobeniusDense` does.
        input_shape: Shape with the batch axis first, whose length may be None,
            of the samples to draw.
        expected_value: Float or None, a constant that must not be exceeded.
        num_noisy_samples: Integer, noisy copies of each sample.
        epsilon_noise: Float, standard deviation of the noise.
        num_iterations: Integer, steps of the attack.
        step_size: Float, length of a step of the attack, relative to the
            distance of the two points.
        double_attack: Boolean, whether the attack moves both points.

    Returns:
        A Python float.

    Raises:
        ValueError: If `evaluation_type` is unknown, or `x` and `input_shape`
            are both None.
        AssertionError: If the result exceeds `expected_value`, beyond a
            relative slack of 1e-4 for rounding.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.utils import evaluate_lip_const
    >>> layer = keras.layers.Dense(2, use_bias=False)
    >>> layer.build((None, 2))
    >>> layer.set_weights([np.diag([3.0, 1.0])])
    >>> round(evaluate_lip_const(layer, np.zeros((1, 2))), 5)
    3.0
    """
    evaluations = {
        "jacobian_norm": lambda: _jacobian_norm(points, eps),
        "noise_norm": lambda: _noise_norm(
            points, positive_int("num_noisy_samples", num_noisy_samples)
        ),
        "attack": lambda: _attack(
            points,
            positive_int("num_iterations", num_iterations),
            positive_float("step_size", step_size),
            double_attack,
            eps,
        ),
    }
    chosen = _chosen(evaluation_type, evaluations)
    generator = np.random.default_rng(seed)
    points = _Points(
        _inference(model),
        _samples(x, input_shape, generator),
        disjoint_neurons,
        positive_float("epsilon_noise", epsilon_noise),
        generator,
    )
    found = max(evaluations[name]() for name in chosen)
    if expected_value is not None and found > expected_value * (1 + _SLACK):
        raise AssertionError(
            "The Lipschitz constant of the model must not exceed the expected "
            f"value. Received: expected_value={expected_value}, found {found}"
        )
    return found


def evaluate_lip_const_gen(model, generator, eps=1e-4, seed=None, **kwargs):
    """`evaluate_lip_const` on the first batch of a generator or data set.

    Args:
        model, eps, seed, kwargs: As for `evaluate_lip_const`.
        generator: Iterable of pairs `(x, y)`.

    Returns:
        A Python float.
    """
    x = next(iter(generator))[0]
    return evaluate_lip_const(model, x, eps=eps, seed=seed, **kwargs)


def _chosen(evaluation_type, evaluations):
    names = evaluation_type
    if evaluation_type == "all":
        names = list(evaluations)
    elif isinstance(evaluation_type, str):
        names = [evaluation_type]
    if not names or any(name not in evaluations for name in names):
        raise ValueError(
            f"Argument `evaluation_type` must be one of {list(evaluations)}, "
            'a list of them, or "all". '
            f"Received: evaluation_type={evaluation_type}"
        )
    return names


def _samples(x, input_shape, generator):
    if x is not None:
        return ops.convert_to_numpy(x).astype(keras.config.floatx())
    if input_shape is None:
        raise ValueError(
            "Argument `input_shape` is needed where no samples are given. "
            f"Received: x={x}, input_shape={input_shape}"
        )
    batch_size, *shape = input_shape
    drawn = generator.standard_normal((batch_size or _DRAWN_SAMPLES, *shape))
    return drawn.astype(keras.config.floatx())


def _inference(model):
    if isinstance(model, keras.layers.Layer):
        return lambda x: model(x, training=False)
    return model


class _Points:
    """The samples to measure at, and how expansion is measured.

    Attributes:
        function: The model, a function of a tensor.
        x: Array of the samples.
        disjoint: Boolean, whether outputs are measured one by one.
    """

    def __init__(self, function, x, disjoint, epsilon_noise, generator):
        self.function = function
        self.x = x
        self.disjoint = disjoint
        self._epsilon_noise = epsilon_noise
        self._generator = generator

    def noise(self):
        noise = self._generator.standard_normal(self.x.shape)
        return (self._epsilon_noise * noise).astype(self.x.dtype)

    def outputs(self, x):
        """Outputs as a float64 array."""
        return ops.convert_to_numpy(self.function(x)).astype("float64")

    def sizes(self, differences):
        """Norm of the difference of each sample, and the slope of the norm."""
        rows = _rows(differences)
        if self.disjoint:
            norms = np.max(np.abs(rows), axis=1)
            largest = np.argmax(np.abs(rows), axis=1)
            slopes = np.sign(rows) * np.eye(rows.shape[1])[largest]
        else:
            norms = np.linalg.norm(rows, axis=1)
            slopes = rows / _nonzero(norms)[:, None]
        return norms, slopes.reshape(differences.shape)

    def expansions(self, a, b):
        """Compares two batches sample by sample.

        Returns:
            The expansion between them, 0 where they agree; their distances;
            and the slope of the distance of outputs.
        """
        distances = np.linalg.norm(_rows(b - a).astype("float64"), axis=1)
        sizes, slopes = self.sizes(self.outputs(b) - self.outputs(a))
        ratios = np.where(distances > 0, sizes / _nonzero(distances), 0.0)
        return ratios, distances, slopes


def _rows(x):
    return x.reshape(x.shape[0], -1)


def _nonzero(norms):
    """Norms to divide by: 1 in place of 0."""
    return np.where(norms > 0, norms, 1.0)


def _jacobian_norm(points, eps):
    largest = 0.0
    for jacobians in _jacobians(points.function, points.x, eps):
        if points.disjoint:
            squares = np.sum(np.square(jacobians), axis=2)
        else:
            squares = np.linalg.eigvalsh(_smaller_gram(jacobians))
        largest = max(largest, float(np.max(squares)))
    return math.sqrt(largest)


def _smaller_gram(matrices):
    transposed = np.swapaxes(matrices, 1, 2)
    if matrices.shape[1] <= matrices.shape[2]:
        return matrices @ transposed
    return transposed @ matrices


def _jacobians(function, x, eps):
    """Yields Jacobians `(samples, outputs, inputs)`, a few samples at a time.

    Each sample is repeated, once for each output, so that one pass of the
    model gives many rows of many Jacobians. Batches are limited in size; a
    single Jacobian has to fit in memory.
    """
    inputs = math.prod(x.shape[1:])
    output_shape = ops.convert_to_numpy(function(x[:1])).shape[1:]
    outputs = math.prod(output_shape)
    limit = min(_BATCH_SAMPLES, _BATCH_NUMBERS // max(inputs, outputs))
    limit = max(limit, 1)
    samples = max(limit // outputs, 1)
    for start in range(0, len(x), samples):
        batch = x[start : start + samples]
        jacobians = np.empty((len(batch), outputs, inputs))
        for first in range(0, outputs, limit):
            last = min(first + limit, outputs)
            units = np.eye(last - first, outputs, first, dtype=x.dtype)
            rows = vector_jacobian(
                function,
                np.repeat(batch, last - first, axis=0),
                np.tile(units, (len(batch), 1)).reshape(-1, *output_shape),
                eps,
            )
            jacobians[:, first:last] = rows.reshape(len(batch), -1, inputs)
        yield jacobians


def _noise_norm(points, copies):
    return max(
        float(np.max(points.expansions(points.x, points.x + noise)[0]))
        for noise in (points.noise() for _ in range(copies))
    )


def _attack(points, steps, step_size, moves_both, eps):
    """Gradient ascent on the expansion between two points.

    With d = b - a, D = f(b) - f(a) and the expansion r = |D| / |d|, the
    gradient with respect to b is `(J(b)^T D/|D| - r d/|d|) / |d|`; that with
    respect to a is the opposite, with J(a). Steps have a fixed length relative
    to |d|, so only the direction of the gradient counts.
    """
    a = points.x
    b = a + points.noise()
    largest = 0.0
    for _ in range(steps):
        ratios, distances, slopes = points.expansions(a, b)
        largest = max(largest, float(np.max(ratios)))
        apart = _rows(b - a) * (ratios / _nonzero(distances))[:, None]
        steps_of = (slopes, apart, step_size * distances, eps)
        a, b = (
            a - _ascent(points.function, a, *steps_of) if moves_both else a,
            b + _ascent(points.function, b, *steps_of),
        )
    return max(largest, float(np.max(points.expansions(a, b)[0])))


def _ascent(function, x, slopes, apart, lengths, eps):
    """Step of given lengths along `J(x)^T slopes - apart`."""
    gradient = vector_jacobian(function, x, slopes.astype(x.dtype), eps)
    gradient = _rows(gradient) - apart
    norms = _nonzero(np.linalg.norm(gradient, axis=1))
    steps = gradient * (lengths / norms)[:, None]
    return steps.reshape(x.shape).astype(x.dtype)


def process_labels_for_multi_gpu(labels):
    """Gives labels the weights that `KR` computes from a whole batch.

    Devices that share a batch see a part of it each, in which the two classes
    have other frequencies. Process the labels of the whole batch first, and
    use the losses with `multi_gpu=True`. The sign of a result is its class, so
    that hinge losses accept it as it is. Under `tf.distribute` and
    `keras.distribution` the losses count the whole batch without this.

    Args:
        labels: Tensor `(batch_size, outputs)`; positive are those greater
            than 0.

    Returns:
        Tensor of the same shape, `batch_size / positives` where a label is
        positive and `-batch_size / others` elsewhere, counted for each output.
        A floating dtype is kept, any other becomes float32.

    Example:

    >>> import keras
    >>> from deel.lip.utils import process_labels_for_multi_gpu
    >>> weights = process_labels_for_multi_gpu([[1], [0], [0], [0]])
    >>> print(keras.ops.convert_to_numpy(weights).round(3).ravel().tolist())
    [4.0, -1.3329999446868896, -1.3329999446868896, -1.3329999446868896]
    """
    labels = ops.convert_to_tensor(labels)
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if not keras.backend.is_float_dtype(dtype):
        dtype = "float32"
    # Half precision would not count large batches.
    labels = ops.cast(labels, keras.backend.result_type(dtype, "float32"))
    return ops.cast(kr_weights(labels > 0, labels.dtype), dtype)


def _padding_circular(x, padding):
    """Pads images, channels last, by so many rows and columns; None for 0."""
    return x if padding is None else pad(x, padding, "circular")
