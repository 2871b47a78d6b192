"""Sphinx settings.

The site is built by `make doc`, where every warning is an error. Notebooks are
shown with the outputs that are stored in them: `make notebooks` renews these.
"""

import html
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from docutils import nodes  # noqa: E402
from docutils.parsers.rst import Directive  # noqa: E402
from docutils.parsers.rst import directives  # noqa: E402
from sphinx import addnodes  # noqa: E402
from sphinx.util import logging  # noqa: E402
from sphinx.util.nodes import make_refnode  # noqa: E402

import deel.lip  # noqa: E402 (the checkout, not what may be installed)

project = "deel.lip"
author = "The deel.lip authors"
# `setup.py` has the address, for the site and for PyPI.
_setup = (HERE.parent / "setup.py").read_text()
repository = re.search(r'^REPOSITORY = "(.*)"', _setup, re.M)[1]
branch = re.search(r'^BRANCH = "(.*)"', _setup, re.M)[1]
release = deel.lip.__version__
version = ".".join(release.split(".")[:2])

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    # Formulas without a third party that sees who reads them.
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]

html_theme = "furo"
# The default underlines names in programs as if they were links.
pygments_dark_style = "github-dark"
html_title = f"deel.lip {release}"
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_theme_options = {
    "source_repository": repository,
    "source_branch": branch,
    "source_directory": "doc/",
    "footer_icons": [
        {
            "name": "Repository",
            "url": repository,
            "html": "Repository",
            "class": "repository",
        }
    ],
    "light_css_variables": {
        "color-brand-primary": "#0b5fa5",
        "color-brand-content": "#0b5fa5",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6cb6ff",
        "color-brand-content": "#6cb6ff",
    },
}

myst_enable_extensions = [
    "colon_fence",
    "deflist",
    "dollarmath",
    "substitution",
]
myst_substitutions = {
    "repository": f"[Repository]({repository})",
    "issues": f"[issue]({repository}/issues)",
}
myst_heading_anchors = 3
nb_execution_mode = "off"
# Some logs arrive in several pieces.
nb_merge_streams = True

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_inherit_docstrings = False
autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
autosummary_generate = True
autosummary_imported_members = True
templates_path = ["_templates"]
add_module_names = False
python_maximum_signature_line_length = 72
toc_object_entries_show_parents = "hide"
# A name in backticks is a link where it is a name of the library.
default_role = "py:obj"

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Input shape", "Output shape", "Reference"]

linkcheck_timeout = 20
linkcheck_anchors = False

logger = logging.getLogger(__name__)

_MARKDOWN_LINK = re.compile(r"\[([^\]]+)\]\((https?://[^)]+)\)")


def _from_markdown(app, what, name, obj, options, lines):
    """Docstrings have links and programs in Markdown, as Keras' own."""
    converted, indent = [], ""
    for line in lines:
        if line.strip() == "```python":
            converted += [line.replace("```python", ".. code-block:: python")]
            converted += [""]
            indent = "    "
        elif line.strip() == "```":
            indent = ""
        else:
            converted.append(indent + _MARKDOWN_LINK.sub(r"`\1 <\2>`__", line))
    lines[:] = converted


def _signature(app, what, name, obj, options, signature, returned):
    """Arguments of `__init__`; Keras hides them behind its `__new__`."""
    if what != "class" or obj.__init__ is object.__init__:
        return None
    arguments = list(inspect.signature(obj.__init__).parameters.values())
    return str(inspect.Signature(arguments[1:])), returned


def _elsewhere(app, env, node, content):
    """Links names that stand on the page of another module."""
    name = node.get("reftarget", "").removesuffix("()")
    if node.get("refdomain") != "py" or name.islower():
        return None
    domain = env.get_domain("py")
    for full_name, entry in domain.objects.items():
        if full_name.endswith(f".{name}") and entry.objtype == "class":
            return make_refnode(
                app.builder,
                node["refdoc"],
                entry.docname,
                entry.node_id,
                content,
                full_name,
            )
    return None


def _check_names(app, env):
    """Warns of public names that stand on no page."""
    shown = env.get_domain("py").objects
    # A class that two modules export is described once.
    described = {_value(name) for name in shown} - {None}
    for page in sorted((HERE / "api").glob("deel*.md")):
        for name in importlib.import_module(page.stem).__all__:
            full_name = f"{page.stem}.{name}"
            value = _value(full_name)
            if inspect.ismodule(value) or full_name in shown:
                continue
            if not callable(value) or value not in described:
                logger.warning("%s is public, and on no page", full_name)


class Themed(Directive):
    """A figure that is drawn twice, as `NAME-light.svg` and `NAME-dark.svg`."""

    required_arguments = 1
    option_spec = {  # noqa: RUF012
        "alt": directives.unchanged_required,
        "width": directives.unchanged,
    }

    def run(self):
        def image(theme):
            options = {k: v for k, v in self.options.items() if v}
            uri = f"{self.arguments[0]}-{theme}.svg"
            return nodes.image(uri=uri, classes=[f"only-{theme}"], **options)

        return [image("light"), image("dark")]


def _describe(app, pagename, templatename, context, doctree):
    """Tells search engines the first sentences of a page."""
    if doctree is None:
        return
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if len(text) > 40:
            content = html.escape(
                textwrap.shorten(text, 160, placeholder=" ...")
            )
            context["metatags"] += (
                f'<meta name="description" content="{content}">'
            )
            return


def _fold(app, doctree, docname):
    """Puts long signatures below the first sentence, to be opened there."""
    for entry in list(doctree.findall(addnodes.desc)):
        signature, content = entry[0], entry[-1]
        found = list(signature.findall(addnodes.desc_parameterlist))
        if len(found) != 1 or len(found[0]) < 8 or not len(content):
            continue
        parameters = [parameter.astext() for parameter in found[0]]
        required = [x for x in parameters if not set("=*/") & set(x)]
        short = addnodes.desc_parameterlist("", "")
        for name in [*required, "..."]:
            short += addnodes.desc_parameter("", name)
        found[0].replace_self(short)
        name = next(iter(signature.findall(addnodes.desc_name))).astext()
        lines = "".join(f"    {parameter},\n" for parameter in parameters)
        text = f"{name}(\n{lines})"
        opening = "<details class='signature'><summary>All arguments</summary>"
        content[1:1] = [
            nodes.raw("", opening, format="html"),
            nodes.literal_block(text, text, language="python"),
            nodes.raw("", "</details>", format="html"),
        ]


def _fill_in(app, docname, source):
    """What pages say of this version, where substitutions do not reach."""
    if docname == "citing":
        text = source[0].replace("{RELEASE}", f"{{{release}}}")
        source[0] = text.replace("{REPOSITORY}", f"{{{repository}}}")


def _value(full_name):
    module, _, name = full_name.rpartition(".")
    try:
        value = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return value if callable(value) or inspect.ismodule(value) else None


def setup(app):
    app.add_directive("themed", Themed)
    app.connect("source-read", _fill_in)
    app.connect("doctree-resolved", _fold)
    app.connect("html-page-context", _describe)
    app.connect("autodoc-process-docstring", _from_markdown)
    app.connect("autodoc-process-signature", _signature)
    app.connect("missing-reference", _elsewhere)
    app.connect("env-check-consistency", _check_names)
