"""``bar book``."""

import click

from bar.cli.options import examples


@click.command(
    epilog=examples(
        "bar book                            # the same as `make book`",
        "bar book PRUNING_FACTOR=8 SEED=1    # for all notebooks that have these",
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
