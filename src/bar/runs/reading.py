"""Reading back what runs have recorded."""

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from bar import schema
from bar.errors import BarError, shown
from bar.methods.gated import decoded
from bar.runs.config import RunConfig
from bar.runs.places import CONFIG, LOCK, METRICS_FILE, RESULT

# Files of a run that ended before it wrote its config: it waited for the unpruned network, or was killed.
_BEFORE = re.compile(rf"{re.escape(LOCK)}|tensorboard|{re.escape(CONFIG)}\.\d+\.partial")

log = logging.getLogger(__name__)


def read(folder: Path | str, wanted: dict | None = None) -> dict | None:
    """Read the record of a run.

    Parameters
    ----------
    folder : path
        A run's folder; it need not exist.
    wanted : dict, optional
        The config that the folder must have been made with.

    Returns
    -------
    dict or None
        What result.json holds: accuracy (on test images), volume, flops, parameters, their like of the full network,
        budget, settings, hardware and others; None if the folder holds no finished run.

    Raises
    ------
    BarError
        If the folder holds another config, or a record that cannot be read.
    """
    folder = Path(folder)
    try:
        if wanted is not None:
            _check_config(folder, wanted)
        elif (folder / CONFIG).exists():
            schema.read(folder / CONFIG, schema.CONFIG_FIELDS)
        result = folder / RESULT  # a broken link is a lost record, not one that was never made
        return schema.read(result, schema.RESULT_FIELDS) if result.exists() or result.is_symlink() else None
    except OSError as error:
        raise BarError(f"cannot read the run in {folder}: {error.strerror or error}") from error


def _check_config(folder: Path, wanted: dict) -> None:
    """Refuse a folder that holds a run with another config, or something other than a run."""
    if not (folder / CONFIG).exists():
        if folder.exists() and (not folder.is_dir() or not all(_BEFORE.fullmatch(p.name) for p in folder.iterdir())):
            raise BarError(f"{folder} exists and is not the folder of a run; choose another")
        return
    held = schema.read(folder / CONFIG, schema.CONFIG_FIELDS)
    held.pop("format", None)
    held = RunConfig(method=wanted["method"]).recorded() | held  # defaults, for fields that are younger than the folder
    differs = [k for k in {**held, **wanted} if held.get(k) != wanted.get(k) and not _same_file(k, held, wanted)]
    if differs == ["fingerprint"]:
        other = "on other images" if "fingerprint" in held else "from before records knew their images"
        raise BarError(f"{folder} already holds this run {other}. Choose another folder, or remove it")
    if differs:
        what = ", ".join(
            f"{ascii(k)[1:-1]:.60} {shown(held.get(k))} instead of {shown(wanted.get(k))}" for k in differs[:9]
        ) + ", …" * (len(differs) > 9)
        raise BarError(f"{folder} already holds another run: {what}. Choose another folder, or remove it")


def _same_file(key: str, held: dict, wanted: dict) -> bool:
    """Whether a field names a file by another path, which does not matter where it is the same file."""
    digest = {"method": "source", "weights_file": "weights_source"}.get(key)
    if digest is None or held.get(digest) is None or held[digest] != wanted.get(digest):
        return False
    names = (str(one[key]).rpartition(":")[2] for one in (held, wanted))  # of the class in the file
    return key == "weights_file" or next(names) == next(names)


def metrics(folder: Path | str) -> pd.DataFrame:
    """Read the epochs of a run, a row each, as far as it has come.

    Parameters
    ----------
    folder : path
        Of a run, finished or not.

    Returns
    -------
    DataFrame
        Columns as `bar.training.Training` and the method name them: phase, epoch, loss, accuracy, size and others; one
        that an epoch lacks is NaN there. Empty before the first epoch is over.

    Raises
    ------
    BarError
        If metrics.jsonl is missing or damaged.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "metrics.jsonl").write_text('{"phase": "train", "epoch": 1, "accuracy": 0.5}\\n')
    ...     metrics(folder).accuracy.tolist()
    [0.5]
    """
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        raise BarError(f"{folder} holds no {METRICS_FILE}: is it the folder of a run?")
    try:
        text = path.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1]  # a run in progress, or one that was killed, may have begun a line
        if not all(isinstance(json.loads(line), dict) for line in whole.splitlines()):
            raise BarError("not every line holds the fields of an epoch")
        return pd.read_json(io.StringIO(whole), lines=True)
    except (OSError, ValueError, RecursionError) as error:
        raise BarError(f"cannot read {path}: {error}") from error


def gates(folder: Path | str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the state of each gate of a run, epoch by epoch.

    Parameters
    ----------
    folder : path
        Of a finished run of a method with gates.

    Returns
    -------
    dict of str to (ndarray, ndarray)
        Convolution -> scores (log alpha for hard concrete gates), float16, and which features were alive, bool; both of
        shape (epochs of pruning, features). Empty if the record has no gates.

    Raises
    ------
    BarError
        If there is no such run, it is not finished, or its record is damaged.

    Examples
    --------
    >>> import bar, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = bar.run(RunConfig(pruning_factor=2, limit=64, epochs=(2, 0, 0)), folder + "/run")
    ...     scores, alive = gates(folder + "/run")["conv1"]
    ...     print(scores.shape, read(folder + "/run")["pruning_factor"], sorted(records(folder).method))
    (2, 16) 2 ['bar', 'unpruned']
    """
    record, epochs = read(folder), metrics(folder)
    if record is None:
        raise BarError(f"{folder} holds no finished run")
    widths = record.get("gated", {})
    if not widths or "gates" not in epochs:
        return {}
    states = [decoded(held) for held in epochs.gates[epochs.phase == "prune"]]
    if any(len(score) != sum(widths.values()) for score, _ in states):
        raise BarError(f"{folder}: {METRICS_FILE} has other gates than {RESULT}")
    places = np.cumsum(list(widths.values()))[:-1]
    score, alive = (np.split(np.stack(part), places, axis=1) for part in zip(*states, strict=True))
    return dict(zip(widths, zip(score, alive, strict=True), strict=True))


def records(*roots: Path | str) -> pd.DataFrame:
    """Read all finished runs below some folders, a row each; a record that cannot be read is left out, with a warning.

    Parameters
    ----------
    *roots : path
        Folders, such as ``runs``; one that does not exist holds no runs.

    Returns
    -------
    DataFrame
        The fields of `read`, and the column ``folder``; empty, without columns, if there are no runs.
    """
    return pd.DataFrame(list(finished(*roots)))


def finished(*roots: Path | str) -> Iterator[dict]:
    """The same as `records`, each as it was written: a dict, with its ``folder``."""
    seen = set()
    for root in roots:
        for path in sorted(Path(root).rglob("*.json")):  # the whole name would not find broken links
            if path.name != RESULT or (place := path.parent.resolve()) in seen:
                continue
            seen.add(place)
            try:
                yield {**read(path.parent), "folder": str(path.parent)}
            except BarError as error:
                log.warning("left out: %s", error)
