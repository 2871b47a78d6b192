"""The polar factor of arrays, for values that are known by now."""

import numpy as np

# Ratio of squared singular values that float32 cannot tell from zero.
_LEAST_RATIO = 1e-14


def factor_on_host(w):
    """`polar` by the eigenvalues of the Gram matrix, in NumPy.

    For what computes eagerly on JAX, which compiles each operation for each
    shape: seconds for a model, before its first step.

    Args:
        w: Array `(..., n, m)`, float64. Singular values below a ten-millionth
            of the largest are not brought to one.
    """
    if w.shape[-2] < w.shape[-1]:
        factor, scale = factor_on_host(np.swapaxes(w, -1, -2))
        return np.swapaxes(factor, -1, -2), scale
    largest = np.max(np.abs(w), axis=(-2, -1), keepdims=True)
    if not np.all(np.isfinite(largest)):
        # As of any other computation; decompositions would refuse it.
        return np.full_like(w, np.nan), np.full_like(largest, np.nan)
    is_zero = largest == 0
    w = w / np.where(is_zero, 1.0, largest)
    values, vectors = np.linalg.eigh(_gram_on_host(w))
    mean = np.mean(values, axis=-1)[..., None, None]
    top = np.where(is_zero, 1.0, values[..., None, -1:])
    values = np.where(
        values[..., None, :] > _LEAST_RATIO * top, values[..., None, :], top
    )
    w = w @ ((vectors * values**-0.5) @ np.swapaxes(vectors, -1, -2))
    # What squaring the matrix has cost small singular values.
    for _ in range(2):
        w = 1.5 * w - 0.5 * w @ _gram_on_host(w)
    return w, np.where(is_zero, 1.0, np.sqrt(mean) * largest)


def _gram_on_host(w):
    return np.swapaxes(w, -1, -2) @ w
