"""The three phases of training (section 3.2, supp. 3): prune, fine-tune, cool down.

Training and pruning happen at the same time on the gated network; after the cut, an ordinary smaller network is
fine-tuned, at last with a lower learning rate. `Training` yields one record an epoch and can be stored and continued
after each; whoever iterates decides what to show and what to keep.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bar.cost import count
from bar.data import Dataset, Split, batches, num_batches
from bar.errors import BarError
from bar.objective import PRESSURE, Budget, distillation
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
        """The term of the loss, see `bar.Budget`."""
        lam = self.lam
        if self.pressure is not None:
            lam = self.pressure / gated.full(metric)
        return Budget(gated, factor, steps, metric, schedule, lam, self.cap, self.b_start, self.reach, self.aim)

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
        cooldown_lr=5e-4, gate_travel=20.0, gate_betas=(0.0, 0.9), gate_decay=0.1, gate_start=(-1.0, 5.0),
        pressure=PRESSURE, b_start=1.0, cap=100.0, reach=0.9, aim=0.97, patience=0.1,
    ),
}  # fmt: skip


class Training:
    """The training of a network, epoch by epoch; it can stop after any of them and go on later as if it had not.

    Iterating trains. Each item is a dict, the record of an epoch: phase, epoch (from 1 in each phase), loss and
    data_loss (means), accuracy (on validation images), seconds. With a budget, the network is pruned at the end of the
    first phase, which adds a record of the phase "cut"; all have volume, flops, size (V of eq. 4 in the budget's
    metric), budget (b) and barrier (f) as well. Before the cut, accuracy is that of the network that a cut now would
    leave, flops_trained what is still computed, size_min and size_max the bounds of V over the epoch's steps, above the
    part of them with V >= b, and rise the most that V was above its lowest value until then.

    Parameters
    ----------
    network : nn.Module
        On the device of the data; trained in place. With a budget, the gated network that it watches.
    data : Dataset
        Its training images are learnt from, its validation images are watched.
    phases : sequence of (name, epochs, learning rate)
        In order; with a budget, the first one prunes.
    settings : Settings
        Batch size, weight decay, distillation, gates.
    generator : torch.Generator
        On the CPU; draws the order and the augmentation of the images.
    teacher : nn.Module, optional
        The unpruned network; without it the loss is plain cross-entropy.
    budget : Budget, optional
        Its term is added to the loss of the first phase.
    tick : callable
        Called after every step.

    Attributes
    ----------
    network : nn.Module
        What is trained now; after the cut, the pruned network.

    Raises
    ------
    BarError
        By iterating, at the step at which the loss is no longer a number (on a GPU, at most 50 steps later).

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
        budget: Budget | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.network, self.data, self.settings, self.generator = network, data, settings, generator
        self.teacher, self.budget, self.tick = teacher, budget, tick
        self.gated = network if budget else None
        self._epochs = [(name, epoch, lr) for name, epochs, lr in phases for epoch in range(1, epochs + 1)]
        if budget:
            self._epochs.insert(phases[0][1], ("cut", phases[0][1], 0.0))
            self._pruning_epochs = phases[0][1]
            self._dead_for = torch.zeros(len(network.log_alpha), dtype=torch.long)  # epochs in a row
            self._lowest = torch.tensor([torch.inf], dtype=torch.float64)  # V so far
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

    @property
    def _pruning(self) -> bool:
        return self.network is self.gated

    def state_dict(self) -> dict:
        """Everything that decides how the training goes on; tensors, numbers and strings only."""
        return {
            "done": self._done,
            "step": self._step,
            "network": self.network.state_dict(),
            "gates": {n: g.log_alpha.detach() for n, g in self.gated.gates.items()} if self.gated else {},
            "pruned": bool(self.gated) and not self._pruning,
            "dead_for": self._dead_for if self.gated else None,
            "lowest": self._lowest if self.gated else None,
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
            with torch.no_grad():
                for name, log_alpha in state["gates"].items():
                    self.gated.gates[name].log_alpha.copy_(log_alpha)
            if self.gated:
                pruned = state["pruned"]
                self.network = prune(self.gated).to(memory_format=torch.channels_last) if pruned else self.gated
                self._optimizer = self._new_optimizer()
            self.network.load_state_dict(state["network"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._done, self._step = state["done"], state["step"]
            if self.gated:
                self._dead_for, self._lowest = state["dead_for"], state["lowest"]
            self.generator.set_state(state["generator"])
            torch.set_rng_state(state["random"])
            if state["random_cuda"]:
                torch.cuda.set_rng_state_all(state["random_cuda"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise BarError(f"this is the state of another training: {error}") from error

    def _new_optimizer(self) -> torch.optim.Optimizer:
        gates = [gate.log_alpha for gate in self.gated.gates.values()] if self._pruning else []
        of_gates = {id(log_alpha) for log_alpha in gates}
        weights = [p for p in self.network.parameters() if id(p) not in of_gates]
        groups = [{"params": weights, "weight_decay": self.settings.weight_decay}]
        if gates:
            groups.append({"params": gates, "weight_decay": 0.0, "betas": self.settings.gate_betas})
        return torch.optim.Adam(groups, foreach=True)

    def _train(self, phase: str, epoch: int, lr: float) -> dict:
        """One epoch."""
        network, data, settings = self.network, self.data, self.settings
        budget = self.budget if self._pruning else None
        self._optimizer.param_groups[0]["lr"] = lr
        device = next(network.parameters()).device
        bfloat16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        look_every = 50 if device.type == "cuda" else 1  # looking waits for the device
        losses = torch.zeros(2, device=device)  # sums of the terms: data, budget
        bad = torch.full((3,), -1.0, device=device)  # the first step whose loss is no number, and its terms
        sizes, margins = torch.zeros(steps_per_epoch(data, settings), device=device), []
        network.train()
        for i, (images, labels) in enumerate(_training_batches(data, settings, self.generator)):
            images, taught = images.contiguous(memory_format=torch.channels_last), None
            with bfloat16:
                if self.teacher is not None:
                    with torch.no_grad():
                        taught = self.teacher(images).float()
                output = network(images).float()
            data_loss = distillation(output, labels, taught, settings.alpha, settings.temperature)
            terms = torch.stack([data_loss, budget(self._step) if budget else torch.zeros_like(data_loss)])
            if budget:
                self._optimizer.param_groups[1]["lr"] = self._gate_lr()
            self._optimizer.zero_grad()
            terms.sum().backward()
            self._optimizer.step()
            with torch.no_grad():
                losses += terms
                here = torch.cat([torch.full_like(terms[:1], self._step), terms])
                bad = torch.where((bad[0] < 0) & ~terms.isfinite().all(), here, bad)
                if budget:
                    sizes[i] = budget.V
                    margins.append(budget.b)
            if i % look_every == 0:
                self._check(phase, epoch, bad)
            self._step += 1
            self.tick()
        self._check(phase, epoch, bad)
        if torch.stack([p.isnan().any() for p in network.parameters()]).any():
            raise BarError(f"weights are not numbers any more ({phase}, epoch {epoch}): lower the learning rate")
        total, data_total = losses.sum().item(), losses[0].item()
        steps = steps_per_epoch(data, settings)
        record = {"loss": total / steps, "data_loss": data_total / steps}
        if not self.gated:
            return record | {"accuracy": accuracy(network, data.validation, data)}
        if budget:
            network.floor_()  # the last step of the epoch may have shut what the next one would reopen
            self._cut_what_stays_dead()
        record |= {"volume": self.gated.size("volume"), "flops": self.gated.size("flops")}
        if budget:
            record |= {"size": float(budget.V), "budget": budget.b, "barrier": float(budget.f)}
            record |= self._followed(sizes.double().cpu(), torch.tensor(margins, dtype=torch.float64))
            record |= {"flops_trained": network.uncut("flops")}
            network = recalibrate(prune(network), data, settings, images=512)
        else:
            record |= {"size": self.gated.size(self.budget.metric), "budget": self.budget.limit, "barrier": 0.0}
        return record | {"accuracy": accuracy(network, data.validation, data)}

    def _gate_lr(self) -> float:
        steps, decay = self.budget.steps, self.settings.gate_decay
        left = (steps - self._step) / (decay * steps) if decay else 1.0
        travel = self.settings.gate_travel
        return (travel / steps if travel else self.settings.gate_lr) * min(left, 1.0)

    def _followed(self, sizes: Tensor, margins: Tensor) -> dict:
        """How V followed b, step by step."""
        lowest = torch.cat([self._lowest, sizes]).cummin(0).values
        self._lowest = lowest[-1:]
        return {
            "size_min": float(sizes.min()), "size_max": float(sizes.max()),
            "above": float((sizes >= margins).double().mean()), "rise": float((sizes - lowest[1:]).max()),
        }  # fmt: skip

    def _check(self, phase: str, epoch: int, bad: Tensor) -> None:
        step, data_loss, term = bad.tolist()
        if step >= 0:
            raise BarError(
                f"the loss is not a number any more at step {step:.0f} ({phase}, epoch {epoch}): its data term is "
                f"{data_loss:.4g}, its budget term {term:.4g}. Lower the learning rate"
            )

    @torch.no_grad()
    def _cut_what_stays_dead(self) -> None:
        """Cut features that have not mattered for some epochs in a row."""
        if self.settings.patience is None:
            return
        gated, live = self.gated, self.gated.live()
        matters = torch.cat([live[gated.network.convs[name]] for name in gated.gates])
        self._dead_for = torch.where(matters, 0, self._dead_for + 1)
        due = self._dead_for >= max(2, round(self.settings.patience * self._pruning_epochs))
        there = gated.log_alpha.cpu() > -torch.inf
        sizes = [len(gate.log_alpha) for gate in gated.gates.values()]
        left = dict(zip(gated.gates, (there & ~due).split(sizes), strict=True))
        # Should V have fallen too far, the last step needs something to reopen.
        if (due & there).any() and gated._size(left, self.budget.metric) >= self.budget.limit:
            gated.cut_(dict(zip(gated.gates, due.split(sizes), strict=True)))

    def _cut(self) -> dict:
        """From the gated network to the pruned one.

        The record has accuracy_cut, right after surgery, and accuracy, after the batch norms' statistics have been
        measured anew; and what regular connectivity would cost with the same gates (table 2).
        """
        gated, budget, data = self.gated, self.budget, self.data
        before = gated.size(budget.metric)
        self.network = prune(budget.settle()).to(memory_format=torch.channels_last)
        self._optimizer = self._new_optimizer()
        at_once = accuracy(self.network, data.validation, data)
        recalibrate(self.network, data, self.settings)
        regular = count(prune(gated, "regular"), gated.network.input_size)
        return {
            "volume": gated.size("volume"), "flops": gated.size("flops"), "size": gated.size(budget.metric),
            "size_before_settling": before, "budget": budget.limit, "barrier": 0.0, "accuracy_cut": at_once,
            "volume_regular": regular.volume, "flops_regular": regular.flops,
            "accuracy": accuracy(self.network, data.validation, data),
        }  # fmt: skip


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
