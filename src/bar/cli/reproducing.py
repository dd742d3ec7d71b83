"""``bar reproduce``."""

import json
from pathlib import Path

import click
from click.core import ParameterSource

from bar.arguments import Folder
from bar.cli import watching
from bar.cli.options import examples
from bar.errors import BarError
from bar.runs import reproducing, sources

RECORDS = (Path("results"), Path("runs"))


@click.command(
    epilog=examples(
        "bar reproduce                                # what there is, how much of it is recorded",
        "bar reproduce bar/table-1                    # one of them; `bar reproduce lc` all of a source",
        "bar reproduce bar/table-1 --run              # makes what is missing; goes on if stopped",
        "bar reproduce --run --minutes 60 --jobs 2    # as much of it as an hour holds",
        "bar reproduce --json | jq '.[] | select(.missing > 0).name'",
    )
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--run", is_flag=True, help="Run what is missing, in the order of the list, digits first.")
@click.option("--minutes", type=float, help="With --run: begin nothing that would not end within so many minutes.")
@click.option("--jobs", type=int, default=1, show_default=True, help="With --run: so many runs at a time.")
@click.option(
    "--out", type=Folder(new=True), default=Path("runs"), show_default=True, help="With --run: runs go to OUT/NAME."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reproduce(names: tuple[str, ...], run: bool, minutes: float | None, jobs: int, out: Path, as_json: bool) -> None:
    """The figures and tables of the three sources, and the runs that show them here.

    Here is a laptop's scale: the digits, and 5,000 images of the JPEG mirror of CIFAR-10 if it is there. A run is
    recorded if one with its configuration is below results, runs or OUT; those from before records knew their images
    are old, and made again. Times are those of recorded runs of the same kind, whatever machine they were made on.
    """
    exhibits = sources.find(names)
    if minutes is not None and not run:
        raise BarError("--minutes is for --run, which makes what is missing")
    if not run and click.get_current_context().get_parameter_source("jobs") is ParameterSource.COMMANDLINE:
        raise BarError("--jobs is for --run, which makes what is missing")
    stock = reproducing.Stock(*RECORDS, out)
    if run:
        _run(exhibits, stock, out, minutes, jobs)
    states = [_state(exhibit, stock, out) for exhibit in exhibits]
    if as_json:
        click.echo(json.dumps(states, indent=1))
    elif not run:
        click.echo("\n\n".join(map(_shown, states)))


def _run(
    exhibits: tuple[sources.Exhibit, ...], stock: reproducing.Stock, out: Path, minutes: float | None, jobs: int
) -> None:
    """Make what is missing, as far as the time goes."""
    wanted = dict.fromkeys(config for exhibit in exhibits for config in exhibit.configs if not stock.has(config))
    configs = [config for config in wanted if reproducing.have_data(config)]
    configs.sort(key=lambda config: config.dataset != "digits")  # photographs take hours
    board = watching.Board(configs, out, stock, jobs)
    ending = reproducing.run_within(configs, stock, out, minutes=minutes, jobs=jobs, began=board.began)
    watching.followed(ending, board)
    left = [config for config in configs if not stock.has(config) and config not in board.failed]
    message = f"{len(board.records)} runs are recorded in {out}" if configs else "there is nothing to run"
    if left:
        time = _time(*reproducing.estimate(left, stock, out))
        message += f"; {len(left)} are left, {time}: the same command goes on"
    if len(configs) < len(wanted):
        message += f"; the data of {len(wanted) - len(configs)} are not here"
    click.echo(message, err=True)
    watching.say_how_to_repeat(board)


def _state(exhibit: sources.Exhibit, stock: reproducing.Stock, out: Path) -> dict[str, object]:
    """What is said of a figure or a table, JSON's own types."""
    configs = exhibit.configs
    lacking = [config for config in configs if not stock.has(config)]
    possible = [config for config in lacking if reproducing.have_data(config)]
    old = [config for config in lacking if stock.has_old(config)]
    seconds, unknown = reproducing.estimate(possible, stock, out)
    return {
        "name": exhibit.name,
        "source": exhibit.source,
        "what": exhibit.what,
        "chapter": exhibit.chapter,
        "runs": len(configs),
        "recorded": len(configs) - len(lacking),
        "old": len(old),
        "missing": len(lacking) - len(old),
        "without_data": len(lacking) - len(possible),
        "seconds": seconds,
        "seconds_unknown": unknown,
        "commands": [sweep.command for sweep in exhibit.here],
        "gpu_commands": [sweep.command for sweep in exhibit.gpu],
    }


def _shown(state: dict) -> str:
    """The same for people."""
    lines = [click.style(state["name"], bold=True) + f"  {state['what']}"]
    if state["commands"]:
        lines.append(f"  chapter {state['chapter']}; {_progress(state)}")
        lines += [f"  $ {command}" for command in state["commands"]]
    elif state["gpu_commands"]:
        lines.append(f"  chapter {state['chapter']}; too large to be run here")
    else:
        lines.append(f"  chapter {state['chapter']}; no runs needed")
    if state["gpu_commands"]:
        lines.append("  On the scale of the source, which needs a GPU:")
        lines += [f"  $ {command}" for command in state["gpu_commands"]]
    return "\n".join(lines)


def _progress(state: dict) -> str:
    parts = [f"{state['recorded']} of {state['runs']} runs recorded"]
    parts += [f"{state['old']} old"] * bool(state["old"])
    if state["old"] + state["missing"] > state["without_data"]:
        parts.append(f"the others take {_time(state['seconds'], state['seconds_unknown'])}")
    if state["without_data"]:
        parts.append(f"the data of {state['without_data']} are not here")
    return ", ".join(parts)


def _time(seconds: float, unknown: int) -> str:
    """Roughly, and how many runs it is not known for.

    Examples
    --------
    >>> _time(5000, 0), _time(90, 2), _time(0, 3)
    ('about 1 h 23 min', 'about 2 min, and 2 an unknown time', 'an unknown time')
    """
    if unknown and not seconds:
        return "an unknown time"
    words = f"about {watching.duration(seconds)}"
    return words + (f", and {unknown} an unknown time" if unknown else "")
