"""Uniform widths: what random, magnitude, VQ and ID have in common (section 5, supp. 3.2), and `Uniform` itself.

All convolutions keep the same share of their features; a method only chooses which. Where several convolutions are
summed into one residual signal, they keep the same channels of it: only then do the FLOPs fall by the factors of
supp. 6 (4.0, 16.0, 64.0, 255.8 on WRN-28-12), and a mixed block is a regular one.

A method is a function ``choose(gated, widths, generator)`` that returns, for each gated convolution, which features
stay. `narrow_` asks it and cuts the rest. To halve again, after more training, call `narrow_` on the same gated network
with twice the factor: what was cut stays out, and what stays was there before.
"""

import bisect
import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor, fx, nn

from bar import cost
from bar.errors import BarError, nearest
from bar.methods.base import Method, Task
from bar.network.views import CONVOLUTIONS
from bar.surgery import GatedNetwork, gate, prune
from bar.surgery.loading import masks_for
from bar.training import Settings

Choose = Callable[[GatedNetwork, dict[str, int], torch.Generator], dict[str, Tensor]]


@torch.no_grad()
def open_(gated: GatedNetwork) -> GatedNetwork:
    """Fix all gates at z = 1, in training, too, except those of features that have been cut.

    Call it before the initial training of the full network. `narrow_` leaves gates in this state.

    Parameters
    ----------
    gated : GatedNetwork
        Changed in place. Its log alpha become infinite and require no gradient any more.

    Returns
    -------
    GatedNetwork
        The same.

    Examples
    --------
    >>> from bar import gate
    >>> gated = open_(gate(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 2)), (3, 6, 6)))
    >>> gated.gates["0"].distribution().rsample((2,))
    tensor([[1., 1.],
            [1., 1.]])
    """
    for each in gated.gates.values():
        each.log_alpha.requires_grad_(False).fill_(torch.inf)
    return gated


@torch.no_grad()
def narrow_(
    gated: GatedNetwork, choose: Choose, factor: float, generator: torch.Generator, metric: str = "volume"
) -> GatedNetwork:
    """Cut features until the network is at least `factor` times smaller than with all of them.

    Nothing is computed any more for what has been cut, so training is cheaper from here on; `bar.prune` gives the plain
    network. Its size is that of `widths`, or less: features that have lost all their inputs or readers are cut, too
    (only in networks with grouped convolutions).

    Parameters
    ----------
    gated : GatedNetwork
        Changed in place; VQ and ID change its weights. The running statistics of batch norms then no longer fit.
    choose : callable
        The `choose` of `bar.methods.random`, `magnitude`, `vector_quantization` or `interpolative`.
    factor : float
        Size of the *full* network over the budget, >= 1: 2, then 4, 8, 16, to halve again and again.
    generator : torch.Generator
        On the CPU; for methods that draw.
    metric : str
        What is divided: "volume" or "flops".

    Returns
    -------
    GatedNetwork
        The same, with open gates that require no gradient (see `open_`).

    Raises
    ------
    BarError
        As `widths`; the network is then unchanged.

    Notes
    -----
    Source: supp. 3.2, step 3.

    Examples
    --------
    >>> from bar import gate, prune
    >>> from bar.methods import magnitude
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> gated = gate(net, (3, 6, 6))
    >>> narrow_(gated, magnitude.choose, 2, torch.Generator()).gates
    {'0': Gate(8, alive=4, rule='median'), '2': Gate(4, alive=2, rule='median')}
    >>> sum(parameter.numel() for parameter in prune(gated).parameters())  # 3 -> 4 -> 2 -> 2 features
    204
    """
    before = {name: tensor.clone() for name, tensor in gated.body.state_dict().items()}
    alive = _chosen(gated, choose, widths(gated, factor, metric), generator)
    budget, asked = gated.full(metric) / factor, factor
    # Where a concatenation is summed with something, the cost depends on which channels of the two coincide.
    while (size := gated.size_of(alive, metric)) > budget:
        gated.body.load_state_dict(before)
        asked *= size / budget
        alive = _chosen(gated, choose, widths(gated, asked, metric), generator)
    return open_(gated.keep_(alive).cut_())


def _chosen(gated: GatedNetwork, choose: Choose, kept: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """What a method keeps; refused unless it is a choice for each gate, of no more features than it was asked for."""
    alive = masks_for(gated.gates, choose(gated, kept, generator))
    for name, features in alive.items():
        if (number := int(features.sum())) > kept[name]:
            raise BarError(f"{number} features of {name!r} were chosen to be kept, which may keep {kept[name]}")
    return alive


@torch.no_grad()
def widths(gated: GatedNetwork, factor: float, metric: str = "volume") -> dict[str, int]:
    """How many features each convolution keeps: all widths times one number, rounded down, but at least 1.

    The number is the largest one that fits; for volume it is 1/factor, or a little more where rounding leaves room.
    What is left of the budget is handed out: convolutions get one more feature each, those first that rounding took
    most from (of equal ones, the first in order of execution), each if it fits. So widths are uniform up to one
    feature.

    Parameters
    ----------
    gated : GatedNetwork
        What has been cut stays out; it is not changed.
    factor : float
        Size of the full network over the budget, >= 1.
    metric : str
        "volume" or "flops".

    Returns
    -------
    dict of str to int
        For each gated convolution, at least 1; the same for all that are summed into one signal.

    Raises
    ------
    BarError
        If the factor is below 1 or there is no such metric; if one feature a convolution is still too much.

    Notes
    -----
    Source: supp. 3.2, "prune 50% of the network's volume"; that widths are uniform is what the FLOP factors of
    supp. 6 say.

    Examples
    --------
    >>> from bar import gate
    >>> net = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> widths(gate(net, (3, 6, 6)), 2)  # of 9 * 16 + 4 * 4 = 160 numbers, 4 * 16 + 4 * 2 = 72; at most 80 fit
    {'0': 4, '2': 3}
    """
    if not (math.isfinite(factor) and factor >= 1):
        raise BarError(f"the pruning factor must be a number of at least 1, got {factor}")
    if metric not in cost.METRICS:
        raise BarError(f"unknown metric {metric!r}: {nearest(str(metric), cost.METRICS)}")
    uncut = {name: ~gate.cut.cpu() for name, gate in gated.gates.items()}
    joined, budget = signals(gated), gated.full(metric) / factor
    full = [len(uncut[names[0]]) for names in joined]
    there = [min(int(uncut[name].sum()) for name in names) for names in joined]

    def per_conv(counts: list[int]) -> dict[str, int]:
        found = {name: count for names, count in zip(joined, counts, strict=True) for name in names}
        return {name: found[name] for name in gated.gates}

    def size(counts: list[int]) -> int:  # of the first features; which ones does not matter, but see `narrow_`
        return gated.size_of({n: uncut[n] & (uncut[n].cumsum(0) <= k) for n, k in per_conv(counts).items()}, metric)

    def times(multiplier: Fraction) -> list[int]:
        return [min(max(1, math.floor(n * multiplier)), most) for n, most in zip(full, there, strict=True)]

    if (least := size(times(Fraction(0)))) > budget:
        raise BarError(
            f"one feature in each convolution is a {metric} of {least:,}, above the budget of {budget:,.0f}: choose a "
            f"pruning factor of at most {gated.full(metric) / least:.4g}"
        )
    # Widths change at these multipliers only; they are fractions, so that 3 * (1 / 3) does not round down to 0.
    steps = [Fraction(0), *sorted({Fraction(k, n) for n in set(full) for k in range(1, n + 1)})]
    fits = bisect.bisect_right(steps, budget, key=lambda multiplier: size(times(multiplier))) - 1
    counts, beyond = times(steps[fits]), steps[min(fits + 1, len(steps) - 1)]
    for i in sorted(range(len(full)), key=lambda i: counts[i] - full[i] * beyond):
        more = [count + (i == j and count < there[j]) for j, count in enumerate(counts)]
        counts = more if size(more) <= budget else counts
    return per_conv(counts)


def signals(gated: GatedNetwork) -> list[list[str]]:
    """The gated convolutions, together with those that they are summed with, channel by channel.

    Parameters
    ----------
    gated : GatedNetwork

    Returns
    -------
    list of list of str
        Names of convolutions, each once, in order of execution of the first.

    Examples
    --------
    >>> from bar import gate, models
    >>> for names in signals(gate(models.build("wrn-10-1", input_size=(3, 8, 8)), (3, 8, 8)))[:3]:
    ...     print(names)
    ['conv1', 'group1.0.conv2']
    ['group1.0.conv1']
    ['group2.0.shortcut', 'group2.0.conv2']
    """
    space = gated.network.spaces()
    found: dict[fx.Node, list[str]] = {}
    for name in gated.gates:
        found.setdefault(space[gated.network.convs[name]], []).append(name)
    return list(found.values())


@torch.no_grad()
def filters(gated: GatedNetwork, name: str, alive: dict[str, Tensor] | None = None) -> Tensor:
    """The weights of a convolution's features, those of inputs that are not live set to 0.

    Parameters
    ----------
    gated : GatedNetwork
    name : str
        Of a convolution.
    alive : dict of str to bool Tensor of shape (features,), optional
        Which features of the other convolutions are alive; by default, all that have not been cut.

    Returns
    -------
    Tensor
        Shape (features, input channels, taps), float64, on the CPU. A feature of a grouped convolution has zeros for
        the other groups' inputs.
    """
    network, node = gated.network, gated.network.convs[name]
    conv = network.submodule(node)
    weight = by_feature(conv).double().cpu().flatten(2)
    weight = weight.view(conv.groups, -1, *weight.shape[1:])  # group, feature, its inputs, taps
    dense = weight.new_zeros(*weight.shape[:2], conv.groups, *weight.shape[2:])
    group = torch.arange(conv.groups)
    dense[group, :, group] = weight
    dense = dense.reshape(conv.out_channels, conv.in_channels, -1)
    there = {n: ~gate.cut for n, gate in gated.gates.items()} if alive is None else alive
    return dense * network.live(there)[network.sources(node)[0]][:, None]


def by_feature(layer: nn.Module) -> Tensor:
    """The weights of a layer, features first; those of a transposed convolution have its inputs first."""
    return layer.weight.transpose(0, 1) if getattr(layer, "transposed", False) else layer.weight


@torch.no_grad()
def highest(gated: GatedNetwork, widths: dict[str, int], scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep the features with the highest scores; scores of features that are summed into one channel are summed.

    Parameters
    ----------
    gated : GatedNetwork
    widths : dict of str to int
        How many to keep of each gated convolution.
    scores : dict of str to Tensor of shape (features,)
        For each gated convolution, any real numbers. Of equal ones the first stay.

    Returns
    -------
    dict of str to bool Tensor of shape (features,)
        On the CPU.
    """
    alive = {}
    for names in signals(gated):
        score = sum(scores[name].cpu() for name in names)
        for name in names:
            mine = score.masked_fill(gated.gates[name].cut.cpu(), -torch.inf)
            alive[name] = torch.zeros(len(mine), dtype=torch.bool)
            alive[name][mine.argsort(descending=True, stable=True)[: widths[name]]] = True
    return {name: alive[name] for name in gated.gates}


def first(gated: GatedNetwork, widths: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """Keep the first features of each convolution, for networks that have not learnt anything yet."""
    return highest(gated, widths, {name: torch.zeros(len(gate.cut)) for name, gate in gated.gates.items()})


class Uniform(Method):
    """A network of uniform widths, trained from scratch: the baseline that pruning has to beat.

    It is cut before the first step. Its random weights are those of the full network's first features, scaled so that
    each layer's sums vary as they did with all inputs.

    Parameters
    ----------
    network : nn.Module
        A plain CNN that is not trained; changed in place.
    task : Task
        What is asked of it.

    Attributes
    ----------
    network : GatedNetwork

    Raises
    ------
    BarError
        If the network cannot be gated, or not even one feature a layer fits the budget.

    Examples
    --------
    >>> from bar.training import PRESETS
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> task = Task((3, 6, 6), PRESETS["quick"], 2, "volume", (24, 12, 4), 10)
    >>> Uniform(net, task).cut().get_submodule("2")
    Conv2d(4, 2, kernel_size=(3, 3), stride=(1, 1))
    """

    name = "uniform"
    title = "Uniform"
    summary = "Every layer has the same share of its features from the beginning; nothing is pruned."
    starts = ("scratch",)

    @classmethod
    def phases(cls, settings: Settings, factor: float, epochs: tuple[int, int, int]) -> list[tuple[str, int, float]]:
        """For as long as the others prune and fine-tune."""
        prune, tune, cool = epochs
        return [("finetune", prune + tune, settings.lr), ("cooldown", cool, settings.cooldown_lr)]

    def __init__(self, network: nn.Module, task: Task) -> None:
        self.metric, self._full = task.metric, {}
        for name, module in network.named_modules():
            if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
                self._full[name] = by_feature(module)[0].numel()
        self.network = gate(network, task.input_size)
        self.limit = self.network.full(task.metric) / task.factor
        narrow_(self.network, first, task.factor, torch.Generator(), task.metric)

    @torch.no_grad()
    def cut(self) -> nn.Module:
        """The narrow network, with weights rescaled for its fewer inputs."""
        network = prune(self.network)
        for name, module in network.named_modules():
            if name in self._full and isinstance(module, (*CONVOLUTIONS, nn.Linear)):
                module.weight *= math.sqrt(self._full[name] / by_feature(module)[0].numel())
        return network

    def cut_record(self) -> dict:
        """What is left."""
        return self.network.costs() | {"size": self.network.size(self.metric), "budget": self.limit}

    def state_dict(self) -> dict:
        """Nothing: all follows from the task."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to restore."""
