"""Means over seeds, and how far they may be off."""

import pandas as pd
from scipy.special import stdtrit


def half_width(values: pd.Series) -> float:
    """Return half the width of Student's 95 % interval for the mean; NaN if there are fewer than two values.

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
    return float(stdtrit(n - 1, 0.975) * values.std() / n**0.5) if n > 1 else float("nan")


def plus_minus(value: float, width: float, sign: str = "", digits: int = 2) -> str:
    """Format a number with the half width of its interval, which is left out if it is NaN.

    Parameters
    ----------
    value, width : float
        The number, and the half width of its interval.
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
    >>> plus_minus(-1e-9, 0.25, "+")
    '+0.00 ± 0.25'
    """
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}" + ("" if pd.isna(width) else f" ± {width:.{digits}f}")


def mean_change(values: pd.Series, digits: int = 2) -> str:
    """Format the mean with its sign, and `half_width` where there are at least two values.

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
