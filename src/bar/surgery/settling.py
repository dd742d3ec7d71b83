"""Enforce a budget: which gates to shut or reopen so that the size ends just below it."""

from __future__ import annotations

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
        If not even one feature per convolution of the spine fits.
    """
    if gated.smallest(metric) > budget:
        raise BarError(f"the smallest possible {metric} is {gated.smallest(metric):,}, above the budget {budget:,.0f}")
    gated.floor_()
    gates = gated.gates
    if use * budget <= gated.size(metric) <= budget:
        return [gate.alive for gate in gates.values()]
    spine, sizes = set(gated.network.spine()) & gates.keys(), [len(gate.score) for gate in gates.values()]
    flat = gated.score.cpu().clone()
    for part, name in zip(flat.split(sizes), gates, strict=True):
        if name in spine:
            part[part.argmax()] = torch.inf
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
        return (alive & ~idle).index_fill(0, index, True)

    fits, over = len(spine), len(order) + 1  # more features never make it smaller, so bisect
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


def widen(gated: GatedNetwork) -> None:
    """Open the best gates of all convolutions until a signal gets through: a slice may leave out those that are kept.

    Parameters
    ----------
    gated : GatedNetwork
        Changed in place, only if no signal gets through.
    """
    count, most = 1, max(len(gate.score) for gate in gated.gates.values())
    while count < 2 * most and not gated.network.reached(gated.live()):
        for gate in gated.gates.values():
            best = torch.zeros_like(gate.alive)
            best[gate.score.topk(min(count, len(best))).indices] = True
            gate.settle_(gate.alive | (best & ~gate.cut))
        count *= 2
