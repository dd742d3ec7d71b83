"""The command line: ``bar run``, ``bar sweep``, ``bar count``, ``bar export``, ``bar book``."""

import contextlib
import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import click
import torch
from lightning_fabric.utilities import rank_zero_only
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

import bar
from bar import files, machine, methods, models, runs, storage
from bar.arguments import Folder
from bar.cost import METRICS
from bar.errors import BarError, printable
from bar.runs import sweeps
from bar.schedule import SCHEDULES
from bar.training import PRESETS, check_shares

DEFAULT = runs.RunConfig()
UNREAD = 128 + 13  # the exit code that a shell gives to a program that SIGPIPE has ended


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command has its own --help, with examples.",
)
@click.version_option(package_name="bar-pruning", prog_name="bar")
def app() -> None:
    """Train a CNN and prune it to a budget at the same time (BAR, CVPR 2019)."""


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


_COMMON = (
    click.option(
        "--dataset",
        default=DEFAULT.dataset,
        show_default=True,
        help="digits, cifar10, cifar100, cifar10-jpeg, or a folder of images (class folders).",
    ),
    click.option(
        "--model",
        default=DEFAULT.model,
        show_default=True,
        help="wrn-DEPTH-WIDTH, conv4, or one of torchvision such as resnet18 (resnet18-by-8: an eighth of the widths).",
    ),
    click.option(
        "--metric", help=f"Budget in: {', '.join(METRICS)}, or weights. [default: volume; weights if single ones go]"
    ),
    click.option("--preset", default=DEFAULT.preset, show_default=True, help=f"One of: {', '.join(PRESETS)}."),
    click.option("--size", type=int, help="Side of the images in pixels. [default: the data set's own]"),
    click.option("--limit", type=int, help="Use only so many training images."),
    click.option("--epochs", type=int, nargs=3, metavar="PRUNE TUNE COOL", help="Instead of the preset's epochs."),
    click.option(
        "--schedule",
        default=DEFAULT.schedule,
        show_default=True,
        help=f"How the budget of bar comes down: {', '.join(SCHEDULES)}.",
    ),
    click.option("--distill/--no-distill", default=None, help="Let the unpruned network teach. [default: with bar]"),
    click.option(
        "--start",
        default=DEFAULT.start,
        show_default=True,
        help="scratch, or unpruned: begin with the unpruned network's weights.",
    ),
    click.option(
        "--gates",
        default=DEFAULT.gates,
        show_default=True,
        help="l0's gates start uniform, or normal: N(0, 0.01^2).",
    ),
    click.option(
        "--option",
        "-o",
        "options",
        multiple=True,
        metavar="NAME=VALUE",
        help="An option of the method; `bar methods NAME` tells what there is.",
    ),
    click.option(
        "--data",
        "root",
        type=Folder(),
        help="Where data sets live. [default: $BAR_DATA or ~/.cache/bar]",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …"),
)


def _common(command: Callable) -> Callable:
    """What `run` and `sweep` both ask for."""
    for option in reversed(_COMMON):
        command = option(command)
    return command


@app.command(
    epilog=_examples(
        "bar run                                     # digits, a quarter of the volume, about a minute",
        "bar run --pruning-factor 16 --method magnitude --seed 1",
        "bar run --dataset cifar10 --model wrn-28-12 --preset paper --pruning-factor 16",
        "bar run --dataset ~/photos --size 64 --model resnet18 --metric flops --out runs/photos",
        "bar run --dataset cifar10 --model wrn-28-12 --preset paper --processes 4   # four GPUs",
        "bar run --method l0 -o rule=l0 -o gates=normal",
        "bar run --json | jq .accuracy",
        "bar run --pruning-factor 8                   # Ctrl-C, then the same again: it goes on where it was",
    )
)
@click.option(
    "--method",
    default=DEFAULT.method,
    show_default=True,
    help=f"One of: {', '.join(methods.NAMES)}; or your own, path/to/file.py:Name.",
)
@click.option(
    "--pruning-factor",
    "-x",
    type=float,
    default=DEFAULT.pruning_factor,
    show_default=True,
    help="Leave at most the full network's size divided by this; above 1.",
)
@click.option("--seed", type=int, default=DEFAULT.seed, show_default=True)
@_common
@click.option("--out", type=Folder(new=True), help="Folder of the records. [default: runs/NAME]")
@click.option(
    "--processes", type=int, default=1, show_default=True, help="Share each batch among so many GPUs, or CPU processes."
)
@click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="Go on with an interrupted run, from its last whole epoch, or start it over.",
)
@click.option("--tensorboard", is_flag=True, help="Write what is watched to FOLDER/tensorboard, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def run(
    out: Path | None,
    root: Path | None,
    device: str,
    processes: int,
    resume: bool,
    tensorboard: bool,
    as_json: bool,
    options: tuple[str, ...],
    **fields,
) -> None:
    """Train and prune one network, and record it.

    The unpruned network is trained first, once for each data set, model, seed and length: it is the teacher, and what
    the result is compared with. A run that is already recorded is not run again; one that was interrupted goes on.
    """
    config = runs.RunConfig(options=_named(options), **fields)
    machine.device_of(device)  # or it is found missing when images have been decoded and a network built
    if processes > sweeps.most_jobs():
        check_shares(config.settings, processes)
        raise BarError(f"{processes} processes are too many for this machine, which has {os.cpu_count()} cores")
    folder = out or Path("runs") / config.name
    how = {"root": root, "device": device, "processes": processes, "resume": resume}
    if tensorboard:
        how["placed"], how["watch"] = _tensorboard()
    try:
        record = run_with_progress(config, folder, **how)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; all whole epochs are kept in {folder} and beside it: the same command goes on from there"
        ) from None
    if rank_zero_only.rank:  # of several processes, the first one speaks
        return
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return
    table = Table(title=escape(f"{config.model} on {record['dataset_label']}"), show_header=True, title_justify="left")
    for column in ("", "unpruned", "pruned", "factor"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("test accuracy", f"{record['accuracy_unpruned']:.2%}", f"{record['accuracy']:.2%}", "")
    for what in ("volume", "flops", "parameters", *(["weights"] if "weights" in record else [])):
        before, after = record[f"{what}_full"], record[what]
        table.add_row(what, f"{before:,}", f"{after:,}", f"{before / after:.2f}")
    console = Console()
    console.print(table)
    if config.method != "unpruned":
        used = record[config.metric] / record["budget"]
        console.print(f"budget: {config.metric} of at most {record['budget']:,.0f}, of which {used:.1%} is used")
    folder = runs.place(folder, config, record["fingerprint"])
    console.print(f"records and network: {folder}", soft_wrap=True, highlight=False, markup=False)


@app.command(
    epilog=_examples(
        "bar sweep                                    # structured methods, digits, factors 2 to 16, three seeds",
        "bar sweep -m bar -m magnitude -x 4 -x 16 -s 0 --jobs 2",
        "bar sweep --dataset cifar10 --model wrn-28-12 --preset paper --out runs/cifar10",
        "bar sweep                                    # Ctrl-C, then the same again: it goes on where it was",
    )
)
@click.option("--method", "-m", "names", multiple=True, help="Again for each. [default: all that prune structures]")
@click.option(
    "--pruning-factor",
    "-x",
    "factors",
    type=float,
    multiple=True,
    default=(2.0, 4.0, 8.0, 16.0),
    show_default=True,
    help="Again for each.",
)
@click.option(
    "--seed", "-s", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True, help="Again for each."
)
@click.option("--jobs", type=int, default=1, show_default=True, help="So many runs at a time, on a part of the cores.")
@_common
@click.option("--out", type=Folder(new=True), default=Path("runs"), show_default=True, help="Runs go to OUT/NAME.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
def sweep(
    names, factors, seeds, jobs: int, root: Path | None, device: str, out: Path, as_json: bool, options, **fields
) -> None:
    """Run every method at every budget with every seed, and record it.

    What is recorded already is not run again, and what was interrupted goes on. A run that fails does not stop the
    others; the exit code is then 2.
    """
    configs = [
        runs.RunConfig(method=name, pruning_factor=factor, seed=seed, options=_named(options), **fields)
        for seed in seeds
        for factor in factors
        for name in names or methods.STRUCTURED
    ]
    machine.device_of(device)  # what would fail in each of them fails before the first
    console, records, failed = Console(stderr=True), [], {}
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=console, disable=not console.is_terminal,
    )  # fmt: skip
    said = set()

    def say_failed() -> None:
        for name in [name for name in failed if name not in said]:
            said.add(name)
            console.print(f"{name}: {failed[name]}", style="red", highlight=False, markup=False, soft_wrap=True)

    with progress:
        task = progress.add_task("runs", total=len(configs))
        for config, record in sweeps.sweep(configs, out, root=root, device=device, jobs=jobs):
            progress.advance(task)
            if isinstance(record, BarError):
                failed[config.name] = str(record)
                if records or len(set(failed.values())) > 1:
                    say_failed()
                continue
            say_failed()
            records.append(record)
            used = record[config.metric] / record["budget"]
            console.print(
                f"{config.name}: {record['accuracy']:.2%} (unpruned {record['accuracy_unpruned']:.2%}), "
                f"{used:.1%} of the budget, {record['seconds']:.0f} s",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    if failed and not said:  # the same everywhere, and nothing else: what was typed is wrong, so it is said once
        raise BarError(next(iter(failed.values())))
    if as_json:
        click.echo(json.dumps(records, indent=1))
    else:
        console.print(f"{len(records)} runs are recorded in {out}", highlight=False, markup=False)
    if failed:
        raise BarError(f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}")


def _named(options: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, again and again, as a dict."""
    for option in options:
        if "=" not in option:
            raise BarError(f"an option is given as NAME=VALUE, not {option!r:.60}")
    return {name: value for name, _, value in (option.partition("=") for option in options)}


@app.command(
    "methods",
    epilog=_examples(
        "bar methods                                  # all of them",
        "bar methods learning-compression             # one, with its options",
        "bar run --method learning-compression -o norm=l1 -o kappa=400",
    ),
)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def methods_(name: str | None, as_json: bool) -> None:
    """What methods there are, or the options of one."""
    shown = methods.options(name) if name else methods.table()
    if as_json:
        click.echo(json.dumps(shown.reset_index().to_dict("records"), indent=1))
        return
    title = f"{name}: {methods.find(name).summary}" if name else "Methods"
    table = Table(title=escape(title), title_justify="left")
    for column in (shown.index.name, *shown.columns):
        table.add_column(column)
    for row in shown.itertuples():
        table.add_row(*(escape(str(cell)) for cell in row))
    Console().print(table)


class Interrupted(Exception):
    """Ctrl-C, and what to say about it."""


def _tensorboard() -> tuple[Callable[[Path], None], Callable[[runs.RunConfig, dict], None]]:
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


@app.command(
    epilog=_examples(
        "bar count --model wrn-28-12 --input-size 3 32 32",
        "bar count --model resnet50 --input-size 3 128 128 --json",
        "bar count --model runs/NAME --layers         # a pruned network",
    )
)
@click.option("--model", default=DEFAULT.model, show_default=True, help="As for `bar run`, or the folder of a run.")
@click.option(
    "--input-size",
    type=int,
    nargs=3,
    metavar="C H W",
    help="Channels, height, width. [default: 3 32 32, or the run's own]",
)
@click.option("--classes", type=int, default=10, show_default=True)
@click.option("--linear", is_flag=True, help="Count the FLOPs of linear layers too.")
@click.option("--layers", is_flag=True, help="Show every layer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def count(
    model: str, input_size: tuple[int, int, int] | None, classes: int, linear: bool, layers: bool, as_json: bool
) -> None:
    """Count a network's activation volume, FLOPs and parameters, for one image.

    Volume: the outputs of all convolutions. FLOPs: two per multiply-accumulate, of convolutions only.
    """
    if _is_stored(model):
        network, input_size = _stored(model, input_size)
    else:
        input_size = input_size or (3, 32, 32)
        network = models.outline(model, classes, input_size)
    cost = bar.count(network, input_size, linear=linear)
    if as_json:
        shown = dataclasses.asdict(cost) | {"model": model, "input_size": list(input_size)}
        click.echo(json.dumps(shown if layers else {k: v for k, v in shown.items() if k != "layers"}, indent=1))
        return
    table = Table(title=escape(f"{model} at {'x'.join(map(str, input_size))}"), title_justify="left")
    columns = ("features", "area", "volume", "flops", "parameters")
    table.add_column("layer")
    for column in columns:
        table.add_column(column, justify="right")
    for name, layer in cost.layers.items() if layers else ():
        table.add_row(escape(name), *(f"{layer[c]:,}" for c in columns))
    table.add_row("total", "", "", f"{cost.volume:,}", f"{cost.flops:,}", f"{cost.parameters:,}", style="bold")
    Console().print(table)


def _is_stored(folder: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # too long a name, or one that is none
        return (Path(folder) / storage.ARCHITECTURE).exists()
    return False


def _stored(folder: Path | str, input_size: tuple[int, int, int] | None) -> tuple[nn.Module, Sequence[int]]:
    """The network in a folder, and its input size: the one given, or that of the run."""
    network = bar.load(folder)
    input_size = input_size or (runs.read(folder) or {}).get("input_size")
    if input_size is None:
        raise BarError(f"{folder} does not say its input size: give --input-size")
    return network, input_size


@app.command(
    epilog=_examples(
        "bar export runs/NAME                         # writes runs/NAME/network.onnx",
        "bar export runs/NAME --format pt2",
        "bar export runs/NAME --out model.onnx --json | jq .difference",
    )
)
@click.argument("run", metavar="RUN", type=Folder())
@click.option("--format", help="onnx or pt2 (torch.export). [default: by the suffix of --out, or onnx]")
@click.option("--out", type=Folder(), help="The file. [default: network.FORMAT in the run's folder]")
@click.option(
    "--input-size",
    type=int,
    nargs=3,
    metavar="C H W",
    help="Channels, height, width. [default: the run's own]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    run: Path, format: str | None, out: Path | None, input_size: tuple[int, int, int] | None, as_json: bool
) -> None:
    """Write the network of a run to one file that runs without bar.

    RUN is the folder of a run, or another that holds a stored network. The file takes batches of any size, of images
    normalised as in training, and is compared with the network before it is written.
    """
    network, input_size = _stored(run, input_size)
    if out is None:
        format = format or "onnx"
        out = run / f"network.{format}"
    difference = bar.export(network, input_size, out, format)
    size = out.stat().st_size
    if as_json:
        shown = {"file": str(out), "bytes": size, "input_size": list(input_size), "difference": difference}
        click.echo(json.dumps(shown, indent=1))
        return
    click.echo(f"{out}: {size:,} bytes, for images of {'x'.join(map(str, input_size))} in batches of any size")
    compared = "not compared, since onnxruntime is not installed" if difference is None else f"{difference:.1e}"
    click.echo(f"max relative difference from the network: {compared}")


@app.command(
    epilog=_examples(
        "bar book                                     # the same as `make book`",
        "bar book PRUNING_FACTOR=8 SEED=1             # for every notebook that has such a parameter",
    )
)
@click.argument("parameters", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--fresh", is_flag=True, help="Run all notebooks again, also those of which nothing has changed.")
def book(parameters: tuple[str, ...], fresh: bool) -> None:
    """Run every notebook with the parameters given, and build the book from them.

    To be called in the top folder of a clone of the repository. The first failing cell stops it. A notebook runs again
    only if something has changed that it is made from.
    """
    from bar import book as book_  # papermill and Sphinx are an extra of the package

    click.echo(f"the book: {book_.build(book_.parse_parameters(parameters), fresh=fresh)}")


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2.

    When nobody reads the output any more, as in ``bar results | head``, it ends without a word, as other programs do.
    """
    _reserve_streams()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # None where it is closed
            stream.reconfigure(errors="backslashreplace")  # whatever the terminal can show
    if sys.stdout is None:
        _fail("standard output is closed: if it is not wanted, send it to /dev/null")
    try:
        code = app.main(prog_name="bar", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        _fail(error.format_message())
    except BarError as error:
        _fail(str(error))
    except (BrokenPipeError, SystemExit):  # the latter of click and of rich, for the same reason
        _discard(sys.stdout, sys.stderr)
        sys.exit(UNREAD)
    except OSError as error:  # the disk is full, say, or what standard output goes to
        _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
    except (MemoryError, RuntimeError) as error:
        if not _is_about_memory(error):
            raise
        _fail(f"not enough memory: {error}")
    except (KeyboardInterrupt, click.Abort, Interrupted) as error:
        print("bar:", str(error) or "interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _is_about_memory(error: Exception) -> bool:
    """Torch has a class of its own for a GPU only."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _reserve_streams() -> None:
    """Where a standard stream is closed, no file may be opened in its place: it would get what is written there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _discard(*streams: TextIO | None) -> None:
    """What is left in a stream goes nowhere, or Python complains of it at its end."""
    for stream in streams:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(message: str) -> None:
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        _discard(sys.stdout)
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print("bar: " + printable(" ".join(message.split())), file=sys.stderr)
    sys.exit(2)
