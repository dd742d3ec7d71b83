"""Training with a record and a checkpoint after each epoch, which goes on where it was interrupted."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from bar import files, storage
from bar.errors import BarError
from bar.runs.places import METRICS_FILE
from bar.training import Training

log = logging.getLogger(__name__)


def train(training: Training, folder: Path, config: dict, report: Callable[[dict], None]) -> tuple[list[dict], float]:
    """Train to the end, with a record and a checkpoint after each epoch.

    Parameters
    ----------
    training : Training
        At its beginning; if there is a checkpoint, it goes on from there.
    folder : Path
        Of the records and checkpoints.
    config : dict
        Stored in checkpoints; those of another config are not used.
    report : callable
        Called with the record of each epoch, first with those of epochs that are over.

    Returns
    -------
    records : list of dict
        A record an epoch, and one of the cut.
    seconds : float
        That the training took, interruptions left out.

    Raises
    ------
    BarError
        If the training fails (see `Training`), or a file cannot be read or written.
    """
    first = training.fabric.is_global_zero  # of several processes, this one writes
    records: list[dict] = []
    seconds = 0.0
    for state in storage.load_checkpoints(folder, config, lambda state: training.load_state_dict(state["training"])):
        records, seconds = state["records"], state["seconds"]
        log.warning("%s: going on after %d epochs", folder, sum(r["phase"] != "cut" for r in records))
        break
    if training.fabric.world_size > 1 and training.fabric.broadcast(len(records)) != len(records):
        raise BarError(f"{folder} does not show all processes the same checkpoint; the same command tries again")
    start = time.perf_counter()
    if not first:
        return records + list(training), seconds + time.perf_counter() - start
    files.write_text(folder / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in records))
    for record in records:
        report(record)
    for record in training:
        files.append_text(folder / METRICS_FILE, json.dumps(record) + "\n")
        records.append(record)
        storage.save_checkpoint({
            "config": config, "training": training.state_dict(), "records": records,
            "seconds": seconds + time.perf_counter() - start,
        }, folder)  # fmt: skip
        report(record)
    return records, seconds + time.perf_counter() - start
