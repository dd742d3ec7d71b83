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
    config, job = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    volume, files = yaml.safe_load_all((DEPLOY / "volume.yaml").read_text())
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
        assert pod["securityContext"] == files["spec"]["securityContext"]
        assert container["image"] == files["spec"]["containers"][0]["image"]
    assert files["spec"]["volumes"] == [held["work"]]
    assert files["spec"]["containers"][0]["volumeMounts"] == [{"name": "work", "mountPath": "/work"}]


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


STAND_INS = {"scontrol": 'printf "%s\\n" $3', "srun": 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"'}


def commands(folder: Path, texts: dict[str, str]) -> None:
    """Write programs of a shell."""
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)


def test_the_script_for_slurm_finds_an_address_and_says_which_node_is_missing(tmp_path):
    """With stand-ins for all commands: the first machine's name is a loopback, and the last machine does not join."""
    ray = 'echo "ray $*"; case "$*" in status*) ;; *--head*) exec sleep 20;; *) exit 1;; esac'
    addresses = '[ "$1" = --ip-address ] && echo 127.0.1.1 || echo "fe80::1 10.0.0.7 10.0.0.8"'
    commands(tmp_path, STAND_INS | {"ray": ray, "bar": 'sleep 1; echo "bar $*"; exit 1', "hostname": addresses})
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "BIN": str(tmp_path), "SLURM_JOB_NODELIST": "first last",
    }  # fmt: skip
    command = ["bash", str(DEPLOY / "slurm.sh"), "table.yaml"]
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run(command, stdout=out, stderr=out, timeout=60, env=environment)
    lines = (tmp_path / "out").read_text().splitlines()
    assert done.returncode == 1
    assert "bar sweep table.yaml --ray 10.0.0.7:6379" in lines
    assert any(line.startswith("ray start --address=10.0.0.7:6379") for line in lines)
    said = "slurm.sh: there is no Ray node on last: it did not join, or has ended"
    assert [line for line in lines if line.startswith("slurm.sh")] == [said]
    commands(tmp_path, {"hostname": "echo 127.0.0.1"})
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode != 0
    assert "first has no IPv4 address but loopbacks" in done.stderr


@pytest.mark.long
def test_the_script_for_slurm_runs_a_sweep(tmp_path):
    """With stand-ins for SLURM's commands: one node, this one."""
    pytest.importorskip("ray")
    commands(tmp_path, STAND_INS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["-m", "random", "-x", "2", "-s", "0", "--limit", "64", "--size", "8", "--epochs", "1", "1", "0"]
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "BIN": str(BIN), "PORT": port, "SLURM_JOB_NODELIST": "this",
        "ADDRESS": "127.0.0.1",
        "SLURM_CPUS_ON_NODE": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }  # fmt: skip
    command = ["bash", str(DEPLOY / "slurm.sh"), *words, "--device", "cpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(list(runs.finished(tmp_path / "out"))) == 2
