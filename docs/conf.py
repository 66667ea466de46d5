"""Sphinx's settings: `make docs` builds the pages into out/docs, with warnings as errors."""

from rmsprop_c import __version__

project = "rmsprop_c"
author = "the rmsprop_c developers"
copyright = "the rmsprop_c developers, MIT License"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"rmsprop_c {release}"
html_static_path = ["static"]
html_css_files = ["tables.css"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say the types
autodoc_mock_imports = ["torch"]  # the API page of its integration needs it, the build does not
