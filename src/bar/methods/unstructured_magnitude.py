"""Magnitude pruning of individual weights (Han et al. 2015): the smallest of a trained network become 0, all at once.

Without further training this is what comparisons call MP; fine-tuned, MP+FT. Feature maps keep their sizes.
"""

import copy

import torch
from torch import Tensor, nn

from bar.methods.base import Method, Option, Task
from bar.methods.weights import budget_of, masks, shares, weights_of
from bar.training import Settings, check_form


class MagnitudePruning(Method):
    """Keep the largest weights of a trained network, when `cut` is called, and keep the others at 0 from then on.

    Parameters
    ----------
    network : nn.Module
        Trained, or to be trained, in place.
    factor : float
        Pruning factor, >= 1: 1 / factor of the weights of all convolutions and linear layers are kept (`weights_of`).
    per_layer : bool
        Whether each layer has a budget of its own, in proportion to its size.

    Attributes
    ----------
    metric : str
        "weights".
    full, limit : int
        How many weights there are, and how many of them are kept, exactly.

    Raises
    ------
    BarError
        If the factor is below 1, or would leave nothing (in a layer).

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> pruner = MagnitudePruning(net, factor=10)
    >>> sum(int(weight.count_nonzero()) for weight in weights_of(pruner.cut()).values()), pruner.limit, pruner.full
    (6, 6, 68)
    """

    name = "mp"
    title = "MP"
    summary = "The largest weights of a trained network are kept, without further training."
    options = (
        Option("per_layer", bool, False, "Whether each layer has a budget of its own, in proportion to its size."),
    )
    metrics = ("weights",)
    starts = ("unpruned",)
    metric = "weights"

    @classmethod
    def prepare(cls, network: nn.Module, task: Task) -> "MagnitudePruning":
        """See `bar.methods.base.Method`."""
        return cls(network, task.factor, task.options["per_layer"])

    @classmethod
    def phases(cls, settings: Settings, factor: float, epochs: tuple[int, int, int]) -> list[tuple[str, int, float]]:
        """None: the cut is all there is."""
        return []

    def __init__(self, network: nn.Module, factor: float, per_layer: bool = False) -> None:
        self.network, self.per_layer = network, per_layer
        sizes = [weight.numel() for weight in weights_of(network).values()]
        self.full, self.limit = sum(sizes), budget_of(sizes, factor)
        if per_layer:
            shares(sizes, self.limit)  # raises now, not after the training
        self._kept: list[Tensor] | None = None

    def end_epoch(self) -> dict:
        """Nothing is decided before the cut; "size" is that of the whole network."""
        return {"size": self.full, "budget": self.limit}

    def watched(self) -> nn.Module:
        """A copy of the network, pruned."""
        other = copy.copy(self)
        other.network = copy.deepcopy(self.network)
        return other.cut()

    def cut(self) -> nn.Module:
        """Set all weights but the largest to 0; the network itself, changed in place. Later calls change nothing."""
        if self._kept is None:
            weights = [weight.detach() for weight in weights_of(self.network).values()]
            self._kept = masks(weights, self.limit, self.per_layer)
        self.end_finetune_step()
        return self.network

    def cut_record(self) -> dict:
        """How many weights are kept ("size"), and how many could be ("budget")."""
        return {"size": sum(int(kept.sum()) for kept in self._kept), "budget": self.limit}

    @torch.no_grad()
    def end_finetune_step(self) -> None:
        """Reset to 0 the pruned weights, which an optimizer's step may have moved."""
        for weight, kept in zip(weights_of(self.network).values(), self._kept, strict=True):
            weight.masked_fill_(~kept, 0.0)

    def state_dict(self) -> dict:
        """Which weights are kept, once that is decided."""
        return {} if self._kept is None else dict(zip(weights_of(self.network), self._kept, strict=True))

    def load_state_dict(self, state: dict) -> None:
        """Restore the `state_dict` of a pruner of the same arguments."""
        weights = weights_of(self.network).items() if state else []
        check_form(state, {name: torch.empty(weight.shape, dtype=torch.bool) for name, weight in weights})
        self._kept = [state[name].to(weight.device).view_as(weight) for name, weight in weights] or None


class FineTunedMagnitude(MagnitudePruning):
    """`MagnitudePruning`, after which the weights that stay are trained for as long as other methods train."""

    name = "mp-ft"
    title = "MP+FT"
    summary = "The largest weights of a trained network are kept, and fine-tuned."

    @classmethod
    def phases(cls, settings: Settings, factor: float, epochs: tuple[int, int, int]) -> list[tuple[str, int, float]]:
        """For as long as the others prune and fine-tune."""
        prune, tune, cool = epochs
        return [("finetune", prune + tune, settings.lr), ("cooldown", cool, settings.cooldown_lr)]
