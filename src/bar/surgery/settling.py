"""Enforce a budget: which gates to shut or reopen so that the size ends just below it."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bar.errors import BarError

if TYPE_CHECKING:
    from bar.surgery.gated import GatedNetwork


def settled(gated: GatedNetwork, budget: float, metric: str, use: float) -> list[Tensor]:
    """Which features are to be alive, in the order of their scores, so that use * B <= size <= B.

    Parameters
    ----------
    gated : GatedNetwork
        Changed by its `floor_`.
    budget, metric, use
        As for `bar.GatedNetwork.settle_`.

    Returns
    -------
    list of bool Tensor of shape (features,)
        For each gate.

    Raises
    ------
    BarError
        If not even one feature per convolution of the spine fits, or the budget or the fraction is none.
    """
    _check(budget, use)
    if gated.smallest(metric) > budget:
        raise BarError(f"the smallest possible {metric} is {gated.smallest(metric):,}, above the budget {budget:,.0f}")
    gated.floor_()
    gates = gated.gates
    if use * budget <= gated.size(metric) <= budget:
        return [gate.alive for gate in gates.values()]
    sizes, flat = [len(gate.score) for gate in gates.values()], gated.score.cpu().clone()
    must = essential(gated, flat)
    if gated.size_of(dict(zip(gates, must.split(sizes), strict=True)), metric) > budget:
        must = essential(gated, _by_place(flat))
    flat[must] = torch.inf
    order = flat.argsort(descending=True, stable=True)
    order = order[flat[order] > -torch.inf]  # what has been cut stays out
    alive = torch.zeros(len(flat), dtype=torch.bool)

    def parts(alive: Tensor) -> dict[str, Tensor]:
        return dict(zip(gates, alive.split(sizes), strict=True))

    def size(alive: Tensor) -> int:
        return gated.size_of(parts(alive), metric)

    def lean(alive: Tensor, index: Tensor) -> Tensor:
        """With one more feature; of those that are alive but not yet live, only the best of each convolution stay."""
        live = gated.network.live(parts(alive))
        idle = alive & ~torch.cat([live[gated.network.convs[name]] for name in gates])
        for part, score in zip(idle.split(sizes), flat.split(sizes), strict=True):
            if part.any():
                part[score.masked_fill(~part, -torch.inf).argmax()] = False
        idle &= ~must
        return (alive & ~idle).index_fill(0, index, True)

    fits, over = int(must.sum()), len(order) + 1  # more features never make it smaller, so bisect
    while over - fits > 1:
        middle = (fits + over) // 2
        alive.zero_()[order[:middle]] = True
        fits, over = (middle, over) if size(alive) <= budget else (fits, middle)
    alive.zero_()[order[:fits]] = True
    for index in torch.cat([order[fits + 1 :], order]):  # twice, since `lean` leaves some out
        if size(alive) >= use * budget:
            break
        wider = alive.index_fill(0, index, True)
        alive = next((one for one in (wider, lean(alive, index)) if size(one) <= budget), alive)
    return list(alive.split(sizes))


def _check(budget: float, use: float) -> None:
    if not (isinstance(budget, numbers.Real) and budget == budget):
        raise BarError(f"the budget must be a number, not {budget!r}")
    if not (isinstance(use, numbers.Real) and 0 <= use <= 1):
        raise BarError(f"the fraction of the budget to use must be a number from 0 to 1, not {use!r}")


def essential(gated: GatedNetwork, score: Tensor) -> Tensor:
    """The features that must be alive, or no signal gets through: the best of each convolution of the spine.

    Where slices leave these out, or products have no channel in common, they are the best features that are needed: one
    after the other is left out, from the worst on, as long as a signal gets through.

    Parameters
    ----------
    gated : GatedNetwork
    score : Tensor of shape (total features,)
        What features are ranked by; minus infinity for what must not be alive.

    Returns
    -------
    bool Tensor of shape (total features,)
    """
    network, sizes = gated.network, [len(gate.score) for gate in gated.gates.values()]
    best, spine = torch.zeros(len(score), dtype=torch.bool), torch.zeros(len(score), dtype=torch.bool)
    for name, part, where, some in zip(
        gated.gates, score.split(sizes), spine.split(sizes), best.split(sizes), strict=True
    ):
        if name in gated.spine:
            where[:] = True
            some[part.argmax()] = True

    def fed(alive: Tensor) -> bool:
        return network.fed(dict(zip(gated.gates, alive.split(sizes), strict=True)))

    if not network.crosses() or fed(best):
        return best
    there = score > -torch.inf
    needed = next((alive for alive in (spine & there, there) if fed(alive)), None)
    if needed is None:  # whatever is alive
        return best
    parts = [score.argsort()]
    while parts:
        part = parts.pop()
        without = needed.index_fill(0, part, False)
        if fed(without):
            needed = without
        elif len(part) > 1:
            parts += [part[len(part) // 2 :], part[: len(part) // 2]]
    return needed


def smallest(gated: GatedNetwork, metric: str) -> int:
    """The size that is left when nothing but `essential` features are alive, the first ones of each convolution."""
    score = _by_place(torch.zeros(sum(len(gate.score) for gate in gated.gates.values())))
    sizes = [len(gate.score) for gate in gated.gates.values()]
    return gated.size_of(dict(zip(gated.gates, essential(gated, score).split(sizes), strict=True)), metric)


def _by_place(score: Tensor) -> Tensor:
    """A score by which the first features are the best; minus infinity stays."""
    return torch.where(score > -torch.inf, -torch.arange(len(score), dtype=score.dtype), score)


def hold(gated: GatedNetwork) -> None:
    """Open the gates of `essential` features, if no signal gets through; in place."""
    if gated.network.reached(gated.live()):
        return
    needed = essential(gated, gated.score.cpu())
    for gate, part in zip(
        gated.gates.values(), needed.split([len(g.score) for g in gated.gates.values()]), strict=True
    ):
        gate.settle_(gate.alive | part.to(gate.alive.device))
