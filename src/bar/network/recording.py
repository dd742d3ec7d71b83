"""Record what a model does with `torch.fx`: from any thread, leaving random states unchanged, in either mode."""

import contextlib
import copy
import operator
import random
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import StochasticDepth

from bar.errors import BarError
from bar.network.checks import place_of


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


class _Draws(TorchDispatchMode):
    """Counts the random tensors that this thread draws; other threads are not counted."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))

    def state(self) -> tuple:
        """A value that changes whenever torch, numpy or Python draws a random number."""
        numbers = np.random.get_state()  # noqa: NPY002
        return self.count, random.getstate(), numbers[1].tobytes(), numbers[2:]


_TRACING = threading.RLock()  # while torch.fx traces, it replaces methods of nn.Module, for all threads


class _OneThread(fx.Tracer):
    """The tracer of torch.fx, except that other threads may run modules meanwhile."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict):
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val, parameter_proxy_cache: dict):
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def quiet_call(network: nn.Module) -> Callable:
    """A callable that runs a network without printing its graph on an error, as ``torch.fx`` does by itself."""
    return network.forward if isinstance(network, fx.GraphModule) else network


def symbolic_trace(model: nn.Module) -> fx.GraphModule:
    """As ``torch.fx.symbolic_trace``, in several threads at once."""
    with _TRACING:
        return fx.GraphModule(model, _OneThread().trace(model), type(model).__name__)


class _Tracer(_OneThread):
    """Also records a subclass of a layer with the same forward as that layer, and notes modules that draw numbers."""

    draws: _Draws | None = None
    drawn: str | None = None  # the path of the first one

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict):
        if self.draws is None or threading.get_ident() != self._thread:
            return super().call_module(m, forward, args, kwargs)
        before = self.draws.state()
        out = super().call_module(m, forward, args, kwargs)
        if self.drawn is None and self.draws.state() != before:
            self.drawn = self.path_of_module(m)
        return out

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        layers = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
        layers += (StochasticDepth,)
        same = any(isinstance(module, layer) and type(module).forward is layer.forward for layer in layers)
        return same or super().is_leaf_module(module, name)

    def create_node(self, kind: str, target, args, kwargs, name=None, type_expr=None) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if kind.startswith("call") and not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            raise BarError(
                f"{place_of(node, dict(self.root.named_modules()))} is computed without gradients, by torch.no_grad or "
                "an autograd.Function, which pruning would lose: freeze weights by requires_grad_(False) instead"
            )
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def place(self, error: Exception) -> str:
        """The module, and the line of the user's code, that an error while tracing comes from."""
        path, _ = next(reversed(self.module_stack.values()), ("", None))
        frames = [
            f for f in traceback.extract_tb(error.__traceback__)[1:] if not f.filename.startswith(torch.__path__[0])
        ]
        line = [f"line {frames[-1].lineno} of {frames[-1].filename}"] if frames else []
        return "".join(f", {part}" for part in ([f"module {path!r}"] if path else []) + line)


class _Proxy(fx.Proxy):
    """The proxy of torch.fx, except that ``x += y`` is not recorded as ``x = x + y``."""

    def _record(self, operation: Callable, other) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    def __iadd__(self, other):
        return self._record(operator.iadd, other)

    def __isub__(self, other):
        return self._record(operator.isub, other)

    def __imul__(self, other):
        return self._record(operator.imul, other)

    def __itruediv__(self, other):
        return self._record(operator.itruediv, other)


def record(model: nn.Module, training: bool, inference: bool = False) -> fx.GraphModule:
    """What torch.fx records of a model in one of its modes; the model is left as it was."""
    own = {m: vars(m).copy() for m in model.modules()}
    contents = [(name, *found) for name, m in model.named_modules() for found in _containers(m)]
    modes = {m: m.training for m in own}
    tracer = _Tracer()
    grad = torch.inference_mode() if inference else torch.enable_grad()
    with _TRACING, undisturbed(), grad, _Draws() as tracer.draws:
        try:
            model.train(training)
            before = tracer.draws.state()
            module = fx.GraphModule(model, tracer.trace(model), type(model).__name__)
            if tracer.draws.state() != before:
                raise BarError(
                    f"{f'module {tracer.drawn!r}' if tracer.drawn else 'the network itself'} draws random numbers when "
                    f"it is called{' in training mode' if training else ''}, which would be the same in every step"
                )
            _check_attributes(model, own, contents)
        except BarError:
            raise
        except Exception as error:
            why = (
                " in training mode{}: {}. Only nn.Dropout, F.dropout and StochasticDepth are followed into that mode; "
                "what another module does there would be lost"
            )
            why = (why if training else "{}: {}").format(tracer.place(error), error)
            raise BarError(f"cannot trace {type(model).__name__} with torch.fx{why}") from error
        finally:
            _restore(own, modes, contents)
    module.training = modes[model]
    return module


def _check_attributes(model: nn.Module, before: dict[nn.Module, dict], contents: list[tuple]) -> None:
    """Refuse a model whose forward changes what it keeps beside its tensors, such as a count or a list of calls."""
    changed = [
        (name, key)
        for name, m in model.named_modules()
        for key, value in before[m].items()
        if type(value) in (bool, int, float, str) and key != "training" and vars(m).get(key) != value
    ]
    changed += [(name, key) for name, key, container, held in contents if _differs(container, held)]
    for name, key in changed:
        raise BarError(
            f"{f'module {name!r}' if name else 'the network itself'} changes its attribute {key!r} when it is "
            "called, which would happen only once, while the network is traced"
        )


_NOT_OURS = frozenset(vars(nn.Module())) - {"training"}  # hooks, submodules: torch keeps them


def _containers(module: nn.Module) -> Iterator[tuple[str, list | dict | set | deque, list | dict | set | deque]]:
    """The lists, dicts, sets and deques that a module keeps, nested ones too: attribute, container, and its copy."""
    todo, seen = [(key, value) for key, value in vars(module).items() if key not in _NOT_OURS], set()
    while todo:
        key, value = todo.pop()
        if isinstance(value, list | dict | set | deque) and id(value) not in seen:
            seen.add(id(value))
            yield key, value, copy.copy(value)
            todo += [(key, part) for part in (value.values() if isinstance(value, dict) else value)]


def _differs(container: list | dict | set | deque, before: list | dict | set | deque) -> bool:
    """Whether a container holds other objects than before, or in another order: by identity, not by equality."""
    if isinstance(container, dict):
        return [*map(id, (*container, *container.values()))] != [*map(id, (*before, *before.values()))]
    if isinstance(container, set):
        return {*map(id, container)} != {*map(id, before)}
    return [*map(id, container)] != [*map(id, before)]


def _restore(own: dict[nn.Module, dict], modes: dict[nn.Module, bool], contents: list[tuple]) -> None:
    """Give modules back the attributes and modes that they had, and containers what was in them."""
    for m, mode in modes.items():
        for key in vars(m).keys() - own[m].keys():  # torch.fx stores here what forward creates
            del vars(m)[key]
        vars(m).update(own[m] | {"training": mode})
    for _, _, container, before in contents:
        if _differs(container, before):
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(before)
