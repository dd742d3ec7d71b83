"""The folder of a run: its files, where it is, and how it is left."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import filelock

from bar import files, schema, storage
from bar.errors import BarError
from bar.runs.config import RunConfig
from bar.schema import CONFIG, RESULT, TRIAL

__all__ = ["CONFIG", "LOCK", "METRICS_FILE", "RESULT", "TRIAL", "alone", "make_folder", "place", "tidy"]

METRICS_FILE, LOCK = "metrics.jsonl", ".lock"

log = logging.getLogger(__name__)


def place(folder: Path | str, config: RunConfig, fingerprint: str) -> Path:
    """Where a run that was given a folder is: there, or beside it.

    Parameters
    ----------
    folder : path
        What `run` was given, or would take.
    config : RunConfig
        The run's.
    fingerprint : str
        Of its data; records have it, too.

    Returns
    -------
    Path
        The folder; but if it is called ``config.name``, as nobody said otherwise, and holds a run on other images, or
        one from before records knew theirs, then that name and the first digits of the fingerprint.
    """
    folder = Path(folder)
    if folder.name != config.name:
        return folder
    try:
        held = schema.read(folder / CONFIG, schema.CONFIG_FIELDS).get("fingerprint")
    except BarError:  # there is none, or none that can be read, which `read` will say
        return folder
    return folder if held == fingerprint else folder.with_name(f"{folder.name}-data{fingerprint[:8]}")


def make_folder(folder: Path) -> None:
    """Make it, and all above it."""
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep two processes from training in one folder: the second one waits."""
    lock = filelock.FileLock(folder / LOCK)
    with files.writing(folder):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            log.warning("%s: another process is at work here; waiting for it", folder)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def tidy(folder: Path) -> None:
    """Remove what a run that is recorded needs no more; where that is forbidden, it does no harm."""
    with contextlib.suppress(OSError):
        storage.remove_checkpoints(folder)
        (folder / LOCK).unlink(missing_ok=True)
