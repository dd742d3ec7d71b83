"""The variational information bottleneck, "IB" (VIBNet: Dai, Zhu, Guo & Wipf 2018; Lemaire et al. 2019, section 5).

Each feature is multiplied by a Gaussian z = mu + sigma epsilon. The loss adds lambda times an upper bound of the
information that the features carry on, 1/2 log(1 + mu^2 / sigma^2) for each. A feature whose noise is at least as large
as its signal (sigma^2 >= mu^2) carries at most 1/2 log 2, and is pruned. There is no budget in the loss; lambda is
searched for (`bar.methods.search`).

Lemaire et al. print the loss as log(1 - mu^2 / sigma^2), which is undefined for all of their initial values, and start
log sigma, where VIBNet's code has log sigma^2, at -9. Here both are VIBNet's.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from bar.errors import BarError
from bar.methods.base import Option, Task
from bar.methods.sparsity import FIRST, LAM, TRAVEL, Sparsity
from bar.surgery import gate

MARGIN = 1.0  # in log sigma^2: how far beyond the threshold a gate is put that has to be open, or shut


class GaussianGate(nn.Module):
    """One Gaussian variable per feature of a convolution: z = mu + sigma epsilon while training, mu afterwards.

    One vector is drawn for each batch, as with hard concrete gates; VIBNet's code draws one for each image.

    Parameters
    ----------
    features : int
        Number of features, >= 1.

    Attributes
    ----------
    mu, log_variance : nn.Parameter
        mu and log sigma^2, shape (features,), drawn from N(1, 0.01^2) and N(-9, 0.01^2) (supp. 4, after VIBNet).
    cut : Tensor
        bool, shape (features,): which features have been cut (`cut_`): z = 0 for them, whatever mu and sigma are.

    Raises
    ------
    BarError
        If the number of features is not a whole number >= 1.

    Examples
    --------
    >>> gate = GaussianGate(3)
    >>> gate
    GaussianGate(3, alive=3)
    >>> gate.mu.data = torch.tensor([1.0, 0.1, -0.1])
    >>> gate.log_variance.data = torch.tensor([-9.0, -1.0, -9.0])
    >>> gate.value.detach()
    tensor([ 1.0000,  0.0000, -0.1000])
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        if isinstance(features, bool) or not isinstance(features, int) or features < 1:
            raise BarError(f"a gate needs at least one feature, a whole number, got {features!r}")
        self.mu, self.log_variance = nn.Parameter(torch.empty(features)), nn.Parameter(torch.empty(features))
        self.register_buffer("cut", torch.zeros(features, dtype=torch.bool))
        self.start_()

    @torch.no_grad()
    def start_(self, generator: torch.Generator | None = None) -> "GaussianGate":
        """Draw mu and log sigma^2 anew, in place; returns the gate."""
        self.mu.normal_(1, 0.01, generator=generator)
        self.log_variance.normal_(-9, 0.01, generator=generator)
        return self

    @property
    def _log_square(self) -> Tensor:
        mu = self.mu.detach()
        return mu.square().clamp(min=torch.finfo(mu.dtype).tiny).log()

    @property
    def score(self) -> Tensor:
        """What features are ranked by: log mu^2 - log sigma^2, shape (features,); -inf for what has been cut."""
        return (self._log_square - self.log_variance.detach()).masked_fill(self.cut, -torch.inf)

    @property
    def alive(self) -> Tensor:
        """Which features are alive: those with mu^2 > sigma^2; bool, shape (features,)."""
        return self.score > 0

    @property
    def value(self) -> Tensor:
        """The test-time value of each feature's gate, shape (features,): mu, or 0 for what is not alive."""
        return torch.where(self.alive, self.mu, 0)

    def information(self) -> Tensor:
        """The bound on each feature's information in nats, 1/2 log(1 + mu^2 / sigma^2) >= 0; shape (features,)."""
        return _information(self.mu, self.log_variance, self.cut)

    @staticmethod
    def sample(gates: Iterable["GaussianGate"]) -> Tensor:
        """Draw the values of several gates: shape (total features,), differentiable in mu and sigma."""
        parts = zip(*((g.mu, g.log_variance, g.cut) for g in gates), strict=True)
        mu, log_variance, cut = (torch.cat(part) for part in parts)
        z = mu + (log_variance / 2).exp() * torch.randn_like(mu)
        return z.masked_fill(cut, 0)

    @staticmethod
    def union(p: Tensor, q: Tensor) -> Tensor:
        """The presence of the sum of two features, given theirs: the one of larger magnitude.

        p + q - p q of hard concrete gates would leave [0, 1] and may vanish where neither does. Clamping the values to
        [0, 1] first would bound the noise behind a batch norm that reads a sum, and a feature could live on there with
        an infinite sigma, at no cost.
        """
        return torch.where(p.abs() >= q.abs(), p, q)

    @torch.no_grad()
    def keep_(self, alive: Tensor) -> None:
        """Open some gates (mu = 1, hardly any noise) and shut all others (z = 0); as `bar.Gate.keep_`."""
        alive = alive.to(self.mu.device) & ~self.cut
        self.mu.copy_(alive)
        self.log_variance.copy_(torch.where(alive, -9.0, -20.0))

    @torch.no_grad()
    def settle_(self, alive: Tensor) -> None:
        """Make just these features alive, by their sigma; gates that are right already do not change."""
        edge = self._log_square
        opened = torch.where(self.alive, self.log_variance, edge - MARGIN)
        shut = torch.where(self.alive, edge + MARGIN, self.log_variance)
        self.log_variance.copy_(torch.where(alive.to(edge.device), opened, shut))

    @torch.no_grad()
    def cut_(self, features: Tensor) -> None:
        """Cut features: z = 0 from now on, whatever is done to mu and sigma; see `bar.Gate.cut_`."""
        self.cut |= features.to(self.cut.device)
        self.mu[self.cut], self.log_variance[self.cut] = 0, -20.0

    @torch.no_grad()
    def floor_(self) -> None:
        """Keep the feature with the highest score alive, by its sigma; does not synchronize with the device."""
        top = self.score.argmax(keepdim=True)
        highest = self._log_square.gather(0, top) - MARGIN
        self.log_variance.scatter_(0, top, self.log_variance.gather(0, top).minimum(highest))

    def extra_repr(self) -> str:
        return f"{self.mu.numel()}, alive={int(self.alive.sum())}"


class InformationBottleneck(Sparsity):
    """The pruner of the information bottleneck; `bar.methods.sparsity.Sparsity` has the other parameters.

    The gated network must be made with Gaussian gates.

    Parameters
    ----------
    area : bool
        Whether each feature's term is weighted by the area of its map, relative to the mean area of all features. So
        does VIBNet's code; in the formula of Lemaire et al. all features count the same.

    Examples
    --------
    >>> import bar
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    >>> gated = bar.gate(net, (1, 6, 6), gate_factory=GaussianGate)
    >>> pruner = InformationBottleneck(gated, limit=64, lam=0.1)
    >>> print(f"{pruner(step=0):.1f}")  # 0.1 times 8 features of about 1/2 log(1 + e^9)
    3.6
    """

    name = "information-bottleneck"
    title = "IB"
    summary = "Gates learn how much noise each feature tolerates; those that are mostly noise are pruned."
    options = (
        TRAVEL,
        LAM,
        replace(FIRST, default=0.003),
        Option("area", bool, False, "Whether features are weighted by the areas of their maps, as in VIBNet's code."),
    )
    presets: ClassVar = {"paper": {}, "quick": {"travel": 5.0}}

    def __init__(self, gated, limit: float, lam: float, metric: str = "volume", area: bool = False, **options) -> None:
        if not all(isinstance(gate, GaussianGate) for gate in gated.gates.values()):
            raise BarError("the information bottleneck needs Gaussian gates: bar.gate(…, gate_factory=GaussianGate)")
        super().__init__(gated, limit, lam, metric, **options)
        self.areas: dict[str, float] = {}
        if area:
            areas = {name: gated.network.area(gated.network.convs[name]) for name in gated.gates}
            features = {name: gate.mu.numel() for name, gate in gated.gates.items()}
            mean = sum(areas[name] * features[name] for name in areas) / sum(features.values())
            self.areas = {name: here / mean for name, here in areas.items()}

    @classmethod
    def prepare(cls, network: nn.Module, task: Task) -> "InformationBottleneck":
        """See `bar.methods.base.Method`."""
        gated, draws = (
            gate(network, task.input_size, gate_factory=GaussianGate),
            torch.Generator().manual_seed(task.seed),
        )
        for each in gated.gates.values():
            each.start_(draws)
        return cls.on(gated, task, (0.9, 0.999), area=task.options["area"])

    def loss(self) -> Tensor:
        """The sum over all features of 1/2 log(1 + mu^2 / sigma^2) (Dai et al. 2018, section 3)."""
        gates = self.network.gates
        if self.areas:
            return torch.stack([self.areas[name] * gate.information().sum() for name, gate in gates.items()]).sum()
        parts = zip(*((g.mu, g.log_variance, g.cut) for g in gates.values()), strict=True)
        return _information(*(torch.cat(part) for part in parts)).sum()


def _information(mu: Tensor, log_variance: Tensor, cut: Tensor) -> Tensor:
    # masked before the quotient, so that gradients are not 0 times infinity
    mu, log_variance = mu.masked_fill(cut, 0), log_variance.masked_fill(cut, 0)
    return torch.log1p(mu.square() * (-log_variance).exp()) / 2
