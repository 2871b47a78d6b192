"""Reading the values of variables."""

import keras
from keras import ops


def float32_at_least(variable):
    """Value of a variable, or a tensor, in float32 at least."""
    tensor = ops.convert_to_tensor(variable)
    own = keras.backend.standardize_dtype(tensor.dtype)
    dtype = keras.backend.result_type(own, "float32")
    # On TensorFlow a variable is still one until it is cast; on PyTorch a cast
    # that changes nothing takes time.
    if own == dtype and keras.backend.backend() == "torch":
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
