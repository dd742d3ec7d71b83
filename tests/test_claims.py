"""The verdicts of chapter 13, on made-up runs whose differences and intervals are worked out by hand."""

import json
from pathlib import Path

import pandas as pd
import pytest

from bar import methods, runs
from bar.runs import compare

T_1 = 12.7062  # Student's t at 95 %, one degree of freedom


def run(variant, seed, factor, change, **more):
    usual = {"method": variant.partition(",")[0], "variant": variant, "seed": seed, "pruning_factor": factor}
    usual |= {"change": change, "used": 0.99, "volume": 20, "volume_regular": 25, "flops": 100, "flops_factor": 3.0}
    usual |= {"volume_factor": float(factor)}
    usual |= {"model": "wrn-10-1", "input_size": [3, 8, 8], "features": FULL, "features_full": FULL, "areas": AREAS}
    usual |= {"search": None, "budget": 20, "size_before_settling": 19.0}
    return usual | more


FULL = dict.fromkeys(
    ["conv1", *(f"group{i}.0.{name}" for i in (1, 2, 3) for name in ("conv1", "conv2", "shortcut"))], 4
)
AREAS = dict.fromkeys(FULL, 10)


def table_of(*rows):
    return compare.claims_table(pd.DataFrame(rows))


def test_the_three_verdicts():
    """1 and 1.2: 1.1 ± 12.7 * 0.1; 1 and 2: 1.5 ± 12.7 * 0.5."""
    assert compare.verdict(pd.Series([1.1, 1.2])) == "holds"
    assert compare.verdict(pd.Series([-1.1, -1.2])) == "does not hold"
    assert compare.verdict(pd.Series([1.0, 2.0])) == "cannot be told"
    assert compare.verdict(pd.Series([0.0, 0.0])) == "cannot be told"
    assert compare.verdict(pd.Series([9.0])) == "cannot be told"
    assert compare.verdict(pd.Series(dtype=float)) == "not recorded"


def test_claims_are_judged_seed_by_seed():
    both = [(variant, seed, change) for seed in (0, 1) for variant, change in (("bar", seed), ("uniform", seed - 5.0))]
    table = table_of(*(run(variant, seed, 16, change) for variant, seed, change in both))
    row = table.loc["Not in the paper: pruning beats training the small network from scratch"]
    assert (row.here, row.verdict) == ("16x: +5.00 ± 0.00 (2 seeds)", "holds at 16x"), "the seeds differ, not the lead"
    row = table.loc["Pruned networks are better than the unpruned one"]
    assert row.here == f"16x: +0.50 ± {T_1 / 2:.2f} (2 seeds)"
    assert row.verdict == "cannot be told at 16x"
    others = "Random, WM, VQ, ID, LZR, IB, MorphNet"
    assert table.verdict["BAR is the best at 16x"] == f"holds at 16x; not recorded: {others}"
    assert table.verdict["BAR is always better than LZR"] == "not recorded"
    row = table.loc["Pruned networks are better than the unpruned one"]
    assert row["the paper"] == (
        "on every data set; on CIFAR-10, the only one whose unpruned accuracy is printed, at 4 of 4 factors"
    )


def test_parts_of_the_method_help_where_less_is_worse():
    rows = [run("bar", seed, 2, 1.0) for seed in (0, 1)]
    rows += [run("bar, distill False", seed, 2, 0.0) for seed in (0, 1)]
    rows += [run("bar, schedule linear", seed, 2, 3.0) for seed in (0, 1)]
    verdicts = table_of(*rows).verdict
    assert verdicts["The teacher helps"] == "holds at 2x"
    assert verdicts["The sigmoid schedule helps, against a linear one"] == "does not hold at 2x"


def test_a_budget_that_was_exceeded_once_is_seen():
    table = table_of(run("bar", 0, 4, 0.0), run("bar", 1, 4, 0.0, used=1.001, size_before_settling=21))
    row = table.loc["The pruned network fits its budget"]
    assert row.verdict == "does not hold"
    assert row.here == "largest part of a budget in 2 runs: 1.0010; before our last step, 0.95 to 1.05"
    assert table.loc["Mixed connectivity saves volume"].here == "4x: +20.0 ± 0.0 %"
    assert table.loc["Mixed connectivity roughly doubles the pruning factors"].here == "4x: 1.25 ± 0.00 times"


def test_a_loss_that_can_be_told_is_one():
    changes = {2: (0.5, 0.5), 4: (-1.0, 1.0), 16: (-2.0, -2.1)}
    table = table_of(*(run("bar", seed, x, change) for x, both in changes.items() for seed, change in enumerate(both)))
    row = table.loc["Up to 16x, accuracy is not significantly affected"]
    assert row.verdict == "a gain can be told at 2x; no loss can be told at 4x; a loss can be told at 16x"


def test_equal_volume_is_not_equal_work():
    claim = "Pruned networks are less compute-hungry than others (here: fewer FLOPs than of equal widths and volume)"
    rows = [run(name, seed, 4, 0.0, flops=flops) for seed in (0, 1) for name, flops in (("bar", 150), ("uniform", 100))]
    row = table_of(*rows, run("bar", 0, 16, 0.0)).loc[claim]
    assert (row.here, row.verdict) == ("4x: 1.50 ± 0.00 times", "does not hold at 4x")
    assert row["the paper"].startswith(
        "no measure is named. FLOP factors at 16x. CIFAR-10: 68.5x, equal widths 255.8x; "
    )


def test_blocks_that_are_gone_as_a_whole_are_counted():
    gone = FULL | {"group2.0.conv1": 0, "group2.0.conv2": 0, "group2.0.shortcut": 0}
    table = table_of(run("bar", 0, 8, 0.0), run("bar", 1, 8, 0.0, features=gone), run("bar", 2, 4, 0.0))
    row = table.loc["Whole residual blocks are eliminated"]
    assert (row.here, row.verdict) == ("4x: in 0 of 1 runs; 8x: in 1 of 2 runs", "holds")


@pytest.mark.parametrize(("other", "place", "verdict"), [(-4.0, 1, "holds at 16x"), (-7.0, 2, "does not hold")])
def test_whether_morphnet_falls_most(other, place, verdict):
    """More than BAR, and more than all others."""
    changes = {("bar", 16): -1.0, ("morphnet", 16): -6.0, ("random", 16): other}
    changes |= {(method, 8): 0.0 for method, _ in changes}
    table = table_of(*(run(m, seed, x, c) for (m, x), c in changes.items() for seed in (0, 1)))
    row = table.loc["MorphNet falls severely at 16x"]
    assert row.here == (
        "from 8x to 16x, it loses more than BAR by +5.00 ± 0.00 (2 seeds); "
        f"number {place} of 3 methods by what they lose"
    )
    assert row.verdict == verdict


def test_at_about_the_same_flops():
    """A rival of another volume counts, if its FLOPs are within a fifth."""
    rows = [run("bar", seed, 16, -1.0 - seed, flops_factor=40.0) for seed in (0, 1)]
    rows += [run("random", seed, 8, -5.0 - seed, flops_factor=44.0) for seed in (0, 1)]
    rows += [run("random", seed, 16, 5.0, flops_factor=49.0) for seed in (0, 1)]
    table = table_of(*rows, *(run("magnitude", seed, 8, 3.0, flops_factor=50.0) for seed in (0, 1)))
    row = table.loc["By FLOPs, too, BAR is better than the others, or competitive"]
    assert (row.here, row.verdict) == ("FLOPs / 40: above Random", "holds")
    better = [run("l0", seed, 16, 3.0 - seed, flops_factor=40.0) for seed in (0, 1)]
    row = table_of(*rows, *better).loc["By FLOPs, too, BAR is better than the others, or competitive"]
    assert (row.here, row.verdict) == ("FLOPs / 40: above Random; below LZR", "does not hold")


def test_budgets_of_flops_and_of_volume():
    rows = [run("bar", 0, 4, -1.0, flops_factor=5.0), run("bar-flops", 0, 4, -0.5, volume_factor=2.0, flops_factor=4.0)]
    row = table_of(*rows).loc["Volume is overall a better choice than FLOPs to budget"]
    assert row.here == "V-trained, V / 4.0, FLOPs / 5.0: -1.00 (1); F-trained, V / 2.0, FLOPs / 4.0: -0.50 (1)"
    assert table_of(rows[0]).verdict[row.name] == "not recorded"


def test_the_best_of_a_single_seed_is_not_told():
    alone = table_of(run("bar", 0, 16, 2.0), run("l0", 0, 16, -9.0))
    lacking = "; not recorded: Random, WM, VQ, ID, IB, MorphNet"
    assert alone.verdict["BAR is the best at 16x"] == f"cannot be told at 16x{lacking}"
    rows = [run("bar", seed, 8, 2.0) for seed in (0, 1)] + [run("l0", seed, 8, 1.9 - 3 * seed) for seed in (0, 1)]
    close = table_of(*rows)
    assert (
        close.verdict["BAR is the best at 2x, 4x and 8x, or competitive"]
        == f"competitive at 8x; not recorded at 2x, 4x{lacking}"
    )
    assert "within the noise of it: LZR" in close.here["BAR is the best at 2x, 4x and 8x, or competitive"]


def test_what_holds_at_one_factor_does_not_hold_always():
    rows = [run(method, seed, 16, change) for seed in (0, 1) for method, change in (("bar", -1.0), ("l0", -9.0))]
    assert table_of(*rows).verdict["BAR is always better than LZR"] == "holds at 16x; not recorded at 2x, 4x, 8x"


def test_the_best_of_all_rivals():
    names = [name for name in methods.STRUCTURED if name not in ("bar", "uniform")]
    rows = [run(name, seed, 16, -9.0 - seed) for name in names for seed in (0, 1)]
    table = table_of(*rows, *(run("bar", seed, 16, 2.0 - seed) for seed in (0, 1)))
    assert table.verdict["BAR is the best at 16x"] == "holds at 16x"


def test_leads_over_every_rival():
    rows = [run("bar", seed, 4, 2.0) for seed in (0, 1)] + [run("l0", seed, 4, 1.0) for seed in (0, 1)]
    table = compare.ahead_of_rivals(pd.DataFrame(rows))
    assert table.loc["LZR", "4x"] == "+1.00 ± 0.00 (2): holds"
    assert table.loc["uniform", "4x"] == "not recorded"
    assert not any("teacher" in name for name in table.index)


def test_leads_are_also_taken_where_both_or_neither_have_a_teacher():
    rows = [run("l0, distill True", seed, 4, 1.5) for seed in (0, 1)] + [run("l0", seed, 4, 1.0) for seed in (0, 1)]
    rows += [run("bar", seed, 4, 2.0) for seed in (0, 1)] + [run("bar, distill False", 0, 4, 1.75)]
    taught, alone = (compare.ahead_of_rivals(pd.DataFrame(rows), one) for one in ("bar", "bar, distill False"))
    assert taught.loc["LZR, with a teacher", "4x"] == "+0.50 ± 0.00 (2): holds"
    assert alone.loc["LZR", "4x"] == "+0.75 (1): cannot be told"


def test_recorded_runs_are_all_judged():
    """What the page shows is what these functions say of results/, without an error and with nothing left out."""
    found = runs.records("results")
    for runs_there in compare.by_footing(found).values():
        table = compare.claims_table(runs_there)
        assert len(table) == 21
        assert table.verdict["The pruned network fits its budget"] == "by construction"
    assert set(compare.weights_claims_table(found).verdict) - {"not recorded"}
    assert compare.weights_claims_table(pd.DataFrame()).empty


def test_the_accuracies_of_single_weights_are_those_of_the_records():
    tables = compare.weights_tables(runs.records("results"))
    held = [json.loads(path.read_text()) for path in Path("results/digits").glob("*-mp-ft-x10-*/result.json")]
    mean = 100 * sum(one["accuracy"] for one in held) / len(held)
    (cell,) = (table.loc["mp-ft", "90% removed"] for where, table in tables.items() if where.startswith("digits"))
    assert len(held) > 1
    assert cell.startswith(f"{mean:.2f} (")
    ones = runs.records("results").query("method == 'mp-ft' and dataset == 'digits'")
    far = pd.concat([ones.assign(pruning_factor=factor) for factor in (300.0, 1000.0)])
    assert [list(table) for table in compare.weights_tables(far).values()] == [["99.67% removed", "99.9% removed"]]
    assert compare.weights_tables(pd.DataFrame()) == {}
    structured = runs.records("results").query("metric == 'volume'")
    assert compare.weights_tables(structured) == {}
    assert compare.weights_claims_table(structured).empty
