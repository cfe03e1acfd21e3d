"""Sphinx: the pages of this directory as a site, with the reference made from docstrings."""

from __future__ import annotations

import anl_kernels

project = "anl_kernels"
version = release = anl_kernels.__version__
author = copyright = "The anl_kernels authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
html_theme = "furo"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# Pages link to files of the repository, which are no pages; tests/test_docs.py checks them.
suppress_warnings = ["myst.xref_missing"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
# Everything public is named `anl_kernels.X`, wherever its module is.
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
