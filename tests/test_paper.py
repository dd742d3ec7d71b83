"""The paper's tables against check sums of its text.

The sums were obtained apart from the transcription: the text was cut at its section headings, all numbers of a section
were pulled out by regular expressions that know nothing of columns or methods, and added as decimals. Numbers of a
result (V factor, F factor, accuracy) were also compared as triples in that way: all 112 agree.
"""

from decimal import Decimal
from importlib.resources import files

import pandas as pd
import pytest

from bar import paper
from bar.errors import BarError


def total(name: str, where: str, column: str) -> Decimal:
    """Sum of a column as printed, without binary rounding."""
    with files("bar.paper").joinpath(name).open() as file:
        rows = pd.read_csv(file, dtype=str)
    return sum(map(Decimal, rows[rows.dataset == where][column]), Decimal(0))


@pytest.mark.parametrize(
    ("dataset", "v_factors", "f_factors", "accuracies", "daggers"),
    [
        ("CIFAR-10", "269.7", "2887.1", "36.0865", 5),
        ("CIFAR-100", "242.9", "2342.4", "23.9896", 4),
        ("Mio-TCD", "256.0", "2831.1", "34.0126", 0),
    ],
)
def test_pruning_results_check_sums(dataset, v_factors, f_factors, accuracies, daggers):
    expected = {"v_factor": v_factors, "f_factor": f_factors, "accuracy": accuracies}
    assert {column: total("supp6.csv", dataset, column) for column in expected} == {
        column: Decimal(value) for column, value in expected.items()
    }
    table = paper.table("pruning_results")
    assert table[table.dataset == dataset].dagger.sum() == daggers


def test_pruning_results_rows():
    """Four results a method and data set; the two that cannot aim at a budget have more; a FLOP budget once."""
    table = paper.table("pruning_results")
    counts = table.groupby(["dataset", "method"]).size().unstack(fill_value=0)
    more = {"l0": [5, 5, 6], "information-bottleneck": [7, 7, 6], "bar-flops": [4, 0, 0]}
    assert counts.index.tolist() == ["CIFAR-10", "CIFAR-100", "Mio-TCD"]
    for method in counts:
        assert counts[method].tolist() == more.get(method, [4, 4, 4])
    assert table.groupby("method").paper_name.unique().str.join("").to_dict() == {
        "random": "Random",
        "vector-quantization": "VQ",
        "magnitude": "WM",
        "interpolative": "ID",
        "bar": "Ours",
        "bar-flops": "Ours (F-trained)",
        "l0": "LZR",
        "information-bottleneck": "IB",
        "morphnet": "MorphNet",
    }
    assert table.dagger.dtype == bool


def test_pruning_results_method_by_method():
    """A check sum of a data set does not see rows that go to another method. These sums are the transcription's own,
    taken after each method's block was read against the text."""
    table = paper.table("pruning_results")
    sums = table.groupby(["dataset", "method"], sort=False).accuracy.sum().round(4)
    assert sums["CIFAR-10"].tolist() == [3.4363, 3.5534, 3.5832, 3.5982, 3.6990, 4.5737, 6.3132, 3.6323, 3.6972]
    assert sums["CIFAR-100"].tolist() == [2.3925, 2.6492, 2.6249, 2.6420, 2.9079, 3.5195, 4.6092, 2.6444]
    assert sums["Mio-TCD"].tolist() == [3.7057, 3.7767, 3.7898, 3.7842, 3.8180, 5.7095, 5.5911, 3.8376]
    monotone = table.groupby(["dataset", "method"]).v_factor.apply(lambda factors: factors.is_monotonic_increasing)
    assert monotone.all()


def test_daggers_are_where_the_text_has_them():
    marked = paper.table("pruning_results").query("dagger")
    assert [*zip(marked.dataset, marked.method, marked.v_factor, strict=True)] == [
        ("CIFAR-10", "bar", 7.9),
        ("CIFAR-10", "bar", 15.8),
        ("CIFAR-10", "morphnet", 7.9),
        ("CIFAR-10", "morphnet", 15.8),
        ("CIFAR-10", "bar-flops", 4.4),
        ("CIFAR-100", "bar", 7.9),
        ("CIFAR-100", "bar", 15.8),
        ("CIFAR-100", "morphnet", 7.9),
        ("CIFAR-100", "morphnet", 15.8),
    ]


def test_mixed_connectivity_check_sums():
    table = paper.table("mixed_connectivity")
    sums = table.drop(columns=["dataset", "pruning_factor"]).sum()
    assert sums.to_dict() == {
        "volume_regular": 14_506_000,
        "volume_mixed": 9_313_000,
        "volume_change_percent": -502,
        "flop_regular": 13_178_800_000,
        "flop_mixed": 9_330_400_000,
        "flop_change_percent": -447,
    }
    assert table.groupby("dataset").pruning_factor.apply(list).tolist() == 3 * [[2, 4, 8, 16]]


def test_table_2_is_supplement_5():
    """Table 2 restates the printed changes of V, all twelve.

    Those are the rounded ratios of the printed volumes, but for two: 42.48 % printed as 43 % (CIFAR-10, 4x) and
    48.497 % as 49 % (CIFAR-100, 4x); of FLOPs, 40.54 % as 40 % (CIFAR-100, 4x). Volumes printed with three digits
    allow all three.
    """
    reduction, detail = paper.table("mixed_reduction"), paper.table("mixed_connectivity")
    both = reduction.merge(detail, on=["dataset", "pruning_factor"], validate="one_to_one")
    assert len(both) == 12
    assert both.reduction_percent.tolist() == (-both.volume_change_percent).tolist()
    for what, exceptions in {"volume": [("CIFAR-10", 4), ("CIFAR-100", 4)], "flop": [("CIFAR-100", 4)]}.items():
        change = 100 * (both[f"{what}_mixed"] / both[f"{what}_regular"] - 1)
        error = (change - both[f"{what}_change_percent"]).abs()
        odd = both[error > 0.5]
        assert [*zip(odd.dataset, odd.pruning_factor, strict=True)] == exceptions
        assert error.max() < 0.6


def test_configurations():
    """Table 1, and in its caption the unpruned network."""
    table = paper.table("configurations")
    assert table.accuracy_percent.dropna().tolist() == [90.90, 92.70, 91.62]
    assert table.change_percent.dropna().tolist() == [-1.37, -0.40, -0.87, -0.92]
    assert table.pruning_factor.tolist() == [1, 2, 16, 2, 16, 2, 16]
    results = paper.table("pruning_results").query("dataset == 'CIFAR-10' and method == 'bar'")
    assert (100 * results.accuracy).iloc[[0, 3]].tolist() == pytest.approx([92.70, 91.62])  # the same two runs


def test_unknown_table():
    with pytest.raises(BarError, match="did you mean 'pruning_results'"):
        paper.table("pruning_result")
