"""Prune half, train, and again: how `random`, `magnitude`, VQ and ID come to their budgets (supp. 3.2)."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from bar.methods.l0 import load_gates
from bar.methods.uniform import Choose, narrow_, open_, widths
from bar.surgery import gate, prune
from bar.training import Pruner


class Halving(Pruner):
    """What iterative halving adds to a `bar.training.Training`.

    The network, which has been trained before, is narrowed to half its size and trained for some epochs, again and
    again; the last time is the cut, after which the plain network is trained. Where the factor is no power of two, the
    last step is shorter.

    Parameters
    ----------
    network : nn.Module
        A trained, plain CNN; changed in place.
    input_size : (int, int, int)
        Of one image.
    choose : callable
        That of `bar.methods.random`, `magnitude`, `vector_quantization` or `interpolative`.
    factor : float
        Pruning factor > 1.
    cycle : int
        Epochs between two halvings.
    metric : str
        "volume" or "flops".
    seed : int
        Of what the method draws.

    Attributes
    ----------
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
    >>> from bar.methods import magnitude
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> pruner = Halving(net, (3, 6, 6), magnitude.choose, factor=4, cycle=10)
    >>> pruner.network.size()  # of 144: halved at once, and again by the cut
    72
    >>> bar.count(pruner.cut(), (3, 6, 6)).volume
    36
    """

    def __init__(
        self,
        network: nn.Module,
        input_size: Sequence[int],
        choose: Choose,
        factor: float,
        cycle: int,
        metric: str = "volume",
        seed: int = 0,
    ) -> None:
        self.network = open_(gate(network, input_size))
        widths(self.network, factor, metric)  # refuses what cannot be
        self.choose, self.cycle, self.metric = choose, cycle, metric
        self.factors = halvings(factor)
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
        """The last halving."""
        if self._narrowed < len(self.factors):
            self._narrow()
        return prune(self.network)

    def cut_record(self) -> dict:
        """What is left."""
        return self.network.costs() | {"size": self.network.size(self.metric), "budget": self.limit}

    def state_dict(self) -> dict:
        """What has been cut, and when; and where the draws are."""
        gates = {name: gate.state_dict() for name, gate in self.network.gates.items()}
        return {
            "gates": gates, "epochs": self._epochs, "narrowed": self._narrowed,
            "generator": self._generator.get_state(),
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Go on from there."""
        load_gates(self.network, state["gates"])
        self._epochs, self._narrowed = state["epochs"], state["narrowed"]
        self._generator.set_state(state["generator"])


def halvings(factor: float) -> list[float]:
    """The factors on the way to one.

    Examples
    --------
    >>> halvings(16), halvings(6), halvings(1.5)
    ([2, 4, 8, 16], [2, 4, 6], [1.5])
    """
    return [*(2**i for i in range(1, math.ceil(math.log2(factor)))), factor]
