"""What takes a sweep to a cluster: as far as it can be checked on one machine."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bar import runs
from bar.cli import sweeping
from bar.runs import plans

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent


def test_the_script_for_slurm_has_no_slips():
    """By ShellCheck where it is installed (`apt install shellcheck`), else by the shell itself."""
    checker = shutil.which("shellcheck", path=f"{BIN}:{os.environ['PATH']}")
    done = subprocess.run(
        [*([checker] if checker else ["bash", "-n"]), DEPLOY / "slurm.sh"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_manifest_runs_a_sweep_that_there_is(tmp_path):
    """Its command parses, its file is a plan; all pods see what the command names."""
    volume, config, job = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    program, command, *words = job["spec"]["entrypoint"].split()
    assert (program, command) == ("bar", "sweep")
    given = sweeping.sweep.make_context("sweep", [word.replace("/work", str(tmp_path)) for word in words]).params
    assert given["ray"] == "auto"
    (tmp_path / "table.yaml").write_text(config["data"][given["file"].name])
    assert len(plans.configs_of(plans.read(tmp_path / "table.yaml"))) == 4 * 4 * 5
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        held = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        places = {mount["mountPath"]: held[mount["name"]] for mount in container["volumeMounts"]}
        assert places["/work"]["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]
        assert places[str(given["file"].parent)]["configMap"]["name"] == config["metadata"]["name"]
        assert pod["securityContext"]["runAsUser"] == 1000


def test_the_image_is_made_of_files_that_are_there():
    text = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.M):
        assert all((ROOT / name).exists() for name in line.split()[:-1]), line
    assert "USER 1000" in text
    assert " wget " in text  # of KubeRay's probes
    assert json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.M)[1]) == ["bar"]


def test_the_numbers_of_the_page_on_costs_are_those_of_the_records():
    command = [sys.executable, ROOT / "docs/cost_numbers.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


STAND_INS = {
    "scontrol": 'echo "this"',
    "srun": 'while [[ "$1" == --* ]]; do shift; done\n[ "$1" = hostname ] && echo 127.0.0.1 || exec "$@"',
}


@pytest.mark.long
def test_the_script_for_slurm_runs_a_sweep(tmp_path):
    """With stand-ins for SLURM's commands: one node, this one."""
    pytest.importorskip("ray")
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["-m", "random", "-x", "2", "-s", "0", "--limit", "64", "--size", "8", "--epochs", "1", "1", "0"]
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "BIN": str(BIN), "PORT": port, "SLURM_JOB_NODELIST": "this",
        "SLURM_CPUS_ON_NODE": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }  # fmt: skip
    command = ["bash", str(DEPLOY / "slurm.sh"), *words, "--device", "cpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(list(runs.finished(tmp_path / "out"))) == 2
