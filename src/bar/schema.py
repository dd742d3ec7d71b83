"""Schemas of a run's JSON files, against which each file is checked whenever it is read.

A schema maps each field to a check: words that describe a valid value, and a function that tests one. Fields that no
schema names are accepted: a newer version may have added them.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from bar.errors import BarError

FORMAT = 1  # of the files written now; older files have no such field, and count as 0
CONFIG, RESULT, TRIAL = "config.json", "result.json", "trial.json"
_LARGEST = 8 * 2**20  # bytes; larger files are refused, since what is parsed can take thirty times as much memory
_DEEPEST = 40  # levels of nested lists and dicts

Check = tuple[str, Callable[[object], bool]]


def whole(least: int, most: int = 2**63 - 1) -> Check:
    """Check for a whole number in [least, most]; booleans are refused."""
    return f"a whole number >= {least}", lambda v: type(v) is int and least <= v <= most


def number(least: float = -math.inf, most: float = math.inf) -> Check:
    """Check for a finite number in [least, most]; booleans are refused."""
    words = "a number" if math.isinf(least) else f"a number >= {least:g}"
    words += "" if math.isinf(most) else f" and <= {most:g}"
    return words, lambda v: type(v) in (int, float) and abs(v) < 1e300 and least <= v <= most


def or_none(check: Check) -> Check:
    """Check for null, or for a value that passes the given check."""
    return f"{check[0]} or null", lambda v: v is None or check[1](v)


def list_of(check: Check, length: int | None = None) -> Check:
    """Check for a list, of a given length if any, whose items all pass a check."""

    def right(value) -> bool:
        return isinstance(value, list) and len(value) == (length or len(value)) and all(map(check[1], value))

    return f"a list of {length or ''} {check[0]}", right


def dict_of(check: Check) -> Check:
    """Check for a dict whose values all pass a check."""
    return f"a dict of {check[0]}", lambda v: isinstance(v, dict) and all(map(check[1], v.values()))


def _writable(value) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and no terminal can show
        return False


def _all_finite(value) -> bool:
    """Whether all numbers in nested lists and dicts are finite: json reads NaN and Infinity, which JSON has not."""
    if isinstance(value, dict | list):
        return all(map(_all_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


TEXT: Check = ("a text", _writable)
FLAG: Check = ("true or false", lambda v: isinstance(v, bool))
DICT: Check = ("a dict of finite numbers, texts and the like", lambda v: isinstance(v, dict) and _all_finite(v))
SHA256: Check = ("a SHA-256 in hexadecimal", lambda v: isinstance(v, str) and bool(re.fullmatch("[0-9a-f]{64}", v)))
_SHARE, _COUNT, _POSITIVE = number(0, 1), whole(1), number(1e-300)

CONFIG_FIELDS = {
    "dataset": TEXT, "model": TEXT, "method": TEXT, "pruning_factor": number(1), "metric": or_none(TEXT),
    "preset": TEXT, "seed": whole(0, 2**64 - 1), "size": or_none(_COUNT), "limit": or_none(_COUNT),
    "batch_size": or_none(_COUNT), "epochs": or_none(list_of(whole(0), 3)), "schedule": TEXT,
    "distill": or_none(FLAG), "start": TEXT, "gates": TEXT,
    "options": DICT, "source": SHA256, "fingerprint": SHA256, "model_source": SHA256, "weights_file": TEXT,
    "weights_source": SHA256,
}  # fmt: skip
RESULT_FIELDS = CONFIG_FIELDS | {
    "dataset_label": TEXT, "training_images": _COUNT, "input_size": list_of(_COUNT, 3), "mean": list_of(number()),
    "std": list_of(number()), "settings": DICT, "accuracy": _SHARE, "accuracy_unpruned": _SHARE,
    "validation_accuracy": _SHARE, "accuracy_cut": or_none(_SHARE), "accuracy_recalibrated": or_none(_SHARE),
    "size_before_settling": or_none(number(0)), "volume_regular": or_none(_COUNT), "flops_regular": or_none(_COUNT),
    "volume": _COUNT, "volume_full": _COUNT, "volume_factor": _POSITIVE, "flops": _COUNT, "flops_full": _COUNT,
    "flops_factor": _POSITIVE, "parameters": _COUNT, "parameters_full": _COUNT, "weights": whole(0),
    "weights_full": _COUNT, "budget": _POSITIVE, "search": or_none(DICT), "features": dict_of(whole(0)),
    "features_full": dict_of(_COUNT), "areas": dict_of(_COUNT), "weights_sha256": SHA256,
    "architecture_sha256": SHA256, "seconds": number(0), "hardware": TEXT, "processes": _COUNT,
    "versions": dict_of(TEXT), "commit": or_none(TEXT), "source_tree": or_none(TEXT), "processor": TEXT,
    "instruction_set": TEXT, "threads": _COUNT, "gated": dict_of(_COUNT),
    "gpu_memory": whole(0), "gpu_memory_total": _COUNT,
}  # fmt: skip
TRIAL_FIELDS = {"lambda": _POSITIVE, "volume": _COUNT, "flops": _COUNT, "seconds": number(0), "run": TEXT}
# Fields that records may lack: those added after some records were written, and those of single weights.
_OPTIONAL = {
    "fingerprint", "options", "source", "model_source", "weights_file", "weights_source", "start", "gates", "search",
    "processes", "weights", "weights_full", "architecture_sha256", "source_tree", "processor", "instruction_set",
    "threads", "gated", "batch_size", "gpu_memory", "gpu_memory_total", "run",
}  # fmt: skip


def read(path: Path, fields: Mapping[str, Check]) -> dict:
    """Read one of the JSON files of a run.

    Parameters
    ----------
    path : Path
        The file.
    fields : mapping of str to Check
        The schema.

    Returns
    -------
    dict
        The content of the file, with "format" if the file has that field.

    Raises
    ------
    BarError
        If the file cannot be read, lacks a required field, has an invalid one, or was written in a newer format; the
        message names the file.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, TRIAL)
    ...     _ = path.write_text('{"lambda": 0.5, "volume": 0, "flops": 9, "seconds": 1.5}')
    ...     try:
    ...         read(path, TRIAL_FIELDS)
    ...     except BarError as error:
    ...         print(str(error).partition(TRIAL)[2])
    : volume is 0, not a whole number >= 1. Restore the file, or remove the folder to run it again
    """
    held = load(path, "the run")
    try:
        if not isinstance(held, dict):
            raise BarError(f"it holds {_shown(held)} instead of fields and values")
        version = held.get("format", 0)
        if type(version) is not int or not 0 <= version <= FORMAT:
            raise BarError(f"its format is {_shown(version)}; this version of bar reads those up to {FORMAT}")
        for field, (words, right) in fields.items():
            if field not in held:
                if field not in _OPTIONAL:
                    raise BarError(f"{field} is missing")
            elif not right(held[field]):
                raise BarError(f"{field} is {_shown(held[field])}, not {words}")
    except BarError as error:
        raise BarError(
            f"cannot read the run in {path.parent}: {path.name}: {error}. Restore the file, or remove the folder to "
            "run it again"
        ) from None
    return held


def load(path: Path, what: str, most: int = _LARGEST):
    """Read a JSON file that may come from anywhere.

    Parameters
    ----------
    path : Path
        The file.
    what : str
        What the file belongs to, for the message.
    most : int
        The largest size in bytes.

    Returns
    -------
    object
        Its content, with lists and dicts nested at most 40 levels deep.

    Raises
    ------
    BarError
        If the file is missing, too large, no JSON or nested too deeply; nothing else is raised.
    """
    try:
        if not path.is_file():  # a pipe would never end
            raise BarError("it is missing, or no file")
        if path.stat().st_size > most:
            raise BarError(f"it has more than {most:,} bytes")
        value = json.loads(path.read_text("utf-8"))
        _check_depth(value, _DEEPEST)
    except RecursionError:
        reason = "its brackets are nested too deeply"
    except (OSError, ValueError) as error:  # no JSON, no UTF-8, a number of thousands of digits, or a BarError
        reason = getattr(error, "strerror", None) or str(error)
    else:
        return value
    raise BarError(f"cannot read {what} in {path.parent}: {path.name}: {reason}")


def _check_depth(value, left: int) -> None:
    """Raise a RecursionError if a value is nested deeper than ``left`` levels, as printing or comparing it might."""
    if isinstance(value, dict | list):
        if left == 0:
            raise RecursionError
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)


def _shown(value) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
