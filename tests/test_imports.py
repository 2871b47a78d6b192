"""Imports go one way, and name no backend."""

import ast
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import deel.lip

PACKAGE = Path(deel.lip.__file__).parent

# A module may import those before it, and none after it.
ORDER = [
    "_compatible",
    "_register",
    "_validation",
    "_variables",
    "_control_flow",
    "_products",
    "_compilation",
    "_gradient",
    "_slices",
    "_sorting",
    "_padding",
    "_differentiation",
    "_replicas",
    "_labels",
    "utils",
    "normalizers",
    "_orthogonal",
    "_operator",
    "_lipschitz",
    "_slopes",
    "_export",
    "_guarded_variable",
    "_parametrization",
    "_constrained",
    "_spectral",
    "_frobenius",
    "_block_convolution",
    "_dense_methods",
    "_aol",
    "constraints",
    "initializers",
    "layers.conv_factor",
    "layers.activations",
    "layers.normalization",
    "layers.pooling",
    "layers.residual",
    "layers.branched",
    "layers.resampling",
    "layers.dense",
    "layers.orthogonal_dense",
    "layers.unconstrained",
    "layers.padded",
    "layers.orthogonal_convolution",
    "layers.covered",
    "layers.convolutional",
    "layers.almost_orthogonal",
    "layers.symmetric",
    "layers.convolutional_transpose",
    "layers.depthwise",
    "layers",
    "activations",
    "_loss",
    "_crossentropies",
    "losses",
    "metrics",
    "_loss_parameters",
    "certification._norms",
    "certification._rounding",
    "certification._float64",
    "certification._layers",
    "certification.bounds",
    "certification.certificates",
    "certification.attacks",
    "certification",
    "certification.__main__",
    "model",
    "applications",
    "callbacks",
    "regularizers",
    "compute_layer_sv",
    "plots",
    "_deprecated",
    "unconstrained_layers",
]
BACKENDS = {"tensorflow", "jax", "torch"}

# Where a backend is imported after all, inside a function that runs on it.
EXCEPTIONS = {
    ("_products", "tensorflow"),
    ("_products", "jax"),
    ("_products", "torch"),
    ("_compilation", "tensorflow"),
    ("_compilation", "jax"),
    ("_replicas", "tensorflow"),
    ("_variables", "jax"),
    ("_guarded_variable", "tensorflow"),
    ("_guarded_variable", "jax"),
    ("_guarded_variable", "torch"),
    ("_gradient", "torch"),
    ("_sorting", "tensorflow"),
    ("callbacks", "tensorflow"),
    ("_differentiation", "tensorflow"),
    ("_differentiation", "jax"),
    ("_differentiation", "torch"),
    ("certification._float64", "jax"),
    ("certification._float64", "torch"),
}


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        name = name.removesuffix(".__init__")
        if name != "__init__":
            yield name, path


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_place():
    assert {name for name, _ in _modules()} == set(ORDER)


@pytest.mark.parametrize(
    ("name", "path"), list(_modules()), ids=lambda value: str(value)[-30:]
)
def test_modules_import_what_stands_before_them_and_no_backend(name, path):
    place = ORDER.index(name)
    for imported in _imports(path):
        package = imported.split(".")[0]
        assert package not in BACKENDS or (name, package) in EXCEPTIONS
        local = imported.removeprefix("deel.lip.")
        if local in ORDER:
            assert ORDER.index(local) < place, imported


def test_import_loads_the_chosen_backend_only():
    backend = keras.backend.backend()
    program = (
        "import sys, deel.lip\n"
        f"others = {BACKENDS - {backend}!r} & set(sys.modules)\n"
        "assert not others, others\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_package_is_a_namespace():
    assert not (PACKAGE.parent / "__init__.py").exists()


def test_keras_that_is_too_old_is_named():
    program = "import keras; keras.__version__ = '3.3.3'; import deel.lip"
    found = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True
    )
    assert found.returncode == 1
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: deel.lip needs Keras 3.4")
    assert last.endswith("keras.__version__=3.3.3")
