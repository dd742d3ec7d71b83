"""Networks and weights of a user's own: named, hashed, trained from, and refused in one line."""

import dataclasses
import json
import os
import pickle
import sys
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

import bar
from bar import models, runs
from bar.runs import compare
from bar.runs.compare.overview import described, overview
from bar.runs.reproducing import config_of

TINY = {"limit": 160, "size": 8, "epochs": (1, 1, 0)}
SHORT = ["--epochs", "1", "0", "0", "--batch-size", "8", "-x", "2", "--device", "cpu"]
WORDS = ["--limit", "160", "--size", "8", "--epochs", "1", "1", "0", "--device", "cpu"]
NETS = '''"""Networks of a user's."""

import torch
from torch import nn

from . import widths
from .layers import block


class Small(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.features = nn.Sequential(*block(3, widths.FIRST), *block(widths.FIRST, 12))
        self.head = nn.Linear(12, num_classes)
        self.other = nn.Linear(12, 2)  # which forward does not read

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def seven():
    return Small(7)


def wide(width):
    return Small()


def half(num_classes):
    return Small(num_classes).half()


def frozen(num_classes):
    return Small(num_classes).requires_grad_(False)


def nothing(num_classes):
    return None


def wrong(num_classes):
    raise KeyError("width")


def tuples(num_classes):
    net = Small(num_classes)
    net.forward = lambda x: (x, x)
    return net


def strange(num_classes):
    return nn.Sequential(nn.Conv2d(1, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def mixed(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(1, 4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))


def lazy(num_classes):
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))


class Dropped(nn.Module):
    def forward(self, x):
        return x if not self.training else x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.5)


def with_a_class(num_classes):
    layers = [nn.Conv2d(3, 4, 3), Dropped(), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.LazyLinear(num_classes)]
    return nn.Sequential(*layers)


def tied(num_classes):
    layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten()]
    layers[2].weight = layers[1].weight
    return nn.Sequential(*layers, nn.LazyLinear(num_classes))


def unheard_of(num_classes):
    net = Small(num_classes)
    return nn.Sequential(net, Unheard())


class Unheard(nn.Module):
    def forward(self, x):
        return torch.erfinv(torch.tanh(x))


made, number = Small(), 3


def again(num_classes):
    return made
'''
LAYERS = """from torch import nn


def block(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A package ``mine`` in the current directory, imported by nobody yet; returns its folder."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in (("__init__", ""), ("nets", NETS), ("layers", LAYERS), ("widths", "FIRST = 8\n")):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    yield folder
    forget()


def forget():
    """As in a new process."""
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def trained(seed=3, **more):
    """A network of some weights, with statistics of its own in its batch norms."""
    torch.manual_seed(seed)
    network = models.build("mine.nets:Small", 10, (3, 8, 8))
    network(torch.randn(64, 3, 8, 8))
    return network


def same(network, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_the_current_directory_is_looked_in_first_and_then_no_more(mine):
    before = list(sys.path)
    network = models.build("mine.nets:Small", 5, (3, 8, 8))
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert network.training
    assert sys.path == before
    assert os.getcwd() not in before
    assert models.outline("mine.nets:seven", None, (3, 8, 8)).head.out_features == 7
    assert models.build("mine.nets:lazy", 5, (3, 8, 8))[0].in_channels == 3


def test_the_same_seed_builds_the_same_network(mine):
    one, two = trained().state_dict(), trained().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    state = torch.get_rng_state()
    models.outline("mine.nets:Small", 10, (3, 8, 8))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("file", ["nets", "layers", "widths", "__init__"])
def test_another_source_is_another_run(file, mine):
    """What the module imports counts, also where only a number is taken from it."""
    first = bar.RunConfig(model="mine.nets:Small")
    assert first == bar.RunConfig(model="mine.nets:Small")
    path = mine / f"{file}.py"
    path.write_text(path.read_text() + "\n# changed\n")
    with pytest.raises(bar.BarError, match="has changed since Python imported it"):
        bar.RunConfig(model="mine.nets:Small")
    forget()
    second = bar.RunConfig(model="mine.nets:Small")
    assert first.model_source != second.model_source
    assert first.name != second.name
    with pytest.raises(bar.BarError, match="has changed since this run was configured"):
        bar.run(first, mine.parent / "run", device="cpu")


def test_what_is_not_imported_does_not_count(mine):
    first = bar.RunConfig(model="mine.nets:Small").name
    (mine / "unrelated.py").write_text("1 / 0")
    assert bar.RunConfig(model="mine.nets:Small").name == first


def test_names_of_folders(mine):
    """Short, and another for each network, though another module may have a function of the same name."""
    long = [f"Small{'_' * 60}{i}" for i in (1, 2)]
    (mine / "more.py").write_text(NETS + "".join(f"\n{name} = Small\n" for name in long))
    torch.save(trained().state_dict(), "trained.pt")
    torch.save(trained(4).state_dict(), "other.pt")
    given = [{"model": "mine.nets:Small"}, {"model": "mine.more:Small"}, {"model": "mine.nets:seven"}]
    given += [{"model": f"mine.more:{name}"} for name in long]
    given += [{"model": "mine.nets:Small", "weights": name} for name in ("trained.pt", "other.pt")]
    names = [bar.RunConfig(**each, method=method).name for each in given for method in ("bar", "unpruned")]
    assert len(set(names)) == len(names)
    assert all(name.startswith("digits-S") or "-seven-" in name for name in names)
    assert not any(set(name) & set("/: ") for name in names)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere:net", "cannot import nowhere: ModuleNotFoundError: No module named 'nowhere'"),
        ("mine.nets:smal", "mine.nets has no 'smal': did you mean"),
        ("mine/nets.py:Small", "is named package.module:function"),
        ("mine.nets:", "is named package.module:function"),
        (":Small", "is named package.module:function"),
        ("mine.nets:number", "mine.nets:number is 3, not a function"),
        ("mine.nets:made", "is a network: name a function or class that makes a new one"),
        ("mine.nets:wide", "cannot be called: missing a required argument: 'width'"),
        ("mine.nets:nothing", "returns None, not a torch.nn.Module"),
        ("mine.nets:wrong", "fails when it is called: KeyError: 'width' (line "),
        ("mine.nets:again", "returns the same network again"),
        ("mine.nets:seven", "returns a tensor of (1, 7) for one image, not a number for each of the 10 classes"),
        ("mine.nets:tuples", "returns a tuple, not one tensor"),
        ("mine.nets:strange", "cannot take an image of 3 x 8 x 8"),
        ("mine.nets:half", "has weights in torch.float16"),
        ("mine.nets:frozen", "nothing can be trained"),
        ("mine.nets:mixed", "has no convolution that can be pruned"),
        ("mine.nets:unheard_of", "cannot be stored: erfinv: torch.erfinv cannot be saved"),
        (
            "mine.nets:with_a_class",
            "cannot be stored: 1: Dropped cannot be saved: files name only layers of torch",
        ),
        ("mine.nets:tied", "cannot be stored: the network cannot be saved: "),
        ("mine.broken:net", "cannot import mine.broken: SyntaxError: invalid syntax (line 1 of "),
        ("mine.stops:net", "cannot import mine.stops: SystemExit"),
        ("timm:no_such_net", "timm"),
        ("sys:exit", "sys is no file of source"),
    ],
)
def test_what_cannot_be_used_is_one_line(model, message, mine, bar_command):
    (mine / "broken.py").write_text("def net(:")
    (mine / "stops.py").write_text("raise SystemExit(0)")
    code, out, err = bar_command("run", *WORDS, "--model", model)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert "Traceback" not in err
    assert not os.path.exists("runs")


def test_the_network_of_a_file_is_recorded_alone(mine, bar_command):
    torch.save(trained().state_dict(), "trained.pt")
    words = ["--model", "mine.nets:Small", "--weights", "trained.pt", *WORDS]
    code, out, err = bar_command("run", "--method", "unpruned", *words)
    assert code == 0, err
    assert "records and network" in out


def test_counted(mine, bar_command):
    code, out, err = bar_command("count", "--model", "mine.nets:seven", "--input-size", "3", "8", "8", "--json")
    assert code == 0, err
    assert json.loads(out)["volume"] == (8 + 12) * 64
    assert bar_command("count", "--model", "mine.nets:seven", "--classes", "3")[0] == 2
    assert bar_command("count", "--model", "mine.nets:nothing")[0] == 2


def test_swept(mine, bar_command):
    torch.save(trained().state_dict(), "trained.pt")
    words = ["--model", "mine.nets:Small", "--weights", "trained.pt", "-m", "magnitude", "-m", "l0", "-x", "2"]
    code, out, err = bar_command("sweep", *words, "-s", "0", *WORDS, "--json")
    assert code == 0, err
    assert [record["start"] for record in json.loads(out)] == ["unpruned", "unpruned"]


@pytest.mark.long
def test_other_processes_import_it_too_and_draw_the_same_weights(mine, bar_command):
    words = ["sweep", "--model", "mine.nets:Small", "-m", "bar", "-x", "2", "-x", "3", "-s", "0", *WORDS, "--json"]
    records = []
    for out, jobs in (("one", "1"), ("two", "2")):
        code, found, err = bar_command(*words, "--out", out, "--jobs", jobs)
        assert code == 0, err
        records.append({record["pruning_factor"]: record["weights_sha256"] for record in json.loads(found)})
    assert records[0] == records[1]


@pytest.mark.parametrize("file", ["trained.pt", "below.pth", "trained.safetensors"])
def test_weights_are_pruned_as_they_are(file, mine, bar_command):
    """The unpruned network is that of the file, and is not trained; BAR begins with it; records say so."""
    state = trained().state_dict()
    torch.save(state, "trained.pt")
    torch.save({"epoch": 3, "state_dict": state}, "below.pth")
    safetensors.torch.save_file(state, "trained.safetensors")
    code, out, err = bar_command("run", "--model", "mine.nets:Small", "--weights", file, *WORDS, "--json")
    assert code == 0, err
    record = json.loads(out)
    config = bar.RunConfig(model="mine.nets:Small", weights=file, **TINY)
    assert (config.start, record["start"], record["weights_file"]) == ("unpruned", "unpruned", file)
    assert record["weights_source"] == config.weights_source
    assert record["model_source"] == config.model_source
    folder = mine.parent / "runs" / config.unpruned.name
    assert same(bar.load(folder), state)
    assert not len(runs.metrics(folder))
    network = trained().eval()
    digits = bar.data.load("digits", size=8, limit=160)
    assert record["accuracy_unpruned"] == bar.training.accuracy(network, digits.test, digits)
    assert record["volume"] <= record["budget"]
    assert bar_command("results", "runs", "--json")[0] == 0


def test_weights_in_the_home_folder(mine, monkeypatch):
    torch.save(trained().state_dict(), "trained.pt")
    monkeypatch.setenv("HOME", os.getcwd())
    config = bar.RunConfig(model="mine.nets:Small", weights="~/trained.pt")
    assert config == bar.RunConfig(model="mine.nets:Small", weights=f"{os.getcwd()}/trained.pt")


def still():
    """Settings with which nothing moves."""
    quick = bar.training.PRESETS["quick"]
    return dataclasses.replace(quick, lr=0.0, cooldown_lr=0.0, gate_travel=1e-9, gate_start=(9.0, 9.0))


@pytest.mark.parametrize("given", ["weights", "unpruned", "random"])
def test_where_training_starts(given, mine, monkeypatch):
    """Without a learning rate, the weights that a run began with are still there when it ends."""
    torch.save(trained().state_dict(), "trained.pt")
    config = bar.RunConfig(
        model="mine.nets:Small", pruning_factor=1.01, distill=False, **TINY,
        weights=None if given == "unpruned" else "trained.pt", start=None if given == "weights" else given,
    )  # fmt: skip
    unpruned = mine.parent / config.unpruned.name
    bar.run(config.unpruned, unpruned, device="cpu")
    monkeypatch.setitem(bar.training.PRESETS, "quick", still())
    bar.run(config, mine.parent / "run", device="cpu")
    pruned, first = bar.load(mine.parent / "run"), bar.load(unpruned)
    torch.manual_seed(config.seed)
    anew = models.build("mine.nets:Small", 10, (3, 8, 8))
    assert torch.equal(pruned.head.bias, first.head.bias) is (given != "random")
    assert torch.equal(pruned.head.bias, anew.head.bias) is (given == "random")
    assert torch.equal(first.head.bias, trained().head.bias) is (given != "unpruned")


def test_an_interrupted_run_goes_on_and_another_source_is_refused(mine):
    torch.save(trained().state_dict(), "trained.pt")
    config = bar.RunConfig(model="mine.nets:Small", weights="trained.pt", **TINY)

    def stop(config, record):
        if record["phase"] == "prune":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bar.run(config, "run", device="cpu", report=stop)
    torch.save(trained(4).state_dict(), "trained.pt")
    with pytest.raises(bar.BarError, match=r"trained\.pt has changed since this run was configured"):
        bar.run(config, "run", device="cpu")
    with pytest.raises(bar.BarError, match="already holds another run: weights_source"):
        bar.run(bar.RunConfig(model="mine.nets:Small", weights="trained.pt", **TINY), "run", device="cpu")
    os.mkdir("elsewhere")
    torch.save(trained().state_dict(), "elsewhere/trained.pt")  # where it is does not matter
    moved = bar.RunConfig(model="mine.nets:Small", weights="elsewhere/trained.pt", **TINY)
    seen = []
    record = bar.run(moved, "run", device="cpu", report=lambda config, record: seen.append(record["phase"]))
    assert seen == ["prune", "cut", "finetune"]
    assert bar.run(moved, "again", device="cpu")["weights_sha256"] == record["weights_sha256"]
    (mine / "widths.py").write_text("FIRST = 8  # changed\n")
    forget()
    with pytest.raises(bar.BarError, match="already holds another run: model_source"):
        bar.run(bar.RunConfig(model="mine.nets:Small", weights="elsewhere/trained.pt", **TINY), "run", device="cpu")


class Code:
    def __reduce__(self):
        return os.mkdir, ("run-by-a-pickle",)


def broken(state, change):
    state = dict(state)
    change(state)
    return state


FILES = {
    "missing.pt": (lambda s: s.pop("head.bias"), "does not fit the network: 'head.bias' is missing"),
    "more.pt": (lambda s: s.update(x=torch.ones(1), y=torch.ones(1)), "2 tensors are not known to it, such as 'x'"),
    "shape.pt": (
        lambda s: s.update({"head.weight": torch.ones(1000, 12)}),
        "'head.weight' is (1000, 12) there and (10, 12) here",
    ),
    "nan.pt": (lambda s: s["head.bias"].fill_(torch.nan), "'head.bias' holds values that are infinite, or no numbers"),
    "meta.pt": (lambda s: s.update({"head.bias": torch.ones(10, device="meta")}), "'head.bias' has no values"),
    "large.pt": (
        lambda s: s.update({"head.bias": torch.full((10,), 1e300, dtype=torch.float64)}),
        "'head.bias' holds values that are infinite, or no numbers",
    ),
    "whole.pt": (lambda s: s.update({"head.bias": torch.ones(10, dtype=torch.long)}), "'head.bias' is torch.int64"),
    "sparse.pt": (lambda s: s.update({"head.bias": torch.ones(10).to_sparse()}), "sparse"),
    "values.pt": (lambda s: s.update({"head.bias": 3}), "holds no state dict"),
}


@pytest.mark.parametrize(
    "file",
    [
        *FILES,
        "empty.pt",
        "text.pt",
        "none.pt",
        "code.pt",
        "model.pt",
        "text.safetensors",
        "list.pth",
        "x.txt",
        "folder.pt",
    ],
)
def test_weights_that_cannot_be_used_are_one_line(file, mine, bar_command):
    state = {name: tensor.clone() for name, tensor in trained().state_dict().items()}
    message = {
        "none.pt": "there is no file 'none.pt'", "code.pt": "no code is run", "model.pt": "no code is run",
        "empty.pt": "it is empty, cut off", "text.pt": "it is empty, cut off, or of another kind",
        "text.safetensors": "cannot read weights from text.safetensors", "list.pth": "holds no state dict",
        "x.txt": "ends in .safetensors, .pt, .pth", "folder.pt": "there is no file 'folder.pt'",
    }.get(file)  # fmt: skip
    if file in FILES:
        change, message = FILES[file]
        change(state)
        torch.save(state, file)
    elif file == "code.pt":
        with open(file, "wb") as written:
            pickle.dump({"state_dict": Code()}, written)
    elif file == "model.pt":
        torch.save(trained(), file)
    elif file == "list.pth":
        torch.save([1, 2], file)
    elif file == "folder.pt":
        os.mkdir(file)
    elif file != "none.pt":
        with open(file, "w") as written:
            written.write("" if file == "empty.pt" else "exit code")
    code, out, err = bar_command("run", *WORDS, "--model", "mine.nets:Small", "--weights", file)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert not os.path.exists("run-by-a-pickle")
    assert not os.path.exists("runs")


LOUD = '''"""Prints whenever it can."""

from mine.nets import Small

print("imported")


class Loud(Small):
    def __init__(self, num_classes=10):
        print("made")
        super().__init__(num_classes)

    def forward(self, x):
        print("called")
        return super().forward(x)
'''
CHATTY = '''"""So does this."""

from bar.methods.random import Random

print("imported")


class Chatty(Random):
    name = title = summary = "chatty"

    def cut(self):
        print("cut")
        return super().cut()
'''


@pytest.mark.parametrize(
    "words",
    [
        ["count", "--model", "mine.loud:Loud", "--input-size", "3", "8", "8"],
        ["methods", "chatty.py:Chatty"],
        ["run", "--model", "mine.loud:Loud", "--method", "chatty.py:Chatty", *WORDS],
        ["sweep", "--model", "mine.loud:Loud", "-m", "chatty.py:Chatty", "--dry-run", *WORDS],
    ],
    ids=lambda words: words[0],
)
def test_what_a_file_prints_is_not_in_the_answer(words, mine, bar_command):
    (mine / "loud.py").write_text(LOUD)
    (mine.parent / "chatty.py").write_text(CHATTY)
    forget()
    code, out, err = bar_command(*words, "--json")
    assert code == 0, err
    assert json.loads(out) is not None
    assert "imported" in err


def test_a_dry_run_knows_recorded_runs_of_ones_own(mine, bar_command):
    words = ["sweep", "--model", "mine.nets:Small", "-m", "random", "-x", "2", "-s", "0", *WORDS]
    assert bar_command(*words)[0] == 0
    code, out, err = bar_command(*words, "--dry-run")
    assert code == 0, err
    assert "2 runs, 2 recorded" in out + err
    (mine / "widths.py").write_text("FIRST = 9\n")
    forget()
    assert "2 runs, 0 recorded" in "".join(bar_command(*words, "--dry-run")[1:]), "another network by now"


def test_runs_among_the_images_are_no_class_of_them(bar_command, tmp_path):
    for number in range(24):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 9 * number, 99)).save(path)
    for place in ([], ["--out", "mine"]):
        words = ["run", "--dataset", ".", *SHORT, "--method", "random", *place]
        for _ in range(2):  # the second one finds the first one's records
            code, _, err = bar_command(*words)
            assert code == 0, err
    assert len(runs.records(tmp_path / "runs")) == 2


def test_weights_that_change_unseen_are_not_taken(mine):
    """Neither size nor time tell of it: what is read is compared itself."""
    torch.save(trained().state_dict(), "trained.pt")
    found, held = models.digest("trained.pt"), os.stat("trained.pt")
    torch.save(trained(4).state_dict(), "trained.pt")
    os.utime("trained.pt", ns=(held.st_atime_ns, held.st_mtime_ns))
    assert os.stat("trained.pt").st_size == held.st_size
    with pytest.raises(bar.BarError, match="has changed since this run was configured"):
        models.load_weights(trained(), "trained.pt", found)


def test_weights_do_not_change_a_network_that_they_do_not_fit(mine):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.save({**before, "0.weight": torch.ones(2, 2), "1.weight": torch.ones(3, 3)}, "x.pt")
    with pytest.raises(bar.BarError, match="does not fit"):
        models.load_weights(network, "x.pt")
    assert same(network, before)


@pytest.mark.parametrize("wrapped", [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel])
@pytest.mark.parametrize("key", models.weights.BELOW)
def test_weights_of_a_wrapped_network_are_taken(wrapped, key, tmp_path):
    """As training scripts leave them: saved from the wrapper, below a key beside other things."""
    network, held = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), wrapped(trained_linear()).state_dict()
    assert held.keys().isdisjoint(network.state_dict())
    torch.save({"epoch": 3, key: held}, tmp_path / "x.pt")
    assert same(models.load_weights(network, tmp_path / "x.pt"), trained_linear().state_dict())


def trained_linear():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


def test_a_prefix_of_the_networks_own_stays(tmp_path):
    network = nn.Sequential(OrderedDict(module=trained_linear()))
    torch.save(network.state_dict(), tmp_path / "x.pt")
    with torch.no_grad():
        network.module[0].weight.zero_()
    assert same(models.load_weights(network, tmp_path / "x.pt"), trained_linear().state_dict(prefix="module."))


def test_records_are_read_without_the_network(mine):
    """Where its module is gone, or is another's: nothing is imported to read a record; two networks are two rows."""
    torch.save(trained().state_dict(), "a.pt")
    torch.save(trained(4).state_dict(), "b.pt")
    for weights in ("a.pt", "b.pt", None):
        config = bar.RunConfig(model="mine.nets:Small", weights=weights, **TINY)
        bar.run(config, mine.parent / "runs" / config.name, device="cpu")
    forget()
    (mine / "nets.py").write_text("open('imported', 'w')")
    found = described(runs.records("runs"))
    assert len(overview(found)) == 6
    assert found.footing.nunique() == 3
    assert [config_of(record) for record in runs.finished("runs")] == [None] * 6
    pruned = found[found.method == "bar"].assign(variant="random")
    assert compare.left_in_blocks(pruned, 4).empty
    assert compare.flop_factors(pruned) == "not recorded"
    assert not os.path.exists("imported")


def test_a_network_of_timm(mine, bar_command):
    pytest.importorskip("timm")
    code, out, err = bar_command("run", *WORDS, "--model", "timm:resnet10t", "--pruning-factor", "2", "--json")
    assert code == 0, err
    assert json.loads(out)["volume"] <= json.loads(out)["budget"]
    assert bar.RunConfig(model="timm:resnet10t").name.startswith("digits-resnet10t-bar-x4-")
