"""Reading the value of a variable."""

import keras
from keras import ops


def full(variable):
    """Value of a variable, or a tensor, in float32 at least."""
    tensor = ops.convert_to_tensor(variable)
    dtype = keras.backend.result_type(tensor.dtype, "float32")
    return ops.cast(tensor, dtype)


def host(variable):
    """Value of a variable as a NumPy array."""
    # A copy first: NumPy 2 deprecates how TensorFlow converts its variables.
    return ops.convert_to_numpy(ops.copy(variable))
