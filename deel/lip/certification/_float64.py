"""Layers that compute in float64, for scores without the error of float32."""

import contextlib
import threading

import keras
import numpy as np
from keras import ops

from deel.lip._backend.guarded_variable import GuardedVariable
from deel.lip._backend.variables import host
from deel.lip._constrained import ConstrainedKernel
from deel.lip.layers import ScaledAveragePooling3D
from deel.lip.layers import ScaledL2NormPooling3D

# Added to each norm: more than backends take for zero, see [Underflow].
_VANISHED = 1e-300


@contextlib.contextmanager
def float64():
    """Surrounds what is computed in float64.

    Raises:
        ValueError: If the backend computes it with fewer digits all the same.
    """
    with _enabled(), _not_demoted():
        pair = np.array([1.0, 1.0 + 2.0**-40])
        mean = ops.mean(ops.convert_to_tensor(pair, dtype="float64"))
        if float(ops.convert_to_numpy(mean)) == 1.0:
            raise ValueError(
                "Scores are certified in float64, which this backend or device "
                "does not compute in. Received: backend="
                f"{keras.backend.backend()}"
            )
        yield


@contextlib.contextmanager
def _enabled():
    """Whatever a backend has to be asked for first."""
    if keras.backend.backend() == "torch":
        import torch

        # Nothing is differentiated, so nothing is kept for it.
        with torch.no_grad():
            yield
    elif keras.backend.backend() == "jax":
        import jax

        # It was experimental until it got a name of its own.
        if hasattr(jax, "enable_x64"):
            enable = jax.enable_x64
        else:
            enable = jax.experimental.enable_x64
        with enable(True):
            yield
    else:
        yield


_lock = threading.RLock()


@contextlib.contextmanager
def _not_demoted():
    """Lets Keras promote dtypes to float64.

    On JAX and PyTorch it replaces the float64 of its promotions by float32, as
    JAX does by default: so means of float64 tensors have the digits of float32.
    There is no public way to ask for something else. Tensors of float32 are
    treated the same within and without, also in other threads.
    """
    from keras.src.backend.common import dtypes

    table = dtypes.BIT64_TO_BIT32_DTYPE
    with _lock:
        before = table["float64"]
        table["float64"] = "float64"
        try:
            yield
        finally:
            table["float64"] = before


def as_float64(array):
    """A NumPy array as a float64 tensor, within `float64()`."""
    return ops.convert_to_tensor(array, dtype="float64")


def float64_copy(layer):
    """A layer of the same weights that computes in float64.

    It shares nothing with the layer. To be made and called within `float64()`.

    Args:
        layer: A built layer, in float32 or float64.

    Raises:
        ValueError: If the layer cannot be made from its config.
    """
    source = layer
    if isinstance(layer, ConstrainedKernel):
        # Without the constraint of a kernel that is drawn for nothing.
        source = layer.vanilla_export()
    policy = keras.config.dtype_policy()
    try:
        # Layers that a layer makes by itself take the policy of the moment.
        keras.config.set_dtype_policy("float64")
        copy = type(source).from_config(in_float64(source.get_config()))
        if not copy.built:
            copy.build_from_config(source.get_build_config())
        weights = list(zip(source.weights, copy.weights, strict=True))
        _require_float64(copy)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            "To compute scores in float64, `certify` copies each layer by its "
            f"config, which failed for layer '{layer.name}' of type "
            f"{type(layer).__name__}: {error}. Give it `get_config`, or pass "
            '`rounding="estimated"`, which needs no copies.'
        ) from error
    finally:
        keras.config.set_dtype_policy(policy)
    for original, target in weights:
        if isinstance(original, GuardedVariable):
            # What runs, where a write to the variable was not seen.
            original = original.proven()
        value = as_float64(host(original).astype("float64"))
        # Constrained kernels inside of wrappers are those that are there.
        getattr(target, "assign_proven", target.assign)(value)
    pairs = zip(source._flatten_layers(), copy._flatten_layers(), strict=True)
    for used, inner in pairs:
        if isinstance(inner, keras.layers.Normalization):
            inner.finalize_state()
            # Weights that were set afterwards are not used until a layer is
            # finalized itself.
            inner.mean = as_float64(host(used.mean).astype("float64"))
            inner.variance = as_float64(host(used.variance).astype("float64"))
        _call_by_axes(inner)
    return copy


def _require_float64(layer):
    for inner in layer._flatten_layers():
        if inner.compute_dtype != "float64":
            raise ValueError(
                f"layer '{inner.name}' computes in {inner.compute_dtype}, "
                "whatever its config says"
            )


def _call_by_axes(layer):
    """Replaces how a layer pools volumes: along two axes, then the third.

    TensorFlow has no kernel of float64 for them on CPUs. Other backends do, and
    PyTorch pads means in a way that axes do not share.
    """
    kinds = (
        keras.layers.AveragePooling3D,
        keras.layers.MaxPooling3D,
        ScaledAveragePooling3D,
        ScaledL2NormPooling3D,
    )
    is_missing = keras.backend.backend() == "tensorflow"
    if not is_missing or type(layer) not in kinds:
        return
    if layer.data_format != "channels_last":
        return
    squares = type(layer) is ScaledL2NormPooling3D
    scale = layer._get_coef() if hasattr(layer, "_get_coef") else 1.0

    def call(inputs, training=False):
        if squares:
            means = _pooled(layer, ops.square(inputs)) + layer.eps_grad_sqrt
            return ops.sqrt(means) * scale
        return _pooled(layer, inputs) * scale

    layer.call = call


def _pooled(layer, inputs):
    is_max = isinstance(layer, keras.layers.MaxPooling3D)
    pool = ops.max_pool if is_max else ops.average_pool
    (depth, *sizes), (step, *steps) = layer.pool_size, layer.strides
    _, length, height, width, channels = inputs.shape
    planes = ops.reshape(inputs, (-1, height, width, channels))
    planes = pool(planes, sizes, steps, layer.padding, "channels_last")
    _, height, width, _ = planes.shape
    lines = ops.reshape(planes, (-1, length, height * width * channels))
    lines = pool(lines, depth, step, layer.padding, "channels_last")
    shape = (-1, lines.shape[1], height, width, channels)
    return ops.reshape(lines, shape)


def in_float64(config):
    """A config of the same object, and of what is in it, in float64.

    Args:
        config: What `get_config` returned, or a part of it.
    """
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": "float64"}}
        return {
            key: "float64"
            if key == "dtype" and isinstance(value, str)
            else in_float64(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(in_float64(value) for value in config)
    return config


def norms(tensor):
    """Norm of each sample of a tensor, a NumPy array."""
    if 0 in tensor.shape:
        return np.full(len(tensor), _VANISHED)
    axes = tuple(range(1, len(tensor.shape)))
    # Squares of what is below 1e-154 or above 1e154 are not there.
    largest = ops.max(ops.abs(tensor), axis=axes, keepdims=True)
    largest = ops.where(largest > 0, largest, ops.ones_like(largest))
    squares = ops.sum(ops.square(tensor / largest), axis=axes)
    sizes = ops.reshape(largest, (-1,)) * ops.sqrt(squares)
    # More than the sum itself may be wrong by, or than may vanish.
    return ops.convert_to_numpy(sizes) * (1 + 1e-9) + _VANISHED
