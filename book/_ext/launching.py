"""Sphinx extension: each chapter can be opened in Colab and Binder, once the repository has a public address.

The address is set in one place, `launch_repository` in _config.yml. Until then pages have no such links, for they would
lead nowhere. What Binder installs is in the folder `binder`; ARCHITECTURE.md says how much of its 2 GB chapters take.
"""

import re

CHAPTER = re.compile(r"^_executed/(\d+_\w+)$")


def links(address, branch, chapter):
    """Return the line of links that a chapter begins with."""
    place = re.sub(r"^https://github\.com/", "", address.rstrip("/"))
    colab = f"https://colab.research.google.com/github/{place}/blob/{branch}/notebooks/{chapter}.ipynb"
    binder = f"https://mybinder.org/v2/gh/{place}/{branch}?labpath=notebooks/{chapter}.ipynb"
    return (
        f'<p class="launch">Run it yourself: <a href="{colab}">this chapter in Colab</a>, '
        f'<a href="{binder}">in Binder</a>.</p>'
    )


def add(app, name, template, context, doctree):
    """Put the links below the title of a chapter."""
    chapter, address = CHAPTER.match(name), app.config.launch_repository
    if chapter and address and "</h1>" in context.get("body", ""):
        line = links(address, app.config.launch_branch, chapter[1])
        context["body"] = context["body"].replace("</h1>", "</h1>\n" + line, 1)


def setup(app):
    """Register with Sphinx."""
    app.add_config_value("launch_repository", "", "html")
    app.add_config_value("launch_branch", "main", "html")
    app.connect("html-page-context", add)
    return {"parallel_read_safe": True}
