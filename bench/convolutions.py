"""Which convolutions does this processor compute wrongly, or die of?

Pruning makes convolutions of odd widths, which CPU kernels are seldom tried with. This takes shapes that people have
reported, and draws more that surgery can make; each is run forwards and backwards in a process of its own kind
(threads, instruction set, glibc's checks of the heap), and compared with the same convolution in float64 without
oneDNN. A process that dies or hangs names the shape that it was at, which is then tried once more, alone. `bar` itself
is only asked for the names of hardware and commit.
"""

import contextlib
import json
import os
import queue
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table

HEAP_CHECK = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}  # of glibc 2.34 and later
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # of max |a - b| / max |b|
WIDTHS = (*range(1, 18), 24, 31, 32, 33, 48)
PLAIN = {"groups": 1, "kernel": (3, 3), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "signal": "nhwc",
         "weight": "nhwc", "dtype": "float32"}  # fmt: skip
# What these issues are about, or as near as a convolution in two dimensions comes to it.
REPORTED = {
    "uxlfoundation/oneDNN 6035": {"batch": 32, "inputs": 4, "outputs": 8, "kernel": (1, 1), "stride": (2, 2),
                                  "size": (32, 32)},
    "uxlfoundation/oneDNN 5942": {"batch": 2, "inputs": 64, "outputs": 1, "kernel": (125, 1), "stride": (2, 2),
                                  "padding": (63, 63), "size": (1, 1)},
    "uxlfoundation/oneDNN 323": {"batch": 2, "inputs": 64, "outputs": 3, "kernel": (11, 11), "stride": (4, 4),
                                 "padding": (2, 2), "size": (227, 227), "signal": "nchw", "weight": "nchw"},
    "pytorch/pytorch 136348": {"batch": 2, "inputs": 4489, "outputs": 134, "groups": 67, "kernel": (2, 1),
                               "stride": (2, 13), "padding": (1, 14), "size": (23, 12)},
    "pytorch/pytorch 82060": {"batch": 1, "inputs": 1, "outputs": 64, "padding": (1, 1), "size": (100, 100),
                              "signal": "nchw"},
    "pytorch/pytorch 50042": {"batch": 1, "inputs": 24, "outputs": 24, "groups": 24, "stride": (2, 2),
                              "padding": (1, 1), "size": (6, 6)},
    "pytorch/pytorch 25101": {"batch": 1, "inputs": 9, "outputs": 3, "kernel": (5, 5), "stride": (3, 3),
                              "padding": (1, 1), "size": (32, 32), "signal": "nchw", "weight": "nchw"},
    "pytorch/pytorch 20583": {"batch": 6, "inputs": 4, "outputs": 4, "padding": (1, 3), "size": (32, 32)},
    "pytorch/pytorch 19912": {"batch": 1, "inputs": 4, "outputs": 16, "groups": 2, "kernel": (1, 1), "size": (1, 1)},
    "pytorch/pytorch 18463": {"batch": 2, "inputs": 4, "outputs": 16, "groups": 2, "size": (6, 6)},
    "uxlfoundation/oneDNN 5494": {"batch": 1, "inputs": 32, "outputs": 48, "kernel": (1, 1), "stride": (3, 1),
                                  "padding": (0, 1), "size": (67, 4), "dtype": "bfloat16"},
    "pytorch/pytorch 163347": {"batch": 1, "inputs": 1, "outputs": 1, "kernel": (2, 2), "size": (2, 2),
                               "signal": "nchw", "weight": "nchw", "dtype": "bfloat16"},
    "pytorch/pytorch 120211": {"batch": 1, "inputs": 3, "outputs": 3, "groups": 3, "kernel": (1, 1),
                               "size": (1024, 1024)},
}  # fmt: skip


def draw(rng: random.Random) -> dict:
    """A convolution such as surgery makes."""
    kind, groups = rng.choice(["whole", "whole", "whole", "grouped", "depthwise"]), 1
    inputs, outputs = rng.choice(WIDTHS), rng.choice(WIDTHS)
    if kind == "grouped":
        groups = rng.choice([2, 3, 4])
        inputs, outputs = groups * rng.choice(WIDTHS[:10]), groups * rng.choice(WIDTHS[:10])
    elif kind == "depthwise":
        groups, outputs = inputs, inputs * rng.choice([1, 1, 2])
    kernel = rng.choice([1, 1, 1, 3, 3, 5, 7])
    stride, padding, dilation = rng.choice([1, 2, 2, 3]), rng.choice([0, kernel // 2]), rng.choice([1, 1, 1, 2])
    size = rng.choice([s for s in (1, 2, 3, 4, 7, 8, 9, 16, 32) if s >= 2 * kernel - 1])
    return {
        "batch": rng.choice([1, 2, 9, 32]), "inputs": inputs, "outputs": outputs, "groups": groups,
        "kernel": (kernel, kernel), "stride": (stride, stride), "padding": (padding, padding),
        "dilation": (dilation, dilation), "size": (size, size),
        "signal": rng.choice(["nhwc", "nhwc", "nchw", "slice"]), "weight": rng.choice(["nhwc", "nchw"]),
        "dtype": rng.choice(["float32", "float32", "float32", "bfloat16"]),
    }  # fmt: skip


def differences(shape: dict) -> dict[str, float]:
    """Relative differences of output and gradients from those without oneDNN."""
    torch.manual_seed(0)
    dtype, inputs = getattr(torch, shape["dtype"]), shape["inputs"]
    signal = torch.randn(shape["batch"], inputs + 3, *shape["size"]).to(dtype)
    if shape["signal"] == "slice":  # a part of a residual signal
        signal = signal.contiguous(memory_format=torch.channels_last)[:, :inputs]
    else:
        signal = signal[:, :inputs].contiguous(memory_format=LAYOUTS[shape["signal"]])
    weight = torch.randn(shape["outputs"], inputs // shape["groups"], *shape["kernel"]).to(dtype)
    weight = weight.contiguous(memory_format=LAYOUTS[shape["weight"]])
    bias = torch.randn(shape["outputs"]).to(dtype)
    options = {name: shape[name] for name in ("stride", "padding", "dilation", "groups")}
    mine = [t.detach().requires_grad_() for t in (signal, weight, bias)]
    out = F.conv2d(*mine, **options)
    towards = torch.randn_like(out)
    out.backward(towards)
    theirs = [t.detach().double().contiguous().requires_grad_() for t in (signal, weight, bias)]
    with torch.backends.mkldnn.flags(enabled=False):
        expected = F.conv2d(*theirs, **options)
        expected.backward(towards.double())
    names = ("d signal", "d weight", "d bias")
    pairs = {name: (a.grad, b.grad) for name, a, b in zip(names, mine, theirs, strict=True)}
    pairs["output"] = (out.detach(), expected.detach())
    return {name: float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3)) for name, (a, b) in pairs.items()}


def work() -> None:
    """What a process does: read shapes, a line each, and say what came of each."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for line in sys.stdin:
        print(json.dumps(differences(json.loads(line))), flush=True)


def run(shapes: list[dict], environment: dict[str, str], seconds: float = 20) -> tuple[list[dict], str | None]:
    """The differences of the first shapes, and what stopped it before the others: "dies", "hangs" or nothing."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=os.environ | environment,
    )  # fmt: skip
    lines: queue.Queue[str] = queue.Queue()

    def write() -> None:
        with contextlib.suppress(OSError):  # if it dies before it has read them all
            process.stdin.write("".join(json.dumps(shape) + "\n" for shape in shapes))
            process.stdin.close()

    def read() -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    for job in (write, read):
        threading.Thread(target=job, daemon=True).start()
    found: list[dict] = []
    try:
        while line := lines.get(timeout=seconds if found else seconds + 60):  # at first it loads torch
            found.append(json.loads(line))
    except queue.Empty:
        process.kill()
        process.wait()
        return found, "hangs"
    return found, "dies" if process.wait() else None


def faults(shapes: list[dict], environment: dict[str, str]) -> list[dict]:
    """The shapes that go wrong, each with what happens."""
    found, at = [], 0
    while at < len(shapes):
        results, end = run(shapes[at : at + 200], environment)
        for shape, result in zip(shapes[at:], results, strict=False):
            if not max(result.values()) <= TOLERANCE[shape["dtype"]]:
                found.append(shape | {"fault": "wrong", "differences": result})
        at += len(results)
        if end is not None:
            for shape in shapes[max(0, at - 3) : at + 1]:  # a heap may be found damaged some shapes after it was
                _, alone = run([shape] * 5, environment)
                if alone is not None and not any(shape.items() <= other.items() for other in found):
                    found.append(shape | {"fault": alone})
            at += 1
    return found


def avoided(shape: dict) -> bool:
    """Whether `bar.network.stride_first` keeps training away from this one."""
    return tuple(shape["kernel"]) == (1, 1) and tuple(shape["stride"]) != (1, 1) and tuple(shape["padding"]) == (0, 0)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--shapes", default=1500, show_default=True, help="How many to draw, beside those that were reported.")
@click.option("--seed", default=0, show_default=True, help="Of the drawing.")
@click.option("--isa", multiple=True, default=("DEFAULT", "AVX2"), show_default=True, help="ONEDNN_MAX_CPU_ISA.")
@click.option("--threads", multiple=True, type=int, default=(1, 2), show_default=True)
@click.option("--json", "json_", type=click.Path(path_type=Path), help="Write what was found to this file.")
@click.option("--worker", is_flag=True, hidden=True)
def main(shapes, seed, isa, threads, json_, worker) -> None:
    """Look for convolutions that this processor computes wrongly. Exit code 1 if training would meet one.

    \b
    Examples:
      python bench/convolutions.py
      python bench/convolutions.py --shapes 200 --isa AVX2 --threads 1
    """
    if worker:
        work()
        return
    rng = random.Random(seed)
    tried = [PLAIN | shape | {"reported": name} for name, shape in REPORTED.items()]
    tried += [draw(rng) for _ in range(shapes)]
    rows, met = [], 0
    table = Table(title=f"{len(tried)} convolutions, forwards and backwards")
    for column in ("instruction set", "threads", "die", "hang", "wrong", "not avoided", "seconds"):
        table.add_column(column, justify="left" if column == "instruction set" else "right")
    for name, count in track([(i, t) for i in isa for t in threads], "processes", console=Console(stderr=True)):
        start = time.perf_counter()
        found = faults(tried, {"ONEDNN_MAX_CPU_ISA": name, "OMP_NUM_THREADS": str(count), **HEAP_CHECK})
        seconds = time.perf_counter() - start
        kinds, left = Counter(shape["fault"] for shape in found), sum(not avoided(shape) for shape in found)
        met += left
        rows.append({"isa": name, "threads": count, "tried": len(tried), "faults": found, "seconds": seconds})
        counts = (kinds["dies"], kinds["hangs"], kinds["wrong"], left, round(seconds))
        table.add_row(name, str(count), *map(str, counts))
    Console().print(table)
    if json_ is not None:
        from bar import files, machine

        setup = {
            "shapes": shapes, "seed": seed, "hardware": machine.hardware(), "torch": torch.__version__,
            "isa": torch.backends.cpu.get_cpu_capability(), "commit": machine.commit(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()), "tolerance": TOLERANCE, "reported": sorted(REPORTED),
        }  # fmt: skip
        json_.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(json_, json.dumps({"setup": setup, "rows": rows}, indent=1) + "\n")
    sys.exit(1 if met else 0)


if __name__ == "__main__":
    main()
