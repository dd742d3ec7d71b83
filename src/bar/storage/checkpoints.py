"""Checkpoints of unfinished runs."""

import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bar import files, schema
from bar.errors import BarError
from bar.storage.reasons import first_line

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
_NUMBERS = (  # fields that are numbers in an epoch's record, where it has them
    "loss", "data_loss", "accuracy", "accuracy_cut", "seconds", "volume", "flops", "size", "budget", "barrier",
    "size_before_settling", "volume_regular", "flops_regular",
)  # fmt: skip
_PARTIAL = re.compile(r".+\.\d+\.partial")

log = logging.getLogger(__name__)


def save_checkpoint(state: dict, folder: Path) -> None:
    """Write the state of a run, whole or not at all; the previous checkpoint is kept beside it.

    Parameters
    ----------
    state : dict
        Tensors, numbers, strings, and lists and dicts of them.
    folder : Path
        Of the run.

    Raises
    ------
    BarError
        If it cannot be written; the checkpoint before is not lost.
    """
    content = io.BytesIO()
    torch.save(state, content)
    view = content.getbuffer()
    # the hash comes first: torch does not notice a changed byte
    files.write(folder / CHECKPOINT, hashlib.sha256(view).digest(), view, previous=folder / PREVIOUS)


def load_checkpoints(folder: Path, config: dict, take: Callable[[dict], None] = lambda state: None) -> Iterator[dict]:
    """Yield the states that can be used, the latest first; a warning says why another cannot be used.

    Parameters
    ----------
    folder : Path
        Of the run.
    config : dict
        Of the run; a checkpoint of another config is not used.
    take : callable
        Called with each state; one for which it raises an error cannot be used either.

    Yields
    ------
    dict
        What `save_checkpoint` was given.

    Raises
    ------
    BarError
        If permissions forbid reading a checkpoint.
    """
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        try:
            if not path.exists():
                continue
            state = _read(path)
            if state["config"] | {"format": 0} != config | {"format": 0}:
                raise BarError("it belongs to another run")
            if not _is_run_state(state):
                raise BarError("it is not that of a run")
            take(state)
        except PermissionError as error:  # the run must not start over if permissions are restored later
            raise BarError(f"cannot read {path}: {error.strerror}") from error
        except Exception as error:  # what torch raises for a file from anywhere cannot be listed
            log.warning("%s is not used: %s", path, first_line(error))
        else:
            yield state


def _read(path: Path) -> dict:
    if not path.is_file():  # a pipe would never end
        raise BarError("it is no file")
    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise BarError("it is damaged, or no checkpoint")
    return torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)


def _is_run_state(state: dict) -> bool:
    """Whether a state holds valid records, a training of as many epochs, and the seconds that it took."""
    records = state["records"]
    right = isinstance(records, list) and all(map(_is_record, records)) and schema.number(0)[1](state["seconds"])
    if "lambda" in state["config"]:  # of a trial, whose results they are
        right = right and all({"volume", "flops"} <= record.keys() for record in records)
    return right and len(records) == state["training"]["done"]


def _is_record(record) -> bool:
    """Whether a record can be written as a line of metrics.jsonl, with numbers where all records have numbers."""
    if not isinstance(record, dict) or not {"phase", "epoch", "accuracy", "seconds"} <= record.keys():
        return False
    numbers = [record[name] for name in _NUMBERS if name in record]
    named = schema.TEXT[1](record["phase"]) and schema.whole(0)[1](record["epoch"])
    return named and all(map(schema.number()[1], numbers)) and json.dumps(record) != ""


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run, and the partial files that killed processes have left."""
    partial = [path for path in folder.glob("*.partial") if _PARTIAL.fullmatch(path.name)]
    for path in (folder / CHECKPOINT, folder / PREVIOUS, *partial):
        path.unlink(missing_ok=True)
