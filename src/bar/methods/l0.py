"""L0 regularisation, "LZR" (Louizos, Welling & Kingma 2018; Lemaire et al. 2019, section 5).

Which features live is learnt, under a loss that counts how many are likely to: lambda times the sum of P(z > 0) over
all features (supp. eq. 5). Each counts the same, whatever the area of its map: this penalises width, not volume. There
is no budget in the loss; the lambda that ends at the budget is searched for (`bar.methods.search`).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bar import cost
from bar.errors import BarError, nearest
from bar.surgery import GatedNetwork, prune
from bar.training import Pruner


class Sparsity(Pruner):
    """Gates that are learnt under lambda times a sparsity loss; what `L0` and `InformationBottleneck` share.

    Parameters
    ----------
    gated : GatedNetwork
        Its gates have been given their start.
    limit : float
        B, in units of `metric`: what the pruned network should be as large as. The loss does not know it.
    lam : float
        lambda > 0, the weight of the sparsity loss.
    metric : str
        "volume" or "flops".
    lr : float
        Learning rate of the gates, > 0; 1e-3 in the paper, for everything.
    betas : pair of float
        Adam's, for the gates.
    settle : bool
        Whether `cut` makes the budget certain by the order of the gates (`bar.GatedNetwork.settle_`), which changes
        nothing where lambda has met it. Otherwise it prunes by the method's own rule alone, as the trials of a search.

    Attributes
    ----------
    network : GatedNetwork
        The same as `gated`.

    Raises
    ------
    BarError
        If lambda or the learning rate is not above 0, the metric is unknown, or not even one feature a layer fits.
    """

    def __init__(
        self,
        gated: GatedNetwork,
        limit: float,
        lam: float,
        metric: str = "volume",
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        settle: bool = False,
    ) -> None:
        if not (0 < lam < float("inf") and 0 < lr < float("inf")):
            raise BarError(f"lambda and the gates' learning rate must be numbers above 0, not {lam} and {lr}")
        check_limit(gated, limit, metric)
        self.network, self.limit, self.lam, self.metric = gated, limit, lam, metric
        self.lr, self.betas, self.settle = lr, betas, settle
        self._done, self._before = False, 0

    def loss(self) -> Tensor:
        """The sparsity loss L_S of the gates, a scalar."""
        raise NotImplementedError

    def _parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for gate in self.network.gates.values() for parameter in gate.parameters())

    def groups(self) -> list[dict]:
        """The gates' parameters, for Adam; no weight decay."""
        return [{"params": list(self._parameters()), "betas": self.betas, "weight_decay": 0.0}]

    def rate(self, step: int) -> float:
        """The gates' learning rate at a step: always the same."""
        return self.lr

    def __call__(self, step: int) -> Tensor:
        """The term of the loss, lambda L_S; also keeps a path open (`floor_`)."""
        self.network.floor_()
        return self.lam * self.loss()

    def end_epoch(self) -> dict:
        """What hard pruning would leave now: ``volume``, ``flops``, and ``size``, the one that is budgeted."""
        self.network.floor_()
        return sizes(self.network, self.metric)

    def watched(self) -> nn.Module:
        """What hard pruning would leave now, as a network of its own."""
        return prune(self.network.floor_())

    def cut(self) -> nn.Module:
        """The pruned network."""
        if not self._done:
            self._before = self.network.floor_().size(self.metric)
            if self.settle:
                self.network.settle_(self.limit, self.metric)
            self._done = True
        return prune(self.network)

    def cut_record(self) -> dict:
        """What the cut has left, ``size_before_settling``, and what regular connectivity would leave."""
        return record_of_cut(self.network, self.limit, self.metric, self._before)

    def state_dict(self) -> dict:
        """The gates, which outlive the gated network's own state, and whether they have been settled."""
        return {"gates": {n: gate.state_dict() for n, gate in self.network.gates.items()}, "done": self._done}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict`."""
        load_gates(self.network, state["gates"])
        self._done = state["done"]


class L0(Sparsity):
    """The pruner of L0 regularisation; `Sparsity` has the parameters.

    Notes
    -----
    The start is that of `bar.gate`, U(0, 0.01) (supp. 4); `normal_` gives that of Louizos et al. The test-time gate is
    the one that the gated network was made with (``bar.gate(…, rule="l0")`` for the reference code's).

    Examples
    --------
    >>> import bar
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    >>> pruner = L0(bar.gate(net, (1, 6, 6)), limit=64, lam=0.1)
    >>> print(f"{pruner(step=0):.3f}")  # 0.1 times 8 features of P(z > 0) = 0.83
    0.666
    >>> pruner.network.gates["0"].log_alpha.data[3:] = -5
    >>> pruner.cut().get_submodule("0")
    Conv2d(1, 3, kernel_size=(3, 3), stride=(1, 1))
    """

    def loss(self) -> Tensor:
        """The expected number of features (supp. eq. 5)."""
        expected = self.network.expected()
        return torch.cat([expected[name] for name in self.network.gates]).sum()


@torch.no_grad()
def normal_(gated: GatedNetwork, std: float = 0.01, generator: torch.Generator | None = None) -> GatedNetwork:
    """Draw every log alpha anew from N(0, std^2), the start of Louizos et al. 2018; returns the gated network."""
    for gate in gated.gates.values():
        gate.log_alpha.normal_(0, std, generator=generator)
    return gated


def sizes(gated: GatedNetwork, metric: str) -> dict[str, int]:
    """``volume``, ``flops`` and ``size``, that of the metric, of what is alive."""
    return {"volume": gated.size("volume"), "flops": gated.size("flops"), "size": gated.size(metric)}


def record_of_cut(gated: GatedNetwork, limit: float, metric: str, before: int) -> dict:
    """Fields of a cut's record; `before` is the size by the method's own rule. See `bar.methods.budget_aware`."""
    return gated.costs() | {"size": gated.size(metric), "budget": limit, "size_before_settling": before}


def check_limit(gated: GatedNetwork, limit: float, metric: str) -> None:
    """Refuse a budget that no pruning of this network can meet, and an unknown metric."""
    if metric not in cost.METRICS:
        raise BarError(f"unknown metric {metric!r}: {nearest(str(metric), cost.METRICS)}")
    smallest = gated.smallest(metric)
    if not smallest <= limit:  # also refuses what is not a number
        raise BarError(f"the smallest possible {metric} is {smallest:,}, above the budget {limit:,.0f}")


def load_gates(gated: GatedNetwork, gates: dict[str, dict[str, Tensor]]) -> None:
    """Give the gates of a gated network the stored values, all or none.

    Raises
    ------
    BarError
        If they are those of another network.
    """
    own = {name: gate.state_dict() for name, gate in gated.gates.items()}
    shapes = [{n: {k: v.shape for k, v in s.items()} for n, s in states.items()} for states in (own, gates)]
    if shapes[0] != shapes[1]:
        raise BarError("these are the gates of another network: their names or sizes differ")
    for name, gate in gated.gates.items():
        gate.load_state_dict(gates[name])
    gated.connect_()
