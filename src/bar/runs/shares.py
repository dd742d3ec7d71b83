"""How much of a GPU a run needs: from the memory that recorded ones of its kind took."""

from collections.abc import Iterable, Mapping

from bar.runs.config import RunConfig

MOST_PER_GPU = 8  # runs at a time: more of them would only wait for one another
CONTEXT = 600 * 2**20  # bytes of a GPU that a process takes beside what torch counts
KIND = ("model", "dataset", "size", "batch_size", "method", "preset")  # decides how much memory a run takes


def kind(config: RunConfig) -> tuple:
    """Return what decides how much memory a run takes."""
    return tuple(getattr(config, name) for name in KIND)


def measured(records: Iterable[Mapping]) -> dict[tuple, float]:
    """Return the share of a GPU that runs of each kind need.

    Parameters
    ----------
    records : iterable of mapping
        Those without ``gpu_memory`` are left out.

    Returns
    -------
    dict of tuple to float
        `kind` -> 1 / n for n runs at a time, at most `MOST_PER_GPU`.

    Examples
    --------
    >>> config = RunConfig()
    >>> measured([config.recorded() | {"gpu_memory": 20 * 2**30, "gpu_memory_total": 80 * 2**30}])[kind(config)]
    0.3333333333333333
    """
    shares: dict[tuple, float] = {}
    for record in records:
        if record.get("gpu_memory"):
            need = (1.15 * record["gpu_memory"] + CONTEXT) / record["gpu_memory_total"]
            which = tuple(record.get(name) for name in KIND)
            shares[which] = max(1 / max(1, min(MOST_PER_GPU, int(1 / need))), shares.get(which, 0))
    return shares
