"""``bar methods``, and what the help of other commands says about methods."""

import json

import click
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bar import methods
from bar.cli import streams
from bar.cli.options import examples

OTHERS = {
    "unpruned": "The full network, which all of them are compared with.",
    "FILE.py:CLASS": "Your own: a class of base bar.methods.Method in that file.",
}


class WithMethods(click.Command):
    """A command whose help lists the methods below its options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, then the methods."""
        super().format_options(ctx, formatter)
        with formatter.section("Methods"):
            formatter.write_dl([*methods.table().summary.items(), *OTHERS.items()])
            formatter.write_paragraph()
            formatter.write_text(
                "`bar methods METHOD` lists the options of a method, what they may be and how they are usually; each "
                "is given here as -o NAME=VALUE."
            )


@click.command(
    "methods",
    epilog=examples(
        "bar methods                                  # all of them",
        "bar methods learning-compression             # one, with its options",
        "bar run --method learning-compression -o norm=l1 -o kappa=400",
    ),
)
@click.argument("name", metavar="[METHOD]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def methods_(name: str | None, as_json: bool) -> None:
    """What methods there are, or the options of one."""
    with streams.answers_alone():
        shown = methods.options(name) if name else methods.table()
    if as_json:
        click.echo(json.dumps(shown.reset_index().to_dict("records"), indent=1))
        return
    title = f"{name}: {methods.find(name).summary}" if name else "Methods"
    table = Table(title=escape(title), title_justify="left", show_lines=not name)
    if not name:
        shown = _on_narrow_terminals(shown)
    for column in (shown.index.name, *shown.columns):
        table.add_column(column, overflow="fold")
    for row in shown.itertuples():
        table.add_row(*(escape(str(cell)) for cell in row))
    Console().print(table)


def _on_narrow_terminals(methods: pd.DataFrame) -> pd.DataFrame:
    """The table of methods in three columns."""
    facts = [
        f"{row.summary}\nBudget: {row.budget}. Starts from: {row.start}."
        + (f" Needs {row.needs}." if row.needs else "")
        for row in methods.itertuples()
    ]
    options = methods.options.str.replace(", ", "\n")
    return pd.DataFrame({"what it does": facts, "options": options}, index=methods.index)
