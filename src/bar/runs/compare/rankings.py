"""Rankings of methods that are compared on one footing: chapter 7."""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from bar import methods, models, network
from bar.network import blocks
from bar.runs.compare.statistics import half_width, mean_change
from bar.runs.compare.words import short
from bar.training import PRESETS


def epochs_by_method(factors: Sequence[float] = (2, 16)) -> pd.DataFrame:
    """Return a table of the epochs of every structured method in both presets: all (before the last cut + after it)."""
    rows = []
    for method in methods.STRUCTURED:
        row = {"method": short(method), "starts from": "trained" if method in methods.FROM_TRAINED else "scratch"}
        for preset, settings in PRESETS.items():
            for factor in factors:
                parts = {"before": 0, "after": 0}
                for phase, length, _ in methods.phases(method, settings, factor, preset):
                    parts["before" if phase == "prune" else "after"] += length
                more = f", and {parts['before']} for each trial" if method in methods.SEARCHED else ""
                row[f"{preset}, {factor}x"] = f"{sum(parts.values())} ({parts['before']} + {parts['after']}){more}"
        rows.append(row)
    return pd.DataFrame(rows).set_index("method")


def points(runs: pd.DataFrame, variants: Iterable[str]) -> pd.DataFrame:
    """Return a row for each variant and factor: means over the seeds, and the standard deviation of the accuracy.

    Examples
    --------
    >>> columns = ["variant", "pruning_factor", "volume_factor", "flops_factor", "accuracy"]
    >>> runs = pd.DataFrame([["bar", 2, 2.0, 3.0, 0.5], ["bar", 2, 4.0, 5.0, 0.7]], columns=columns)
    >>> points(runs, ["bar"])[["method", "v_factor", "f_factor", "accuracy"]].values.tolist()
    [['bar', 3.0, 4.0, 0.6]]
    """
    grouped = runs[runs.variant.isin(list(variants))].groupby(["variant", "pruning_factor"])
    columns = {"v_factor": "volume_factor", "f_factor": "flops_factor", "accuracy": "accuracy"}
    means = grouped[list(columns.values())].mean().set_axis(list(columns), axis=1)
    return means.assign(spread=grouped.accuracy.std()).reset_index().rename(columns={"variant": "method"})


def paired(runs: pd.DataFrame, one: str, other: str, column: str = "change") -> pd.Series:
    """Return the differences of two variants at one factor by seed; seeds that only one of them has are left out.

    Examples
    --------
    >>> runs = pd.DataFrame({"seed": [0, 0, 1], "variant": ["a", "b", "a"], "change": [1.0, 3.0, 5.0]})
    >>> paired(runs, "b", "a").to_dict()
    {0: 2.0}
    """
    table = runs.pivot(index="seed", columns="variant", values=column)
    return (table[one] - table[other]).dropna()


def judged(runs: pd.DataFrame) -> dict[str, tuple[str, pd.Series]]:
    """Rank the structured methods of one footing at one factor, and compare each with the best.

    Parameters
    ----------
    runs : pandas.DataFrame
        With ``variant``, ``seed`` and ``change``.

    Returns
    -------
    dict
        Method -> verdict ("best", "worse", "within the noise", "cannot be told"), differences to the best by seed; the
        best first. Within the noise means that Student's 95 % interval of the paired differences contains 0.

    Examples
    --------
    >>> runs = pd.DataFrame({"seed": [0, 0], "variant": ["bar", "l0"], "change": [1.0, 3.0]})
    >>> {method: verdict for method, (verdict, _) in judged(runs).items()}
    {'l0': 'best', 'bar': 'cannot be told'}
    """
    some = runs[runs.variant.isin(methods.STRUCTURED)]
    order = some.groupby("variant").change.mean().sort_values(ascending=False, kind="stable")
    verdicts = {}
    for method in order.index:
        differences = paired(some, method, order.index[0]) if verdicts else pd.Series(dtype=float)
        if not verdicts:
            verdict = "best"
        elif len(differences) < 2:
            verdict = "cannot be told"
        else:
            verdict = "within the noise" if abs(differences.mean()) <= half_width(differences) else "worse"
        verdicts[method] = (verdict, differences)
    return verdicts


def searched(group: pd.DataFrame) -> str:
    """Describe the searches for the sparsity weight: mean trials and seconds, and how often no trial fitted.

    Examples
    --------
    >>> searched(pd.DataFrame({"search": [{"trials_made": 3, "seconds": 8.0, "how": "fits"}]}))
    '3.0 trials; 8 s'
    """
    searches = [search for search in group.search if isinstance(search, dict)]
    if not searches:
        return ""
    made = sum(search["trials_made"] for search in searches) / len(searches)
    seconds = sum(search["seconds"] for search in searches) / len(searches)
    forced = sum(search["how"] != "fits" for search in searches)
    return f"{made:.1f} trials; {seconds:.0f} s" + (f"; {forced} of {len(searches)} did not fit" if forced else "")


def ranking(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a table of the structured methods of one footing at one factor, the best first, numbers as text."""
    rows = []
    for method, (verdict, differences) in judged(runs).items():
        group = runs[runs.variant == method]
        rows.append(
            {
                "method": short(method),
                "seeds": len(group),
                "V factor": f"{group.volume_factor.mean():.2f}",
                "F factor": f"{group.flops_factor.mean():.1f}",
                "change (points)": mean_change(group.change),
                "behind the best": mean_change(differences) if len(differences) else "",
                "verdict": verdict,
                "used (%)": f"{100 * group.used.mean():.1f}",
                "seconds": f"{group.seconds.mean():.0f}",
                "search": searched(group),
            }
        )
    return pd.DataFrame(rows).set_index("method") if rows else pd.DataFrame()


def trials_table(trials: Iterable[Mapping]) -> pd.DataFrame:
    """Return what each method with a weight of its own was tried with, and which trial kept most, numbers as text.

    Parameters
    ----------
    trials : iterable of mapping
        Records of ``bench/ablation.py --trials``.

    Returns
    -------
    DataFrame
        A row a trial. "V/B before the cut": far above 1 the weight presses too little, and far below too much, so that
        not the method, but the order of its gates decides what fills the budget. A star marks what kept most on the
        validation images, of several.
    """
    rows = []
    order = sorted(trials, key=lambda one: (one["method"], one["pruning_factor"], *one["options"].values()))
    for (method, factor), group in itertools.groupby(order, lambda one: (one["method"], one["pruning_factor"])):
        group = list(group)
        most = max(one["epochs"][-1]["accuracy"] for one in group)
        for one in group:
            cut = next(epoch for epoch in one["epochs"] if epoch["phase"] == "cut")
            last = [epoch for epoch in one["epochs"] if epoch["phase"] == "prune"][-1]
            kept = one["epochs"][-1]["accuracy"]
            rows.append(
                {
                    "method": short(method), "factor": f"{factor:g}",
                    "tried": ", ".join(f"{name} {value:g}" for name, value in one["options"].items()),
                    "V/B before the cut": f"{last['size'] / cut['budget']:.2f}",
                    "accuracy (%)": f"{100 * kept:.1f}" + " *" * (kept == most and len(group) > 1),
                }
            )  # fmt: skip
    columns = ["method", "factor", "tried", "V/B before the cut", "accuracy (%)"]
    return pd.DataFrame(rows, columns=columns).set_index(["method", "factor"])


def budgets_used(runs: pd.DataFrame) -> list[str]:
    """Report how many runs use 95 to 100 % of their budget, how many use more, and each run outside that range.

    Examples
    --------
    >>> columns = ["variant", "pruning_factor", "seed", "used"]
    >>> budgets_used(pd.DataFrame([["bar", 2, 0, 0.9]], columns=columns))[1]
    '  bar, factor 2, seed 0: 90.0%'
    """
    plain = runs[runs.variant.isin(methods.STRUCTURED)]
    exact = plain.used.between(0.95, 1)
    more = (plain.used > 1).sum()
    lines = [f"{exact.sum()} of {len(plain)} runs use 95 to 100 % of their budget, {more} use more."]
    others = plain[~exact].itertuples()
    return lines + [
        f"  {run.variant}, factor {run.pruning_factor:g}, seed {run.seed}: {run.used:.1%}" for run in others
    ]


def left_in_blocks(runs: pd.DataFrame | None, factor: float) -> pd.DataFrame:
    """Count the neurons of each block, in the unpruned network and in the pruned ones: means over the seeds.

    Parameters
    ----------
    runs : pandas.DataFrame, optional
        One footing of `by_footing`.
    factor : float
        Which of its runs.

    Returns
    -------
    pandas.DataFrame
        ``method``, ``block``, ``full``, ``left``; empty if there are no such runs.
    """
    if runs is None:
        return pd.DataFrame()
    some = runs[runs.variant.isin(methods.STRUCTURED) & (runs.pruning_factor == factor)]
    if some.empty or models.is_own(some.iloc[0].model):  # no code is run to read a record
        return pd.DataFrame()
    first = some.iloc[0]
    block_of = _block_of_convolutions(first.model, tuple(first.input_size))
    rows = [
        {"method": run.variant, "seed": run.seed, "block": block}
        | {"full": run.features_full[conv] * run.areas[conv], "left": run.features[conv] * run.areas[conv]}
        for run in some.itertuples()
        for conv, block in block_of.items()
    ]
    sums = pd.DataFrame(rows).groupby(["method", "seed", "block"], sort=False)[["full", "left"]].sum()
    return sums.groupby(["method", "block"], sort=False).mean().reset_index()


@functools.cache
def _block_of_convolutions(model: str, input_size: tuple[int, ...]) -> dict[str, str]:
    return blocks.block_of_convolutions(network.trace(models.build(model, 10, input_size), input_size))


def both_budgets(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a table of BAR with a budget of volume and with one of FLOPs, factor by factor, numbers as text."""
    rows = []
    both = runs[runs.variant.isin(["bar", "bar-flops"])]
    for (factor, what), group in both.groupby(["pruning_factor", "variant"]):
        row = {"factor": f"{factor:g}", "budget of": "FLOPs" if what == "bar-flops" else "volume", "seeds": len(group)}
        row |= {"V factor": f"{group.volume_factor.mean():.2f}", "F factor": f"{group.flops_factor.mean():.1f}"}
        rows.append(row | {"change (points)": mean_change(group.change), "used (%)": f"{100 * group.used.mean():.1f}"})
    return pd.DataFrame(rows).set_index(["factor", "budget of"])


def without(runs: pd.DataFrame, what: str, factor: float) -> pd.Series:
    """Return the differences of a variant to BAR at a factor, by seed; empty if either is not recorded."""
    some = runs[runs.variant.isin(["bar", what]) & (runs.pruning_factor == factor)]
    return paired(some, what, "bar") if some.variant.nunique() == 2 else pd.Series(dtype=float)
