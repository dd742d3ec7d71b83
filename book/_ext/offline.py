"""Sphinx extension: pages that ask the network for nothing, and that work from the file system as well."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from bar.figures import touch

# Of the 24 MB of MathJax that the package sphinx-mathjax-offline brings, one file is enough: the one that draws SVG
# and so needs no fonts. It is copied here, not kept in book/_static, of which every .js is put on every page.
MATHJAX = "tex-svg-full.js"
# Two megabytes that a page without a formula does without.
SCRIPTS_OF_MATHS = re.compile(r"\s*<script(?: [^>]*mathjax/[^>]*>|>window\.MathJax[^<]*)</script>")
# What stands in the list of references is no list item, which a screen reader would announce.
REFERENCES = re.compile(r' role="list"(?= class="citation-list")')
# The theme asks for its icon fonts ahead of need, in a way that browsers refuse for files; its style sheets suffice.
FONT_PRELOAD = re.compile(r'\s*<link rel="preload" as="font"[^>]*>')


def configure(app, config):
    """Name the copy of MathJax, and switch off its menu, whose entries would load further files."""
    config.mathjax_path = f"mathjax/{MATHJAX}"
    config.mathjax3_config = {"options": {"enableMenu": False}}


def finish(app, exception):
    """Copy MathJax and the script of charts into the finished book; take out what its readers never use."""
    if exception is not None or app.builder.format != "html":
        return
    package = find_spec("sphinx-mathjax-offline")
    if package is None:
        raise RuntimeError("MathJax is not installed: pip install sphinx-mathjax-offline")
    html = Path(app.outdir)
    (html / "_static" / "vega").mkdir(parents=True, exist_ok=True)
    (html / "_static" / "mathjax").mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(package.origin).parent / "static" / "mathjax" / MATHJAX, html / "_static" / "mathjax")
    touch.write_scripts(html / "_static" / "vega")
    for path in (html / "_static").rglob("*.map"):  # for those who debug the theme's scripts: a megabyte
        path.unlink()
    for page in html.rglob("*.html"):
        text = page.read_text("utf-8")
        maths = 'class="math' in text
        for unwanted in (FONT_PRELOAD, REFERENCES, *([] if maths else [SCRIPTS_OF_MATHS])):
            text = unwanted.sub("", text)
        page.write_text(text, "utf-8")


def setup(app):
    """Register with Sphinx."""
    app.setup_extension("sphinx.ext.mathjax")
    app.connect("config-inited", configure, priority=100)  # before MyST adds its own options to the same dictionary
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True}
