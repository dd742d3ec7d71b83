"""The paper's claims in words, from the runs of the first footing (None if nothing is recorded): chapter 7."""

import pandas as pd

from bar import methods, models, paper
from bar.cost import Cost, count
from bar.runs.compare.footings import FACTORS
from bar.runs.compare.rankings import judged
from bar.runs.compare.statistics import half_width, mean_change
from bar.runs.compare.words import short


def uniform_flops(cost: Cost, factor: float, first: float | None = None) -> float:
    """Return the FLOP factor if every width is divided by ``factor``; the first convolution keeps its inputs.

    Parameters
    ----------
    cost : Cost
        Of the unpruned network.
    factor : float
        Above 0.
    first : float, optional
        FLOPs of the first convolution; default: those that are counted.

    Returns
    -------
    float
        FLOPs of the unpruned network over those of the smaller one.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> uniform_flops(SimpleNamespace(flops=100, layers={"conv1": {"flops": 20}}), 2)
    3.3333333333333335
    """
    counted = next(iter(cost.layers.values()))["flops"]
    first, rest = counted if first is None else first, cost.flops - counted
    return (first + rest) / (first / factor + rest / factor**2)


def behind(runs: pd.DataFrame | None, factor: float) -> str:
    """Say whether BAR is the best at a factor.

    Examples
    --------
    >>> behind(None, 2)
    'not recorded'
    """
    verdicts = judged(runs[runs.pruning_factor == factor]) if runs is not None else {}
    if "bar" not in verdicts:
        return "not recorded"
    verdict, differences = verdicts["bar"]
    if verdict == "best":
        close = [short(m) for m, (tie, _) in verdicts.items() if tie == "within the noise"]
        return "BAR is the best" + (f"; within the noise of it: {', '.join(close)}" if close else "; no other is close")
    worse = {"within the noise": "within the noise of the best", "worse": "worse than the best"}.get(verdict, verdict)
    return f"BAR is {worse}, {short(next(iter(verdicts)))}: {mean_change(differences)} points, seed by seed"


def changes_of(runs: pd.DataFrame | None, method: str, factor: float) -> pd.Series:
    """Return the changes of a method at a factor, by seed; empty if nothing is recorded."""
    if runs is None:
        return pd.Series(dtype=float)
    return runs[(runs.variant == method) & (runs.pruning_factor == factor)].set_index("seed").change


def above_unpruned(runs: pd.DataFrame | None) -> str:
    """Say whether BAR's pruned networks are better than the unpruned ones, factor by factor."""
    cells = []
    for factor in FACTORS:
        change = changes_of(runs, "bar", factor)
        if len(change):
            told = abs(change.mean()) > half_width(change)
            sure = "cannot be told" if not told else "yes" if change.mean() > 0 else "no"
            cells.append(f"{factor}x {sure} ({mean_change(change)})")
    return "; ".join(cells) or "not recorded"


def falls_here(runs: pd.DataFrame | None) -> str:
    """Say which method loses most points from factor 8 to 16: means over the seeds that have both."""
    lost = {m: (changes_of(runs, m, 8) - changes_of(runs, m, 16)).dropna() for m in methods.STRUCTURED}
    falls = {method: values.mean() for method, values in lost.items() if len(values)}
    if "morphnet" not in falls or len(falls) < 2:
        return "not recorded"
    order = sorted(falls, key=falls.get, reverse=True)
    answer = "MorphNet falls furthest" if order[0] == "morphnet" else f"no: {short(order[0])} falls furthest"
    return f"{answer}. Points lost from 8x to 16x: {', '.join(f'{short(m)} {falls[m]:.2f}' for m in order)}"


def better_in_the_paper(number: int) -> str:
    """Say which methods are above BAR at the paper's factor of that number (from 0), on each data set."""
    cells, results = [], paper.table("pruning_results")
    for name, part in results[results.method.isin(methods.STRUCTURED)].groupby("dataset", sort=False):
        there = part.groupby("method").accuracy.nth(number).groupby(part.method).first().drop(list(methods.SEARCHED))
        above = [short(method) for method in there.index[there > there["bar"]]]
        cells.append(f"{name}: " + (f"{', '.join(above)} above BAR" if above else "BAR is the best"))
    return "; ".join(cells)


def falls_in_the_paper() -> str:
    """Say how many points MorphNet loses from factor 8 to 16 in the paper, and its rank among the methods."""
    cells, results = [], paper.table("pruning_results")
    for name, part in results[results.method.isin(methods.STRUCTURED)].groupby("dataset", sort=False):
        ends = part.groupby("method").accuracy.apply(lambda a: 100 * (a.iloc[-2] - a.iloc[-1]))
        ends = ends.drop(list(methods.SEARCHED))  # their points have no fixed factors
        place = int((ends > ends["morphnet"]).sum()) + 1
        cells.append(f"{name}: {ends['morphnet']:.2f} points lost from 8x to 16x, number {place} of {len(ends)}")
    return "MorphNet drops severely at 16x. " + "; ".join(cells)


def flop_factors(runs: pd.DataFrame | None) -> str:
    """Report the FLOP factors of the methods with equal widths, beside the arithmetic of `uniform_flops`."""
    cells = []
    for factor in FACTORS if runs is not None else ():
        some = runs[runs.variant.isin(methods.ITERATIVE) & (runs.pruning_factor == factor)]
        if len(some):
            first = some.iloc[0]
            full = count(models.build(first.model, 10, first.input_size), first.input_size)
            low, high = (f"{value:.1f}" for value in (some.flops_factor.min(), some.flops_factor.max()))
            measured = low if low == high else f"{low} to {high}"
            cells.append(f"{factor}x: {measured} (arithmetic: {uniform_flops(full, factor):.1f})")
    return "; ".join(cells) or "not recorded"


def search_cost(runs: pd.DataFrame | None, method: str) -> str:
    """Report the cost of a search in trainings of the same method: by seed, for all budgets together."""
    some = runs[runs.variant == method] if runs is not None else pd.DataFrame()
    if some.empty:
        return f"{short(method)}: not recorded"
    costs, trials = [], []
    for _, group in some.groupby("seed"):
        tried = {trial["lambda"]: trial["seconds"] for search in group.search for trial in search["trials"]}
        trials.append(len(tried))
        costs.append(sum(tried.values()) / group.seconds.mean())
    budgets = some.groupby("seed").size().mean()
    forced = sum(search["how"] != "fits" for search in some.search)
    return (
        f"{short(method)}: {sum(trials) / len(trials):.1f} trials a seed for {budgets:.1f} budgets, as long as "
        f"{sum(costs) / len(costs):.1f} whole runs; none fitted in {forced} of {len(some)} searches"
    )
