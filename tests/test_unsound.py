"""Checkpoints and records whose content makes no sense, folders that may only be read: nothing but a BarError."""

import contextlib
import copy
import functools
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from fuzzed import altered
from hypothesis import given, settings
from hypothesis import strategies as st
from test_records import mutate
from test_resume import save

import bar
from bar import data, methods, models, runs, schema, storage
from bar.training import PRESETS, Training, steps_per_epoch

TINY = {"limit": 96, "size": 8, "epochs": (2, 1, 0), "pruning_factor": 2.0}
SETTINGS = PRESETS["quick"]
METHODS = ("bar", "l0", "information-bottleneck", "morphnet", "learning-compression", "reparametrization", "mp-ft",
           "magnitude", "random")  # fmt: skip


@functools.cache
def images() -> data.Dataset:
    return data.load("digits", size=8, limit=96)


def same(a, b) -> bool:
    """Whether two states are one and the same."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def training(method: str) -> Training:
    """A short one with a method, or of the unpruned network."""
    torch.manual_seed(0)
    network, pruner = models.build("wrn-10-1", 10, images().input_size), None
    phases = [("train", 3, 1e-3)]
    if method != "unpruned":
        steps = steps_per_epoch(images(), SETTINGS)
        pruner = methods.build(
            method, network, images().input_size, SETTINGS, factor=3.0, steps_per_epoch=steps, epochs=(2, 1, 0)
        )
        phases = type(pruner).phases(SETTINGS, 3.0, (2, 1, 0))
        network = pruner.network
    torch.manual_seed(0)
    return Training(network, images(), phases, SETTINGS, torch.Generator().manual_seed(0), pruner=pruner)


@functools.cache
def states(method: str) -> list[dict]:
    """After each epoch."""
    first = training(method)
    return [copy.deepcopy(first.state_dict()) for _ in first]


WRONG = {
    "done is too large": {"done": 50},
    "done is negative": {"done": -1},
    "done is a text": {"done": "1"},
    "done is a flag": {"done": True},
    "steps are negative": {"step": -1},
    "steps are a text": {"step": "2"},
    "steps are those of another epoch": {"step": 1},
    "cut fields are a list": {"cut_fields": [1]},
    "cut fields are texts": {"cut_fields": {"volume": "x"}},
    "it is cut too early": {"pruning": False},
    "pruning is a text": {"pruning": "no"},
    "there is no pruner": {"pruner": None},
    "the pruner is empty": {"pruner": {}},
    "the pruner is a list": {"pruner": [1]},
    "the network is a number": {"network": 5},
    "the optimizer is empty": {"optimizer": {}},
    "the generator is a text": {"generator": "x"},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_training_is_unharmed_by_a_state_that_makes_no_sense(name):
    state = states("bar")[1] | WRONG[name]
    whole = [{k: v for k, v in record.items() if k != "seconds"} for record in training("bar")]
    second = training("bar")
    before = copy.deepcopy(second.state_dict())
    with pytest.raises(bar.BarError, match="another training"):
        second.load_state_dict(state)
    assert same(second.state_dict(), before)
    assert [{k: v for k, v in record.items() if k != "seconds"} for record in second] == whole


@settings(max_examples=4 * settings().max_examples)
@given(seed=st.integers(0, 2**32), method=st.sampled_from(["unpruned", *METHODS]))
def test_a_training_goes_on_from_an_altered_state_or_refuses_it(seed, method):
    rng = random.Random(seed)
    state, _ = altered(rng.choice(states(method)), rng)
    second = training(method)
    before = copy.deepcopy(second.state_dict())
    try:
        second.load_state_dict(state)
    except bar.BarError:
        assert same(second.state_dict(), before)
        return
    with contextlib.suppress(bar.BarError):  # weights that are no numbers, say
        list(second)


# runs


def run(folder, **options) -> dict:
    """With what the command line shows after each epoch."""
    shown = options.pop("shown", [])

    def report(config, record):
        shown.append(f"{record['phase']:<8} {record['epoch']:>3} {record['accuracy']:.3f} {record['seconds']:.1f}")
        if "budget" in record:
            shown.append(f"{record['size'] / record['budget']:.3f}")

    return bar.run(bar.RunConfig(**(TINY | options)), folder, device="cpu", report=report)


def interrupted(folder, method: str, epochs: int) -> Path:
    """A run that ended with Ctrl-C after so many epochs of its own; the folder of its checkpoints."""
    seen = []

    def report(config, record):
        seen.append(config.method)
        if seen.count(method) == epochs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bar.run(bar.RunConfig(**TINY, method=method), folder, device="cpu", report=report)
    (latest,) = folder.parent.rglob(storage.CHECKPOINT)
    return latest.parent


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Runs with two checkpoints: of BAR, before and after the cut, and of a trial of L0."""
    found = []
    for method, epochs in (("bar", 2), ("bar", 4), ("l0", 2)):
        folder = tmp_path_factory.mktemp(method) / "run"
        found.append((folder, interrupted(folder, method, epochs).relative_to(folder.parent), method))
    return found


def copied(begun, tmp_path) -> tuple[Path, Path, str]:
    """The run's folder in a copy of all, that of its checkpoints, and its method."""
    folder, checkpoints, method = begun
    shutil.copytree(folder.parent, tmp_path / "runs")
    return tmp_path / "runs" / folder.name, tmp_path / "runs" / checkpoints, method


def latest(folder: Path) -> dict:
    """The state in a checkpoint."""
    return torch.load(io.BytesIO((folder / storage.CHECKPOINT).read_bytes()[32:]), weights_only=True)


ODD_STATES = {
    **{name: {"training": change} for name, change in WRONG.items()},
    "records are numbers": {"records": [5, 5]},
    "records are fewer": {"records": []},
    "records are empty": {"records": [{}, {}]},
    "accuracy is a text": {"records": [{"phase": "prune", "epoch": 1, "accuracy": "x", "seconds": 1.0}] * 2},
    "seconds are a text": {"seconds": "5"},
    "seconds are no number": {"seconds": float("nan")},
}


@pytest.mark.parametrize("name", ODD_STATES)
def test_a_checkpoint_that_makes_no_sense_is_passed_over_whatever_its_hash_says(name, begun, tmp_path, caplog):
    folder, checkpoints, method = copied(begun[0], tmp_path)
    state = latest(checkpoints)
    change = ODD_STATES[name]
    change = {"training": state["training"] | change["training"]} if "training" in change else change
    save(checkpoints / storage.CHECKPOINT, state | change)
    record = run(folder, method=method)
    messages = [entry.getMessage() for entry in caplog.records]
    assert [f"{checkpoints / storage.CHECKPOINT} is not used: " in message for message in messages] == [True, False]
    assert "going on after 1 epochs" in messages[1]
    assert record["weights_sha256"] == untouched(begun[0])["weights_sha256"]


@functools.cache
def untouched(begun) -> dict:
    """The record of the run that goes on from its own checkpoint."""
    folder, _, method = begun
    place = folder.parent.parent / f"{folder.parent.name}-untouched"
    shutil.copytree(folder.parent, place)
    return run(place / folder.name, method=method)


def finished(begun) -> Path:
    """Where that run is, and the unpruned network beside it."""
    folder, *_ = begun[1]
    untouched(begun[1])
    return folder.parent.parent / f"{folder.parent.name}-untouched"


def test_a_run_starts_again_if_no_checkpoint_makes_sense(begun, tmp_path, caplog):
    folder, checkpoints, method = copied(begun[1], tmp_path)
    state = latest(checkpoints)
    for name in (storage.CHECKPOINT, storage.PREVIOUS):
        save(checkpoints / name, state | {"training": state["training"] | {"done": 99}})
    record = run(folder, method=method)
    assert caplog.text.count("is not used: ") == 2
    assert "going on" not in caplog.text
    assert record["weights_sha256"] == untouched(begun[1])["weights_sha256"]


def test_a_trial_whose_epochs_have_no_size_is_made_again(begun, tmp_path, caplog):
    folder, checkpoints, method = copied(begun[2], tmp_path)
    state = latest(checkpoints)
    for record in state["records"]:
        del record["volume"]
    save(checkpoints / storage.CHECKPOINT, state)
    record = run(folder, method=method)
    assert f"{checkpoints / storage.CHECKPOINT} is not used: " in caplog.text
    assert record["weights_sha256"] == untouched(begun[2])["weights_sha256"]


@settings(max_examples=settings().max_examples // 3)
@given(seed=st.integers(0, 2**32), which=st.integers(0, 2))
def test_a_run_with_an_altered_checkpoint_ends_or_says_why_not(seed, which, begun, tmp_path_factory):
    rng = random.Random(seed)
    folder, checkpoints, method = copied(begun[which], tmp_path_factory.mktemp("altered"))
    state = latest(checkpoints)
    part = rng.choice(["records", "records", "training", "all"])
    changed = altered(state if part == "all" else {part: state[part]}, rng)[0]
    save(checkpoints / storage.CHECKPOINT, changed if part == "all" else state | changed)
    with contextlib.suppress(bar.BarError):
        assert run(folder, method=method) == runs.read(folder)
    shutil.rmtree(folder.parent)


# records


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A run of L0, with its trials."""
    folder = tmp_path_factory.mktemp("searched") / "run"
    run(folder, method="l0")
    return folder


def damaged(path: Path, rng: random.Random) -> None:
    """One of the files of a run, changed somewhere; what it says of the other files is made to fit, where it can be."""
    content = path.read_bytes()
    if path.suffix == ".safetensors" and rng.random() < 0.7:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        mutate(header, rng)
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + content[8 + size :]
    elif path.suffix == ".jsonl" and rng.random() < 0.7:
        lines = [json.loads(line) for line in content.splitlines()]
        mutate(lines, rng)
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    elif path.suffix == ".json" and rng.random() < 0.7:
        held = json.loads(content)
        mutate(held, rng)
        content = json.dumps(held).encode()
    else:
        content = rng.choice([
            content[: rng.randrange(len(content))], b"[" * 10**5, b"9" * 5000, b"", b"\xff" + content, b"[NaN]",
            b"[[], " * 10 + b"[]" + b"]" * 10, b"[" + b"[]," * 10**6 + b"0]", b'{"lambda": 1e999}', b"\0" * 10**6,
        ])  # fmt: skip
    path.write_bytes(content)


FILES = (runs.CONFIG, runs.RESULT, runs.METRICS_FILE, runs.TRIAL, storage.ARCHITECTURE, storage.WEIGHTS)


def read_all(folder: Path, seed: int, file: str) -> int:
    """Damage a file of a run and ask everybody who reads it; how many refused it."""
    rng, refused = random.Random(seed), 0
    path = rng.choice(sorted(folder.parent.rglob(file)))
    damaged(path, rng)
    if file in (storage.ARCHITECTURE, storage.WEIGHTS) and rng.random() < 0.8:
        for beside in (schema.RESULT, storage.ARCHITECTURE):  # whoever damages a network can change these, too
            record = path.parent / beside
            hashes = {"weights_sha256": storage.WEIGHTS, "architecture_sha256": storage.ARCHITECTURE}
            with contextlib.suppress(ValueError, TypeError):
                held = json.loads(record.read_text())
                held |= {k: storage.digest(path.parent / name) for k, name in hashes.items() if k in held}
                if beside != file:
                    record.write_text(json.dumps(held, indent=1))
    if file == runs.TRIAL:  # which is read by a search only
        (folder / runs.RESULT).unlink()
    for read in (bar.load, runs.read, runs.metrics, runs.records, lambda folder: run(folder, method="l0")):
        try:
            read(path.parent if file != runs.TRIAL else folder)
        except bar.BarError:
            refused += 1
    return refused


@given(seed=st.integers(0, 2**32), file=st.sampled_from(FILES))
def test_damaged_files_of_a_run_are_refused_or_read(seed, file, searched, tmp_path_factory):
    root = tmp_path_factory.mktemp("damaged")
    shutil.copytree(searched.parent, root / "runs")
    read_all(root / "runs" / searched.name, seed, file)
    shutil.rmtree(root)


MEMORY = """
import resource, shutil, sys, warnings
from pathlib import Path
from test_unsound import FILES, read_all
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
source, root = Path(sys.argv[1]), Path(sys.argv[2])
for seed in range(31):
    shutil.copytree(source.parent, root / "runs")
    read_all(root / "runs" / source.name, seed, FILES[seed % len(FILES)] if seed else FILES[3])
    shutil.rmtree(root / "runs")
    before = before if seed else peak()
print(peak() - before)
"""


def test_damaged_files_take_no_memory(searched, tmp_path):
    command = [sys.executable, "-c", MEMORY, str(searched), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300 * 2**20


# permission


class Forbidden:
    """Calls of a user who may not do everything, in a process of its own: permission does not hold for root."""

    SCRIPT = """
import json, os, resource, sys
from pathlib import Path
import bar
from bar import data
options, place = json.loads(sys.argv[1]), Path(sys.argv[2])
images = data.load("digits", size=options["size"], limit=options["limit"])
data.load = lambda *arguments, **named: images  # whose file this user may not read
config = bar.RunConfig(**options)
bar.run(config, place / "warm" / "run", device="cpu")  # whatever is imported when it is needed
bar.load(place / "warm" / "run")
if os.getuid() == 0:
    try:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    except PermissionError:  # a root that is none
        sys.exit(77)
for line in sys.stdin:
    what, folder = json.loads(line)
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    if what == "full":  # of which a file that cannot grow is as near as one gets without a disk of one's own
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
    try:
        bar.load(folder) if what == "load" else bar.run(config, folder, device="cpu")
        print(json.dumps("done"), flush=True)
    except bar.BarError as error:
        print(json.dumps(str(error)), flush=True)
    except Exception as error:
        print(json.dumps(repr(error)), flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
"""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT, json.dumps(TINY), str(place)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(place)},
        )  # fmt: skip

    def __call__(self, what: str, folder: Path) -> str:
        """Load a network or run in a folder; the message of what went wrong, or "done"."""
        self.process.stdin.write(json.dumps([what, str(folder)]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer and self.process.wait(timeout=60) == 77:
            pytest.skip("this root cannot become another user")
        return json.loads(answer)


@pytest.fixture(scope="module")
def anybody():
    with tempfile.TemporaryDirectory() as folder:  # pytest's are for one user only
        place = Path(folder)
        place.chmod(0o777)
        forbidden = Forbidden(place / "own")
        with forbidden.process:  # which ends with its input
            yield forbidden, place


def may(folder: Path, write: bool) -> None:
    """Give everybody permission to all that is in a folder, or take it away."""
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if write else 0o555) if path.is_dir() else (0o666 if write else 0o444))


def test_a_folder_that_may_not_be_written_and_then_may(anybody):
    call, place = anybody
    folder = place / "closed" / "run"
    folder.parent.mkdir()
    may(folder.parent, write=False)
    message = call("run", folder)
    assert "Permission denied" in message
    assert str(folder.parent) in message
    assert message.startswith("cannot write ")
    may(folder.parent, write=True)
    assert call("run", folder) == "done"


def test_a_run_whose_folder_may_be_read_only_and_then_written_again(begun, anybody):
    call, place = anybody
    folder, _, _ = copied(begun[1], place)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    may(folder.parent, write=False)
    message = call("run", folder)
    assert message.startswith("cannot write ")
    assert str(folder) in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    may(folder.parent, write=True)
    assert call("run", folder) == "done"
    assert runs.read(folder)["weights_sha256"] == untouched(begun[1])["weights_sha256"]


@pytest.mark.parametrize(
    "name", [".", runs.CONFIG, runs.RESULT, storage.WEIGHTS, storage.ARCHITECTURE], ids=lambda name: name
)
@pytest.mark.parametrize("what", ["load", "run"])
def test_what_may_not_be_read_and_then_may(what, name, begun, anybody, tmp_path):
    call, place = anybody
    folder = place / f"{what}-{name}" / "run"
    shutil.copytree(finished(begun), folder.parent)
    may(folder.parent, write=True)
    (folder / name).chmod(0)
    message = call(what, folder)
    if (what, name) == ("load", runs.CONFIG):  # which only the record needs
        assert message == "done"
    else:
        assert message.startswith("cannot ")
        assert "Permission denied" in message
        assert str(folder) in message
    may(folder.parent, write=True)
    assert call(what, folder) == "done"


def test_a_checkpoint_that_may_not_be_read_is_left_for_when_it_may(begun, anybody):
    """A run begins anew only where nobody has forbidden to go on."""
    call, place = anybody
    (place / "hidden").mkdir()
    folder, checkpoints, _ = copied(begun[1], place / "hidden")
    may(folder.parent, write=True)
    for name in (storage.CHECKPOINT, storage.PREVIOUS):
        (checkpoints / name).chmod(0)
    message = call("run", folder)
    assert "Permission denied" in message
    assert str(checkpoints / storage.CHECKPOINT) in message
    may(folder.parent, write=True)
    assert call("run", folder) == "done"


def test_a_disk_that_is_full_and_then_is_not(begun, anybody):
    call, place = anybody
    (place / "full").mkdir()
    folder, checkpoints, _ = copied(begun[0], place / "full")
    may(folder.parent, write=True)
    before = {path: path.read_bytes() for path in checkpoints.glob("*.pt")}
    message = call("full", folder)
    assert message == f"cannot write {checkpoints / storage.CHECKPOINT}: File too large"
    assert {path: path.read_bytes() for path in checkpoints.glob("*.pt")} == before
    assert not list(folder.parent.rglob("*.partial"))
    assert call("run", folder) == "done"
    assert runs.read(folder)["weights_sha256"] == untouched(begun[0])["weights_sha256"]
