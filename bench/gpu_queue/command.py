"""The command line of the queue."""

import dataclasses
import logging
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bar import machine, runs
from bar.errors import BarError
from gpu_queue import images, planning, tasks, working


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the records; what is there is not run again.")
@click.option("--minutes", type=click.FloatRange(0), default=9.0, show_default=True, help="Until all must be over.")
@click.option("--archive", type=click.Path(path_type=Path), help="cifar10-jpeg.tar.xz, unless it is unpacked in WORK.")
@click.option("--work", type=click.Path(path_type=Path), help="For images, networks, checkpoints. [default: OUT-work]")
@click.option("--parts", type=click.IntRange(1, 3), multiple=True, default=(1, 2, 3), show_default=True,
              help="1: methods compared; 2: images a second; 3: the paper's settings. May be given again.")  # fmt: skip
@click.option("--seeds", type=int, multiple=True, help="Of the comparison. [default: 10 11 12]")
@click.option("--epochs", type=int, nargs=3, metavar="PRUNE TUNE COOL", help="Of the comparison. [default: 8 4 1]")
@click.option("--batch-size", type=int, help="Of the comparison. [default: 256]")
@click.option("--paper-epochs", type=int, nargs=3, metavar="PRUNE TUNE COOL", help="Of part 3. [default: 80 40 10]")
@click.option("--at-once", type=click.IntRange(1, 64), help="Runs that share the GPU. [default: by memory and cores]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …")
@click.option(
    "--revision", nargs=2, metavar="COMMIT TREE", help="git rev-parse HEAD HEAD:src/bar, for a copy without git."
)
@click.option("--pack", type=click.Path(path_type=Path), help="A .tar.gz of all records, made anew with each of them.")
@click.option("--dry-run", is_flag=True, help="All parts in miniature on a CPU, with made-up images.")
def main(out, minutes, archive, work, parts, device, at_once, revision, pack, dry_run, **sizes) -> None:
    """Use the minutes of a GPU that somebody is lent: run what tells most first, and keep each record at once.

    \b
    1. bar, its rivals and the uniform network on WRN-16-2, factors 4 and 16 with all seeds, then 2 and 8
    2. images a second in the unpruned phase of WRN-28-12, and the share of the GPU's bfloat16 peak
    3. WRN-16-4 with the paper's settings, factors 16 and 4

    The same command goes on where it was stopped. A run that would not be ready in time is not begun.

    \b
    Examples:
      python bench/gpu.py --out results/gpu --minutes 9 --archive cifar10-jpeg.tar.xz
      python bench/gpu.py --out results/gpu --minutes 5 --parts 2
      python bench/gpu.py --dry-run
    """
    end = working.now() + 60 * minutes
    logging.basicConfig(format="%(message)s")
    plan, made_up = _plan(planning.MINIATURE if dry_run else planning.FULL, sizes), None
    try:
        if out is None and not dry_run:
            raise BarError("say where the records go: --out FOLDER")
        if dry_run:
            device, made_up = "cpu", Path(tempfile.mkdtemp(prefix="bar-gpu-"))
            out, archive = out or made_up / "out", images.make_up(made_up / "images.tar.gz")
        _run(plan, parts, out, work or out.with_name(f"{out.name}-work"), end, archive, device, at_once, revision, pack)
    except BarError as error:
        sys.exit(f"Error: {error}")
    finally:
        if made_up:
            shutil.rmtree(made_up)


def _plan(plan: planning.Plan, sizes: dict) -> planning.Plan:
    return dataclasses.replace(plan, **{name: value for name, value in sizes.items() if value})


def _run(plan, parts, out, work, end, archive, device, at_once, revision, pack) -> None:
    place = machine.device_of(device)
    at_once = at_once or working.processes_for(place)
    images.unpack(archive, work / "data")
    loaded = images.images_on("cpu", plan.size, work / "data")
    if machine.commit() is None and revision is None:
        click.echo("the records will not know their commit: there is no git here; tell it by --revision")
    records = tasks.Records(out, work, str(place), at_once, revision, pack, loaded)
    click.echo(f"{machine.hardware(place)}: {loaded.label}, {len(loaded.train):,} training images; {at_once} at once; "
               f"{(end - working.now()) / 60:.1f} minutes left")  # fmt: skip
    dropped = {}
    for part, due in tasks.of_parts(parts, plan, records).items():
        together = at_once if part != 2 else 1  # what is timed is alone
        click.echo(f"part {part}, {tasks.KINDS[part]}: {len(due)} to do, {together} at once")

        def say(line: str) -> None:
            click.echo(f"[{max(0.0, end - working.now()) / 60:5.1f} min left] {line}")

        dropped |= working.carry_out(due, together, place.type == "cuda", end, say)
    _show(out, dropped)


def _show(out: Path, dropped: dict[str, str]) -> None:
    """What is recorded by now, and what was dropped, and why."""
    console = Console(width=110)
    for part, kind in tasks.KINDS.items():
        found = runs.records(out / kind)
        if not len(found):
            count = len(list((out / kind).glob("*.json"))) if part == 2 else 0
            console.print(f"{kind}: {count} records", highlight=False)
            continue
        change = 100 * (found.accuracy - found.accuracy_unpruned)
        pruned = found.assign(change=change)[found.method != "unpruned"]
        grouped = pruned.groupby(["model", "method", "pruning_factor"]).change.agg(["mean", "count"])
        table = Table(title=f"{kind}: {len(found)} records; points of accuracy against unpruned, seeds in brackets")
        factors = sorted(set(pruned.pruning_factor))
        for column in ("method", *(f"x{factor:g}" for factor in factors)):
            table.add_column(column, justify="left" if column == "method" else "right")
        for model, method in sorted({(model, method) for model, method, _ in grouped.index}):
            cells = [grouped.loc[key] if (key := (model, method, f)) in grouped.index else None for f in factors]
            texts = ["" if cell is None else f"{cell['mean']:+.2f} ({cell['count']:.0f})" for cell in cells]
            table.add_row(f"{model} {method}", *texts)
        console.print(table)
    reasons = Counter(why.partition(":")[0] for why in dropped.values())
    said = ", ".join(f"{count} {why}" for why, count in reasons.items())
    click.echo(f"dropped: {len(dropped)}{' (' if said else ''}{said}{')' if said else ''}")
    for name, why in dropped.items():
        click.echo(f"  {name}: {why}")
