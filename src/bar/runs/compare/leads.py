"""By how much one method is above another, paired by seed, and whether that can be told."""

from collections.abc import Mapping

import pandas as pd

from bar import methods
from bar.runs.compare.footings import FACTORS
from bar.runs.compare.rankings import paired
from bar.runs.compare.statistics import half_width, mean_change
from bar.runs.compare.words import short


def verdict(differences: pd.Series) -> str:
    """Judge a claim that differences, one a seed, are above 0, by Student's 95 % interval for their mean.

    Examples
    --------
    >>> verdict(pd.Series([1.0, 1.1, 0.9])), verdict(pd.Series([1.0, -1.1])), verdict(pd.Series([3.0]))
    ('holds', 'cannot be told', 'cannot be told')
    """
    if len(differences) < 2:
        return "cannot be told" if len(differences) else "not recorded"
    mean, width = differences.mean(), half_width(differences)
    return "holds" if mean > width else "does not hold" if mean < -width else "cannot be told"


def by_factor(differences: Mapping[float, pd.Series]) -> tuple[str, str]:
    """Return the mean differences in points and the verdicts of a claim that is made at several factors, as text.

    Examples
    --------
    >>> by_factor({4: pd.Series([1.0, 1.1]), 16: pd.Series([2.0])})
    ('4x: +1.05 ± 0.64 (2 seeds); 16x: +2.00 (1 seed)', 'holds at 4x; cannot be told at 16x')
    """
    there = {f"{factor:g}x": values for factor, values in differences.items() if len(values)}
    if not there:
        return "", "not recorded"
    text = "; ".join(f"{f}: {mean_change(v)} ({len(v)} seed{'s' * (len(v) > 1)})" for f, v in there.items())
    return text, _verdicts(there)


def _verdicts(differences: Mapping[str, pd.Series]) -> str:
    said: dict[str, list[str]] = {}
    for factor, values in differences.items():
        said.setdefault(verdict(values), []).append(factor)
    return "; ".join(f"{what} at {', '.join(factors)}" for what, factors in said.items()) or "not recorded"


def ahead(runs: pd.DataFrame, one: str, other: str) -> dict[float, pd.Series]:
    """Return by how many points one variant is above another, by factor and seed.

    Parameters
    ----------
    runs : pandas.DataFrame
        One footing of `by_footing`.
    one, other : str

    Returns
    -------
    dict of float to pandas.Series
        Factor -> differences by seed; only factors that both have.
    """
    some = runs[runs.variant.isin([one, other])]
    parts = {factor: part for factor, part in some.groupby("pruning_factor") if part.variant.nunique() == 2}
    return {factor: paired(part, one, other) for factor, part in parts.items()}


def always_ahead(runs: pd.DataFrame, other: str) -> tuple[str, str]:
    """Report by how much BAR is above another method, and which of the paper's factors are not recorded."""
    leads = ahead(runs, "bar", other)
    text, said = by_factor(leads)
    lacking = [f"{x}x" for x in FACTORS if x not in leads]
    return text, f"{said}; not recorded at {', '.join(lacking)}" if text and lacking else said


def ahead_of_rivals(runs: pd.DataFrame, one: str = "bar") -> pd.DataFrame:
    """Return BAR's lead over every other method in points, factor by factor, with an interval and a verdict.

    Parameters
    ----------
    runs : pandas.DataFrame
        One footing of `by_footing`.
    one : str
        The variant whose lead it is: BAR itself, or ``"bar, distill False"``, without its teacher.

    Returns
    -------
    pandas.DataFrame
        A row a method, and another for one that is recorded with a teacher; a column a factor, as text.
    """
    rows = {}
    for method in (m for m in methods.STRUCTURED if m != "bar"):
        for other, name in ((method, short(method)), (f"{method}, distill True", f"{short(method)}, with a teacher")):
            leads = ahead(runs, one, other)
            if leads or other == method:
                rows[name] = {f"{x:g}x": f"{mean_change(v)} ({len(v)}): {verdict(v)}" for x, v in leads.items()}
    table = pd.DataFrame(rows).T.fillna("not recorded")
    order = sorted(table.columns, key=lambda name: float(name[:-1]))
    return table[order].rename_axis("BAR above")


def gains_of_teachers(runs: pd.DataFrame) -> str:
    """Say by how much rivals that are recorded with a teacher, too, are above themselves without.

    Parameters
    ----------
    runs : pandas.DataFrame
        One footing of `by_footing`.

    Returns
    -------
    str
        Empty if there is none.

    Examples
    --------
    >>> rows = [("l0", 1, 0.6), ("l0", 2, 0.6), ("l0, distill True", 1, 0.71), ("l0, distill True", 2, 0.7)]
    >>> runs = pd.DataFrame(rows, columns=["variant", "seed", "change"]).assign(pruning_factor=4.0)
    >>> gains_of_teachers(runs)
    'LZR +0.10 ± 0.06 (2 seeds) at 4x, which can be told'
    """
    said = []
    for method in (m for m in methods.STRUCTURED if m != "bar"):
        for factor, gains in ahead(runs, f"{method}, distill True", method).items():
            seeds = f"{len(gains)} seed{'s' * (len(gains) > 1)}"
            told = "" if verdict(gains) == "cannot be told" else ", which can be told"
            said.append(f"{short(method)} {mean_change(gains)} ({seeds}) at {factor:g}x{told}")
    return "; ".join(said)


def told_apart(runs: pd.DataFrame, one: str = "bar") -> str:
    """Say of how many other methods one is above or below, factor by factor; BAR does not count among the others.

    Parameters
    ----------
    runs, one
        As for `ahead_of_rivals`, or another method; those with a teacher that they have not in the paper do not count.

    Examples
    --------
    >>> rows = [("bar", 1, 0.9), ("bar", 2, 0.8), ("uniform", 1, 0.7), ("uniform", 2, 0.61)]
    >>> runs = pd.DataFrame(rows, columns=["variant", "seed", "change"]).assign(pruning_factor=4.0)
    >>> told_apart(runs)
    'above 1 of 1 at 4x'
    """
    leads = [ahead(runs, one, method) for method in methods.STRUCTURED if method not in ("bar", one)]
    said = []
    for factor in sorted({x for lead in leads for x in lead}):
        verdicts = [verdict(lead[factor]) for lead in leads if factor in lead]
        below = verdicts.count("does not hold")
        said.append(f"above {verdicts.count('holds')} of {len(verdicts)} at {factor:g}x")
        said[-1] += f" and below {below}" if below else ""
    return ", ".join(said)
