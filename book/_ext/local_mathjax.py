"""Sphinx extension: formulas by a copy of MathJax inside the book, so that no page asks the network for it.

The file comes from the installed package sphinx-mathjax-offline; of its 24 MB one file is enough, the one that draws
SVG and therefore needs no fonts. Every .js under book/_static would be put on every page, hence not there.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

FILE = "tex-svg-full.js"


def copy_mathjax(app, exception):
    """Copy the file into the finished book."""
    if exception is None and app.builder.format == "html":
        package = find_spec("sphinx-mathjax-offline")
        if package is None:
            raise RuntimeError("MathJax is not installed: pip install sphinx-mathjax-offline")
        target = Path(app.outdir) / "_static" / "mathjax"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(package.origin).parent / "static" / "mathjax" / FILE, target)


def configure(app, config):
    """Name the file, and switch off the menu, whose entries would load further files."""
    config.mathjax_path = f"mathjax/{FILE}"
    config.mathjax3_config = {"options": {"enableMenu": False}}


def setup(app):
    """Register with Sphinx."""
    app.setup_extension("sphinx.ext.mathjax")
    app.connect("config-inited", configure, priority=100)  # before MyST adds its own options to the same dictionary
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True}
