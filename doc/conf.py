"""Sphinx settings."""

import deel.lip

project = "deel.lip"
author = "The deel.lip authors"
release = deel.lip.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
exclude_patterns = ["_build"]
nb_execution_mode = "off"
autodoc_default_options = {"members": True}
