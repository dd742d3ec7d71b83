"""Kill a run at random moments, again and again, and before every renaming: does it end as if nothing had happened?

A run is made in one go. The same run is made once more in another folder, its process killed (SIGKILL) at random
moments, until that has happened often enough (if it ends before, in yet another folder); then it may end. A moment
counts from when the process has begun to train, as imports take longer than small runs, and falls within a third of
what the whole run took, so that most processes go on from a checkpoint and leave a later one. And once more for each
file that a fresh run puts into its place: killed right before that, it may end, too. Weights and records must be the
same each time, but for the seconds that they took, and nothing else may be left. Exit code 0 says that they are.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

# The command line, in a process that writes when it renamed into a file, and kills itself before the n-th time.
DRIVER = """
import os, signal, sys, time
from bar.cli import main
last, counter = int(sys.argv[1]), open(sys.argv[2], "w")
replace, done = os.replace, 0

def counted(*paths):
    global done
    done += 1
    if done == last:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
    print(time.monotonic(), file=counter, flush=True)

os.replace = counted
sys.argv[:] = ["bar", *sys.argv[3:]]
main()
"""


def start(folder: Path, options: tuple[str, ...], last: int = 0) -> subprocess.Popen:
    """Begin the run, or go on with it; it is killed before its renaming of that number, if it comes to it."""
    folder.mkdir(exist_ok=True)
    log = renamings_of(folder)
    log.unlink(missing_ok=True)
    command = [sys.executable, "-c", DRIVER, str(last), log]
    command += ["run", "--device", "cpu", "--out", folder / "run", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def renamings_of(folder: Path) -> Path:
    """Where the latest process writes when it renamed, a line each."""
    return folder.with_name(f"{folder.name}.renamings")


def begun(process: subprocess.Popen, folder: Path) -> None:
    """Wait until it trains, having put its configuration and the epochs until then into their places, or has ended."""
    log = renamings_of(folder)
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 2):
        time.sleep(0.002)


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


def compare(whole: dict[str, object], folder: Path, how: str) -> None:
    ours = remains(folder)
    differing = [name for name in sorted(whole.keys() | ours.keys()) if whole.get(name) != ours.get(name)]
    if differing:
        named = ", ".join(name + fields_that_differ(whole.get(name), ours.get(name)) for name in differing)
        raise SystemExit(f"{how}: these differ: {named}")


def fields_that_differ(one: object, other: object) -> str:
    """Which, where both are records: the commit, say, if the code was changed meanwhile."""
    if not (isinstance(one, list) and isinstance(other, list) and len(one) == len(other)):
        return ""
    pairs = zip(one, other, strict=True)
    return f" ({', '.join(sorted({k for a, b in pairs for k in a.keys() | b.keys() if a.get(k) != b.get(k)}))})"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True})
@click.option("--kills", default=10, show_default=True, help="How often at random.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--renamings/--no-renamings", default=True, show_default=True, help="Kill before each renaming, too.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(kills: int, seed: int, renamings: bool, options: tuple[str, ...]) -> None:
    """Kill a run of `bar run OPTIONS` at random moments, and before each renaming, and compare how it ends.

    \b
    Examples:
      python bench/kill.py --no-renamings
      python bench/kill.py --kills 20 -- --limit 96 --size 8 --epochs 2 1 1
    """
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        finish(start(place / "whole", options))
        times = [float(line) for line in renamings_of(place / "whole").read_text().split()]
        work = times[-1] - times[1]
        whole = remains(place / "whole")
        done = resumed = ended = 0
        folder = place / "killed"
        while done < kills:
            process = start(folder, options)
            begun(process, folder)
            time.sleep(moments.uniform(0, work / 3))
            if process.poll() is not None:  # it was faster than that: there is more to kill in another one
                finish(process)
                compare(whole, folder, "killed at random")
                ended += 1
                folder = place / f"killed {ended}"
                continue
            process.kill()
            resumed += "going on after" in process.communicate()[1]
            done += 1
        resumed += "going on after" in finish(start(folder, options))
        compare(whole, folder, "killed at random")
        click.echo(
            f"{kills} kills at random in {ended + 1} runs, gone on {resumed} times from a checkpoint; "
            f"{len(whole)} files compared each time"
        )
        count = len(times) if renamings else 0
        for last in range(1, count + 1):
            folder = place / f"before {last}"
            process = start(folder, options, last)
            err = process.communicate()[1]
            if process.returncode != -signal.SIGKILL:
                raise SystemExit(f"the run was not killed before renaming {last}: {err}")
            finish(start(folder, options))
            compare(whole, folder, f"killed before renaming {last}")
        if renamings:
            click.echo(f"killed before each of {count} renamings of a fresh run; {len(whole)} files compared each time")


if __name__ == "__main__":
    main()
