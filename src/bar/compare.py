"""What the book's chapters say about records: rows of runs and of timings in, tables and numbers out; nothing is drawn.

A run is a row of `bar.runs.records`, or its record. Changes of accuracy are in points, pruned minus unpruned.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from scipy import stats

from bar import methods, models, network, paper
from bar.config import RunConfig
from bar.cost import Cost, count
from bar.network import blocks
from bar.runs import RESULT
from bar.training import PRESETS

FACTORS = (2, 4, 8, 16)  # of the paper
SHARED = (  # settings that runs on one footing have in common
    *("prune_epochs", "finetune_epochs", "cooldown_epochs", "unpruned_epochs"),
    *("batch_size", "lr", "cooldown_lr", "weight_decay"),
)
OWN = {  # how the names of settings begin that concern some methods only
    "bar": ("gate_", "lam", "pressure", "b_start", "cap", "reach", "aim", "patience"),
    "l0": ("l0_", "first_", "gate_lr"),
    "information-bottleneck": ("ib_", "first_", "gate_lr"),
    "morphnet": ("morphnet_",),
    "uniform": ("uniform_",),
    **dict.fromkeys(methods.ITERATIVE, ("halving_",)),
    "others": ("lc_", "reparametrization_"),
}
TARGETS = {  # how closely a training follows its budget: the least and the most that are aimed at
    "V below b, % of steps: ≥ 98": (98.0, float("inf")),
    "smallest V/B: ≥ 0.9": (0.9, float("inf")),
    "largest rise, % of V_F: ≤ 5": (float("-inf"), 5.0),
    "V/B before the last step: 0.95 to 1": (0.95, 1.0),
}


# Numbers and words


def half_width(values: pd.Series) -> float:
    """Half of Student's interval at 95 % for the mean; not a number if there are fewer than two values.

    Parameters
    ----------
    values : pandas.Series
        One number a seed.

    Returns
    -------
    float
        In the unit of the values.

    Examples
    --------
    >>> round(half_width(pd.Series([1.0, 2.0, 3.0])), 3)
    2.484
    """
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1) * values.std() / n**0.5) if n > 1 else float("nan")


def plus_minus(value: float, width: float, sign: str = "", digits: int = 2) -> str:
    """A number with its half width, which is left out if it is not a number.

    Parameters
    ----------
    value, width : float
        What is said, and how far it may be off.
    sign : str
        ``"+"`` writes a plus before positive values.
    digits : int
        Decimals of both.

    Returns
    -------
    str
        Ready for a table.

    Examples
    --------
    >>> plus_minus(1.5, 0.25, "+"), plus_minus(1.5, float("nan"), digits=1)
    ('+1.50 ± 0.25', '1.5')
    """
    return f"{value:{sign}.{digits}f}" + ("" if pd.isna(width) else f" ± {width:.{digits}f}")


def mean_change(values: pd.Series, digits: int = 2) -> str:
    """The mean with its sign, and half of Student's interval at 95 % where there are at least two values.

    Parameters
    ----------
    values : pandas.Series
        One change a seed.
    digits : int
        Decimals.

    Returns
    -------
    str
        Ready for a table.

    Examples
    --------
    >>> mean_change(pd.Series([1.0, 2.0, 3.0])), mean_change(pd.Series([-1.0]))
    ('+2.00 ± 2.48', '-1.00')
    """
    return plus_minus(values.mean(), half_width(values), "+", digits)


def as_text(value: object) -> str:
    """Any JSON value as text that is equal for equal values.

    Examples
    --------
    >>> as_text({"b": 1, "a": [2]})
    '{"a": [2], "b": 1}'
    """
    return json.dumps(value, sort_keys=True)


def short(method: str) -> str:
    """What a method is called in tables: as in the paper, which calls BAR "Ours"; others by their own names.

    Examples
    --------
    >>> short("l0"), short("bar"), short("uniform")
    ('LZR', 'BAR', 'uniform')
    """
    printed = paper.table("pruning_results").drop_duplicates("method").set_index("method").paper_name
    return printed.get(method, method).replace("Ours", "BAR")


def record_file(folder: str) -> str:
    """The file of a run's record, from the top of the repository; "this build" for a run without a folder.

    Examples
    --------
    >>> record_file("../results/digits/a"), record_file("")
    ('results/digits/a/result.json', 'this build')
    """
    inside = Path(*(part for part in Path(folder).parts if part != ".."))
    return (inside / RESULT).as_posix() if folder else "this build"


def short_commit(commit: str | None) -> str:
    """Seven digits of a commit, and a plus if there were changes that it does not have.

    Examples
    --------
    >>> short_commit("0123456789abcdef+"), short_commit(None)
    ('0123456+', 'unknown')
    """
    commit = commit if isinstance(commit, str) and commit else "unknown"
    return commit[:7] + "+" * commit.endswith("+")


def captioned(table: pd.DataFrame, caption: str, wrap: bool = False, left: bool = True) -> Styler:
    """A table with its caption above it.

    Parameters
    ----------
    table : pandas.DataFrame
        What is shown.
    caption : str
        Above it.
    wrap : bool
        Whether cells may be broken into lines.
    left : bool
        Whether cells are set to the left.

    Returns
    -------
    pandas.io.formats.style.Styler
        A page shows it as a table.

    Examples
    --------
    >>> captioned(pd.DataFrame({"a": [1]}), "One number").caption
    'One number'
    """
    aligned = "; text-align: left" if left else ""
    above = [
        {"selector": "caption", "props": "caption-side: top; text-align: left"},
        {"selector": "td", "props": f"white-space: {'normal' if wrap else 'nowrap'}{aligned}"},
    ]
    above += [{"selector": "th", "props": "text-align: left"}] if wrap and left else []
    return table.style.set_caption(caption).set_table_styles(above)


def uniform_flops(cost: Cost, factor: float, first: float | None = None) -> float:
    """FLOP factor if every width is divided by ``factor``; the first convolution keeps its inputs.

    Parameters
    ----------
    cost : Cost
        Of the unpruned network.
    factor : float
        Above 0.
    first : float, optional
        FLOPs of the first convolution, if others than those counted are meant.

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


# Which runs can be compared


def of_method(settings: Mapping, method: str) -> str:
    """The settings that concern a method, as text.

    Examples
    --------
    >>> of_method({"lr": 0.1, "lam": 1, "morphnet_rounds": 2}, "morphnet")
    '{"lr": 0.1, "morphnet_rounds": 2}'
    """
    foreign = tuple({prefix for prefixes in OWN.values() for prefix in prefixes} - set(OWN[method]))
    return as_text({k: v for k, v in settings.items() if k.startswith(OWN[method]) or not k.startswith(foreign)})


def todays(run: pd.Series) -> bool:
    """Whether a run's settings are those that it would have now."""
    epochs = tuple(run.epochs) if isinstance(run.epochs, list) else None
    now = RunConfig(method=run.method, preset=run.preset, epochs=epochs).recorded_settings()
    known = {key: value for key, value in run.settings.items() if key in now}
    now = {key: value for key, value in now.items() if key in known}  # some are younger than some records
    return of_method(now, run.method) == of_method(known, run.method)


def unusual(run: pd.Series, keys: Iterable[str] = ("metric", "schedule", "distill")) -> list[str]:
    """The choices of a run that are not the usual ones of its method, each as ``name value``.

    Examples
    --------
    >>> unusual(pd.Series({"method": "bar", "metric": "flops", "schedule": "sigmoid", "distill": True}))
    ['metric flops']
    """
    usual = RunConfig(method=run.method)
    chosen = [key for key in keys if isinstance(run.get(key), str | bool | np.bool_)]  # not NaN
    return [f"{key} {run[key]}" for key in chosen if run[key] != getattr(usual, key)]


def variant(run: pd.Series) -> str:
    """The method, and what is not as usual; ``bar-flops`` is BAR with a budget of FLOPs.

    Examples
    --------
    >>> variant(pd.Series({"method": "bar", "metric": "flops"})), variant(pd.Series({"method": "l0"}))
    ('bar-flops', 'l0')
    """
    differs = unusual(run, ("metric", "schedule", "distill", "start"))
    return "bar-flops" if (run.method, differs) == ("bar", ["metric flops"]) else ", ".join([run.method, *differs])


def phases_text(run: pd.Series) -> str:
    """Epochs of the three phases, such as ``10+5+2``."""
    return "+".join(str(run.settings[f"{phase}_epochs"]) for phase in ("prune", "finetune", "cooldown"))


def footing(run: pd.Series) -> str:
    """What runs must have in common to be compared: images, network and epochs."""
    side = "x".join(map(str, run.input_size[1:]))
    images = f"{run.training_images:,} training images"
    return f"{run.dataset_label}, {run.model} at {side}, {images}, {phases_text(run)} epochs"


def prepared(found: pd.DataFrame) -> pd.DataFrame:
    """Runs of structured methods, with the columns by which they are compared.

    Parameters
    ----------
    found : pandas.DataFrame
        As `bar.runs.records` gives them; may be empty.

    Returns
    -------
    pandas.DataFrame
        With ``footing``, ``variant``, ``todays``, ``settings_text``, ``change`` (points) and ``used`` (of the budget).
    """
    if not len(found):
        return found
    found = found.assign(
        footing=found.apply(footing, axis=1),
        variant=found.apply(variant, axis=1),
        todays=found.apply(todays, axis=1),
        settings_text=found.apply(lambda run: of_method(run.settings, run.method), axis=1),
        shared=[as_text([settings.get(key) for key in SHARED]) for settings in found.settings],
        change=100 * (found.accuracy - found.accuracy_unpruned),
        used=found.apply(lambda run: run[run.metric] / run.budget, axis=1),
    )
    several = found.groupby("footing").shared.transform("nunique") > 1
    found["footing"] = found.footing.where(~several, found.footing + " " + found.shared)
    return found if "search" in found else found.assign(search=None)


def of_one_kind(found: pd.DataFrame) -> pd.DataFrame:
    """Of each variant on each footing only one kind of settings: today's, else the most frequent; no run twice."""
    keep = []
    for _, group in found.groupby(["footing", "variant"], sort=False):
        kinds = [kind for _, kind in group.groupby("settings_text", sort=False)]
        keep.append(max(kinds, key=lambda kind: (kind.todays.any(), len(kind))))
    kept = pd.concat(keep) if keep else found
    return kept.drop_duplicates(["footing", "variant", "pruning_factor", "seed"])


def by_footing(found: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Runs that can be compared, for each footing that has two methods or more; the one with most methods first.

    Examples
    --------
    >>> by_footing(pd.DataFrame())
    {}
    """
    if not len(found):
        return {}
    compared = of_one_kind(prepared(found))
    many = compared[compared.variant.isin(methods.STRUCTURED)].groupby("footing").variant.agg(["nunique", "size"])
    many = many[many["nunique"] > 1].sort_values(["nunique", "size"], ascending=False)
    return {name: compared[compared.footing == name] for name in many.index}


def every(option: str, values: Iterable[float]) -> str:
    """An option of the command line, once for each value.

    Examples
    --------
    >>> every("-x", [2, 4])
    '-x 2 -x 4'
    """
    return " ".join(f"{option} {value:g}" for value in values)


def command(run: pd.Series, *more: str) -> str:
    """What was typed for runs such as this one, but for the method, the factor and the seed.

    Examples
    --------
    >>> command(pd.Series({"limit": 64.0, "epochs": [2, 1, 0]}), "-x 4")
    'bar sweep --limit 64 --epochs 2 1 0 -x 4'
    """
    usual, words = RunConfig(), ["bar sweep"]
    for key in ("dataset", "model", "preset", "size", "limit"):
        value = run.get(key)
        if value is not None and value == value and value != getattr(usual, key):
            words.append(f"--{key} {value:g}" if isinstance(value, float) else f"--{key} {value}")
    if isinstance(run.epochs, list):
        words.append("--epochs " + " ".join(map(str, run.epochs)))
    return " ".join([*words, *more])


def missing(runs: pd.DataFrame) -> list[str]:
    """What a footing lacks, in lines: how many runs of which methods, and the command that makes them.

    Parameters
    ----------
    runs : pandas.DataFrame
        One footing of `by_footing`.

    Returns
    -------
    list of str
        Empty if every structured method has every factor of the paper with every seed that is there.
    """
    seeds = sorted(runs.seed.unique())
    there = set(zip(runs.variant, runs.pruning_factor, runs.seed, strict=True))
    gaps, lines = {}, []  # what is missing -> of which methods
    for method in methods.STRUCTURED:
        lacking = tuple((factor, s) for factor in FACTORS for s in seeds if (method, factor, s) not in there)
        gaps.setdefault(lacking, []).append(method)
    for lacking, which in gaps.items():
        if lacking:
            lines.append(f"  missing: {len(lacking)} runs each of {', '.join(which)}; this makes them:")
            options = (every("-x", sorted({f for f, _ in lacking})), every("-s", sorted({s for _, s in lacking})))
            lines.append("    " + command(runs.iloc[0], *(f"-m {method}" for method in which), *options))
    return lines


# Methods against each other


def epochs_by_method(factors: Sequence[float] = (2, 16)) -> pd.DataFrame:
    """Epochs of every structured method in both presets: all (before the last cut + after it)."""
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
    """A point for each variant and factor: means over the seeds, and the standard deviation of the accuracy.

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
    """Differences of two variants at one factor, seed by seed; seeds that only one of them has are left out.

    Examples
    --------
    >>> runs = pd.DataFrame({"seed": [0, 0, 1], "variant": ["a", "b", "a"], "change": [1.0, 3.0, 5.0]})
    >>> paired(runs, "b", "a").to_dict()
    {0: 2.0}
    """
    table = runs.pivot(index="seed", columns="variant", values=column)
    return (table[one] - table[other]).dropna()


def judged(runs: pd.DataFrame) -> dict[str, tuple[str, pd.Series]]:
    """The structured methods of one footing at one factor: the best first, and how the others compare with it.

    Parameters
    ----------
    runs : pandas.DataFrame
        With ``variant``, ``seed`` and ``change``.

    Returns
    -------
    dict
        Method -> verdict ("best", "worse", "within the noise", "cannot be told"), differences to the best by seed.
        Within the noise is what Student's interval at 95 % of the paired differences does not tell from 0.

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
    """How the weight of sparsity was found: trials and seconds of a run, and how often none fitted.

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
    """The structured methods of one footing at one factor, the best first: a row each, numbers as text."""
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


def budgets_used(runs: pd.DataFrame) -> list[str]:
    """In lines: how many runs use 95 to 100 % of their budget, how many more than all, and those that do not.

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
    """Neurons of each block, of the full network and of the pruned ones: means over the seeds.

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
    if some.empty:
        return pd.DataFrame()
    first = some.iloc[0]
    traced = network.trace(models.build(first.model, 10, first.input_size), first.input_size)
    rows = [
        {"method": run.variant, "seed": run.seed, "block": block}
        | {"full": run.features_full[conv] * run.areas[conv], "left": run.features[conv] * run.areas[conv]}
        for run in some.itertuples()
        for conv, block in blocks.block_of_convolutions(traced).items()
    ]
    sums = pd.DataFrame(rows).groupby(["method", "seed", "block"], sort=False)[["full", "left"]].sum()
    return sums.groupby(["method", "block"], sort=False).mean().reset_index()


def both_budgets(runs: pd.DataFrame) -> pd.DataFrame:
    """BAR with a budget of volume and with one of FLOPs, factor by factor, numbers as text."""
    rows = []
    both = runs[runs.variant.isin(["bar", "bar-flops"])]
    for (factor, what), group in both.groupby(["pruning_factor", "variant"]):
        row = {"factor": f"{factor:g}", "budget of": "FLOPs" if what == "bar-flops" else "volume", "seeds": len(group)}
        row |= {"V factor": f"{group.volume_factor.mean():.2f}", "F factor": f"{group.flops_factor.mean():.1f}"}
        rows.append(row | {"change (points)": mean_change(group.change), "used (%)": f"{100 * group.used.mean():.1f}"})
    return pd.DataFrame(rows).set_index(["factor", "budget of"])


def without(runs: pd.DataFrame, what: str, factor: float) -> pd.Series:
    """Differences of a variant to BAR at a factor, seed by seed; empty if either is not recorded."""
    some = runs[runs.variant.isin(["bar", what]) & (runs.pruning_factor == factor)]
    return paired(some, what, "bar") if some.variant.nunique() == 2 else pd.Series(dtype=float)


# The paper's claims, in words; the runs are those of the first footing, none if nothing is recorded


def behind(runs: pd.DataFrame | None, factor: float) -> str:
    """Whether BAR is the best at a factor.

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
    """The changes of a method at a factor, by seed; empty if nothing is recorded."""
    if runs is None:
        return pd.Series(dtype=float)
    return runs[(runs.variant == method) & (runs.pruning_factor == factor)].set_index("seed").change


def above_unpruned(runs: pd.DataFrame | None) -> str:
    """Whether BAR's pruned networks are better than the unpruned ones, factor by factor."""
    cells = []
    for factor in FACTORS:
        change = changes_of(runs, "bar", factor)
        if len(change):
            told = abs(change.mean()) > half_width(change)
            sure = "cannot be told" if not told else "yes" if change.mean() > 0 else "no"
            cells.append(f"{factor}x {sure} ({mean_change(change)})")
    return "; ".join(cells) or "not recorded"


def falls_here(runs: pd.DataFrame | None) -> str:
    """Which method loses most points from factor 8 to 16: means over the seeds that have both."""
    lost = {m: (changes_of(runs, m, 8) - changes_of(runs, m, 16)).dropna() for m in methods.STRUCTURED}
    falls = {method: values.mean() for method, values in lost.items() if len(values)}
    if "morphnet" not in falls or len(falls) < 2:
        return "not recorded"
    order = sorted(falls, key=falls.get, reverse=True)
    answer = "MorphNet falls furthest" if order[0] == "morphnet" else f"no: {short(order[0])} falls furthest"
    return f"{answer}. Points lost from 8x to 16x: {', '.join(f'{short(m)} {falls[m]:.2f}' for m in order)}"


def better_in_the_paper(number: int) -> str:
    """Who is above BAR at the paper's factor of that number (from 0), on each data set."""
    cells, results = [], paper.table("pruning_results")
    for name, part in results[results.method.isin(methods.STRUCTURED)].groupby("dataset", sort=False):
        there = part.groupby("method").accuracy.nth(number).groupby(part.method).first().drop(list(methods.SEARCHED))
        above = [short(method) for method in there.index[there > there["bar"]]]
        cells.append(f"{name}: " + (f"{', '.join(above)} above BAR" if above else "BAR is the best"))
    return "; ".join(cells)


def falls_in_the_paper() -> str:
    """How many points MorphNet loses from factor 8 to 16 in the paper, and how many methods lose more."""
    cells, results = [], paper.table("pruning_results")
    for name, part in results[results.method.isin(methods.STRUCTURED)].groupby("dataset", sort=False):
        ends = part.groupby("method").accuracy.apply(lambda a: 100 * (a.iloc[-2] - a.iloc[-1]))
        ends = ends.drop(list(methods.SEARCHED))  # their points have no fixed factors
        place = int((ends > ends["morphnet"]).sum()) + 1
        cells.append(f"{name}: {ends['morphnet']:.2f} points lost from 8x to 16x, number {place} of {len(ends)}")
    return "MorphNet drops severely at 16x. " + "; ".join(cells)


def flop_factors(runs: pd.DataFrame | None) -> str:
    """FLOP factors of the methods with equal widths, beside the arithmetic of `uniform_flops`."""
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
    """What a search costs, in trainings of the same method: seed by seed, for all budgets together."""
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


# BAR's own runs, chapter 6


def label(run: pd.Series) -> str:
    """Network, images and epochs of a run of BAR, and what is not as usual."""
    parts = [run.model, run.dataset_label, f"{run.training_images:,} images", f"{phases_text(run)} epochs"]
    parts += unusual(run) + ([] if todays(run) else ["other settings than today's"])
    return ", ".join(parts + (["this build"] if run.source == "this build" else []))


def alike(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """Runs of BAR in groups that differ in their seeds only; a run that is found in two folders counts once.

    Parameters
    ----------
    runs : pandas.DataFrame
        With a column ``source``.

    Returns
    -------
    list of pandas.DataFrame
        In the order in which they are found.
    """
    runs = runs.assign(
        settings_text=[of_method(settings, "bar") for settings in runs.settings],
        input_text=runs.input_size.map(as_text),
    )
    same = ["source", "dataset_label", "model", "training_images", "input_text", "metric", "schedule", "distill"]
    same += ["settings_text", "pruning_factor"]
    return [group for _, group in runs.drop_duplicates([*same, "seed"]).groupby(same, sort=False)]


def summary(group: pd.DataFrame) -> dict:
    """Means over the seeds of one group of `alike`: accuracies in percent, the change in points."""
    change = 100 * (group.accuracy - group.accuracy_unpruned)
    return {
        "label": label(group.iloc[0]),
        "usual": not unusual(group.iloc[0]),
        "seeds": len(group),
        "unpruned": 100 * group.accuracy_unpruned.mean(),
        "pruned": 100 * group.accuracy.mean(),
        "spread": 100 * group.accuracy.std(),
        "change": change.mean(),
        "interval": half_width(change),
        "factor": group.volume_factor.mean(),
        "flops": group.flops_factor.mean(),
    }


def summaries(groups: pd.DataFrame) -> pd.DataFrame:
    """The table of some rows of `summary`, numbers as text."""
    rows = groups.sort_values(["label", "factor"])
    pruned, change = zip(rows.pruned, rows.spread, strict=True), zip(rows.change, rows.interval, strict=True)
    table = {
        "runs": rows.label,
        "V factor": rows.factor.map("{:.2f}".format),
        "F factor": rows.flops.map("{:.2f}".format),
        "seeds": rows.seeds,
        "unpruned (%)": rows.unpruned.map("{:.2f}".format),
        "pruned (%), ± std": [plus_minus(*pair) for pair in pruned],
        "change (points), ± 95 %": [plus_minus(*pair, "+") for pair in change],
    }
    return pd.DataFrame(table).set_index(["runs", "V factor"])


def each_run(runs: pd.DataFrame, **columns: Iterable) -> pd.DataFrame:
    """A row a run, numbers as text, and where its record is.

    Parameters
    ----------
    runs : pandas.DataFrame
        In the order of the table.
    **columns
        More of them, which come first.

    Returns
    -------
    pandas.DataFrame
        Its index is the file of the record.
    """
    table = {
        "record": runs.folder.map(record_file),
        **columns,
        "seed": runs.seed,
        "accuracy (%)": (100 * runs.accuracy).map("{:.2f}".format),
        "unpruned (%)": (100 * runs.accuracy_unpruned).map("{:.2f}".format),
        "used": (runs.volume / runs.budget).where(runs.metric == "volume", runs.flops / runs.budget),
        "training images": runs.training_images.map("{:,}".format),
        "seconds": runs.seconds.map("{:.0f}".format),
        "hardware": runs.hardware,
        "commit": [short_commit(commit) for commit in runs.commit],
    }
    return pd.DataFrame(table).set_index("record").assign(used=lambda table: table.used.map("{:.3f}".format))


def saved(groups: Iterable[pd.DataFrame], what: str) -> pd.DataFrame:
    """Change in percent by mixed connectivity: our groups of runs, then the paper's data sets; a column a factor.

    Parameters
    ----------
    groups : iterable of pandas.DataFrame
        Of `alike`, with ``<what>_regular``.
    what : str
        ``"volume"`` or ``"flops"``.

    Returns
    -------
    pandas.DataFrame
        Numbers as text.
    """
    cells = []
    for group in groups:
        change = 100 * (group[what] / group[f"{what}_regular"] - 1)
        cells.append((f"here: {label(group.iloc[0])}", group.pruning_factor.iloc[0], mean_change(change, 1)))
    for row in paper.table("mixed_connectivity").itertuples():
        printed = getattr(row, f"{what.removesuffix('s')}_change_percent")
        name = f"the paper: {'ResNet-50' if row.dataset == 'Mio-TCD' else 'WRN-28-12'}, {row.dataset}"
        cells.append((name, row.pruning_factor, f"{printed:+d}"))
    table = pd.DataFrame(cells, columns=["runs", "factor", "change"]).pivot_table(
        index="runs", columns="factor", values="change", aggfunc=" or ".join, sort=False, fill_value=""
    )
    return table[sorted(table.columns)].rename(columns="{:g}x".format).rename_axis(columns=None)


def counts_of_both(groups: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """V and FLOPs with regular and with mixed connectivity: means over the seeds of groups of `alike`, as text."""
    whats = {"V, regular": "volume_regular", "V, mixed": "volume"}
    whats |= {"FLOPs, regular": "flops_regular", "FLOPs, mixed": "flops"}
    rows = [
        {"runs": label(group.iloc[0]), "factor": f"{group.pruning_factor.iloc[0]:g}x", "seeds": len(group)}
        | {name: f"{group[what].mean():,.0f}" for name, what in whats.items()}
        for group in groups
    ]
    return pd.DataFrame(rows).set_index(["runs", "factor"])


# Times, chapter 11


def latencies(folder: str | Path) -> tuple[pd.DataFrame, dict[str, dict]]:
    """The records of ``bench/latency.py``.

    Parameters
    ----------
    folder : path
        Where its ``latency-*.json`` are.

    Returns
    -------
    measured : pandas.DataFrame
        A row a network, batch and factor; ``file`` and ``record`` say where it is from. May be empty.
    setups : dict
        File -> hardware and versions.

    Examples
    --------
    >>> measured, setups = latencies("nowhere")
    >>> len(measured), setups
    (0, {})
    """
    parts, setups = [], {}
    for path in sorted(Path(folder).glob("latency-*.json")):
        content = json.loads(path.read_text())
        setup = setups[path.name] = content["setup"]
        setup["commit"] = short_commit(setup["commit"])
        part = pd.json_normalize([{k: v for k, v in row.items() if k != "widths"} for row in content["records"]])
        what = f"{path.name}: {setup['model']}, {setup['hardware']}, commit {setup['commit']}"
        parts.append(part.assign(file=path.name, record=what))
    columns = ["file", "record", "network", "batch", "factor", "flop_factor", "speedup.median"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns), setups


def with_quartiles(row: Mapping, name: str, least: float) -> list[str]:
    """A ratio in percent with its quartiles, and whether its median reaches what is aimed at.

    Examples
    --------
    >>> row = {"r.median": 0.95, "r.quartile_1": 0.85, "r.quartile_3": 1.0}
    >>> with_quartiles(row, "r", 0.9)
    ['95.0 (85.0 to 100.0)', 'yes, within noise']
    """
    median, low, high = (row[f"{name}.{part}"] for part in ("median", "quartile_1", "quartile_3"))
    answer = ("yes" if median >= least else "no") + ", within noise" * bool(low < least <= high)
    return [f"{100 * median:.1f} ({100 * low:.1f} to {100 * high:.1f})", answer]


def latency_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds for a batch, from the rows of one record: a column a network."""
    rows = rows.assign(ms=[f"{ms:.{2 if ms < 100 else 0}f}" for ms in rows["latency_ms.median"]])
    table = rows.pivot(index=["batch", "factor"], columns="network", values="ms")
    columns = ("unpruned", "gated", "torch-pruning", "regular", "mixed", "dense")
    table = table[[column for column in columns if column in table]]
    of_mixed = rows[rows.network == "mixed"].set_index(["batch", "factor"])
    table["F factor"] = of_mixed.flop_factor.map("{:.1f}".format)
    table["speed-up"] = of_mixed["speedup.median"].map("{:.1f}".format)
    table = table.rename("{:g}".format, level="factor").rename_axis(["batch", "V factor"])
    return table.rename_axis(columns=None)


def throughput_table(rows: pd.DataFrame, target: float) -> pd.DataFrame:
    """Throughput of mixed surgery against regular surgery and the dense network, from its rows in one record."""
    table = []
    for _, row in rows.iterrows():
        over_dense, reached = with_quartiles(row, "throughput_over_dense", target)
        over_regular, faster = with_quartiles(row, "throughput_over_regular", 1.0)
        reached = reached if row.batch == 64 else ""
        alone = row.get("roofline.convolutions_throughput_over_dense.median", float("nan"))
        alone = "" if pd.isna(alone) else f"{100 * alone:.1f}"
        table.append([row.batch, f"{row.factor:g}", over_regular, faster, over_dense, reached, alone])
    columns = ["batch", "V factor", "% of regular", "faster?", "% of dense", f"≥ {100 * target:g} %?", "conv. alone"]
    return pd.DataFrame(table, columns=columns).set_index(["batch", "V factor"])


def throughput_words(name: str, rows: pd.DataFrame, target: float) -> str:
    """In how many cases mixed surgery reaches the target and is faster than regular surgery, in Markdown."""
    dense = 100 * rows.loc[rows.batch == 64, "throughput_over_dense.median"]
    lacking = 100 * target - dense[dense < 100 * target]
    text = f"`{name}`: at a batch of 64, mixed surgery reaches {100 * target:g} % of the dense network's throughput at "
    text += f"**{len(dense) - len(lacking)} of {len(dense)}** factors"
    text += f"; the others are {lacking.min():.1f} to {lacking.max():.1f} points short" if len(lacking) else ""
    regular = 100 * (rows["throughput_over_regular.median"] - 1)
    text += f". It is faster than regular surgery in **{(regular > 0).sum()} of {len(regular)}** cases"
    return text + f"; the smallest gain is {regular.min():+.1f} %."


def time_pieces(measured: pd.DataFrame) -> pd.DataFrame:
    """Where the time of mixed surgery and of the dense network goes, for records that say it; may be empty.

    Parameters
    ----------
    measured : pandas.DataFrame
        As from `latencies`.

    Returns
    -------
    pandas.DataFrame
        Milliseconds: ``ms_if_flops_were_time``, ``ms_slower_convolutions`` and ``ms_more_of_the_rest`` add up.
    """
    roof = measured.filter(like="roofline.").rename(columns=lambda name: name.removeprefix("roofline."))
    roof = measured[["file", "record", "network", "batch", "factor", "flop_factor", "speedup.median"]].join(roof)
    needed = ["ms_if_flops_were_time", "ms_convolutions", "ms_other", "convolutions_slower_per_flop"]
    wanted = [*needed, "ms_calls_of_convolutions", "ms_calls_of_other", "flops_in_full_vectors"]
    roof = roof.reindex(columns=[*dict.fromkeys([*roof, *wanted])]).dropna(subset=needed)
    share = roof.ms_convolutions / roof.convolutions_slower_per_flop  # what they would take, were FLOPs time
    roof["ms_slower_convolutions"] = roof.ms_convolutions - share
    roof["ms_more_of_the_rest"] = roof.ms_other - (roof.ms_if_flops_were_time - share)
    return roof[roof.network.isin(["mixed", "dense"])]


def _by_network(rows: pd.DataFrame, table: Mapping[str, Iterable]) -> pd.DataFrame:
    index = [rows.batch, rows.factor.map("{:g}".format).rename("V factor"), rows.network]
    return pd.DataFrame(table).set_index(index)


def pieces_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `time_pieces` of one record as parts of their sums, as text."""
    pieces = rows[["ms_if_flops_were_time", "ms_slower_convolutions", "ms_more_of_the_rest"]]
    pieces = pieces.div(pieces.sum(axis=1), axis=0)
    calls = rows.ms_calls_of_convolutions + rows.ms_calls_of_other
    table = {
        "became time": pieces.ms_if_flops_were_time.map("{:.0%}".format),
        "slower convolutions": pieces.ms_slower_convolutions.map("{:.0%}".format),
        "other operations": pieces.ms_more_of_the_rest.map("{:.0%}".format),
        "calls (in both)": (calls / (rows.ms_convolutions + rows.ms_other)).map("{:.0%}".format).replace("nan%", ""),
        "conv. time per FLOP (unpruned = 1)": rows.convolutions_slower_per_flop.map("{:.2f}".format),
        "vectors filled": rows.flops_in_full_vectors.map("{:.0%}".format).replace("nan%", ""),
    }
    return _by_network(rows, table)


def quartiles_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Latency with its quartiles, throughput and memory of every network of one record, as text."""
    quartiles = (rows[f"latency_ms.{part}"] for part in ("median", "quartile_1", "quartile_3"))
    table = {
        "F factor": rows.flop_factor.map("{:.1f}".format),
        "latency (ms)": ["{:.2f} ({:.2f} to {:.2f})".format(*three) for three in zip(*quartiles, strict=True)],
        "images/s": rows.images_per_second.map("{:,.0f}".format),
        "peak (MB)": (rows.peak_memory_bytes / 1e6).map("{:.2f}".format).replace("nan", ""),
    }
    return _by_network(rows, table)


# Trainings that follow their budget, chapter 12


def recorded(folder: str | Path, pattern: str) -> dict[str, dict]:
    """The content of JSON files by their names, in the order of the number that ends their names.

    Examples
    --------
    >>> recorded("nowhere", "*.json")
    {}
    """
    paths = Path(folder).glob(pattern)
    ordered = sorted(paths, key=lambda path: (path.stem.rpartition("-")[2].zfill(4), path.name))
    return {path.name: json.loads(path.read_text()) for path in ordered}


def named(trainings: list[dict]) -> list[dict]:
    """The trainings with ``what`` was trained, the ``name`` of the variant and a short ``commit``."""
    whats = [f"{one['model']}, {one['dataset_label']}, {one['training_images']:,} images" for one in trainings]
    return [
        one | {"what": what, "commit": short_commit(one["commit"])}
        | {"name": f"{what}: {one['variant']}" if len(set(whats)) > 1 else one["variant"]}
        for one, what in zip(trainings, whats, strict=True)
    ]  # fmt: skip


def in_use(settings: Mapping) -> dict:
    """The settings that decide something: a rate does not, if another way of setting it is given.

    Examples
    --------
    >>> in_use({"gate_lr": 0.1, "gate_travel": 10, "lam": 1.0, "pressure": None})
    {'gate_travel': 10, 'lam': 1.0, 'pressure': None}
    """
    idle = {"gate_lr"} if settings["gate_travel"] else set()
    idle |= {"lam"} if settings["pressure"] else set()
    return {key: value for key, value in settings.items() if key not in idle}


def variants_table(trainings: list[dict]) -> pd.DataFrame:
    """What each variant changes against the one called ``start``, or else against the first."""
    lines = {}  # one for each name, and for each settings of it, should there be records of several
    for one in trainings:
        lines.setdefault((one["name"], json.dumps(one["settings"])), []).append(one)
    base, rows = next((one for one in trainings if one["variant"] == "start"), trainings[0]), []
    for (name, _), group in lines.items():
        settings, usual = in_use(group[0]["settings"]), in_use(base["settings"])
        changed = [f"{key} {value}" for key, value in settings.items() if value != usual.get(key, value)]
        numbers = [sorted({one[key] for one in group}) for key in ("pruning_factor", "seed")]
        factors, seeds = (", ".join(f"{number:g}" for number in some) for some in numbers)
        commits = ", ".join(sorted({one["commit"] for one in group}))
        rows.append([name, "; ".join(changed) or "nothing", factors, seeds, commits])
    columns = ["variant", f'other than in "{base["variant"]}"', "factors", "seeds", "commit"]
    return pd.DataFrame(rows, columns=columns).set_index("variant")


def _pruning_and_cut(one: Mapping) -> tuple[pd.DataFrame, dict]:
    pruning = pd.DataFrame([epoch for epoch in one["epochs"] if epoch["phase"] == "prune"])
    return pruning, next(epoch for epoch in one["epochs"] if epoch["phase"] == "cut")


def followed(trainings: Iterable[Mapping]) -> pd.DataFrame:
    """V and b of every epoch of the pruning as parts of V_F, as `bar.figures.following` draws them; may be empty."""
    parts = []
    for one in trainings:
        pruning, cut = _pruning_and_cut(one)
        part = pruning[["size", "size_min", "size_max", "budget"]] / one["volume_full"]
        part = part.assign(name=one["name"], factor=one["pruning_factor"], seed=one["seed"], time=pruning.epoch)
        parts.append(part.assign(accuracy_cut=cut["accuracy"], accuracy_end=one["epochs"][-1]["accuracy"]))
    if not parts:
        return pd.DataFrame()
    rows = pd.concat(parts, ignore_index=True)
    means = 100 * rows.groupby(["name", "factor"])[["accuracy_cut", "accuracy_end"]].transform("mean")
    return rows.assign(note=[f"cut {cut:.1f}, end {end:.1f}" for cut, end in means.to_numpy()])


def measured(one: Mapping) -> dict:
    """The four numbers of `TARGETS` of one training, and its changes of validation accuracy in points."""
    full, limit = one["volume_full"], one["volume_full"] / one["pruning_factor"]
    pruning, cut = _pruning_and_cut(one)
    late = pruning[10 * (pruning.epoch - 1) >= len(pruning)]  # epochs that begin after the first tenth
    numbers = [100 * (1 - late.above.mean()), late.size_min.min() / limit]
    numbers += [100 * late.rise.max() / full, cut["size_before_settling"] / limit]
    unpruned = one["validation_accuracy_unpruned"]
    return {
        "variant": one["name"],
        "factor": one["pruning_factor"],
        **dict(zip(TARGETS, numbers, strict=True)),
        "close": (late["size"] / late.budget).mean(),
        "unpruned": 100 * unpruned,
        "after the cut": 100 * (cut["accuracy"] - unpruned),
        "at the end": 100 * (one["epochs"][-1]["accuracy"] - unpruned),
    }


def targets_table(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Which of `TARGETS` each variant meets at each factor: the range over the seeds, and how many met it if not all.

    Parameters
    ----------
    outcomes : pandas.DataFrame
        Rows of `measured`.

    Returns
    -------
    pandas.DataFrame
        ``met`` is the number of targets that all seeds meet.
    """
    rows = []
    for (name, factor), group in outcomes.groupby(["variant", "factor"], sort=False):
        cells, met = [], 0
        for what, bounds in TARGETS.items():
            good = group[what].between(*bounds)
            digits = 1 if "%" in what else 3
            low, high = (f"{value:.{digits}f}" for value in (group[what].min(), group[what].max()))
            text = low if low == high else f"{low} to {high}"
            cells.append(text if good.all() else f"{text} ({good.sum()}\u00a0of\u00a0{len(good)})")
            met += good.all()
        rows.append([factor, name, len(group), *cells, f"{met} of {len(TARGETS)}", f"{group.close.mean():.2f}", met])
    columns = ["factor", "variant", "seeds", *TARGETS, "targets met", "V/b, mean", "met"]
    return pd.DataFrame(rows, columns=columns)


def accuracy_changes(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy of rows of `measured`: changes against the unpruned network, mean ± 95 %."""
    rows = [
        [name, f"{factor:g}", len(group), f"{group.unpruned.mean():.2f}"]
        + [mean_change(group[when]) for when in ("after the cut", "at the end")]
        for (name, factor), group in outcomes.groupby(["variant", "factor"], sort=False)
    ]
    columns = ["variant", "factor", "seeds", "unpruned (%)", "after the cut (points)", "at the end (points)"]
    return pd.DataFrame(rows, columns=columns).set_index(["variant", "factor"])


def lengths_table(trainings: Iterable[Mapping]) -> tuple[pd.DataFrame, int]:
    """A row a training: `TARGETS`, with (no) where one is missed, accuracy; and how many trainings meet them all."""
    rows, all_met = [], 0
    order = ("model", "epochs", "pruning_factor", "seed")
    for one in sorted(trainings, key=lambda one: [len(one[k]) if k == "epochs" else one[k] for k in order]):
        numbers = measured(one | {"name": one["model"]})
        good = [least <= numbers[what] <= most for what, (least, most) in TARGETS.items()]
        cells = [f"{numbers[what]:.{1 if '%' in what else 3}f}" for what in TARGETS]
        cells = [cell + ("" if met else " (no)") for cell, met in zip(cells, good, strict=True)]
        epochs = sum(epoch["phase"] != "cut" for epoch in one["epochs"])
        ends = [f"{numbers['unpruned']:.1f}", f"{numbers['after the cut']:+.1f}", f"{numbers['at the end']:+.1f}"]
        rows.append([one["model"], epochs, f"{one['pruning_factor']:g}", one["seed"], *cells, *ends])
        all_met += all(good)
    columns = ["network", "epochs", "factor", "seed", *TARGETS, "unpruned (%)", "cut (points)", "end (points)"]
    return pd.DataFrame(rows, columns=columns).set_index(["network", "epochs", "factor"]), all_met


def due_features(trainings: Iterable[Mapping]) -> dict[tuple[str, float], tuple[int, int, int]]:
    """By name and factor: seeds, features that were due to be cut, and those of them that were alive again."""
    noted = {}
    for one in trainings:
        _, cut = _pruning_and_cut(one)
        if "due" in cut:
            noted.setdefault((one["name"], one["pruning_factor"]), []).append((cut["due"], cut["due_and_alive"]))
    return {
        key: (len(counts), *(sum(column) for column in zip(*counts, strict=True)))
        for key, counts in sorted(noted.items(), key=lambda item: item[0][1])
    }


def seconds_of_epochs(timed: Mapping[str, Mapping]) -> pd.DataFrame:
    """Seconds of every epoch of timed trainings, as `bar.figures.seconds_per_epoch` draws them; may be empty."""
    rows = []
    for name, one in timed.items():
        setup = one["setup"]
        record = f"{name}: {setup['model']}, factor {setup['factor']:g}, {setup['hardware']}, "
        record += f"load {setup['load_at_start']:g}, commit {short_commit(setup['commit'])}"
        for training, epochs in one["epochs"].items():
            for i, epoch in enumerate((epoch for epoch in epochs if epoch["phase"] != "cut"), start=1):
                row = {"record": record, "training": training, "time": i}
                rows.append(row | {"phase": epoch["phase"], "seconds": epoch["seconds"]})
    return pd.DataFrame(rows)


def setups_table(setups: Mapping[str, Mapping], shown: Mapping[str, str]) -> pd.DataFrame:
    """A column a record: the entries of its setup that are ``shown``, under the names given there.

    Examples
    --------
    >>> setups_table({"a.json": {"commit": "0123456789"}}, {"commit": "made by"}).to_dict()
    {'a.json': {'made by': '0123456'}}
    """
    setups = {name: {**setup, "commit": short_commit(setup["commit"])} for name, setup in setups.items()}
    return pd.DataFrame(setups).reindex(shown).rename(shown).map(str)


def steps_table(timed: Mapping[str, Mapping]) -> pd.DataFrame:
    """A column a record: milliseconds of one step (medians), and shares."""
    table = (1000 * pd.DataFrame({name: one["steps"] for name, one in timed.items()})).map("{:.2f}".format)
    table.loc["overhead of gates and barrier"] = [f"{one['overhead']:+.1%}" for one in timed.values()]
    table.loc["teacher's forward, of an unpruned step"] = [f"{one['teacher_share']:.1%}" for one in timed.values()]
    return table


def whole_trainings(one: Mapping, wanted: Sequence[float]) -> pd.DataFrame:
    """Seconds of the timed trainings of one record, and whether BAR that cuts early takes as little as wanted."""
    rows = []
    for training, seconds in one["seconds"].items():
        ratio = one["ratio"][training]
        answers = [("yes" if ratio <= most else "no") if "while" in training else "" for most in wanted]
        accuracy = f"{100 * one['epochs'][training][-1]['accuracy']:.1f}"
        rows.append([training, f"{seconds:.1f}", f"{ratio:.2f}", *answers, accuracy])
    columns = ["training", "seconds", "of unpruned", *(f"≤ {most:g}?" for most in wanted), "validation accuracy (%)"]
    return pd.DataFrame(rows, columns=columns).set_index("training")
