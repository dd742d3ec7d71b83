"""What chapters say about records, against numbers worked out by hand."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest

from bar import paper
from bar.runs import RunConfig, compare
from bar.runs.compare.overview import what

T_2 = 4.302653  # Student's t at 97.5 % with 2 degrees of freedom, from a printed table
T_1 = 12.706205


def run(variant="bar", seed=0, factor=4, change=0.0, **more):
    return {"variant": variant, "seed": seed, "pruning_factor": factor, "change": change, **more}


def test_half_width_is_students():
    """Of 1, 2, 3: deviation 1, so t / sqrt(3); of 0 and 2: deviation sqrt(2), so t."""
    assert compare.half_width(pd.Series([1.0, 2.0, 3.0])) == pytest.approx(T_2 / 3**0.5, rel=1e-6)
    assert compare.half_width(pd.Series([0.0, 2.0])) == pytest.approx(T_1, rel=1e-6)
    assert math.isnan(compare.half_width(pd.Series([1.0])))
    assert math.isnan(compare.half_width(pd.Series(dtype=float)))


def test_a_change_shows_its_sign_and_its_width():
    assert compare.mean_change(pd.Series([0.0, 2.0])) == "+1.00 ± 12.71"
    assert compare.mean_change(pd.Series([-1.25]), digits=1) == "-1.2"
    assert compare.plus_minus(98.0, 0.5) == "98.00 ± 0.50"


def test_names_of_files_and_commits():
    assert compare.record_file("../../results/a") == "results/a/result.json"
    assert compare.short_commit("a" * 40) == "a" * 7
    assert compare.short_commit("a" * 40 + "+") == "a" * 7 + "+"
    assert compare.short_commit(float("nan")) == compare.short_commit(None) == "unknown"


def test_methods_are_called_as_in_the_figures():
    from bar import figures

    assert {method: compare.short(method) for method in figures.METHODS} == figures.METHODS


def test_uniform_flops():
    """The first has 20 of 100 FLOPs: at half the widths 20 / 2 + 80 / 4 = 30 are left."""
    cost = SimpleNamespace(flops=100, layers={"first": {"flops": 20}, "second": {"flops": 80}})
    assert compare.uniform_flops(cost, 2) == pytest.approx(100 / 30)
    assert compare.uniform_flops(cost, 2, first=0) == pytest.approx(80 / 20)


def test_settings_of_other_methods_do_not_count():
    settings = {"lr": 0.1, "gate_lr": 1, "l0_x": 2, "ib_x": 3, "halving_x": 4, "first_weights": 5, "lc_x": 6}
    kept = {method: set(json.loads(compare.of_method(settings, method))) for method in ("bar", "l0", "random")}
    assert kept["bar"] == {"lr", "gate_lr"}
    assert kept["l0"] == {"lr", "gate_lr", "l0_x", "first_weights"}
    assert kept["random"] == {"lr", "halving_x"}


def test_what_is_unusual_is_named():
    usual = {"method": "bar", "metric": "volume", "schedule": "sigmoid", "distill": True, "start": float("nan")}
    assert compare.variant(pd.Series(usual)) == "bar"
    assert compare.variant(pd.Series(usual | {"metric": "flops"})) == "bar-flops"
    assert (
        compare.variant(pd.Series(usual | {"metric": "flops", "distill": False})) == "bar, metric flops, distill False"
    )
    assert compare.unusual(pd.DataFrame([usual | {"distill": False}])[["method", "distill"]].iloc[0]) == [
        "distill False"
    ]
    numbers = pd.DataFrame({"method": ["bar"], "distill": [False]}).convert_dtypes().iloc[0]
    assert compare.unusual(numbers) == ["distill False"]


def records(epochs=(2, 1, 0), **given):
    settings, distill = RunConfig(epochs=epochs).settings, given.get("method", "bar") == "bar"
    usual = {
        "method": "bar", "dataset_label": "digits", "model": "wrn-10-1", "training_images": 1000, "metric": "volume",
        "schedule": "sigmoid", "distill": distill, "input_size": [3, 8, 8], "preset": "quick", "epochs": list(epochs),
        "settings": dataclasses.asdict(settings), "pruning_factor": 4, "seed": 0, "accuracy": 0.9,
        "accuracy_unpruned": 0.88, "volume": 20, "flops": 50, "budget": 25, "volume_factor": 5.0, "flops_factor": 8.0,
    }  # fmt: skip
    return usual | given


def test_runs_on_one_footing_are_found():
    rows = [records(), records(method="random"), records(method="random"), records(method="l0", epochs=(3, 1, 0))]
    footings = compare.by_footing(pd.DataFrame(rows))
    ((name, there),) = footings.items()
    assert name == "digits, wrn-10-1 at 8x8, 1,000 training images, 2+1+0 epochs"
    assert there.variant.tolist() == ["bar", "random"], "no run counts twice; l0 is alone on its footing"
    assert there.change.tolist() == pytest.approx([2.0, 2.0])
    assert there.used.tolist() == [0.8, 0.8]
    assert there.todays.all()


def test_runs_with_other_settings_than_todays_give_way():
    old = records(seed=1)
    old["settings"] = old["settings"] | {"cap": 1e9}
    frame = compare.prepared(pd.DataFrame([old, records(seed=1)]))
    assert frame.todays.tolist() == [False, True]
    assert compare.of_one_kind(frame).index.tolist() == [1]


def test_a_weight_that_is_tuned_for_each_budget_is_no_other_kind():
    weights = {4: 0.02, 16: 0.2}
    rows = [records(method="l0", pruning_factor=x, options={"lam": lam}) for x, lam in weights.items()]
    for row in rows:
        row["settings"] = RunConfig(method="l0", epochs=(2, 1, 0), options=row["options"]).recorded_settings()
    rows += [records(), records(options={"follow": 0.0}), records(pruning_factor=16)]
    ((_, there),) = compare.by_footing(pd.DataFrame(rows)).items()
    assert sorted(zip(there.variant, there.pruning_factor, strict=True)) == [
        ("bar", 4), ("bar", 16), ("bar, follow 0.0", 4), ("l0", 4), ("l0", 16),
    ]  # fmt: skip


def test_an_option_of_bar_is_told_once():
    row = pd.Series(records(options={"follow": 0.0}, source="recorded"))
    assert what(row) == "bar, follow 0.0"
    assert compare.unusual(row) == ["follow 0.0"]
    assert compare.label(row).count("follow") == 1
    assert what(pd.Series(records(method="l0", options={"lam": 0.1}))) == "l0, lam 0.1"


def test_missing_names_what_to_type():
    from bar import methods

    rows = [run(m, 3, f, epochs=None) for m in methods.STRUCTURED for f in compare.FACTORS]
    whole = pd.DataFrame(rows)
    assert compare.missing(whole) == []
    lines = compare.missing(whole[(whole.variant != "l0") | (whole.pruning_factor != 8)])
    assert lines == ["  missing: 1 runs each of l0; this makes them:", "    bar sweep -m l0 -x 8 -s 3"]


def test_paired_and_judged():
    """l0 is 1, 2, 3 below the best: 2 ± 2.48, which 0 is within; random 9, 10, 11 below it: 10 ± 2.48."""
    best = [5.0, 5.0, 5.0]
    changes = {"bar": best, "l0": [4.0, 3.0, 2.0], "random": [-4.0, -5.0, -6.0]}
    frame = pd.DataFrame([run(m, s, change=c) for m, values in changes.items() for s, c in enumerate(values)])
    frame = pd.concat(
        [frame, pd.DataFrame([run("morphnet", 0, change=-9.0), run("bar, distill False", 0, change=99.0)])]
    )
    assert compare.paired(frame, "l0", "bar").tolist() == [-1.0, -2.0, -3.0]
    verdicts = {method: verdict for method, (verdict, _) in compare.judged(frame).items()}
    assert verdicts == {"bar": "best", "l0": "within the noise", "random": "worse", "morphnet": "cannot be told"}
    told = "BAR is the best; within the noise of it: LZR; too few seeds to tell it from: MorphNet"
    assert compare.behind(frame, 4) == told
    assert compare.behind(frame, 2) == "not recorded"


def test_bar_behind_another():
    frame = pd.DataFrame([run("bar", s, change=0.0) for s in (0, 1)] + [run("l0", s, change=1.0) for s in (0, 1)])
    assert compare.behind(frame, 4) == "BAR is worse than the best, LZR: -1.00 ± 0.00 points, seed by seed"


def test_the_papers_numbers():
    """By hand from supplementary table 6, CIFAR-10: BAR is the best at 16, and MorphNet is not at 2."""
    assert compare.better_in_the_paper(3).split("; ")[0] == "CIFAR-10: BAR is the best"
    assert "MorphNet" in compare.better_in_the_paper(0).split("; ")[0]
    part = paper.table("pruning_results").query("dataset == 'CIFAR-10' and method == 'morphnet'").accuracy.tolist()
    assert f"CIFAR-10: {100 * (part[-2] - part[-1]):.2f} points lost" in compare.falls_in_the_paper()


def test_searches():
    trials = [{"lambda": 1, "seconds": 10.0}, {"lambda": 2, "seconds": 20.0}]
    search = {"trials_made": 3, "seconds": 30.0, "how": "fits", "trials": trials}
    forced = search | {"trials_made": 1, "seconds": 10.0, "how": "cut"}
    frame = pd.DataFrame([run("l0", search=search, seconds=15.0), run("l0", factor=8, search=forced, seconds=15.0)])
    assert compare.searched(frame) == "2.0 trials; 20 s; 1 of 2 did not fit"
    told = "LZR: 2.0 trials a seed for 2 budgets, as long as 2.0 whole runs; none fitted in 1 of 2 searches"
    assert compare.search_cost(frame, "l0") == told
    assert compare.search_cost(None, "l0") == "LZR: not recorded"


def test_alike_and_their_summary():
    rows = [
        records(seed=s, accuracy=a, source="recorded", folder=f"r/{s}") for s, a in ((0, 0.89), (1, 0.91), (1, 0.91))
    ]
    ((group),) = compare.alike(pd.DataFrame(rows))
    told = compare.summary(group)
    assert (told["seeds"], told["usual"]) == (2, True)
    assert (told["unpruned"], told["pruned"], told["change"]) == pytest.approx((88.0, 90.0, 2.0))
    assert told["spread"] == pytest.approx(2**0.5), "89 and 91"
    assert told["interval"] == pytest.approx(T_1, rel=1e-6)
    table = compare.summaries(pd.DataFrame([told]))
    assert table.iloc[0].tolist() == ["8.00", 2, "88.00", "90.00 ± 1.41", "+2.00 ± 12.71"]


def test_groups_differ_by_distillation():
    rows = [records(source="recorded"), records(source="recorded", distill=False)]
    labels = [compare.label(group.iloc[0]) for group in compare.alike(pd.DataFrame(rows))]
    plain = "wrn-10-1, digits, 1,000 images, 2+1+0 epochs"
    assert labels == [plain, f"{plain}, distill False"]


def test_groups_differ_by_start_and_by_images():
    rows = [records(source="recorded"), records(source="recorded", start="unpruned"), records(source="recorded")]
    rows = [row | {"fingerprint": text * 32} for row, text in zip(rows, ("aa", "aa", "bb"), strict=True)]
    assert len(compare.alike(pd.DataFrame([*rows, records(source="recorded")]))) == 4, "one does not know its images"
    groups = compare.alike(pd.DataFrame(rows))
    plain = "wrn-10-1, digits, 1,000 images, 2+1+0 epochs"
    labels = [compare.label(group.iloc[0]) for group in groups]
    assert sorted(labels) == [plain, plain, f"{plain}, start unpruned"]
    assert [compare.summary(group)["usual"] for group in groups].count(True) == 2


def test_runs_on_other_images_have_another_footing():
    """Of as many images, under the same name."""
    rows = [records(fingerprint=f * 32, method=method) for f in ("aa", "bb") for method in ("bar", "random")]
    plain = "digits, wrn-10-1 at 8x8, 1,000 training images, 2+1+0 epochs"
    assert {*compare.by_footing(pd.DataFrame(rows))} == {f"{plain}, images {f * 4}" for f in ("aa", "bb")}
    assert {*compare.by_footing(pd.DataFrame(rows[:2]))} == {plain}


def test_saved_by_mixed_connectivity():
    group = pd.DataFrame([records(source="recorded", volume_regular=25, flops_regular=100)])
    table = compare.saved([group], "volume")
    assert table.loc["here: wrn-10-1, digits, 1,000 images, 2+1+0 epochs", "4x"] == "-20.0"
    assert compare.saved([group], "flops").iloc[0]["4x"] == "-50.0"


@pytest.mark.parametrize(
    ("median", "low", "high", "answer"),
    [(0.95, 0.92, 1.0, "yes"), (0.95, 0.89, 1.0, "yes, within noise"), (0.8, 0.7, 0.85, "no")],
)
def test_with_quartiles(median, low, high, answer):
    row = {"r.median": median, "r.quartile_1": low, "r.quartile_3": high}
    assert compare.with_quartiles(row, "r", 0.9) == [
        f"{100 * median:.1f} ({100 * low:.1f} to {100 * high:.1f})",
        answer,
    ]


def training(limit=25, **more):
    """Ten epochs of pruning; factor 4 and B = 25, so V_F = 100. What is bad in the first epoch does not count."""
    late = {"phase": "prune", "size": 24, "size_min": 23, "size_max": 30, "budget": 30, "above": 0.0, "rise": 4}
    first = late | {"size_min": 1, "above": 1.0, "rise": 50}
    epochs = [first | {"epoch": 1}, *(late | {"epoch": i} for i in range(2, 11))]
    epochs += [
        {"phase": "cut", "accuracy": 0.8, "budget": limit, "size_before_settling": 24, "due": 5, "due_and_alive": 1}
    ]
    epochs += [{"phase": "finetune", "accuracy": 0.91}]
    one = {"name": "start", "model": "wrn", "seed": 0, "pruning_factor": 4, "epochs": epochs}
    one |= {"variant": "start", "dataset_label": "digits", "training_images": 10, "near": 0.9}
    return one | {"validation_accuracy_unpruned": 0.9} | more


def test_targets_of_a_training():
    numbers = compare.measured(training())
    assert [numbers[target] for target in compare.TARGETS] == pytest.approx([90.0, 100.0, 23 / 25, 4.0, 24 / 25])
    assert (numbers["after the cut"], numbers["at the end"]) == pytest.approx((-10.0, 1.0))
    table = compare.targets_table(pd.DataFrame([numbers]))
    assert table.iloc[0].tolist() == [4, "start", 1, "90.0", "100.0", "0.920", "4.0", "0.960", "5 of 5", 5]


def test_targets_that_one_seed_misses():
    other = compare.measured(training(seed=1, limit=20))  # V is 24 before the last step
    table = compare.targets_table(pd.DataFrame([compare.measured(training()), other]))
    assert table.met.tolist() == [4]
    assert table["V/B before the last step: 0.95 to 1"].tolist() == ["0.960 to 1.200 (1\u00a0of\u00a02)"]
    rows, all_met = compare.lengths_table([training(), training(seed=1, limit=20)])
    assert all_met == 1
    assert rows["V/B before the last step: 0.95 to 1"].tolist() == ["0.960", "1.200 (no)"]


def test_rows_for_figures_of_trainings():
    rows = compare.followed([training()])
    assert len(rows) == 10
    assert rows.iloc[0][["size", "size_min", "budget", "note"]].tolist() == [0.24, 0.01, 0.3, "cut 80.0, end 91.0"]
    assert compare.followed([]).empty
    assert compare.due_features([training(), training(seed=1)]) == {("start", 4): (2, 10, 2)}


def test_how_much_a_budget_presses():
    def pressed(pressure, losses):
        one = training(settings={"pressure": pressure})
        pruning = [epoch | {"loss": loss, "data_loss": 2.0} for epoch, loss in zip(one["epochs"], losses, strict=False)]
        return one | {"epochs": [*pruning, *one["epochs"][10:]]}

    table = compare.pressures_table([pressed(15e4, [2] * 9 + [2002]), pressed(31.0, [3] * 10)])
    assert table.index.tolist() == [("4", "31"), ("4", "150,000")]
    assert table["budget over data"].tolist() == ["0.50", "1,000.00"]
    assert table.loc[("4", "31"), ["size/B", "cut (points)", "end (points)"]].tolist() == ["0.96", "-10.0", "+1.0"]


def ended(variant, seed, accuracy):
    one = training(variant=variant, seed=seed)
    return one | {"epochs": [*one["epochs"][:-1], one["epochs"][-1] | {"accuracy": accuracy}]}


def test_parts_are_judged_seed_by_seed():
    """0.02 and 0.03: 2.5 ± 12.7 * 0.5; 0.02 and 0.021: 2.05 ± 12.7 * 0.05."""
    ones = [ended("quick", 0, 0.52), ended("quick", 1, 0.63), ended("quick", 2, 0.1)]
    ones += [ended("log barrier", 0, 0.5), ended("log barrier", 1, 0.6), ended("equal starts", 0, 0.9)]
    ones += [ended("less travel", 0, 0.5), ended("less travel", 1, 0.609)]
    ones += [one | {"pruning_factor": 16} for one in ones[:4]]
    ((where, table),) = compare.parts_tables(ones).items()
    assert where == "wrn, digits, 10 images, 11 epochs"
    assert table["4x"].to_dict() == {
        "equal starts": "-38.00 (1)", "less travel": "+2.05 ± 0.64 (2) *", "log barrier": "+2.50 ± 6.35 (2)"
    }  # fmt: skip
    assert table["16x"].to_dict() == {"equal starts": "", "less travel": "", "log barrier": "+2.00 (1)"}
    assert list(compare.parts_tables(ones, ["log barrier", "none"])[where].index) == ["log barrier"]
    assert list(compare.parts_tables(ones, ["equal starts"])[where]) == ["4x"]
    assert compare.parts_tables(ones[3:6]) == {}
    assert compare.parts_tables([ones[2], ones[3]]) == {}, "no seed has both"
    # factors in the order of numbers, not of letters
    (table,) = compare.parts_tables([one | {"pruning_factor": f} for f in (16, 2.0, 8) for one in ones[:4]]).values()
    assert table.columns.tolist() == ["2x", "8x", "16x"]


def test_pairs_are_counted_by_which_ends_higher():
    """Of network, images, epochs, factor and seed: what has no partner is not counted."""
    ones = [ended("quick", 0, 0.5), ended("quick", 1, 0.6), ended("quick", 2, 0.7), ended("quick", 3, 0.8)]
    ones += [ended("fixed margin", 0, 0.5), ended("fixed margin", 1, 0.61), ended("fixed margin", 2, 0.6)]
    ones += [ended("fixed margin", 3, 0.1) | {"pruning_factor": 16}]
    assert compare.against(ones, "quick", "fixed margin") == (1, 1, 1)
    assert compare.against(ones, "quick", "log barrier") == (0, 0, 0)


def test_what_was_trained_twice_is_found_by_images_network_epochs_factor_and_seed():
    settings = {"prune_epochs": 8, "finetune_epochs": 2, "cooldown_epochs": 1}
    ones = [ended(name, seed, 0.5) | {"settings": settings} for name in ("quick", "log barrier") for seed in (0, 1, 2)]
    run = {"variant": "bar", "model": "wrn", "dataset_label": "digits", "training_images": 10, "settings": settings}
    runs = [run | {"pruning_factor": 4, "seed": seed, "validation_accuracy": 0.51} for seed in (0, 1, 7)]
    runs += [runs[0] | {"seed": 2, "settings": settings | {"prune_epochs": 9}}, runs[0] | {"seed": 2, "model": "vgg"}]
    runs += [runs[0] | {"seed": 2, "variant": "uniform"}, runs[0] | {"seed": 2, "pruning_factor": 16}]
    ((factor, leads),) = compare.made_twice(ones, pd.DataFrame(runs)).items()
    assert factor == 4
    assert leads.round(9).to_dict() == {0: -1.0, 1: -1.0}
    assert compare.made_twice(ones, pd.DataFrame(runs[2:])) == {}


def test_starts_are_compared_with_the_usual_one_seed_by_seed():
    ones = [ended("trained start, both", 0, 0.52), ended("trained start", 0, 0.5), ended("trained start", 1, 0.6)]
    ones += [ended("trained start, both", 1, 0.63), ended("trained start, both", 2, 0.1), ended("start", 0, 0.9)]
    ones = [one | {"validation_accuracy_unpruned": 0.6, "pruning_factor": factor} for factor in (16, 4) for one in ones]
    table = compare.starts_table(ones)
    assert table.index.tolist() == [(f, s) for f in ("4", "16") for s in ("trained weights", "… both")]
    usual, both = table.to_numpy().tolist()[:2]
    assert usual == [2, "55.0", "-5.00 ± 63.53", ""]  # 12.706 * 0.1 / 2
    assert both == [3, "41.7", "-18.33 ± 69.48", "+2.50 ± 6.35"]  # seed 2 has no partner
    assert compare.starts_table([]).empty


def test_old_records_have_the_name_that_fits(tmp_path):
    old = [("quick", {"follow": 0.0}), ("following", {"follow": 0.9}), ("following, cap 100, travel 120", {})]
    for i, (name, settings) in enumerate([*old, ("quick", {"follow": 0.9}), ("log barrier", {"follow": 0.9})]):
        (tmp_path / f"{i}.json").write_text(json.dumps({"variant": name, "settings": settings}))
    found = compare.recorded(tmp_path, "*.json")
    assert {name: one["variant"] for name, one in found.items()} == {
        "0.json": "fixed margin, less travel", "1.json": "less travel", "2.json": "quick", "3.json": "quick",
        "4.json": "log barrier",
    }  # fmt: skip
    assert list(found)[:2] == ["2.json", "3.json"], "quick comes first"


def test_rows_for_figures_of_steps():
    rows = compare.steps_followed([training(variant="quick", steps=[(1.0, 1.0), (0.5, 0.6)]), training()])
    assert rows["size"].tolist() == rows.size_min.tolist() == rows.size_max.tolist() == [1.0, 0.5]
    assert (rows.budget.tolist(), rows.time.tolist()) == ([1.0, 0.6], [50.0, 100.0])
    assert (set(rows.name), set(rows.variant)) == ({"wrn, 11 epochs"}, {"quick"})
    assert compare.steps_followed([training()]).empty


def test_variants_differ_from_quick():
    settings = {"gate_travel": 10, "gate_lr": 1, "pressure": 1.0, "lam": 1, "cap": 5}
    common = {"model": "wrn", "dataset_label": "digits", "training_images": 10, "pruning_factor": 2, "commit": "c" * 40}
    start = common | {"variant": "quick", "seed": 0, "settings": settings}
    other = common | {"variant": "other", "seed": 1, "settings": settings | {"gate_lr": 2, "cap": 6}}
    table = compare.variants_table(compare.named([other, start]))
    assert table['other than in "quick"'].to_dict() == {"other": "cap 6", "quick": "nothing"}
    assert table.commit.unique().tolist() == ["c" * 7]


def test_whole_trainings():
    last = [{"accuracy": 0.5}]
    one = {"seconds": {"unpruned": 10.0, "cut while training": 7.0}}
    one["ratio"] = {"unpruned": 1.0, "cut while training": 0.7}
    one["epochs"] = {"unpruned": last, "cut while training": last}
    table = compare.whole_trainings(one, (0.75, 0.65))
    assert table.loc["cut while training"].tolist() == ["7.0", "0.70", "yes", "no", "50.0"]
    assert table.loc["unpruned"].tolist() == ["10.0", "1.00", "", "", "50.0"]


def test_time_pieces_add_up():
    """Convolutions took 6 of 10 ms and twice as long a FLOP as before: 3 ms are theirs, 3 ms are slowness."""
    row = {"file": "f", "record": "r", "network": "mixed", "batch": 1, "factor": 4, "flop_factor": 5.0}
    row |= {"speedup.median": 2.0, "roofline.ms_if_flops_were_time": 4.0, "roofline.ms_convolutions": 6.0}
    row |= {"roofline.ms_other": 4.0, "roofline.convolutions_slower_per_flop": 2.0}
    pieces = compare.time_pieces(pd.DataFrame([row])).iloc[0]
    assert pieces[["ms_slower_convolutions", "ms_more_of_the_rest"]].tolist() == [3.0, 3.0]
    text = compare.pieces_table(compare.time_pieces(pd.DataFrame([row]))).iloc[0]
    assert text[["became time", "slower convolutions", "other operations"]].tolist() == ["40%", "30%", "30%"]


def test_what_networks_take_and_how_long():
    """Runs are found in the times by the names of their folders; what was not timed has no time."""
    sizes = {"pruning_factor": 4.0, "volume": 100, "parameters": 30, "method": "bar"}
    rows = [sizes | {"variant": "bar", "folder": f"there/b{i}", "flops": flops} for i, flops in enumerate((1e6, 3e6))]
    rows += [sizes | {"variant": "l0, distill True", "folder": "there/l", "flops": 5e6}]
    rows += [sizes | {"variant": "uniform", "folder": "there/u", "flops": 1e6}]
    times = [{"run": name, "latency_ms": {"median": ms}, "speedup": {"median": 12 / ms}}
             for name, ms in (("b0", 4.0), ("b1", 6.0), ("u", 3.0))]  # fmt: skip
    rows += [sizes | {"variant": "mp", "method": "mp", "folder": "there/m", "flops": 9e6}]  # as large as before
    table = compare.sizes_table(pd.DataFrame(rows), times)
    assert table.index.tolist() == [("4", "uniform"), ("4", "BAR"), ("4", "LZR, distill True")]
    assert table.loc[("4", "BAR")].tolist() == ["100", "2.00", "30", "5.00", "2.5"]
    assert table.loc[("4", "LZR, distill True")].tolist() == ["100", "5.00", "30", "", ""]
    assert compare.sizes_table(pd.DataFrame(rows), []).columns.tolist() == ["volume", "MFLOPs", "parameters"]


def test_trials_are_shown_in_order_and_the_best_has_a_star():
    def trial(lam, size, *kept, method="l0", factor=16.0):
        epochs = [{"phase": "prune", "size": 900}, {"phase": "prune", "size": size}, {"phase": "cut", "budget": 200}]
        epochs += [{"phase": "finetune", "accuracy": one} for one in kept]
        return {"method": method, "pruning_factor": factor, "options": {"lam": lam}, "epochs": epochs}

    trials = [trial(0.1, 50, 0.9, 0.3), trial(0.02, 300, 0.2, 0.4), trial(0.02, 300, 0.1, factor=4.0)]
    table = compare.trials_table([*trials, trial(0.5, 200, 0.25, method="information-bottleneck")])
    assert table.index.tolist() == [("IB", "16"), ("LZR", "4"), ("LZR", "16"), ("LZR", "16")]
    assert table.values.tolist() == [
        ["lam 0.5", "1.00", "25.0"], ["lam 0.02", "1.50", "10.0"],  # there is no other
        ["lam 0.02", "1.50", "40.0 *"], ["lam 0.1", "0.25", "30.0"],
    ]  # fmt: skip
    assert compare.trials_table([]).empty
