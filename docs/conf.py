"""How Sphinx builds these pages: ``sphinx-build -W --keep-going -b html docs build/docs``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pyseg

project = "pyseg"
author = "The pyseg authors"
project_copyright = author
version = release = pyseg.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]

html_theme = "furo"
html_title = f"pyseg {release}"
html_static_path = ["_static"]

# Notebooks are kept without outputs. Every build runs them, and fails where a cell fails.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 120  # seconds a cell
nb_merge_streams = True
nb_render_markdown_format = "myst"  # which has tables

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"  # in docstrings: a link if there is such an object, code otherwise
add_module_names = False
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_mock_imports = ["torchmetrics"]  # of pyseg.metrics.torchmetrics, and slow to import
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# A build needs no network: references to other projects are links only where that is asked for.
intersphinx_mapping: dict[str, tuple[str, None]] = {}
if os.environ.get("PYSEG_DOCS_ONLINE") == "1":
    intersphinx_mapping = {
        "numpy": ("https://numpy.org/doc/stable", None),
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }


def skip_plain_fields(
    app: object, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leaves out the fields of named tuples, which the docstring of the class describes."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Any) -> None:
    """Registers the above; Sphinx calls this."""
    app.connect("autodoc-skip-member", skip_plain_fields)
