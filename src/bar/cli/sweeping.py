"""``bar sweep``."""

import json
import logging
import signal
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import click
from click.core import ParameterSource

from bar import machine, methods, runs
from bar.arguments import Folder
from bar.cli import streams, watching
from bar.cli.describing import WithMethods
from bar.cli.options import common, examples, named
from bar.cli.progress import Interrupted
from bar.errors import BarError, printable
from bar.runs import plans, reproducing, sweeps
from bar.runs.compare import costs

log = logging.getLogger(__name__)

RECORDS = (Path("results"), Path("runs"))
HOW = {"root", "device", "out", "jobs", "ray", "processes", "dry_run", "as_json", "file"}  # options beside a file


@click.command(
    cls=WithMethods,
    epilog=examples(
        "bar sweep                          # all that prune structures, on digits",
        "bar sweep -m bar -m magnitude -x 4 -x 16 -s 0 --jobs 2",
        "bar sweep --dry-run                # what would run, what is recorded, how long it takes",
        "bar sweep table.yaml --out runs/table --ray auto        # on the cluster of this machine",
        "bar sweep --model package.module:function --weights trained.pt",
        "bar sweep --dataset cifar10 --model wrn-28-12 --preset paper --out runs/c10 --ray HOST:6379",
        "bar sweep                          # Ctrl-C, then the same again: it goes on",
    ),
)
@click.argument("file", metavar="[FILE]", type=Folder(), required=False)  # a path that can exist
@click.option(
    "--method",
    "-m",
    "names",
    multiple=True,
    help="One of those below, again for each. [default: all that prune structures]",
)
@click.option(
    "--pruning-factor",
    "-x",
    "factors",
    type=float,
    multiple=True,
    default=plans.LISTS["pruning_factor"],
    show_default=True,
    help="Again for each.",
)
@click.option(
    "--seed",
    "-s",
    "seeds",
    type=int,
    multiple=True,
    default=plans.LISTS["seed"],
    show_default=True,
    help="Again for each.",
)
@click.option("--jobs", type=int, help="So many runs at a time. [default: 1; with --ray as many as there is room for]")
@click.option(
    "--ray", metavar="ADDRESS", help="Run on a Ray cluster: auto, or HOST:PORT. OUT must be seen by all of it."
)
@click.option(
    "--processes", type=int, default=1, show_default=True, help="Share each batch among so many GPUs, or CPU processes."
)
@common
@click.option("--out", type=Folder(new=True), default=Path("runs"), show_default=True, help="Runs go to OUT/NAME.")
@click.option("--dry-run", is_flag=True, help="List the runs, what is recorded of them, and the time; run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the records, or the list, as JSON.")
@click.pass_context
def sweep(
    context: click.Context, file: Path | None, names, factors, seeds, jobs: int | None, ray: str | None,
    processes: int, root: Path | None, device: str, out: Path, dry_run: bool, as_json: bool, options, **fields,
) -> None:  # fmt: skip
    """Run every method at every budget with every seed, and record it.

    FILE, in YAML, says so instead of options: fields of a run and their values, with lists of method, pruning_factor
    and seed. It is kept in OUT, as are the options.

    What is recorded already is not run again, and what was interrupted goes on. A run that fails does not stop the
    others; the exit code is then 1. With --jobs or --ray, a run whose worker dies goes on in another.
    """
    given = [name for name in context.params.keys() - HOW if _is_given(context, name)]
    if file is None:
        plan = [_grid(names, factors, seeds, options, {name: fields[name] for name in fields if name in given})]
    else:
        _refuse_beside(file, given, context)
        plan = plans.read(file)
    with streams.answers_alone():
        configs = plans.configs_of(plan, file)
    sweeps.check(configs, jobs, ray, processes, device)
    sweeps.check_names(configs, root, elsewhere=ray is not None)
    (machine.device_of if ray is None else machine.check_device)(device)  # what would fail in each of them fails here
    stock, workers = reproducing.Stock(*RECORDS, out), jobs or (1 if ray is None else None)
    if dry_run:
        _show(configs, stock, out, workers, as_json)
        return
    board = watching.Board(configs, out, stock, workers, root)
    how = {"root": root, "device": device, "jobs": jobs, "ray": ray, "processes": processes, "began": board.began}
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with streams.answers_alone():  # Ray prints there what died, in front of the JSON
            watching.followed(_kept(sweeps.sweep(configs, out, **how), plan, configs, out), board)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {board.summary()}, in {out}: the same command goes on from there") from None
    if as_json:
        click.echo(json.dumps(board.records, indent=1))
    else:
        many = len(board.records)
        click.echo(f"{many} {'run is' if many == 1 else 'runs are'} recorded in {printable(str(out))}", err=True)
    watching.say_how_to_repeat(board)


def _interrupt(*_) -> None:
    """End as by Ctrl-C: a batch system sends this signal when the time is over."""
    raise KeyboardInterrupt


def _refuse_beside(file: Path, given: Container[str], context: click.Context) -> None:
    typed = [param.opts[0] for param in context.command.params if param.name in given]
    if typed:
        raise BarError(f"{str(file)!r:.200} says what to run: leave out the options that do, such as {min(typed)}")


def _grid(names, factors, seeds, options, fields: dict) -> dict:
    """The same as a file would say it."""
    grid = {"method": list(names or methods.STRUCTURED), "pruning_factor": list(factors), "seed": list(seeds)}
    return grid | fields | ({"options": named(options)} if options else {})


def _kept(ending: Iterable[tuple], plan: list[dict], configs: list[runs.RunConfig], out: Path) -> Iterator[tuple]:
    """The same runs, of which the first new one that ends well brings the plan into the folder."""
    new = not all((out / config.name / runs.RESULT).exists() for config in configs)
    for config, record in ending:
        if new and not isinstance(record, BarError):
            new = False
            try:
                plans.keep(plan, out)
            except BarError as error:
                log.warning("what this sweep is of is not kept: %s", error)
        yield config, record


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _show(
    configs: list[runs.RunConfig], stock: reproducing.Stock, out: Path, jobs: int | None, as_json: bool
) -> None:  # fmt: skip
    """List runs, the unpruned networks that they need among them, and how long what is missing takes."""
    held = {
        config: {
            "name": config.name,
            "done": 1.0 if stock.has(config, out) else min(watching.progress(config, out), 0.999),
            "seconds": stock.seconds(config),
        }
        for config in dict.fromkeys(run for asked in configs for run in (asked.unpruned, asked))
    }
    rows = list(held.values())
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        click.echo(printable(f"{row['name']}  {_state(row)}"))
    left = [row for row in rows if row["done"] < 1]
    known = costs.makespan(
        configs, lambda config: (held[config]["seconds"] or 0) * (1 - held[config]["done"]), jobs or 1
    )
    unknown = sum(row["seconds"] is None for row in left)
    words = [f"{len(rows)} run{'s' * (len(rows) != 1)}, {len(rows) - len(left)} recorded"]
    how = f"{jobs} at a time" if jobs else "one at a time; the cluster makes as many at once as it has room for"
    words += [f"about {watching.duration(known)} for the others, {how}"] * bool(known)
    words += [f"{unknown} of a kind that is not recorded yet, which takes an unknown time"] * bool(unknown)
    click.echo("; ".join(words))
    if known:
        places = ", ".join(dict.fromkeys(map(str, (*RECORDS, out))))
        click.echo(printable(f"(times are those of runs recorded in {places}, on the hardware that made them)"))


def _state(row: dict) -> str:
    if row["done"] == 1:
        return "recorded"
    words = f"{row['done']:.0%} done" if row["done"] else "new"
    left = row["seconds"] and row["seconds"] * (1 - row["done"])
    return words + (f", about {watching.duration(left)}" if left else "")
