"""Matrix products with all digits of float32, whatever the device prefers.

Note [Where products lose digits]

Accelerators multiply float32 matrices after they have rounded the factors:
TensorFloat-32 keeps 11 significant digits, bfloat16 keeps 8, out of 24. That is
the default of TensorFlow on GPUs and of JAX on GPUs and TPUs, and PyTorch does
it if it is told to. Training does not mind. A proof does: a Gram matrix that is
wrong by 2^-11 says nothing about the fifth digit of a singular value. So what
the promise rests on is multiplied here, and the products of the network itself
stay what the user chose.

JAX takes the precision of each product. The others have one setting for the
whole process, which is not ours to change. Where it costs digits, each factor
is written as a sum of parts with so few digits that nothing is rounded, and
the products of the parts are added: three for TensorFloat-32, which is close
to what a product in float32 costs. Products of the smallest parts are left out;
what remains is wrong by 2^-20 of `|a| @ |b|` at most.

The part is made by clearing bits, not by subtracting a large multiple as is
usual: compilers for GPUs join a product and a difference to one operation that
rounds once, and such a split would then find no rounding to split at.

References:
    - Dekker, "A floating-point technique for extending the available
      precision", Numer. Math. 18 (1971).
    - Ootomo and Yokota, "Recovering single precision accuracy from Tensor
      Cores while surpassing the FP32 theoretical peak performance", Int. J.
      High Perform. Comput. Appl. 36 (2022), arXiv:2203.03341.
"""

import functools

import keras
from keras import ops

_FLOAT32 = 24

_TENSOR_FLOAT = 11

_BRAIN_FLOAT = 8

# What PyTorch calls its settings, before and since version 2.9.
_TORCH_SETTINGS = {
    "high": _TENSOR_FLOAT,
    "tf32": _TENSOR_FLOAT,
    "medium": _BRAIN_FLOAT,
    "bf16": _BRAIN_FLOAT,
}


def product(a, b):
    """`a @ b` with the digits of float32, for what a proof rests on.

    Args:
        a: Tensor `(..., n, k)`, float32 at least.
        b: Tensor `(..., k, m)`, of the same dtype.

    Returns:
        Tensor `(..., n, m)`.
    """
    if keras.backend.backend() == "jax":
        import jax

        # Read while a function is traced: other products stay what they are.
        with jax.default_matmul_precision("highest"):
            return ops.matmul(a, b)
    digits = digits_of_products(a)
    if digits is None:
        return _unrounded(a, b)
    count = round(_FLOAT32 / digits)
    pairs = [(i, j) for i in range(count) for j in range(count - i)]
    firsts, seconds = _parts(a, digits, count), _parts(b, digits, count)
    # The smallest first.
    pairs.sort(key=sum, reverse=True)
    return sum(_unrounded(firsts[i], seconds[j]) for i, j in pairs)


def digits_of_products(x):
    """Significant digits that products keep of a factor, None if all.

    Asked while a function is traced. On JAX each product says it by itself,
    see `product`, so this is None there.

    Args:
        x: Tensor, the factor.
    """
    if keras.backend.standardize_dtype(x.dtype) != "float32":
        return None
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _digits_on_tensorflow()
    if backend == "torch":
        return _digits_on_torch(x)
    return None


def _digits_on_tensorflow():
    import tensorflow as tf

    if not tf.config.experimental.tensor_float_32_execution_enabled():
        return None
    kept = map(_digits_of_device, tf.config.get_visible_devices())
    return min((digits for digits in kept if digits), default=None)


@functools.lru_cache
def _digits_of_device(device):
    import tensorflow as tf

    if device.device_type.startswith("TPU"):
        return _BRAIN_FLOAT
    if device.device_type != "GPU":
        return None
    details = tf.config.experimental.get_device_details(device)
    # Others than NVIDIA's have no such number.
    has_units = details.get("compute_capability", (8, 0)) >= (8, 0)
    return _TENSOR_FLOAT if has_units else None


def _digits_on_torch(x):
    return _TORCH_SETTINGS.get(_torch_setting(x.is_cuda))


def _torch_setting(is_cuda):
    import torch

    backend = torch.backends.cuda if is_cuda else torch.backends.mkldnn
    try:
        return backend.matmul.fp32_precision
    except AttributeError:
        return torch.get_float32_matmul_precision()


if keras.backend.backend() == "torch":
    import torch

    # TorchDynamo cannot follow how PyTorch keeps its settings.
    torch.compiler.assume_constant_result(_torch_setting)


def _unrounded(a, b):
    """`a @ b` in the dtype of the factors."""
    if keras.backend.backend() != "torch":
        return ops.matmul(a, b)
    import torch

    return in_own_dtype(lambda: torch.matmul(a, b), a)


def in_own_dtype(multiply, x):
    """What a function of PyTorch returns, in the dtype of a tensor.

    Within `torch.autocast`, products do not ask for the dtype of their factors.
    """
    import torch

    found = multiply()
    if found.dtype != x.dtype:
        with torch.autocast(x.device.type, enabled=False):
            found = multiply()
    return found


def _parts(x, digits, count):
    """Tensors that add up to `x` exactly, all but the last of few digits."""
    parts = []
    for _ in range(count - 1):
        # The gradient passes through the first part, as if it were all.
        part = x + ops.stop_gradient(_rounded(x, digits) - x)
        parts.append(part)
        x = ops.stop_gradient(x - part)
    return [*parts, x]


def _rounded(x, digits):
    """`x` with so many significant digits, wrong by `2^-digits` at most."""
    # The factor makes up for what is cut off.
    x = x * (1 + 2.0**-digits)
    mask = -(2 ** (_FLOAT32 - digits))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        bits = tf.bitwise.bitwise_and(tf.bitcast(x, tf.int32), mask)
        return tf.bitcast(bits, x.dtype)
    import torch

    return (x.detach().view(torch.int32) & mask).view(x.dtype)
