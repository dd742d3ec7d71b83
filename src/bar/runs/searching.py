"""The search for the sparsity weight that meets a budget, by trials that are recorded."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bar import files, schema
from bar.cost import Cost
from bar.methods.search import chosen, next_weight
from bar.runs.config import RunConfig
from bar.runs.places import TRIAL, alone, make_folder, tidy

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def search(
    config: RunConfig, root: Path, full: Cost, fabric: Fabric, trial: Callable[[float, Path], tuple[dict, float]]
) -> dict:
    """Search for the sparsity weight that meets the budget, by trials that all budgets share and that are recorded.

    Parameters
    ----------
    config : RunConfig
        Of a method whose sparsity weight is searched.
    root : Path
        The folder of the trials.
    full : Cost
        Of the unpruned network.
    fabric : Fabric
        The processes at work; all of them search, the first one writes.
    trial : callable
        Trains with a sparsity weight in a folder; returns the record of the last epoch, and the seconds that it took.

    Returns
    -------
    dict
        The field "search" of the run's record: "lambda", "how", "trials_made" (by this run), "trials", "seconds".
    """
    limit = getattr(full, config.metric) / config.pruning_factor
    while True:
        fabric.barrier()
        trials = recorded_trials(root)
        made = sum(trial.get("run") == config.name for trial in trials)  # before an interruption, too
        sizes = [(trial["lambda"], trial[config.metric]) for trial in trials]
        lam = next_weight(sizes, limit, config.values["first"], made=made)
        if lam is None:
            break
        _try(lam, root / f"{lam:.6g}", fabric, trial, config.name)
    choice = chosen(sizes, limit)
    for path in root.glob(f"*/{TRIAL}") if fabric.is_global_zero else ():
        tidy(path.parent)
    return {
        "lambda": choice.lam, "how": choice.how, "trials_made": made, "trials": recorded_trials(root),
        "seconds": sum(trial["seconds"] for trial in recorded_trials(root)),
    }  # fmt: skip


def recorded_trials(root: Path) -> list[dict]:
    """Read the trials that are recorded in a folder; raises a BarError if one is damaged."""
    return [schema.read(path, schema.TRIAL_FIELDS) for path in sorted(root.glob(f"*/{TRIAL}"))]


def _try(
    lam: float, folder: Path, fabric: Fabric, trial: Callable[[float, Path], tuple[dict, float]], run: str
) -> None:
    """Train with a sparsity weight, and record the size that it leads to."""
    make_folder(folder)
    with alone(folder) if fabric.is_global_zero else contextlib.nullcontext():
        fabric.barrier()
        if not (folder / TRIAL).exists():  # another process may just have made it
            record, seconds = trial(lam, folder)
            if fabric.is_global_zero:
                held = {"lambda": lam, "volume": record["volume"], "flops": record["flops"], "seconds": seconds}
                held["run"] = run  # which made it
                files.write_text(folder / TRIAL, json.dumps(held, indent=1))
                tidy(folder)
        fabric.barrier()
