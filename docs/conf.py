"""Sphinx configuration."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

_docs = Path(__file__).parent
sys.path[:0] = [str(_docs), str(_docs / "_ext"), str(_docs / "snippets")]

project = "torchrl-ddpg"
author = copyright = "The torchrl-ddpg developers"
release = version = installed_version("torchrl-ddpg")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "from_code",
    "trainer_flags",
]
exclude_patterns = ["_build", "tutorials_src", "inventories"]
templates_path = ["_templates"]
nitpicky = True
nitpick_ignore = [  # not in the other projects' documentation
    ("py:class", "tensordict._nestedkey.NestedKey"),
    ("py:class", "torchrl.objectives.utils.TargetNetUpdater"),
]
suppress_warnings = ["config.cache"]  # the gallery's configuration cannot be pickled

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3
mathjax_path = "mathjax/tex-svg.js"  # shipped, so that a page asks no other host
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# The inventories are shipped: a build needs no network.
intersphinx_mapping = {
    name: (url, str(_docs / "inventories" / f"{name}.inv"))
    for name, url in {
        "python": "https://docs.python.org/3/",
        "torch": "https://docs.pytorch.org/docs/stable/",
        "tensordict": "https://docs.pytorch.org/tensordict/stable/",
        "torchrl": "https://docs.pytorch.org/rl/stable/",
        "gymnasium": "https://gymnasium.farama.org/",
    }.items()
}

sphinx_gallery_conf = {
    "examples_dirs": "tutorials_src",
    "gallery_dirs": "tutorials",
    "filename_pattern": r".*",  # every tutorial runs
    "ignore_pattern": r"__init__\.py",
    "within_subsection_order": "FileNameSortKey",
    "reset_modules": ("matplotlib", "plot_style.neutral"),
    "abort_on_example_error": True,
    "only_warn_on_example_error": False,
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,  # its page asks other hosts
    "show_signature": False,
    "remove_config_comments": True,
}

html_theme = "furo"
html_favicon = "_static/favicon.svg"
html_title = f"torchrl-ddpg {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
