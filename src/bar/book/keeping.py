"""Fingerprints of notebooks, by which a build recognises those that have run already."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path

import nbformat

import bar
from bar import data
from bar.book.about import hardware
from bar.book.parameters import texts


def fingerprint(path: Path, given: Mapping[str, object], declared: Mapping[str, str]) -> str:
    """Return a SHA-256 of all that decides what a notebook shows."""
    known = hashlib.sha256(path.read_bytes())
    package = Path(bar.__file__).parent
    for source in sorted(package.rglob("*")):
        if source.suffix in (".py", ".csv"):
            known.update(source.relative_to(package).as_posix().encode() + source.read_bytes())
    installed = sorted(f"{each.name}=={each.version}" for each in distributions())
    records = [path.parent.parent / "results", path.parent.parent / "runs"]
    files = {file for folder in records for file in folder.rglob("*.json*")}
    for text in texts(given, declared):  # a data set, a file of weights, other records
        for place in (path.parent / text, data.root_folder() / text):
            files |= {place, *place.rglob("*")}
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files) if file.is_file()]
    facts = [dict(given), installed, platform.python_version(), hardware(), stats]
    known.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return known.hexdigest()


def run_of(path: Path) -> dict:
    """Return when a kept notebook ran, for how long, and its fingerprint; empty if it is missing or cannot be read."""
    try:
        return dict(nbformat.read(path, as_version=4).metadata["bar"])
    except (OSError, KeyError, ValueError, nbformat.ValidationError):
        return {}
