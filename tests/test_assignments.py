"""The assignments for students: one from end to end, and what each student version gives away.

`--all` proves everything, as `make assignments` does.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import nbformat
import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "assignments"))

import leaking  # noqa: E402
import limiting  # noqa: E402
import masters  # noqa: E402
import showing  # noqa: E402
import variants  # noqa: E402
from right_answers import RIGHT  # noqa: E402
from troubles import TROUBLES  # noqa: E402
from wrong_answers import WRONG  # noqa: E402

SEED = 7


def make(out: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "assignments" / "release.py", "--out", out, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, capture_output=True, text=True, timeout=3000, env=environment)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All student versions with other parameters, and the first assignment graded."""
    out = tmp_path_factory.mktemp("made")
    result = make(out, "--seed", str(SEED), "--only", "01_gates", "--brief", "--jobs", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    return out, result.stdout


def test_one_assignment_from_end_to_end(made):
    """Released, answered, graded and given back: the proof has no fault, or the command would have failed."""
    _, printed = made
    assert "| 01_gates | 16, 4 | 16, 0 | 0 of 0 with all points | 2 of 2 as expected |" in printed
    assert "BETA = 0.5" in printed


@pytest.mark.parametrize("name", masters.NAMES)
def test_no_student_version_gives_anything_away(made, name):
    course = made[0] / "course"
    assert leaking.leaks(course, name) == []
    secrets = masters.secrets(masters.read(masters.SOURCE, name))
    assert len(secrets) > 20
    with zipfile.ZipFile(made[0] / "students" / f"{name}.zip") as archive:
        files = {file: archive.read(file).decode() for file in archive.namelist() if "/bar/" not in file}
    assert {Path(file).suffix for file in files} <= {".ipynb", ".csv", ".txt"}
    notebook = nbformat.reads(files.pop(f"{name}/{name}.ipynb"), 4)
    text = "\n".join([*files.values(), *(cell.source for cell in notebook.cells)])
    assert [line for line in secrets if line in text] == []


@pytest.mark.parametrize("place", ["source", "hidden", "output", "metadata", "file"])
def test_a_leak_is_found(made, tmp_path, place):
    name = "02_barrier"
    for folder in ("source", "release"):
        (tmp_path / folder / name).mkdir(parents=True)
        nbformat.write(masters.read(made[0] / "course" / folder, name), tmp_path / folder / name / f"{name}.ipynb")
    assert leaking.leaks(tmp_path, name) == []
    path = tmp_path / "release" / name / f"{name}.ipynb"
    notebook = nbformat.read(path, 4)
    cell = masters.cell_of(notebook, "test_barrier")
    if place == "source":
        masters.cell_of(notebook, "barrier").source += "\n    outside = (volume <= a) | (volume >= b)"
    elif place == "hidden":
        cell.source += "\n_v = torch.linspace(0, 900, 61, dtype=torch.float64)"
    elif place == "output":
        cell.outputs = [nbformat.v4.new_output("stream", text="0.5")]
    elif place == "metadata":
        cell.metadata["solution"] = "return f.clamp(max=cap)"
    else:
        (path.parent / "solution.py").write_text("")
    nbformat.write(notebook, path)
    assert len(leaking.leaks(tmp_path, name)) == 1


@pytest.mark.parametrize("name", masters.NAMES)
def test_each_has_what_an_assignment_needs(name):
    master = masters.read(masters.SOURCE, name)
    nbformat.validate(master)
    assert sum(masters.tests(master).values()) + sum(masters.written(master).values()) == 20
    opening = master.cells[0].source
    assert all(word in opening for word in ("**Goals.**", "**You need**", "**Time.**", "**Points.**", "minutes"))
    text = "\n".join(cell.source for cell in master.cells if cell.cell_type == "markdown")
    assert "| Points | For |" in text
    assert "## What to expect" in text
    for test in masters.tests(master):
        source = masters.cell_of(master, test).source
        assert source.startswith("# "), f"{test} does not begin with what is expected"
        visible = masters.REGION.sub("", source)
        checks = len(re.findall(r"^\s*assert ", source, re.MULTILINE))
        assert checks, test
        assert len(re.findall(r"^\s*assert [^\n]*, (?:f?\"|\()", source, re.MULTILINE)) == checks, (
            f"a check of {test} has no message"
        )
        assert "### " not in visible


@pytest.mark.parametrize("name", masters.NAMES)
def test_wrong_answers_fit_the_masters(name):
    master = masters.read(masters.SOURCE, name)
    assert len(WRONG[name]) >= 4
    for wrong in WRONG[name]:
        assert {"test_" + test for test in wrong.loses} <= set(masters.tests(master))
        assert wrong.applied(masters.answered(master, master))


@pytest.mark.parametrize("name", masters.NAMES)
def test_other_right_answers_are_whole(name):
    cells = masters.read(masters.SOURCE, name).cells
    answers = {
        masters.graded(cell)["grade_id"]
        for cell in cells
        if masters.graded(cell).get("solution") and cell.cell_type == "code"
    }
    assert RIGHT[name]
    for title, right in RIGHT[name].items():
        assert set(right) == answers, title


@pytest.mark.parametrize("name", masters.NAMES)
def test_other_parameters(name):
    master, same, other = (masters.read(masters.SOURCE, name) for _ in range(3))
    assert variants.vary(same, name, 0) == {}
    assert same == master
    chosen = variants.vary(other, name, SEED)
    assert set(chosen) == set(variants.CHOICES[name])
    for parameter, value in chosen.items():
        places = [
            line for cell in other.cells for line in cell.source.split("\n") if line.startswith(f"{parameter} = ")
        ]
        assert places
        assert all(line.split(" = ")[1].split("  #")[0] == value for line in places)
    assert variants.vary(masters.read(masters.SOURCE, name), name, SEED) == chosen


def test_no_block_to_cut_is_degenerate():
    """Whatever is drawn, some channels are passed, some refined, some new."""
    namespace = {"torch": torch, "nn": torch.nn}
    exec(masters.cell_of(masters.read(masters.SOURCE, "05_surgery"), "block").source, namespace)
    drawn = variants.CHOICES["05_surgery"]
    torch.set_default_dtype(torch.float64)  # as in the notebook: it decides what is drawn
    try:
        for channels, seed in [("8", "0"), *itertools.product(drawn["CHANNELS"], drawn["SEED"])]:
            block = namespace["example"](int(seed), int(channels))
            signal, features = set(block.signal), set(block.z2.nonzero().flatten().tolist())
            kinds = {"passed": signal - features, "refined": signal & features, "new": features - signal}
            assert all(kinds.values()), f"CHANNELS = {channels}, SEED = {seed}: {kinds}"
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["04_training", "06_comparison"])
def test_colab_unpacks_the_zip(made, tmp_path, monkeypatch, name):
    """The first cell of code, where Colab's module is there and the zip was uploaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("colab"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / f"{name}.zip").write_bytes((made[0] / "students" / f"{name}.zip").read_bytes())
    cells = masters.read(made[0] / "course" / "release", name).cells
    exec(next(cell.source for cell in cells if "google.colab" in cell.source), {})
    assert (tmp_path / name / f"{name}.ipynb").is_file()
    if name == "04_training":
        assert (tmp_path / name / "bar" / "__init__.py").is_file()
        assert sys.path[0] == name


def test_whatever_never_ends_is_stopped(tmp_path):
    """A loop costs its cell, one that cannot be interrupted those after it, and both no more time than there is."""
    stubborn = "while True:\n    try:\n        sum(range(1000))\n    except:\n        pass"
    sources = ["before = 1", "while True:\n    pass", "assert before == 1", stubborn, "assert before == 1"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    step = limiting.LimitedExecute(seconds=2, extra_arguments=["--IPKernelApp.log_level=50"])
    resources = {"nbgrader": {"assignment": "01_gates"}, "metadata": {"path": str(tmp_path)}}
    start = sum(os.times()[2:4])
    step.preprocess(notebook, resources)
    errors = [[output.ename for output in cell.outputs] for cell in notebook.cells]
    assert errors == [[], ["KeyboardInterrupt"], [], ["DeadKernelError"], ["DeadKernelError"]]
    assert sum(os.times()[2:4]) - start < 4


def test_the_records_that_students_compare_are_the_recorded_ones(monkeypatch):
    import runs_csv

    assert runs_csv.table().to_csv(index=False) == runs_csv.PATH.read_text("utf-8")


def test_the_guide_shows_the_record_and_no_solution():
    record = json.loads(showing.RECORD.read_text("utf-8"))
    text = showing.GUIDE.read_text("utf-8")
    assert showing.guide(text, record) == text, "run `python assignments/showing.py`"
    assert [proof["name"] for proof in record] == list(masters.NAMES)
    for proof in record:
        assert not proof["faults"]
        assert all(line["as_expected"] for line in proof["graded"])
        assert 100 < proof["memory"] < 2000
        wrong = {wrong.title for wrong in WRONG[proof["name"]]}
        everybody = {"master", "empty", *RIGHT[proof["name"]], *wrong, *TROUBLES, "missing file"}
        assert {line["who"] for line in proof["graded"]} == everybody
        assert max(line["cpu"] for line in proof["graded"]) <= (60 if proof["name"] == "04_training" else 20)


def test_the_book_has_no_solution():
    """No line of one, but those that every loop of training has."""
    pages = [path.read_text("utf-8") for path in (ROOT / "book").glob("*.md")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        pages += [cell.source for cell in nbformat.read(path, 4).cells]
    text = "\n".join(pages)
    loops = {"optimizer.zero_grad()", "optimizer.step()", "gated.train()", "pruned.train()"}
    loops |= {"for _ in range(epochs):", "for gate in gated.gates.values():"}
    for name in masters.NAMES:
        secrets = masters.secrets(masters.read(masters.SOURCE, name))
        assert [line for line in secrets if line in text and line not in loops] == []


@pytest.mark.long
def test_everything_is_proved(tmp_path):
    result = make(tmp_path, "--jobs", "1")
    assert result.returncode == 0, result.stdout + result.stderr
