"""Kill a run at random moments, again and again: does it end as if nothing had happened?

A run is made in one go. The same run is made once more in another folder, its process killed (SIGKILL) after random
times, until that has happened often enough; then it may end. Weights and records of the two must be the same, but for
the seconds that they took. Exit code 0 says that they are.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click


def start(folder: Path, options: tuple[str, ...]) -> subprocess.Popen:
    bar = Path(sys.executable).with_name("bar")
    command = [bar, "run", "--device", "cpu", "--out", folder / "run", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def finish(process: subprocess.Popen) -> str:
    err = process.communicate()[1]
    if process.returncode != 0:
        raise SystemExit(f"the run failed: {err}")
    return err


def remains(folder: Path) -> dict[str, object]:
    """What a run leaves: its records without times, and its weights, of the unpruned network as well."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*.json*")):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        records = [json.loads(line) for line in lines]
        found[str(path.relative_to(folder))] = [{k: v for k, v in r.items() if k != "seconds"} for r in records]
    for path in sorted(folder.rglob("*.safetensors")):
        found[str(path.relative_to(folder))] = path.read_bytes()
    others = [p.name for p in folder.rglob("*") if p.is_file() and p.suffix not in (".json", ".jsonl", ".safetensors")]
    if others:
        raise SystemExit(f"left behind: {others}")
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True})
@click.option("--kills", default=10, show_default=True, help="How often.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(kills: int, seed: int, options: tuple[str, ...]) -> None:
    """Kill a run of `bar run OPTIONS` at random moments and compare how it ends.

    \b
    Examples:
      python bench/kill.py
      python bench/kill.py --kills 3 -- --limit 160 --size 8 --epochs 3 1 1
    """
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        whole, killed = Path(place) / "whole", Path(place) / "killed"
        begin = time.perf_counter()
        process = start(whole, options)
        process.stderr.readline()  # the first epoch is over
        before = time.perf_counter() - begin
        finish(process)
        work = time.perf_counter() - begin - before
        done = resumed = 0
        while done < kills:
            process = start(killed, options)
            time.sleep(moments.uniform(0, before + 2 * work / kills))
            if process.poll() is not None:
                raise SystemExit(f"the run ended after {done} kills: {finish(process)}")
            process.kill()
            resumed += "going on after" in process.communicate()[1]
            done += 1
        resumed += "going on after" in finish(start(killed, options))
        first, second = remains(whole), remains(killed)
    differing = [name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)]
    click.echo(f"{kills} kills, gone on {resumed} times from a checkpoint; {len(first)} files compared")
    if differing:
        raise SystemExit(f"these differ: {', '.join(differing)}")


if __name__ == "__main__":
    main()
