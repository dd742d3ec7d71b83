"""The names of methods, records and commits on pages, and tables with a caption."""

import json
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from bar import paper
from bar.schema import RESULT


def as_text(value: object) -> str:
    """Return a JSON value as text that is equal for equal values.

    Examples
    --------
    >>> as_text({"b": 1, "a": [2]})
    '{"a": [2], "b": 1}'
    """
    return json.dumps(value, sort_keys=True)


def short(method: str) -> str:
    """Return a method's name in tables: that of the paper, but "BAR" for "Ours"; its own if the paper has none.

    Examples
    --------
    >>> short("l0"), short("bar"), short("uniform")
    ('LZR', 'BAR', 'uniform')
    """
    printed = paper.table("pruning_results").drop_duplicates("method").set_index("method").paper_name
    return printed.get(method, method).replace("Ours", "BAR")


def record_file(folder: str) -> str:
    """Return the path of a run's record in the repository; "this build" for a run without a folder.

    Examples
    --------
    >>> record_file("../results/digits/a"), record_file("")
    ('results/digits/a/result.json', 'this build')
    """
    inside = Path(*(part for part in Path(folder).parts if part != ".."))
    return (inside / RESULT).as_posix() if folder else "this build"


def short_commit(commit: str | None) -> str:
    """Return the first seven digits of a commit, with a plus if there were uncommitted changes.

    Examples
    --------
    >>> short_commit("0123456789abcdef+"), short_commit(None)
    ('0123456+', 'unknown')
    """
    commit = commit if isinstance(commit, str) and commit else "unknown"
    return commit[:7] + "+" * commit.endswith("+")


def _unbroken(cell: object) -> object:
    """Keep a narrow cell from being broken within "0.1 ± 0.2" or "3 %"."""
    return cell.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%") if isinstance(cell, str) else cell


def captioned(table: pd.DataFrame, caption: str, wrap: bool = False, left: bool = True) -> Styler:
    """Style a table with a caption above it.

    Parameters
    ----------
    table : pandas.DataFrame
        The table.
    caption : str
        Its caption.
    wrap : bool
        Whether cells may be broken into lines.
    left : bool
        Whether cells are aligned left.

    Returns
    -------
    pandas.io.formats.style.Styler
        A page shows it as a table.

    Examples
    --------
    >>> captioned(pd.DataFrame({"a": [1]}), "One number").caption
    'One number'
    """
    table = table.map(_unbroken)
    aligned = "; text-align: left" if left else ""
    above = [
        {"selector": "caption", "props": "caption-side: top; text-align: left"},
        {"selector": "td", "props": f"white-space: {'normal' if wrap else 'nowrap'}{aligned}"},
    ]
    above += [{"selector": "th", "props": "text-align: left"}] if wrap and left else []
    return table.style.set_caption(caption).set_table_styles(above)
