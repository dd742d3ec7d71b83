"""What methods with gates share: the fields of their records, and their state."""

import base64

import numpy as np
import torch
from torch import Tensor

from bar import cost
from bar.errors import BarError
from bar.surgery import GatedNetwork


def sizes(gated: GatedNetwork, metric: str) -> dict[str, int]:
    """``volume`` and ``flops`` of the live features, and ``size``, the one of the metric."""
    return {"volume": gated.size("volume"), "flops": gated.size("flops"), "size": gated.size(metric)}


def record_of_cut(gated: GatedNetwork, limit: float, metric: str, before: int) -> dict:
    """Fields of a cut's record; `before` is the size by the method's own rule. See `bar.methods.budget_aware`."""
    return gated.costs() | {"size": gated.size(metric), "budget": limit, "size_before_settling": before}


def encoded(gated: GatedNetwork) -> dict[str, str]:
    """The state of all gates in a form that fits into a line of a record; see `decoded`."""
    scores = gated.score.detach().float().cpu().clamp(-6e4, 6e4).half().numpy()  # of what was cut it is -inf
    alive = torch.cat([gate.alive for gate in gated.gates.values()]).cpu().numpy()
    parts = {"score": scores.astype("<f2").tobytes(), "alive": np.packbits(alive).tobytes()}
    return {name: base64.b64encode(part).decode() for name, part in parts.items()}


def decoded(held: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """The scores and the state of gates, from what a record holds.

    Parameters
    ----------
    held : dict of str to str
        "score" and "alive" in base64: half-precision numbers, and bits.

    Returns
    -------
    score : ndarray of shape (features,), float16
        What features are ranked by, log alpha for hard concrete gates, in [-60000, 60000].
    alive : ndarray of shape (features,), bool

    Raises
    ------
    BarError
        If it is damaged.

    Examples
    --------
    >>> import bar
    >>> from torch import nn
    >>> gated = bar.gate(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 2)), (1, 6, 6))
    >>> decoded(encoded(gated.keep_({"0": torch.tensor([True, False, False, True])})))
    (array([ 10., -10., -10.,  10.], dtype=float16), array([ True, False, False,  True]))
    """
    try:
        score, bits = (base64.b64decode(held[name], validate=True) for name in ("score", "alive"))
        scores = np.frombuffer(score, "<f2")
        alive = np.unpackbits(np.frombuffer(bits, np.uint8))
        if len(bits) != -(-len(scores) // 8):
            raise ValueError("there are not as many bits as scores")
    except (KeyError, TypeError, ValueError) as error:
        raise BarError(f"the gates of a record cannot be read: {error}") from error
    return scores.astype(np.float16), alive[: len(scores)].astype(bool)


def check_limit(gated: GatedNetwork, limit: float, metric: str) -> None:
    """Refuse a budget that no pruning of this network can meet, and an unknown metric."""
    cost.measure(metric)
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
