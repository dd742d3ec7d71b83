"""Many runs by one command: every method, budget and seed, resumable, in several processes."""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from pathlib import Path

import torch

from bar.errors import BarError
from bar.runs.config import RunConfig
from bar.runs.running import run


def sweep(
    configs: Sequence[RunConfig],
    out: Path | str = "runs",
    *,
    root: Path | str | None = None,
    device: str = "auto",
    jobs: int = 1,
    may: Callable[[RunConfig], bool] = lambda config: True,
) -> Iterator[tuple[RunConfig, dict | BarError]]:
    """Run all of them, each in a folder of its own; what is recorded already is not run again.

    The unpruned networks that several runs share are trained first. A run that fails does not stop the others.

    Parameters
    ----------
    configs : sequence of RunConfig
        What to run.
    out : path
        The runs' folders are made here, ``out/<config.name>``.
    root, device
        As in `bar.run`.
    jobs : int
        So many runs at a time, each in a process of its own with its share of the cores; no more than there are.
    may : callable
        Asked in turn, right before a run would begin, one of a shared unpruned network too; once it says no, no more
        begin.

    Yields
    ------
    config : RunConfig
        A run that has ended; in the order in which they end.
    record : dict or BarError
        Its record, or what went wrong.

    Raises
    ------
    BarError
        If jobs is below 1 or above `most_jobs`.

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
    if not 1 <= jobs <= most_jobs():
        raise BarError(f"jobs must be at least 1 and at most {most_jobs()}, the cores of this machine, not {jobs}")
    out = Path(out)
    shared = list(dict.fromkeys(config.unpruned for config in configs))
    options = {"root": root, "device": device}
    if jobs == 1:
        for config in itertools.takewhile(may, configs):
            yield config, _run(config, out / config.name, options)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(threads,)) as pool:
        try:
            list(_in(pool, jobs, itertools.takewhile(may, shared), out, options))
            yield from _in(pool, jobs, itertools.takewhile(may, configs), out, options)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _in(
    pool: Executor, jobs: int, configs: Iterable[RunConfig], out: Path, options: dict
) -> Iterator[tuple[RunConfig, dict | BarError]]:
    """Run them in processes, so many at a time; the next one is taken once there is room for it."""
    waiting, running = iter(configs), {}
    while True:
        for config in itertools.islice(waiting, jobs - len(running)):
            running[pool.submit(_run, config, out / config.name, options)] = config
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


def most_jobs() -> int:
    """How many processes at a time this machine may be asked for: one a core, but two in any case."""
    return max(2, os.cpu_count() or 1)


def _start(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the others
    torch.set_num_threads(threads)


def _run(config: RunConfig, folder: Path, options: dict) -> dict | BarError:
    try:
        return run(config, folder, **options)
    except BarError as error:
        return error
