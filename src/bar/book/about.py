"""The page that says how a book was made."""

import datetime
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from bar import machine

SHOWN_VERSIONS = ("torch", "torchvision", "numpy", "scikit-learn", "matplotlib", "papermill", "jupyter-book")


def page(
    parameters: Mapping[str, object], declared: Mapping[Path, Mapping[str, str]], runs: Mapping[str, Mapping]
) -> str:
    """Return the page that says how this book was made, in Markdown."""
    facts = {
        "Built": now(),
        "Commit": _commit(),
        **hardware(),
        "System": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    names = sorted({name for defaults in declared.values() for name in defaults})
    settings = []
    for name in names:
        where = [path.stem.partition("_")[0] for path, defaults in declared.items() if name in defaults]
        defaults = {defaults[name] for defaults in declared.values() if name in defaults}
        value = " or ".join(f"`{default}`" for default in sorted(defaults))
        if name in parameters:
            value = f"**`{parameters[name]!r}`** (given)"
        settings.append((f"`{name}`", value, ", ".join(where)))
    times = [(f"{{doc}}`{stem}`", f"{run['seconds']:.1f}", run["ended"]) for stem, run in runs.items()]
    times.append(("all", f"{sum(run['seconds'] for run in runs.values()):.1f}", ""))
    return "\n\n".join(
        (
            "# About this build",
            "Every number and figure in the chapters that is not quoted from a paper, or read from a recorded run, was "
            "computed by the runs described here.",
            _table(("What", "This build"), facts.items()),
            "## Parameters",
            "What the notebooks ran with: values that were asked for are marked as given, the others are the defaults.",
            _table(("Parameter", "Value", "Chapters"), settings) if settings else "The notebooks have no parameters.",
            "## Run time",
            "A notebook runs again when anything has changed that it was made from: its text and parameters, the "
            "package, recorded runs, data, versions, or the machine.",
            _table(("Notebook", "Seconds", "Ran until"), times),
            "## Versions",
            _table(("Package", "Version"), ((name, version(name)) for name in SHOWN_VERSIONS)),
        )
    )


def now() -> str:
    """Return the time in UTC, to the minute."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def hardware() -> dict[str, str]:
    """Describe the processor, memory and GPUs of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"Processor": machine.hardware("cpu"), "Memory": f"{memory:.1f} GiB", "GPU": ", ".join(gpus) or "none"}


def _commit() -> str:
    """Describe the commit that the book is built from, and whether files were changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git repository)"
    return f"`{head}`" + (" with changes that are not committed" if changed.strip() else "")


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Format a Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
