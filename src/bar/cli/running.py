"""``bar run``."""

import json
import os
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bar import machine, runs
from bar.arguments import Folder
from bar.cli import progress, streams
from bar.cli.describing import WithMethods
from bar.cli.options import DEFAULT, common, examples, named
from bar.errors import BarError, printable
from bar.runs import sweeps
from bar.training import check_shares, torchrun_processes


@click.command(
    cls=WithMethods,
    epilog=examples(
        "bar run                            # digits, a quarter of the volume",
        "bar run --pruning-factor 16 --method magnitude --seed 1",
        "bar run --dataset cifar10 --model wrn-28-12 --preset paper -x 16",
        "bar run --dataset ~/photos --size 64 --model resnet18 --metric flops",
        "bar run --dataset cifar10 --model wrn-28-12 --processes 4    # four GPUs",
        "torchrun --nproc-per-node 4 -m bar run --dataset cifar10 --model wrn-28-12    # the same",
        "bar run --method l0 -o rule=l0 -o gates=normal",
        "bar run --model package.module:function --weights trained.pt",
        "bar run --model timm:resnet18 --weights trained.safetensors --dataset ~/photos --size 64",
        "bar run --json | jq .accuracy",
        "bar run -x 8                       # Ctrl-C, then the same again: it goes on",
    ),
)
@click.option("--method", default=DEFAULT.method, show_default=True, help="One of those below, or your own.")
@click.option(
    "--pruning-factor",
    "-x",
    type=float,
    default=DEFAULT.pruning_factor,
    show_default=True,
    help="Leave at most the full network's size divided by this; above 1.",
)
@click.option("--seed", type=int, default=DEFAULT.seed, show_default=True)
@common
@click.option("--out", type=Folder(new=True), help="Folder of the records. [default: runs/NAME]")
@click.option(
    "--processes", type=int, help="Share each batch among so many GPUs, or CPU processes. [default: 1, or torchrun's]"
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
    processes: int | None,
    resume: bool,
    tensorboard: bool,
    as_json: bool,
    options: tuple[str, ...],
    **fields,
) -> None:
    """Train and prune one network, and record it.

    The unpruned network is trained first, once for each data set, model, seed and length, or has the weights of a file:
    it is the teacher, and what the result is compared with. A run that is already recorded is not run again; one that
    was interrupted goes on.
    """
    with streams.answers_alone():
        config = runs.RunConfig(options=named(options), **fields)
    machine.device_of(device)  # or it is found missing when images have been decoded and a network built
    if torchrun_processes() is None and (processes or 1) > sweeps.most_jobs():
        check_shares(config.settings, processes)
        raise BarError(f"{processes} processes are too many for this machine, which has {os.cpu_count()} cores")
    folder = out or Path("runs") / config.name
    how = {"root": root, "device": device, "processes": processes, "resume": resume}
    if tensorboard:
        how["placed"], how["watch"] = progress.tensorboard()
    try:
        with streams.answers_alone():
            record = progress.run_with_progress(config, folder, **how)
    except KeyboardInterrupt:
        raise progress.Interrupted(
            f"interrupted; all whole epochs are kept in {folder} and beside it: the same command goes on from there"
        ) from None
    from lightning_fabric.utilities import rank_zero_only  # takes seconds to import

    if rank_zero_only.rank:  # of several processes, the first one speaks
        return
    if as_json:
        click.echo(json.dumps(record, indent=1))
    else:
        _show(config, record, folder)


def _show(config: runs.RunConfig, record: dict, folder: Path) -> None:
    """The record of a run as a table, what is used of the budget, and where it is."""
    title = escape(printable(f"{config.model} on {record['dataset_label']}"))
    table = Table(title=title, show_header=True, title_justify="left")
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
    console.print(printable(f"records and network: {folder}"), soft_wrap=True, highlight=False, markup=False)
