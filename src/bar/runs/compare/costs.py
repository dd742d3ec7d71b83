"""What a table of many runs costs: its steps, and how long they take on so many GPUs in the engine's order."""

import heapq
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from bar.data import num_batches
from bar.runs.cluster import tasks_of
from bar.runs.config import RunConfig, total_epochs
from bar.runs.sources import CIFAR10, CIFAR100, FACTORS, ITERATIVE, LEARNED, MIO_ITERATIVE, MIO_LEARNED

# Training images; of CIFAR a tenth is held out. Of Mio-TCD: its 519,164 (Luo et al. 2018), less as large a part.
IMAGES = {"cifar10": 45_000, "cifar100": 45_000, MIO_LEARNED["dataset"]: 519_164 - 51_916}


def table_of_the_paper(seeds: int = 5) -> list[RunConfig]:
    """Return the runs of the paper's full table: three data sets, eight methods, four factors, and so many seeds."""
    learned = ("bar", *LEARNED)
    parts = [(learned + ITERATIVE, CIFAR10), (learned + ITERATIVE, CIFAR100)]
    parts += [(learned, MIO_LEARNED), (ITERATIVE, MIO_ITERATIVE)]
    return [
        RunConfig(method=method, pruning_factor=factor, seed=seed, **fields)
        for methods, fields in parts
        for seed in range(seeds)
        for factor in FACTORS
        for method in methods
    ]


def steps_of(config: RunConfig, images: int, trials: float = 0.0) -> float:
    """Return the steps of training that a run makes, with so many trials if it has to search for its sparsity weight.

    Examples
    --------
    >>> steps_of(RunConfig(dataset="cifar10", preset="paper"), 45_000)  # 130 epochs of 703 batches
    91390.0
    """
    searches = bool(config.kind and config.kind.searched and config.values["lam"] is None)
    epochs = total_epochs(config) + searches * trials * total_epochs(config, trial=True)
    return float(epochs * num_batches(images, config.settings.batch_size, drop_last=True))


def relative_steps(records: pd.DataFrame) -> dict[str, float]:
    """Return how long a step of each method takes, over one of the unpruned network's: medians of recorded runs.

    Parameters
    ----------
    records : DataFrame
        From `bar.runs.records`: runs of one network on one data set, unpruned ones among them.

    Returns
    -------
    dict of str to float
        Method -> mean step of all its phases, whose networks become smaller, over that of the unpruned network.
    """
    seconds: dict[str, list[float]] = {}
    for record in records.to_dict("records"):
        factor = max(record["pruning_factor"], 1.01)  # the unpruned network's is 1
        config = RunConfig(method=record["method"], pruning_factor=factor, **_epochs(record))
        steps = steps_of(config, record["training_images"])
        seconds.setdefault(record["method"], []).append(record["seconds"] / steps)
    unit = statistics.median(seconds["unpruned"])
    return {method: statistics.median(taken) / unit for method, taken in seconds.items()}


def _epochs(record: Mapping) -> dict:
    return {"epochs": tuple(record["epochs"])} if isinstance(record.get("epochs"), list) else {}


def mean_trials(records: pd.DataFrame) -> float:
    """Return how many trials a run made, in the mean, that had to search for its sparsity weight."""
    made = [search["trials_made"] for search in records.search if isinstance(search, Mapping)]
    return statistics.mean(made)


def makespan(
    configs: Sequence[RunConfig], seconds: Callable[[RunConfig], float], places: int, overhead: float = 0.0
) -> float:
    """Return how long a sweep takes with so many runs at a time: begun in the engine's order, as soon as they may.

    Parameters
    ----------
    configs : sequence of RunConfig
        What was asked for; the unpruned networks that they need are added, each once.
    seconds : callable
        How long a run takes, its own trials included.
    places : int
        Runs at a time, each on a GPU of its own, say.
    overhead : float
        Seconds that the engine adds to each run.

    Returns
    -------
    float
        Seconds, from the first beginning to the last end.

    Examples
    --------
    >>> runs = [RunConfig(pruning_factor=factor) for factor in (2, 4, 8)]
    >>> [makespan(runs, lambda config: 10.0, places) for places in (1, 2, 64)]
    [40.0, 30.0, 20.0]
    """
    waiting, ended, now = tasks_of(configs), set(), 0.0
    running: list[tuple[float, int, RunConfig]] = []
    while waiting or running:
        while len(running) < places:
            task = next((task for task in waiting if task.after <= ended), None)
            if task is None:
                break
            waiting.remove(task)
            heapq.heappush(running, (now + seconds(task.config) + overhead, len(waiting), task.config))
        now, _, config = heapq.heappop(running)
        ended.add(config)
    return now


def work(configs: Iterable[RunConfig], seconds: Callable[[RunConfig], float]) -> float:
    """Return the seconds of all runs together, the unpruned networks that they need among them.

    Examples
    --------
    >>> work([RunConfig(seed=seed) for seed in (0, 1)], lambda config: 10.0)
    40.0
    """
    return sum(seconds(task.config) for task in tasks_of(configs))
