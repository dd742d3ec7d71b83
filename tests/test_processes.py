"""Several processes that share each batch."""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bar import runs

BAR = os.path.join(os.path.dirname(sys.executable), "bar")
# no batch norm, which would see half a batch
OPTIONS = ["--model", "conv4", "--size", "8", "--limit", "96", "--epochs", "2", "1", "0", "--device", "cpu"]


def bar(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([BAR, *arguments], capture_output=True, text=True, timeout=240, env=environment)


@pytest.mark.long  # the steps are compared below
def test_two_processes_compute_what_one_does(tmp_path):
    """The same losses and sizes, epoch by epoch, also of the teacher; and one of them reports and writes."""
    histories = []
    for processes in (1, 2):
        folder = tmp_path / str(processes) / "run"
        done = bar("run", *OPTIONS, "--processes", str(processes), "--out", str(folder), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["processes"] == processes
        (unpruned,) = (p for p in folder.parent.iterdir() if p != folder)
        lines = [line for f in (unpruned, folder) for line in (f / runs.METRICS_FILE).read_text().splitlines()]
        histories.append([json.loads(line) for line in lines])
        left = {path.name for path in Path(folder).iterdir()}
        assert left == {"config.json", "metrics.jsonl", "network.json", "network.safetensors", "result.json"}
    assert len(histories[0]) == len(histories[1]) == 3 + 4
    for one, two in zip(*histories, strict=True):
        assert one.get("size") == two.get("size")
        for name in {"data_loss", "accuracy"} & one.keys():
            assert one[name] == pytest.approx(two[name], rel=2e-3)


def test_a_batch_that_cannot_be_shared_is_refused(bar_command):
    code, out, err = bar_command("run", "--processes", "5", "--out", "run")
    assert (code, out, err) == (2, "", "bar: 5 processes cannot share batches of 32 images equally\n")
    code, out, err = bar_command("run", "--processes", "0", "--out", "run")
    assert (code, out, err) == (2, "", "bar: processes must be a whole number >= 1, not 0\n")
    assert not Path("run").exists()


# What each process has after each of twenty steps with gates: V, and the gates. Torchrun starts it twice.
SCRIPT = """
import json, os, sys
import torch
import bar
from bar import data, methods, models
from bar.training import Training, fabric_on

torch.set_num_threads(1)
fabric = fabric_on("cpu", int(os.environ.get("WORLD_SIZE", "1")))
fabric.launch()
config = bar.RunConfig(model="conv4", size=8, limit=160, epochs=(5, 1, 0), batch_size=40)
images = data.load("digits", size=8, limit=160)
torch.manual_seed(0)
network = models.build("conv4", 10, images.input_size)
pruner = methods.build(
    "bar", network, input_size=images.input_size, settings=config.settings, factor=4.0, steps_per_epoch=4,
    metric="volume", seed=0, preset="quick", epochs=config.epochs, source=None, options=config.given,
)
steps = []

def tick():
    gates = [gate.log_alpha.tolist() for gate in pruner.network.gates.values()]
    steps.append([float(pruner.budget.V), sum(gates, [])])

training = Training(
    pruner.network, images, [("prune", 5, 5e-3)], config.settings, torch.Generator().manual_seed(0), pruner=pruner,
    fabric=fabric, tick=tick,
)
epochs = iter(training)
while len(steps) < 20:
    next(epochs)
weights = torch.cat([p.detach().flatten() for p in training.network.parameters()]).tolist()
with open(sys.argv[1] + str(fabric.global_rank), "w") as file:
    json.dump({"steps": steps, "weights": weights}, file)
"""


def test_gates_are_alike_in_every_process_and_as_in_one(tmp_path, monkeypatch):
    """Bit by bit among them, and but for rounding as in one process, over twenty steps; so is V."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *torchrun, str(tmp_path / "script.py"), str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(sys, "argv", ["script.py", str(tmp_path / "one")])
    runpy.run_path(str(tmp_path / "script.py"))
    one, first, second = (json.loads((tmp_path / name).read_text()) for name in ("one0", "two0", "two1"))
    assert first == second
    assert len(one["steps"]) == len(first["steps"]) == 20
    assert one["steps"][0][0] > one["steps"][-1][0]  # gates have died, so that V says something
    for (size, gates), (size_of_two, gates_of_two) in zip(one["steps"], first["steps"], strict=True):
        assert size == size_of_two
        assert gates == pytest.approx(gates_of_two, rel=1e-3, abs=1e-3)
    assert one["weights"] == pytest.approx(first["weights"], rel=1e-2, abs=1e-3)


def test_a_process_that_dies_ends_the_run_with_one_line_and_it_goes_on(tmp_path):
    """With batch norms, of which it says that each process has its own."""
    options = ["--method", "random", "--size", "8", "--limit", "64", "--epochs", "6", "1", "0", "--device", "cpu"]
    command = [BAR, "run", *options, "--processes", "2", "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        while "unpruned   2" not in run.stderr.readline():  # the second epoch is over
            assert run.poll() is None
        (child,) = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        out, err = run.communicate(timeout=120)
    finally:
        run.kill()
    last = [line for line in err.splitlines() if not line.startswith("unpruned ")]
    assert (run.returncode, out, len(last)) == (2, "", 1), err
    assert last[0].startswith("bar: a process of this run has died")
    assert last[0].endswith("the same command goes on from there")
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert "going on after" in done.stderr
    assert "a batch norm sees the 16 images of its own process, not all 32 of a batch" in done.stderr


def test_torchrun_and_the_option_must_agree(monkeypatch, bar_command):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    code, _, err = bar_command("run", "--processes", "2")
    assert (code, err) == (2, "bar: torchrun has started 4 processes, but 2 are asked for: leave that out\n")
