"""What methods with gates share: the fields of their records, and their state."""

from torch import Tensor

from bar import cost
from bar.errors import BarError, nearest
from bar.surgery import GatedNetwork


def sizes(gated: GatedNetwork, metric: str) -> dict[str, int]:
    """``volume`` and ``flops`` of the live features, and ``size``, the one of the metric."""
    return {"volume": gated.size("volume"), "flops": gated.size("flops"), "size": gated.size(metric)}


def record_of_cut(gated: GatedNetwork, limit: float, metric: str, before: int) -> dict:
    """Fields of a cut's record; `before` is the size by the method's own rule. See `bar.methods.budget_aware`."""
    return gated.costs() | {"size": gated.size(metric), "budget": limit, "size_before_settling": before}


def check_limit(gated: GatedNetwork, limit: float, metric: str) -> None:
    """Refuse a budget that no pruning of this network can meet, and an unknown metric."""
    if metric not in cost.METRICS:
        raise BarError(f"unknown metric {metric!r}: {nearest(str(metric), cost.METRICS)}")
    smallest = gated.smallest(metric)
    if not smallest <= limit:  # also refuses NaN
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
