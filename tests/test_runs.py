"""Runs: what is recorded, what is reused, what is refused before anything is written."""

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bar
from bar import runs
from bar.training import accuracy

TINY = {"limit": 160, "size": 8, "epochs": (2, 1, 1)}
FIELDS = [
    "method", "dataset", "seed", "pruning_factor", "accuracy", "accuracy_unpruned", "validation_accuracy", "volume",
    "volume_full", "budget", "flops", "flops_full", "parameters", "weights_sha256", "seconds", "hardware", "commit",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    bar.run(bar.RunConfig(pruning_factor=3.7, **TINY), folder)
    return folder


def test_the_record(folder):
    record = runs.read(folder)
    assert set(FIELDS) <= record.keys()
    assert record["volume"] <= record["budget"] == record["volume_full"] / 3.7
    assert record["volume"] == sum(record["features"][n] * record["areas"][n] for n in record["areas"])
    assert record["volume_full"] == sum(record["features_full"][n] * record["areas"][n] for n in record["areas"])
    assert record["dataset_label"].startswith("digits")
    assert len(record["weights_sha256"]) == 64
    unpruned = runs.read(folder.parent / bar.RunConfig(**TINY).unpruned.name)
    assert unpruned["accuracy"] == record["accuracy_unpruned"] == unpruned["accuracy_unpruned"]
    assert unpruned["volume"] == record["volume_full"]


def test_a_line_an_epoch(folder):
    lines = [json.loads(line) for line in (folder / runs.METRICS_FILE).read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["prune", "prune", "cut", "finetune", "cooldown"]
    wanted = {"phase", "epoch", "volume", "budget", "barrier", "accuracy", "seconds"}
    assert all(wanted <= line.keys() for line in lines)
    assert runs.metrics(folder)["epoch"].tolist() == [1, 2, 2, 1, 1]


def test_what_decides_about_bits_is_recorded(folder):
    record = runs.read(folder)
    assert record["threads"] == torch.get_num_threads()
    assert record["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert record["processor"] in record["hardware"]
    source = Path(bar.__file__).parent
    git = ["git", "-C", str(source), "rev-parse", "HEAD:./"]
    tree = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    assert record["source_tree"] in (tree, f"{tree}+")


@pytest.mark.parametrize("method", ["bar", "information-bottleneck"])
def test_every_gate_is_recorded_in_every_epoch(method, tmp_path, monkeypatch):
    """Against the gates themselves, looked at when the epoch ends."""
    seen = []

    def looking(pruner, end_epoch):
        record = end_epoch()
        state = [(gate.score.detach().clone(), gate.alive.clone()) for gate in pruner.network.gates.values()]
        return seen.append(dict(zip(pruner.network.gates, state, strict=True))) or record

    kind = bar.methods.find(method)
    monkeypatch.setattr(kind, "end_epoch", lambda self, end=kind.end_epoch: looking(self, lambda: end(self)))
    config = bar.RunConfig(method=method, pruning_factor=3.7, **TINY)
    record = bar.run(config, tmp_path / "run", device="cpu")
    gates = runs.gates(tmp_path / "run")
    assert {name: score.shape for name, (score, _) in gates.items()} == {n: (2, w) for n, w in record["gated"].items()}
    for epoch, state in enumerate(seen[-2:]):
        for name, (score, alive) in state.items():
            assert (gates[name][1][epoch] == alive.numpy()).all()
            assert np.allclose(gates[name][0][epoch], score.clamp(-6e4, 6e4).numpy(), rtol=1e-3, atol=1e-3)
    unpruned = tmp_path / config.unpruned.name
    assert runs.gates(unpruned) == {}


def test_gates_that_are_damaged_are_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / runs.METRICS_FILE
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for damaged in ("no base64", lines[0]["gates"]["score"][:8], 3):
        lines[0]["gates"]["score"] = damaged
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(bar.BarError, match="gates"):
            runs.gates(tmp_path / "run")


def test_the_network_that_was_recorded_is_the_one_on_disk(folder):
    record, images = runs.read(folder), bar.data.load("digits", size=8, limit=160)
    network = bar.load(folder)
    assert accuracy(network, images.test, images) == record["accuracy"]
    cost = bar.count(network, images.input_size)
    assert (cost.volume, cost.flops, cost.parameters) == (record["volume"], record["flops"], record["parameters"])


def test_a_recorded_run_is_not_run_again_and_equal_runs_are_equal(folder, tmp_path):
    config = bar.RunConfig(pruning_factor=3.7, **TINY)
    before = (folder / runs.RESULT).stat().st_mtime_ns
    record = bar.run(config, folder, tick=lambda config: pytest.fail("it ran again"))
    assert (folder / runs.RESULT).stat().st_mtime_ns == before
    again = bar.run(config, tmp_path / "other")
    assert again["weights_sha256"] == record["weights_sha256"]
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in record.items() if k != "seconds"}


def test_the_largest_seed_is_recorded_and_read(tmp_path):
    config = bar.RunConfig(**TINY | {"seed": 2**64 - 1})
    bar.run(config.unpruned, tmp_path / "run")
    assert list(runs.records(tmp_path).seed) == [2**64 - 1]


@pytest.mark.parametrize("same", ["photos/", "./photos", "photos//", "photos/."])
def test_a_folder_has_one_name(same):
    assert bar.RunConfig(dataset=same).name == bar.RunConfig(dataset="photos").name
    assert bar.RunConfig(dataset="../photos").dataset == "../photos", "photos may be a link"
    assert bar.RunConfig(dataset="./digits").dataset == "./digits", "a folder, and not the data set"


def test_a_batch_size_is_that_of_the_training_and_another_run(folder, tmp_path):
    larger = bar.RunConfig(pruning_factor=3.7, batch_size=64, **TINY)
    assert (larger.settings.batch_size, larger.unpruned.settings.batch_size) == (64, 64)
    assert larger.name != bar.RunConfig(pruning_factor=3.7, **TINY).name
    steps = []
    record = bar.run(larger.unpruned, tmp_path / "run", tick=steps.append)
    assert len(steps) == 4 * (160 // 64)  # epochs times whole batches
    assert (record["batch_size"], record["settings"]["batch_size"]) == (64, 64)
    with pytest.raises(bar.BarError, match="another run"):
        bar.run(larger, folder)  # whose config has no batch size
    with pytest.raises(bar.BarError, match="batch_size must be a whole number >= 1"):
        bar.RunConfig(batch_size=0)


def test_an_interrupted_run_is_run_again(folder, tmp_path):
    config = bar.RunConfig(pruning_factor=3.7, **TINY)

    def interrupt(config, record):
        if record["phase"] == "finetune":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bar.run(config, tmp_path / "run", report=interrupt)
    assert not (tmp_path / "run" / runs.RESULT).exists()
    assert bar.run(config, tmp_path / "run")["weights_sha256"] == runs.read(folder)["weights_sha256"]


def test_another_config_in_the_same_folder(folder):
    with pytest.raises(bar.BarError, match=r"already holds another run: pruning_factor 3\.7 instead of 4\.0"):
        bar.run(bar.RunConfig(**TINY), folder)


def test_a_folder_that_is_none_of_a_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(bar.BarError, match="exists and is not the folder of a run"):
        bar.run(bar.RunConfig(**TINY), tmp_path)
    (tmp_path / runs.CONFIG).write_text("{")
    with pytest.raises(bar.BarError, match="cannot read the run"):
        bar.run(bar.RunConfig(**TINY), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruning_factor": 1}, "must be above 1, not 1"),
        ({"pruning_factor": float("nan")}, "must be a number above 1, not nan"),
        ({"method": "bat"}, "unknown method 'bat': did you mean 'bar'"),
        ({"preset": "quik"}, "unknown preset 'quik': did you mean 'quick'"),
        ({"metric": "flop"}, "did you mean 'flops'"),
        ({"schedule": "liner"}, "did you mean 'linear'"),
        ({"epochs": (0, 1, 1)}, "epochs must be three whole numbers"),
        ({"epochs": (1, 1)}, "epochs must be three whole numbers"),
        ({"seed": -1}, "seed must be a whole number >= 0, not -1"),
    ],
)
def test_configs_that_are_refused(options, message):
    with pytest.raises(bar.BarError, match=message):
        bar.RunConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "digts"}, "did you mean 'digits'"),
        ({"model": "wrn-12-1"}, "12"),
        ({"model": "resnet19"}, "did you mean 'resnet18'"),
        ({"pruning_factor": 1e6}, "smallest possible"),
        ({"model": "vgg11", "size": 8}, "vgg11"),
    ],
)
def test_runs_that_are_refused_write_nothing(options, message, tmp_path):
    with pytest.raises(bar.BarError, match=message):
        bar.run(bar.RunConfig(**(TINY | options)), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_images(tmp_path):
    torch.manual_seed(0)
    for part, count in (("train", 24), ("test", 8)):
        for name in ("cat", "dog"):
            place = tmp_path / "pets" / part / name
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(torch.randint(256, (16, 16, 3), dtype=torch.uint8).numpy()).save(place / f"{i}.png")
    config = bar.RunConfig(dataset=str(tmp_path / "pets"), model="resnet18", pruning_factor=2, epochs=(1, 0, 0))
    record = bar.run(config, tmp_path / "runs" / "run", root=tmp_path)
    assert record["dataset_label"] == "pets"
    assert record["input_size"] == [3, 16, 16]
    assert record["volume"] <= record["budget"]


def test_records_of_several_folders(folder, tmp_path):
    table = runs.records(folder.parent, tmp_path)
    assert sorted(table["method"]) == ["bar", "unpruned"]
    assert str(folder) in set(table["folder"])
    assert runs.records(tmp_path).empty


def test_bar_run_from_the_command_line(bar_command, tmp_path):
    options = ["--limit", "160", "--size", "8", "--epochs", "2", "1", "1", "-x", "2"]
    code, out, err = bar_command("run", *options, "--json")
    assert code == 0, err
    record = json.loads(out)
    (folder,) = (tmp_path / "runs").glob("digits-wrn-10-1-bar-x2-*")
    assert record == runs.read(folder)
    assert err.count("prune ") == 2  # a line an epoch, where there is no terminal
    counted = json.loads(bar_command("count", "--model", str(folder), "--json")[1])
    assert counted["volume"] == record["volume"]
    assert f"{record['accuracy']:.2%}" in bar_command("run", *options)[1]


def test_bar_count_from_the_command_line(bar_command):
    counted = json.loads(bar_command("count", "--model", "wrn-28-12", "--input-size", "3", "32", "32", "--json")[1])
    assert (counted["volume"], counted["flops"]) == (3_112_960, 15_087_796_224)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--pruning-factor", "four"],
        ["run", "--pruning-factor", "1"],
        ["run", "--dataset", "digts"],
        ["run", "--no-such-option"],
        ["run", "--data", "/dev/null", "--dataset", "cifar10-jpeg"],
        ["count", "--model", "resnet"],
        ["count", "--model", "runs/none"],
        ["count", "--model", "resnet18", "--input-size", "1", "8", "8"],
        ["fly"],
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, bar_command, tmp_path):
    code, out, err = bar_command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("bar: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "count", "book"])
def test_help_has_examples(command, bar_command):
    code, out, _ = bar_command(command, "--help")
    assert code == 0
    assert "Examples:" in out


def test_the_installed_command():
    """The real entry point, in a process of its own."""
    command = Path(sys.executable).with_name("bar")
    done = subprocess.run([command, "run", "-x", "0.5"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bar: the pruning factor must be above 1, not 0.5: 4 leaves a quarter\n"


def test_the_unpruned_run_is_the_same_however_it_is_asked_for(bar_command):
    options = ["--limit", "160", "--size", "8", "--epochs", "1", "0", "0"]
    assert bar_command("run", *options)[0] == 0
    code, _, err = bar_command("run", *options, "--method", "unpruned", "-x", "8")
    assert (code, err) == (0, "")  # recorded already


def test_a_network_with_nothing_to_prune_is_refused_before_training(tmp_path):
    config = bar.RunConfig(model="convnext_tiny", limit=160, size=32, epochs=(1, 0, 0))
    with pytest.raises(bar.BarError, match="no convolution that can be pruned"):
        bar.run(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_below_a_file(bar_command, tmp_path):
    (tmp_path / "file").write_text("")
    options = ["--limit", "160", "--size", "8", "--epochs", "1", "0", "0"]
    code, _, err = bar_command("run", *options, "--out", str(tmp_path / "file" / "run"))
    assert code == 2
    assert "file/run" in err or "file/digits" in err


def test_features_of_grouped_convolutions_are_recorded(tmp_path):
    config = bar.RunConfig(model="regnet_x_400mf", pruning_factor=3, limit=40, size=32, epochs=(1, 0, 0))
    record = bar.run(config, tmp_path / "run")
    assert record["volume"] == sum(record["features"][n] * record["areas"][n] for n in record["areas"])


def test_tensorboard(bar_command, tmp_path, monkeypatch):
    """What is watched is written, the unpruned network's beside the rest; without the package it is refused at once."""
    options = ["--limit", "160", "--size", "8", "--epochs", "2", "0", "0", "--tensorboard"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, err = bar_command("run", *options)
    assert (code, err) == (2, "bar: --tensorboard needs the package tensorboard: pip install tensorboard\n")
    assert list(tmp_path.iterdir()) == []

    written = []

    class Writer:
        def __init__(self, folder):
            self.folder = Path(folder).name

        def add_scalar(self, name, value, step):
            written.append((self.folder, name, value, step))

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    assert bar_command("run", *options)[0] == 0
    (folder,) = (tmp_path / "runs").glob("*-bar-*")
    records = [json.loads(line) for line in (folder / runs.METRICS_FILE).read_text().splitlines()]
    mine = [(value, step) for place, name, value, step in written if (place, name) == ("bar", "accuracy")]
    assert mine == [(r["accuracy"], r["epoch"]) for r in records]
    assert ("unpruned", 2) in {(place, step) for place, _, _, step in written}
