"""Many runs by one command: every method, budget and seed, resumable, here or on a cluster."""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from bar import data, models
from bar.errors import BarError
from bar.runs import cluster
from bar.runs.config import RunConfig
from bar.runs.places import RESULT
from bar.runs.reading import read
from bar.training import check_shares

MOST_ON_A_CLUSTER = 10**6  # runs at a time, and processes in all


def sweep(
    configs: Sequence[RunConfig],
    out: Path | str = "runs",
    *,
    root: Path | str | None = None,
    device: str = "auto",
    jobs: int | None = None,
    ray: str | None = None,
    processes: int = 1,
    may: Callable[[RunConfig], bool] = lambda config: True,
    began: Callable[[RunConfig], None] = lambda config: None,
) -> Iterator[tuple[RunConfig, dict | BarError]]:
    """Run all of them, each in a folder of its own; what is recorded already is not run again.

    One after the other in this process, or several at a time by Ray (in a checkout, ``pip install '.[cluster]'``), on
    this machine or on a cluster. The unpruned networks that several runs share are trained once, before these. A run
    that fails does not stop the others; one whose worker or node dies goes on elsewhere from its last whole epoch. On
    CPUs of one kind, and with as many threads, the records are the same in all cases, times aside.

    Parameters
    ----------
    configs : sequence of RunConfig
        What to run; the same one twice is one.
    out : path
        The runs' folders are made here, ``out/<config.name>``. All nodes of a cluster must see it.
    root, device
        As in `bar.run`. On a cluster, "auto" means its GPUs if it has any. A run gets a GPU for itself, or a share of
        one once the memory that runs of its kind take has been recorded.
    jobs : int, optional
        So many runs at a time. By default one, and with `ray` as many as there is room for. On this machine each has
        its share of the cores, and there are no more than those.
    ray : str, optional
        A Ray cluster: "auto" for the one that this machine belongs to, or HOST:PORT.
    processes : int
        Share each batch among so many processes, as in `bar.run`; each takes a core, or a GPU, of the same node.
    may : callable
        Asked in turn, right before a run would begin, one of a shared unpruned network too; once it says no, no more
        begin.
    began : callable
        Told of each run that begins, or begins again.

    Yields
    ------
    config : RunConfig
        A run that has ended; in the order in which they end.
    record : dict or BarError
        Its record, or what went wrong.

    Raises
    ------
    BarError
        If jobs is below 1 or above `most_jobs`; if Ray is needed and missing; if the cluster is not there, or lost.

    Examples
    --------
    >>> import tempfile
    >>> tiny = {"limit": 64, "size": 8, "epochs": (1, 1, 0)}
    >>> configs = [RunConfig(method=method, pruning_factor=2, **tiny) for method in ("magnitude", "random")]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     records = [record for _, record in sweep(configs, folder)]
    >>> [record["volume"] <= record["budget"] for record in records]
    [True, True]
    """
    configs, out = list(dict.fromkeys(configs)), Path(out)
    check(configs, jobs, ray, processes, device)
    recorded = _all_recorded(configs, out, root)
    if recorded or (ray is None and processes == 1 and jobs in (None, 1)):
        for config in itertools.takewhile(may, configs):
            began(config)
            yield config, cluster.attempt(config, out / config.name, root=root, device=device)
        return
    yield from _by_ray(configs, out, root, device, jobs, ray, processes, may, began)


def _all_recorded(configs: list[RunConfig], out: Path, root: Path | str | None) -> bool:
    """Whether nothing has to be trained: each run is recorded, on the images that are there today."""
    if not all((out / config.name / RESULT).exists() for config in configs):
        return False
    today = functools.cache(lambda name, size, limit: data.load(name, size=size, root=root, limit=limit).fingerprint)
    try:
        return all(
            read(out / config.name).get("fingerprint") == today(config.dataset, config.size, config.limit)
            for config in configs
        )
    except BarError:  # which it is that cannot be read, each attempt says
        return True


def check(
    configs: Iterable[RunConfig], jobs: int | None = None, ray: str | None = None, processes: int = 1,
    device: str = "auto",
) -> None:  # fmt: skip
    """Refuse, with a BarError, what `sweep` could not carry out wherever it is tried; the same arguments.

    Examples
    --------
    >>> check([RunConfig()], jobs=0)
    Traceback (most recent call last):
    bar.errors.BarError: jobs must be at least 1 and at most ..., the cores of this machine, not 0
    """
    _check_address(ray)
    most = most_jobs() if ray is None else MOST_ON_A_CLUSTER
    if jobs is not None and not 1 <= jobs <= most:
        whose = "the cores of this machine" if ray is None else "on a cluster"
        raise BarError(f"jobs must be at least 1 and at most {most:,}, {whose}, not {jobs}")
    if not 1 <= processes <= most // (jobs or 1):
        raise BarError(
            f"{jobs or 1} jobs of {processes} processes each: at least 1 of each, and {most} in all, are possible"
        )
    for config in configs:
        check_shares(config.settings, processes)
    if device.startswith("cuda:") and (ray or processes > 1 or (jobs or 1) > 1):
        raise BarError(f"by Ray a run is given its GPU: --device cuda, and CUDA_VISIBLE_DEVICES={device[5:]}")


def _check_address(ray: str | None) -> None:
    host, _, port = (ray or "").rpartition(":")
    if ray not in (None, "auto") and not (host and port.isdecimal()):
        raise BarError(f"--ray is auto or HOST:PORT, not {ray!r:.100}")


def check_names(configs: Iterable[RunConfig], root: Path | str | None = None, elsewhere: bool = False) -> None:
    """Refuse, with a BarError, runs of data sets or networks that there are not, before the first of them begins.

    Parameters
    ----------
    configs, root
        As for `sweep`.
    elsewhere : bool
        Whether other machines make the runs: the folders of their images need not be seen here.

    Examples
    --------
    >>> check_names([RunConfig(model="wrn-10-x")])
    Traceback (most recent call last):
    bar.errors.BarError: there is no network 'wrn-10-x': Known: ...
    """
    configs = list(configs)
    for dataset in dict.fromkeys(config.dataset for config in configs):
        data.check(dataset, root, elsewhere)
    for model in dict.fromkeys(config.model for config in configs):
        models.check(model)


def _by_ray(
    configs, out, root, device, jobs, ray, processes, may, began
) -> Iterator[tuple[RunConfig, dict | BarError]]:
    places = (jobs or 1) * processes  # on this machine
    threads = max(1, (os.cpu_count() or 1) // places) if ray is None else 1
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if device == "cuda" and ray is None and not gpus:
        raise BarError("there is no GPU on this machine: --device cpu, or a cluster that has one (--ray)")
    out = out.absolute()
    with cluster.joined(ray, places, gpus), cluster.marked(out) as mark:
        root = None if root is None else Path(root).absolute()
        way = cluster.Way(root, device, processes, threads, Path.cwd(), mark)
        most = jobs if ray is not None else jobs or 1
        yield from cluster.Engine(cluster.tasks_of(configs), out, way, most, may, began)


def most_jobs() -> int:
    """How many processes at a time this machine may be asked for: one a core, but two in any case."""
    return max(2, os.cpu_count() or 1)
