"""What is recorded of the runs that the sources' figures and tables need, what is missing, and making that."""

import dataclasses
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bar import data, models, schema
from bar.errors import BarError
from bar.methods import own
from bar.runs.config import RunConfig, total_epochs
from bar.runs.reading import finished
from bar.runs.sweeps import sweep

KIND = ("model", "dataset", "size", "limit", "method", "preset", "epochs", "batch_size")  # decides how long a run takes
STEP = ("model", "dataset", "size", "method", "preset", "batch_size")  # and a step of one


class Stock:
    """The runs that are recorded below some folders, and how long they took.

    Parameters
    ----------
    *roots : path
        The folders; those that are not there hold nothing.

    Examples
    --------
    >>> stock = Stock("no such folder")
    >>> stock.has(RunConfig()), stock.seconds(RunConfig())
    (False, None)
    """

    def __init__(self, *roots: Path | str) -> None:
        self._places: dict[RunConfig, set[Path]] = {}  # the folders around those in today's format
        self._named: dict[tuple, set[Path]] = defaultdict(set)  # and around others, such as those with a user's files
        self._taken: dict[tuple, list[float]] = defaultdict(list)
        self._a_step: dict[tuple, list[float]] = defaultdict(list)  # seconds
        self._images: dict[tuple, int] = {}  # data set and limit -> training images
        tops = sorted({Path(root).resolve() for root in roots})
        for record in finished(*(top for top in tops if not set(top.parents) & set(tops))):
            self.add(record, Path(record["folder"]).parent)

    def add(self, record: Mapping, place: Path) -> None:
        """One more record, in a folder of that place."""
        config = config_of(record)
        held = self._places.setdefault(config, set()) if config else self._named[_name(record)]
        if record.get("format") == schema.FORMAT and "fingerprint" in record:
            held.add(place.resolve())
        if config:
            self._taken[_kind(config)].append(seconds_of(record))
            self._images[config.dataset, config.limit] = record["training_images"]
            if steps := self._steps(config):
                self._a_step[_kind(config, STEP)].append(seconds_of(record) / steps)

    def has(self, config: RunConfig, place: Path | None = None) -> bool:
        """Whether a run is recorded, there or anywhere, in today's format, in which a record knows its images."""
        held = self._places.get(config, set()) | self._named.get((config.name, config.method, config.model), set())
        return place.resolve() in held if place else bool(held)

    def has_old(self, config: RunConfig) -> bool:
        """Whether a run is recorded in an older format only: it is to be made again."""
        return config in self._places and not self.has(config)

    def seconds(self, config: RunConfig) -> float | None:
        """What runs of the same network, data, method and epochs took, their search included: the median.

        If there are none of these epochs or this limit, the steps that it has, each as long as in those that there are.
        """
        if taken := self._taken.get(_kind(config)):
            return statistics.median(taken)
        steps, a_step = self._steps(config), self._a_step.get(_kind(config, STEP))
        return steps * statistics.median(a_step) if steps and a_step else None

    def _steps(self, config: RunConfig) -> int | None:
        """The steps of a run, if it is known how many images it trains with."""
        images = self._images.get((config.dataset, config.limit), config.limit)
        if images is None:
            return None
        return total_epochs(config) * data.num_batches(images, config.settings.batch_size, drop_last=True)


def _kind(config: RunConfig, fields: tuple[str, ...] = KIND) -> tuple:
    return tuple(getattr(config, field) for field in fields)


def _name(record: Mapping) -> tuple:
    return Path(record.get("folder", "")).name, record.get("method"), record.get("model")


def config_of(record: Mapping) -> RunConfig | None:
    """The configuration of a record; None if there is no such one any more, or if it needs files of a user's.

    Examples
    --------
    >>> config_of({"method": "l0", "seed": 3, "accuracy": 0.9}) == RunConfig(method="l0", seed=3)
    True
    >>> config_of({"method": "a method of tomorrow"})
    """
    sources = {"source", "model_source", "weights_source", "weights"}  # and "weights" counts those of a pruned network
    names = {field.name for field in dataclasses.fields(RunConfig)} - sources
    if own.is_own(record.get("method", "")) or models.is_own(record.get("model", "")) or "weights_file" in record:
        return None
    try:
        return RunConfig(**{name: value for name, value in record.items() if name in names})
    except BarError:
        return None


def seconds_of(record: Mapping) -> float:
    """What a run took, and the trials that it made to search for its sparsity weight.

    Examples
    --------
    >>> seconds_of({"seconds": 10.0, "search": {"trials_made": 2, "trials": [{}, {}, {}, {}], "seconds": 100.0}})
    60.0
    """
    search = record.get("search") or {}
    try:
        return record["seconds"] + search["trials_made"] * search["seconds"] / len(search["trials"])
    except (KeyError, TypeError, ZeroDivisionError):  # there was no search, or it is told otherwise
        return record["seconds"]


def have_data(config: RunConfig) -> bool:
    """Whether the images of a run are on this machine: they come with a library, or have been put there.

    Examples
    --------
    >>> have_data(RunConfig()), have_data(RunConfig(dataset="no-such-data"))
    (True, False)
    """
    return config.dataset == "digits" or (data.root_folder() / config.dataset).is_dir()


def estimate(
    configs: Iterable[RunConfig], stock: Stock, out: Path, begun: Container[RunConfig] = ()
) -> tuple[float, int]:
    """How long runs will take, one after the other, with the unpruned networks that they need.

    Parameters
    ----------
    configs : iterable of RunConfig
        What is to be run.
    stock : Stock
        Has the times.
    out : path
        Where they will be. An unpruned network must be there to teach; one that is not there is run first.
    begun : container of RunConfig
        Unpruned networks that count as being there.

    Returns
    -------
    seconds : float
        Of all whose kind is recorded.
    unknown : int
        How many are of another kind.
    """

    def is_there(config: RunConfig) -> bool:
        return config.method == "unpruned" and (config in begun or stock.has(config, out))

    needed = dict.fromkeys(run for config in configs for run in (config.unpruned, config))
    times = [stock.seconds(config) for config in needed if not is_there(config)]
    return sum(filter(None, times)), times.count(None)


def run_within(
    configs: Sequence[RunConfig],
    stock: Stock,
    out: Path,
    *,
    minutes: float | None = None,
    jobs: int = 1,
    clock: Callable[[], float] = time.monotonic,
    began: Callable[[RunConfig], None] = lambda config: None,
) -> Iterator[tuple[RunConfig, dict | BarError]]:
    """Run what is to be run, in order, as far as the time goes.

    Parameters
    ----------
    configs : sequence of RunConfig
        What is to be run.
    stock : Stock
        Has the times; gets the records.
    out, jobs
        As in `bar.runs.sweeps.sweep`.
    minutes : float, optional
        No run begins after them, nor one that would not end within them, as far as is known; then it is over.
    clock : callable
        Tells the time in seconds.
    began : callable
        As in `bar.runs.sweeps.sweep`.

    Yields
    ------
    config, record
        As `bar.runs.sweeps.sweep` does.
    """
    if minutes is not None and not minutes >= 0:  # nor is "not a number" a time
        raise BarError(f"minutes must be a number of at least 0, not {minutes}")
    end = math.inf if minutes is None else clock() + 60 * minutes
    begun = set()

    def fits(config: RunConfig) -> bool:
        now = clock()
        seconds, _ = estimate([config], stock, out, begun)
        if now >= end or now + seconds > end:
            return False
        begun.add(config.unpruned)
        return True

    for config, record in sweep(configs, out, jobs=jobs, may=fits, began=began):
        if not isinstance(record, BarError):
            stock.add(record, out)
        yield config, record
