"""Sphinx settings: ``sphinx-build -W -b html docs build/docs`` makes the site."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent)]

from langevin_xtal.version import __version__  # noqa: E402

project = "langevin-xtal"
author = "the langevin-xtal developers"
release = version = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "results",
]
exclude_patterns = ["build"]
html_theme = "furo"
html_title = f"langevin-xtal {release}"
html_static_path: list[str] = []

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False

suppress_warnings = [
    # one object, documented where it is defined and named again by the package
    "ref.python",
]
