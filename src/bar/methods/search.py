"""The search for the sparsity weight (section 5: "we went through trial-and-error").

L0 and the information bottleneck have no budget. What they have is lambda: the larger, the smaller the network, though
training is noisy and the size may jump. So one trains with a lambda, looks at the size that hard pruning leaves, and
tries the next lambda. This file decides which, from the trials alone; it trains nothing.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from bar.errors import BarError

STEP = 4.0  # beyond all trials, lambda is multiplied or divided by this factor
MIDDLE = 0.7  # a gap is divided within this middle fraction of it
CLOSEST = 1.005  # two lambdas nearer than this factor, with sizes on both sides of the budget: the size jumps there


class Trial(NamedTuple):
    """One training: its lambda, and the size that hard pruning left."""

    lam: float
    size: float


class Choice(NamedTuple):
    """The result of a search.

    Attributes
    ----------
    lam : float
        The lambda of the network to keep.
    how : str
        "fits": its size is in [use * B, B]. Otherwise gates have to be shut or reopened by their scores
        (`bar.GatedNetwork.settle_`): "shut", its size is above B; "reopened", it is below use * B.
    """

    lam: float
    how: str


def next_weight(
    trials: Sequence[tuple[float, float]],
    limit: float,
    first: float,
    *,
    made: int = 0,
    use: float = 0.95,
    most: int = 8,
) -> float | None:
    """The lambda to try next, or None if the search is over.

    As long as all sizes lie on one side of the budget, lambda is multiplied or divided by 4. Then the gap between two
    neighbours, the smaller lambda with too large a size and the larger one with too small a size, is divided. This is
    bisection in log lambda, except for the point of division: where a straight line through both, in logarithms, meets
    the middle of the sizes that fit, yet not close to either end. Sizes that are not monotone may leave several such
    gaps: the one whose sizes are closest to the budget is taken.

    Parameters
    ----------
    trials : sequence of (lambda, size)
        All that are known, in any order: of the same network, data, settings and seed. Those that were made for other
        budgets count as well.
    limit : float
        B, in the unit of the sizes.
    first : float
        The lambda to begin with, if there are no trials.
    made : int
        How many of the trials this search has made.
    use : float
        The fraction of the budget to use at least, in (0, 1].
    most : int
        How many trials this search may make.

    Returns
    -------
    float or None
        None if a size fits, if `most` trials have been made, or if the size jumps over the budget between lambdas that
        differ by at most half a percent.

    Raises
    ------
    BarError
        If a lambda is not above 0, or a size is not a number.

    Examples
    --------
    >>> next_weight([], limit=100, first=0.01)
    0.01
    >>> next_weight([(0.01, 300)], limit=100, first=0.01)
    0.04
    >>> round(next_weight([(0.01, 300), (0.04, 40)], limit=100, first=0.01), 4)
    0.0217
    >>> next_weight([(0.01, 300), (0.04, 40), (0.0217, 97)], limit=100, first=0.01) is None
    True
    """
    known = _checked(trials, limit, first, use)
    if made >= most or any(use * limit <= size <= limit for _, size in known):
        return None
    if not known:
        return first
    if known[-1].size > limit:
        beyond = known[-1].lam * STEP
    elif known[0].size < use * limit:
        beyond = known[0].lam / STEP
    else:
        beyond = None
    gaps = [
        (low, high) for low, high in itertools.pairwise(known)
        if low.size > limit > high.size and high.lam > CLOSEST * low.lam
    ]  # fmt: skip
    if not gaps:
        return beyond
    low, high = min(gaps, key=lambda gap: sum(abs(math.log(max(trial.size, 1) / limit)) for trial in gap))
    aim = (1 + use) / 2 * limit
    part = math.log(low.size / aim) / math.log(low.size / max(high.size, limit / 100))
    part = min(max(part, (1 - MIDDLE) / 2), (1 + MIDDLE) / 2)
    return low.lam ** (1 - part) * high.lam**part


def chosen(trials: Sequence[tuple[float, float]], limit: float, *, use: float = 0.95) -> Choice:
    """What to keep of the trials, when the search is over.

    Parameters
    ----------
    trials : sequence of (lambda, size)
        As for `next_weight`; at least one.
    limit, use : float
        As for `next_weight`.

    Returns
    -------
    Choice
        The lambda whose size is the largest that fits. If none does, the one of the smallest size above B, to be shut
        down to it; if all are below, the largest of those, to be reopened. Of several that are
        equally good, the smallest lambda.

    Raises
    ------
    BarError
        If there are no trials, a lambda is not above 0, or a size is not a number.

    Examples
    --------
    >>> chosen([(0.01, 300), (0.04, 80), (0.02, 97)], limit=100)
    Choice(lam=0.02, how='fits')
    >>> chosen([(0.01, 300), (0.04, 80)], limit=100)
    Choice(lam=0.01, how='shut')
    """
    known = _checked(trials, limit, 1.0, use)
    if not known:
        raise BarError("no sparsity weight has been tried yet: there is nothing to choose from")
    below = [trial for trial in known if trial.size <= limit]
    above = [trial for trial in known if trial.size > limit]
    best = max(below, key=lambda trial: trial.size, default=None)
    if best and best.size >= use * limit:
        return Choice(best.lam, "fits")
    if above:
        return Choice(min(above, key=lambda trial: trial.size).lam, "shut")
    return Choice(best.lam, "reopened")


def _checked(trials: Sequence[tuple[float, float]], limit: float, first: float, use: float) -> list[Trial]:
    """The trials in the order of lambda."""
    if not (0 < limit < math.inf and 0 < first < math.inf and 0 < use <= 1):
        raise BarError(
            f"a search needs a budget and a first lambda above 0 and a part to use in (0, 1], not {limit}, {first} "
            f"and {use}"
        )
    for lam, size in trials:
        if not (0 < lam < math.inf and 0 <= size < math.inf):
            raise BarError(f"a trial needs lambda > 0 and a size >= 0, not {lam} and {size}")
    return sorted(Trial(*trial) for trial in trials)
