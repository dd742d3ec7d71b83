"""`bar reproduce`: what there is, what is recorded of it on made-up folders, and making what is missing."""

import dataclasses
import itertools
import json
import os
import re
import subprocess
from pathlib import Path

import click
import pytest
from made_up import record

import bar
from bar import paper, runs
from bar.cli import app, sweeping
from bar.runs import cluster, reproducing, sources, sweeps

ROOT = Path(__file__).parent.parent
TINY = {"limit": 160, "size": 8, "epochs": (1, 1, 0)}
EXHIBITS = (
    sources.Exhibit("bar/figure-1", "Nothing to run.", "02_barrier"),
    sources.Exhibit(
        "bar/table-1", "Two runs.", "07_baselines", (sources.Sweep(("bar", "magnitude"), (2.0,), (0,), TINY),)
    ),
    sources.Exhibit("lc/figure-4", "One of them, and one more.", "08_learning_compression",
                    (sources.Sweep(("bar",), (2.0, 3.0), (0,), TINY),)),
    sources.Exhibit("lc/elsewhere", "Too large.", "08_learning_compression", (),
                    (sources.Sweep(("bar",), (2.0,), (0,), {"dataset": "cifar10"}),)),
    sources.Exhibit("lc/photographs", "Of images that are not here.", "08_learning_compression",
                    (sources.Sweep(("bar",), (2.0,), (0,), {"dataset": "no-such-photographs"}),)),
)  # fmt: skip
BAR2, BAR3 = EXHIBITS[2].configs
MAGNITUDE2 = EXHIBITS[1].configs[1]


@pytest.fixture
def few(monkeypatch):
    """A list of little to run."""
    find = sources.find
    monkeypatch.setattr(sources, "find", lambda names: find(names, EXHIBITS))


def fields(config) -> dict:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def states(bar_command, *arguments) -> dict[str, dict]:
    code, out, _ = bar_command("reproduce", "--json", *arguments)
    assert code == 0
    return {state["name"]: state for state in json.loads(out)}


# --- the list ---------------------------------------------------------------------------------------------------------


def test_everything_of_the_papers_is_listed():
    names = [exhibit.name for exhibit in sources.EXHIBITS]
    assert len(set(names)) == len(names)
    assert {f"bar/figure-{i}" for i in range(1, 9)} | {"bar/table-1", "bar/table-2"} <= set(names)
    assert {exhibit.source for exhibit in sources.EXHIBITS} == {"bar", "lc", "reparametrization"}
    assert all(re.fullmatch(r"[a-z]+/[a-z0-9-]+", name) for name in names)


def test_chapters_exist_and_are_in_the_book():
    contents = (ROOT / "book/_toc.yml").read_text()
    for chapter in {exhibit.chapter for exhibit in sources.EXHIBITS}:
        assert (ROOT / f"notebooks/{chapter}.ipynb").is_file()
        assert f"_executed/{chapter}\n" in contents


def test_explanations_have_no_runs_and_results_have_some():
    explained = {exhibit.name for exhibit in sources.EXHIBITS if not exhibit.here and not exhibit.gpu}
    assert explained == {
        *(f"bar/figure-{i}" for i in range(1, 6)), "bar/supplement-figure-1", "reparametrization/function"
    }  # fmt: skip


ALL = list(dict.fromkeys(sweep for exhibit in sources.EXHIBITS for sweep in (*exhibit.here, *exhibit.gpu)))


@pytest.mark.parametrize("sweep", ALL, ids=lambda sweep: sweep.command[10:])
def test_a_command_makes_the_runs_that_are_listed(sweep, monkeypatch, tmp_path):
    """By the parser of `bar sweep`: what it would run."""
    monkeypatch.chdir(tmp_path)
    for folder in {config.dataset for config in sweep.configs if "/" in config.dataset}:
        (tmp_path / folder).mkdir(parents=True)
    asked = []
    monkeypatch.setattr(sweeps, "sweep", lambda configs, *_, **__: asked.extend(configs) or iter(()))
    program, name, *words = sweep.command.split()
    assert program == "bar"
    app.main([name, *words], standalone_mode=False)
    assert tuple(asked) == sweep.configs
    assert len(asked) == len(sweep.methods) * len(sweep.factors) * len(sweep.seeds)
    assert isinstance(sweeping.sweep, click.Command)


def test_rivals_and_factors_are_those_of_the_paper():
    printed = paper.table("pruning_results")
    methods = set(printed.method) - {"unpruned", "bar-flops"}
    (figure,) = sources.find(["bar/figure-6"])
    digits = [config for config in figure.configs if config.dataset == "digits"]
    assert {config.method for config in digits} == methods
    assert {config.pruning_factor for config in digits} == {2, 4, 8, 16}
    (table,) = sources.find(["bar/table-1"])
    assert {config.pruning_factor for config in table.configs} == {2, 16}
    assert {2, 16} == set(paper.table("configurations").pruning_factor) - {1}


def test_names_that_do_not_exist(bar_command):
    code, out, err = bar_command("reproduce", "bar/figur-6")
    assert (code, out) == (2, "")
    assert err.startswith("bar: no figure or table is called 'bar/figur-6': did you mean 'bar/figure-6'?")
    assert err.count("\n") == 1


def test_the_list_for_people(bar_command):
    code, out, err = bar_command("reproduce")
    assert (code, err) == (0, "")
    blocks = {block.split()[0]: block for block in out.split("\n\n")}
    assert list(blocks) == [exhibit.name for exhibit in sources.EXHIBITS]
    for exhibit in sources.EXHIBITS:
        block = blocks[exhibit.name]
        assert exhibit.what in block
        assert exhibit.chapter in block
        assert all(f"$ {sweep.command}\n" in block + "\n" for sweep in (*exhibit.here, *exhibit.gpu))
        assert ("no runs needed" in block) == (not exhibit.here and not exhibit.gpu)
        assert ("needs a GPU" in block) == bool(exhibit.gpu)
    assert "too large to be run here" in blocks["reparametrization/conv4-tinyimagenet"]
    code, one, _ = bar_command("reproduce", "bar/table-1")
    assert one == blocks["bar/table-1"] + "\n"


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_counts_on_made_up_folders(few, tmp_path, bar_command):
    before = states(bar_command)
    assert [before["lc/figure-4"][name] for name in ("runs", "recorded", "old", "missing")] == [2, 0, 0, 2]
    assert before["lc/figure-4"]["seconds_unknown"] == 3  # the unpruned network, too
    record(tmp_path / "results/deep", **fields(BAR2))
    record(tmp_path / "results", more={"format": None, "fingerprint": None}, **fields(BAR3))
    record(tmp_path / "runs", more={"fingerprint": None}, **fields(MAGNITUDE2))
    record(tmp_path / "elsewhere", **fields(MAGNITUDE2))
    after = states(bar_command)
    assert [after["lc/figure-4"][name] for name in ("runs", "recorded", "old", "missing")] == [2, 1, 1, 0]
    assert [after["bar/table-1"][name] for name in ("runs", "recorded", "old", "missing")] == [2, 1, 1, 0]
    assert states(bar_command, "--out", "elsewhere")["bar/table-1"]["recorded"] == 2
    assert [after["bar/figure-1"][name] for name in ("runs", "recorded", "seconds")] == [0, 0, 0]


@pytest.mark.parametrize(
    "differs",
    [{"seed": 1}, {"limit": 161}, {"size": 9}, {"epochs": (1, 2, 0)}, {"distill": False}, {"metric": "flops"},
     {"schedule": "linear"}, {"start": "unpruned"}, {"preset": "paper"}, {"model": "wrn-16-1"}],
    ids=str,
)  # fmt: skip
def test_another_configuration_is_another_run(differs, few, tmp_path, bar_command):
    record(tmp_path / "runs", **(fields(BAR2) | differs))
    assert states(bar_command)["lc/figure-4"]["recorded"] == 0


def test_times_are_medians_of_the_same_kind(few, tmp_path, bar_command):
    """Two factors, and the unpruned network that both need in runs."""
    for seed, seconds in ((3, 10.0), (4, 20.0), (5, 90.0)):
        record(tmp_path / "results", more={"seconds": seconds}, **(fields(BAR2) | {"seed": seed}))
    record(tmp_path / "results", more={"seconds": 7.0}, **fields(BAR2.unpruned))
    record(tmp_path / "results", more={"seconds": 1e6}, **(fields(BAR2) | {"epochs": (2, 1, 0)}))
    here = states(bar_command)["lc/figure-4"]
    assert (here["seconds"], here["seconds_unknown"]) == (20 + 20 + 7, 0)
    assert "the others take about 1 min" in bar_command("reproduce", "lc/figure-4")[1]
    record(tmp_path / "runs", more={"seconds": 7.0}, **fields(BAR2.unpruned))  # where it can teach
    assert states(bar_command)["lc/figure-4"]["seconds"] == 20 + 20
    other = states(bar_command)["bar/table-1"]
    assert (other["seconds"], other["seconds_unknown"]) == (20, 1)
    assert "about 1 min, and 1 an unknown time" in bar_command("reproduce", "bar/table-1")[1]


def test_searches_take_their_trials(tmp_path):
    search = {"lambda": 1.0, "how": "met", "trials_made": 3, "trials": [{}] * 6, "seconds": 120.0}
    record(tmp_path, more={"seconds": 10.0, "search": search}, method="l0")
    assert reproducing.Stock(tmp_path).seconds(bar.RunConfig(method="l0", seed=5)) == 10 + 3 * 20


@pytest.mark.parametrize("search", [{}, {"seconds": "x", "trials": [], "trials_made": 1}, {"trials": 3}], ids=str)
def test_searches_of_strangers(search, tmp_path):
    record(tmp_path, more={"seconds": 10.0, "search": search}, method="l0")
    assert reproducing.Stock(tmp_path).seconds(bar.RunConfig(method="l0")) == 10


def test_records_that_nobody_can_use_are_let_be(few, tmp_path, bar_command):
    file = tmp_path / "mine.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for seed, method in enumerate(("a-method-of-tomorrow", f"{file}:Mine")):
        record(tmp_path / "runs", more={"method": method}, **(fields(BAR2) | {"seed": seed}))
    assert states(bar_command)["lc/figure-4"]["recorded"] == 0
    assert not (tmp_path / "ran").exists()


def test_what_has_no_data_here_is_told(few, bar_command):
    state = states(bar_command)["lc/photographs"]
    assert (state["missing"], state["without_data"], state["seconds"]) == (1, 1, 0)
    assert "the data of 1 are not here" in bar_command("reproduce", "lc/photographs")[1]


# --- running ----------------------------------------------------------------------------------------------------------


def test_what_is_missing_runs_and_a_second_call_runs_nothing(few, tmp_path, bar_command, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, out, err = bar_command("reproduce", "bar/table-1", "--run", "--out", "results/new")
    assert (code, out) == (0, "")
    assert "2 runs are recorded in results/new" in err
    for config in (BAR2, MAGNITUDE2, BAR2.unpruned):
        held = runs.read(tmp_path / "results/new" / config.name)
        assert reproducing.config_of(held) == config
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}

    def never(*_, **__):
        raise AssertionError("a run")

    monkeypatch.setattr(cluster, "run", never)
    code, out, err = bar_command("reproduce", "bar/table-1", "--run", "--json", "--out", "results/new")
    assert (code, json.loads(out)[0]["recorded"]) == (0, 2)
    assert err == "there is nothing to run\n"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")} == times


def fake(config, folder, **_):
    """What a run gives, and leaves, without running."""
    for each in (config.unpruned, config):
        if not (folder.parent / each.name).exists():
            record(folder.parent, more={"seconds": 100.0}, **fields(each))
    return runs.read(folder)


def test_no_minutes_run_nothing(few, tmp_path, bar_command, monkeypatch):
    monkeypatch.setattr(cluster, "run", fake)
    code, _, err = bar_command("reproduce", "--run", "--minutes", "0")
    assert code == 0
    left = "3 are left, an unknown time: the same command goes on; the data of 1 are not here"
    assert err == f"0 runs are recorded in runs; {left}\n"
    assert not (tmp_path / "runs").exists()
    assert bar_command("reproduce", "--run")[0] == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        config.name for config in (BAR2, BAR3, MAGNITUDE2, BAR2.unpruned)
    }


@pytest.mark.parametrize(
    ("minutes", "taught", "wanted"),
    [(1.6, True, 0), (1.7, True, 1), (3.3, True, 1), (3.4, True, 2), (3.3, False, 0), (3.4, False, 1), (5.1, False, 2)],
)
def test_it_stops_before_a_run_that_would_not_end_in_time(minutes, taught, wanted, tmp_path, monkeypatch):
    """Each run takes 100 seconds, as it did before; the unpruned network is run first where it is not there."""
    for config in (BAR2.unpruned, BAR2):
        record(tmp_path / "results", more={"seconds": 100.0}, **(fields(config) | {"seed": 9}))
    if taught:
        record(tmp_path / "runs", more={"seconds": 100.0}, **fields(BAR2.unpruned))
    now = [0.0]

    def run(config, folder, **_):
        now[0] += 100 * (1 + (not (folder.parent / config.unpruned.name).exists()))
        return fake(config, folder)

    monkeypatch.setattr(cluster, "run", run)
    stock, out = reproducing.Stock(tmp_path / "results", tmp_path / "runs"), tmp_path / "runs"
    ended = list(reproducing.run_within([BAR2, BAR3], stock, out, minutes=minutes, clock=lambda: now[0]))
    assert [config for config, _ in ended] == [BAR2, BAR3][:wanted]
    assert now[0] <= 60 * minutes
    assert [stock.has(config) for config in (BAR2, BAR3)] == [wanted > 0, wanted > 1]


def test_nothing_begins_after_the_time_is_over(tmp_path, monkeypatch):
    """How long a run takes is not known; the first call of the clock is the beginning."""
    monkeypatch.setattr(cluster, "run", fake)
    clock = itertools.chain([0, 0, 61], itertools.repeat(100))
    configs = [BAR2, BAR3, MAGNITUDE2]
    ended = list(
        reproducing.run_within(configs, reproducing.Stock(), tmp_path / "runs", minutes=1, clock=lambda: next(clock))
    )
    assert [config for config, _ in ended] == [BAR2]


def test_digits_come_before_photographs(tmp_path, bar_command, monkeypatch):
    (photographs,) = EXHIBITS[-1].configs
    run = []
    monkeypatch.setattr(sources, "find", lambda names: EXHIBITS[::-1])
    monkeypatch.setattr(reproducing, "have_data", lambda config: True)
    monkeypatch.setattr(cluster, "run", lambda config, *given, **_: run.append(config) or fake(config, *given))
    assert bar_command("reproduce", "--run")[0] == 0
    assert run == [BAR2, BAR3, MAGNITUDE2, photographs]


def test_a_run_that_fails_does_not_stop_the_others(few, tmp_path, bar_command, monkeypatch):
    def run(config, folder, **_):
        if config == BAR2:
            raise bar.BarError("so it is")
        return fake(config, folder)

    monkeypatch.setattr(cluster, "run", run)
    code, _, err = bar_command("reproduce", "lc/figure-4", "--run")
    assert code == 1
    assert f"{BAR2.name}: so it is" in err
    assert "1 runs are recorded in runs\n" in err
    assert f"1 of 2 runs failed: {BAR2.name}" in err
    assert states(bar_command)["lc/figure-4"]["recorded"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "5"], "--minutes is for --run"), (["--run", "--minutes", "-1"], "at least 0"),
        (["--run", "--minutes", "nan"], "at least 0"), (["--run", "--jobs", "0"], "jobs must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_wrong_words(arguments, said, few, tmp_path, bar_command):
    code, out, err = bar_command("reproduce", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], ""), (["MINUTES=5"], " --run --minutes 5"),
        (["NAME=bar/table-1 lc", "MINUTES=0.5", "JOBS=2"], " bar/table-1 lc --run --minutes 0.5 --jobs 2"),
    ],
    ids=str,
)  # fmt: skip
def test_make_reproduce(given, said):
    """What `make` would do; without minutes it lists."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    command = ["make", "--no-print-directory", "-n", "reproduce", "BIN=bin", *given]
    done = subprocess.run(command, cwd=ROOT, env=outer, capture_output=True, text=True)
    assert " ".join(done.stdout.splitlines()[-1].split()) == f"bin/bar reproduce{said}"
