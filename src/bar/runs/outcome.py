"""The content of result.json: the outcome of a run, its settings, and the machine."""

import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bar import data, machine, schema, storage
from bar.cost import Cost, count
from bar.methods.weights import weights_of
from bar.runs.config import RunConfig
from bar.surgery import GatedNetwork
from bar.training import Pruner, accuracy


@dataclass(frozen=True)
class Trained:
    """The outcome of a training: the network, the records of its epochs, and the seconds that it took."""

    network: nn.Module
    epochs: list[dict]
    seconds: float
    pruner: Pruner | None = None
    search: dict | None = None


def of_run(
    config: RunConfig, images: data.Dataset, full: Cost, trained: Trained, folder: Path, accuracy_unpruned: float | None
) -> dict:
    """Return the fields of a run's record that do not depend on the machine.

    Parameters
    ----------
    config : RunConfig
        Of the run.
    images : Dataset
        The data that it trained with, on its device.
    full : Cost
        Of the unpruned network.
    trained : Trained
        The outcome of the training.
    folder : Path
        Where the network is stored already.
    accuracy_unpruned : float or None
        Test accuracy of the unpruned network; None for that network itself.

    Returns
    -------
    dict
        The fields in their order in the file.
    """
    network = trained.network
    cost, cut = count(network, images.input_size), find_cut(trained.epochs)
    test = accuracy(network, images.test, images)
    return {
        "format": schema.FORMAT,
        "dataset_label": images.label,
        "training_images": len(images.train),
        "input_size": list(images.input_size),
        "mean": list(images.mean),
        "std": list(images.std),
        "settings": config.recorded_settings(),
        "accuracy": test,
        "accuracy_unpruned": test if accuracy_unpruned is None else accuracy_unpruned,
        "validation_accuracy": accuracy(network, images.validation, images),
        "accuracy_cut": cut.get("accuracy_cut"),
        "accuracy_recalibrated": cut.get("accuracy"),
        "size_before_settling": cut.get("size_before_settling"),
        "volume_regular": cut.get("volume_regular"),
        "flops_regular": cut.get("flops_regular"),
        "volume": cost.volume,
        "volume_full": full.volume,
        "volume_factor": full.volume / cost.volume,
        "flops": cost.flops,
        "flops_full": full.flops,
        "flops_factor": full.flops / cost.flops,
        **_weights(network, trained.pruner),
        "parameters": cost.parameters,
        "parameters_full": full.parameters,
        "budget": cut.get("budget", full.volume),
        "search": trained.search,
        **_layers(cost, full),
        "gated": _gated(trained.pruner),
        "weights_sha256": storage.digest(folder / storage.WEIGHTS),
        "architecture_sha256": storage.digest(folder / storage.ARCHITECTURE),
        "seconds": trained.seconds,
    }


def of_machine(device: torch.device, processes: int, code: dict[str, str | None]) -> dict:
    """Return the fields of a record about the machine and the code: device, processor, processes, versions, commit."""
    import torchvision  # takes seconds to import

    return {
        "hardware": machine.hardware(device),
        **machine.processor(),
        **_gpu_memory(device),
        "processes": processes,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        **code,
    }


def _gpu_memory(device: torch.device) -> dict[str, int]:
    """Return the bytes that the run has taken of its GPU at most, and all that this has: how many such runs fit."""
    if device.type != "cuda":
        return {}
    total = torch.cuda.get_device_properties(device).total_memory
    return {"gpu_memory": torch.cuda.max_memory_reserved(device), "gpu_memory_total": total}


def find_cut(epochs: list[dict]) -> dict:
    """Return the record of the cut; empty if nothing was cut."""
    return next((record for record in epochs if record["phase"] == "cut"), {})


def _layers(cost: Cost, full: Cost) -> dict:
    """Return the features left of each convolution of the unpruned network, all that it had, and its map's area."""
    return {
        "features": {name: _features(cost, name) for name in full.layers},
        "features_full": {name: layer["features"] for name, layer in full.layers.items()},
        "areas": {name: layer["area"] for name, layer in full.layers.items()},
    }


def _weights(network: nn.Module, pruner: Pruner | None) -> dict:
    """Count the weights that are not 0, and all weights, where single weights are pruned."""
    if not hasattr(pruner, "full"):
        return {}
    return {"weights": sum(int(w.count_nonzero()) for w in weights_of(network).values()), "weights_full": pruner.full}


def _gated(pruner: Pruner | None) -> dict[str, int]:
    """Return the features of each convolution that had gates, in the order of the gates in records of epochs."""
    network = getattr(pruner, "network", None)
    return {n: len(gate.alive) for n, gate in network.gates.items()} if isinstance(network, GatedNetwork) else {}


def _features(cost: Cost, name: str) -> int:
    """Count the features left of a convolution; a grouped one may have become several, ``name.0``, ``name.1``, …"""
    mine = re.compile(re.escape(name) + r"(\.\d+)?")
    return sum(layer["features"] for n, layer in cost.layers.items() if mine.fullmatch(n))
