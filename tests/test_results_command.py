"""`bar results`: groups, means and intervals of records that are made up, and whatever can be wrong with them."""

import csv
import io
import json
import logging

import numpy as np
import pytest
from made_up import record
from scipy import stats
from test_typed import shell

from bar import runs
from bar.runs import compare

ACCURACIES = {0: 0.90, 1: 0.93, 2: 0.96}  # by seed; unpruned 0.95 each


@pytest.fixture
def here(tmp_path):
    """Three seeds of BAR and of MorphNet at factor 4, one of BAR at factor 8, and the unpruned network."""
    root = tmp_path / "results"
    for seed, accuracy in ACCURACIES.items():
        record(root, accuracy, seed=seed)
        record(root, accuracy - 0.1, method="morphnet", seed=seed)
        record(root, 0.95, method="unpruned", seed=seed)
    record(root, 0.5, pruning_factor=8, seed=7)
    return root


def groups(bar_command, *arguments) -> list[dict]:
    code, out, err = bar_command("results", "--json", *arguments)
    assert (code, err) == (0, "")
    return json.loads(out)


def refused(bar_command, *arguments) -> str:
    code, out, err = bar_command("results", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("bar: ")
    assert err.count("\n") == 1
    return err


def test_a_group_has_the_mean_and_students_interval(here, bar_command):
    unpruned, bar4, bar8, morphnet = groups(bar_command)
    assert [group["what"] for group in (unpruned, bar4, bar8, morphnet)] == ["unpruned", "bar", "bar", "morphnet"]
    change = np.array([-5.0, -2.0, 1.0])
    low, high = stats.t.interval(0.95, 2, change.mean(), stats.sem(change))
    assert bar4["runs"] == 3
    assert bar4["seeds"] == [0, 1, 2]
    assert bar4["accuracy_percent"] == pytest.approx(93)
    assert bar4["change_points"] == pytest.approx(-2)
    assert bar4["interval_points"] == pytest.approx((high - low) / 2)
    assert morphnet["change_points"] == pytest.approx(-12)
    assert (bar4["volume_factor"], bar4["flops_factor"]) == (4, 8)
    assert bar4["folders"] == [f"results/digits-wrn-10-1-bar-x4-seed{seed}-quick" for seed in range(3)]
    assert bar8["change_points"] == pytest.approx(-45)
    assert bar8["interval_points"] is None  # one seed says nothing of chance
    assert unpruned["change_points"] is unpruned["interval_points"] is None


def test_the_table_says_the_same_in_80_columns(here, bar_command):
    code, out, err = bar_command("results")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    width = stats.t.ppf(0.975, 2) * 3 / 3**0.5  # the deviation of -5, -2, 1 is 3
    (row,) = [line.split() for line in out.splitlines() if "volume/4" in line and line.startswith("bar")]
    assert row == ["bar", "volume/4", "3", "93.00", "-2.00", "±", f"{width:.2f}", "4.0", "8.0"]
    (row,) = [line.split() for line in out.splitlines() if "volume/8" in line]
    assert row == ["bar", "volume/8", "1", "50.00", "-45.00", "8.0", "16.0"]
    (row,) = [line.split() for line in out.splitlines() if line.startswith("unpruned")]
    assert row == ["unpruned", "3", "95.00", "1.0", "2.0"]


@pytest.mark.parametrize(
    ("differs", "said"),
    [
        ({"model": "wrn-16-1"}, "wrn-16-1"),
        ({"limit": 500}, "500 training images"),
        ({"epochs": (2, 1, 0)}, "2+1+0 epochs"),
        ({"metric": "flops"}, "bar-flops"),
        ({"distill": False}, "bar, distill False"),
        ({"schedule": "linear"}, "bar, schedule linear"),
        ({"start": "unpruned"}, "bar, start unpruned"),
        ({"preset": "paper"}, "preset paper"),
        ({"method": "morphnet", "options": {"pressure": 9}}, "morphnet, pressure 9"),
        ({"method": "l0", "gates": "normal"}, "l0, gates normal"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_runs_that_differ_in_anything_else_are_no_group(differs, said, here, bar_command):
    before = len(groups(bar_command))
    record(here, 0.1, seed=1, **differs)
    after = groups(bar_command)
    assert len(after) == before + 1
    (new,) = [group for group in after if group["accuracy_percent"] == 10]
    assert said in new["what"] + new["footing"]


def test_other_settings_and_other_images_are_no_group(here, bar_command):
    settings = runs.RunConfig().recorded_settings()
    record(here, 0.2, seed=20, more={"settings": settings | {"lr": 0.7}})
    record(here, 0.3, seed=21, more={"settings": settings | {"lr": 0.8}})
    record(here, 0.4, seed=22, more={"settings": settings | {"halving_epochs": 3}})  # which is not BAR's
    record(here, 0.6, seed=23, more={"fingerprint": "cd" * 32})
    record(here, 0.7, seed=24, more={"fingerprint": None, "format": None})
    found = groups(bar_command, "--method", "bar", "-x", "4")
    assert {(group["what"], *group["seeds"]) for group in found} == {
        ("bar", 0, 1, 2, 22), ("bar, earlier settings", 20), ("bar, earlier settings 2", 21), ("bar", 23), ("bar", 24)
    }  # fmt: skip
    footings = {group["footing"].rpartition(", ")[2] for group in found}
    assert footings == {"images abababab", "images cdcdcdcd", "images unknown"}


def test_records_that_are_older_than_some_fields_are_in_their_group(here, bar_command):
    folder = record(here, 0.99, seed=3)
    for name in (runs.CONFIG, runs.RESULT):
        held = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({k: v for k, v in held.items() if k not in ("gates", "start")}))
    (bar4,) = groups(bar_command, "--method", "bar", "-x", "4")
    assert bar4["seeds"] == [0, 1, 2, 3]


def test_a_seed_that_is_found_twice_counts_once(here, tmp_path, bar_command):
    record(tmp_path / "runs", 0.1, seed=0)
    (bar4,) = groups(bar_command, "--method", "bar", "-x", "4")
    assert (bar4["runs"], bar4["seeds"]) == (3, [0, 1, 2])
    assert bar4["change_points"] == pytest.approx(-2)


def test_only_what_was_asked_for(here, bar_command):
    record(here, 0.8, seed=9, metric="flops")
    assert {group["method"] for group in groups(bar_command, "--method", "morphnet")} == {"morphnet"}
    assert len(groups(bar_command, "--method", "morphnet", "--method", "unpruned")) == 2
    assert {group["metric"] for group in groups(bar_command, "--method", "bar-flops")} == {"flops"}
    assert {group["pruning_factor"] for group in groups(bar_command, "-x", "8")} == {8}
    (some,) = groups(bar_command, "--method", "bar", "--seed", "1", "--seed", "2")
    assert some["seeds"] == [1, 2]
    assert groups(bar_command, "--dataset", "digits", "--model", "wrn-10-1") == groups(bar_command)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "nope"], "has the method 'nope': there are bar, morphnet, unpruned"),
        (["--dataset", "cifar10"], "there are digits"),
        (["--model", "x"], "there are wrn-10-1"),
        (["-x", "4", "-x", "3"], "has the pruning factor 3.0: there are 1, 4, 8"),
        (["--seed", "99"], "there are 0, 1, 2, 7"),
        (["--method", "morphnet", "-x", "8"], "all of these: for the pruning factor, there are 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_matches_nothing_says_what_there_is(arguments, said, here, bar_command):
    assert said in refused(bar_command, *arguments)
    assert said in refused(bar_command, *arguments, "--json")


def test_each_run_with_its_folder(here, bar_command):
    code, out, err = bar_command("results", "--each", "--method", "bar", "-x", "4")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if "results/" in line]
    assert [row[:5] for row in rows] == [
        ["0", "90.00", "-5.00", "4.0", "8.0"],
        ["1", "93.00", "-2.00", "4.0", "8.0"],
        ["2", "96.00", "+1.00", "4.0", "8.0"],
    ]
    each = groups(bar_command, "--each", "--method", "bar", "-x", "4")
    for run, seed in zip(each, ACCURACIES, strict=True):
        folder = here / f"digits-wrn-10-1-bar-x4-seed{seed}-quick"
        held = json.loads((folder / runs.RESULT).read_text())
        assert run.pop("change_points") == 100 * (held["accuracy"] - held["accuracy_unpruned"])
        assert run.pop("folder") == f"results/{folder.name}"
        assert run == held


@pytest.mark.parametrize("each", [[], ["--each"]], ids=["groups", "runs"])
def test_csv_holds_what_json_does(each, here, bar_command):
    record(here, 1 / 3, 0.7, seed=5, method="l0", more={"settings": {"a": [1, 2]}})
    wanted = groups(bar_command, *each)
    code, out, err = bar_command("results", "--csv", *each)
    assert (code, err) == (0, "")
    read = list(csv.DictReader(io.StringIO(out)))
    assert len(read) == len(wanted)
    for row, group in zip(read, wanted, strict=True):
        assert list(row) == list(group)
        for name, value in group.items():
            if isinstance(value, dict | list):
                assert json.loads(row[name]) == value
            elif isinstance(value, float):
                assert float(row[name]) == value  # to the last digit
            else:
                assert row[name] == ("" if value is None else str(value))


def test_a_damaged_record_is_named_and_hides_no_other(here, bar_command, caplog):
    wanted = groups(bar_command)
    damaged = record(here, seed=40)
    (damaged / runs.RESULT).write_text('{"accuracy": 2')
    with caplog.at_level(logging.WARNING):
        code, out, _ = bar_command("results", "--json")
    assert code == 0
    assert json.loads(out) == wanted
    assert damaged.name in caplog.text


def test_a_damaged_record_is_named_on_standard_error(here, tmp_path):
    (record(here, seed=40) / runs.RESULT).write_text("{")
    done = shell("bar results", cwd=tmp_path)
    assert done.returncode == 0
    assert "volume/4" in done.stdout
    assert "seed40" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "more",
    [
        {"method": "a-method-of-tomorrow"}, {"preset": "nope"}, {"epochs": [0, 0, 0]}, {"settings": {}},
        {"method": "/nowhere/it.py:Its"}, {"dataset_label": "\x1b[31m[/red]"}, {"metric": None}, {"schedule": ""},
    ],
    ids=str,
)  # fmt: skip
def test_records_of_strangers_and_of_other_versions(more, here, bar_command):
    """Of a method that is not here the file is not looked for."""
    record(here, 0.1, seed=30, more=more)
    for how in ([], ["--each"], ["--csv"], ["--json"]):
        code, out, err = bar_command("results", *how)
        assert (code, err) == (0, "")
        assert "\x1b" not in out
        assert "10" in out
    assert len(groups(bar_command)) == 5


def test_a_method_of_ones_own_is_not_run(here, tmp_path, bar_command):
    file = tmp_path / "mine.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    record(here, 0.1, more={"method": f"{file}:Mine"}, seed=30)
    (mine,) = groups(bar_command, "--method", "Mine")
    assert mine["what"] == "Mine, distill True"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("folder", [None, "runs"])
def test_nothing_recorded(folder, tmp_path, bar_command):
    if folder:
        (tmp_path / folder).mkdir()
    code, out, err = bar_command("results", "--method", "bar")
    assert (code, err) == (0, "")
    assert (folder or str(tmp_path)) in out
    assert "`bar run`" in out
    assert out.count("\n") == 1
    assert groups(bar_command) == groups(bar_command, "--each") == []
    code, out, _ = bar_command("results", "--csv")
    assert (code, out) == (0, ",".join(compare.COLUMNS) + "\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no folder 'nowhere'"), (["/"], "all there is"), (["--json", "--csv"], "exclude"),
        (["--seed", "x"], "x"), (["results/../file"], "no folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_wrong_words(arguments, said, here, tmp_path, bar_command):
    (tmp_path / "file").write_text("")
    assert said in refused(bar_command, *arguments)


def test_folders_that_are_given(here, tmp_path, bar_command):
    record(tmp_path / "elsewhere" / "deep", 0.5, seed=3)
    (only,) = groups(bar_command, "elsewhere")
    assert only["seeds"] == [3]
    assert len(groups(bar_command, "elsewhere", "results")) == 4
    (one,) = groups(bar_command, str(here / "digits-wrn-10-1-bar-x8-seed7-quick"))
    assert one["pruning_factor"] == 8


def test_whoever_reads_only_the_head(here, tmp_path):
    done = shell("{ bar results; echo $? >&2; } | true", cwd=tmp_path)
    assert done.stderr == "141\n"
