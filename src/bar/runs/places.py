"""The folder of a run: where it is, the names of its files, its lock, and what is removed at the end."""

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
    """Return the folder of a run: the given one, or one beside it if that holds a run on other images.

    Parameters
    ----------
    folder : path
        The folder that `run` was given, or its default.
    config : RunConfig
        Of the run.
    fingerprint : str
        Of its data, as in records.

    Returns
    -------
    Path
        The given folder; but if it has the default name, ``config.name``, and holds a run on other images, or one
        without a fingerprint, then the folder of that name and the first digits of the fingerprint.
    """
    folder = Path(folder)
    if folder.name != config.name:
        return folder
    try:
        held = schema.read(folder / CONFIG, schema.CONFIG_FIELDS).get("fingerprint")
    except BarError:  # the config is missing, or cannot be read, which `read` will say
        return folder
    return folder if held == fingerprint else folder.with_name(f"{folder.name}-data{fingerprint[:8]}")


def make_folder(folder: Path) -> None:
    """Create a folder, and all above it; raises a BarError if that fails."""
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
    """Remove the checkpoints and the lock of a recorded run; an error is ignored."""
    with contextlib.suppress(OSError):
        storage.remove_checkpoints(folder)
        (folder / LOCK).unlink(missing_ok=True)
