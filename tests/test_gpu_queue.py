"""`bench/gpu.py`, in miniature: what is recorded, what is not run again, what is dropped, and what is lost."""

import json
import sys
import tarfile
from pathlib import Path

import pytest

from bar import machine, runs

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))  # as when the script is run

from gpu_queue import command, planning, tasks  # noqa: E402


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
