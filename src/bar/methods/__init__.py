"""The methods of section 5 and of the two other papers, one file each; and `build`, which sets one up by name."""

from collections.abc import Sequence

import torch
from torch import nn

from bar.errors import BarError, nearest
from bar.methods import interpolative, magnitude, random, vector_quantization
from bar.methods.budget_aware import BudgetAware
from bar.methods.halving import Halving, halvings
from bar.methods.information_bottleneck import GaussianGate, InformationBottleneck
from bar.methods.l0 import L0, normal_
from bar.methods.learning_compression import LearningCompression
from bar.methods.morphnet import MorphNet
from bar.methods.reparametrization import Reparametrization
from bar.methods.uniform import Choose
from bar.methods.weight_magnitude import MagnitudePruning
from bar.surgery import gate
from bar.training import Pruner, Settings

HALVING: dict[str, Choose] = {
    "random": random.choose,
    "magnitude": magnitude.choose,
    "vector-quantization": vector_quantization.choose,
    "interpolative": interpolative.choose,
}
SEARCHED = ("l0", "information-bottleneck")  # these have a weight of sparsity instead of a budget
STRUCTURED = ("bar", *HALVING, *SEARCHED, "morphnet")
UNSTRUCTURED = ("learning-compression", "reparametrization", "mp", "mp-ft")  # zero single weights
NAMES = (*STRUCTURED, *UNSTRUCTURED, "unpruned")
FROM_TRAINED = (*HALVING, "learning-compression", "mp", "mp-ft")  # prune a trained network


def build(
    name: str,
    network: nn.Module,
    input_size: Sequence[int],
    settings: Settings,
    factor: float,
    steps_per_epoch: int,
    metric: str = "volume",
    schedule: str = "sigmoid",
    seed: int = 0,
    gates: str = "uniform",
    lam: float | None = None,
    settle: bool = True,
) -> Pruner:
    """A method, ready for `bar.training.Training`.

    Parameters
    ----------
    name : str
        One of `NAMES`, but for "unpruned".
    network : nn.Module
        Plain; trained already for the methods in `FROM_TRAINED`. It is changed in place.
    input_size : (int, int, int)
        Of one image.
    settings : Settings
        Of the run.
    factor : float
        Pruning factor > 1.
    steps_per_epoch : int
        How many steps of training make an epoch.
    metric, schedule : str
        As in `bar.RunConfig`.
    seed : int
        Of what the method draws.
    gates : str
        The start of the gates of "l0", as in `bar.RunConfig`.
    lam : float, optional
        The weight of sparsity, with the methods in `SEARCHED`; default: the first that a search tries.
    settle : bool
        Whether those methods make the budget certain by the order of their gates.

    Returns
    -------
    Pruner

    Raises
    ------
    BarError
        If there is no such method, or it cannot prune this network to this budget.

    Examples
    --------
    >>> from bar.training import PRESETS
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    >>> pruner = build("magnitude", net, (3, 6, 6), PRESETS["quick"], factor=2, steps_per_epoch=10)
    >>> pruner.cut().get_submodule("0")
    Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
    """
    if name in HALVING:
        cycle = sum(settings.halving_epochs)
        return Halving(network, input_size, HALVING[name], factor, cycle, metric, seed)
    steps = settings.prune_epochs * steps_per_epoch
    draws = torch.Generator().manual_seed(seed)
    if name == "bar":
        return BudgetAware(network, input_size, settings, factor, steps, metric, schedule, seed)
    if name == "l0":
        gated = gate(network, input_size)
        for each in gated.gates.values() if gates == "uniform" else ():
            each.spread_(*settings.gate_start, generator=draws)
        if gates == "normal":
            normal_(gated, generator=draws)
        kind, travel, betas = L0, settings.l0_travel, settings.gate_betas
    elif name == "information-bottleneck":
        gated = gate(network, input_size, gate_factory=GaussianGate)
        for each in gated.gates.values():
            each.start_(draws)
        kind, travel, betas = InformationBottleneck, settings.ib_travel, (0.9, 0.999)
    elif name == "morphnet":
        gated = gate(network, input_size)
        full = gated.full(metric)
        weight, threshold = settings.morphnet_pressure / full, settings.morphnet_threshold
        return MorphNet(gated, full / factor, weight, metric, threshold=threshold)
    elif name == "learning-compression":
        return LearningCompression(network, factor, mu=settings.lc_mu, growth=settings.lc_growth)
    elif name == "reparametrization":
        return Reparametrization(network, factor, lam=settings.reparametrization_lam)
    elif name in ("mp", "mp-ft"):
        return MagnitudePruning(network, factor)
    else:
        raise BarError(f"unknown method {name!r}: {nearest(name, NAMES)}")
    lam = settings.first_weights[name] if lam is None else lam
    lr = travel / steps if travel else settings.gate_lr
    return kind(gated, gated.full(metric) / factor, lam, metric, lr=lr, betas=betas, settle=settle)


def phases(name: str, settings: Settings, factor: float) -> list[tuple[str, int, float]]:
    """Name, epochs and learning rate of a method's phases; what comes before the cut is called "prune" (supp. 3).

    Examples
    --------
    >>> from bar.training import PRESETS
    >>> phases("magnitude", PRESETS["paper"], factor=4)
    [('prune', 40, 0.001), ('prune', 10, 0.0001), ('finetune', 40, 0.001), ('cooldown', 10, 0.0001)]
    """
    fast, slow = settings.lr, settings.cooldown_lr
    if name in HALVING:
        tune, cool = settings.halving_epochs
        before = [("prune", tune, fast), ("prune", cool, slow)] * (len(halvings(factor)) - 1)
        return [*before, ("finetune", tune, fast), ("cooldown", cool, slow)]
    if name == "morphnet":
        prune, tune, cool = settings.morphnet_epochs
        return [("prune", prune, fast), ("finetune", tune, fast), ("cooldown", cool, slow)]
    if name == "mp":
        return []
    if name == "mp-ft":  # for as long as the others prune and fine-tune
        return [
            ("finetune", settings.prune_epochs + settings.finetune_epochs, fast),
            ("cooldown", settings.cooldown_epochs, slow),
        ]
    if name == "reparametrization":  # is not fine-tuned
        return [
            ("prune", settings.prune_epochs + settings.finetune_epochs, fast),
            ("prune", settings.cooldown_epochs, slow),
        ]
    return settings.phases_of_pruning
