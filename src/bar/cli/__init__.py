"""The command line: ``bar`` and its commands, each of which has its own ``--help``."""

import contextlib
import sys

import click
import torch

from bar.cli import describing, networks, pages, reproducing, results, running, streams, sweeping
from bar.cli.progress import Failed, Interrupted
from bar.errors import BarError

__all__ = ["app", "main"]

UNREAD = 128 + 13  # the exit code that a shell gives to a program that SIGPIPE has ended


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command has its own --help, with examples.",
)
@click.version_option(package_name="bar-pruning", prog_name="bar")
def app() -> None:
    """Train a CNN and prune it to a budget at the same time (BAR, CVPR 2019)."""


for command in (
    running.run, sweeping.sweep, results.results, reproducing.reproduce, describing.methods_, networks.count,
    networks.export, pages.book,
):  # fmt: skip
    app.add_command(command)


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2; runs that failed are exit code 1.

    When nobody reads the output any more, as in ``bar results | head``, it ends without a word, as other programs do.
    """
    streams.reserve()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # None where it is closed
            stream.reconfigure(errors="backslashreplace")  # whatever the terminal can show
    if sys.stdout is None:
        streams.fail("standard output is closed: if it is not wanted, send it to /dev/null")
    try:
        code = app.main(prog_name="bar", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        streams.fail(error.format_message())
    except BarError as error:
        streams.fail(str(error))
    except Failed as error:
        streams.fail(str(error), 1)
    except (BrokenPipeError, SystemExit):  # the latter of click and of rich, for the same reason
        streams.discard(sys.stdout, sys.stderr)
        sys.exit(UNREAD)
    except OSError as error:  # the disk is full, say, or what standard output goes to
        streams.fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
    except (MemoryError, RuntimeError) as error:
        if not _is_about_memory(error):
            raise
        streams.fail(f"not enough memory: {error}")
    except (KeyboardInterrupt, click.Abort, Interrupted) as error:
        print("bar:", str(error) or "interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _is_about_memory(error: Exception) -> bool:
    """Torch has a class of its own for a GPU only."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
