"""`bench/gpu.py`, in miniature: what is recorded, what is not run again, what is dropped, and what is lost."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

import bar
from bar import BarError, machine, runs

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))  # as when the script is run

import gpu  # noqa: E402
from gpu_queue import command, images, planning, tasks, throughput, working  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu")


def queue(capsys, *words):
    """Call the command line; returns what it prints."""
    command.main([*map(str, words)])
    return capsys.readouterr().out


def tree(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_the_whole_queue_is_recorded_and_the_second_call_runs_nothing(folder, capsys):
    words = ["--dry-run", "--out", folder / "out", "--work", folder / "work", "--pack", folder / "all.tar.gz"]
    said = queue(capsys, *words)
    assert "dropped: 0" in said
    found = runs.records(folder / "out")
    expected = [(m, f) for m in planning.MINIATURE.methods for f in (2, 4)] + [("bar", 4), ("bar", 16)]
    pruned = found[found.method != "unpruned"]
    assert sorted(zip(pruned.method, pruned.pruning_factor, strict=True)) == sorted(expected)
    assert (found.method == "unpruned").sum() == 2  # once a seed and preset
    assert (pruned.volume <= pruned.budget).all()
    assert set(found.at_once) == {1}
    assert set(found.dataset_label) == {"made-up images"}
    assert set(found.source_tree) == {machine.source_tree()}
    measured = [json.loads(path.read_text()) for path in (folder / "out/throughput").glob("*.json")]
    assert {(one["model"], one["batch_size"], one["variant"]) for one in measured} == set(
        planning.MINIATURE.throughput()
    )
    for one in measured:
        assert one["images_per_second"] == pytest.approx(one["batch_size"] * one["steps"] / one["seconds_of_steps"])
        assert one["share_of_peak"] is None  # nobody has told the peak of this processor
    held = tree(folder / "out")
    assert max(map(len, held.values())) < 200_000
    assert {Path(name).suffix for name in held} == {".json", ".jsonl"}  # no weights, no images
    with tarfile.open(folder / "all.tar.gz") as tar:
        assert {member.name for member in tar if member.isfile()} == set(held)

    again = queue(capsys, *words)
    for part, kind in tasks.KINDS.items():
        assert f"part {part}, {kind}: 0 to do" in again
    assert tree(folder / "out") == held
    with pytest.raises(SystemExit, match="made-up images of a dry run"):
        queue(capsys, *words[1:])


def one_run(monkeypatch, **more):
    plan = dataclasses.replace(planning.MINIATURE, methods=("uniform",), factors=((4.0,),), **more)
    monkeypatch.setattr(planning, "MINIATURE", plan)


def test_a_run_that_is_cut_off_loses_only_itself_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    one_run(monkeypatch)
    words = ["--dry-run", "--out", tmp_path / "out", "--work", tmp_path / "work", "--parts", 1]

    def begun():
        return any("finetune" in path.read_text() for path in tmp_path.glob("work/runs/*uniform*/metrics.jsonl"))

    monkeypatch.setattr(working, "now", lambda: time.time() + 1e6 * begun())  # over in its second epoch
    said = queue(capsys, *words)
    assert "dropped: 1 (1 cut off when the time was over)" in said
    (unpruned,) = (tmp_path / "out/comparison").iterdir()  # nothing of the other
    held = tree(unpruned)
    monkeypatch.undo()
    one_run(monkeypatch)
    epochs = []
    monkeypatch.setattr(tasks, "check_time", lambda end: epochs.append(end))
    said = queue(capsys, *words)
    assert "comparison: 1 to do" in said
    assert "dropped: 0" in said
    assert len(epochs) == 12  # the steps of the second epoch alone
    assert tree(unpruned) == held
    assert len(runs.records(tmp_path / "out")) == 2


def test_without_time_nothing_is_begun_and_all_is_named(tmp_path, monkeypatch, capsys):
    one_run(monkeypatch)
    words = ["--out", tmp_path / "out", "--work", tmp_path / "work", "--minutes", 0, "--parts", 2, 1, 3]
    said = queue(capsys, "--dry-run", *words)
    assert said.index("part 2") < said.index("part 1") < said.index("part 3")
    assert "dropped: 12 (12 no time)" in said  # 2 runs, 7 measurements, 3 runs
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "work/runs").exists()


def done(*words):
    if "fail" in words:
        raise BarError("it cannot be")
    if "die" in words:
        os._exit(1)
    return words[:-1]


def made(names, kept, **more):
    usual = {"seconds": 1.0, "needs": (), "words": ()}
    for name in names:
        fields = usual | more.get(name, {})
        keep = lambda result, seconds, name=name: kept.append(name) or name  # noqa: E731
        yield working.Task(1, name, done, fields["words"], lambda s=fields["seconds"]: s, keep, fields["needs"])


def test_what_does_not_fit_or_waits_for_what_has_failed_does_not_hold_up_the_others():
    kept, said = [], []
    todo = made(
        ["late", "waits", "long", "after long", "bad", "after bad", "first", "last"], kept,
        waits={"needs": ("first",)}, late={"seconds": 1e4}, long={"seconds": 1e4}, bad={"words": ("fail",)},
        **{"after long": {"needs": ("long",)}, "after bad": {"needs": ("bad",)}},
    )  # fmt: skip
    dropped = working.carry_out(list(todo), 1, False, working.now() + 60, said.append)
    assert kept == ["first", "waits", "last"]
    assert dropped.pop("after bad") == "it needs bad: failed: it cannot be"
    assert dropped.pop("bad") == "failed: it cannot be"
    assert dropped == dict.fromkeys(["late", "long", "after long"], "no time: it takes about 10000 s")


@pytest.mark.long
def test_a_process_that_dies_takes_no_other_run_along():
    kept = []
    todo = made(["a", "b", "c", "d"], kept, b={"words": ("die",)})
    dropped = working.carry_out(list(todo), 2, True, working.now() + 300, print)
    assert sorted(kept) == ["a", "c", "d"]
    assert list(dropped) == ["b"]
    assert "BrokenProcessPool" in dropped["b"]


@pytest.mark.long
def test_several_at_once_record_the_same_runs(tmp_path, monkeypatch):
    words = ["--dry-run", "--parts", "1", "--at-once", "2", "--out", tmp_path / "out", "--work", tmp_path / "work"]
    subprocess.run([sys.executable, BENCH / "gpu.py", *words], check=True)
    found = runs.records(tmp_path / "out")
    assert len(found) == 1 + 2 * len(planning.MINIATURE.methods)
    assert set(found.at_once) == {2}


def test_the_order_of_the_whole_queue():
    plan = planning.FULL
    first = plan.comparison()
    early = [config for config in first if config.pruning_factor in (4, 16)]
    assert first[: len(early)] == early
    rivals = {"random", "magnitude", "vector-quantization", "interpolative", "l0", "information-bottleneck", "morphnet"}
    assert {config.method for config in first} == rivals | {"bar", "uniform"}
    assert {config.settings.batch_size for config in first} == {plan.batch_size}
    assert {batch for model, batch, _ in plan.throughput() if model == "wrn-28-12"} == {128, 256, 512, 1024}
    assert [(c.model, c.preset, c.pruning_factor, c.epochs) for c in plan.paper()] == [
        ("wrn-16-4", "paper", factor, None) for factor in (16, 4)
    ]


def test_rates_count_as_the_paper_says_of_the_full_network():
    assert throughput.PEAK["NVIDIA H200"] == throughput.PEAK["NVIDIA H100 80GB HBM3"] == 989e12
    assert "NVIDIA H100 PCIe" not in throughput.PEAK  # another board, slower
    assert 3 * bar.count(bar.models.outline("wrn-28-12"), (3, 32, 32)).flops == 3 * 15_087_796_224


def test_packages_that_are_missing_are_named_with_the_way_to_get_them(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else there(name))
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    assert "missing here: 'scikit-learn'\n" in stop.value.code
    assert "pip install 'scikit-learn'\n" in stop.value.code


def test_the_queue_needs_no_other_package():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import gpu; sys.path.insert(0, str(gpu.SOURCE))\n"
        "import gpu_queue.command; sys.exit(' '.join(set(sys.argv[2:]) & set(sys.modules)) or 0)"
    )
    others = {"matplotlib", "click", "papermill", "nbformat", "IPython", "tensorboard", "onnx", "pytest", "hypothesis"}
    assert not others & set(gpu.NEEDED)
    subprocess.run([sys.executable, "-c", code, str(BENCH), *others], check=True)


def test_the_tree_of_the_files_that_ran_is_the_one_that_git_has(tmp_path):
    for name in ("b/c.py", "b.py", "b-c.py", "a", "b/__pycache__/c.pyc"):  # git sorts b.py before b/
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a").chmod(0o755)

    def git(*words):
        return subprocess.run(
            ["git", "-C", tmp_path, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q")
    git("add", "a", "b.py", "b-c.py", "b/c.py")
    expected = git("write-tree")
    (tmp_path / ".git").rename(tmp_path.with_name("elsewhere"))
    assert tasks.tree_of(tmp_path) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is not there"), (b"no tar", "cannot be unpacked"), ("other", "holds no train/ and test/ at its top")],
)
def test_an_archive_that_cannot_be_used_is_named(content, message, tmp_path):
    archive = tmp_path / "images.tar"
    if content == "other":
        with tarfile.open(archive, "w") as tar:
            tar.add(BENCH / "gpu.py", "train.py")
    elif content:
        archive.write_bytes(content)
    with pytest.raises(BarError, match=message):
        images.unpack(archive, tmp_path / "data")
    assert not (tmp_path / "data" / planning.DATASET).exists()
