"""What is seen of a run while it is at work."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bar import files, runs
from bar.errors import BarError


class Interrupted(Exception):
    """Ctrl-C, and what to say about it."""


class Failed(Exception):
    """Runs have failed, though what was typed can be run; what to say about it."""


def tensorboard() -> tuple[Callable[[Path], None], Callable[[runs.RunConfig, dict], None]]:
    """What is to be told the folder of a run, and what then writes records there for TensorBoard.

    Those of the unpruned network go beside the others.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BarError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
    places: list[Path] = []
    writers: dict[str, SummaryWriter] = {}
    epochs: Counter[str] = Counter()

    def write(config: runs.RunConfig, record: dict) -> None:
        epochs[config.method] += record["phase"] != "cut"
        folder = places[-1] / "tensorboard"
        with files.writing(folder):
            if config.method not in writers:
                writers[config.method] = SummaryWriter(str(folder / config.method))
            for name, value in record.items():
                if isinstance(value, float) or name in ("volume", "flops", "size"):
                    writers[config.method].add_scalar(name, value, epochs[config.method])
            writers[config.method].flush()

    return places.append, write


def run_with_progress(
    config: runs.RunConfig,
    folder: Path,
    watch: Callable[[runs.RunConfig, dict], None] = lambda config, record: None,
    **options,
) -> dict:
    """`bar.run` with a progress bar on standard error that shows V/b, f and the validation accuracy.

    Where standard error is not a terminal, a line an epoch.
    """
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(), TimeRemainingColumn(), console=console,
    )  # fmt: skip
    tasks: dict[str, int] = {}

    def task(config: runs.RunConfig, name: str) -> int:
        if name not in tasks:
            tasks[name] = progress.add_task(
                name, total=runs.total_epochs(config, trial=name != config.method), state=""
            )
        return tasks[name]

    def report(config: runs.RunConfig, record: dict) -> None:
        watch(config, record)
        state = f"{record['phase']:<8} accuracy {record['accuracy']:.3f}"
        if "size" in record and "budget" in record:
            state += f"  V/b {record['size'] / record['budget']:.3f}"
        if "barrier" in record:
            state += f"  f {record['barrier']:.2g}"
        name = f"{config.method}, lambda {record['lambda']:.3g}" if "lambda" in record else config.method
        done = task(config, name)
        progress.update(done, state=state, advance=record["phase"] != "cut")
        if not console.is_terminal:
            console.print(f"{name} {record['epoch']:>3}  {state}  {record['seconds']:.1f} s", highlight=False)

    with progress:
        progress.disable = not console.is_terminal
        return runs.run(config, folder, report=report, **options)
