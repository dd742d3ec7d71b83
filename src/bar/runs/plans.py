"""What a sweep is to run, as a small YAML file: read, and kept with the records.

A file is a mapping of fields of `bar.RunConfig` to values, or a list of such mappings. Of method, pruning_factor and
seed there may be lists: every method runs at every factor with every seed.
"""

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from bar import files, methods
from bar.errors import BarError, nearest, shown
from bar.runs.config import RunConfig

LISTS = {"method": methods.STRUCTURED, "pruning_factor": (2.0, 4.0, 8.0, 16.0), "seed": (0, 1, 2)}  # and defaults
_FIELDS = {field.name for field in dataclasses.fields(RunConfig)} - {"source", "model_source", "weights_source"}
_LARGEST = 2**20  # bytes of a file
_MOST = 100_000  # runs


class _Loader(yaml.SafeLoader):
    """YAML as is, but for a name that is there twice: PyYAML would keep the second without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode) and name.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name.value!r:.60} is there twice", name.start_mark
                )
            seen.add(name.value if isinstance(name, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def read(path: Path) -> list[dict]:
    """Read a file.

    Parameters
    ----------
    path : Path
        A YAML file.

    Returns
    -------
    list of dict
        Its mappings.

    Raises
    ------
    BarError
        If it cannot be read, is no such file, or names a field that a run does not have.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "small.yaml")
    ...     _ = path.write_text("{method: [bar, l0], pruning_factor: 4, seed: [0, 1], limit: 160}")
    ...     plan = read(path)
    >>> [config.name for config in configs_of(plan)][:2]
    ['digits-wrn-10-1-bar-x4-seed0-quick-201493', 'digits-wrn-10-1-l0-x4-seed0-quick-201493']
    """
    try:
        if not path.is_file():
            raise BarError("it is a folder" if path.is_dir() else "there is no such file")
        if path.stat().st_size > _LARGEST:
            raise BarError(f"it has more than {_LARGEST:,} bytes")
        held = yaml.load(path.read_text("utf-8"), _Loader)  # a safe one
        plan = held if isinstance(held, list) else [held]
        if not plan:
            raise BarError("it has no runs")
        for number, part in enumerate(plan, 1):
            with _located(number, plan):
                _check(part)
    except UnicodeDecodeError:
        reason = "it is not in UTF-8: save it in that encoding"
    except RecursionError:
        reason = "its brackets are nested too deeply"
    except yaml.YAMLError as error:
        reason = "it is not YAML: " + " ".join(str(error).split())
    except (OSError, ValueError) as error:  # a BarError is one
        reason = getattr(error, "strerror", None) or str(error)
    else:
        return plan
    raise BarError(_unread(path, reason))


def _unread(path: Path, reason: str) -> str:
    return f"cannot read the sweep {str(path)!r:.200}: {reason:.500}"


@contextlib.contextmanager
def _located(number: int, plan: Sequence, path: Path | None = None) -> Iterator[None]:
    """Let an error name the mapping, where there are several, and the file."""
    try:
        yield
    except BarError as error:
        reason = f"in mapping {number} of {len(plan)}: " * (len(plan) > 1) + str(error)
        raise BarError(_unread(path, reason) if path else reason) from error


def _check(part: object) -> None:
    if part is None:
        raise BarError("nothing is in it: it must hold fields and values, such as method: [bar, l0]")
    if not (isinstance(part, dict) and part and all(isinstance(name, str) for name in part)):
        raise BarError(f"it must hold fields and values, such as method: [bar, l0], not {shown(part)}")
    for name, value in part.items():
        if name not in _FIELDS:
            nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(e, dict) for e in value))
            hint = "mappings stand in the file as a list, without a name above" if nested else nearest(name, _FIELDS)
            raise BarError(f"a run has no {name!r:.60}: {hint}")
        if isinstance(value, list) and (name not in (*LISTS, "epochs") or not value):
            raise BarError(f"{name} is {shown(value)}; of {', '.join(LISTS)} there may be lists, but no empty ones")


def configs_of(plan: Sequence[Mapping], path: Path | None = None) -> list[RunConfig]:
    """Return the runs of a plan, each once: by seed, then factor, then method.

    Raises a BarError if there are too many, or a value cannot be one of a run: it names the mapping, and the file if
    that is given.
    """
    parts = [dict(part) for part in plan]
    axes = [[_listed(part.pop(name, usual)) for name, usual in LISTS.items()] for part in parts]
    if sum(len(names) * len(factors) * len(seeds) for names, factors, seeds in axes) > _MOST:
        reason = f"a sweep is of at most {_MOST:,} runs"
        raise BarError(_unread(path, reason) if path else reason)
    configs: dict[RunConfig, None] = {}
    for number, (part, (names, factors, seeds)) in enumerate(zip(parts, axes, strict=True), 1):
        with _located(number, plan, path):
            for seed, factor, name in itertools.product(seeds, factors, names):
                configs[RunConfig(method=name, pruning_factor=factor, seed=seed, **part)] = None
    return list(configs)


def _listed(value: object) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def keep(plan: Sequence[Mapping], out: Path) -> Path:
    """Write a plan into the folder of its records, as ``sweep-….yaml``; returns the path."""
    text = yaml.safe_dump([_plain(part) for part in plan], sort_keys=False, allow_unicode=True)
    path = out / f"sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
    with files.writing(path):
        out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        files.write_text(path, "# `bar sweep` with this file makes the runs beside it.\n" + text)
    return path


def _plain(part: Mapping) -> dict:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in part.items()}
