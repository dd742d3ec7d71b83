"""Runs on a Ray cluster, which may be this machine alone: where each is placed, and what happens when a worker dies.

Ray says what is free, starts workers and notices their deaths. A run keeps its state in its folder, as everywhere, so a
worker that died costs the epoch that it was in: the same run is begun again, on any node, and goes on.
"""

import contextlib
import ctypes
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from bar import data, files
from bar.errors import BarError, in_one_line
from bar.runs.commands import line, words
from bar.runs.config import RunConfig
from bar.runs.places import METRICS_FILE, make_folder
from bar.runs.reading import finished, read
from bar.runs.running import LOST, run
from bar.runs.shares import kind, measured

TRIES = 3  # of a run whose worker dies again and again without having ended another epoch
STARTS = 3  # of Ray on this machine: on a busy one it may miss its own time limits
END_WITH_PARENT = 1  # Linux's PR_SET_PDEATHSIG: torchrun, and so what it has started, does not outlive its worker
OBJECTS = 80 * 2**20  # bytes of memory for Ray's objects; here they are small records

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Way:
    """How each run is carried out: arguments of `bar.run`, on whatever node."""

    root: Path | None
    device: str  # "auto" is decided by what the cluster has
    processes: int
    threads: int
    here: Path  # the folder that relative paths start from
    mark: Path  # a file beside the records, which a node must see


@dataclass(frozen=True)
class Unfit:
    """A node that cannot carry out a run, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class Died:
    """The death of something that carried out a run, other than the worker itself."""

    reason: str


@dataclass
class Task:
    """A run to be made, once others have ended."""

    config: RunConfig
    after: set[RunConfig]
    wanted: bool = True  # False for an unpruned network that others need
    asked: bool = False  # whether it may begin
    excluded: Mapping[str, str] = field(default_factory=dict)  # node -> why it is not tried there
    deaths: int = 0
    written: int = 0  # bytes of its record when its worker died last
    whole: bool = False  # it has run out of a GPU's memory: it gets one for itself


def attempt(config: RunConfig, folder: Path, **options) -> dict | BarError:
    """Carry out a run; whatever goes wrong is returned, so that others go on."""
    try:
        return run(config, folder, **options)
    except BarError as error:
        return error
    except (Exception, SystemExit) as error:
        log.debug("%s", traceback.format_exc())
        return BarError(f"{in_one_line(error)}. Where, this shows: {line(config, folder, options.get('root'))}")


def _work(config: RunConfig, folder: Path, way: Way) -> dict | BarError | Unfit | Died:
    import ray

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # that is a death, not, as Ray would have it, an error of the run
    node = ray.get_runtime_context().get_node_id()
    if not way.mark.exists():
        return Unfit(node, f"{socket.gethostname()} does not see {folder.parent}: it must be a folder of all nodes")
    if way.here.is_dir():
        os.chdir(way.here)
    torch.set_num_threads(way.threads)
    if way.processes > 1:
        return _in_processes(config, folder, way)
    outcome = attempt(config, folder, root=way.root, device=way.device)
    if isinstance(outcome, BarError) and (reason := _lack(config, way)):
        return Unfit(node, f"{socket.gethostname()}: {reason}")
    return outcome


def _lack(config: RunConfig, way: Way) -> str | None:
    """Say why the data of a run cannot be had on this node; None if they can."""
    try:
        data.load(config.dataset, size=config.size, root=way.root, limit=config.limit)
    except BarError as error:
        return str(error)
    return None


def _in_processes(config: RunConfig, folder: Path, way: Way) -> dict | BarError | Died:
    """Carry out a run by several processes of this node, which torchrun starts, and ends if one of them dies."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={way.processes}", "-m"]
    command += ["bar", "run", *words(config), "--out", str(folder), "--device", way.device]
    command += ["--processes", str(way.processes), *(["--data", str(way.root)] if way.root else [])]
    libc = ctypes.CDLL(None)
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(way.threads)},
        preexec_fn=lambda: hasattr(libc, "prctl") and libc.prctl(END_WITH_PARENT, signal.SIGTERM),
    )  # fmt: skip
    if done.returncode == 0:
        return read(folder) or BarError(f"{folder} holds no record, though the run has ended well")
    said = [text.removeprefix("bar: ") for text in done.stderr.splitlines() if text.startswith("bar: ")]
    lost = not said or said[0].startswith(LOST)
    return Died("one of its processes died") if lost else BarError(said[0])


def _import_ray(local: bool):
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if local:  # Ray's name for: listen on 127.0.0.1 only, instead of on this machine's address
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ImportError:
        raise BarError(
            "several runs at a time need Ray: in a checkout, pip install '.[cluster]'. One at a time does without"
        ) from None
    return ray


@contextlib.contextmanager
def joined(address: str | None, jobs: int, gpus: int) -> Iterator[None]:
    """Join a cluster, or start one on this machine; leave it, or end it, afterwards.

    Parameters
    ----------
    address : str or None
        "auto", or HOST:PORT, of a cluster that is there; None starts one here, which listens on 127.0.0.1 only.
    jobs, gpus : int
        Of the one that is started here: places for runs, and GPUs.

    Raises
    ------
    BarError
        If Ray is not installed, there is no such cluster, or none can be started.
    """
    ray = _import_ray(local=address is None)
    if ray.is_initialized():  # of whoever calls this
        yield
        return
    quiet = {"log_to_driver": False, "logging_level": "error"}
    with contextlib.ExitStack() as after:
        folder = after.enter_context(_scratch()) if address is None else None
        after.callback(ray.shutdown)
        try:
            with _sigterm_kept():
                if address is None:
                    _start(
                        ray, num_cpus=jobs, num_gpus=gpus, include_dashboard=False, object_store_memory=OBJECTS,
                        _system_config={"worker_niceness": 0}, _temp_dir=folder, **quiet,
                    )  # fmt: skip
                else:
                    _check_answers(address)
                    ray.init(address=address, **quiet)
        except BarError:
            raise
        except SystemExit as error:  # Ray's answer to SIGTERM while it starts
            raise KeyboardInterrupt from error
        except Exception as error:  # Ray raises the class Exception itself
            where = f"no Ray cluster can be joined at {address}" if address else "Ray cannot be started here"
            raise BarError(f"{where}: {in_one_line(error)}") from error
        yield


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Leave that signal to whom it belongs: Ray would exit without a word."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _scratch() -> contextlib.AbstractContextManager[str]:
    """Make a folder for Ray's logs and sockets, whose names would be too long below most others."""
    return tempfile.TemporaryDirectory(prefix="bar-ray-", dir="/tmp", ignore_cleanup_errors=True)


def _start(ray, **options) -> None:
    for left in reversed(range(STARTS)):
        try:
            ray.init(address="local", **options)
            return
        except Exception:
            ray.shutdown()
            if not left:
                raise
            log.warning("Ray has not started in time; once more")


def _check_answers(address: str) -> None:
    """Refuse a host that does not answer, for which Ray would wait for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise BarError(f"no Ray cluster answers at {address}: {getattr(error, 'strerror', None) or error}") from error


class Engine:
    """Runs that are made on a cluster, each in its turn.

    Parameters
    ----------
    tasks : sequence of Task
        In the order in which they begin, as far as what they come after has ended.
    out : Path
        Of the runs' folders; all nodes must see it.
    way : Way
        How each is carried out.
    most : int or None
        So many at a time; None for as many as the cluster has room for.
    may, began : callable
        As in `bar.runs.sweeps.sweep`.
    """

    def __init__(
        self, tasks: Sequence[Task], out: Path, way: Way, most: int | None,
        may: Callable[[RunConfig], bool], began: Callable[[RunConfig], None],
    ) -> None:  # fmt: skip
        import ray

        self.ray, self.out, self.most, self.may, self.began = ray, out, most, may, began
        self.waiting, self.running = list(tasks), {}
        self.ended: dict[RunConfig, bool] = {}  # whether well
        self.unfit: dict[Hashable, dict[str, str]] = defaultdict(dict)  # images, None for any -> node -> why
        self.gpus = way.device == "cuda" or (way.device == "auto" and self._gpus() > 0)
        self.way = replace(way, device="cuda" if self.gpus else "cpu" if way.device == "auto" else way.device)
        self.shares = measured(finished(out)) if self.gpus else {}
        self._warn_of_room()

    def _gpus(self) -> int:
        """Count the GPUs that the cluster has by now."""
        return int(self.ray.cluster_resources().get("GPU", 0))

    def _warn_of_room(self) -> None:
        need = {"CPU": self.way.processes} | ({"GPU": self.way.processes} if self.gpus else {})
        there = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(all(node.get(what, 0) >= many for what, many in need.items()) for node in there):
            words = " and ".join(f"{many} {what}{'s' * (many > 1)}" for what, many in need.items())
            log.warning("no node has %s, as a run needs: waiting for one that has", words)

    def __iter__(self) -> Iterator[tuple[RunConfig, dict | BarError]]:
        remote = self.ray.remote(max_retries=0)(_work)
        try:
            while True:
                yield from self._begin(remote)
                if not self.running:
                    return
                for reference in self.ray.wait(list(self.running), timeout=5)[0]:
                    task = self.running.pop(reference)
                    outcome = self._outcome(reference, task)
                    if outcome is not None:
                        yield from self._end(task, outcome)
                yield from self._give_up()
        except self.ray.exceptions.RayError as error:
            raise BarError(f"the cluster is lost ({in_one_line(error)}); the same command goes on") from error
        finally:
            for reference in self.running:
                with contextlib.suppress(Exception):  # the cluster may be gone
                    self.ray.cancel(reference, force=True)

    def _begin(self, remote) -> Iterator[tuple[RunConfig, dict | BarError]]:
        """Hand tasks to the cluster as long as there is room; yields those for which no node is left."""
        while self.most is None or len(self.running) < self.most:
            held = self._held()
            ready = (task for task in self.waiting if task.after <= self.ended.keys())
            task = next((task for task in ready if task.whole or kind(task.config) not in held), None)
            if task is None:
                return
            if not task.asked and not self.may(task.config):
                self.waiting.clear()
                return
            task.asked = True
            self.waiting.remove(task)
            task.excluded = self.unfit[None] | self.unfit[_images(task.config)]
            reason = self._nowhere(task)
            if reason:
                yield from self._end(task, BarError(reason))
                continue
            self.began(task.config)
            self.running[self._submit(remote, task)] = task

    def _held(self) -> set[tuple]:
        """Kinds that have not ended yet on a GPU, as many of which are running as there are GPUs.

        Once one has ended, the others share GPUs; what had been handed over before would have kept a whole one.
        """
        if not self.gpus or self.way.processes > 1:
            return set()
        counted, there = Counter(kind(task.config) for task in self.running.values()), max(1, self._gpus())
        return {each for each, many in counted.items() if many >= there} - self.shares.keys()

    def _submit(self, remote, task: Task):
        processes = self.way.processes
        options = {"num_cpus": processes, "name": task.config.name}
        if self.gpus:
            options["num_gpus"] = processes if processes > 1 or task.whole else self.shares.get(kind(task.config), 1)
        if task.excluded:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(task.excluded))})"}
        return remote.options(**options).remote(task.config, self.out / task.config.name, self.way)

    def _nowhere(self, task: Task) -> str | None:
        """Say why no node can carry out a task, if that is so."""
        if not task.excluded:
            return None
        nodes = [node["NodeID"] for node in self.ray.nodes() if node["Alive"]]
        return None if set(nodes) - set(task.excluded) else next(reversed(task.excluded.values()))

    def _give_up(self) -> Iterator[tuple[RunConfig, dict | BarError]]:
        """End tasks that wait for a node that has gone: those that are left were excluded before."""
        for reference, task in list(self.running.items()):
            reason = self._nowhere(task)
            if reason and not self.ray.wait([reference], timeout=0)[0]:
                self.ray.cancel(reference, force=True)
                del self.running[reference]
                yield from self._end(task, BarError(reason))

    def _outcome(self, reference, task: Task) -> dict | BarError | None:
        """Return how a task ended; None if it is to be tried again."""
        errors = self.ray.exceptions
        try:
            outcome = self.ray.get(reference)
        except errors.RayTaskError as error:  # before the run began: there is no package bar on that node, say
            return BarError(f"a node could not begin it: {in_one_line(error.cause or error)}")
        except errors.LocalRayletDiedError:  # that of the driver: nothing more can be asked of Ray
            raise
        except errors.RayError as error:
            return self._again(task, type(error).__name__)
        if isinstance(outcome, Died):
            return self._again(task, outcome.reason)
        if isinstance(outcome, Unfit):
            seen = outcome.reason.partition(" does not see ")[1]
            self.unfit[None if seen else _images(task.config)][outcome.node] = outcome.reason
            log.warning("a node is left out for %s: %s", "all runs" if seen else "these images", outcome.reason)
            self.waiting.insert(0, task)
            return None
        if isinstance(outcome, BarError) and self.gpus and not task.whole and "out of memory" in str(outcome):
            log.warning("%s: out of memory on a shared GPU; it gets one for itself", task.config.name)
            task.whole = True
            self.waiting.insert(0, task)
            return None
        return outcome

    def _again(self, task: Task, why: str) -> BarError | None:
        """Put a task whose worker died in front of those that wait; an error if that happens again and again."""
        written = _size(self.out / task.config.name / METRICS_FILE)
        task.deaths = 1 if written > task.written else task.deaths + 1
        task.written = written
        if task.deaths >= TRIES:
            return BarError(f"its worker died {TRIES} times within an epoch, the last time by {why}")
        log.warning("%s: its worker died (%s); the run goes on from its last whole epoch", task.config.name, why)
        self.waiting.insert(0, task)
        return None

    def _end(self, task: Task, outcome: dict | BarError) -> Iterator[tuple[RunConfig, dict | BarError]]:
        self.ended[task.config] = isinstance(outcome, dict)
        if task.wanted:
            yield task.config, outcome
        if isinstance(outcome, dict):
            if self.gpus:
                self.shares |= measured([outcome])
            return
        for other in [other for other in self.waiting if other.config.unpruned == task.config]:
            self.waiting.remove(other)
            yield from self._end(other, outcome)


def tasks_of(configs: Iterable[RunConfig]) -> list[Task]:
    """Put runs in an order in which nothing is made twice, and nothing depends on which of two is faster.

    The unpruned network comes before those that need it. Runs that share the trials of a search follow one another.
    """
    configs = list(configs)
    tasks: dict[RunConfig, Task] = {}
    searches: dict[str, RunConfig] = {}
    for config in configs:
        after = set()
        if config.method != "unpruned":
            tasks.setdefault(config.unpruned, Task(config.unpruned, set(), wanted=config.unpruned in configs))
            after.add(config.unpruned)
            if config.kind.searched and config.values["lam"] is None:
                after |= {searches[config.trials]} if config.trials in searches else set()
                searches[config.trials] = config
        tasks.setdefault(config, Task(config, after))
    return list(tasks.values())


def _images(config: RunConfig) -> tuple:
    return config.dataset, config.size, config.limit


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@contextlib.contextmanager
def marked(out: Path) -> Iterator[Path]:
    """Write a file by which a node knows the folder, for as long as the sweep lasts."""
    make_folder(out)
    mark = out / f".sweep-{secrets.token_hex(8)}"
    files.write_text(mark, "a sweep is at work here\n")
    try:
        yield mark
    finally:
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)
