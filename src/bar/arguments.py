"""Kinds of arguments on the command line."""

import os
import tempfile
from pathlib import Path

import click

from bar.errors import is_plain


class Folder(click.Path):
    """A path that can exist: not empty, writable as text, no longer than the system allows.

    With ``new=True``, a folder, or one that can be created there. Symbolic links are followed, and a ``~`` in front is
    the home folder, which no shell puts there in ``--out=~/runs``.
    """

    def __init__(self, new: bool = False) -> None:
        super().__init__(path_type=Path)
        self.new = new

    def convert(self, value, param, ctx) -> Path:
        """What click calls to parse a value."""
        text = os.fspath(value)
        if not text or not is_plain(text):
            self.fail(f"{text!r:.60} is not a path", param, ctx)
        path = Path(os.path.expanduser(text))
        try:
            here = next(place for place in (path, *path.absolute().parents) if _exists(place))
            if self.new and not here.is_dir():
                self.fail(f"{text!r} cannot be created, because {str(here)!r} is not a folder", param, ctx)
            if self.new and here != path:
                tempfile.TemporaryFile(dir=here).close()
        except OSError as error:
            self.fail(f"{text!r:.60} cannot be used: {error.strerror}", param, ctx)
        return path


def _exists(path: Path) -> bool:
    """Whether a path exists; unlike `Path.exists`, raises an OSError where that cannot be found out."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
