"""What is seen of a sweep while it is at work: a table that lives on a terminal, and lines that read well in a log."""

import contextlib
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bar import runs
from bar.cli.progress import Failed
from bar.errors import BarError, printable
from bar.runs import commands, reproducing

MOST_SHOWN = 20  # rows of runs at work
EVERY = 600.0  # seconds between two lines about the whole, where there is no terminal


def duration(seconds: float) -> str:
    """A time, roughly.

    Examples
    --------
    >>> duration(5000), duration(90), duration(20)
    ('1 h 23 min', '2 min', '1 min')
    """
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h " * bool(hours) + f"{minutes} min"


class Board:
    """The state of a sweep: what is running, done, failed, and how long the rest will take.

    Parameters
    ----------
    configs : sequence of RunConfig
        What was asked for.
    out : Path
        Of the runs' folders.
    stock : Stock
        Knows how long recorded runs took; gets those that end.
    workers : int or None
        So many runs at a time; None if that is up to the cluster.
    root : Path, optional
        Where data sets live, if not at their usual place.
    """

    def __init__(
        self, configs: Sequence[runs.RunConfig], out: Path, stock: reproducing.Stock, workers: int | None,
        root: Path | None = None,
    ) -> None:  # fmt: skip
        self.configs, self.out, self.stock, self.workers, self.root = configs, out, stock, workers, root
        self.left = dict.fromkeys(run for config in configs for run in (config.unpruned, config))
        self.begun: dict[runs.RunConfig, float] = {}
        self.records: list[dict] = []
        self.failed: dict[runs.RunConfig, str] = {}

    def began(self, config: runs.RunConfig) -> None:
        """Note that a run has begun; for `bar.runs.sweeps.sweep`."""
        self.begun.setdefault(config, time.monotonic())
        if config.method != "unpruned":  # an unpruned network comes before the others
            self.left.pop(config.unpruned, None)
            if config.unpruned not in self.configs:
                self.begun.pop(config.unpruned, None)

    def ended(self, config: runs.RunConfig, outcome: dict | BarError) -> None:
        """Note how a run has ended."""
        self.left.pop(config, None)
        self.begun.pop(config, None)
        if isinstance(outcome, BarError):
            self.failed[config] = str(outcome)
        else:
            self.records.append(outcome)
            self.stock.add(outcome, self.out)

    def trained(self, config: runs.RunConfig) -> bool:
        """Whether a run, or the unpruned one that it needs, has been begun: then its folder has records."""
        return any((self.out / run.name / runs.METRICS_FILE).exists() for run in (config, config.unpruned))

    def at_work(self) -> list[runs.RunConfig]:
        """The runs that are being trained now: their folders are taken."""
        return [config for config in list(self.begun) if (self.out / config.name / runs.LOCK).exists()]

    def seconds_left(self) -> float | None:
        """How long the rest will take, as far as recorded runs tell; None if they do not."""
        known = {config: self.stock.seconds(config) for config in list(self.left)}
        told = [seconds for seconds in known.values() if seconds is not None]
        if not told:
            return None
        usual = statistics.mean(told)
        work = sum((seconds or usual) * (1 - progress(config, self.out)) for config, seconds in known.items())
        return work / max(1, min(self.workers or len(self.at_work()), len(known)))

    def summary(self) -> str:
        """Counts and the time left, in a line."""
        done, failed = len(self.records), len(self.failed)
        left = self.seconds_left() if len(self.configs) > done + failed else 0
        words = f"{done} of {len(self.configs)} done" + f", {failed} failed" * bool(failed)
        return words + (f", about {duration(left)} left" if left else "")

    def __rich__(self) -> Group:
        table = Table.grid(padding=(0, 2))
        at_work = self.at_work()
        for config in at_work[:MOST_SHOWN]:
            passed = time.monotonic() - self.begun.get(config, time.monotonic())
            table.add_row(Text(printable(config.name)), f"{progress(config, self.out):.0%}", duration(passed))
        return Group(table, Text(f"{len(at_work)} running, {self.summary()}"))


def progress(config: runs.RunConfig, out: Path) -> float:
    """The fraction of a run's epochs that are in its record, in [0, 1].

    Examples
    --------
    >>> progress(runs.RunConfig(), Path("no such folder"))
    0.0
    """
    try:
        lines = (out / config.name / runs.METRICS_FILE).read_text("utf-8").splitlines()
        done = sum(json.loads(line)["phase"] != "cut" for line in lines)
    except (OSError, ValueError, TypeError, KeyError):  # not begun, or a line that is being written
        return 0.0
    return min(1.0, done / max(1, runs.total_epochs(config)))


def followed(ending: Iterable[tuple[runs.RunConfig, dict | BarError]], board: Board) -> None:
    """Wait for many runs, with a line on standard error for each, and a table of those at work if it is a terminal.

    Parameters
    ----------
    ending : iterable
        What `bar.runs.sweeps.sweep` yields.
    board : Board
        Gets what has ended.

    Raises
    ------
    BarError
        If all failed for the same reason, before anything was trained: what was typed is wrong, so it is said once.
    """
    console, said = Console(stderr=True), set()

    def say(line: str, **style) -> None:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True, **style)

    def say_failed() -> None:
        for config in [config for config in board.failed if config not in said]:
            said.add(config)
            say(f"{config.name}: {board.failed[config]}", style="red")

    with _shown(board, console, say):
        for config, record in ending:
            board.ended(config, record)
            if isinstance(record, BarError):
                if board.records or len(set(board.failed.values())) > 1 or board.trained(config):
                    say_failed()
                continue
            say_failed()
            used = record[config.metric] / record["budget"]
            say(
                f"{config.name}: {record['accuracy']:.2%} (unpruned {record['accuracy_unpruned']:.2%}), "
                f"{used:.1%} of the budget, {record['seconds']:.0f} s; {board.summary()}"
            )
    if board.failed and not said:
        raise BarError(next(iter(board.failed.values())))


@contextlib.contextmanager
def _shown(board: Board, console: Console, say: Callable[[str], None]) -> Iterator[None]:
    """Show the board: on a terminal all the time, else in a line now and then."""
    if console.is_terminal:
        with Live(board, console=console, refresh_per_second=1, transient=True):
            yield
        return
    over = threading.Event()

    def tell() -> None:
        while not over.wait(EVERY):
            say(f"{len(board.at_work())} running, {board.summary()}")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def say_how_to_repeat(board: Board) -> None:
    """Say what failed and how to repeat it, then raise `Failed`; nothing if all is well."""
    if not board.failed:
        return
    console = Console(stderr=True)
    console.print("the same command tries what failed again; one alone, with its epochs to be seen:", soft_wrap=True)
    for config in board.failed:
        text = printable(commands.line(config, board.out / config.name, board.root))
        console.print("  " + text, highlight=False, markup=False, soft_wrap=True)
    names = ", ".join(config.name for config in board.failed)
    many = len(board.configs)
    raise Failed(f"{len(board.failed)} of {many} run{'s' * (many != 1)} failed: {names}")
