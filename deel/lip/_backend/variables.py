"""Reading the values of variables."""

import keras
import numpy as np
from keras import ops

from deel.lip._backend.tensors import is_symbolic


def float32_at_least(variable):
    """Value of a variable, or a tensor, in float32 at least."""
    symbolic = is_symbolic(variable)
    tensor = variable if symbolic else ops.convert_to_tensor(variable)
    own = keras.backend.standardize_dtype(tensor.dtype)
    dtype = keras.backend.result_type(own, "float32")
    # On TensorFlow a variable is still one until it is cast; on PyTorch a cast
    # that changes nothing takes time.
    if own == dtype and (symbolic or keras.backend.backend() == "torch"):
        return tensor
    return ops.cast(tensor, dtype)


def host(variable):
    """Value of a variable as a NumPy array; of bfloat16, in float32."""
    # A copy first: NumPy 2 deprecates how TensorFlow converts its variables.
    tensor = ops.copy(variable)
    # NumPy has no bfloat16, and not every version takes that of TensorFlow.
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        tensor = ops.cast(tensor, "float32")
    return ops.convert_to_numpy(tensor)


def synchronised(model):
    """The model, with the weights of the last step in its variables.

    On JAX `fit` keeps them elsewhere while it runs.
    """
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
    return model


def array_where_eager_is_slow(tensor):
    """NumPy array of a tensor that JAX computes with eagerly; else None.

    JAX compiles each operation for each shape, which takes longer than small
    computations do in NumPy. None, too, where a part is on another machine.
    """
    if keras.backend.backend() != "jax":
        return None
    import jax

    if isinstance(tensor, jax.core.Tracer) or not tensor.is_fully_addressable:
        return None
    return np.asarray(tensor)
