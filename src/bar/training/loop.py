"""The three phases of training (section 3.2, supp. 3): prune, fine-tune, cool down."""

from __future__ import annotations

import copy
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bar.data import Dataset
from bar.errors import BarError, shown
from bar.objective import distillation
from bar.training.evaluating import accuracy, recalibrate
from bar.training.feeding import check_shares, steps_per_epoch, training_batches
from bar.training.pruner import Pruner
from bar.training.settings import Settings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CARRIED = ("volume", "flops", "size", "budget", "barrier")  # fields of the cut's record that later records repeat


class Training:
    """The training of a network, epoch by epoch; it can stop after any epoch and go on later with the same outcome.

    Iterating trains. Each item is a dict, the record of an epoch: phase, epoch (from 1 in each phase), loss and
    data_loss (means), accuracy (on validation images), seconds. With a pruner, the network is pruned after the phases
    called "prune", which come first; that adds a record of the phase "cut". Before it, accuracy is that of the network
    that a cut now would leave, and the pruner adds fields of its own (see `bar.methods.budget_aware.BudgetAware`).

    Parameters
    ----------
    network : nn.Module
        On the device of the data; trained in place. With a pruner, the network that it prunes.
    data : Dataset
        It trains on the training images, and measures accuracy on the validation images.
    phases : sequence of (name, epochs, learning rate)
        In order; there may be several of one name. Without any called "prune", a pruner cuts at the beginning.
    settings : Settings
        Batch size, weight decay, distillation.
    generator : torch.Generator
        On the CPU; draws the order and the augmentation of the images.
    teacher : nn.Module, optional
        The unpruned network, in any precision; without it the loss is plain cross-entropy.
    pruner : Pruner, optional
        The pruning method; without one, nothing is pruned.
    fabric : Fabric, optional
        Precision, and the processes that share each batch; default: one process (see `fabric_on`). Several processes
        compute what one would, but for batch norm, which sees a process's share of a batch, and for rounding.
    tick : callable
        Called after every step.

    Attributes
    ----------
    network : nn.Module
        The network in training; after the cut, the pruned one.

    Raises
    ------
    BarError
        If the processes cannot share a batch equally. While iterating, at the step at which the loss is no longer
        finite (on a GPU, at most 50 steps later), or after an epoch if weights are not numbers any more.

    Examples
    --------
    >>> import bar
    >>> digits = bar.data.load("digits", size=8, limit=64)
    >>> network = bar.models.build("wrn-10-1", 10, digits.input_size)
    >>> quick = bar.training.PRESETS["quick"]
    >>> training = Training(network, digits, [("train", 2, 1e-3)], quick, torch.Generator())
    >>> [(record["phase"], record["epoch"]) for record in training]
    [('train', 1), ('train', 2)]
    """

    def __init__(
        self,
        network: nn.Module,
        data: Dataset,
        phases: Sequence[tuple[str, int, float]],
        settings: Settings,
        generator: torch.Generator,
        *,
        teacher: nn.Module | None = None,
        pruner: Pruner | None = None,
        fabric: Fabric | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.network, self.data, self.settings, self.generator = network, data, settings, generator
        self.teacher, self.pruner, self.tick = teacher, pruner, tick
        self.fabric = fabric or fabric_on(data.train.device)
        check_shares(settings, self.fabric.world_size)
        self._epochs, seen = [], Counter()
        for name, epochs, lr in phases:
            self._epochs += [(name, seen[name] + epoch, lr) for epoch in range(1, epochs + 1)]
            seen[name] += epochs
        if pruner:
            self._epochs.insert(seen["prune"], ("cut", seen["prune"], 0.0))
        self._pruning = pruner is not None
        self._cut_fields: dict = {}
        self._done, self._step = 0, 0
        self._optimizer = self._new_optimizer()

    def __iter__(self) -> Iterator[dict]:
        while self._done < len(self._epochs):
            phase, epoch, lr = self._epochs[self._done]
            start = time.perf_counter()
            record = {"phase": phase, "epoch": epoch}
            record |= self._cut() if phase == "cut" else self._train(phase, epoch, lr)
            self._done += 1
            yield record | {"seconds": time.perf_counter() - start}

    def state_dict(self) -> dict:
        """Return everything that decides how the training goes on: tensors, numbers and strings only."""
        return {
            "done": self._done,
            "step": self._step,
            "network": self.network.state_dict(),
            "pruner": self.pruner.state_dict() if self.pruner else None,
            "pruning": self._pruning,
            "cut_fields": self._cut_fields,
            "optimizer": self._optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from the `state_dict` of a training with the same arguments.

        Raises
        ------
        BarError
            If the state is invalid, or that of another training; this training is then unchanged.
        """
        before = copy.deepcopy(self.state_dict())
        try:
            self._check_progress(state)
            self._restore(state)
        except Exception as error:  # what torch and methods raise for a state from anywhere cannot be listed
            self._restore(before)
            raise BarError(f"this is the state of another training: {error}") from error

    def _check_progress(self, state: dict) -> None:
        """Raise a BarError unless the progress that a state tells of is consistent and possible for this training."""
        done = state["done"]
        if not (type(done) is int and 0 <= done <= len(self._epochs)):
            raise BarError(f"it has done {shown(done)} of {len(self._epochs)} epochs")
        phases = [phase for phase, _, _ in self._epochs[:done]]
        steps = (done - phases.count("cut")) * steps_per_epoch(self.data, self.settings)
        if not (type(state["step"]) is int and state["step"] == steps):
            raise BarError(f"it has made {shown(state['step'])} steps in {done} epochs, which are {steps}")
        pruning = self.pruner is not None and "cut" not in phases
        if state["pruning"] is not pruning:
            raise BarError("it has not been cut when it should have been")
        fields = state["cut_fields"]
        right = isinstance(fields, dict) and fields.keys() <= set(CARRIED if "cut" in phases else ())
        if not (right and all(type(value) in (int, float) and math.isfinite(value) for value in fields.values())):
            raise BarError("what it tells of its cut is of another kind")

    def _restore(self, state: dict) -> None:
        if self.pruner:
            self.network = self.pruner.network
            self.pruner.load_state_dict(state["pruner"])
            self._pruning, self._cut_fields = state["pruning"], state["cut_fields"]
            if not self._pruning:
                self.network = self.pruner.cut().to(memory_format=torch.channels_last)
            self._optimizer = self._new_optimizer()
        self.network.load_state_dict(state["network"])
        self._load_moments(state["optimizer"])
        self._done, self._step = state["done"], state["step"]
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        for i, random in enumerate(state["random_cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(random, i)

    def _load_moments(self, state: dict) -> None:
        """Load Adam's moments; its options come from the settings, and learning rates are set at each step."""
        own = self._optimizer.state_dict()
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        if [group["params"] for group in state["param_groups"]] != [group["params"] for group in own["param_groups"]]:
            raise BarError("it has other parameters")
        for i, moments in state["state"].items():
            shapes = {"step": (), "exp_avg": parameters[i].shape, "exp_avg_sq": parameters[i].shape}
            if moments.keys() != shapes.keys() or i < 0:
                raise BarError("its optimizer is another one")
            if any(moments[n].shape != s or not moments[n].is_floating_point() for n, s in shapes.items()):
                raise BarError("the moments of its gradients have other shapes")
            if not 0 <= float(moments["step"]) < math.inf:
                raise BarError("its optimizer's number of steps is not a finite number >= 0")
        self._optimizer.load_state_dict(own | {"state": state["state"]})

    def _new_optimizer(self) -> torch.optim.Optimizer:
        own = self.pruner.groups() if self._pruning else []
        grouped = {id(p) for group in own for p in group["params"]}
        weights = [p for p in self.network.parameters() if id(p) not in grouped]
        groups = [{"params": weights, "weight_decay": self.settings.weight_decay}]
        return torch.optim.Adam(groups + [{"weight_decay": 0.0} | group for group in own], foreach=True)

    @property
    def _active_pruner(self) -> Pruner | None:
        """The pruner, until the cut."""
        return self.pruner if self._pruning else None

    def _train(self, phase: str, epoch: int, lr: float) -> dict:
        """Train for one epoch; returns the fields of its record."""
        self._optimizer.param_groups[0]["lr"] = lr  # of the weights; `_step_on` sets that of the pruner's parameters
        device = next(self.network.parameters()).device
        check_every = 50 if device.type == "cuda" else 1  # checking waits for the device
        losses = torch.zeros(2, device=device)  # sums of the terms: data, pruner
        bad = torch.full((3,), -1.0, device=device)  # the first step whose loss is not finite, and its terms
        self.network.train()
        for i, (images, labels) in enumerate(training_batches(self.data, self.settings, self.generator)):
            terms = self._step_on(images, labels)
            losses += terms
            here = torch.cat([torch.full_like(terms[:1], self._step), terms])
            bad = torch.where((bad[0] < 0) & ~terms.isfinite().all(), here, bad)
            self._notify_pruner()
            if i % check_every == 0:
                self._check_loss(phase, epoch, bad)
            self._step += 1
            self.tick()
        self._check_loss(phase, epoch, bad)
        self._check_weights(phase, epoch)
        if self.fabric.world_size > 1:
            self._average([losses, *(b for b in self.network.buffers() if b.is_floating_point())])
            self._agree()
        return self._epoch_record(losses)

    def _step_on(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of the optimizer on a batch; returns the terms of its loss, data and pruner, shape (2,)."""
        fabric, settings, pruner = self.fabric, self.settings, self._active_pruner
        if fabric.world_size > 1:
            images, labels = (part[fabric.global_rank :: fabric.world_size] for part in (images, labels))
        images = images.contiguous(memory_format=torch.channels_last)
        taught = self._teacher_logits(images)
        with fabric.autocast():
            output = self.network(images).float()
        data_loss = distillation(output, labels, taught, settings.alpha, settings.temperature)
        terms = torch.stack([data_loss, pruner(self._step) if pruner else torch.zeros_like(data_loss)])
        for group in self._optimizer.param_groups[1:]:  # the pruner's; there are none without one
            group["lr"] = pruner.rate(self._step)
        self._optimizer.zero_grad()
        fabric.backward(terms.sum())
        if fabric.world_size > 1:
            self._average([p.grad for p in self.network.parameters() if p.grad is not None])
        self._optimizer.step()
        return terms.detach()

    @torch.no_grad()
    def _teacher_logits(self, images: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        return self.teacher(images.to(next(self.teacher.parameters()).dtype)).float()

    def _notify_pruner(self) -> None:
        if self._active_pruner:
            self.pruner.end_step()
        elif self.pruner:
            self.pruner.end_finetune_step()

    def _epoch_record(self, losses: Tensor) -> dict:
        """The fields of an epoch's record, from the sums of the loss's terms; a pruner makes its decisions here."""
        total, data_total = losses.sum().item(), losses[0].item()
        steps = steps_per_epoch(self.data, self.settings)
        record, network = {"loss": total / steps, "data_loss": data_total / steps}, self.network
        if self._active_pruner:
            record |= self.pruner.end_epoch()
            network = recalibrate(self.pruner.watched(), self.data, self.settings, images=512)
        return record | self._cut_fields | {"accuracy": accuracy(network, self.data.validation, self.data)}

    @torch.no_grad()
    def _average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over the processes, in one message."""
        flat = self.fabric.all_reduce(torch.cat([t.flatten() for t in tensors]), reduce_op="mean")
        means = flat.split([t.numel() for t in tensors])
        torch._foreach_copy_(tensors, [mean.view(t.shape) for mean, t in zip(means, tensors, strict=True)])

    @torch.no_grad()
    def _agree(self) -> None:
        """Take the weights and gates of the first process, before anything is decided by them.

        They are the same already where all processes round alike; on GPUs of several kinds they need not be.
        """
        parameters = [p.detach() for p in self.network.parameters()]
        flat = torch.cat([p.flatten() for p in parameters])
        torch.distributed.broadcast(flat, 0)
        first = flat.split([p.numel() for p in parameters])
        torch._foreach_copy_(parameters, [part.view(p.shape) for part, p in zip(first, parameters, strict=True)])

    def _check_loss(self, phase: str, epoch: int, bad: Tensor) -> None:
        step, data_loss, term = bad.tolist()
        if step >= 0:
            raise BarError(
                f"the loss is not a number any more at step {step:.0f} ({phase}, epoch {epoch}): its data term is "
                f"{data_loss:.4g}, its pruning term {term:.4g}. Lower the learning rate"
            )

    def _check_weights(self, phase: str, epoch: int) -> None:
        if torch.stack([p.isnan().any() for p in self.network.parameters()]).any():
            raise BarError(f"weights are not numbers any more ({phase}, epoch {epoch}): lower the learning rate")

    def _cut(self) -> dict:
        """Replace the network by the pruned one; returns fields of the cut's record.

        Among them are accuracy_cut, right after surgery, and accuracy, after the statistics of the batch norms have
        been measured again.
        """
        data = self.data
        self.network = self.pruner.cut().to(memory_format=torch.channels_last)
        self._pruning = False
        self._optimizer = self._new_optimizer()
        record = self.pruner.cut_record()
        self._cut_fields = {name: record[name] for name in CARRIED if name in record}
        at_once = accuracy(self.network, data.validation, data)
        recalibrate(self.network, data, self.settings)
        return record | {"accuracy_cut": at_once, "accuracy": accuracy(self.network, data.validation, data)}


def fabric_on(device: torch.device | str, processes: int = 1) -> Fabric:
    """Make the Fabric of a device, with its precision (bfloat16 on a GPU) and the processes that share each batch.

    Parameters
    ----------
    device : device or str
        Such as "cpu", "cuda" or "cuda:1".
    processes : int
        How many; each has a GPU of its own, or all share the CPU. Fabric starts them, unless torchrun has.

    Returns
    -------
    Fabric
        Not launched yet.
    """
    from lightning_fabric import Fabric  # takes seconds to import

    device, nodes = torch.device(device), 1
    if torchrun_processes() is not None:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        processes, nodes = here, processes // here
    several = processes * nodes > 1
    return Fabric(
        accelerator=device.type,
        devices=processes if several or device.index is None else [device.index],
        num_nodes=nodes,
        strategy="ddp" if several else "auto",
        precision="bf16-mixed" if device.type == "cuda" else "32-true",
    )


def torchrun_processes() -> int | None:
    """Return how many processes torchrun has started, of which this is one; None if it has not."""
    started = torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
    return int(os.environ["WORLD_SIZE"]) if started else None
