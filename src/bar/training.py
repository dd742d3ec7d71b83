"""The three phases of training (section 3.2, supp. 3): prune, fine-tune, cool down.

Training and pruning happen at the same time on the gated network; after the cut, an ordinary smaller network is
fine-tuned, at last with a lower learning rate. `Training` yields one record an epoch and can be stored and continued
after each; whoever iterates decides what to show and what to keep.
"""

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bar.data import Dataset, Split, batches, num_batches
from bar.errors import BarError
from bar.objective import PRESSURE, Budget, distillation
from bar.surgery import GatedNetwork


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
    gate_lr: float = 1e-3
    gate_travel: float | None = None  # instead of gate_lr, that times the steps: as far in a short run as in a long one
    gate_betas: tuple[float, float] = (0.9, 0.999)  # of Adam
    gate_decay: float = 0.0  # the gates' learning rate falls to 0 over this last part of the pruning
    gate_start: tuple[float, float] = (0.0, 0.01)  # log alpha is drawn uniformly from this
    lam: float = 1e-5
    pressure: float | None = None  # instead of lam, that times V_F: the same for networks of any size
    b_start: float = 1.01  # of V_F; the paper starts at V_F, where its barrier is infinite
    cap: float = 1000.0  # of the barrier, infinite in the paper
    reach: float = 1.0  # b arrives at the budget after this part of the pruning
    aim: float = 1.0  # b arrives at this part of the budget
    patience: float | None = None  # features dead for so long are cut while training, as a part of the pruning epochs

    def budget(
        self, gated: GatedNetwork, factor: float, steps: int, metric: str = "volume", schedule: str = "sigmoid"
    ) -> Budget:
        """The budget as a term of the loss, with these settings; for the arguments see `bar.Budget`."""
        lam = self.lam
        if self.pressure is not None:
            lam = self.pressure / gated.full(metric)
        return Budget(gated, factor, steps, metric, schedule, lam, self.cap, self.b_start, self.reach, self.aim)

    def rate_of_gates(self, step: int, steps: int) -> float:
        """The gates' learning rate at one of so many steps, counted from 0; at least 0."""
        left = (steps - step) / (self.gate_decay * steps) if self.gate_decay else 1.0
        return (self.gate_travel / steps if self.gate_travel else self.gate_lr) * min(left, 1.0)

    @property
    def phases_of_pruning(self) -> list[tuple[str, int, float]]:
        """Name, epochs and learning rate: prune, fine-tune, cool down (supp. 3)."""
        return [
            ("prune", self.prune_epochs, self.lr),
            ("finetune", self.finetune_epochs, self.lr),
            ("cooldown", self.cooldown_epochs, self.cooldown_lr),
        ]

    @property
    def phases_of_unpruned(self) -> list[tuple[str, int, float]]:
        """Name, epochs and learning rate of the full network's training (supp. 3.3)."""
        return [("train", self.unpruned_epochs, self.lr), ("cooldown", self.cooldown_epochs, self.cooldown_lr)]


PRESETS = {
    # The paper, word for word but for b_start and cap, without which the first step would be infinite. Around it, two
    # choices of this project: a tenth of the training images is held out to watch, and a GPU computes in bfloat16.
    "paper": Settings(),
    # For a laptop: a short run needs gates that move faster and do not all start at the same place.
    "quick": Settings(
        prune_epochs=24, finetune_epochs=12, cooldown_epochs=4, unpruned_epochs=36, batch_size=32, lr=5e-3,
        cooldown_lr=5e-4, gate_travel=30.0, gate_betas=(0.0, 0.9), gate_decay=0.1, gate_start=(-1.0, 5.0),
        pressure=PRESSURE, b_start=1.0, cap=100.0, reach=0.9, aim=0.99, patience=0.1,
    ),
}  # fmt: skip


CARRIED = ("volume", "flops", "size", "budget", "barrier")  # fields of the cut's record that later records repeat


class Pruner:
    """What a method adds to a training until the cut: a term of the loss, parameters of its own, and decisions.

    A method overrides what it needs; the rest does nothing.

    Attributes
    ----------
    network : nn.Module
        What is trained until the cut.
    """

    network: nn.Module

    def groups(self) -> list[dict]:
        """Adam's groups of the method's own parameters, as `torch.optim` takes them."""
        return []

    def rate(self, step: int) -> float:
        """The learning rate of those groups at a step, counted from 0 over all epochs; at least 0."""
        return 0.0

    def __call__(self, step: int) -> Tensor:
        """The term that is added to the data loss at a step: a scalar, on the network's device."""
        return torch.zeros((), device=next(self.network.parameters()).device)

    def end_step(self) -> None:
        """Called after each step of the optimizer until the cut."""

    def end_epoch(self) -> dict:
        """Decide what is decided between epochs; returns fields of the epoch's record, "size" among them."""
        raise NotImplementedError

    def watched(self) -> nn.Module:
        """The network that a cut now would leave, as a copy; the epoch's record shows its accuracy."""
        raise NotImplementedError

    def cut(self) -> nn.Module:
        """The pruned network, which is fine-tuned next; after `load_state_dict`, the same one again."""
        raise NotImplementedError

    def cut_record(self) -> dict:
        """Fields of the cut's record, "size" among them."""
        raise NotImplementedError

    def end_finetune_step(self) -> None:
        """Called after each step of the optimizer after the cut."""

    def state_dict(self) -> dict:
        """What the network's state dict does not hold; tensors, numbers and strings only."""
        raise NotImplementedError

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` has returned."""
        raise NotImplementedError


class Training:
    """The training of a network, epoch by epoch; it can stop after any of them and go on later as if it had not.

    Iterating trains. Each item is a dict, the record of an epoch: phase, epoch (from 1 in each phase), loss and
    data_loss (means), accuracy (on validation images), seconds. With a pruner, the network is pruned after the phases
    called "prune", which come first; that adds a record of the phase "cut". Before it, accuracy is that of the network
    that a cut now would leave, and the pruner adds fields of its own (see `bar.methods.budget_aware.BudgetAware`).

    Parameters
    ----------
    network : nn.Module
        On the device of the data; trained in place. With a pruner, the network that it prunes.
    data : Dataset
        Its training images are learnt from, its validation images are watched.
    phases : sequence of (name, epochs, learning rate)
        In order; there may be several of one name. Without any called "prune", a pruner cuts at the beginning.
    settings : Settings
        Batch size, weight decay, distillation.
    generator : torch.Generator
        On the CPU; draws the order and the augmentation of the images.
    teacher : nn.Module, optional
        The unpruned network, in any precision; without it the loss is plain cross-entropy.
    pruner : Pruner, optional
        The method.
    fabric : Fabric, optional
        Precision, and the processes that share each batch; default: one process (see `fabric_on`). Several processes
        compute what one would, but for batch norm, which sees a process's share of a batch, and for rounding.
    tick : callable
        Called after every step.

    Attributes
    ----------
    network : nn.Module
        What is trained now; after the cut, the pruned network.

    Raises
    ------
    BarError
        If the processes cannot share a batch equally. By iterating, at the step at which the loss is no longer a number
        (on a GPU, at most 50 steps later).

    Examples
    --------
    >>> import bar
    >>> digits = bar.data.load("digits", size=8, limit=64)
    >>> network = bar.models.build("wrn-10-1", 10, digits.input_size)
    >>> training = Training(network, digits, [("train", 2, 1e-3)], PRESETS["quick"], torch.Generator())
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
        """Everything that decides how the training goes on; tensors, numbers and strings only."""
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
        """Go on from the `state_dict` of a training of the same arguments.

        Raises
        ------
        BarError
            If the state is that of another training.
        """
        try:
            if self.pruner:
                self.network = self.pruner.network
                self.pruner.load_state_dict(state["pruner"])
                self._pruning, self._cut_fields = state["pruning"], state["cut_fields"]
                if not self._pruning:
                    self.network = self.pruner.cut().to(memory_format=torch.channels_last)
                self._optimizer = self._new_optimizer()
            self.network.load_state_dict(state["network"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._done, self._step = state["done"], state["step"]
            self.generator.set_state(state["generator"])
            torch.set_rng_state(state["random"])
            if state["random_cuda"]:
                torch.cuda.set_rng_state_all(state["random_cuda"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise BarError(f"this is the state of another training: {error}") from error

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
        look_every = 50 if device.type == "cuda" else 1  # looking waits for the device
        losses = torch.zeros(2, device=device)  # sums of the terms: data, pruner
        bad = torch.full((3,), -1.0, device=device)  # the first step whose loss is no number, and its terms
        self.network.train()
        for i, (images, labels) in enumerate(_training_batches(self.data, self.settings, self.generator)):
            terms = self._step_on(images, labels)
            losses += terms
            here = torch.cat([torch.full_like(terms[:1], self._step), terms])
            bad = torch.where((bad[0] < 0) & ~terms.isfinite().all(), here, bad)
            self._tell_pruner_of_step()
            if i % look_every == 0:
                self._check_loss(phase, epoch, bad)
            self._step += 1
            self.tick()
        self._check_loss(phase, epoch, bad)
        self._check_weights(phase, epoch)
        if self.fabric.world_size > 1:
            self._average([losses, *(b for b in self.network.buffers() if b.is_floating_point())])
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

    def _tell_pruner_of_step(self) -> None:
        if self._active_pruner:
            self.pruner.end_step()
        elif self.pruner:
            self.pruner.end_finetune_step()

    def _epoch_record(self, losses: Tensor) -> dict:
        """The fields of an epoch's record, from the sums of the loss's terms; a pruner takes its decisions here."""
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
        """From the network that is pruned to the pruned one.

        The record has accuracy_cut, right after surgery, and accuracy, after the batch norms' statistics have been
        measured anew.
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


def check_shares(settings: Settings, processes: int) -> None:
    """Raise a BarError if so many processes cannot share a batch equally."""
    if settings.batch_size % processes:
        raise BarError(f"{processes} processes cannot share batches of {settings.batch_size} images equally")


def fabric_on(device: torch.device | str, processes: int = 1) -> Fabric:
    """What computes: a device, its precision (bfloat16 on a GPU), and how many processes share each batch.

    Parameters
    ----------
    device : device or str
        "cpu", "cuda" or "cuda:1", say.
    processes : int
        Each with a GPU of its own, or on one CPU.
    """
    device = torch.device(device)
    return Fabric(
        accelerator=device.type,
        devices=processes if processes > 1 or device.index is None else [device.index],
        strategy="ddp" if processes > 1 else "auto",
        precision="bf16-mixed" if device.type == "cuda" else "32-true",
    )


def steps_per_epoch(data: Dataset, settings: Settings) -> int:
    """How many batches one epoch has; an incomplete last one is left out."""
    return num_batches(len(data.train), settings.batch_size, drop_last=True)


def _training_batches(data: Dataset, settings: Settings, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    return batches(
        data.train, settings.batch_size, mean=data.mean, std=data.std, generator=generator,
        augment=(data.padding, data.flip),
    )  # fmt: skip


@torch.no_grad()
def accuracy(network: nn.Module, split: Split, data: Dataset) -> float:
    """The share of a split's images that a network classifies correctly.

    The network computes in eval mode; afterwards each layer is in its own mode again.

    Parameters
    ----------
    network : nn.Module
        On the device of the split.
    split : Split
        The images, with their labels.
    data : Dataset
        Whose mean and standard deviation the images are normalised by.

    Returns
    -------
    float
        In [0, 1].

    Examples
    --------
    >>> import bar
    >>> digits = bar.data.load("digits", size=8, limit=64)
    >>> network = bar.models.build("wrn-10-1", 10, digits.input_size)
    >>> 0 <= accuracy(network, digits.validation, digits) <= 1
    True
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    right = sum(
        (network(images).argmax(1) == labels).sum()
        for images, labels in batches(split, 256, mean=data.mean, std=data.std)
    )
    for module, training in modes.items():
        module.training = training
    return float(right) / len(split)


def recalibrate(network: nn.Module, data: Dataset, settings: Settings, images: int = 2048) -> nn.Module:
    """Measure the means and variances of all batch norms anew, on random training images.

    What they have from training is of no use after the cut, since gates were drawn at random then. The order and the
    augmentation of the images come from a random generator of their own, so a measurement does not change a training.

    Parameters
    ----------
    network : nn.Module
        On the device of the data; changed in place.
    data : Dataset
        Its training images are used, augmented as in training.
    settings : Settings
        For the batch size.
    images : int
        About how many to use: whole batches, at most one epoch.

    Returns
    -------
    nn.Module
        The same network, in the mode in which it came.

    Examples
    --------
    >>> import bar
    >>> digits = bar.data.load("digits", size=8, limit=64)
    >>> network = bar.models.build("wrn-10-1", 10, digits.input_size)
    >>> recalibrate(network, digits, PRESETS["quick"]) is network
    True
    """
    shuffled = _training_batches(data, settings, torch.Generator().manual_seed(0))
    update_bn(itertools.islice(shuffled, math.ceil(images / settings.batch_size)), network)
    return network
