"""The three phases of training (section 3.2, supp. 3): prune, fine-tune, cool down.

Training and pruning happen at the same time on the gated network; after the cut, an ordinary smaller network is
fine-tuned, at last with a lower learning rate. The loops say what they do and yield one record an epoch; whoever calls
them decides what to show and what to keep.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bar.data import Dataset, Split, batches, num_batches
from bar.errors import BarError
from bar.objective import Budget, distillation
from bar.surgery import GatedNetwork, prune


@dataclass(frozen=True)
class Settings:
    """How to train; the values of the paper (section 5.1, supp. 3 and 4) unless a comment says otherwise."""

    prune_epochs: int = 80
    finetune_epochs: int = 40
    cooldown_epochs: int = 10
    unpruned_epochs: int = 80  # of the full network, before its cool-down (supp. 3.3)
    batch_size: int = 64
    lr: float = 1e-3  # Adam
    cooldown_lr: float = 1e-4
    weight_decay: float = 5e-4  # not on the gates
    alpha: float = 0.9  # weight of the teacher, section 3.5
    temperature: float = 4.0
    gate_lr: float | None = 1e-3  # None: 10 / steps, so that a gate can travel as far in a short run as in a long one
    gate_start: tuple[float, float] = (0.0, 0.01)  # log alpha is drawn uniformly from this
    lam: float | None = 1e-5  # None: scaled to the size of the network, see bar.Budget
    b_start: float = 1.01  # of V_F; the paper starts at V_F, where its barrier is infinite
    cap: float = 1000.0  # of the barrier, infinite in the paper


PRESETS = {
    # The paper, word for word but for b_start and cap, without which the first step would be infinite. Around it, two
    # choices of this project: a tenth of the training images is held out to watch, and a GPU computes in bfloat16.
    "paper": Settings(),
    # For a laptop: a short run needs gates that move faster and do not all start at the same place.
    "quick": Settings(
        prune_epochs=24, finetune_epochs=12, cooldown_epochs=4, unpruned_epochs=36, batch_size=32,
        gate_lr=None, gate_start=(-1.0, 5.0), lam=None, b_start=1.0, cap=100.0,
    ),
}  # fmt: skip


def fit(
    network: nn.Module,
    data: Dataset,
    phases: list[tuple[str, int, float]],
    settings: Settings,
    generator: torch.Generator,
    *,
    teacher: nn.Module | None = None,
    budget: Budget | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[dict]:
    """Train a network, gated or plain, through one or more phases with one optimizer.

    Parameters
    ----------
    network : nn.Module
        On the device of the data; trained in place.
    data : Dataset
        Its training images are learnt from, its validation images are watched.
    phases : list of (name, epochs, learning rate)
        In order.
    settings : Settings
        Batch size, weight decay, distillation, gates.
    generator : torch.Generator
        On the CPU; draws the order and the augmentation of the images.
    teacher : nn.Module, optional
        The unpruned network; without it the loss is plain cross-entropy.
    budget : Budget, optional
        Its term is added to the loss; then `network` is the gated network that it watches.
    tick : callable
        Called after every step.

    Yields
    ------
    dict
        After each epoch: phase, epoch (from 1), loss and data_loss (means), accuracy (on validation images; with a
        budget, that of the network that a cut now would leave, batch norms measured anew), seconds; with a budget also
        volume, flops, size (V of eq. 4 in the budget's metric), budget (b) and barrier (f) at its end.

    Raises
    ------
    BarError
        If the loss is no longer a number.
    """
    gates = list(network.gates.values()) if budget else []
    of_gates = {id(gate.log_alpha) for gate in gates}
    weights = [p for p in network.parameters() if id(p) not in of_gates]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}]
    if gates:
        groups.append({"params": [gate.log_alpha for gate in gates], "weight_decay": 0.0, "gate": True})
    optimizer = torch.optim.Adam(groups, foreach=True)
    device = weights[0].device
    bfloat16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    step = 0
    for phase, epochs, lr in phases:
        for group in optimizer.param_groups:
            group["lr"] = (settings.gate_lr or 10 / budget.steps) if group.get("gate") else lr
        for epoch in range(1, epochs + 1):
            start, total, data_total = (
                time.perf_counter(),
                torch.zeros((), device=device),
                torch.zeros((), device=device),
            )
            network.train()
            for images, labels in _training_batches(data, settings, generator):
                with bfloat16:
                    taught = None
                    if teacher is not None:
                        with torch.no_grad():
                            taught = teacher(images)
                    output = network(images)
                data_loss = distillation(
                    output.float(), labels, None if taught is None else taught.float(),
                    settings.alpha, settings.temperature,
                )  # fmt: skip
                loss = data_loss if budget is None else data_loss + budget(step)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
                data_total += data_loss.detach()
                step += 1
                tick()
            steps = steps_per_epoch(data, settings)
            record = {
                "phase": phase,
                "epoch": epoch,
                "loss": total.item() / steps,
                "data_loss": data_total.item() / steps,
            }
            if not torch.isfinite(total):
                raise BarError(
                    f"the loss is not a number any more ({phase}, epoch {epoch}; its data term is "
                    f"{record['data_loss']:.4g}): lower the learning rate"
                )
            if budget is None:
                record["accuracy"] = accuracy(network, data.validation, data)
            else:
                network.floor_()  # the last step of the epoch may have shut what the next one would reopen
                record |= {"volume": network.size("volume"), "flops": network.size("flops")}
                record |= {"size": float(budget.V), "budget": budget.b, "barrier": float(budget.f)}
                record["accuracy"] = accuracy(recalibrate(prune(network), data, settings), data.validation, data)
            record["seconds"] = time.perf_counter() - start
            yield record


def steps_per_epoch(data: Dataset, settings: Settings) -> int:
    """How many batches one epoch has."""
    return num_batches(len(data.train), settings.batch_size, drop_last=True)


def _training_batches(data: Dataset, settings: Settings, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    return batches(
        data.train, settings.batch_size, mean=data.mean, std=data.std, generator=generator,
        augment=(data.padding, data.flip),
    )  # fmt: skip


@torch.no_grad()
def accuracy(network: nn.Module, split: Split, data: Dataset) -> float:
    """Share of a split's images that a network, in eval mode, gets right; in [0, 1]. The mode is restored."""
    training = network.training
    network.eval()
    right = sum(
        (network(images).argmax(1) == labels).sum()
        for images, labels in batches(split, 256, mean=data.mean, std=data.std)
    )
    network.train(training)
    return float(right) / len(split)


def recalibrate(network: nn.Module, data: Dataset, settings: Settings, images: int = 2048) -> nn.Module:
    """Measure the batch norms' statistics anew on random training images, in place; returns the network.

    While training, they are those of a network with sampled gates, which the pruned one is not. Order and augmentation
    come from a generator of their own, so that looking at a network does not change its training.
    """
    shuffled = _training_batches(data, settings, torch.Generator().manual_seed(0))
    update_bn(itertools.islice(shuffled, math.ceil(images / settings.batch_size)), network)
    return network


def prune_to_budget(
    gated: GatedNetwork,
    data: Dataset,
    budget: Budget,
    settings: Settings,
    generator: torch.Generator,
    *,
    teacher: nn.Module | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[dict | nn.Module]:
    """All three phases of BAR; yields the records of `fit`, one of the cut, and at last the pruned network.

    The record of the cut has phase "cut": accuracy_cut, right after surgery, and accuracy, after the batch norms'
    statistics have been measured anew.
    """
    phase = [("prune", settings.prune_epochs, settings.lr)]
    yield from fit(gated, data, phase, settings, generator, teacher=teacher, budget=budget, tick=tick)
    start = time.perf_counter()
    before = gated.size(budget.metric)
    network = prune(budget.settle())
    cut = accuracy(network, data.validation, data)
    recalibrate(network, data, settings)
    yield {
        "phase": "cut", "epoch": settings.prune_epochs, "volume": gated.size("volume"), "flops": gated.size("flops"),
        "size": gated.size(budget.metric), "size_before_settling": before, "budget": budget.limit, "barrier": 0.0,
        "accuracy_cut": cut, "accuracy": accuracy(network, data.validation, data),
        "seconds": time.perf_counter() - start,
    }  # fmt: skip
    phases = [
        ("finetune", settings.finetune_epochs, settings.lr),
        ("cooldown", settings.cooldown_epochs, settings.cooldown_lr),
    ]
    for record in fit(network, data, phases, settings, generator, teacher=teacher, tick=tick):
        yield record | {"volume": gated.size("volume"), "flops": gated.size("flops")} | {
            "size": gated.size(budget.metric), "budget": budget.limit, "barrier": 0.0
        }  # fmt: skip
    yield network
