"""Iterative pruning: how `random`, `magnitude`, VQ and ID reach their budgets (supp. 3.2)."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from bar.errors import BarError
from bar.methods.base import Method, Task
from bar.methods.gated import load_gates
from bar.methods.uniform import narrow_, open_, widths
from bar.surgery import GatedNetwork, gate, prune
from bar.training import Settings, check_form


class IterativePruning(Method):
    """Prune half, train, and repeat; a method of this kind chooses the features to keep, by its `choose`.

    The network, which has been trained before, is narrowed to half its size and trained for some epochs, again and
    again; the last time is the cut, after which the plain network is trained. Where the factor is no power of two, the
    last step is shorter.

    It begins with the unpruned network, which the preset `paper` trains for 80 + 10 epochs (supp. 3.3); supp. 3.2
    trains it for 40 + 10 before the first halving.

    Parameters
    ----------
    network : nn.Module
        A trained, plain CNN; changed in place.
    input_size : (int, int, int)
        Of one image.
    factor : float
        Pruning factor > 1.
    cycle : int
        Epochs of training before the network is pruned again.
    metric : str
        "volume" or "flops".
    seed : int
        Of the method's random draws.

    Attributes
    ----------
    choose : callable
        ``choose(gated, widths, generator)``, see `bar.methods.random.choose`; of the class.
    network : GatedNetwork
    limit : float
        The budget B.

    Raises
    ------
    BarError
        If the network cannot be gated, or not even one feature a layer fits the budget.

    Examples
    --------
    >>> import bar
    >>> from bar.methods.magnitude import Magnitude
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> pruner = Magnitude(net, (3, 6, 6), factor=4, cycle=10)
    >>> pruner.network.size()  # of 144: halved at once, and again by the cut
    72
    >>> bar.count(pruner.cut(), (3, 6, 6)).volume
    36
    """

    choose: ClassVar[Callable[[GatedNetwork, dict[str, int], torch.Generator], dict[str, Tensor]]]
    presets: ClassVar = {"paper": {"epochs": (0, 40, 10)}, "quick": {"epochs": (0, 8, 2)}}  # of each cycle
    starts = ("unpruned",)

    @classmethod
    def prepare(cls, network: nn.Module, task: Task) -> "IterativePruning":
        """See `bar.methods.base.Method`."""
        return cls(network, task.input_size, task.factor, sum(task.epochs[1:]), task.metric, task.seed)

    @classmethod
    def phases(cls, settings: Settings, factor: float, epochs: tuple[int, int, int]) -> list[tuple[str, int, float]]:
        """Fine-tuning and cooling down after each narrowing; those before the cut are called "prune"."""
        _, tune, cool = epochs
        before = [("prune", tune, settings.lr), ("prune", cool, settings.cooldown_lr)]
        after = [("finetune", tune, settings.lr), ("cooldown", cool, settings.cooldown_lr)]
        return before * (len(factors_to(factor)) - 1) + after

    def __init__(
        self,
        network: nn.Module,
        input_size: Sequence[int],
        factor: float,
        cycle: int,
        metric: str = "volume",
        seed: int = 0,
    ) -> None:
        self.network = open_(gate(network, input_size))
        widths(self.network, factor, metric)  # raises if the budget cannot be met
        self.cycle, self.metric = cycle, metric
        self.factors = factors_to(factor)
        self.limit = self.network.full(metric) / factor
        self._generator = torch.Generator().manual_seed(seed)
        self._epochs, self._narrowed = 0, 0
        if len(self.factors) > 1:
            self._narrow()

    def _narrow(self) -> None:
        narrow_(self.network, self.choose, self.factors[self._narrowed], self._generator, self.metric)
        self._narrowed += 1

    def end_epoch(self) -> dict:
        """After each cycle but the last, narrow again."""
        gated = self.network
        record = {
            "volume": gated.size("volume"), "flops": gated.size("flops"), "size": gated.size(self.metric),
            "budget": gated.full(self.metric) / self.factors[self._narrowed - 1],
        }  # fmt: skip
        self._epochs += 1
        if self._epochs == self.cycle * self._narrowed and self._narrowed < len(self.factors) - 1:
            self._narrow()
        return record

    def watched(self) -> nn.Module:
        """The network as narrow as it is now."""
        return prune(self.network)

    def cut(self) -> nn.Module:
        """Prune for the last time."""
        while self._narrowed < len(self.factors):  # more than once, if there was no training in between
            self._narrow()
        return prune(self.network)

    def cut_record(self) -> dict:
        """What is left."""
        return self.network.costs() | {"size": self.network.size(self.metric), "budget": self.limit}

    def state_dict(self) -> dict:
        """What has been cut, and when; and the state of the generator."""
        gates = {name: gate.state_dict() for name, gate in self.network.gates.items()}
        return {
            "gates": gates, "epochs": self._epochs, "narrowed": self._narrowed,
            "generator": self._generator.get_state(),
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Restore a `state_dict`."""
        load_gates(self.network, state["gates"])
        check_form(state, self.state_dict())
        if not (state["epochs"] >= 0 and 0 <= state["narrowed"] <= len(self.factors)):
            raise BarError("it has been narrowed another number of times than this training does")
        self._epochs, self._narrowed = state["epochs"], state["narrowed"]
        self._generator.set_state(state["generator"])


def factors_to(factor: float) -> list[float]:
    """The factors that iterative pruning goes through: doubled each time, and the one asked for at last.

    Examples
    --------
    >>> factors_to(16), factors_to(6), factors_to(1.5)
    ([2, 4, 8, 16], [2, 4, 6], [1.5])
    """
    return [*(2**i for i in range(1, math.ceil(math.log2(factor)))), factor]
