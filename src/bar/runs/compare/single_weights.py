"""Methods that zero single weights: what they keep, and what their works claim (chapter 13)."""

import pandas as pd

from bar.runs.compare.footings import of_one_kind, prepared
from bar.runs.compare.leads import ahead, by_factor
from bar.runs.compare.statistics import mean_change
from bar.runs.compare.words import short


def _single_weights(found: pd.DataFrame) -> pd.DataFrame:
    single = found[found.metric == "weights"] if len(found) else found
    return of_one_kind(prepared(single)) if len(single) else single


def weights_tables(found: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return test accuracies of the methods that zero single weights, by footing: a row a method, a column a rate.

    A cell has the mean accuracy in percent, in points, the mean change with Student's 95 % interval over the seeds, and
    their number.

    Parameters
    ----------
    found : pandas.DataFrame
        As `bar.runs.records` gives them.
    """
    single, tables = _single_weights(found), {}
    for footing, part in single.groupby("footing") if len(single) else ():
        groups = part.assign(removed=1 - 1 / part.pruning_factor).groupby(["variant", "removed"])
        cells = groups.apply(lambda one: f"{100 * one.accuracy.mean():.2f} ({mean_change(one.change)}; {len(one)})")
        table = cells.unstack(fill_value="").rename(columns=lambda share: f"{100 * share:.4g}% removed", index=short)
        tables[footing] = table.rename_axis("method").rename_axis(columns=None)
    return tables


def weights_claims_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return what the works that zero single weights claim, and what recorded runs say of it; as `claims_table`.

    Parameters
    ----------
    found : pandas.DataFrame
        As `bar.runs.records` gives them.
    """
    compared = _single_weights(found)
    claims = (  # and the factor that they begin at
        ("Reparametrization is better than MP", "poster", "reparametrization", "mp", 1),
        ("Reparametrization is better than MP+FT at very high rates", "poster", "reparametrization", "mp-ft", 20),
        ("Learning-Compression is better than MP+FT", "LC", "learning-compression", "mp-ft", 1),
    )
    rows = [
        {"claim": claim, "where": where, "on": footing} | dict(
            zip(("here", "verdict"), by_factor(ahead(part[part.pruning_factor >= least], one, other)), strict=True))
        for footing, part in compared.groupby("footing") for claim, where, one, other, least in claims
    ] if len(compared) else []  # fmt: skip
    return pd.DataFrame(rows, columns=["claim", "where", "on", "here", "verdict"]).set_index("claim")
