"""What becomes of records: killed, damaged, out of disk, from a stranger. The numbers are those of a list of cases."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import SIZE, build
from test_resume import CONFIG, interrupted, killed, save
from torch import fx, nn
from torch.nn.utils import prune

import bar
from bar import data, runs, schema, storage
from bar.network import on_meta

TINY = {"limit": 96, "size": 8, "epochs": (2, 1, 0), "pruning_factor": 2.0}
OPTIONS = ["--limit", "96", "--size", "8", "--epochs", "2", "1", "0", "-x", "2", "--device", "cpu"]
RESULTS = Path(__file__).parent.parent / "results"
LEFT = {runs.CONFIG, runs.METRICS_FILE, runs.RESULT, storage.ARCHITECTURE, storage.WEIGHTS}


def run(folder, **options) -> dict:
    return bar.run(bar.RunConfig(**(TINY | options)), folder, device="cpu")


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def unpruned(folder) -> Path:
    return folder.parent / bar.RunConfig(**TINY).unpruned.name


def flip(path: Path, count: int = 2) -> None:
    content = bytearray(path.read_bytes())
    content[-count:] = (byte ^ 255 for byte in content[-count:])
    path.write_bytes(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder)
    return folder


@pytest.fixture
def recorded(whole, tmp_path):
    """A copy of it."""
    shutil.copytree(whole.parent, tmp_path / "runs")
    return tmp_path / "runs" / whole.name


# F1: killed at any moment


@pytest.mark.parametrize("left", [["config.json.4711.partial"], [".lock", "config.json.1.partial"], [".lock"], []])
def test_f1_killed_before_the_first_rename(left, whole, tmp_path):
    folder = tmp_path / "run"
    for place in (folder, unpruned(folder)):
        place.mkdir()
        for name in left:
            (place / name).write_text('{"dataset": "dig')
    assert run(folder)["weights_sha256"] == runs.read(whole)["weights_sha256"]
    assert names(folder) == names(unpruned(folder)) == LEFT


def test_f1_really_killed_before_the_first_rename_and_after_the_last(tmp_path):
    config, folder = bar.RunConfig(**CONFIG), tmp_path / "run"
    teacher = tmp_path / config.unpruned.name
    for place in (teacher, folder):
        assert killed(folder, "before", 1).returncode == -signal.SIGKILL
        assert {name.split(".")[-1] for name in names(place)} == {"lock", "partial"}
        bar.run(config.unpruned, teacher, device="cpu")
    bar.run(config, folder, device="cpu")
    assert names(folder) == names(teacher) == LEFT
    for name in (storage.CHECKPOINT, storage.PREVIOUS, ".lock", f"{storage.CHECKPOINT}.12.partial"):
        (folder / name).write_text("")  # as if killed after its last rename
    bar.run(config, folder, device="cpu")
    assert names(folder) == LEFT


def test_f1_what_tensorboard_has_written_while_the_unpruned_network_was_trained(whole, tmp_path):
    folder = tmp_path / "run"
    (folder / "tensorboard" / "unpruned").mkdir(parents=True)
    assert run(folder)["weights_sha256"] == runs.read(whole)["weights_sha256"]


@pytest.mark.parametrize("mine", ["thesis.tex", "thesis.tex.partial", "config.json.partial", "result.json"])
def test_f1_other_folders_are_still_refused_and_other_files_left_alone(mine, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / mine).write_text("mine")
    with pytest.raises(bar.BarError, match=r"not the folder of a run|cannot read the run"):
        run(tmp_path / "run")
    assert (tmp_path / "run" / mine).read_text() == "mine"


# F2: weights that are not those of the record


@pytest.mark.parametrize("file", [storage.WEIGHTS, storage.ARCHITECTURE])
def test_f2_a_changed_network_is_not_used(file, recorded):
    damaged = recorded / file
    if file == storage.WEIGHTS:
        flip(damaged)
    else:  # still a network, but another
        text = damaged.read_text()
        damaged.write_text(text.replace('"eps": 1e-05', '"eps": 1e-02', 1))
        assert damaged.read_text() != text
    for use in (bar.load, run):
        with pytest.raises(bar.BarError, match=rf"{file} is damaged or was changed.*Restore it, or remove .*run"):
            use(recorded)
    assert runs.read(recorded) == runs.read(recorded)  # the record itself is fine
    assert len(runs.records(recorded.parent)) == 2
    assert len(runs.records(recorded.parent, recorded)) == 2, "a record in two of the folders is one"


@pytest.mark.parametrize("options", [{}, {"start": "unpruned", "distill": False}, {"method": "magnitude"}])
def test_f2_nor_is_a_changed_teacher_or_start(options, recorded):
    flip(unpruned(recorded) / storage.WEIGHTS)
    with pytest.raises(bar.BarError, match=r"network\.safetensors is damaged or was changed"):
        run(recorded.parent / "other", pruning_factor=3.0, **options)
    assert not (recorded.parent / "other").exists()


def test_f2_a_network_without_a_record(tmp_path):
    storage.save(bar.prune(bar.gate(build("plain"), SIZE)), tmp_path)
    bar.load(tmp_path)
    flip(tmp_path / storage.WEIGHTS)
    with pytest.raises(bar.BarError, match=r"network\.safetensors is damaged or was changed.*network\.json"):
        bar.load(tmp_path)


def test_f2_networks_and_records_from_before(recorded):
    """Without the hashes in network.json and of network.json; and records without a network beside them."""
    younger = {
        storage.ARCHITECTURE: ["weights_sha256", "parameters"],
        runs.RESULT: ["architecture_sha256", "format"],
        runs.CONFIG: ["format"],
    }
    for file, fields in younger.items():
        path = recorded / file
        held = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in held.items() if k not in fields}))
    bar.load(recorded)
    record = run(recorded)
    for file in (storage.ARCHITECTURE, storage.WEIGHTS):
        (recorded / file).unlink()
    assert run(recorded) == record == runs.read(recorded)


# F3: records that are none


DAMAGE = {
    "list": lambda record: [],
    "number": lambda record: 5,
    "null": lambda record: None,
    "empty": lambda record: {},
    "no field": lambda record: {k: v for k, v in record.items() if k != "dataset"},
    "method": lambda record: record | {"method": ["bar"]},
    "factor": lambda record: record | {"pruning_factor": float("nan")},
    "nested": lambda record: record | {"options": {"lr": [float("inf")]}},
    "seed": lambda record: record | {"seed": True},
    "epochs": lambda record: record | {"epochs": [1, 2]},
    "surrogate": lambda record: record | {"model": "\ud800"},
    "newer": lambda record: record | {"format": schema.FORMAT + 1},
    "deep": lambda record: record | {"x": json.loads("[" * 300 + "]" * 300)},
}
DAMAGE_OF_RESULTS = {
    "volume": lambda record: record | {"volume": 0},
    "accuracy": lambda record: record | {"accuracy": "x"},
    "share": lambda record: record | {"accuracy": 1.5},
    "infinite": lambda record: record | {"seconds": float("inf")},
    "size": lambda record: record | {"input_size": [3, 8]},
    "hash": lambda record: record | {"weights_sha256": "0" * 63},
    "features": lambda record: record | {"features": {"stem": "4"}},
}
RAW = {
    "truncated": b'{"dataset": "digits", "mod',
    "nothing": b"",
    "not UTF-8": b'{"dataset": "\xff\xfe"}',
    "brackets": b"[" * 200_000,
    "objects": b'{"a":' * 200_000,
    "digits": b'{"volume": ' + b"9" * 5000 + b"}",
}


def damages():
    for file in (runs.CONFIG, runs.RESULT):
        for name, damage in (DAMAGE | (DAMAGE_OF_RESULTS if file == runs.RESULT else {})).items():
            yield pytest.param(file, lambda content, d=damage: json.dumps(d(json.loads(content))).encode(),
                               id=f"{file} {name}")  # fmt: skip
        for name, content in RAW.items():
            yield pytest.param(file, lambda _, c=content: c, id=f"{file} {name}")


@pytest.mark.parametrize(("file", "damage"), list(damages()))
def test_f3_a_bad_record_is_named_and_does_not_hide_the_others(file, damage, recorded, caplog):
    path = recorded / file
    path.write_bytes(damage(path.read_bytes()))
    for read in (runs.read, run):
        with pytest.raises(bar.BarError) as error:
            read(recorded)
        assert str(recorded) in str(error.value)
        assert file in str(error.value)
        assert len(str(error.value)) < 600
    with caplog.at_level(logging.WARNING):
        table = runs.records(recorded.parent)
    assert table["method"].tolist() == ["unpruned"]
    assert [str(recorded) in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing", "link to itself"])
def test_f3_what_is_no_file(kind, recorded, caplog):
    path = recorded / runs.RESULT
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere" if kind == "link to nothing" else path.name)
    with pytest.raises(bar.BarError, match=r"cannot read the run"):
        runs.read(recorded)
    assert runs.records(recorded.parent)["method"].tolist() == ["unpruned"]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda held: {},
        lambda held: [],
        lambda held: {k: v for k, v in held.items() if k not in ("fingerprint", "seed")},
        lambda held: held | {"fingerprint": None},
        lambda held: held | {"fingerprint": "0"},
        lambda held: held | {"format": 99, "fingerprint": "0" * 64},
        None,
    ],
    ids=["empty", "list", "fields gone", "null", "short", "newer", "pipe"],
)
def test_f3_a_bad_config_in_the_usual_folder_is_named_and_no_folder_beside_it_taken(damage, whole, tmp_path):
    shutil.copytree(whole.parent, tmp_path / "runs")
    config = bar.RunConfig(**TINY)
    folder = (tmp_path / "runs" / whole.name).rename(tmp_path / "runs" / config.name)
    path = folder / runs.CONFIG
    held = json.loads(path.read_text())
    path.unlink()
    if damage is None:
        os.mkfifo(path)
    else:
        path.write_text(json.dumps(damage(held)))
    before = names(folder.parent)
    with pytest.raises(bar.BarError, match=r"cannot read the run in .*config\.json: "):
        run(folder)
    assert names(folder.parent) == before


@pytest.mark.parametrize(
    "other",
    [
        {"model": "x" * 10**6},
        {"model": "a\nb\x1b[31m\u2028c"},
        {"a\nb\x1b[31m": [1] * 10**5},
        {"k" * 10**6: 1},
        {f"k{i}": i for i in range(10_000)},
        {"x": 10**4000},
    ],
    ids=["long", "control characters", "list", "long name", "many", "digits"],
)
def test_f3_another_run_is_named_in_one_short_line(other, recorded):
    path = recorded / runs.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | other))
    with pytest.raises(bar.BarError, match=r"already holds another run: .* instead of ") as error:
        run(recorded)
    message = str(error.value)
    assert len(message) < 1500
    assert message.isprintable()


def test_f3_a_record_of_many_megabytes_is_not_read(recorded):
    (recorded / runs.RESULT).write_text('{"x": [' + ",".join(["[]"] * (4 * 2**20)) + "]}")
    for read in (runs.read, run):
        with pytest.raises(bar.BarError, match=r"result\.json: it has more than 8,388,608 bytes"):
            read(recorded)


def test_f3_one_line_on_the_command_line(bar_command, recorded):
    (recorded / runs.RESULT).write_text("[]")
    code, out, err = bar_command("run", *OPTIONS, "--out", str(recorded))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{recorded}: result.json: it holds [] instead of fields" in err


def test_f3_records_from_before_are_read():
    found = sorted(RESULTS.rglob(runs.RESULT))
    assert len(found) > 100
    assert len(runs.records(RESULTS)) == len(found)
    for path in found:
        schema.read(path.parent / runs.CONFIG, schema.CONFIG_FIELDS)


@pytest.mark.parametrize("content", ["[]", "{", '{"lambda": 1, "volume": "x", "flops": 1, "seconds": 1}'])
def test_f3_a_bad_trial_is_named(content, tmp_path):
    config = bar.RunConfig(**TINY, method="l0")
    images = data.load("digits", size=TINY["size"], limit=TINY["limit"])
    trial = tmp_path / f"{config.trials}-data{images.fingerprint[:8]}" / "0.1" / runs.TRIAL
    trial.parent.mkdir(parents=True)
    trial.write_text(content)
    with pytest.raises(bar.BarError, match=r"-trials-.*/0\.1: trial\.json"):
        bar.run(config, tmp_path / "run", device="cpu")


@pytest.mark.parametrize("line", ["[]", '{"phase": ', "[" * 100_000, "\udcff"])
def test_f3_bad_epochs_are_named_and_a_line_that_is_being_written_is_passed_over(line, recorded):
    path = recorded / runs.METRICS_FILE
    whole = runs.metrics(recorded)
    with path.open("a") as file:
        file.write('{"phase": "pru')
    assert runs.metrics(recorded).equals(whole)
    path.write_bytes(path.read_bytes() + f"\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(bar.BarError, match=r"cannot read .*metrics\.jsonl"):
        runs.metrics(recorded)


@pytest.mark.parametrize(
    "damage",
    [
        5,
        {},
        lambda state: state | {"records": 5},
        lambda state: state | {"records": [5]},
        lambda state: state | {"records": [{}]},
        lambda state: state | {"seconds": "x"},
        lambda state: {k: v for k, v in state.items() if k != "training"},
        b"junk",
        b"",
        "pipe",
    ],
    ids=["number", "empty", "records", "record", "phase", "seconds", "training", "junk", "nothing", "pipe"],
)
def test_f3_a_checkpoint_that_is_none_is_passed_over_whatever_its_hash_says(damage, tmp_path, caplog):
    folder = tmp_path / "run"
    interrupted(folder, 3)
    latest = folder / storage.CHECKPOINT
    config = json.loads((folder / runs.CONFIG).read_text())
    (state, *_) = storage.load_checkpoints(folder, config)
    latest.unlink()
    if damage == "pipe":
        os.mkfifo(latest)
    elif isinstance(damage, bytes):
        latest.write_bytes(hashlib.sha256(damage).digest() + damage)
    else:
        save(latest, damage(state) if callable(damage) else damage)
    (state,) = storage.load_checkpoints(folder, config)
    assert len(state["records"]) == 2
    assert f"{latest} is not used: " in caplog.text


# F4: no space, no folder, no permission


def failing(function, when, code: int):
    """The same function, but at those calls."""
    calls = 0

    def call(*args, **kwargs):
        nonlocal calls
        calls += 1
        if when(calls):
            raise OSError(code, os.strerror(code))
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("place", range(1, 17, 3))
@pytest.mark.parametrize("what", ["replace", "fsync"])
def test_f4_a_full_disk(what, place, whole, bar_command, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as full:
        full.setattr(os, what, failing(getattr(os, what), lambda call: call >= place, errno.ENOSPC))
        code, out, err = bar_command("run", *OPTIONS, "--out", str(folder))
    last = err.splitlines()[-1]
    assert (code, out, "Traceback" in err) == (2, "", False)
    assert last.startswith("bar: cannot write ")
    assert last.endswith(": No space left on device")
    assert not list(tmp_path.rglob("*.partial"))
    assert run(folder)["weights_sha256"] == runs.read(whole)["weights_sha256"]
    assert names(folder) == LEFT


def test_f4_a_full_disk_at_a_line_of_the_metrics(whole, bar_command, tmp_path, monkeypatch):
    folder, opened = tmp_path / "run", Path.open
    calls = []

    def open_(path, mode="r", *args, **kwargs):
        if mode == "a":
            calls.append(path)
            if len(calls) >= 5:
                return opened(Path("/dev/full"), mode, *args, **kwargs)  # says so when it is flushed
        return opened(path, mode, *args, **kwargs)

    with monkeypatch.context() as full:
        full.setattr(Path, "open", open_)
        code, _, err = bar_command("run", *OPTIONS, "--out", str(folder))
    assert code == 2
    assert err.splitlines()[-1] == f"bar: cannot write {folder / runs.METRICS_FILE}: No space left on device"
    assert run(folder)["weights_sha256"] == runs.read(whole)["weights_sha256"]
    assert runs.metrics(folder).drop(columns="seconds").equals(runs.metrics(whole).drop(columns="seconds"))


def test_f4_files_that_may_not_grow(whole, tmp_path):
    """The operating system's own refusal, in a process of its own: checkpoints are larger than this limit."""
    folder = tmp_path / "run"
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); "
        "from bar.cli import main; sys.argv[0] = 'bar'; main()"
    )
    command = [sys.executable, "-c", script, "run", *OPTIONS, "--out", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].endswith("checkpoint.pt: File too large")
    assert "Traceback" not in done.stderr
    assert run(folder)["weights_sha256"] == runs.read(whole)["weights_sha256"]


@pytest.mark.parametrize("method", ["unpruned", "bar"])
def test_f4_the_folder_is_removed(method, whole, tmp_path):
    folder = tmp_path / "runs" / "run"

    def report(config, record):
        if config.method == method:
            shutil.rmtree(folder.parent)

    with pytest.raises(bar.BarError, match=r"cannot write .*: No such file or directory"):
        bar.run(bar.RunConfig(**TINY), folder, device="cpu", report=report)
    assert run(folder)["weights_sha256"] == runs.read(whole)["weights_sha256"]


@pytest.mark.parametrize("what", ["mkdir", "open"])
def test_f4_a_folder_that_may_only_be_read(what, recorded, bar_command, monkeypatch):
    """A new run is refused in one line; one that is recorded there can be used."""
    before = names(recorded.parent)
    with monkeypatch.context() as forbidden:
        forbidden.setattr(os, what, failing(getattr(os, what), lambda call: True, errno.EROFS))
        code, out, err = bar_command("run", *OPTIONS, "--out", str(recorded.parent / "new"))
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.endswith(": Read-only file system\n")
        forbidden.setattr(Path, "unlink", failing(Path.unlink, lambda call: True, errno.EROFS))
        assert bar_command("run", *OPTIONS, "--out", str(recorded))[0] == 0
    assert names(recorded.parent) - {"new"} == before


# F5: networks from strangers


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    storage.save(bar.prune(bar.gate(build("awkward"), SIZE)), folder)
    return folder


@pytest.fixture
def stranger(stored, tmp_path):
    """Writes the architecture anew, changed."""
    folder = tmp_path / "stranger"
    shutil.copytree(stored, folder)

    def write(change) -> Path:
        path = folder / storage.ARCHITECTURE
        if isinstance(change, bytes):
            path.write_bytes(change)
        else:
            architecture = json.loads(path.read_text())
            change(architecture)
            path.write_text(json.dumps(architecture))
        return folder

    return write


def options(architecture, layer: str) -> dict:
    return next(m["options"] for m in architecture["modules"].values() if m["class"] == layer)


def node(architecture, op: str) -> dict:
    return next(n for n in architecture["nodes"] if n["op"] == op)


def renamed(old: str, new: str):
    """Everywhere, so that the name itself is all that is odd."""

    def change(architecture):
        text = json.dumps(architecture).replace(json.dumps(old), json.dumps(new))
        architecture.clear()
        architecture.update(json.loads(text))

    return change


REFUSED = {
    "device": lambda a: options(a, "Conv2d").update(device="cpu"),
    "dtype": lambda a: options(a, "Linear").update(dtype="float16"),
    "large": lambda a: options(a, "Linear").update(in_features=20_000, out_features=20_000),
    "large on a device": lambda a: options(a, "Linear").update(in_features=20_000, out_features=20_000, device="cpu"),
    "huge": lambda a: options(a, "Conv2d").update(in_channels=2**62, out_channels=2**62),
    "negative": lambda a: options(a, "Conv2d").update(out_channels=-3),
    "boolean": lambda a: options(a, "Conv2d").update(groups=True),
    "kernel": lambda a: options(a, "Conv2d").update(kernel_size=[3] * 10_000),
    "padding": lambda a: options(a, "Conv2d").update(padding=10**9),
    "mode": lambda a: options(a, "Conv2d").update(padding_mode="eval"),
    "text": lambda a: options(a, "BatchNorm2d").update(eps="1"),
    "infinite": lambda a: options(a, "BatchNorm2d").update(eps=float("inf")),
    "no options": lambda a: next(iter(a["modules"].values())).pop("options"),
    "format": lambda a: a.update(format=99),
    "no format": lambda a: a.pop("format"),
    "placeholder": lambda a: node(a, "placeholder").update(target="a.b"),
    "self": renamed("x", "self"),
    "op": lambda a: node(a, "call_function").update(op="foo"),
    "op list": lambda a: node(a, "call_function").update(op=["output"]),
    "function": lambda a: node(a, "call_function").update(target=7),
    "text argument": lambda a: node(a, "call_function").update(args=["print(1)"]),
    "no argument": lambda a: node(a, "call_function").update(args=[]),
    "numbers only": lambda a: node(a, "call_function").update(args=[1, 2]),
    "too many arguments": lambda a: node(a, "call_module")["args"].append(1),
    "odd keyword": lambda a: node(a, "call_function")["kwargs"]["kwargs"].update(out=1),
    "dict argument": lambda a: node(a, "call_function").update(args=[{"kwargs": {"a": 1}}]),
    "nested": lambda a: node(a, "call_function").update(args=json.loads("[" * 30 + "]" * 30)),
    "cycle": lambda a: node(a, "call_module").update(args=[{"node": node(a, "output")["name"]}]),
    "itself": lambda a: node(a, "call_module").update(args=[{"node": node(a, "call_module")["name"]}]),
    "missing node": lambda a: node(a, "call_module").update(args=[{"node": "nobody"}]),
    "node of a list": lambda a: node(a, "call_module").update(args=[{"node": []}]),
    "no output": lambda a: a["nodes"].pop(),
    "two outputs": lambda a: a["nodes"].append(a["nodes"][-1] | {"name": "again"}),
    "twice": lambda a: a["nodes"].insert(1, a["nodes"][0]),
    "module not called": lambda a: a["modules"].update(more={"class": "ReLU", "options": {}}),
    "module that is none": lambda a: a["modules"].update({next(iter(a["modules"])): 5}),
    "attribute": lambda a: node(a, "get_attr").update(target="__class__"),
    "nodes": lambda a: a.update(nodes={}),
    "many nodes": lambda a: a.update(nodes=a["nodes"][:1] * 100_000),
    "brackets": b"[" * 200_000,
    "many brackets": b"[" + b"[]," * 4_000_000 + b"0]",
    "digits": b'{"format": ' + b"9" * 5000 + b"}",
    "list": b"[]",
    "not UTF-8": b'{"\xff": 1}',
}


@pytest.mark.parametrize("name", REFUSED)
def test_f5_what_no_list_allows_is_refused(name, stranger):
    folder = stranger(REFUSED[name])
    with pytest.raises(bar.BarError, match=r"network\.json") as error:
        bar.load(folder)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "name",
    [
        "forward",
        "training",
        "_modules",
        "state_dict",
        "a\nb",
        'a"b',
        "a\\b",
        "class",
        "ﬁ",
        "",
        "a..b",
        "self.x\u2028y",
        "graph",
    ],
)
def test_f5_module_names_that_would_do_something(name, stranger):
    architecture = json.loads((stranger(lambda a: None) / storage.ARCHITECTURE).read_text())
    folder = stranger(renamed(next(iter(architecture["modules"])), name))
    with pytest.raises(bar.BarError, match=r"cannot be called|is missing"):
        bar.load(folder)


MEMORY = """
import json, resource, sys, bar
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
bar.load(sys.argv[1])
before = peak()
for folder in sys.argv[2:]:
    try:
        bar.load(folder)
        print("loaded", folder)
    except bar.BarError:
        pass
print(peak() - before)
"""


def test_f5_no_memory_but_that_of_the_network(stored, tmp_path):
    places = []
    for name, change in REFUSED.items():
        place = tmp_path / name
        shutil.copytree(stored, place)
        path = place / storage.ARCHITECTURE
        architecture = json.loads(path.read_text())
        if not isinstance(change, bytes):
            change(architecture)
        path.write_bytes(change if isinstance(change, bytes) else json.dumps(architecture).encode())
        places.append(str(place))
    hollow = tmp_path / "hollow"  # tensors of terabytes, in a file that takes no space
    shutil.copytree(stored, hollow)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    with (hollow / storage.WEIGHTS).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**40)
    command = [sys.executable, "-c", MEMORY, str(stored), *places, str(hollow)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150 * 2**20


VALUES = [
    None, True, False, 0, 1, -1, 3, 7, 2**31, 2**70, 0.5, -1e40, float("nan"), "", "x", "a.b", "self", "conv1",
    "torch.relu", "torch.cat", "os.system", "call_module", "output", "get_attr", "__class__", "é", [], {}, [1, 1], [[]],
    {"node": "x"}, {"node": 1}, {"kwargs": {}}, {"kwargs": {"a b": 1}}, {"class": "ReLU", "options": {}},
]  # fmt: skip


def mutate(value, rng: random.Random):
    """Change one place of a tree: another value, another place's value, something gone, more or twice."""
    places = []

    def walk(tree):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            places.append((tree, key))
            if isinstance(tree[key], dict | list):
                walk(tree[key])

    walk(value)
    tree, key = rng.choice(places)
    other, place = rng.choice(places)
    what = rng.randrange(6)
    if what < 2:
        tree[key] = json.loads(json.dumps(rng.choice(VALUES)))
    elif what == 2:
        tree[key] = json.loads(json.dumps(other[place]))
    elif what == 3:
        del tree[key]
    elif what == 4 and isinstance(tree, list):
        tree.insert(rng.randrange(len(tree) + 1), json.loads(json.dumps(tree[key])))
    elif isinstance(tree, dict):
        tree[str(rng.choice(VALUES))] = tree.pop(key)


@settings(max_examples=4 * settings().max_examples)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(["awkward", "grouped", "resnet-basic"]))
def test_f5_mutated_networks_are_refused_or_work(seed, name, tmp_path_factory):
    rng, folder = random.Random(seed), tmp_path_factory.mktemp("mutated")
    storage.save(bar.prune(bar.gate(build(name), SIZE)), folder)
    path = folder / storage.ARCHITECTURE
    if rng.random() < 0.8:
        architecture = json.loads(path.read_text())
        for _ in range(rng.choice([1, 1, 2, 5])):
            mutate(architecture, rng)
        path.write_text(json.dumps(architecture))
    else:
        path = rng.choice([path, folder / storage.WEIGHTS])
        content = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 2, 20])):
            content[rng.randrange(min(len(content), 2000))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
    try:
        network = bar.load(folder)
    except bar.BarError:
        return
    assert isinstance(network, fx.GraphModule)
    with contextlib.suppress(RuntimeError, IndexError, ValueError):  # shapes may not fit any more, as torch then says
        on_meta(network)(torch.empty(2, *SIZE, dtype=torch.float64, device="meta"))


# C4: names


class Named(nn.Module):
    """A network whose modules are called by names that are no identifiers of Python, or hardly."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Conv2d(3, 3, 3, padding=1))
        self.names = names
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        for name in self.names:
            x = x + torch.relu(self.get_submodule(name)(x))
        return self.last(x)


@pytest.mark.parametrize(
    "name",
    ["conv-1", "stem conv", "größe", "1", "it's", "a{b}", "%s", "#", "$x", "卷积", "a b-c/d", "None_", "x" * 150],
)
def test_c4_networks_are_read_back_whatever_their_modules_are_called(name, tmp_path):
    torch.manual_seed(0)
    network = bar.prune(bar.gate(Named("first", name), SIZE))
    storage.save(network, tmp_path)
    again, images = bar.load(tmp_path), torch.randn(2, *SIZE)
    assert torch.equal(again(images), network(images))
    assert again.state_dict().keys() == network.state_dict().keys()
    assert bar.count(again, SIZE) == bar.count(network, SIZE)


def refused_in_writing(network, folder, match: str) -> None:
    with pytest.raises(bar.BarError, match=match):
        storage.save(network, folder / "new")
    assert not (folder / "new").exists()


@pytest.mark.parametrize("name", ['say "hi"', "a\\b", "a\nb", "\u202e", "x" * 300])
def test_c4_names_that_cannot_be_read_back_are_refused_when_writing(name, tmp_path):
    network = fx.symbolic_trace(Named("a"))
    network.add_module(name, nn.ReLU())
    with network.graph.inserting_after(next(iter(network.graph.nodes))):
        network.graph.call_module(name, (next(iter(network.graph.nodes)),))
    refused_in_writing(network, tmp_path, "cannot be called")


def test_c4_masks_are_refused_when_writing(tmp_path):
    network = Named("conv")
    prune.l1_unstructured(network.conv, "weight", amount=0.5)
    traced = fx.symbolic_trace(network)
    refused_in_writing(traced, tmp_path, r"conv: its forward hook \(L1Unstructured\).*torch\.nn\.utils\.prune\.remove")
    prune.remove(traced.conv, "weight")
    storage.save(traced, tmp_path)
    assert torch.equal(bar.load(tmp_path).conv.weight, traced.conv.weight)


def test_c4_two_names_for_one_weight_are_refused_when_writing(tmp_path):
    network = Named("a", "b")
    network.b.weight = network.a.weight
    refused_in_writing(fx.symbolic_trace(network), tmp_path, "cannot be saved.*share memory")


def test_c4_tensors_of_the_network_itself(tmp_path):
    """Parameters stay parameters; buffers that no state dict holds, and weights that are read twice, are kept."""

    class Net(Named):
        def __init__(self) -> None:
            super().__init__("a")
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.register_buffer("shift", torch.tensor(3.0), persistent=False)

        def forward(self, x):
            return super().forward(x) * self.scale + self.shift + self.a.bias.mean(0)

    network = fx.symbolic_trace(Net())
    storage.save(network, tmp_path)
    again, images = bar.load(tmp_path), torch.randn(2, *SIZE)
    assert torch.equal(again(images), network(images))
    assert isinstance(again.scale, nn.Parameter)
    assert dict(again.named_parameters()).keys() == dict(network.named_parameters()).keys()
