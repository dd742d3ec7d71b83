"""What a run is computed on, and by which code."""

import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from bar.errors import BarError


def hardware(device: torch.device | str = "cpu") -> str:
    """What a run was computed on, in a few words."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor_name()}, {os.cpu_count()} cores, threads: {torch.get_num_threads()}"


def processor() -> dict[str, str | int]:
    """The processor's name, the instruction set that torch uses of it, and the threads: what decides about its bits."""
    return {
        "processor": _processor_name(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the code that runs, with "+" if it has changes; None outside its own git checkout."""
    return _revision("HEAD")


def source_tree() -> str | None:
    """Git's hash of the folder of this package, which other commits may share; as `commit` otherwise."""
    return _revision("HEAD:./")


def _revision(what: str) -> str | None:
    git = ["git", "-C", str(Path(__file__).parent)]
    tracked = ["ls-files", "--error-unmatch", Path(__file__).name]  # not if bar is installed inside another checkout
    try:
        _, revision, changed = (
            subprocess.run([*git, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (tracked, ["rev-parse", what], ["status", "--porcelain", "--", "."])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+" if changed else "")


def check_device(name: str) -> None:
    """Refuse, with a BarError, what is the name of no device on any machine."""
    # torch knows more kinds, on which nothing can be trained
    if not re.fullmatch("auto|cpu(:0)?|(cuda|mps)(:[0-9]{1,4})?", name):
        raise BarError(f"no device {name!r:.60}: it must be auto, cpu, cuda, cuda:1, …, or mps")


def device_of(name: str) -> torch.device:
    """The device of a name such as "cuda:1"; "auto" is the GPU, where there is one.

    Raises
    ------
    BarError
        If there is no such device here, or it is of a kind on which nothing can be trained.
    """
    check_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name.removesuffix(":0") if name.startswith("cpu") else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BarError(f"no device {name!r} here: {str(error).splitlines()[0]}") from error
    return device
