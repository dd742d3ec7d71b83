"""BAR's own runs, in groups that differ in their seeds only: chapter 6."""

from collections.abc import Iterable

import pandas as pd

from bar import paper
from bar.runs.compare.footings import network_of, of_method, phases_text, todays, unusual
from bar.runs.compare.statistics import half_width, mean_change, plus_minus
from bar.runs.compare.words import as_text, record_file, short_commit


def label(run: pd.Series) -> str:
    """Describe a run of BAR: network, images and epochs, and choices that are not the default."""
    parts = [network_of(run), run.dataset_label, f"{run.training_images:,} images", f"{phases_text(run)} epochs"]
    parts += unusual(run) + ([] if todays(run) else ["earlier settings"])
    return ", ".join(parts + (["this build"] if run.source == "this build" else []))


def alike(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """Group runs of BAR that differ in their seeds only; a run that is found in two folders counts once.

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
        network_text=[network_of(run) for _, run in runs.iterrows()],
        choices=[as_text(unusual(run)) for _, run in runs.iterrows()],
    )
    same = ["source", "dataset_label", "network_text", "training_images", "input_text", "settings_text"]
    same += ["pruning_factor", "choices", *({"fingerprint"} & {*runs})]
    return [group for _, group in runs.drop_duplicates([*same, "seed"]).groupby(same, sort=False, dropna=False)]


def summary(group: pd.DataFrame) -> dict:
    """Return what a group of `alike` is, and its `means`."""
    return {"label": label(group.iloc[0]), "usual": not unusual(group.iloc[0])} | means(group)


def means(group: pd.DataFrame) -> dict:
    """Return means over the seeds of runs that differ in nothing else: accuracies in percent, the change in points."""
    change = 100 * (group.accuracy - group.accuracy_unpruned)
    return {
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
    """Return a table of rows of `summary`, numbers as text."""
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
    """Return a table with a row a run, numbers as text.

    Parameters
    ----------
    runs : pandas.DataFrame
        In the order of the table.
    **columns
        More columns, which come first.

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
    """Return the change in percent by mixed connectivity: our groups of runs, then the paper's; a column a factor.

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
    """Return V and FLOPs with regular and with mixed connectivity: means over the seeds of each group, as text."""
    whats = {"V, regular": "volume_regular", "V, mixed": "volume"}
    whats |= {"FLOPs, regular": "flops_regular", "FLOPs, mixed": "flops"}
    rows = [
        {"runs": label(group.iloc[0]), "factor": f"{group.pruning_factor.iloc[0]:g}x", "seeds": len(group)}
        | {name: f"{group[what].mean():,.0f}" for name, what in whats.items()}
        for group in groups
    ]
    return pd.DataFrame(rows).set_index(["runs", "factor"])
