"""The options that several commands have, and how examples are shown."""

from collections.abc import Callable, Sequence

import click

from bar.arguments import Folder
from bar.cost import METRICS
from bar.errors import BarError
from bar.runs import RunConfig
from bar.schedule import SCHEDULES
from bar.training import PRESETS

DEFAULT = RunConfig()


def examples(*lines: str) -> str:
    """The end of a command's help."""
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
        help="wrn-DEPTH-WIDTH, conv4, or one of torchvision such as resnet18 (resnet18-by-8: an eighth of the widths); "
        "timm:NAME; or your own, PACKAGE.MODULE:FUNCTION, which is imported from here.",
    ),
    click.option(
        "--weights",
        metavar="FILE",
        help="Prune the network of these weights: a state dict, in .safetensors, .pt or .pth. It is the teacher, and "
        "what the result is compared with, as it is.",
    ),
    click.option(
        "--metric",
        help=f"Budget in: {', '.join(METRICS)}, or weights. [default: volume; weights where single ones are zeroed]",
    ),
    click.option("--preset", default=DEFAULT.preset, show_default=True, help=f"One of: {', '.join(PRESETS)}."),
    click.option(
        "--size",
        type=int,
        help="Side of the images in pixels. [default: the data set's own; of a folder, if all are squares of one size]",
    ),
    click.option("--limit", type=int, help="Use only so many training images."),
    click.option("--epochs", type=int, nargs=3, metavar="PRUNE TUNE COOL", help="Instead of the preset's epochs."),
    click.option("--batch-size", type=int, help="Images in a step, instead of the preset's; learning rates stay."),
    click.option(
        "--schedule",
        default=DEFAULT.schedule,
        show_default=True,
        help=f"How the budget of bar comes down: {', '.join(SCHEDULES)}.",
    ),
    click.option("--distill/--no-distill", default=None, help="Let the unpruned network teach. [default: with bar]"),
    click.option(
        "--start",
        help="scratch (or random), or unpruned: begin with the unpruned network's weights. [default: scratch; unpruned "
        "with --weights]",
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
        help="An option of the method; `bar methods METHOD` tells what there is.",
    ),
    click.option(
        "--data",
        "root",
        type=Folder(),
        help="Where data sets live. [default: $BAR_DATA or ~/.cache/bar]",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …"),
)


def common(command: Callable) -> Callable:
    """A command that also has the options which `run` and `sweep` share."""
    for option in reversed(_COMMON):
        command = option(command)
    return command


def named(options: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE, again and again, as a dict."""
    for option in options:
        if "=" not in option:
            raise BarError(f"an option is given as NAME=VALUE, not {option!r:.60}")
    found = {name: value for name, _, value in (option.partition("=") for option in options)}
    if len(found) < len(options):
        twice = next(name for name in found if sum(option.startswith(f"{name}=") for option in options) > 1)
        raise BarError(f"the option {twice!r:.60} is given twice")
    return found
