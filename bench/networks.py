"""Which public networks can be gated, how much of them can be pruned, and is what is pruned exact?

Each network of a list is made with random weights, in a process of its own and within a time limit: gated, 40 % of its
gates shut at random, pruned, and compared with the gated network in float64. So that no signal is drowned, batch norms
have means of N(0, 0.1), variances from 0.5 to 1.5 and shifts of N(0, 0.3), and the record has, beside the largest
difference, how far the shut gates have moved the output: an error is to be seen against that. What has been measured is
not measured again, so that the whole can be stopped and continued. The networks come from torchvision, timm and
segmentation_models_pytorch, which must be installed (and yacs, for one repository), and from the repositories of GitHub
that are checked out in `--sources`, in folders of their names.
"""

import csv
import importlib
import json
import multiprocessing
import sys
import time
import types
from pathlib import Path

import click
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import bar
from bar import files, machine

SHUT = 0.4
_CLASSES = {"resnet50": "resnet", "seresnet50": "senet", "stochastic_depth_resnet18": "stochasticdepth",
            "stochastic_depth_resnet50": "stochasticdepth", "densenet121": "densenet", "preactresnet18": "preactresnet",
            "preactresnet50": "preactresnet", "resnext50": "resnext", "vgg19_bn": "vgg", "resnet_in_resnet": "rir",
            "shufflenet": "shufflenet", "shufflenetv2": "shufflenetv2", "wideresnet": "wideresidual"}  # fmt: skip


def make(source: str, name: str, sources: Path) -> nn.Module:
    """A network of a list, with random weights."""
    if source == "torchvision":
        return torchvision.models.get_model(name, weights=None)
    if source == "timm":
        return importlib.import_module("timm").create_model(name)
    if source == "segmentation_models_pytorch":
        kind, encoder = name.split("/")
        module = importlib.import_module(source)
        return getattr(module, kind)(encoder, encoder_weights=None)
    if source == "ultralytics":
        tasks = importlib.import_module("ultralytics.nn.tasks")
        kind = tasks.ClassificationModel if name.endswith("-cls") else tasks.DetectionModel
        net = kind(f"{name.removesuffix('_backbone')}.yaml", verbose=False)
        return nn.Sequential(*list(net.model)[:10]) if name.endswith("_backbone") else net
    repository = source.split("/")[-1]
    sys.path.insert(0, str(sources / repository))
    if repository == "Pytorch-UNet":
        return importlib.import_module("unet").UNet(3, 2, bilinear=name.endswith("bilinear"))
    if repository == "pytorch_image_classification":
        return of_configuration(sources / repository / repository, name)
    if repository == "pytorch_resnet_cifar10":
        return getattr(importlib.import_module("resnet"), name)()
    models = importlib.import_module(
        "models" if repository == "pytorch-cifar" else f"models.{_CLASSES.get(name, name)}"
    )
    if name == "ShuffleNetV2":
        return models.ShuffleNetV2(1)
    if name == "VGG11":
        return models.VGG(name)
    return getattr(models, name)()


def of_configuration(package: Path, name: str) -> nn.Module:
    """A network of hysts/pytorch_image_classification, as configured by default, without what its package imports."""
    module = types.ModuleType(package.name)
    module.__path__ = [str(package)]
    sys.modules[package.name] = module
    config = importlib.import_module(f"{package.name}.config.defaults").get_default_config()
    if name == "wrn_drop":
        name, config.model.wrn.drop_rate = "wrn", 0.3
    return importlib.import_module(f"{package.name}.models.cifar.{name}").Network(config)


def tensors(out) -> Tensor:
    """All numbers that a network returns, in one tensor."""
    return torch.cat([t.flatten() for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()])


def measure(net: nn.Module, size: tuple[int, ...]) -> dict:
    """What gating, pruning and comparing a network gives."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            if module.affine:
                nn.init.normal_(module.bias, 0, 0.3)
    net = net.double().eval()
    images, start = torch.randn(2, *size, dtype=torch.float64), time.perf_counter()
    try:
        gated = bar.gate(net, size)
    except bar.BarError as error:
        return {"gated": False, "why": str(error)}
    seconds = time.perf_counter() - start
    with torch.no_grad():
        expected = tensors(net(images))
        gated.keep_({name: torch.ones_like(gate.alive) for name, gate in gated.gates.items()}).eval()
        opened = tensors(gated(images))
        for gate in gated.gates.values():
            gate.keep_(torch.rand(len(gate.alive)) >= SHUT)
        shut = tensors(gated.floor_()(images))
        pruned = bar.prune(gated)
        volume = bar.count(pruned, size).volume
        worst = [difference(opened, expected), difference(tensors(pruned(images)), shut)]
    return {
        "gated": True, "lost": 1 - volume / gated.full(), "error": max(worst), "counted": volume == gated.size(),
        "moved": difference(shut, expected), "whole": gated.whole, "seconds": seconds,
    }  # fmt: skip


def difference(a: Tensor, b: Tensor) -> float:
    """The largest, relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def work(row: dict, sources: Path, place: Path) -> None:
    """Measure one network of the list, and write what came out of it."""
    torch.set_num_threads(1)
    size = tuple(int(n) for n in row["input"].split("x"))
    try:
        net = make(row["source"].removeprefix("github "), row["name"], sources)
        own = getattr(net, "default_cfg", {})
        if "shape run" in row["what stood in the way"] and own:  # of those that take images of one size only
            size = own["input_size"]
        found = {"size": size} | measure(net, size)
    except Exception as error:  # whatever other people's networks raise
        found = {"gated": False, "why": f"{type(error).__name__}: {error}"[:300], "failed": True}
    files.write(place, json.dumps(found).encode())


@click.command(help=__doc__)
@click.option(
    "--list", "listed", type=click.Path(exists=True, path_type=Path), required=True, help="source,name,input,before"
)
@click.option("--names", default="", help="Only names that contain one of these words, separated by commas.")
@click.option("--before", default="refused", help="Only networks of this state in the list; all, if empty.")
@click.option("--sources", type=click.Path(path_type=Path), default=Path("build/sources"), show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path("build/networks"), show_default=True)
@click.option("--limit", default=120.0, show_default=True, help="Seconds for each network.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/bench/networks.json"), show_default=True)
def main(listed: Path, names: str, before: str, sources: Path, cache: Path, limit: float, out: Path) -> None:
    with listed.open() as file:
        rows = [row for row in csv.DictReader(file) if row["before"].startswith(before)]
    rows = [row for row in rows if any(word in f"{row['source']} {row['name']}" for word in names.split(","))]
    if any(row["source"] == "timm" for row in rows):
        importlib.import_module("timm")
    context, console, results = multiprocessing.get_context("fork"), Console(), []
    for row in rows:
        place = cache / f"{row['source']} {row['name']}.json".replace("/", "+")
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            process = context.Process(target=work, args=(row, sources.absolute(), place))
            process.start()
            process.join(limit)
            if process.is_alive():
                process.terminate()
                process.join()
                files.write(place, json.dumps({"gated": False, "why": f"takes more than {limit:.0f} s"}).encode())
            elif not place.exists():
                files.write(place, json.dumps({"gated": False, "why": "the process ended", "failed": True}).encode())
        found = json.loads(place.read_text())
        console.print(row["source"], row["name"], found.get("lost", found.get("why")), found.get("error", ""))
        results.append({key: row[key] for key in ("source", "name", "input", "before")} | found)
    gated = [r for r in results if r["gated"]]
    table = Table("networks", "gated", "lose 25 %", "worst error", "left nothing whole")
    table.add_row(
        str(len(results)), str(len(gated)), str(sum(r["lost"] >= 0.25 for r in gated)),
        f"{max((r['error'] for r in gated), default=0):.1e}", str(sum(not r["whole"] for r in gated)),
    )  # fmt: skip
    console.print(table)
    if not names:
        record = {"shut": SHUT, "commit": machine.commit(), "networks": results}
        files.write(out, json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    main()
