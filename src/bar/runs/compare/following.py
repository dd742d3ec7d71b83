"""How closely trainings follow their budget, and the effect on accuracy: chapter 12."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from bar.runs.compare.footings import phases_text
from bar.runs.compare.statistics import half_width, mean_change
from bar.runs.compare.words import short_commit

TARGETS = {  # measure of how closely a training follows its budget -> least and largest value aimed at
    "V near b, % of steps: ≥ 90": (90.0, float("inf")),
    "V below b, % of steps: ≥ 98": (98.0, float("inf")),
    "smallest V/B: ≥ 0.9": (0.9, float("inf")),
    "largest rise, % of V_F: ≤ 5": (float("-inf"), 5.0),
    "V/B before the last step: 0.95 to 1": (0.95, 1.0),
}


# Variants had other names when the preset was another one.
FORMER = {"following, cap 100, travel 120": "quick", "following": "less travel", "quick": "fixed margin, less travel"}


def recorded(folder: str | Path, pattern: str) -> dict[str, dict]:
    """Read JSON files, by name; those of the variant ``quick`` come first.

    Examples
    --------
    >>> recorded("nowhere", "*.json")
    {}
    """
    found = {path.name: _renamed(json.loads(path.read_text())) for path in sorted(Path(folder).glob(pattern))}
    return dict(sorted(found.items(), key=lambda item: item[1].get("variant") != "quick"))


def _renamed(record: dict) -> dict:
    variant = record.get("variant")
    if variant not in FORMER or (variant == "quick" and record["settings"].get("follow")):
        return record
    return record | {"variant": FORMER[variant]}


def named(trainings: list[dict]) -> list[dict]:
    """Add to trainings ``what`` was trained, the ``name`` of the variant and a short ``commit``."""
    whats = [f"{one['model']}, {one['dataset_label']}, {one['training_images']:,} images" for one in trainings]
    return [
        one | {"what": what, "commit": short_commit(one["commit"])}
        | {"name": f"{what}: {one['variant']}" if len(set(whats)) > 1 else one["variant"]}
        for one, what in zip(trainings, whats, strict=True)
    ]  # fmt: skip


def in_use(settings: Mapping) -> dict:
    """Return the settings that have an effect: a rate has none if another setting replaces it.

    Examples
    --------
    >>> in_use({"gate_lr": 0.1, "gate_travel": 10, "lam": 1.0, "pressure": None})
    {'gate_travel': 10, 'lam': 1.0, 'pressure': None}
    """
    idle = {"gate_lr"} if settings["gate_travel"] else set()
    idle |= {"lam"} if settings["pressure"] else set()
    return {key: value for key, value in settings.items() if key not in idle}


def variants_table(trainings: list[dict]) -> pd.DataFrame:
    """Return a table of what each variant changes against the one called ``quick``, or else against the first."""
    lines = {}  # by name and settings, as records of one name may have different settings
    for one in trainings:
        lines.setdefault((one["name"], json.dumps(one["settings"])), []).append(one)
    base, rows = next((one for one in trainings if one["variant"] == "quick"), trainings[0]), []
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
    """Return V and b after each pruning epoch, over V_F, as `bar.figures.following` draws them; may be empty."""
    parts = []
    for one in trainings:
        pruning, cut = _pruning_and_cut(one)
        full = cut["budget"] * one["pruning_factor"]  # V_F, or F_F where the budget is one of FLOPs
        part = pruning[["size", "size_min", "size_max", "budget"]] / full
        part = part.assign(name=one["name"], factor=one["pruning_factor"], seed=one["seed"], time=pruning.epoch)
        parts.append(part.assign(accuracy_cut=cut["accuracy"], accuracy_end=one["epochs"][-1]["accuracy"]))
    if not parts:
        return pd.DataFrame()
    rows = pd.concat(parts, ignore_index=True)
    means = 100 * rows.groupby(["name", "factor"])[["accuracy_cut", "accuracy_end"]].transform("mean")
    return rows.assign(note=[f"cut {cut:.1f}, end {end:.1f}" for cut, end in means.to_numpy()])


def measured(one: Mapping) -> dict:
    """Return the numbers of `TARGETS` of one training, and its changes of validation accuracy in points."""
    pruning, cut = _pruning_and_cut(one)
    full, limit = cut["budget"] * one["pruning_factor"], cut["budget"]
    late = pruning[10 * (pruning.epoch - 1) >= len(pruning)]  # epochs that begin after the first tenth
    numbers = [100 * one["near"], 100 * (1 - late.above.mean()), late.size_min.min() / limit]
    numbers += [100 * late.rise.max() / full, cut["size_before_settling"] / limit]
    unpruned = one["validation_accuracy_unpruned"]
    return {
        "variant": one["name"],
        "factor": one["pruning_factor"],
        **dict(zip(TARGETS, numbers, strict=True)),
        "unpruned": 100 * unpruned,
        "after the cut": 100 * (cut["accuracy"] - unpruned),
        "at the end": 100 * (one["epochs"][-1]["accuracy"] - unpruned),
    }


def targets_table(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Show which of `TARGETS` each variant meets at each factor: ranges over the seeds, and how many met it if not all.

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
        rows.append([factor, name, len(group), *cells, f"{met} of {len(TARGETS)}", met])
    columns = ["factor", "variant", "seeds", *TARGETS, "targets met", "met"]
    return pd.DataFrame(rows, columns=columns)


def lengths_table(trainings: Iterable[Mapping]) -> tuple[pd.DataFrame, int]:
    """Return a row a training, `TARGETS` (with "(no)" if missed) and accuracy, and how many trainings meet them all."""
    rows, all_met = [], 0
    order = ("model", "dataset_label", "epochs", "pruning_factor", "variant", "seed")
    for one in sorted(trainings, key=lambda one: [len(one[k]) if k == "epochs" else one[k] for k in order]):
        numbers = measured(one | {"name": one["model"]})
        good = [least <= numbers[what] <= most for what, (least, most) in TARGETS.items()]
        cells = [f"{numbers[what]:.{1 if '%' in what else 3}f}" for what in TARGETS]
        cells = [cell + ("" if met else " (no)") for cell, met in zip(cells, good, strict=True)]
        epochs = sum(epoch["phase"] != "cut" for epoch in one["epochs"])
        ends = [f"{numbers['unpruned']:.1f}", f"{numbers['after the cut']:+.1f}", f"{numbers['at the end']:+.1f}"]
        where = [f"{one['model']}, {one['dataset_label']}", epochs, f"{one['pruning_factor']:g}", one["variant"]]
        rows.append([*where, one["seed"], *cells, *ends])
        all_met += all(good)
    keys = ["network", "epochs", "factor", "variant"]
    columns = [*keys, "seed", *TARGETS, "unpruned (%)", "cut (points)", "end (points)"]
    return pd.DataFrame(rows, columns=columns).set_index(keys), all_met


def pressures_table(trainings: Iterable[Mapping]) -> pd.DataFrame:
    """Return what becomes of trainings whose budget presses more or less: a row for each factor and pressure.

    Parameters
    ----------
    trainings : iterable of mapping
        Records of ``bench/ablation.py``.

    Returns
    -------
    DataFrame
        As text. "budget over data" is the budget's term of the loss over that of the data: the largest of the pruning
        epochs, whose mean losses they are. "size/B" is before the last step, in the unit of the budget.
    """
    rows = []
    for one in sorted(trainings, key=lambda one: (one["pruning_factor"], one["settings"]["pressure"])):
        pruning, _ = _pruning_and_cut(one)
        numbers = measured(one | {"name": one["variant"]})
        over = (pruning.loss / pruning.data_loss - 1).max()
        rows.append(
            [
                f"{one['pruning_factor']:g}", f"{one['settings']['pressure']:,.6g}", f"{over:,.2f}",
                f"{100 * one['near']:.0f}", f"{numbers['V/B before the last step: 0.95 to 1']:.2f}",
                f"{numbers['after the cut']:+.1f}", f"{numbers['at the end']:+.1f}",
            ]
        )  # fmt: skip
    keys = ["factor", "pressure"]
    columns = ["budget over data", "near b (%)", "size/B", "cut (points)", "end (points)"]
    return pd.DataFrame(rows, columns=[*keys, *columns]).set_index(keys)


def near_enough(trainings: Iterable[Mapping]) -> dict[str, tuple[int, int]]:
    """Count, for each variant, the trainings with V near b in nine of ten steps, and all of them.

    Parameters
    ----------
    trainings : iterable of mapping
        Records of ``bench/ablation.py``. Those without a "near", which have no b, are left out.

    Returns
    -------
    dict of str to (int, int)

    Examples
    --------
    >>> near_enough([{"variant": "quick", "near": near} for near in (0.89, 0.9, None)])
    {'quick': (1, 2)}
    """
    (least, _), found = TARGETS["V near b, % of steps: ≥ 90"], {}
    for one in trainings:
        if one.get("near") is not None:
            found.setdefault(one["variant"], []).append(100 * one["near"] >= least)
    return {variant: (sum(met), len(met)) for variant, met in found.items()}


def _pairs(trainings: Iterable[Mapping]) -> pd.DataFrame:
    """Validation accuracies in percent, a column a variant, by network, images, epochs, factor and seed."""
    keys = ["network", "images", "epochs", "factor", "seed", "variant"]
    rows = [
        [
            one["model"], f"{one['dataset_label']}, {one['training_images']:,}",
            sum(epoch["phase"] != "cut" for epoch in one["epochs"]), one["pruning_factor"], one["seed"],
            one["variant"], 100 * one["epochs"][-1]["accuracy"],
        ]
        for one in trainings
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=[*keys, "accuracy"]).groupby(keys).accuracy.last().unstack()


def parts_tables(trainings: Iterable[Mapping], parts: Iterable[str] | None = None) -> dict[str, pd.DataFrame]:
    """Return what the preset ``quick`` keeps more on validation images than without each of its parts.

    Parameters
    ----------
    trainings : iterable of mapping
        Records of ``bench/ablation.py``.
    parts : iterable of str, optional
        Variants that are compared with it; all others by default.

    Returns
    -------
    dict of str to DataFrame
        By network, images and epochs: a row a variant, a column a factor, and the mean difference in points, paired by
        seed, with an interval where there are two seeds, their number, and "*" where the interval has no zero.

    Examples
    --------
    >>> common = {"model": "wrn-10-1", "dataset_label": "digits", "training_images": 10, "pruning_factor": 4}
    >>> run = lambda variant, seed, accuracy: common | {
    ...     "variant": variant, "seed": seed, "epochs": [{"phase": "prune", "accuracy": accuracy}]
    ... }
    >>> ones = [run("quick", 0, 0.6), run("quick", 1, 0.61), run("log barrier", 0, 0.5), run("log barrier", 1, 0.51)]
    >>> (table,) = parts_tables(ones).values()
    >>> table.loc["log barrier", "4x"]
    '+10.00 ± 0.00 (2) *'
    """
    found, tables = _pairs(trainings), {}
    if "quick" not in found:
        return {}
    parts = [part for part in (parts or sorted(found)) if part != "quick" and part in found]
    leads = -found[parts].sub(found["quick"], axis="index")
    for (network, images, epochs), group in leads.groupby(level=["network", "images", "epochs"]):
        told = {
            f"{factor:g}x": group.xs(factor, level="factor").apply(_told)
            for factor in sorted(group.index.unique("factor"))
        }
        table = pd.DataFrame(told)
        table = table.loc[(table != "").any(axis="columns"), (table != "").any()].rename_axis("without")
        if len(table):
            tables[f"{network}, {images} images, {epochs} epochs"] = table
    return tables


def against(trainings: Iterable[Mapping], one: str, other: str) -> tuple[int, int, int]:
    """Count the pairs of trainings in which one variant ends higher than another, lower, and as high.

    Parameters
    ----------
    trainings : iterable of mapping
        Records of ``bench/ablation.py``. A pair has network, images, epochs, factor and seed in common.
    one, other : str
        Variants.

    Returns
    -------
    higher, lower, equal : int

    Examples
    --------
    >>> common = {"model": "wrn-10-1", "dataset_label": "digits", "training_images": 10, "pruning_factor": 4, "seed": 0}
    >>> run = lambda variant, accuracy: {"variant": variant, "epochs": [{"phase": "prune", "accuracy": accuracy}]}
    >>> against([common | run("quick", 0.6), common | run("fixed margin", 0.5)], "quick", "fixed margin")
    (1, 0, 0)
    """
    found = _pairs(trainings)
    if not {one, other} <= set(found):
        return 0, 0, 0
    leads = (found[one] - found[other]).dropna().round(9)
    return int((leads > 0).sum()), int((leads < 0).sum()), int((leads == 0).sum())


def made_twice(trainings: Iterable[Mapping], runs: pd.DataFrame) -> dict[float, pd.Series]:
    """Return by how much trainings with ``quick`` end above BAR's runs, which are the same trainings.

    On one kind of processor, a training is repeated bit by bit; on another, it ends as with other chance.

    Parameters
    ----------
    trainings : iterable of mapping
        Records of ``bench/ablation.py``.
    runs : pandas.DataFrame
        One footing of `by_footing`.

    Returns
    -------
    dict of float to Series
        By factor: points of validation accuracy, by seed, of what is recorded in both.
    """
    bars, twice = runs[runs.variant == "bar"], {}
    for one in trainings:
        same = (bars.pruning_factor == one["pruning_factor"]) & (bars.seed == one["seed"])
        for name in ("model", "dataset_label", "training_images"):
            same &= bars[name] == one[name]
        for run in bars[same].itertuples() if one["variant"] == "quick" else ():
            if phases_text(run) == phases_text(pd.Series(one)):
                lead = 100 * (one["epochs"][-1]["accuracy"] - run.validation_accuracy)
                twice.setdefault(run.pruning_factor, {})[run.seed] = lead
    return {factor: pd.Series(leads) for factor, leads in sorted(twice.items())}


def parts_told(table: pd.DataFrame) -> str:
    """Say which differences of one of `parts_tables` can be told, those with a star.

    Examples
    --------
    >>> parts_told(pd.DataFrame({"4x": ["+0.37 ± 0.80 (3)"], "16x": ["+9.10 ± 2.30 (3) *"]}, ["log barrier"]))
    'of its 2 differences, 1 can be told: log barrier at 16x (+9.10)'
    """
    cells = [(part, factor, text) for factor, column in table.items() for part, text in column.items() if text]
    told = [f"{part} at {factor} ({text.split()[0]})" for part, factor, text in cells if text.endswith("*")]
    return f"of its {len(cells)} differences, {len(told) or 'none'} can be told" + ": " * bool(told) + "; ".join(told)


def _told(leads: pd.Series) -> str:
    leads = leads.dropna()
    if leads.empty:
        return ""
    told = abs(leads.mean()) > half_width(leads)  # of one seed, that is NaN
    return f"{mean_change(leads)} ({len(leads)})" + (" *" if told else "")


STARTS = {  # variants of ``bench/ablation.py --trained``, and one that begins with new weights
    "trained start": "trained weights", "trained start, open gates": "… open gates",
    "trained start, slower weights": "… slower weights", "trained start, both": "… both",
    "trained start, no distillation": "… no teacher", "quick": "new weights",
}  # fmt: skip


def starts_table(trainings: Iterable[Mapping]) -> pd.DataFrame:
    """Return what BAR keeps on validation images when it begins with trained weights, by what it does otherwise.

    Parameters
    ----------
    trainings : iterable of mapping
        Records of ``bench/ablation.py``; those of other variants than `STARTS` are left out.

    Returns
    -------
    DataFrame
        A row for each factor and start, as text: the number of seeds, mean accuracy in percent, and changes in points,
        paired by seed, with an interval where there are two: against the unpruned network, and against "trained
        weights". Empty if there is no such record.
    """
    found = pd.DataFrame(
        [
            {
                "factor": one["pruning_factor"], "seed": one["seed"], "start": STARTS[one["variant"]],
                "accuracy": 100 * one["epochs"][-1]["accuracy"], "unpruned": 100 * one["validation_accuracy_unpruned"],
            }
            for one in trainings if one["variant"] in STARTS
        ],
        columns=["factor", "seed", "start", "accuracy", "unpruned"],
    )  # fmt: skip
    usual, *others = STARTS.values()
    base = found[found.start == usual].set_index(["factor", "seed"]).accuracy
    rows = []
    for (factor, start), part in found.groupby(["factor", "start"]):
        part = part.set_index(["factor", "seed"])
        paired = (part.accuracy - base).dropna()
        change = mean_change(part.accuracy - part.unpruned)
        gain = mean_change(paired) if start in others and len(paired) else ""
        rows.append([f"{factor:g}", start, len(part), f"{part.accuracy.mean():.1f}", change, gain])
    rows.sort(key=lambda row: (float(row[0]), [usual, *others].index(row[1])))
    columns = ["factor", "start", "seeds", "accuracy (%)", "against unpruned", f"against {usual}"]
    return pd.DataFrame(rows, columns=columns).set_index(["factor", "start"])


def steps_followed(trainings: Iterable[Mapping]) -> pd.DataFrame:
    """Return V and b after steps of the pruning, for `bar.figures.following`; V is counted by reachability.

    Parameters
    ----------
    trainings : iterable of mapping
        Records of ``bench/ablation.py`` with "steps": pairs of V and b, as fractions of V_F.

    Returns
    -------
    DataFrame
        Time is in percent of the pruning, and lines have the names of variants. Empty if there are none.
    """
    parts = []
    for one in trainings:
        if one.get("steps"):
            part = pd.DataFrame(one["steps"], columns=["size", "budget"])
            epochs = sum(epoch["phase"] != "cut" for epoch in one["epochs"])
            part = part.assign(size_min=part["size"], size_max=part["size"], time=100 * (part.index + 1) / len(part))
            part = part.assign(name=f"{one['model']}, {epochs} epochs", variant=one["variant"])
            parts.append(part.assign(factor=one["pruning_factor"], seed=one["seed"]))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def due_features(trainings: Iterable[Mapping]) -> dict[tuple[str, float], tuple[int, int, int]]:
    """Count, by name and factor, seeds, features that were due to be cut, and those of them that were alive again."""
    noted = {}
    for one in trainings:
        _, cut = _pruning_and_cut(one)
        if "due" in cut:
            noted.setdefault((one["name"], one["pruning_factor"]), []).append((cut["due"], cut["due_and_alive"]))
    return {
        key: (len(counts), *(sum(column) for column in zip(*counts, strict=True)))
        for key, counts in sorted(noted.items(), key=lambda item: item[0][1])
    }
