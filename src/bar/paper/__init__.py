"""The tables of Lemaire, Achkar & Jodoin (2019), as printed; never mixed with numbers of ours."""

from importlib.resources import files

import pandas as pd

from ..errors import BarError, nearest

_FILES = {
    "configurations": "table1.csv",
    "mixed_reduction": "table2.csv",
    "mixed_connectivity": "supp5.csv",
    "pruning_results": "supp6.csv",
}


def table(name: str) -> pd.DataFrame:
    """One of the paper's tables.

    ============================ ================================================================================
    ``configurations``           Table 1: accuracy (percent) on CIFAR-10, and its change without a part of BAR
                                 (as printed: the paper does not say of what those percents are)
    ``mixed_reduction``          Table 2: percent of volume that mixed connectivity saves
    ``mixed_connectivity``       Supplement 5: V and FLOPs with regular and with mixed blocks, the change in percent
    ``pruning_results``          Supplement 6: ``v_factor``, ``f_factor`` (V_F / V and its like for FLOPs; 1 is
                                 unpruned) and test ``accuracy`` in [0, 1] of every method on three data sets
    ============================ ================================================================================

    In ``pruning_results``, ``method`` is what `bar run --method` calls it and ``paper_name`` what the paper does;
    ``bar-flops`` is BAR with a FLOP budget. ``dagger`` marks rows that the paper marks as slightly below target
    because of a miscalculated network size (by the F factor in ``bar-flops``, by the V factor elsewhere).

    Parameters
    ----------
    name : str
        One of the four above.

    Returns
    -------
    pandas.DataFrame
        A row for each number or result, in the paper's order; data sets are ``CIFAR-10``, ``CIFAR-100``, ``Mio-TCD``.

    Raises
    ------
    BarError
        If there is no such table.

    Examples
    --------
    >>> results = table("pruning_results")
    >>> results.query("dataset == 'CIFAR-10' and method == 'bar'").accuracy.tolist()
    [0.927, 0.9278, 0.928, 0.9162]
    """
    if name not in _FILES:
        raise BarError(f"the paper has no table {name!r}: {nearest(name, _FILES)}")
    with files(__package__).joinpath(_FILES[name]).open() as file:
        return pd.read_csv(file)
