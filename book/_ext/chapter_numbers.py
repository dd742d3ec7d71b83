"""Sphinx extension: the number of a chapter is the number of its file, wherever it stands in the table of contents."""

import re

from docutils import nodes

CHAPTER = re.compile(r"(?:^|/)(\d+)_\w+$")


def renumber(app, env):
    """Put the file's number in place of the one that Sphinx has counted, in headings, contents and figures."""
    for name, sections in env.toc_secnumbers.items():
        found = CHAPTER.search(name)
        if not found:
            continue
        number = int(found[1])
        env.toc_secnumbers[name] = {anchor: (number, *rest) for anchor, (_, *rest) in sections.items()}
        for title in (env.titles.get(name), *_links(env.tocs[name])):
            if title is not None and title.get("secnumber"):
                title["secnumber"] = (number, *title["secnumber"][1:])
        for numbers in env.toc_fignumbers.get(name, {}).values():
            numbers.update({anchor: (number, *rest) for anchor, (_, *rest) in numbers.items()})
    return []


def _links(contents):
    """The entries of a page's own table of contents."""
    return contents.findall(nodes.reference)


def setup(app):
    """Register with Sphinx, after its own numbering."""
    app.connect("env-get-updated", renumber, priority=900)
    return {"parallel_read_safe": True}
