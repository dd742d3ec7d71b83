"""How the budget moves from the full network's volume to the one asked for (section 3.4, fig. 2, supp. 1)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bar.errors import BarError, nearest


def transition(t: Tensor | float, hardness: float = 10.0) -> Tensor | float:
    """The sigmoidal transition T(t, d) of supp. eq. 1: slow at both ends, fast in the middle.

    Parameters
    ----------
    t : Tensor or float
        The fraction of training that is done, in [0, 1].
    hardness : float
        d >= 0. At 0 the transition is linear, for a large d a step at t = 1/2. The paper uses 10.

    Returns
    -------
    Tensor or float
        T in [0, 1], rising from exactly 0 at t = 0 to exactly 1 at t = 1; a tensor if t is one.

    Raises
    ------
    BarError
        If t leaves [0, 1], or the hardness is negative or not finite.

    Examples
    --------
    >>> transition(0.0), transition(0.5), transition(1.0)
    (0.0, 0.5, 1.0)
    >>> round(transition(0.25), 4)
    0.0701
    """
    _check_time(t)
    if not (math.isfinite(hardness) and hardness >= 0):
        raise BarError(f"the hardness must be a number >= 0, got {hardness}")
    if hardness < 1e-8:  # within 1e-16 of the limit, whose formula would be 0/0
        return t
    tanh = torch.tanh if isinstance(t, Tensor) else math.tanh
    # With Sigmoid(x) = (1 + tanh(x/2)) / 2 the delta of supp. eq. 1 drops out, and nothing cancels for a small d.
    return _exact_ends(t, 0.5 + 0.5 * (tanh(hardness / 2 * (t - 0.5)) / math.tanh(hardness / 4)))


def linear(t: Tensor | float) -> Tensor | float:
    """The linear transition, T(t) = t.

    Parameters
    ----------
    t : Tensor or float
        The fraction of training that is done, in [0, 1].

    Returns
    -------
    Tensor or float
        t itself.

    Raises
    ------
    BarError
        If t leaves [0, 1].

    Examples
    --------
    >>> linear(0.25)
    0.25
    """
    _check_time(t)
    return t


def exponential(t: Tensor | float, rate: float = 5.0) -> Tensor | float:
    """An exponential transition: fast at first, slow towards the end.

    The paper names such a transition (section 3.4) but gives no formula for it. This one is
    T(t) = (1 - exp(-rate t)) / (1 - exp(-rate)): the distance from b to the budget decays exponentially.

    Parameters
    ----------
    t : Tensor or float
        The fraction of training that is done, in [0, 1].
    rate : float
        >= 0; at 0 the transition is linear. At the default of 5, b ends about as gently as with the paper's sigmoid (a
        slope of 0.03 against 0.07) and starts at twice the sigmoid's steepest slope. With rate = log(V_F / B), b falls
        by the same ratio at every step.

    Returns
    -------
    Tensor or float
        T in [0, 1], rising from exactly 0 at t = 0 to exactly 1 at t = 1; a tensor if t is one.

    Raises
    ------
    BarError
        If t leaves [0, 1], or the rate is negative or not finite.

    Examples
    --------
    >>> exponential(0.0), round(exponential(0.5), 4), exponential(1.0)
    (0.0, 0.9241, 1.0)
    """
    _check_time(t)
    if not (math.isfinite(rate) and rate >= 0):
        raise BarError(f"the rate must be a number >= 0, got {rate}")
    if rate < 1e-17:
        return t
    expm1 = torch.expm1 if isinstance(t, Tensor) else math.expm1
    return _exact_ends(t, expm1(-rate * t) / math.expm1(-rate))


SCHEDULES: dict[str, Callable[[Tensor | float], Tensor | float]] = {
    "sigmoid": transition,  # what the paper proposes
    "linear": linear,  # its ablation: Table 1, "w/o Sigmoid pruning schedule"
    "exponential": exponential,  # what it tried before
}


def margins(
    t: Tensor | float,
    full: float,
    budget: float,
    schedule: str | Callable[[Tensor | float], Tensor | float] = "sigmoid",
    follow: float = 0.0,
) -> tuple[Tensor | float, Tensor | float]:
    """The margins (a, b) of the barrier at a moment of training (section 3.4, eq. 7).

    b = (1 - T(t)) V_F + T(t) B moves from the full volume to the budget. In the paper a = B - 1e-4 V_F stays, so that
    the barrier presses until V is near the budget, however far above it b still is. With `follow`, a is never below
    that fraction of b: the barrier is 0 as soon as V is a little smaller than b, and V stays close to it.

    Parameters
    ----------
    t : Tensor or float
        The fraction of training that is done, in [0, 1].
    full : float
        V_F, the volume of the unpruned network, in features x area.
    budget : float
        B, the volume allowed in the end, 0 < B <= V_F.
    schedule : str or callable
        A name in `SCHEDULES`, or any T(t).
    follow : float
        The least a / b, in [0, 1); 0 in the paper.

    Returns
    -------
    a : Tensor or float
        Below it the barrier is 0. Negative for a budget under 1e-4 V_F, if it does not follow b.
    b : Tensor or float
        From it on the barrier is infinite; exactly V_F at t = 0 and B at t = 1.

    Raises
    ------
    BarError
        If t leaves [0, 1], the budget is not within (0, V_F], there is no such schedule, or `follow` is out of range.

    Examples
    --------
    >>> margins(0.5, full=1000, budget=250, schedule="linear")
    (249.9, 625.0)
    >>> margins(0.5, full=1000, budget=250, schedule="linear", follow=0.9)
    (562.5, 625.0)
    """
    if not 0 <= follow < 1:
        raise BarError(f"the lower margin follows b at a fraction in [0, 1) of it, not {follow}")
    if not (math.isfinite(full) and 0 < budget <= full):
        raise BarError(f"the budget must be positive and at most the full volume {full}, got {budget}")
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise BarError(f"no schedule {schedule!r}: {nearest(schedule, SCHEDULES)}")
        schedule = SCHEDULES[schedule]
    _check_time(t)
    T = schedule(t)
    a, b = budget - 1e-4 * full, (1 - T) * full + T * budget
    if follow:
        a = (follow * b).clamp(min=a) if isinstance(b, Tensor) else max(a, follow * b)
    return a, b


def _exact_ends(t: Tensor | float, T: Tensor | float) -> Tensor | float:
    """T, exact at both ends, where torch's functions are rounded in the last place, unlike those of `math`."""
    return torch.where((t == 0) | (t == 1), t, T.clamp(0, 1)) if isinstance(t, Tensor) else T


def _check_time(t: Tensor | float) -> None:
    inside = ((t >= 0) & (t <= 1)).all() if isinstance(t, Tensor) else 0 <= t <= 1
    if not inside:
        raise BarError(f"t is the fraction of training that is done, between 0 and 1, got {t}")
