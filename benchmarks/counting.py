"""Counts what a training step is made of: nothing is timed.

Each backend is asked for the step that `fit` runs. On PyTorch that is a list of
operations, seen while they run. On JAX and TensorFlow it is a program: all of
its branches are counted, and what a loop contains once. Its functions may be
called several times; their branches and products are counted at each call,
their instructions once, as a compiler reads them.
"""

import contextlib
import math
import re
import sys

import hlo
import keras

from deel.lip._backend.products import product

# Images in a batch. It divides no size of a network, so a product whose
# arithmetic it divides is one of samples, and one of kernels otherwise.
IMAGES = 11

# Marks products with all digits in the names of TensorFlow's operations.
_ALL_DIGITS = "all_digits"


def step_counts(model, x, y, batch_size, steps=1):
    """Counts the training step of a compiled model.

    Args:
        model: A compiled `keras.Model`.
        x: Array of `IMAGES` inputs.
        y: Array of labels.
        batch_size: Integer, the number of samples that the share of the
            arithmetic is given for.
        steps: Integer, steps to train before. What runs eagerly may need fewer
            operations later.

    Returns:
        Dictionary of counts, by the keys of `FIGURES` in `program.py`.
    """
    for _ in range(steps):
        model.fit(x, y, batch_size=IMAGES, verbose=0)
    model.make_train_function()
    step, count = model.train_function, _COUNTERS[keras.backend.backend()]
    found = {}

    def counted(*args):
        counts, result = count(model, step, *args)
        found.update(counts)
        return result

    model.train_function = counted
    try:
        model.fit(x, y, batch_size=IMAGES, verbose=0)
    finally:
        model.train_function = step
    products = found.pop("arithmetic")
    exact, others = (
        sum(
            amount if amount % IMAGES else amount // IMAGES * batch_size
            for amount, has_all_digits in products
            if has_all_digits == wanted
        )
        for wanted in (True, False)
    )
    return found | {
        "products": len(products),
        "exact_products": sum(is_exact for _, is_exact in products),
        "exact_share": exact / max(exact + others, 1),
    }


class _Inside:
    """Whether what runs now is a product with all digits."""

    exact = False


@contextlib.contextmanager
def marked_products():
    """Tells the counters which products have all digits, while this is open.

    JAX says it in its programs. For the others, `product` is replaced wherever
    it was imported, before anything is traced.
    """

    def marked(a, b):
        before, _Inside.exact = _Inside.exact, True
        try:
            with keras.name_scope(_ALL_DIGITS):
                return product(a, b)
        finally:
            _Inside.exact = before

    places = [
        (module, name)
        for key, module in list(sys.modules.items())
        if key.startswith("deel.lip")
        for name, value in list(vars(module).items())
        if value is product
    ]
    for module, name in places:
        setattr(module, name, marked)
    try:
        yield
    finally:
        for module, name in places:
            setattr(module, name, product)


# PyTorch. Operations that only look at a tensor differently launch nothing;
# these neither, though their schemas do not say so.
_LAUNCH_NOTHING = {
    "_local_scalar_dense",
    "_unsafe_view",
    "empty",
    "empty_like",
    "empty_strided",
    "is_same_size",
    "new_empty",
    "new_empty_strided",
    "resize_",
    "set_",
}

_READS = {
    "_linalg_check_errors",
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
}


def _count_torch(model, step, data):
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    found = {"launches": 0, "reads": 0, "operations": 0, "arithmetic": []}
    # No operations. What lies on a GPU is copied first, which is one.
    unseen = {torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__}
    unseen = set() if torch.cuda.is_available() else unseen

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            name = function._schema.name.split("::")[1]
            found["operations"] += 1
            found["launches"] += not (
                name in _LAUNCH_NOTHING
                or _is_view(function)
                # Keras assigns what a constraint returns.
                or (name == "copy_" and args[0] is args[1])
            )
            found["reads"] += name in _READS or _copies_to_host(args, result)
            amount = flop_registry.get(function._overloadpacket)
            if amount is not None:
                flops = amount(*args, **(kwargs or {}), out_val=result)
                found["arithmetic"].append((flops, _Inside.exact))
            return result

    class Methods(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            found["reads"] += function in unseen
            return function(*args, **(kwargs or {}))

    with Operations(), Methods():
        result = step(data)
    return found, result


def _is_view(function):
    """Whether the result of an operation of PyTorch is memory of its input."""
    returned = [x.alias_info for x in function._schema.returns]
    return any(info is not None and not info.is_write for info in returned)


def _copies_to_host(args, result):
    """Whether an operation of PyTorch moves a tensor from a GPU."""
    before, after = (
        {x.device.type for x in filter(keras.ops.is_tensor, leaves)}
        for leaves in map(keras.tree.flatten, (args, result))
    )
    return "cuda" in before and "cpu" in after


# JAX. What the compiler reads is StableHLO, what it makes is HLO.
_JAX_BRANCHES = {"stablehlo.while", "stablehlo.case", "stablehlo.if"}


def _count_jax(model, step, state, iterator):
    import jax

    data = next(iterator)
    # The function and the arguments of Keras, so nothing is compiled again.
    lowered = jax.jit(model.train_step, donate_argnums=0).lower(state, data)
    functions = {
        function.attributes["sym_name"].value: list(_within(function))
        for function in lowered.compiler_ir().body.operations
    }

    def contents(name):
        operations = functions[name]
        return (
            sum(operation.name in _JAX_BRANCHES for operation in operations),
            [
                _stablehlo_product(operation, _JAX_PRODUCTS[operation.name])
                for operation in operations
                if operation.name in _JAX_PRODUCTS
            ],
            [
                operation.attributes["callee"].value
                for operation in operations
                if operation.name == "func.call"
            ],
        )

    branches, arithmetic = _run_by("main", contents, {})
    compiled = lowered.compile().as_text()
    found = {
        "branches": branches,
        "instructions": sum(map(len, functions.values())),
        "compiled": hlo.instructions_of(compiled),
        "launches": hlo.launches_of(compiled),
        "arithmetic": arithmetic,
    }
    return found, step(state, iter([data]))


def _run_by(name, contents, known):
    """Branches and products of a function, with those that it calls.

    Args:
        name: String, the function.
        contents: Function of a name, returns the number of branches, the list
            of products, and the names of the functions called.
        known: Dictionary of results, by name.
    """
    if name not in known:
        branches, arithmetic, called = contents(name)
        for other in called:
            more = _run_by(other, contents, known)
            branches, arithmetic = branches + more[0], arithmetic + more[1]
        known[name] = branches, arithmetic
    return known[name]


def _within(operation):
    """All operations inside of one of MLIR, at any depth."""
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation
                yield from _within(inner)


def _stablehlo_product(operation, terms):
    """Arithmetic of a product, and whether it keeps all digits."""
    amount = 2 * math.prod(operation.results[0].type.shape) * terms(operation)
    attributes = operation.attributes
    if "precision_config" not in attributes:
        return amount, False
    return amount, "HIGHEST" in str(attributes["precision_config"])


def _dot_size(operation):
    """Terms of each sum of a product."""
    text = str(operation.attributes["dot_dimension_numbers"])
    axes = re.search(r"lhs_contracting_dimensions = \[([\d, ]*)\]", text)
    shape = operation.operands[0].type.shape
    return math.prod(shape[int(i)] for i in re.findall(r"\d+", axes[1]))


def _window_size(operation):
    """Terms of each sum of a convolution."""
    text = str(operation.attributes["dimension_numbers"])
    # As in `[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]`.
    kernel = re.search(r"x\[(.*?)\]", text)[1].split(", ")
    shape = operation.operands[1].type.shape
    return math.prod(shape) // shape[kernel.index("o")]


_JAX_PRODUCTS = {
    "stablehlo.convolution": _window_size,
    "stablehlo.dot": _dot_size,
    "stablehlo.dot_general": _dot_size,
}


# TensorFlow.
_TF_BRANCHES = {
    "Case",
    "If",
    "StatelessCase",
    "StatelessIf",
    "StatelessWhile",
    "While",
}


def _count_tensorflow(model, step, iterator):
    import tensorflow as tf

    # As Keras has it, which keeps AutoGraph from the step.
    function = tf.function(
        model.train_step,
        reduce_retracing=True,
        jit_compile=model.jit_compile,
        autograph=False,
    )
    main = function.get_concrete_function(iterator.element_spec).graph
    graphs = {"": main}

    def contents(name):
        operations = graphs[name].get_operations()
        called = [f for operation in operations for f in _called_by(operation)]
        for other in called:
            # TensorFlow has no public way to the shapes inside of functions.
            graphs.setdefault(other, main._get_function(other).graph)
        return (
            sum(operation.type in _TF_BRANCHES for operation in operations),
            [
                (
                    2 * _TF_PRODUCTS[operation.type](operation),
                    _ALL_DIGITS in operation.name,
                )
                for operation in operations
                if operation.type in _TF_PRODUCTS
            ],
            called,
        )

    branches, arithmetic = _run_by("", contents, {})
    found = {
        "branches": branches,
        "instructions": sum(
            len(graph.get_operations()) for graph in graphs.values()
        ),
        "arithmetic": arithmetic,
    }
    return found, step(iterator)


def _called_by(operation):
    """Names of the functions that an operation of a graph calls."""
    for attribute in operation.node_def.attr.values():
        if attribute.HasField("func"):
            yield attribute.func.name
        for function in attribute.list.func:
            yield function.name


def _size(tensor, axes=slice(None)):
    """Entries of a tensor; what is not known is the number of samples."""
    return math.prod(size or IMAGES for size in tensor.shape.as_list()[axes])


def _matmul(operation):
    transposed = operation.node_def.attr["transpose_a"].b
    transposed = transposed or operation.node_def.attr["adj_x"].b
    axis = -2 if transposed else -1
    terms = operation.inputs[0].shape[axis] or IMAGES
    return _size(operation.outputs[0]) * terms


def _convolution(operation):
    windows, kernel = operation.outputs[0], operation.inputs[1]
    return _size(windows, slice(-1)) * _size(kernel)


def _convolution_of_gradient(operation):
    windows, kernel = operation.inputs[2], operation.inputs[1]
    return _size(windows, slice(-1)) * _size(kernel)


def _gradient_of_kernel(operation):
    windows, kernel = operation.inputs[2], operation.outputs[0]
    return _size(windows, slice(-1)) * _size(kernel)


# Multiplications of each, channels last.
_TF_PRODUCTS = {
    "BatchMatMulV2": _matmul,
    "BatchMatMulV3": _matmul,
    "Conv2D": _convolution,
    "Conv2DBackpropFilter": _gradient_of_kernel,
    "Conv2DBackpropInput": _convolution_of_gradient,
    "MatMul": _matmul,
}


_COUNTERS = {
    "torch": _count_torch,
    "jax": _count_jax,
    "tensorflow": _count_tensorflow,
}
