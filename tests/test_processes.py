"""Several processes that share each batch."""

import json
import os
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


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    done = bar("run", "--processes", "5", "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr == "bar: 5 processes cannot share batches of 32 images equally\n"
    done = bar("run", "--processes", "0", "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr == "bar: processes must be a whole number >= 1, not 0\n"
    assert not (tmp_path / "run").exists()
