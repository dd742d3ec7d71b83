"""Choice of runs that can be compared: on one footing, and of one kind for each variant; and what is missing."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from bar import methods
from bar.errors import BarError
from bar.methods import own
from bar.runs.compare.words import as_text
from bar.runs.config import RunConfig

FACTORS = (2, 4, 8, 16)  # of the paper
SHARED = (  # settings that runs on one footing have in common
    *("prune_epochs", "finetune_epochs", "cooldown_epochs", "unpruned_epochs"),
    *("batch_size", "lr", "cooldown_lr", "weight_decay"),
)
OWN = {  # method -> prefixes of settings that only some methods have
    "bar": ("gate_", "lam", "pressure", "b_start", "cap", "reach", "aim", "follow", "patience"),
    "l0": ("l0_", "first_", "gate_lr"),
    "information-bottleneck": ("ib_", "first_", "gate_lr"),
    "morphnet": ("morphnet_",),
    "uniform": ("uniform_",),
    **dict.fromkeys(methods.ITERATIVE, ("halving_",)),
    "learning-compression": ("lc_",),
    "reparametrization": ("reparametrization_",),
}


def of_method(settings: Mapping, method: str) -> str:
    """Return the settings that concern a method, as text.

    Examples
    --------
    >>> of_method({"lr": 0.1, "lam": 1, "follow": 0.9, "morphnet_pressure": 2}, "morphnet")
    '{"lr": 0.1, "morphnet_pressure": 2}'
    """
    mine = OWN.get(method, ())  # nothing of the unpruned network, say
    foreign = tuple({prefix for prefixes in OWN.values() for prefix in prefixes} - set(mine))
    return as_text({k: v for k, v in settings.items() if k.startswith(mine) or not k.startswith(foreign)})


def todays(run: pd.Series) -> bool:
    """Whether a run's settings are those that the same run would have today; of your own methods, the source tells."""
    if own.is_own(run.method):  # whose file is not run to read a record
        return True
    epochs = tuple(run.epochs) if isinstance(run.epochs, list) else None
    options = run.options if isinstance(run.get("options"), dict) else {}
    batch = run.get("batch_size")
    try:
        now = RunConfig(
            method=run.method, preset=run.preset, epochs=epochs, options=options,
            batch_size=int(batch) if batch and batch == batch else None,  # NaN where a record has none
        ).recorded_settings()  # fmt: skip
    except BarError:  # there is no such method, preset or option any more
        return False
    known = {key: value for key, value in run.settings.items() if key in now}
    now = {key: value for key, value in now.items() if key in known}  # old records lack some
    return of_method(now, run.method) == of_method(known, run.method)


CHOICES = ("metric", "schedule", "distill", "start", "options")  # fields that make another variant of a method


def unusual(run: pd.Series, keys: Iterable[str] = CHOICES) -> list[str]:
    """Return the choices of a run that are not the defaults of its method, each as ``name value``.

    Options of BAR are choices; those of its rivals, such as a sparsity weight, are tuned for each budget.

    Examples
    --------
    >>> unusual(pd.Series({"method": "bar", "metric": "flops", "schedule": "sigmoid", "distill": True}))
    ['metric flops']
    """
    usual = RunConfig(method=run.method if run.method in methods.NAMES else "uniform")  # no file is run for this
    chosen = [key for key in keys if isinstance(run.get(key), str | bool | np.bool_)]  # not NaN
    options = run.options if run.method == "bar" and "options" in keys and isinstance(run.get("options"), dict) else {}
    given = [f"{key} {run[key]}" for key in chosen if run[key] != getattr(usual, key)]
    return given + [f"{name} {value}" for name, value in options.items()]


def variant(run: pd.Series) -> str:
    """Return a run's method and choices that are not the default; ``bar-flops`` is BAR with a budget of FLOPs.

    Examples
    --------
    >>> variant(pd.Series({"method": "bar", "metric": "flops"})), variant(pd.Series({"method": "l0"}))
    ('bar-flops', 'l0')
    >>> variant(pd.Series({"method": "bar", "options": {"follow": 0.0}}))
    'bar, follow 0.0'
    """
    differs = unusual(run)
    return "bar-flops" if (run.method, differs) == ("bar", ["metric flops"]) else ", ".join([run.method, *differs])


def phases_text(run: pd.Series) -> str:
    """Return the epochs of the three phases, such as ``10+5+2``."""
    return "+".join(str(run.settings.get(f"{phase}_epochs", "?")) for phase in ("prune", "finetune", "cooldown"))


def footing(run: pd.Series) -> str:
    """Describe what runs must have in common to be compared: images, network and epochs."""
    side = "x".join(map(str, run.input_size[1:]))
    images = f"{run.training_images:,} training images"
    return f"{run.dataset_label}, {network_of(run)} at {side}, {images}, {phases_text(run)} epochs"


def network_of(run: pd.Series) -> str:
    """Return the name of a run's network, and which source and weights it comes from, where these are a user's own.

    Examples
    --------
    >>> network_of(pd.Series({"model": "nets:small", "model_source": "ab" * 32, "weights_file": float("nan")}))
    'nets:small abababab'
    """
    parts = [run.model, run.get("model_source"), run.get("weights_file"), run.get("weights_source")]
    return " ".join(f"{part:.8}" if i % 2 else part for i, part in enumerate(parts) if isinstance(part, str))


def prepared(found: pd.DataFrame) -> pd.DataFrame:
    """Add the columns by which runs are compared.

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
    found["footing"] += which_images(found, found.footing)
    return found if "search" in found else found.assign(search=None)


def which_images(found: pd.DataFrame, group: pd.Series) -> pd.Series:
    """Say which images a run has, where the runs of its group have several: as ``, images 88468def``, else nothing."""
    if "fingerprint" not in found:
        return pd.Series("", found.index)
    several = found.fingerprint.groupby(group).transform(lambda held: held.nunique(dropna=False)) > 1
    images = found.fingerprint.map(lambda held: f", images {held:.8}" if isinstance(held, str) else ", images unknown")
    return images.where(several, "")


def of_one_kind(found: pd.DataFrame) -> pd.DataFrame:
    """Keep one kind of settings for each variant and factor on each footing: today's, else the most frequent."""
    keep = []
    for _, group in found.groupby(["footing", "variant", "pruning_factor"], sort=False):
        kinds = [kind for _, kind in group.groupby("settings_text", sort=False)]
        keep.append(max(kinds, key=lambda kind: (kind.todays.any(), len(kind))))
    kept = pd.concat(keep) if keep else found
    return kept.drop_duplicates(["footing", "variant", "pruning_factor", "seed"])


def by_footing(found: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the runs of each footing that has two methods or more; the one with most methods first.

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
    """Repeat an option of the command line for each value.

    Examples
    --------
    >>> every("-x", [2, 4])
    '-x 2 -x 4'
    """
    return " ".join(f"{option} {value:g}" for value in values)


def command(run: pd.Series, *more: str) -> str:
    """Return the command for runs such as this one, without the method, the factor and the seed.

    Examples
    --------
    >>> command(pd.Series({"limit": 64.0, "epochs": [2, 1, 0]}), "-x 4")
    'bar sweep --limit 64 --epochs 2 1 0 -x 4'
    """
    usual, words = RunConfig(), ["bar sweep"]
    for key in ("dataset", "model", "preset", "size", "limit", "batch_size"):
        value, option = run.get(key), key.replace("_", "-")
        if value is not None and value == value and value != getattr(usual, key):
            words.append(f"--{option} {value:g}" if isinstance(value, float) else f"--{option} {value}")
    if isinstance(run.epochs, list):
        words.append("--epochs " + " ".join(map(str, run.epochs)))
    return " ".join([*words, *more])


def missing(runs: pd.DataFrame) -> list[str]:
    """Report what a footing lacks, in lines: how many runs of which methods, and the command that makes them.

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
    gaps, lines = {}, []  # missing factors and seeds -> methods
    for method in methods.STRUCTURED:
        lacking = tuple((factor, s) for factor in FACTORS for s in seeds if (method, factor, s) not in there)
        gaps.setdefault(lacking, []).append(method)
    for lacking, which in gaps.items():
        if lacking:
            lines.append(f"  missing: {len(lacking)} runs each of {', '.join(which)}; this makes them:")
            options = (every("-x", sorted({f for f, _ in lacking})), every("-s", sorted({s for _, s in lacking})))
            lines.append("    " + command(runs.iloc[0], *(f"-m {method}" for method in which), *options))
    return lines
