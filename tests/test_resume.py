"""A run that is killed, wherever, ends like one that was not."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys

import pytest
import torch

import bar
from bar import runs, storage

CONFIG = {"limit": 160, "size": 8, "epochs": (3, 2, 1), "pruning_factor": 3.7}

# The process kills itself: after so many steps, or at the n-th replacement of a file, before or after it.
SCRIPT = """
import json, os, signal, sys
import bar
config, folder, where, count = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
left = count

def reached():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

replace = os.replace
def replaced(*paths):
    if where == "before":
        reached()
    replace(*paths)
    if where == "after":
        reached()

os.replace = replaced
bar.run(bar.RunConfig(**config), folder, device="cpu", tick=lambda config: reached() if where == "step" else None)
"""


def killed(folder, where: str, count: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", SCRIPT, json.dumps(CONFIG), str(folder), where, str(count)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def records(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / runs.METRICS_FILE).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "run"
    bar.run(bar.RunConfig(**CONFIG), folder, device="cpu")
    torch.set_num_threads(threads)
    return folder


def test_killed_again_and_again(whole, tmp_path):
    """In the unpruned network's training, in the pruning, between the two renamings of a checkpoint, at the end."""
    folder = tmp_path / "run"
    for where, count in (("step", 13), ("before", 12), ("after", 8), ("step", 7)):
        done = killed(folder, where, count)
        assert done.returncode == -signal.SIGKILL, done.stderr
    done = killed(folder, "step", 10**6)
    assert done.returncode == 0, done.stderr
    assert f"{folder}: going on after" in done.stderr
    assert records(folder) == records(whole)
    assert runs.read(folder)["weights_sha256"] == runs.read(whole)["weights_sha256"]
    kept = {path.name for path in folder.iterdir()}
    assert kept == {runs.CONFIG, runs.METRICS_FILE, runs.RESULT, storage.ARCHITECTURE, storage.WEIGHTS}


def interrupted(folder, epochs: int) -> None:
    """A run that ended with Ctrl-C after so many epochs of pruning."""
    seen = []

    def report(config, record):
        seen.append(config.method)
        if seen.count("bar") == epochs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bar.run(bar.RunConfig(**CONFIG), folder, device="cpu", report=report)


def save(path, state) -> None:
    content = io.BytesIO()
    torch.save(state, content)
    path.write_bytes(hashlib.sha256(content.getvalue()).digest() + content.getvalue())


@pytest.mark.parametrize("damage", ["truncated", "altered", "foreign", "pickle"])
def test_a_checkpoint_that_cannot_be_used_is_passed_over(damage, tmp_path, caplog):
    """For the one before it; and it says so."""
    folder = tmp_path / "run"
    interrupted(folder, 3)
    latest = folder / storage.CHECKPOINT
    content = latest.read_bytes()
    if damage == "truncated":
        latest.write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        middle = len(content) // 2
        latest.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    elif damage == "foreign":
        (state, *_) = storage.load_checkpoints(folder, json.loads((folder / runs.CONFIG).read_text()))
        save(latest, state | {"config": state["config"] | {"seed": 7}})
    else:
        save(latest, {"config": print})  # would call whatever it names, were it unpickled
    seen = []
    bar.run(bar.RunConfig(**CONFIG), folder, device="cpu", report=lambda config, record: seen.append(record))
    messages = [record.getMessage() for record in caplog.records]
    assert any(f"{latest} is not used: " in message for message in messages)
    assert any("going on after 2 epochs" in message for message in messages)
    assert len(seen) == 7


def test_starting_over(tmp_path, caplog):
    interrupted(tmp_path / "run", 2)
    bar.run(bar.RunConfig(**CONFIG), tmp_path / "run", device="cpu", resume=False)
    assert not caplog.records


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    """The second one waits, and finds the run done."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(CONFIG), str(tmp_path / "run"), "step", "1000000"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert len(records(tmp_path / "run")) == 7


def test_ctrl_c_says_how_to_go_on(tmp_path):
    command = [os.path.join(os.path.dirname(sys.executable), "bar"), "run", "--out", str(tmp_path / "run"),
               "--limit", "160", "--size", "8", "--epochs", "500", "1", "1"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        process.stderr.readline()  # the first epoch is over
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert "the same command goes on from there" in err.splitlines()[-1]
    assert "Traceback" not in err
