"""Graphs that compiled training steps share, or leave to a compiler.

Keras traces the training step by itself. What is here only decides how pure
functions of the library appear in it; `keras.ops` computes them all.
"""

import functools
import math

import keras

from deel.lip._backend.products import digits_of_products
from deel.lip._backend.tensors import is_symbolic

# To start what XLA has compiled takes a tenth of a millisecond, so what is
# fused has as many entries at least. An unknown number of samples counts as
# given here.
_LARGE = 16384

_SAMPLES = 128


def traced_once(function):
    """Decorator: layers of equal shapes share one graph of a pure function.

    Tracing takes far longer than the kernels of small layers take to run.
    Compiled steps of Keras contain a call of the shared graph; what computes
    eagerly calls the function itself.

    Args:
        function: Takes tensors by position and settings, which are hashable,
            by keyword. Not differentiated.
    """
    return _shared(function, _is_traced)


def fused(function):
    """Decorator: XLA makes one loop of a function of large tensors.

    TensorFlow without XLA reads and writes all of memory once for each
    operation, which is what element by element functions of feature maps cost.
    This compiles one such function by itself, whatever the rest of the graph
    does. The other backends need no help, or have none: JAX compiles the whole
    step, PyTorch computes eagerly.

    Only for training: a graph that contains such a function cannot be converted
    to other formats, and inference is what people export.

    Args:
        function: Takes tensors by position and settings, which are hashable,
            by keyword. Not differentiated.
    """
    return _shared(function, _is_worth_fusing, jit_compile=True)


def _is_worth_fusing(tensor):
    """Whether a function of a tensor takes longer than to start it."""
    if not _fuses():
        # PyTorch would trace a comparison of the number of samples.
        return False
    sizes = [size or _SAMPLES for size in tensor.shape]
    return math.prod(sizes) >= _LARGE


def has_fast_strides(tensor, training):
    """Whether slices with a step, and small axes, cost what their size says.

    On TensorFlow they do in `fused` functions alone, which are for training.
    What is recorded may run anywhere.
    """
    if is_symbolic(tensor):
        return False
    if keras.backend.backend() != "tensorflow":
        return True
    return bool(training) and _is_worth_fusing(tensor)


def _fuses():
    """Whether `fused` can have an effect: in TensorFlow graphs, with XLA."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.inside_function() and _has_xla()


@functools.lru_cache
def _has_xla():
    import tensorflow as tf

    try:
        with tf.init_scope():
            tf.function(tf.negative, jit_compile=True)(tf.zeros(()))
    except (tf.errors.OpError, ValueError):
        return False
    return True


def _shared(function, applies, **options):
    """`function`, as a graph made once for each shape where that `applies`."""

    # A graph keeps the digits of products that it was traced with.
    @functools.lru_cache
    def graph(digits, **settings):
        del digits
        chosen = functools.partial(function, **settings)
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            return tf.function(chosen, autograph=False, **options)
        import jax

        return jax.jit(chosen)

    @functools.wraps(function)
    def called(*tensors, **settings):
        if applies(tensors[0]):
            digits = digits_of_products(tensors[0])
            return graph(digits, **settings)(*tensors)
        return function(*tensors, **settings)

    return called


def _is_traced(tensor):
    """Whether a graph is being traced, on the backends that trace graphs."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.inside_function()
    if keras.backend.backend() == "jax":
        import jax

        return isinstance(tensor, jax.core.Tracer)
    return False
