"""Tasks are begun and ended, several at once, within the minutes that there are."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass

import torch

from bar.errors import BarError

GRACE = 5.0  # seconds after the end in which a run may notice, at its next step, that the time is over
MEMORY = 5 * 2**30  # bytes of a GPU for a process: its context, the images, a batch of the comparison and its network


class OutOfTime(Exception):
    """Raised within a task, at the step at which its time is over."""


def now() -> float:
    """Seconds on the clock that all processes share."""
    return time.time()


def check_time(end: float) -> None:
    """Raise OutOfTime if that moment is over."""
    if now() > end:
        raise OutOfTime


@dataclass(frozen=True)
class Task:
    """Something to do in a process of its own, which leaves a record.

    Attributes
    ----------
    part : int
        Of the queue.
    name : str
        Unique.
    function, arguments
        What to call; both are sent to another process. The moment at which the time is over is a last argument.
    seconds : callable
        How long it will take, by what is known when it is asked.
    keep : callable
        Writes the record of what was returned, after so many seconds; returns a line about it.
    needs : tuple of str
        Names of tasks that must have ended well before.
    """

    part: int
    name: str
    function: Callable
    arguments: tuple
    seconds: Callable[[], float]
    keep: Callable[[object, float], str]
    needs: tuple[str, ...] = ()


class Inline(Executor):
    """Does at once, in this process, what it is given."""

    def submit(self, function: Callable, /, *arguments: object) -> Future:
        """Call the function; what comes of it is in the future."""
        future: Future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # as other executors do
            future.set_exception(error)
        return future


def processes_for(device: torch.device) -> int:
    """How many runs at once: of a GPU's free memory each gets 5 GiB, and two of the cores; on a CPU, one."""
    if device.type != "cuda":
        return 1
    return max(1, min((os.cpu_count() or 1) // 2, torch.cuda.mem_get_info(device)[0] // MEMORY))


def carry_out(
    tasks: Sequence[Task], at_once: int, apart: bool, end: float, say: Callable[[str], None]
) -> dict[str, str]:
    """Do tasks in their order, so many at once; one that would not be ready in time is not begun.

    Parameters
    ----------
    tasks : sequence of Task
        One that waits for another does not hold up those after it.
    at_once : int
        How many, each in a process of its own.
    apart : bool
        Whether a single one has a process of its own, too: only then it ends in time if a step takes minutes.
    end : float
        The moment at which the time is over.
    say : callable
        Told a line about each task that ends.

    Returns
    -------
    dict of str to str
        Tasks that left no record -> why.
    """
    waiting, running, dropped = list(tasks), {}, {}
    with _slots(at_once, apart) as slots:
        free = list(range(at_once))
        while True:
            while free and (task := _next(waiting, running, dropped, end)):
                waiting.remove(task)
                slot, begun = free.pop(), now()
                running[slots[slot].submit(task.function, *task.arguments, end)] = task, slot, begun
            if not running:
                return dropped | {task.name: "what it needs was not made" for task in waiting}
            ended = wait(running, timeout=max(0.0, end - now()) + GRACE, return_when=FIRST_COMPLETED).done
            if not ended:
                cut = {task.name: "cut off when the time was over" for task, _, _ in running.values()}
                return dropped | cut | {task.name: "no time left" for task in waiting}
            for future in ended:
                task, slot, begun = running.pop(future)
                free.append(slot)
                why = _end(task, future, now() - begun, say)
                if why:
                    dropped[task.name] = why
                if isinstance(future.exception(), BrokenExecutor):
                    slots[slot] = _process(at_once)


def _next(waiting: list[Task], running: dict, dropped: dict[str, str], end: float) -> Task | None:
    """The first task that can begin now; those that never can are dropped."""
    busy = {task.name for task, _, _ in running.values()}
    for task in list(waiting):
        later = busy | {other.name for other in waiting}
        if lost := [name for name in task.needs if name in dropped]:
            why = dropped[lost[0]]
            dropped[task.name] = why if why.startswith("no time") else f"it needs {lost[0]}: {why}"
            waiting.remove(task)
        elif later.isdisjoint(task.needs):
            seconds = task.seconds()
            if now() + seconds <= end:
                return task
            dropped[task.name] = f"no time: it takes about {seconds:.0f} s"
            waiting.remove(task)
    return None


def _end(task: Task, future: Future, seconds: float, say: Callable[[str], None]) -> str | None:
    """Keep the record of a task that has ended; if it has none, return why."""
    error = future.exception()
    if error is None:
        say(task.keep(future.result(), seconds))
        return None
    if isinstance(error, OutOfTime):
        return "cut off when the time was over"
    lines = str(error).strip().splitlines() or [""]
    why = lines[0] if isinstance(error, BarError) else f"{type(error).__name__}: {lines[0]:.200}"
    say(f"{task.name} failed: {why}")
    return f"failed: {why}"


@contextlib.contextmanager
def _slots(at_once: int, apart: bool) -> Iterator[list[Executor]]:
    """So many executors of one process each: if one dies, only its own task is lost."""
    slots = [_process(at_once) for _ in range(at_once)] if apart or at_once > 1 else [Inline()]
    mine = set(multiprocessing.active_children())
    try:
        yield slots
    finally:
        for slot in slots:
            slot.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - mine:
            process.terminate()
            process.join()


def _process(at_once: int) -> Executor:
    threads = max(1, (os.cpu_count() or 1) // at_once)
    spawn = multiprocessing.get_context("spawn")  # a fork would share torch's threads, and cannot use a GPU
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=_prepare, initargs=(threads,))


def _prepare(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the others
    torch.set_num_threads(threads)
