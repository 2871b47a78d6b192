"""Smallest and largest singular values of the layers of a model."""

import keras
import numpy as np
from keras import ops

from deel.lip._lipschitz import Condensable
from deel.lip._lipschitz import LipschitzLayer
from deel.lip._numerics.activations import facts_of
from deel.lip.layers import Abs
from deel.lip.layers import GroupSort
from deel.lip.layers import Householder
from deel.lip.layers import MaxMin

__all__ = ["compute_layer_sv", "compute_model_sv"]


def __dir__():
    return __all__


# Numbers in a batch of impulses.
_BATCH_NUMBERS = 2**22

_UNKNOWN = (None, None)

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)

# Their Jacobians have orthonormal columns.
_ISOMETRIES = (Abs, GroupSort, Householder, MaxMin)


def compute_layer_sv(layer, supplementary_type2sv=None):
    """Smallest and largest singular value of a layer, or bounds of them.

    Bias and activation do not count. Dense kernels are decomposed; for a
    convolution, the matrix of the whole operator on its input shape is, which
    takes time and memory for large images. Layers with a constrained kernel
    are measured on the kernel of inference. The layer is left as it is.

    Args:
        layer: A built layer.
        supplementary_type2sv: Dictionary from types of layers to functions
            `(layer, input_shape) -> (min, max)`, for further types, or for
            those known here. `input_shape` is a tuple with the batch axis
            first, or a list of them.

    Returns:
        Pair of floats `(min, max)`. Non-linear layers give bounds of the
        singular values of their Jacobians, other layers of this library an
        upper bound only. `(None, None)` if the type is unknown.

    Raises:
        ValueError: If the layer is not built, or is a convolution built for
            images of unknown size.

    Example:

    >>> import keras, numpy as np
    >>> from deel.lip.compute_layer_sv import compute_layer_sv
    >>> layer = keras.layers.Dense(2)
    >>> layer.build((None, 2))
    >>> layer.set_weights([np.diag([3.0, 0.5]), np.zeros(2)])
    >>> compute_layer_sv(layer)
    (0.5, 3.0)
    """
    supplement = (supplementary_type2sv or {}).get(type(layer))
    if supplement is not None:
        return supplement(layer, _input_shape(layer))
    if isinstance(layer, Condensable):
        layer = _stock(layer)
    if isinstance(layer, keras.layers.Dense):
        _input_shape(layer)
        return _extremes(ops.convert_to_numpy(ops.copy(layer.kernel)))
    if isinstance(layer, _CONVOLUTIONS):
        return _extremes(_operator(layer))
    return _bounds(layer)


def compute_model_sv(model, supplementary_type2sv=None):
    """Singular values of each layer of a built model; see `compute_layer_sv`.

    Args:
        model: A built model.
        supplementary_type2sv: See `compute_layer_sv`.

    Returns:
        List of `(layer name, (min, max))`, in the order of the layers. A model
        inside gives an entry with `(None, None)`, then those of its layers.
    """
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found.append((layer.name, _UNKNOWN))
            found.extend(compute_model_sv(layer, supplementary_type2sv))
        else:
            values = compute_layer_sv(layer, supplementary_type2sv)
            found.append((layer.name, values))
    return found


def _bounds(layer):
    """Bounds for layers without a kernel."""
    if isinstance(layer, keras.layers.ReLU):
        return _slopes(layer)
    if isinstance(layer, keras.layers.Activation):
        facts = facts_of(layer.activation)
        is_known = facts is not None and facts.is_exact
        return (facts.smallest, facts.largest) if is_known else _UNKNOWN
    if isinstance(layer, _ISOMETRIES):
        return float(layer.k_coef_lip), float(layer.k_coef_lip)
    if isinstance(layer, LipschitzLayer):
        return None, float(layer.k_coef_lip)
    if isinstance(layer, keras.layers.Add):
        count = float(len(_input_shape(layer)))
        return count, count
    if isinstance(layer, keras.layers.BatchNormalization):
        return _batch_normalization(layer)
    return _UNKNOWN


def _slopes(relu):
    if relu.threshold != 0:
        # Jumps at the threshold.
        return _UNKNOWN
    slopes = {1.0, abs(float(relu.negative_slope))}
    if relu.max_value is not None:
        slopes.add(0.0)
    return min(slopes), max(slopes)


def _batch_normalization(layer):
    _input_shape(layer)
    variance = ops.convert_to_numpy(ops.copy(layer.moving_variance))
    factors = 1 / np.sqrt(variance.astype("float64") + layer.epsilon)
    if layer.scale:
        factors *= np.abs(ops.convert_to_numpy(ops.copy(layer.gamma)))
    return float(factors.min()), float(factors.max())


def _input_shape(layer):
    config = layer.get_build_config() if layer.built else None
    if config is None or "input_shape" not in config:
        raise ValueError(
            "Singular values are those of a layer that is built. Call the "
            f"layer on data first. Received: layer '{layer.name}', not built"
        )
    return config["input_shape"]


def _stock(layer):
    exported = layer.vanilla_export()
    # With an activation that changes the shape, the export is a pair.
    if isinstance(exported, keras.Sequential):
        return exported.layers[0]
    return exported


def _extremes(matrix):
    values = np.linalg.svd(matrix.astype("float64"), compute_uv=False)
    return float(values[-1]), float(values[0])


def _operator(layer):
    """Matrix of a convolution, from its responses to unit impulses."""
    shape = tuple(_input_shape(layer)[1:])
    if None in shape:
        raise ValueError(
            "The singular values of a convolution depend on the size of its "
            "images. Build it for a known size. "
            f"Received: layer '{layer.name}', built for images of {shape}"
        )
    linear = _linear_part(layer, shape)
    inputs = int(np.prod(shape))
    outputs = int(np.prod(linear.compute_output_shape((1, *shape))))
    limit = max(1, _BATCH_NUMBERS // max(inputs, outputs))
    matrix = np.empty((inputs, outputs), "float32")
    for first in range(0, inputs, limit):
        count = min(limit, inputs - first)
        impulses = np.eye(count, inputs, first, dtype="float32")
        response = linear(impulses.reshape(count, *shape))
        matrix[first : first + count] = ops.convert_to_numpy(
            ops.reshape(response, (count, outputs))
        )
    return matrix


def _linear_part(layer, shape):
    """Copy of a convolution without bias and activation."""
    config = {
        **layer.get_config(),
        "activation": "linear",
        "use_bias": False,
        "dtype": "float32",
    }
    copy = type(layer).from_config(config)
    copy.build((None, *shape))
    copy.set_weights([ops.convert_to_numpy(ops.copy(layer.kernel))])
    return copy
