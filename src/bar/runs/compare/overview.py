"""Records at a glance, as ``bar results`` prints them: a row for runs that differ in nothing but the seed."""

from collections.abc import Mapping, Sequence

import pandas as pd

from bar import methods
from bar.errors import BarError, shown
from bar.methods import own
from bar.runs.compare.footings import footing, of_method, phases_text, todays, unusual, variant, which_images
from bar.runs.compare.groups import means
from bar.runs.compare.words import as_text
from bar.runs.config import RunConfig

# What all runs of a group have in common, besides their settings; `described` adds some of it.
SAME = (
    "dataset", "dataset_label", "training_images", "input_size", "fingerprint", "model", "model_source", "weights_file",
    "weights_source", "preset", "epochs", "method",
    "source", "what", "metric", "pruning_factor", "schedule", "distill", "start", "gates", "options",
)  # fmt: skip
# What is said of a group; percents and points are said in the names, all other numbers are as in the records.
SAID = {
    "runs": "seeds", "accuracy_percent": "pruned", "spread_points": "spread", "unpruned_percent": "unpruned",
    "change_points": "change", "interval_points": "interval", "volume_factor": "factor", "flops_factor": "flops",
}  # fmt: skip
MEANS = ("validation_accuracy", "volume", "flops", "parameters", "weights", "budget", "seconds")
COLUMNS = ("footing", *SAME, "phases", "todays_settings", *SAID, *MEANS, "seeds", "folders", "settings")
_MOST = 20  # values that a message lists


def what(run: pd.Series) -> str:
    """The method of a run, and all that is unusual about it.

    Examples
    --------
    >>> what(pd.Series({"method": "path/to/scale.py:Scale", "metric": "flops", "options": {"pressure": 2.0}}))
    'Scale, metric flops, pressure 2.0'
    """
    words = variant(run)
    if own.is_own(run.method):
        words = words.replace(run.method, run.method.rpartition(":")[2], 1)
    more = unusual(run, ("gates",)) if isinstance(run.get("gates"), str) else []
    options = run.get("options") if run.method != "bar" else None  # which `variant` has told
    more += [f"{name} {value}" for name, value in options.items()] if isinstance(options, dict) else []
    return ", ".join([words, *more])


def described(found: pd.DataFrame) -> pd.DataFrame:
    """Runs with the columns by which they are chosen and grouped, in the order of a table.

    Parameters
    ----------
    found : pandas.DataFrame
        As `bar.runs.records` gives them; may be empty. Any method, and what nobody knows any more.

    Returns
    -------
    pandas.DataFrame
        With all columns of `SAME`, ``what``, ``footing`` and ``todays``. Its index is that of ``found``.
    """
    found = found.reindex(columns=list(dict.fromkeys([*found.columns, *SAME])))
    if not len(found):
        return found.assign(footing="", todays=False, settings_text="", key="")
    for field in ("start", "gates", "options"):  # younger than some records, which are as usual there
        usual = {name: getattr(RunConfig(method=name), field) for name in set(found.method) & set(methods.NAMES)}
        found[field] = found[field].where(found[field].notna(), found.method.map(usual))
    found = found.assign(
        what=found.apply(what, axis=1),
        footing=found.apply(footing, axis=1) + ", preset " + found.preset,
        todays=found.apply(todays, axis=1),
        settings_text=found.apply(lambda run: of_method(run.settings, run.method), axis=1),
    )
    found["footing"] += which_images(found, found.footing)
    found["key"] = found[[*SAME, "settings_text"]].apply(lambda run: as_text([_plain(v) for v in run]), axis=1)
    places = {name: i for i, name in enumerate(("unpruned", *methods.METHODS))}
    order = found.assign(
        first=found.groupby("footing").ngroup(), place=found.method.map(places).fillna(len(places)),
    ).sort_values(["first", "place", "what", "metric", "pruning_factor", "todays", "key", "seed"])  # fmt: skip
    return found.loc[order.index]


def _plain(value: object) -> object:
    """JSON's own types; what a record lacks as null."""
    if isinstance(value, dict | list):
        return value
    return None if pd.isna(value) else getattr(value, "item", lambda: value)()


def chosen(runs: pd.DataFrame, wanted: Mapping[str, Sequence]) -> pd.DataFrame:
    """Those that have one of the values that are wanted of each field.

    Parameters
    ----------
    runs : pandas.DataFrame
        Of `described`.
    wanted : mapping of str to sequence
        Field -> values; all fit if there are none. A method is also found by what tables call it, such as
        ``bar-flops``, and a data set or a method of your own by the last part of its path.

    Raises
    ------
    BarError
        If a value, or all together, fit no run; the message says what there is.

    Examples
    --------
    >>> runs = pd.DataFrame({"seed": [0, 1, 1], "model": ["a", "a", "b"]})
    >>> chosen(runs, {"seed": [1], "model": ["b"]}).index.tolist()
    [2]
    >>> chosen(runs, {"seed": [2]})
    Traceback (most recent call last):
    bar.errors.BarError: no recorded run has the seed 2: there are 0, 1
    """
    for field, values in wanted.items():
        for value in values:
            if not _fits(runs, field, [value]).any():
                raise BarError(f"no recorded run has the {_words(field)} {shown(value)}: {_there(runs, field)}")
    kept = runs
    for field, values in wanted.items():
        if values:
            fitting = kept[_fits(kept, field, values)]
            if not len(fitting):
                raise BarError(f"no recorded run has all of these: for the {_words(field)}, {_there(kept, field)}")
            kept = fitting
    return kept


def _fits(runs: pd.DataFrame, field: str, values: Sequence) -> pd.Series:
    fits = runs[field].isin(values)
    if field == "method":
        fits |= runs.what.isin(values) | runs.method.map(lambda name: name.rpartition(":")[2]).isin(values)
    if field == "dataset":
        fits |= runs.dataset.map(lambda path: path.rstrip("/").rpartition("/")[2]).isin(values)
    return fits


def _words(field: str) -> str:
    return field.replace("_", " ")


def _there(runs: pd.DataFrame, field: str) -> str:
    values = sorted(set(runs[field]))
    listed = ", ".join(f"{value:g}" if isinstance(value, float) else f"{value!s:.60}" for value in values[:_MOST])
    return f"there are {listed}" + ", …" * (len(values) > _MOST)


def overview(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each group of runs that differ in their seeds only.

    Parameters
    ----------
    runs : pandas.DataFrame
        Of `described`. A seed that is recorded twice counts once.

    Returns
    -------
    pandas.DataFrame
        Columns `COLUMNS`: what the runs have in common; means over the seeds, in full precision; ``change_points``
        against the unpruned network of the same seed (not a number for that itself), and half of Student's interval at
        95 % (not a number for one seed); ``seeds`` and ``folders`` of its runs. Of runs that look alike and have other
        settings, ``what`` says so.
    """
    if not len(runs):
        return pd.DataFrame(columns=list(COLUMNS))
    rows = []
    for _, group in runs.groupby("key", sort=False):
        group, first = group.drop_duplicates("seed"), group.iloc[0]
        held = means(group)
        if first.method == "unpruned":  # which would be compared with itself
            held |= {"change": float("nan"), "interval": float("nan")}
        rows.append(
            {name: _plain(first[name]) for name in ("footing", *SAME)}
            | {"phases": phases_text(first), "todays_settings": bool(first.todays)}
            | {name: held[ours] for name, ours in SAID.items()}
            | {name: group[name].mean() if name in group else float("nan") for name in MEANS}
            | {"seeds": group.seed.tolist(), "folders": group.folder.tolist(), "settings": first.settings}
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    number = table.groupby(["footing", "what", "metric", "pruning_factor", "todays_settings"]).cumcount() + 1
    earlier = ", earlier settings" + number.map(lambda n: f" {n}" if n > 1 else "")
    return table.assign(what=table.what.where(table.todays_settings, table.what + earlier))
