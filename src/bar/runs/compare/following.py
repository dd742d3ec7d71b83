"""How closely trainings follow their budget, and the effect on accuracy: chapter 12."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from bar.runs.compare.statistics import mean_change
from bar.runs.compare.words import short_commit

TARGETS = {  # measure of how closely a training follows its budget -> least and largest value aimed at
    "V below b, % of steps: ≥ 98": (98.0, float("inf")),
    "smallest V/B: ≥ 0.9": (0.9, float("inf")),
    "largest rise, % of V_F: ≤ 5": (float("-inf"), 5.0),
    "V/B before the last step: 0.95 to 1": (0.95, 1.0),
}


def recorded(folder: str | Path, pattern: str) -> dict[str, dict]:
    """Read JSON files, by name, in the order of the number that ends their names.

    What was called "quick" before the lower margin of that preset followed b is called "fixed margin".

    Examples
    --------
    >>> recorded("nowhere", "*.json")
    {}
    """
    paths = Path(folder).glob(pattern)
    ordered = sorted(paths, key=lambda path: (path.stem.rpartition("-")[2].zfill(4), path.name))
    return {path.name: _renamed(json.loads(path.read_text())) for path in ordered}


def _renamed(record: dict) -> dict:
    if "variant" not in record or record["settings"].get("follow"):
        return record
    return record | {"variant": record["variant"].replace("quick", "fixed margin")}


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
    """Return a table of what each variant changes against the one called ``start``, or else against the first."""
    lines = {}  # by name and settings, as records of one name may have different settings
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
    """Return V and b after each pruning epoch, over V_F, as `bar.figures.following` draws them; may be empty."""
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
    """Return the four numbers of `TARGETS` of one training, and its changes of validation accuracy in points."""
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
        rows.append([factor, name, len(group), *cells, f"{met} of {len(TARGETS)}", f"{group.close.mean():.2f}", met])
    columns = ["factor", "variant", "seeds", *TARGETS, "targets met", "V/b, mean", "met"]
    return pd.DataFrame(rows, columns=columns)


def accuracy_changes(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Return a table of validation accuracies in rows of `measured`: changes by pruning, mean ± 95 %."""
    rows = [
        [name, f"{factor:g}", len(group), f"{group.unpruned.mean():.2f}"]
        + [mean_change(group[when]) for when in ("after the cut", "at the end")]
        for (name, factor), group in outcomes.groupby(["variant", "factor"], sort=False)
    ]
    columns = ["variant", "factor", "seeds", "unpruned (%)", "after the cut (points)", "at the end (points)"]
    return pd.DataFrame(rows, columns=columns).set_index(["variant", "factor"])


def lengths_table(trainings: Iterable[Mapping]) -> tuple[pd.DataFrame, int]:
    """Return a row a training, `TARGETS` (with "(no)" if missed) and accuracy, and how many trainings meet them all."""
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


NEAR = 0.9  # of the steps: how many are to be near the margin


def near_table(trainings: Iterable[Mapping]) -> tuple[pd.DataFrame, dict[str, tuple[int, int]]]:
    """Return how often V was near b, 0.8 <= V / b <= 1, and how many trainings of each variant were so often enough.

    Parameters
    ----------
    trainings : iterable of mapping
        Records of ``bench/ablation.py`` with "near", the share of the steps from a tenth of the pruning on.

    Returns
    -------
    table : DataFrame
        In percent, the lowest over the seeds, as text; a row for each network, length and factor, a column a variant.
    enough : dict of str to (int, int)
        Variant -> trainings with at least `NEAR` of the steps near b, and all of them.
    """
    rows = [
        {
            "network": one["model"], "epochs": sum(epoch["phase"] != "cut" for epoch in one["epochs"]),
            "factor": one["pruning_factor"], "variant": one["variant"], "near": one["near"],
        }
        for one in trainings if one.get("near") is not None
    ]  # fmt: skip
    if not rows:
        return pd.DataFrame(), {}
    frame = pd.DataFrame(rows)
    enough = {name: (int((part >= NEAR).sum()), len(part)) for name, part in frame.groupby("variant").near}
    lowest = 100 * frame.groupby(["network", "epochs", "factor", "variant"]).near.min()
    table = lowest.unstack().map(lambda share: "" if pd.isna(share) else f"{share:.0f}")
    table.index = table.index.map(lambda key: (key[0], key[1], f"{key[2]:g}"))
    return table.rename_axis(columns=None).rename_axis(["network", "epochs", "factor"]), enough


def gains_table(trainings: Iterable[Mapping], variant: str = "following", other: str = "fixed margin") -> pd.DataFrame:
    """Return what a variant keeps more than another on validation images, paired by network, images, length and seed.

    Parameters
    ----------
    trainings : iterable of mapping
        Records of ``bench/ablation.py``.
    variant, other : str

    Returns
    -------
    DataFrame
        A row for each network, images, length and factor that has both: mean accuracies in percent, the number of
        pairs and their mean difference in points, with an interval, as text.
    """
    rows = [
        {
            "network": one["model"], "images": f"{one['dataset_label']}, {one['training_images']:,}",
            "epochs": sum(epoch["phase"] != "cut" for epoch in one["epochs"]), "factor": one["pruning_factor"],
            "seed": one["seed"], "variant": one["variant"], "accuracy": 100 * one["epochs"][-1]["accuracy"],
        }
        for one in trainings if one["variant"] in (variant, other)
    ]  # fmt: skip
    keys = ["network", "images", "epochs", "factor"]
    if len({row["variant"] for row in rows}) < 2:
        return pd.DataFrame()
    pairs = pd.DataFrame(rows).set_index([*keys, "seed", "variant"]).accuracy.unstack().dropna()
    table = pd.DataFrame(
        {
            (*key[:-1], f"{key[-1]:g}"): {
                f"{other} (%)": f"{part[other].mean():.1f}", f"{variant} (%)": f"{part[variant].mean():.1f}",
                "pairs": len(part), "difference (points)": mean_change(part[variant] - part[other]),
            }
            for key, part in pairs.groupby(level=keys)
        }
    )  # fmt: skip
    return table.T.rename_axis(keys)


STARTS = {  # variants of ``bench/ablation.py --trained``, and one that begins with new weights
    "trained start": "trained weights", "trained start, open gates": "… open gates",
    "trained start, slower weights": "… slower weights", "trained start, both": "… both",
    "trained start, no distillation": "… no teacher", "following, cap 100, travel 120": "new weights",
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
    columns = ["factor", "start", "seeds", "kept (%)", "against unpruned", f"against {usual}"]
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
        Time is in percent of the pruning. Empty if there are none.
    """
    parts = []
    for one in trainings:
        if one.get("steps"):
            part = pd.DataFrame(one["steps"], columns=["size", "budget"])
            epochs = sum(epoch["phase"] != "cut" for epoch in one["epochs"])
            part = part.assign(size_min=part["size"], size_max=part["size"], time=100 * (part.index + 1) / len(part))
            name = f"{one['model']}, {epochs} epochs: {one['variant']}"
            parts.append(part.assign(name=name, factor=one["pruning_factor"], seed=one["seed"]))
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
