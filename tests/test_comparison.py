"""bench/ablation.py, comparison.py and compared.py: trials, what is chosen from them, the order of runs, times."""

import json
import sys
from pathlib import Path

import click
import pytest
import torch

import bar

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import ablation
    import comparison

    yield ablation, comparison
    for name in ("ablation", "comparison", "compared", "latency"):
        sys.modules.pop(name, None)


def test_the_best_trial_is_chosen_once_all_are_made(bench, tmp_path):
    ablation, comparison = bench
    ways = ablation.TRIALS["l0", 16]
    for i, options in enumerate(ways):
        assert comparison.best_trial(tmp_path, "l0", 16.0) is None
        record = {
            "variant": ablation.trial_of("l0", options),
            "epochs": [{"accuracy": 0.9}, {"accuracy": [3, 7, 5, 6][i]}],
        }
        (tmp_path / f"digits-wrn-10-1-x16-seed5-{i}.json").write_text(json.dumps(record))
    assert comparison.best_trial(tmp_path, "l0", 16.0) == ways[1]
    assert comparison.best_trial(tmp_path, "l0", 4.0) is None
    jobs = comparison.jobs_of([("bar", {})], ["l0", "morphnet"], (16.0, 4.0), tmp_path, "wrn-16-2")
    assert [(job.method, job.pruning_factor) for job in jobs[:4]] == [("bar", 16), ("bar", 4), ("l0", 16), ("bar", 16)]
    assert [job.seed for job in jobs[:4]] == [10, 10, 10, 11]
    assert jobs[2].options == ways[1]


def test_each_method_has_as_many_trials(bench):
    ablation, _ = bench
    assert {len(ways) for ways in ablation.TRIALS.values()} == {4}


def test_trials_of_single_weights_start_from_the_trained_network(bench, tmp_path, monkeypatch):
    """At a factor of 10 and after a single epoch, it is far better than chance only if it starts from the teacher."""
    ablation, _ = bench
    name = ablation.trial_of("learning-compression", {"mu": 0.01})
    options = ["--size", "8", "--epochs", "1", "1", "0", "--factors", "2", "--seeds", "5", "--variants", name]
    ablation.main([*options, "--out", str(tmp_path / "out"), "--teachers", str(tmp_path)], standalone_mode=False)
    (path,) = (tmp_path / "out").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["method"], record["options"]) == ("learning-compression", {"mu": 0.01})
    assert record["epochs"][0]["accuracy"] > 0.8


def test_those_with_another_teaching(bench, capsys):
    _, comparison = bench
    given = ["--list", "--seeds", "10", "--factors", "16", "--taught-otherwise", "bar", "--taught-otherwise", "uniform"]
    comparison.main(given, standalone_mode=False)
    names = capsys.readouterr().out.split()
    images = {"dataset": "cifar10-jpeg", "size": 16, "limit": 5000, "model": "wrn-16-2"}
    wanted = [
        bar.RunConfig(method=method, distill=taught, pruning_factor=16, seed=10, **images).name
        for method, taught in (("bar", False), ("uniform", True))
    ]
    assert names == wanted


def test_stored_networks_are_timed_against_the_unpruned_one_of_their_seed(bench, tmp_path):
    import compared

    tiny = {"size": 8, "limit": 64, "epochs": (1, 0, 0), "seed": 3}
    with pytest.raises(click.UsageError, match="no run below"):
        compared.main([str(tmp_path)], standalone_mode=False)
    for method, factor in (("unpruned", 1.0), ("uniform", 4.0)):
        config = bar.RunConfig(method=method, **tiny, **({"pruning_factor": factor} if factor > 1 else {}))
        bar.run(config, tmp_path / config.name, device="cpu")
    out = tmp_path / "times.json"
    compared.main([str(tmp_path), "--rounds", "3", "--seconds", "0.05", "--json", str(out)], standalone_mode=False)
    small, full = sorted(json.loads(out.read_text())["records"], key=lambda one: one["flops"])
    assert (small["method"], full["method"]) == ("uniform", "unpruned")
    assert full["speedup"]["median"] == 1
    assert small["decayed"] == full["decayed"] == 0  # after one epoch
    two = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(2, 2))
    two[0].weight.data[1] *= 1e-9
    assert compared.decayed(two) == 0.25
    assert small["latency_ms"]["n"] == full["latency_ms"]["n"] >= 3
    # Elsewhere, where a record has no weights any more, its network has new ones, and what was noted of them stays.
    for path in tmp_path.glob("*/network.safetensors"):
        path.unlink()
    out.write_text(out.read_text().replace('"decayed": 0.0', '"decayed": 0.125'))
    compared.main([str(tmp_path), "--rounds", "3", "--seconds", "0.05", "--json", str(out)], standalone_mode=False)
    again = json.loads(out.read_text())["records"]
    assert [one["decayed"] for one in again] == [0.125, 0.125]
    assert sorted(one["flops"] for one in again) == [small["flops"], full["flops"]]
