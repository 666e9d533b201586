"""Sphinx configuration."""

from importlib.metadata import version as installed_version

project = "torchrl-ddpg"
author = "The torchrl-ddpg developers"
release = version = installed_version("torchrl-ddpg")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "torchrl-ddpg"
html_static_path = ["_static"]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
