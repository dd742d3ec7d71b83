"""Gates that learn under a sparsity loss, without a budget in it: what L0 and the information bottleneck share."""

from collections.abc import Iterator

from torch import Tensor, nn

from bar.errors import BarError
from bar.methods.base import Method, Option, Task
from bar.methods.gated import check_limit, encoded, load_gates, record_of_cut, sizes
from bar.surgery import GatedNetwork, prune
from bar.training import check_form

TRAVEL = Option(
    "travel", float, None,
    "How far gates can move: their learning rate is this, divided by the pruning steps. None: the preset's gate_lr.",
    above=0,
)  # fmt: skip
FIRST = Option("first", float, 0.01, "The sparsity weight, lambda, that the search tries first.", above=0)
LAM = Option("lam", float, None, "The sparsity weight, lambda. None: searched for, until the budget is met.", above=0)


class Sparsity(Method):
    """Gates that are learnt under lambda times a sparsity loss; what `L0` and `InformationBottleneck` share.

    Parameters
    ----------
    gated : GatedNetwork
        With initialized gates.
    limit : float
        B, in units of `metric`: the size that the pruned network should have. The loss does not depend on it.
    lam : float
        lambda > 0, the weight of the sparsity loss.
    metric : str
        "volume" or "flops".
    lr : float
        Learning rate of the gates, > 0; 1e-3 in the paper, for everything.
    betas : pair of float
        Adam's, for the gates.
    settle : bool
        Whether `cut` enforces the budget by the order of the gates (`bar.GatedNetwork.settle_`), which changes nothing
        where lambda has met it. Otherwise it prunes by the method's own rule alone, as the trials of a search.

    Attributes
    ----------
    network : GatedNetwork
        The same as `gated`.

    Raises
    ------
    BarError
        If lambda or the learning rate is not above 0, the metric is unknown, or not even one feature a layer fits.
    """

    searched = True

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

    @classmethod
    def on(cls, gated: GatedNetwork, task: Task, betas: tuple[float, float], **more) -> "Sparsity":
        """The method on a gated network with initialized gates; for `prepare`."""
        travel, tried = task.options["travel"], (task.lam, task.options["lam"], task.options["first"])
        lam = next(value for value in tried if value is not None)
        lr = travel / task.steps if travel else task.settings.gate_lr
        limit = gated.full(task.metric) / task.factor
        return cls(gated, limit, lam, task.metric, lr=lr, betas=betas, settle=task.settle, **more)

    def loss(self) -> Tensor:
        """The sparsity loss L_S of the gates: a scalar >= 0, differentiable."""
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
        """What hard pruning would leave now: ``volume``, ``flops``, and ``size``, the one budgeted; and the gates."""
        self.network.floor_()
        return sizes(self.network, self.metric) | {"gates": encoded(self.network)}

    def watched(self) -> nn.Module:
        """What hard pruning would leave now, as a plain network."""
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
        """The gates, which the pruned network does not have, and whether the cut is done."""
        return {"gates": {n: gate.state_dict() for n, gate in self.network.gates.items()}, "done": self._done}

    def load_state_dict(self, state: dict) -> None:
        """Restore a `state_dict`."""
        load_gates(self.network, state["gates"])
        check_form(state, self.state_dict())
        self._done = state["done"]
