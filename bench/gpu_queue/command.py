"""Use the minutes of a GPU that somebody is lent: run what tells most first, and keep each record at once.

1. bar, its rivals and the uniform network on WRN-16-2, factors 4 and 16 with all seeds, then 2 and 8
2. images a second in the unpruned phase of WRN-28-12, and the share of the GPU's bfloat16 peak
3. WRN-16-4 with the paper's settings, factors 16 and 4

The same command goes on where it was stopped. A run that would not be ready in time is not begun.

  python bench/gpu.py --out results/gpu --minutes 9 --archive cifar10-jpeg.tar.xz
  python bench/gpu.py --out results/gpu --minutes 9 --parts 2 1 --archive cifar10-jpeg.tar.xz
  python bench/gpu.py --dry-run
"""

import argparse
import dataclasses
import json
import logging
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bar import machine, runs
from bar.errors import BarError
from gpu_queue import images, planning, tasks, working

PHASES = ("PRUNE", "TUNE", "COOL")


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    made = argparse.ArgumentParser("gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--out", type=Path, help="folder of the records; what is there is not run again")
    add("--minutes", type=float, default=9.0, help="until all must be over (%(default)s)")
    add("--archive", type=Path, help="cifar10-jpeg.tar.xz, unless it is unpacked in WORK")
    add("--work", type=Path, help="for images, networks and checkpoints (runs/gpu)")
    add(
        "--parts",
        type=int,
        nargs="+",
        choices=tasks.KINDS,
        default=[*tasks.KINDS],
        help="which, in which order (1 2 3)",
    )
    add("--seeds", type=int, nargs="+", help="of the comparison (10 11 12)")
    add("--epochs", type=int, nargs=3, metavar=PHASES, help="of the comparison (8 4 1)")
    add("--batch-size", type=int, help="of the comparison (256)")
    add("--paper-epochs", type=int, nargs=3, metavar=PHASES, help="of part 3 (80 40 10)")
    add("--at-once", type=int, help="how many runs share the GPU (by its memory and the cores)")
    add("--device", default="auto", help="auto, cpu, cuda, … (auto)")
    add("--commit", help="of this code, where it is a copy without git")
    add("--pack", type=Path, help="a .tar.gz of all records, made anew with each of them")
    add("--dry-run", action="store_true", help="all parts in miniature on a CPU, with made-up images")
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Run the queue."""
    given = parser().parse_args(words)
    end, made_up = working.now() + 60 * given.minutes, None
    logging.basicConfig(format="%(message)s")
    sizes = {name: getattr(given, name) for name in ("seeds", "epochs", "batch_size", "paper_epochs")}
    sizes = {
        name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items() if value is not None
    }
    try:
        if given.out is None and not given.dry_run:
            raise BarError("say where the records go: --out FOLDER")
        if given.at_once is not None and given.at_once < 1:
            raise BarError(f"--at-once must be at least 1, not {given.at_once}")
        if given.dry_run:
            made_up = Path(tempfile.mkdtemp(prefix="bar-gpu-"))
            given.device, given.archive = "cpu", images.make_up(made_up / "images.tar.gz")
            given.out, given.work = given.out or made_up / "out", given.work or made_up / "work"
        given.work = given.work or Path("runs/gpu")  # which git ignores: no image is ever committed
        _run(dataclasses.replace(planning.MINIATURE if given.dry_run else planning.FULL, **sizes), given, end)
    except BarError as error:
        sys.exit(f"Error: {error}")
    finally:
        if made_up:
            shutil.rmtree(made_up)


def _run(plan: planning.Plan, given: argparse.Namespace, end: float) -> None:
    place = machine.device_of(given.device)
    begun, at_once = working.now(), given.at_once or working.processes_for(place)
    images.unpack(given.archive, given.work / "data", given.dry_run)
    loaded = images.images_on("cpu", plan.size, given.work / "data")
    if machine.commit() is None and given.commit is None:
        print("the records will not know their commit: there is no git here; tell it by --commit", flush=True)
    records = tasks.Records(given.out, given.work, str(place), at_once, given.commit, given.pack, loaded)

    def say(line: str) -> None:
        print(f"[{max(0.0, end - working.now()) / 60:5.1f} min left] {line}", flush=True)

    taken = working.now() - begun
    say(f"{machine.hardware(place)}: {loaded.label}, {len(loaded.train):,} training images, ready after {taken:.0f} s")
    dropped = {}
    for part, due in tasks.of_parts(given.parts, plan, records).items():
        together = at_once if part != 2 else 1  # what is timed is alone
        say(f"part {part}, {tasks.KINDS[part]}: {len(due)} to do, {together} at once")
        dropped |= working.carry_out(due, together, not given.dry_run, end, say)
    _show(given.out, dropped)


def _measured(folder: Path) -> Table:
    """What has been measured, on any device."""
    table = Table("network", "batch", "variant", "images/s", "of peak", "hardware", title=folder.name)
    for one in (json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))):
        share = "" if one["share_of_peak"] is None else f"{one['share_of_peak']:.1%}"
        rate = f"{one['images_per_second']:,.0f}"
        table.add_row(one["model"], f"{one['batch_size']}", one["variant"], rate, share, one["hardware"])
    return table


def _show(out: Path, dropped: dict[str, str]) -> None:
    """What is recorded by now, and what was dropped, and why."""
    console = Console(width=110)
    for part, kind in tasks.KINDS.items():
        if part == 2:
            console.print(_measured(out / kind))
            continue
        found = runs.records(out / kind)
        if not len(found):
            console.print(f"{kind}: 0 records", highlight=False)
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
    print(f"dropped: {len(dropped)}{' (' if said else ''}{said}{')' if said else ''}")
    for name, why in dropped.items():
        print(f"  {name}: {why}")
