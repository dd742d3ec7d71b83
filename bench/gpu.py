"""Ten minutes of one GPU: what to run with them, most useful first, so that whatever stops them costs one run at most.

    python bench/gpu.py --out results/gpu --minutes 9 --archive cifar10-jpeg.tar.xz
    python bench/gpu.py --dry-run

It runs from a checkout, without installing it. What it needs besides is told at once, before anything is imported.

Why several runs share the GPU: `bar.training` keeps all images on the device and augments them there, and waits for it
every 50 steps only; but a step of WRN-16-2 is made of some 260 operations, 900 with BAR and its teacher (counted with a
`TorchDispatchMode`, views left out), and for small networks the processor takes longer to launch one than the GPU to
compute it. The measurements called "graphs" launch a forward or a backward as a whole, and so show what that costs.
"""

import importlib.util
import platform
import sys
from pathlib import Path

# What is imported -> what pip calls it. Only what the runs import: no matplotlib, no notebooks.
NEEDED = {
    "torch": "torch>=2.11", "torchvision": "torchvision>=0.26", "numpy": "numpy", "scipy": "scipy", "pandas": "pandas",
    "sklearn": "scikit-learn", "PIL": "pillow", "lightning_fabric": "lightning-fabric",
    "lightning_utilities": "lightning-utilities", "safetensors": "safetensors", "filelock": "filelock",
    "rich": "rich",
}  # fmt: skip
SOURCE = Path(__file__).resolve().parents[1] / "src"


def advice() -> str | None:
    """Say which packages are missing here and how to get them, with a network and without; None if none is."""
    lacking = [f"'{pip}'" for name, pip in NEEDED.items() if importlib.util.find_spec(name) is None]
    if not lacking:
        return None
    names, pip = " ".join(lacking), f"{sys.executable} -m pip"
    return (
        f"missing here: {names}\n"
        f"  with a network:    {pip} install {names}\n"
        f"  without one:       {pip} install --no-index --no-deps --find-links wheels {names}\n"
        f"  where wheels were made by a Python {platform.python_version()} of the same system:\n"
        f"                     python -m pip download --no-deps --dest wheels {names}"
    )


def main() -> None:
    """Run the queue, if everything is there that it needs."""
    if said := advice():
        sys.exit(said)
    sys.path.insert(0, str(SOURCE))
    from gpu_queue.command import main as command

    command()


if __name__ == "__main__":
    main()
