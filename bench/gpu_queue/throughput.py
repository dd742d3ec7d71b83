"""Images a second of the unpruned phase, by the loop that trains everything else, and its share of the GPU's peak."""

import contextlib
import dataclasses
import time
from pathlib import Path

import torch
import torchvision
from torch._dynamo.utils import counters

from bar import count, machine, models
from bar.errors import BarError
from bar.network import stride_first, trace
from bar.training import PRESETS, Training, steps_per_epoch
from gpu_queue.images import images_on
from gpu_queue.planning import VARIANTS
from gpu_queue.working import check_time

# torch's name of a device -> dense bfloat16 FLOP/s by NVIDIA's data sheets; of other boards no share is given.
PEAK = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
AIM = 0.4
RULE = (
    "FLOPs of a training image = 3 x 2 x multiply-adds of all convolutions in a forward pass (bar.count): forward, "
    "gradient of inputs, gradient of weights. Batch norms, ReLU, the linear layer and Adam are not counted."
)
WARM, PROBE, LEAST, SECONDS = 3, 3, 5, 4.0  # steps; the least steps measured, and about how long


class Enough(Exception):
    """Raised in the step after the last one that is timed."""


class Meter:
    """Called after each step: warms up, times a few steps to see how many fit, then times those; raises Enough.

    Only before and after what is timed does it wait for the device.
    """

    def __init__(self, device: torch.device, most: int, end: float) -> None:
        self.device, self.most, self.end = device, most, end
        self.steps, self.first, self.seconds = 0, 0.0, 0.0
        self._done, self._last, self._begun = 0, most, time.perf_counter()

    def __call__(self) -> None:
        check_time(self.end)
        self._done += 1
        if self._done == 1:
            self.first = self._lap()
        elif self._done == WARM:
            self._lap()
        elif self._done == WARM + PROBE:
            left = self.most - self._done
            self.steps = min(left, max(LEAST, int(SECONDS * PROBE / self._lap())))
            self._last = self._done + self.steps
        elif self._done == self._last:
            self.seconds = self._lap()
            raise Enough

    def _lap(self) -> float:
        """Seconds since the last call, all work that was asked for until now included."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        before, self._begun = self._begun, time.perf_counter()
        return self._begun - before


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else machine.processor()["processor"]


def measure(
    model: str, batch: int, variant: str, compiler: str, size: int | None, root: Path, device: str, end: float
) -> dict:
    """Train an unpruned network for some steps, as `bar run` does, and time them.

    Parameters
    ----------
    model : str
        As `bar.models.build` takes it.
    batch : int
        Images in a step.
    variant : str
        One of `VARIANTS`.
    compiler : str
        Of torch.compile.
    size : int or None
        Side of the images, if it is not their own.
    root : Path
        Where the images are.
    device : str
        Where to train.
    end : float
        When the time is over.

    Returns
    -------
    dict
        The record.

    Raises
    ------
    BarError
        If an epoch has too few batches of that size to be timed.
    """
    place, images = torch.device(device), images_on(device, size, root)
    settings = dataclasses.replace(PRESETS["paper"], batch_size=batch)
    steps = steps_per_epoch(images, settings)
    if len(images.train) < batch or steps < WARM + PROBE + LEAST:
        raise BarError(f"{len(images.train):,} images are too few to time batches of {batch}: take smaller ones")
    torch.backends.cudnn.benchmark = variant != "plain"
    torch.manual_seed(0)
    network = models.build(model, images.num_classes, images.input_size)
    flops = 3 * count(network, images.input_size).flops
    network = stride_first(trace(network, images.input_size).module).to(place, memory_format=torch.channels_last)
    if VARIANTS[variant]:
        torch.compiler.reset()
        counters.clear()
        mode = {"mode": VARIANTS[variant]} if compiler == "inductor" else {}
        network.compile(backend=compiler, dynamic=False, **mode)
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    meter = Meter(place, steps, end)
    training = Training(
        network, images, [("train", 1, settings.lr)], settings, torch.Generator().manual_seed(0), tick=meter
    )
    with contextlib.suppress(Enough):
        next(iter(training))
    if VARIANTS[variant] and not counters["stats"]["unique_graphs"]:
        raise BarError(f"torch.compile compiled nothing of {model}: this would have timed it uncompiled")
    rate = batch * meter.steps / meter.seconds
    peak = PEAK.get(device_name(place))
    return {
        "model": model, "batch_size": batch, "variant": variant, "compiler": compiler if VARIANTS[variant] else None,
        "mode": VARIANTS[variant], "cudnn_benchmark": torch.backends.cudnn.benchmark, "memory_format": "channels_last",
        "precision": "bfloat16 autocast" if place.type == "cuda" else "float32", "dataset_label": images.label,
        "input_size": list(images.input_size), "steps": meter.steps, "seconds_of_steps": meter.seconds,
        "seconds_of_first_step": meter.first, "images_per_second": rate, "flops_per_image": flops, "rule": RULE,
        "flops_per_second": flops * rate, "peak": peak, "share_of_peak": flops * rate / peak if peak else None,
        "aim": AIM, "memory": torch.cuda.max_memory_allocated(place) if place.type == "cuda" else None,
        "hardware": machine.hardware(place), **machine.processor(),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__, "cuda": torch.version.cuda,
                     "cudnn": torch.backends.cudnn.version()},
        "commit": machine.commit(), "source_tree": machine.source_tree(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }  # fmt: skip
