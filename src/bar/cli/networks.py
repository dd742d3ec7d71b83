"""``bar count`` and ``bar export``."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

import bar
from bar import models, runs, storage
from bar.arguments import Folder
from bar.cli.options import DEFAULT, examples
from bar.errors import BarError


@click.command(
    epilog=examples(
        "bar count --model wrn-28-12 --input-size 3 32 32",
        "bar count --model resnet50 --input-size 3 128 128 --json",
        "bar count --model package.module:function",
        "bar count --model runs/NAME --layers         # a pruned network",
    )
)
@click.option("--model", default=DEFAULT.model, show_default=True, help="As for `bar run`, or the folder of a run.")
@click.option(
    "--input-size",
    type=int,
    nargs=3,
    metavar="C H W",
    help="Channels, height, width. [default: 3 32 32, or the run's own]",
)
@click.option(
    "--classes", type=int, help="Outputs. [default: 10; its own of a function that does not take num_classes]"
)
@click.option("--linear", is_flag=True, help="Count the FLOPs of linear layers too.")
@click.option("--layers", is_flag=True, help="Show every layer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def count(
    model: str, input_size: tuple[int, int, int] | None, classes: int | None, linear: bool, layers: bool, as_json: bool
) -> None:
    """Count a network's activation volume, FLOPs and parameters, for one image.

    Volume: the outputs of all convolutions. FLOPs: two per multiply-accumulate, of convolutions only.
    """
    if _is_stored(model):
        network, input_size = _stored(model, input_size)
    else:
        input_size = input_size or (3, 32, 32)
        network = models.outline(model, classes, input_size)
    cost = bar.count(network, input_size, linear=linear)
    if as_json:
        shown = dataclasses.asdict(cost) | {"model": model, "input_size": list(input_size)}
        click.echo(json.dumps(shown if layers else {k: v for k, v in shown.items() if k != "layers"}, indent=1))
        return
    table = Table(title=escape(f"{model} at {'x'.join(map(str, input_size))}"), title_justify="left")
    columns = ("features", "area", "volume", "flops", "parameters")
    table.add_column("layer")
    for column in columns:
        table.add_column(column, justify="right")
    for name, layer in cost.layers.items() if layers else ():
        table.add_row(escape(name), *(f"{layer[c]:,}" for c in columns))
    table.add_row("total", "", "", f"{cost.volume:,}", f"{cost.flops:,}", f"{cost.parameters:,}", style="bold")
    Console().print(table)


def _is_stored(folder: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # too long a name, or one that is none
        return (Path(folder) / storage.ARCHITECTURE).exists()
    return False


def _stored(folder: Path | str, input_size: tuple[int, int, int] | None) -> tuple[nn.Module, Sequence[int]]:
    """The network in a folder, and its input size: the one given, or that of the run."""
    network = bar.load(folder)
    input_size = input_size or (runs.read(folder) or {}).get("input_size")
    if input_size is None:
        raise BarError(f"{folder} does not say its input size: give --input-size")
    return network, input_size


@click.command(
    epilog=examples(
        "bar export runs/NAME                         # writes runs/NAME/network.onnx",
        "bar export runs/NAME --format pt2",
        "bar export runs/NAME --out model.onnx --json | jq .difference",
    )
)
@click.argument("run", metavar="RUN", type=Folder())
@click.option("--format", help="onnx or pt2 (torch.export). [default: by the suffix of --out, or onnx]")
@click.option("--out", type=Folder(), help="The file. [default: network.FORMAT in the run's folder]")
@click.option(
    "--input-size",
    type=int,
    nargs=3,
    metavar="C H W",
    help="Channels, height, width. [default: the run's own]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    run: Path, format: str | None, out: Path | None, input_size: tuple[int, int, int] | None, as_json: bool
) -> None:
    """Write the network of a run to one file that runs without bar.

    RUN is the folder of a run, or another that holds a stored network. The file takes batches of any size, of images
    normalised as in training, and is compared with the network before it is written.
    """
    network, input_size = _stored(run, input_size)
    if out is None:
        format = format or "onnx"
        out = run / f"network.{format}"
    difference = bar.export(network, input_size, out, format)
    size = out.stat().st_size
    if as_json:
        shown = {"file": str(out), "bytes": size, "input_size": list(input_size), "difference": difference}
        click.echo(json.dumps(shown, indent=1))
        return
    click.echo(f"{out}: {size:,} bytes, for images of {'x'.join(map(str, input_size))} in batches of any size")
    compared = "not compared, since onnxruntime is not installed" if difference is None else f"{difference:.1e}"
    click.echo(f"max relative difference from the network: {compared}")
