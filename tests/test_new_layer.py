"""What a new layer of the library touches: each place says that it is missing.

`doc/extending.md` lists them.
"""

import fnmatch
import inspect
import re
from pathlib import Path

import keras
import pytest
import registry
import test_surface

from deel.lip import layers
from deel.lip._register import PACKAGE
from deel.lip.certification import _registry
from deel.lip.layers import unconstrained

pytestmark = pytest.mark.elsewhere

ROOT = Path(__file__).parents[1]
MODULES = [
    f"deel.lip.{name}"
    for name in ("layers", "activations", "layers.unconstrained")
]
# Mixins, and a factory.
NO_LAYERS = {"Condensable", "ConstrainedKernel", "LipschitzLayer"}
NO_LAYERS |= {"SharedLipFactory"}

LAYERS = {
    name: (getattr(module, name), module.__name__)
    for module in (layers, unconstrained)
    for name in module.__all__
    if name not in NO_LAYERS and inspect.isclass(getattr(module, name))
}


def require(is_there, advice):
    """Fails with the advice for each layer that something is not there for."""
    missing = [
        advice.format(name=name, module=module)
        for name, (layer, module) in LAYERS.items()
        if not is_there(name, layer)
    ]
    assert not missing, "\n".join(missing)


def text_of(path):
    return (ROOT / path).read_text()


def test_every_registered_layer_is_public():
    missing = {
        value.__name__
        for value in keras.saving.get_custom_objects().values()
        if inspect.isclass(value)
        and issubclass(value, keras.layers.Layer)
        and value.__module__.startswith("deel.lip.layers.")
    } - set(LAYERS)
    assert not missing, (
        "Import these in deel/lip/layers/__init__.py, and add their names to "
        f"`__all__` there: {missing}"
    )


def test_it_is_registered_or_its_files_will_not_load():
    require(
        lambda name, layer: keras.saving.get_registered_name(layer).startswith(
            PACKAGE
        ),
        'Decorate {name} with `@register("{name}")` of deel.lip._register',
    )


def test_it_is_in_the_list_of_public_names():
    listed = " ".join(test_surface.NAMES.values()).split()
    require(
        lambda name, layer: name in listed,
        'Add {name} to NAMES["{module}"] in tests/test_surface.py',
    )


def test_it_is_in_the_reference():
    pages = "".join(text_of(f"doc/api/{m}.md") for m in MODULES)
    require(
        lambda name, layer: f"\n   {name}\n" in pages,
        "Add {name} to an `autosummary` of doc/api/{module}.md",
    )


def test_it_has_an_example():
    def has_example(layer):
        return ">>>" in layer.__doc__

    def names_a_sibling(layer):
        named = re.findall(r"`(\w+)`", layer.__doc__)
        return any(has_example(LAYERS[n][0]) for n in named if n in LAYERS)

    require(
        lambda name, layer: has_example(layer) or names_a_sibling(layer),
        "Add an Example to the docstring of {name}, or name the layer that "
        "has the one of them both",
    )


def test_it_has_a_row_in_the_registry_of_the_tests():
    rows = registry.CONSTRAINED + registry.OTHERS
    tested = {row.layer for row in rows} | {row.stock for row in rows}
    require(
        # Which takes two inputs, and is tested by itself.
        lambda name, layer: layer in tested or name == "LipResidual",
        "Add a row for each interesting argument of {name} to CONSTRAINED or "
        "OTHERS in tests/registry",
    )


def test_it_has_a_rule_of_certification():
    require(
        # Which hold layers, and are bounded as branches.
        lambda name, layer: (
            layer in _registry._BOUNDS
            or name in ("PartialResidual", "PrescaledResidual")
        ),
        "Write a rule, `@rule(layers.{name})`, in one of the files "
        "deel/lip/certification/rules/*.py",
    )


def test_it_has_a_place_in_the_network_of_every_layer():
    network = text_of("tests/test_every_layer.py")
    require(
        lambda name, layer: re.search(rf"\b{name}\(", network),
        "Add {name} to the network of tests/test_every_layer.py",
    )


def test_it_is_in_the_changelog():
    patterns = re.findall(r"`([\w*]+)", text_of("CHANGELOG.md"))
    require(
        lambda name, layer: any(fnmatch.fnmatch(name, p) for p in patterns),
        "Add a line about {name} to CHANGELOG.md",
    )
