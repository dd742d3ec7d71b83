"""Run modules for their shapes: without values, without printing, and without disturbing random numbers."""

import contextlib
import copy
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, fx, nn

from bar.network.checks import check_shapes
from bar.network.containers import plain
from bar.network.counting import Total


@contextlib.contextmanager
def undisturbed(cuda: bool = False) -> Iterator[None]:
    """Restore the global random generators afterwards; `cuda`: those of GPUs too, even if CUDA is not in use yet."""
    devices = range(torch.cuda.device_count()) if cuda or torch.cuda.is_initialized() else ()
    state, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)  # noqa: NPY002


def quiet_call(network: nn.Module) -> Callable:
    """A callable that runs a network without printing its graph on an error, as ``torch.fx`` does by itself."""
    return network.forward if isinstance(network, fx.GraphModule) else network


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def called(on_meta: nn.Module, module: nn.Module, args: tuple, kwargs: dict) -> tuple[object, tuple[int, int]]:
    """What a module returns on the meta device; of one that looks at values, what it returns for zeros.

    And the volume and the FLOPs of the convolutions in it. A module may write into the lists that it is given. One that
    looks at values may return what it was given for other values: its result counts as memory of that.
    """
    given = plain((args, kwargs))
    try:
        with Total(images=2) as total:
            return quiet_call(on_meta)(*args, **kwargs), (total.volume, total.flops)
    except (RuntimeError, NotImplementedError):
        pass
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))

    def moved(value, to: Callable):
        if isinstance(value, Tensor):
            return to(value)
        if isinstance(value, list | tuple):
            return type(value)(moved(v, to) for v in value)
        return {k: moved(v, to) for k, v in value.items()} if isinstance(value, dict) else value

    args, kwargs = moved(given, lambda t: torch.zeros(t.shape, dtype=t.dtype, device=device))
    inputs = {(t.shape, t.dtype): t for t in (*given[0], *given[1].values()) if isinstance(t, Tensor)}
    twin = copy.deepcopy(module).eval()
    with undisturbed(), torch.no_grad(), torch.device(device), Total(images=2) as total:
        out = twin(*args, **kwargs)

    def known(t: Tensor) -> Tensor:
        """One of the inputs, where the result may be one, or else a tensor without values."""
        return inputs[t.shape, t.dtype].detach() if (t.shape, t.dtype) in inputs else t.to("meta")

    return moved(out, known), (total.volume, total.flops)


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of a model without values, to compute shapes without memory or arithmetic.

    Parameters
    ----------
    model : nn.Module
        Any model; it is not changed.

    Returns
    -------
    nn.Module
        The same modules in eval mode, with all parameters and buffers on the ``meta`` device.

    Examples
    --------
    >>> on_meta(nn.Linear(3, 5)).weight.device
    device(type='meta')
    """
    check_shapes(model)
    memo: dict[int, Tensor] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    plain = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor)]
    memo |= {id(t): t.detach().to("meta") for t in plain}  # such as what weight norm computes, or a user's constant
    return copy.deepcopy(model, memo).eval()
