"""``bar results``."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import click
import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bar import runs
from bar.arguments import Folder
from bar.cli.options import examples
from bar.errors import BarError, printable
from bar.runs import compare

HERE = (Path("results"), Path("runs"))


@click.command(
    epilog=examples(
        "bar results                          # all that is in results and runs",
        "bar results --method bar --method l0 -x 16",
        "bar results runs/mine --each         # a row a run, with its folder",
        "bar results --json | jq '.[].change_points'",
        "bar results --each --csv > runs.csv",
    )
)
@click.argument("folders", metavar="[FOLDER]...", type=Folder(), nargs=-1)
@click.option("--method", multiple=True, help="Only this method (or bar-flops, …); again for more.")
@click.option("--dataset", multiple=True, help="Only this data set; again for more.")
@click.option("--model", multiple=True, help="Only this network; again for more.")
@click.option("--pruning-factor", "-x", type=float, multiple=True, help="Only this factor; again for more.")
@click.option("--seed", type=int, multiple=True, help="Only this seed; again for more.")
@click.option("--each", is_flag=True, help="A row for each run, with its folder.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: all that matters, in full precision.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the same as CSV; what is no number or text is JSON in it.")
def results(folders: tuple[Path, ...], each: bool, as_json: bool, as_csv: bool, **wanted) -> None:
    """What recorded runs came to, in groups that differ in their seeds only.

    Looks at all runs below the folders, by default those in results and runs. The change is in points of test accuracy
    against the unpruned network of the same seed, with Student's interval at 95 % over the seeds; two numbers are the
    factors of volume and of FLOPs that were reached.
    """
    if as_json and as_csv:
        raise BarError("--json and --csv exclude each other")
    places = _places(folders)
    held = list(runs.finished(*places))
    found = compare.described(pd.DataFrame(held))
    if held:
        found = compare.chosen(found, wanted)
    grouped = compare.overview(found)
    if as_json or as_csv:
        rows = [_with_change(held[i]) for i in found.index] if each else grouped.to_dict("records")
        click.echo(_as_json(rows) if as_json else _as_csv(rows, compare.COLUMNS), nl=as_json)
    elif not held:
        click.echo(_nothing(places))
    else:
        _show(_runs_of(grouped, found) if each else _groups(grouped))


def _places(folders: tuple[Path, ...]) -> list[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise BarError(f"there is no folder {str(folder)!r:.200}")
        if folder.resolve() == folder.resolve().parent:
            raise BarError(f"{str(folder)!r} is all there is on this machine: name a folder of runs")
    return list(folders) or [folder for folder in HERE if folder.is_dir()]


def _nothing(places: list[Path]) -> str:
    looked = f"below {', '.join(map(str, places))}" if places else f"here ({Path.cwd()} has no folder results or runs)"
    return printable(f"no finished runs {looked}: `bar run` makes one, `bar sweep` many")


def _with_change(record: Mapping) -> dict:
    """A record as it was written, with its folder, and its change in points."""
    return {**record, "change_points": 100 * (record["accuracy"] - record["accuracy_unpruned"])}


def _as_json(rows: list[dict]) -> str:
    return json.dumps([{name: _or_none(value) for name, value in row.items()} for row in rows], indent=1)


def _as_csv(rows: list[dict], columns: tuple[str, ...]) -> str:
    cells = [
        {name: json.dumps(value) if isinstance(value, dict | list) else _or_none(value) for name, value in row.items()}
        for row in rows
    ]
    table = pd.DataFrame(cells, dtype=object) if cells else pd.DataFrame(columns=list(columns))
    return table.to_csv(index=False, lineterminator="\n")


def _or_none(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def _groups(grouped: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A table for each footing, a row a group; numbers as text."""
    pairs = zip(grouped.change_points, grouped.interval_points, strict=True)
    table = pd.DataFrame(
        {
            "method": grouped.what,
            "budget": _budgets(grouped),
            "runs": grouped.runs.astype(str),
            "acc. %": grouped.accuracy_percent.map("{:.2f}".format),
            "change": ["" if pd.isna(change) else compare.plus_minus(change, width, "+") for change, width in pairs],
            **_factors(grouped),
        }
    )
    return {title: table.loc[rows] for title, rows in grouped.groupby("footing", sort=False).groups.items()}


def _runs_of(grouped: pd.DataFrame, found: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A table for each group, a row a run; numbers as text."""
    change = 100 * (found.accuracy - found.accuracy_unpruned)
    table = pd.DataFrame(
        {
            "seed": found.seed.astype(str),
            "acc. %": (100 * found.accuracy).map("{:.2f}".format),
            "change": change.map(lambda c: compare.plus_minus(c, math.nan, "+")).where(found.method != "unpruned", ""),
            **_factors(found),
            "folder": found.folder,
        }
    )
    named = (", ".join(filter(None, row)) for row in zip(grouped.what, _budgets(grouped), grouped.footing, strict=True))
    keys = found.groupby("key", sort=False).groups
    return {title: table.loc[rows] for title, rows in zip(named, keys.values(), strict=True)}


def _budgets(rows: pd.DataFrame) -> list[str]:
    pairs = zip(rows.method, rows.metric, rows.pruning_factor, strict=True)
    return ["" if method == "unpruned" else f"{metric}/{factor:g}" for method, metric, factor in pairs]


def _factors(rows: pd.DataFrame) -> dict[str, pd.Series]:
    whats = {"volume": rows.volume_factor, "FLOPs": rows.flops_factor}
    return {name: factors.map("{:.1f}".format) for name, factors in whats.items()}


def _show(tables: dict[str, pd.DataFrame]) -> None:
    console = Console()
    for title, rows in tables.items():
        table = Table(
            title=escape(printable(title)), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
            show_edge=False, pad_edge=False,
        )  # fmt: skip
        for column in rows:
            left = column in ("method", "budget", "folder")
            table.add_column(column, justify="left" if left else "right", overflow="fold", no_wrap=not left)
        for row in rows.itertuples(index=False):
            table.add_row(*(escape(printable(cell)) for cell in row))
        console.print(table)
        console.print()
