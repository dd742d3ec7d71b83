"""Checkpoints of a run that is not over."""

import hashlib
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from bar import files
from bar.errors import BarError
from bar.storage.reasons import first_line

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
_PARTIAL = re.compile(r".+\.\d+\.partial")

log = logging.getLogger(__name__)


def save_checkpoint(state: dict, folder: Path) -> None:
    """Write the state of a run, whole or not at all; the one before it is kept beside it.

    Parameters
    ----------
    state : dict
        Of tensors, numbers, strings, and lists and dicts of them.
    folder : Path
        Of the run.
    """
    content = io.BytesIO()
    torch.save(state, content)
    view = content.getbuffer()
    # the hash comes first: torch does not notice a changed byte
    files.write(folder / CHECKPOINT, hashlib.sha256(view).digest(), view, previous=folder / PREVIOUS)


def load_checkpoints(folder: Path, config: dict) -> Iterator[dict]:
    """The states that can be read, the latest first; why another cannot be used is logged as a warning.

    Parameters
    ----------
    folder : Path
        Of the run.
    config : dict
        The run's; a checkpoint that holds another is not used.
    """
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            if not path.is_file():  # a pipe would never end
                raise BarError("it is no file")
            content = path.read_bytes()
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise BarError("it is damaged, or no checkpoint")
            state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
            if state["config"] | {"format": 0} != config | {"format": 0}:
                raise BarError("it belongs to another run")
            if not (state["training"] and all(r["phase"] for r in state["records"]) and state["seconds"] >= 0):
                raise BarError("it is not that of a run")
        except Exception as error:  # what torch raises for a file from anywhere cannot be listed
            log.warning("%s is not used: %s", path, first_line(error))
        else:
            yield state


def remove_checkpoints(folder: Path) -> None:
    """Remove what only an unfinished run needs, and what writers that were killed have left of their files."""
    partial = [path for path in folder.glob("*.partial") if _PARTIAL.fullmatch(path.name)]
    for path in (folder / CHECKPOINT, folder / PREVIOUS, *partial):
        path.unlink(missing_ok=True)
