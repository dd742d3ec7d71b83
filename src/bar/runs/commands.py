"""The command that makes a run alone: to repeat one that has failed, and to hand one to several processes."""

import dataclasses
import shlex
from pathlib import Path

from bar.runs.config import RunConfig

_OTHERS = {"method", "options", "source", "model_source", "weights_source"}  # the first two apart, others filled in
_TYPED = [field.name for field in dataclasses.fields(RunConfig) if field.name not in _OTHERS]


def words(config: RunConfig) -> list[str]:
    """Return what is typed after ``bar run`` for a configuration; what is as usual is left out.

    Parameters
    ----------
    config : RunConfig
        What to run.

    Returns
    -------
    list of str

    Examples
    --------
    >>> words(RunConfig(method="l0", pruning_factor=8, epochs=(2, 1, 0), options={"rule": "l0"}))
    ['--method', 'l0', '--pruning-factor', '8', '--epochs', '2', '1', '0', '-o', 'rule=l0']
    """
    usual = RunConfig(method=config.method, metric=config.metric, weights=config.weights)
    kind, fields = config.kind, {name: getattr(config, name) for name in _TYPED}
    typed = [] if config.method == RunConfig().method else ["--method", config.method]
    if kind is None or config.metric == kind.metrics[0]:
        del fields["metric"]
    for name, value in fields.items():
        if name not in ("metric", "weights") and value == getattr(usual, name):
            continue
        if name == "distill":
            typed.append("--distill" if value else "--no-distill")
        elif value is not None:
            typed += [f"--{name.replace('_', '-')}", *map(_text, value if isinstance(value, tuple) else (value,))]
    for name, value in config.options.items():
        typed += ["-o", f"{name}={_text(value)}"]
    return typed


def line(config: RunConfig, folder: Path, root: Path | None = None) -> str:
    """Return the whole command, for a shell.

    Examples
    --------
    >>> line(RunConfig(seed=3), Path("my runs/one"))
    "bar run --seed 3 --out 'my runs/one'"
    """
    return shlex.join(["bar", "run", *words(config), "--out", str(folder), *(["--data", str(root)] if root else [])])


def _text(value: object) -> str:
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)
