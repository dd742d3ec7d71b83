"""The paper's claims one by one, in its words' sense and in numbers, and what recorded runs say of each: chapter 13."""

from collections.abc import Iterable, Mapping

import pandas as pd

from bar import methods, models, paper
from bar.cost import Cost, count
from bar.runs.compare.footings import FACTORS
from bar.runs.compare.leads import ahead, always_ahead, by_factor, verdict
from bar.runs.compare.rankings import judged, left_in_blocks
from bar.runs.compare.statistics import half_width, mean_change, plus_minus
from bar.runs.compare.words import short

_SAME_FLOPS = 1.2  # about the same: up to a fifth more or less


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
        words = {"within the noise": "within the noise of it", "cannot be told": "too few seeds to tell it from"}
        close = {text: [short(m) for m, (tie, _) in verdicts.items() if tie == what] for what, text in words.items()}
        told = [f"{text}: {', '.join(names)}" for text, names in close.items() if names]
        return "; ".join(["BAR is the best", *(told or ["no other is close"])])
    worse = {"within the noise": "within the noise of the best", "worse": "worse than the best"}.get(verdict, verdict)
    return f"BAR is {worse}, {short(next(iter(verdicts)))}: {mean_change(differences)} points, seed by seed"


def changes_of(runs: pd.DataFrame | None, method: str, factor: float) -> pd.Series:
    """Return the changes of a method at a factor, by seed; empty if nothing is recorded."""
    if runs is None:
        return pd.Series(dtype=float)
    return runs[(runs.variant == method) & (runs.pruning_factor == factor)].set_index("seed").change


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
        among = "the most" if place == 1 else f"number {place}"
        cells.append(f"{name}: {ends['morphnet']:.2f} points lost from 8x to 16x, {among} of {len(ends)} methods")
    return "MorphNet drops severely at 16x. " + "; ".join(cells)


def flop_factors(runs: pd.DataFrame | None) -> str:
    """Report the FLOP factors of the methods with equal widths, beside the arithmetic of `uniform_flops`."""
    cells = []
    for factor in FACTORS if runs is not None else ():
        some = runs[runs.variant.isin(methods.ITERATIVE) & (runs.pruning_factor == factor)]
        if len(some) and not models.is_own(some.iloc[0].model):  # no code is run to read a record
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
    some = some[[isinstance(search, dict) for search in some.search]]
    if some.empty:
        return f"{short(method)}: its weight was given, no search is recorded"
    for _, group in some.groupby("seed"):
        tried = {trial["lambda"]: trial["seconds"] for search in group.search for trial in search["trials"]}
        trials.append(len(tried))
        costs.append(sum(tried.values()) / group.seconds.mean())
    budgets = some.groupby("seed").size().mean()
    forced = sum(search["how"] != "fits" for search in some.search)
    return (
        f"{short(method)}: {sum(trials) / len(trials):.1f} trials a seed for {budgets:.3g} budgets, as long as "
        f"{sum(costs) / len(costs):.1f} whole runs; none fitted in {forced} of {len(some)} searches"
    )


def best_at(runs: pd.DataFrame, factors: Iterable[float], tie: str) -> tuple[str, str]:
    """Report whether BAR is the best at each factor, and which of the factors and of the methods are not recorded.

    ``tie`` is the verdict within the noise of the best.
    """
    cells, said, absent, factors = [], {}, [], list(factors)
    for factor in factors:
        cells.append(f"{factor:g}x: {behind(runs, factor)}")
        verdicts = judged(runs[runs.pruning_factor == factor])
        if "bar" in verdicts and len(verdicts) > 1:
            said.setdefault(_place_of_bar(verdicts, tie), []).append(f"{factor:g}x")
        else:
            absent.append(f"{factor:g}x")
    there = set(runs[runs.pruning_factor.isin(factors)].variant)
    lacking = [short(method) for method in methods.STRUCTURED if method not in (*there, "uniform")]
    texts = [f"{what} at {', '.join(at)}" for what, at in said.items()]
    if texts and absent:
        texts.append(f"not recorded at {', '.join(absent)}")
    if texts and lacking:
        texts.append(f"not recorded: {', '.join(lacking)}")
    return "; ".join(cells), "; ".join(texts) or "not recorded"


def _place_of_bar(verdicts: Mapping[str, tuple[str, pd.Series]], tie: str) -> str:
    """The verdict on the claim that BAR is the best, from those of `judged`."""
    others = {verdict for method, (verdict, _) in verdicts.items() if method != "bar"}
    mine = verdicts["bar"][0]
    if mine == "best" and others != {"worse"}:  # not told from all others
        mine = "cannot be told" if "cannot be told" in others else "within the noise"
    return {"best": "holds", "within the noise": tie, "worse": "does not hold"}.get(mine, "cannot be told")


def within_budgets(runs: pd.DataFrame) -> tuple[str, str]:
    """Report the largest part of its budget that BAR has used, and whether it has ever exceeded it."""
    bars = runs[runs.method == "bar"]
    if bars.empty:
        return "", "not recorded"
    most, before = bars.used.max(), bars.size_before_settling / bars.budget
    text = f"largest part of a budget in {len(bars)} runs: {most:.4f}"
    text += f"; before our last step, {before.min():.2f} to {before.max():.2f}"
    return text, "by construction" if most <= 1 else "does not hold"


def blocks_gone(runs: pd.DataFrame) -> tuple[str, str]:
    """Report how often BAR has eliminated residual blocks as a whole."""
    bars, counts = runs[runs.variant == "bar"], {}
    for (factor, _), part in bars.groupby(["pruning_factor", "seed"]):
        left = left_in_blocks(part, factor)
        counts.setdefault(f"{factor:g}x", []).append(int((left.left == 0).sum()) if len(left) else 0)
    text = "; ".join(f"{x}: in {sum(n > 0 for n in some)} of {len(some)} runs" for x, some in counts.items())
    gone = any(n for some in counts.values() for n in some)
    return text, "not recorded" if not counts else "holds" if gone else "not seen"


def mixed_saves(runs: pd.DataFrame) -> tuple[str, str]:
    """Report the volume that BAR's networks have with mixed blocks, in parts of that with regular ones."""
    bars, cells = runs[runs.variant == "bar"], {}
    for factor, part in bars.groupby("pruning_factor"):
        cells[f"{factor:g}x"] = 100 * (1 - part.volume / part.volume_regular)
    text = "; ".join(f"{x}: {mean_change(values, 1)} %" for x, values in cells.items())
    return text, "measured" if cells else "not recorded"


def mixed_multiplies(runs: pd.DataFrame) -> str:
    """Report by what mixed blocks multiply the volume factors of BAR's networks."""
    bars = runs[runs.variant == "bar"]
    ratios = {x: part.volume_regular / part.volume for x, part in bars.groupby("pruning_factor")}
    return "; ".join(f"{x:g}x: {plus_minus(r.mean(), half_width(r))} times" for x, r in ratios.items())


def unaffected(runs: pd.DataFrame) -> tuple[str, str]:
    """Report what BAR loses at factors up to 16, and at which of them the loss can be told."""
    text, said = by_factor({x: changes_of(runs, "bar", x) for x in FACTORS})
    said = said.replace("does not hold at", "a loss can be told at").replace("holds at", "a gain can be told at")
    return text, said.replace("cannot be told at", "no loss can be told at")


def less_compute(runs: pd.DataFrame) -> tuple[str, str]:
    """Report how many times as many FLOPs BAR's networks have as those of equal widths and the same volume."""
    ratios = {}
    for factor, part in runs.groupby("pruning_factor"):
        bars, uniform = (part[part.variant == name].set_index("seed").flops for name in ("bar", "uniform"))
        ratios[f"{factor:g}x"] = (bars / uniform).dropna()
    ratios = {factor: values for factor, values in ratios.items() if len(values)}
    text = "; ".join(f"{x}: {plus_minus(r.mean(), half_width(r))} times" for x, r in ratios.items())
    return text, by_factor({float(x[:-1]): 1 - values for x, values in ratios.items()})[1]


def at_equal_flops(runs: pd.DataFrame) -> tuple[str, str]:
    """Report which methods BAR is above or below where both have about the same FLOPs, whatever their volumes."""
    means = runs.groupby(["variant", "pruning_factor"]).flops_factor.mean()
    cells, said = [], set()
    for factor, flops in means.get("bar", pd.Series(dtype=float)).items():
        mine = runs[(runs.variant == "bar") & (runs.pruning_factor == factor)].set_index("seed").change
        found: dict[str, list[str]] = {}
        for method in methods.STRUCTURED[1:]:
            others = means.get(method, pd.Series(dtype=float))
            near = others[(others / flops).between(1 / _SAME_FLOPS, _SAME_FLOPS)]
            if len(near):
                place = (near / flops - 1).abs().idxmin()
                its = runs[(runs.variant == method) & (runs.pruning_factor == place)].set_index("seed").change
                found.setdefault(verdict((mine - its).dropna()), []).append(short(method))
        words = {"holds": "above", "cannot be told": "not told from", "does not hold": "below"}
        parts = [f"{text} {', '.join(found[what])}" for what, text in words.items() if what in found]
        if parts:
            cells.append(f"FLOPs / {flops:.3g}: {'; '.join(parts)}")
            said |= found.keys()
    if not cells:
        return "", "not recorded"
    return ". ".join(cells), "does not hold" if "does not hold" in said else "competitive" if len(said) > 1 else "holds"


def of_flop_budgets(runs: pd.DataFrame) -> tuple[str, str]:
    """Report what BAR keeps with budgets of volume and of FLOPs, and both of its factors."""
    cells = []
    for variant, name in (("bar", "V-trained"), ("bar-flops", "F-trained")):
        for _, part in runs[runs.variant == variant].groupby("pruning_factor"):
            factors = f"V / {part.volume_factor.mean():.1f}, FLOPs / {part.flops_factor.mean():.1f}"
            cells.append(f"{name}, {factors}: {mean_change(part.change)} ({len(part)})")
    both = {"bar", "bar-flops"} <= set(runs.variant)
    return ("; ".join(cells), "measured") if both else ("", "not recorded")


def flops_of_equal_widths() -> str:
    """Say what BAR's FLOP factor is in the paper, and that of equal widths, at the largest factor of each data set."""
    cells, results = [], paper.table("pruning_results")
    for name, part in results.groupby("dataset", sort=False):
        bar, equal = (part[part.method == method].f_factor.iloc[-1] for method in ("bar", "random"))
        cells.append(f"{name}: {bar:g}x, equal widths {equal:g}x")
    return "FLOP factors at 16x. " + "; ".join(cells)


def claims_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what the paper claims, and what the runs of one footing say of it.

    Parameters
    ----------
    runs : pandas.DataFrame
        One footing of `by_footing`.

    Returns
    -------
    pandas.DataFrame
        A row a claim: ``where`` it stands, ``the paper``'s numbers, ``here`` (mean differences in points of test
        accuracy ± 95 %, paired by seed), and the ``verdict`` on what is here.
    """
    results, table1 = paper.table("pruning_results"), paper.table("configurations")
    printed = table1.set_index(["configuration", "pruning_factor"]).change_percent
    without = {name: tuple(printed[name]) for name in printed.index.unique(0) if name.startswith("w/o")}
    reduced = paper.table("mixed_reduction").reduction_percent
    bars = results[(results.dataset == "CIFAR-10") & (results.method == "bar")].accuracy
    full = table1.accuracy_percent.iloc[0] / 100
    unpruned = {x: changes_of(runs, "bar", x) for x in sorted(runs.pruning_factor.unique())}
    parts = {
        what: {x: -d for x, d in ahead(runs, variant, "bar").items()}
        for what, variant in (("teacher", "bar, distill False"), ("sigmoid", "bar, schedule linear"))
    }
    exponential, _ = by_factor(ahead(runs, "bar, schedule exponential", "bar"))
    costs = "; ".join(search_cost(runs, method) for method in methods.SEARCHED)
    rows = [
        (
            "The pruned network fits its budget", "1, 3.3",
            "by construction; those marked † in supp. 6 are 1.25 % above it", *within_budgets(runs),
        ),
        ("BAR is the best at 16x", "5.2, 6", better_in_the_paper(3), *best_at(runs, [16], "cannot be told")),
        (
            "BAR is the best at 2x, 4x and 8x, or competitive", "5.2",
            "; ".join(f"{x}x: {better_in_the_paper(i)}" for i, x in enumerate(FACTORS[:3])),
            *best_at(runs, FACTORS[:3], "competitive"),
        ),
        (
            "Pruned networks are better than the unpruned one", "5.2",
            "on every data set; on CIFAR-10, the only one whose unpruned accuracy is printed, at "
            f"{int((bars > full).sum())} of {len(bars)} factors", *by_factor(unpruned),
        ),
        (
            "Up to 16x, accuracy is not significantly affected", "abstract",
            f"on CIFAR-10, {100 * (bars.iloc[-1] - full):+.2f} points at 16x", *unaffected(runs),
        ),
        ("BAR is always better than LZR", "5.2", "figure 6", *always_ahead(runs, "l0")),
        ("BAR is always better than IB", "5.2", "figure 6", *always_ahead(runs, "information-bottleneck")),
        ("MorphNet falls severely at 16x", "5.2", falls_in_the_paper(), *falls_further(runs)),
        (
            "The teacher helps", "5.2, table 1", "2x, 16x without it: {:+.2f}, {:+.2f} %".format(
                *without["w/o Knowledge Distillation"]), *by_factor(parts["teacher"]),
        ),
        (
            "The sigmoid schedule helps, against a linear one", "5.2, table 1",
            "2x, 16x without it: {:+.2f}, {:+.2f} %".format(*without["w/o Sigmoid pruning schedule"]),
            *by_factor(parts["sigmoid"]),
        ),
        (
            "The exponential schedule gives good results at 16x, and sub-optimal ones at low factors", "3.4",
            "no numbers", exponential, "measured" if exponential else "not recorded",
        ),
        (
            "Mixed connectivity saves volume", "1, 4.2, table 2", f"{reduced.min()} to {reduced.max()} %",
            *mixed_saves(runs),
        ),
        (
            "Mixed connectivity roughly doubles the pruning factors", "1",
            f"by table 2, {100 / (100 - reduced.min()):.2f} to {100 / (100 - reduced.max()):.2f} times",
            mixed_multiplies(runs), "measured",
        ),
        (
            "Pruned networks are less compute-hungry than others (here: fewer FLOPs than of equal widths and volume)",
            "abstract", f"no measure is named. {flops_of_equal_widths()}", *less_compute(runs),
        ),
        (
            "By FLOPs, too, BAR is better than the others, or competitive", "5.2, 6",
            "up to about 64x on CIFAR-10 without a loss", *at_equal_flops(runs),
        ),
        (
            "Volume is overall a better choice than FLOPs to budget", "5.2, figure 8",
            "each is better by its own factor, FLOPs slightly", *of_flop_budgets(runs),
        ),
        ("Whole residual blocks are eliminated", "1, 5.2, figure 7", "figure 7", *blocks_gone(runs)),
        (
            "LZR and IB need trial and error", "1, 5", "its cost is not given", costs,
            "measured" if "trials" in costs else "not recorded",
        ),
        ("Printed, not claimed: equal widths save FLOPs by the square", "", "supp. 6", flop_factors(runs), "measured"),
        (
            "Not in the paper: pruning beats training the small network from scratch", "", "not compared",
            *by_factor(ahead(runs, "bar", "uniform")),
        ),
        (
            "Ours, not the paper's: a lower margin that follows b helps", "", "a is fixed",
            *by_factor(ahead(runs, "bar", "bar, follow 0.0")),
        ),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["claim", "where", "the paper", "here", "verdict"]).set_index("claim")


def falls_further(runs: pd.DataFrame) -> tuple[str, str]:
    """Report how many points more than BAR MorphNet loses from factor 8 (4, where 8 is not recorded) to 16.

    And how many methods lose more than it does; the claim holds if none does.
    """
    for smaller in (8, 4):
        lost = {m: (changes_of(runs, m, smaller) - changes_of(runs, m, 16)).dropna() for m in methods.STRUCTURED}
        more = (lost["morphnet"] - lost["bar"]).dropna()
        if len(more):
            text, said = by_factor({16: more})
            falls = pd.Series({m: fall.mean() for m, fall in lost.items()}).dropna()
            place = int((falls > falls["morphnet"]).sum()) + 1
            text = f"from {smaller}x to 16x, it loses more than BAR by {text.removeprefix('16x: ')}"
            text += f"; number {place} of {len(falls)} methods by what they lose"
            return text, "does not hold" if said.startswith("holds") and place > 1 else said
    return "", "not recorded"
