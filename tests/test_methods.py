"""Every method by name: the same data, budgets, counting and records."""

import dataclasses
import json

import pytest
import torch

import bar
from bar import methods, models, runs
from bar.methods.iterative import factors_to
from bar.runs import sweeps
from bar.training import PRESETS

TINY = {"limit": 160, "size": 8, "epochs": (3, 1, 1)}
RIVALS = [name for name in methods.NAMES if name not in ("bar", "unpruned")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where runs share their unpruned network."""
    return tmp_path_factory.mktemp("methods")


@pytest.mark.parametrize("name", RIVALS)
def test_a_run_meets_its_budget_and_goes_on_where_it_was(name, root):
    """Interrupted twice, before and after the cut, it ends with the same weights and records."""
    config = bar.RunConfig(method=name, pruning_factor=5, **TINY)
    record = bar.run(config, root / name, device="cpu")
    assert record["method"] == name
    if name in methods.STRUCTURED:
        least = 0.9 if name == "morphnet" else 0.95  # one multiplier for all widths
        assert least * record["budget"] <= record["volume"] <= record["budget"] == record["volume_full"] / 5
        assert record["volume"] <= record["volume_regular"]
    else:
        assert record["weights"] == record["budget"] == record["weights_full"] // 5
        assert record["volume"] == record["volume_full"]
    total = runs.total_epochs(config)
    for stop in (1, total):
        seen = []

        def report(config, record, seen=seen, stop=stop):
            if config.method == name and "lambda" not in record and record["phase"] != "cut":
                seen.append(record)
                if len(seen) == stop:
                    raise KeyboardInterrupt

        if stop <= total and total:
            with pytest.raises(KeyboardInterrupt):
                bar.run(config, root / "again" / name, device="cpu", report=report)
    again = bar.run(config, root / "again" / name, device="cpu")
    assert again["weights_sha256"] == record["weights_sha256"]
    histories = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for path in (root / name / runs.METRICS_FILE, root / "again" / name / runs.METRICS_FILE)
    ]
    assert histories[0] == histories[1]
    wanted = {"phase", "epoch", "size", "accuracy", *(["volume"] if name in methods.STRUCTURED else [])}
    assert all(wanted <= line.keys() for line in histories[0])
    assert sum(line["phase"] != "cut" for line in histories[0]) == total


def test_trials_are_shared_by_all_budgets(root):
    """The second search finds the first one's trials; and both record what they have cost."""
    records = []
    for factor in (3, 3.1):
        config = bar.RunConfig(method="l0", pruning_factor=factor, **TINY)
        records.append(bar.run(config, root / "shared" / f"{factor}", device="cpu"))
    first, second = (record["search"] for record in records)
    lambdas = [[trial["lambda"] for trial in search["trials"]] for search in (first, second)]
    assert set(lambdas[0]) <= set(lambdas[1])
    assert second["trials_made"] == len(lambdas[1]) - len(lambdas[0])
    assert second["seconds"] == pytest.approx(sum(trial["seconds"] for trial in second["trials"]))
    assert second["how"] in ("fits", "shut", "reopened")
    assert second["lambda"] in lambdas[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mp", "metric": "volume"}, "mp cannot serve a budget in volume, only in weights"),
        ({"method": "l0", "metric": "weights"}, "l0 cannot serve a budget in weights, only in volume or flops"),
        ({"method": "l0", "schedule": "linear"}, "l0 has no schedule: that is of bar alone"),
        ({"method": "bar", "gates": "normal"}, "for l0 alone, not for bar"),
        ({"method": "magnitud"}, "did you mean 'magnitude'"),
        ({"method": "bar", "start": "here"}, "unknown start 'here'"),
    ],
)
def test_what_a_method_cannot_do_is_refused(options, message):
    with pytest.raises(bar.BarError, match=message):
        bar.RunConfig(**options)


@pytest.mark.parametrize(
    ("name", "factor", "message"),
    [
        ("morphnet", 4, "MorphNet needs a batch norm"),
        ("random", 500, "above the budget"),
        ("l0", 500, "above the budget"),
        ("mp", 1e9, "weight"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(name, factor, message, tmp_path):
    config = bar.RunConfig(method=name, pruning_factor=factor, model="conv4", **TINY)
    with pytest.raises(bar.BarError, match=message):
        bar.run(config, tmp_path / "run", device="cpu")
    assert not list(tmp_path.iterdir())


def test_the_phases_are_those_of_the_supplement():
    paper = PRESETS["paper"]

    def epochs(name: str, factor: float = 4) -> list[int]:
        return [count for _, count, _ in methods.phases(name, paper, factor)]

    assert epochs("bar") == epochs("l0") == epochs("information-bottleneck") == [80, 40, 10]
    assert epochs("morphnet") == [60, 50, 20]
    assert epochs("magnitude", 2) == [40, 10]
    assert epochs("random", 16) == [40, 10] * 4
    assert factors_to(16) == [2, 4, 8, 16]
    assert factors_to(5) == [2, 4, 5]


def test_the_two_starts_of_l0s_gates():
    """Supplement 4: U(0, 0.01), or N(0, 0.01^2) in the original work."""
    drawn = []
    for gates in ("uniform", "normal"):
        network = models.build("wrn-16-2", 10, (3, 8, 8))
        pruner = methods.build("l0", network, (3, 8, 8), PRESETS["paper"], 4, 10, gates=gates)
        drawn.append(pruner.network.log_alpha.detach())
    uniform, normal = drawn
    assert uniform.min() >= 0
    assert uniform.max() <= 0.01
    assert abs(normal.mean()) < 0.002
    assert normal.std() == pytest.approx(0.01, rel=0.15)


def test_starting_from_the_unpruned_network(root):
    """As the paper does on Mio-TCD: without a learning rate, gates of 1 leave the weights that were trained."""
    config = bar.RunConfig(start="unpruned", pruning_factor=1.01, distill=False, **TINY)
    bar.run(config.unpruned, root / "start" / config.unpruned.name, device="cpu")
    still = dataclasses.replace(PRESETS["quick"], lr=0.0, cooldown_lr=0.0, gate_travel=1e-9, gate_start=(9.0, 9.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "quick", still)
        bar.run(config, root / "start" / "run", device="cpu")
    unpruned = bar.load(root / "start" / config.unpruned.name)
    pruned = bar.load(root / "start" / "run")
    assert torch.equal(pruned.fc.bias, unpruned.fc.bias)
    torch.manual_seed(config.seed)
    assert not torch.equal(models.build("wrn-10-1", 10, (3, 8, 8)).fc.bias, unpruned.fc.bias)


def test_a_sweep(root, tmp_path):
    """All of it; what fails does not stop the others; the second time nothing is trained."""
    configs = [
        bar.RunConfig(method=name, pruning_factor=factor, **TINY)
        for name, factor in (("random", 2), ("magnitude", 2), ("magnitude", 500), ("mp", 3))
    ]
    ended = dict(sweeps.sweep(configs, tmp_path, device="cpu"))
    assert set(ended) == set(configs)
    assert [isinstance(ended[config], bar.BarError) for config in configs] == [False, False, True, False]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = dict(sweeps.sweep(configs, tmp_path, device="cpu"))
    assert [again[c] == ended[c] for c in configs] == [True, True, False, True]
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
