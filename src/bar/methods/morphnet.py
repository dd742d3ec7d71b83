"""MorphNet (Gordon et al. 2018; Lemaire et al. 2019, section 5).

Step 1 trains the plain network with an L1 penalty on |gamma|, the scales of its batch norms, each weighted by the
current cost of its feature. Features whose |gamma| has stayed above a threshold give the layers' learnt widths. Step 2
multiplies all widths by one number, so that the network just fits its budget, and keeps the largest |gamma| of each
layer.
"""

import bisect
import math
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from bar.cost import METRICS, flops_of_pair
from bar.errors import BarError
from bar.methods.base import Method, Option, Task
from bar.methods.gated import check_limit, load_gates, record_of_cut, sizes
from bar.network import Network, ask, follow
from bar.surgery import GatedNetwork, gate, prune
from bar.training import check_form


class MorphNet(Method):
    """The pruner of MorphNet.

    Parameters
    ----------
    gated : GatedNetwork
        Its gates are not learnt, they hold what has been decided; what is trained is the network without them.
    limit : float
        B, in units of `metric`.
    lam : float
        lambda > 0, the weight of the penalty, per unit of `metric`.
    metric : str
        What the penalty weights and the budget counts: "volume" or "flops".
    threshold : float
        The |gamma| > 0 above which a feature is alive. A |gamma| that the penalty drives to 0 oscillates around it by a
        few learning rates: the threshold must be larger than that.

    Attributes
    ----------
    network : nn.Module
        The plain network, which is trained.
    multiplier : float
        What the learnt widths were last multiplied by.

    Raises
    ------
    BarError
        If a convolution that may be pruned is read without a batch norm of learnt scale, a number is not above 0, the
        metric is unknown, or not even one feature a layer fits.

    Notes
    -----
    A convolution's |gamma| are those of the first batch norm on the way to what reads it. Where several read it, as in
    a pre-activation residual network, whose batch norms come after the sums, its feature is scaled by the largest of
    them: it is dead once none of them lets it through. MorphNet ties features that are summed by the same rule.

    A layer never grows beyond its original width, one whose features are all dead is removed with its block, and one
    with live features keeps at least one, if that fits the budget. On the spine
    (`bar.network.Network.spine`) each keeps one in any case.

    Examples
    --------
    >>> import bar
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    >>> net[1].weight.data = torch.tensor([0.9, 0.001, -0.8, 0.7])
    >>> pruner = MorphNet(bar.gate(net, (1, 6, 6)), limit=40, lam=0.01)  # a map has 16 numbers: two fit
    >>> print(f"{pruner(step=0):.3f}")  # 0.01 times 16 times the sum of |gamma|
    0.384
    >>> pruner.cut().get_submodule("1").weight
    Parameter containing:
    tensor([ 0.9000, -0.8000], requires_grad=True)
    """

    name = "morphnet"
    title = "MorphNet"
    summary = (
        "Batch norm scales learn each layer's width under an L1 penalty; then all widths are multiplied by one number."
    )
    options = (
        Option("pressure", float, 2.0, "The weight of the penalty, in units of 1 / full size.", above=0),
        Option("threshold", float, 0.01, "The |gamma| above which a feature is alive.", above=0),
    )
    presets: ClassVar = {
        "paper": {"epochs": (60, 50, 20)},
        "quick": {"epochs": (18, 16, 6), "threshold": 0.05},
    }
    needs_batch_norms = True

    @classmethod
    def prepare(cls, network: nn.Module, task: Task) -> "MorphNet":
        """See `bar.methods.base.Method`."""
        gated = gate(network, task.input_size)
        full = gated.full(task.metric)
        lam = task.options["pressure"] / full
        return cls(gated, full / task.factor, lam, task.metric, threshold=task.options["threshold"])

    def __init__(
        self, gated: GatedNetwork, limit: float, lam: float, metric: str = "volume", *, threshold: float = 0.01
    ) -> None:
        if not (0 < lam < math.inf and 0 < threshold < math.inf):
            raise BarError(f"lambda and the threshold must be numbers above 0, not {lam} and {threshold}")
        check_limit(gated, limit, metric)
        self.gated, self.network = gated, gated.body
        self.limit, self.lam, self.metric, self.threshold = limit, lam, metric, threshold
        self.multiplier = math.nan
        self._done, self._before = False, 0
        for name, gamma in scales(gated.network).items():
            if name in gated.gates and not gamma.isfinite().all():
                raise BarError(
                    f"MorphNet needs a batch norm with a learnt scale between {name!r} and all that reads it: protect "
                    "this convolution from pruning, or choose another method"
                )

    def __call__(self, step: int) -> Tensor:
        """The term of the loss: lambda times what the features cost, each times its |gamma|."""
        return self.lam * penalty(self.gated.network, self._scales(), self.metric, self.threshold)

    def end_epoch(self) -> dict:
        """``volume``, ``flops`` and ``size`` of the learnt widths, and the ``multiplier`` that would make them fit."""
        return sizes(self.gated.keep_(self._decide()[0]), self.metric) | {"multiplier": self.multiplier}

    def watched(self) -> nn.Module:
        """The plain network that a cut would give now."""
        return prune(self.gated.keep_(self._decide()[1]))

    def cut(self) -> nn.Module:
        """The network of the learnt widths times the multiplier; its size is at most the budget."""
        if not self._done:
            learnt, chosen = self._decide()
            self._before = self.gated.keep_(learnt).size(self.metric)
            self.gated.keep_(chosen)
            self._done = True
        return prune(self.gated)

    def cut_record(self) -> dict:
        """What the cut has left, the ``multiplier``, and ``size_before_settling``, that of the learnt widths."""
        return record_of_cut(self.gated, self.limit, self.metric, self._before) | {"multiplier": self.multiplier}

    def state_dict(self) -> dict:
        """What has been decided, if it has."""
        gates = {name: gate.state_dict() for name, gate in self.gated.gates.items()}
        return {"gates": gates, "done": self._done, "multiplier": self.multiplier}

    def load_state_dict(self, state: dict) -> None:
        """Restore a `state_dict`."""
        load_gates(self.gated, state["gates"])
        check_form(state, self.state_dict())
        self._done, self.multiplier = state["done"], state["multiplier"]

    def _scales(self) -> dict[str, Tensor]:
        found = scales(self.gated.network)
        return {name: found[name] for name in self.gated.gates}

    @torch.no_grad()
    def _decide(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Which features are alive after step 1, and which after step 2."""
        network, spine = self.gated.network, set(self.gated.network.spine())
        gamma = {name: values.cpu() for name, values in self._scales().items()}
        if any(values.isnan().any() for values in gamma.values()):
            raise BarError("the batch norms have scales that are not a number: did the training diverge?")
        order = {name: values.argsort(descending=True, stable=True) for name, values in gamma.items()}
        learnt = {name: values > self.threshold for name, values in gamma.items()}
        for name in spine & learnt.keys():
            learnt[name][order[name][0]] = True
        live = network.live(learnt)
        widths = {name: int(live[network.convs[name]].sum()) for name in learnt}

        def widened(multiplier: float, least: int) -> dict[str, Tensor]:
            """Learnt widths times a multiplier, rounded down; the features of the largest |gamma|."""
            kept = {}
            for name, width in widths.items():
                floor = max(least if width else 0, 1 if name in spine else 0)
                keep = max(math.floor(multiplier * width + 1e-9), floor)  # k / w * w may fall short of k
                kept[name] = torch.zeros(len(order[name]), dtype=torch.bool)
                kept[name][order[name][:keep]] = True
            return kept

        # Only where a layer gains a feature does the size change; it grows with the multiplier.
        steps = sorted({k / w for name, w in widths.items() if w for k in range(1, len(order[name]) + 1)})
        least = 1 if self.gated.size_of(widened(0.0, 1), self.metric) <= self.limit else 0
        fits = bisect.bisect(steps, self.limit, key=lambda s: self.gated.size_of(widened(s, least), self.metric))
        self.multiplier = steps[fits - 1] if fits else 0.0
        return learnt, widened(self.multiplier, least)


def scales(network: Network) -> dict[str, Tensor]:
    """How much of each feature its batch norms let through at most.

    Parameters
    ----------
    network : Network
        From `bar.network.trace`.

    Returns
    -------
    dict of str to Tensor of shape (features,)
        Convolution -> the largest |gamma| among the first batch norms that read each of its features; infinite where
        something reads it without one. Differentiable.
    """
    found: dict[fx.Node, Tensor] = {}

    def rule(node: fx.Node, wanted: Tensor | None) -> Tensor:
        kind = network.kinds[node]
        if kind == "conv":
            found[node] = wanted
        gamma = network.submodule(node).weight if kind == "norm" else None
        if gamma is not None:
            return gamma.abs()
        if wanted is None or kind in ("norm", "conv", "linear", "opaque", "whole", "output"):
            return torch.full((network.features(node),), torch.inf, device=_device(network))
        return wanted

    ask(network, rule)
    return {name: found[node] for name, node in network.convs.items()}


def penalty(network: Network, gamma: dict[str, Tensor], metric: str, threshold: float) -> Tensor:
    """MorphNet's regulariser (Gordon et al. 2018, section 4): |gamma|, weighted by what its feature costs.

    For the volume, the cost of a feature is the area of its map. For FLOPs it is what its convolution computes for it,
    from all inputs that are alive, plus what the convolutions that read it compute from it, for all outputs that are
    alive.

    Parameters
    ----------
    network : Network
        From `bar.network.trace`.
    gamma : dict of str to Tensor of shape (features,)
        The convolutions that may be pruned -> the |gamma| of their features, as by `scales`.
    metric : str
        "volume" or "flops".
    threshold : float
        The |gamma| above which a feature is alive.

    Returns
    -------
    Tensor
        A scalar >= 0 in units of the metric, differentiable in gamma.
    """
    flow = _flow(network, gamma)
    total = torch.zeros((), device=_device(network))
    for node, kind in network.kinds.items():
        out = flow[node]
        if kind == "filter" and out is not None:
            total = total + network.inside[node][list(METRICS).index(metric)] / len(out) * out.sum()
        if kind not in ("conv", "depthwise"):
            continue
        if metric == "volume":
            total = total if out is None else total + network.area(node) * out.sum()
            continue
        groups = network.groups(node)
        if kind == "depthwise":
            total = total if out is None else total + flops_of_pair(network, node) * out.sum()
            continue
        gamma_in, alive_in = _sums(network, network.sources(node)[0], flow, groups, threshold)
        gamma_out, alive_out = _sums(network, node, flow, groups, threshold)
        total = total + flops_of_pair(network, node) * (gamma_out * alive_in + gamma_in * alive_out).sum()
    return total


def _sums(network: Network, node, flow: dict, groups: int, threshold: float) -> tuple[Tensor, Tensor]:
    """For each group of a node's channels, the sum of |gamma| and the number of those alive, shape (groups,)."""
    here = flow[node]
    if here is None:  # always present, with no gamma
        each = torch.full((groups,), network.features(node) / groups, device=_device(network))
        return torch.zeros_like(each), each
    return here.view(groups, -1).sum(1), (here.detach() > threshold).view(groups, -1).sum(1).to(here.dtype)


def _flow(network: Network, gamma: dict[str, Tensor]) -> dict:
    """The |gamma| of the channels of every node; None where they are always present."""

    def rule(node: fx.Node, inputs: list, passed: Tensor | None) -> Tensor | None:
        kind = network.kinds[node]
        if kind == "norm" and passed is not None and network.submodule(node).affine:
            return network.submodule(node).weight.abs()
        return gamma.get(node.target) if kind == "conv" else passed

    return follow(network, rule, torch.maximum)


def _device(network: Network) -> torch.device:
    return next(network.module.parameters()).device
