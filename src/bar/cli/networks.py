"""``bar count`` and ``bar export``."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

import bar
from bar import models, runs, storage
from bar.arguments import Folder
from bar.cli import streams
from bar.cli.options import DEFAULT, examples
from bar.errors import BarError, printable


class _Shapes(click.ParamType):
    """Shapes of one image of several inputs, such as ``3x32x32,5``."""

    name = "shapes"

    def convert(self, value, param, ctx) -> list[tuple[int, ...]]:
        if isinstance(value, list):
            return value
        shapes = [part.split("x") for part in value.split(",")]
        if not all(n.isdecimal() and 0 < int(n) < 2**24 for shape in shapes for n in shape):
            self.fail(f"{value!r} is not like 3x32x32,5, the shape of one image for each input")
        return [tuple(map(int, shape)) for shape in shapes]


_inputs = click.option(
    "--inputs", type=_Shapes(), metavar="SHAPES", help="Of a network of several inputs, instead: such as 3x32x32,5."
)


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
@_inputs
@click.option(
    "--classes", type=int, help="Outputs. [default: 10; its own of a function that does not take num_classes]"
)
@click.option("--linear", is_flag=True, help="Count the FLOPs of linear layers too.")
@click.option("--layers", is_flag=True, help="Show every layer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def count(
    model: str,
    input_size: tuple[int, int, int] | None,
    inputs: list[tuple[int, ...]] | None,
    classes: int | None,
    linear: bool,
    layers: bool,
    as_json: bool,
) -> None:
    """Count a network's activation volume, FLOPs and parameters, for one image.

    Volume: the outputs of all convolutions. FLOPs: two per multiply-accumulate, of convolutions only.
    """
    if _is_stored(model):
        if classes is not None:
            raise BarError("--classes is for networks that are made by name: a stored one has its own")
        network, sizes = _stored(model, input_size, inputs)
    elif inputs:
        raise BarError("--inputs is for stored networks, as --model: those that are made by name take one image")
    elif "/" in model and ":" not in model:
        raise BarError(f"there is no folder {model!r:.200} with a network in it")
    else:
        sizes = [input_size or (3, 32, 32)]
        with streams.answers_alone():
            network = models.outline(model, classes, sizes[0])
    with streams.answers_alone():
        cost = bar.count(network, linear=linear, example_inputs=_images(network, sizes))
    if as_json:
        shown = dataclasses.asdict(cost) | {"model": model, "input_size": _listed(sizes)}
        click.echo(json.dumps(shown if layers else {k: v for k, v in shown.items() if k != "layers"}, indent=1))
        return
    table = Table(title=escape(printable(f"{model} at {_shown(sizes)}")), title_justify="left")
    columns = ("features", "area", "volume", "flops", "parameters")
    table.add_column("layer", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, layer in cost.layers.items() if layers else ():
        table.add_row(escape(name), *(f"{layer[c]:,}" for c in columns))
    table.add_row("total", "", "", f"{cost.volume:,}", f"{cost.flops:,}", f"{cost.parameters:,}", style="bold")
    console = Console()
    least = console.measure(table, options=console.options.update(width=1000)).minimum
    Console(width=max(console.width, least)).print(table)  # on a narrow terminal, longer lines and no cut number


def _is_stored(folder: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # too long a name, or one that is none
        return (Path(folder) / storage.ARCHITECTURE).exists()
    return False


def _stored(
    folder: Path | str, input_size: tuple[int, int, int] | None, inputs: list[tuple[int, ...]] | None
) -> tuple[nn.Module, list[Sequence[int]]]:
    """The network in a folder, and the sizes of its inputs: those given, or that of the run."""
    network = bar.load(folder)
    if inputs is not None:
        return network, inputs
    input_size = input_size or (runs.read(folder) or {}).get("input_size")
    if input_size is None:
        raise BarError(f"{folder} does not say its input size: give --input-size")
    return network, [input_size]


def _images(network: nn.Module, sizes: list[Sequence[int]]) -> list[Tensor]:
    """An image of each size, without values."""
    dtype = next((p.dtype for p in network.parameters()), torch.float32)
    return [torch.empty(1, *size, dtype=dtype, device="meta") for size in sizes]


def _listed(sizes: list[Sequence[int]]) -> list:
    """The size of the only input, or those of all."""
    return list(sizes[0]) if len(sizes) == 1 else [list(size) for size in sizes]


def _shown(sizes: list[Sequence[int]]) -> str:
    return " and ".join("x".join(map(str, size)) for size in sizes)


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
@_inputs
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    run: Path,
    format: str | None,
    out: Path | None,
    input_size: tuple[int, int, int] | None,
    inputs: list[tuple[int, ...]] | None,
    as_json: bool,
) -> None:
    """Write the network of a run to one file that runs without bar.

    RUN is the folder of a run, or another that holds a stored network. The file takes batches of any size, of images
    normalised as in training, and is compared with the network before it is written.
    """
    network, sizes = _stored(run, input_size, inputs)
    if out is None:
        format = format or "onnx"
        out = run / f"network.{format}"
    difference = bar.export(network, path=out, format=format, example_inputs=_images(network, sizes))
    size = out.stat().st_size
    if as_json:
        shown = {"file": str(out), "bytes": size, "input_size": _listed(sizes), "difference": difference}
        click.echo(json.dumps(shown, indent=1))
        return
    click.echo(f"{printable(str(out))}: {size:,} bytes, for images of {_shown(sizes)} in batches of any size")
    compared = "not compared, since onnxruntime is not installed" if difference is None else f"{difference:.1e}"
    click.echo(f"max relative difference from the network: {compared}")
