"""Imports go one way, and name no backend."""

import ast
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import deel.lip

PACKAGE = Path(deel.lip.__file__).parent

# What stands in each folder, in order: a module may import what stands before
# it or before its folder, and nothing else.
FOLDERS = {
    "": """
        _compatible _register _validation _defaults
        _backend/ _graph _loss_variables _labels
        _numerics/ normalizers utils
        _lipschitz _export _stock_only/ parametrizations/ _constrained
        optimizers
        constraints initializers regularizers
        layers/ activations unconstrained_layers compute_layer_sv
        losses/ metrics certification/
        _stock_metrics model sampling applications callbacks plots _deprecated
        _command export/
    """,
    "_backend": """
        control_flow drawing differentiation gradient products linear_algebra
        replicas tensors variables compilation guarded_variable retraction
    """,
    "_numerics": """
        activations norm_bounds padding windows sorting window_norms
        convolution_norm one_step polar_on_host polar orthogonal_factors
        orthogonal_maps
    """,
    "_stock_only": """
        checks names orders folded_sorts forms kernels conversion
    """,
    "parametrizations": """
        constrained_variable base polar spectral spectral_operator frobenius
        almost_orthogonal
        cholesky_qr skew block_reflector block_convolution
    """,
    "layers": """
        _channel_bias _spectral_arguments _window_pooling
        activations prelu layer_centering scale_bias normalization
        residual _branched branched monotone resampling
        average_pooling l2_norm_pooling global_pooling
        _both_ways _pairs unconstrained _padded _coverage
        dense orthogonal_dense convolutional convolutional_transpose depthwise
        orthogonal_convolution almost_orthogonal symmetric sandwich
        _recurrent_cell recurrent
    """,
    "losses": """
        _base _kantorovich _hinges _hkr _learned_margins _crossentropies
    """,
    "certification": """
        _device _norms _chain _torus _image_steps _spectrum _branches _refined
        _rounding _recurrences _float64 _registry _flow _nodes
        _pieces rules/ patterns/ _local _walk _promises bounds
        _curves _data _outcomes _scores _network _networks _summaries
        certificates attacks _binomial coverage conformal detectors regression
        _budgets pixel_certificates pixels wasserstein tracing
    """,
    "certification.rules": """
        _steps activations _linear dense convolutions pooling
        recurrent normalization shapes augmentation joins _pulled copying
        operations
    """,
    "certification.patterns": """
        comparisons norms folds folded_sorts symmetric_steps sandwiches padded
    """,
    "export": """
        _formats
    """,
}


def _flattened(folder=""):
    for name in FOLDERS[folder].split():
        path = f"{folder}.{name}".strip(".").rstrip("/")
        if name.endswith("/"):
            yield from _flattened(path)
        yield path


ORDER = [*_flattened(), "certification.__main__", "export.__main__"]
BACKENDS = {"tensorflow", "jax", "torch"}

# Where a backend is imported after all, inside a function that runs on it.
EXCEPTIONS = {
    ("_backend.control_flow", "tensorflow"),
    ("_backend.control_flow", "jax"),
    ("_backend.control_flow", "torch"),
    ("_backend.linear_algebra", "torch"),
    ("_backend.products", "tensorflow"),
    ("_backend.products", "jax"),
    ("_backend.products", "torch"),
    ("_backend.compilation", "tensorflow"),
    ("_backend.compilation", "jax"),
    ("_backend.replicas", "tensorflow"),
    ("_backend.retraction", "jax"),
    ("_backend.retraction", "torch"),
    ("_backend.guarded_variable", "tensorflow"),
    ("_backend.guarded_variable", "jax"),
    ("_backend.guarded_variable", "torch"),
    ("_backend.gradient", "torch"),
    ("_backend.variables", "jax"),
    ("_numerics.sorting", "tensorflow"),
    ("callbacks", "tensorflow"),
    ("_backend.differentiation", "tensorflow"),
    ("_backend.differentiation", "jax"),
    ("_backend.differentiation", "torch"),
    ("certification._float64", "jax"),
    ("certification._float64", "torch"),
    ("export._formats", "tensorflow"),
    ("export._formats", "torch"),
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


@pytest.mark.elsewhere
def test_every_module_has_its_place():
    found = {name for name, _ in _modules()}
    assert found == set(ORDER), "Give each module its place in FOLDERS."


@pytest.mark.elsewhere
@pytest.mark.parametrize(
    ("name", "path"), list(_modules()), ids=lambda value: str(value)[-30:]
)
def test_modules_import_what_stands_before_them_and_no_backend(name, path):
    place = ORDER.index(name)
    for imported in _imports(path):
        package = imported.split(".")[0]
        assert package not in BACKENDS or (name, package) in EXCEPTIONS
        local = imported.removeprefix("deel.lip.")
        if local in ORDER and local != name:
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
