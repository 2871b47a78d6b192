"""Stock dense networks in NumPy, in float64, and attacks on them."""

import keras
import numpy as np


def dense_network(widths, seed=0):
    """A stock ReLU network with random kernels and biases."""
    random = np.random.default_rng(seed)
    model = keras.Sequential(
        [
            keras.Input((widths[0],)),
            *(keras.layers.Dense(n, activation="relu") for n in widths[1:-1]),
            keras.layers.Dense(widths[-1]),
        ]
    )
    model.set_weights(
        [
            random.standard_normal(w.shape) / np.sqrt(w.shape[0])
            for w in model.weights
        ]
    )
    return model


class Dense64:
    """What a `dense_network` computes, in float64."""

    def __init__(self, model):
        weights = [np.asarray(w, "float64") for w in model.get_weights()]
        self.kernels, self.biases = weights[::2], weights[1::2]

    def _forward(self, x):
        values, active = x, []
        for kernel, bias in zip(
            self.kernels[:-1], self.biases[:-1], strict=True
        ):
            values = values @ kernel + bias
            active.append(values > 0)
            values = values * active[-1]
        return values @ self.kernels[-1] + self.biases[-1], active

    def scores(self, x):
        return self._forward(x)[0]

    def worst(self, x, weights, radius, steps=40):
        """Points of balls where a combination of scores is as small as found.

        Projected gradient descent from the samples, with shrinking steps.

        Args:
            x: float64 array `(samples, features)`.
            weights: Function of scores that returns the weights of each score
                in what is made small.
            radius: Float or array `(samples,)`.
        """
        radius = np.broadcast_to(radius, len(x))[:, None] * (1 - 1e-9)
        point, best = x, x
        lowest = np.full(len(x), np.inf)
        for step in range(steps + 1):
            scores, active = self._forward(point)
            slope = weights(scores)
            value = np.sum(slope * scores, axis=1)
            best = np.where((value < lowest)[:, None], point, best)
            lowest = np.minimum(value, lowest)
            slope = slope @ self.kernels[-1].T
            layers = zip(active, self.kernels[:-1], strict=True)
            for on, kernel in reversed(list(layers)):
                slope = (slope * on) @ kernel.T
            length = radius * (1.0 - step / (steps + 1))
            shift = point - length * slope / np.maximum(_norm(slope), 1e-30) - x
            point = x + shift * np.minimum(1, radius / (_norm(shift) + 1e-30))
        return best


def _norm(x):
    return np.linalg.norm(x, axis=1, keepdims=True)


def one_hot(numbers, count):
    """A row of zeros and a one for each number."""
    return np.eye(count)[numbers]
