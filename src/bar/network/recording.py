"""Record what a model does with `torch.fx`: from any thread, leaving random states unchanged, in either mode."""

import inspect
import operator
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bar.errors import BarError, line_of
from bar.network import containers, views
from bar.network.checks import Refusal, place_of
from bar.network.running import called, first_line, on_meta, undisturbed


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

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _InPlace(node, self)


class _InPlace(fx.Proxy):
    """The proxy of torch.fx, but ``x += y`` is not recorded as ``x = x + y``: x may have another name, too."""

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


def symbolic_trace(model: nn.Module) -> fx.GraphModule:
    """As ``torch.fx.symbolic_trace``, in several threads at once, and with ``x += y`` as it is."""
    with _TRACING:
        return fx.GraphModule(model, _OneThread().trace(model), type(model).__name__)


class _Unfit(BarError):
    """The input does not fit: no module that is left whole would change that."""


class Recorder(_OneThread):
    """Records a model with known shapes, and leaves whole, as one call, what cannot be recorded.

    Every operation is also done on the ``meta`` device, so that sizes are numbers, and loops and conditions on them are
    followed. Tensors themselves stay unknown: a module that decides by their values becomes a call of its own.

    Parameters
    ----------
    twin : nn.Module
        The same modules on the ``meta`` device, from `on_meta`.
    inputs : list of Tensor
        On the ``meta`` device.
    leaves : dict of str to str
        Paths of modules that are not looked into, and why; more are added.
    """

    draws: _Draws | None = None
    drawn: str | None = None  # the path of the first module that draws numbers

    def __init__(self, twin: nn.Module, inputs: list[Tensor], leaves: dict[str, str]) -> None:
        super().__init__()
        self.twin, self.leaves = twin, leaves
        self.views: dict[str, nn.Module] = {}  # layers with a forward of their own, see `bar.network.views`
        self.values: dict[fx.Node, object] = {}
        self.writing: set[str] = set()  # the paths of modules left whole that write into what they are given
        self._inputs, self._cache, self._running = list(inputs), {}, False
        self._precision = _precision()

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict):
        if self._running or threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        try:
            path = self.path_of_module(m)
        except NameError:  # made inside forward, as in nn.ReLU()(x) or self.features[:-1](x)
            if not isinstance(m, nn.Sequential) and any(True for _ in m.parameters()):
                raise BarError(
                    f"a {type(m).__name__} that is called is no module of the network, which does not know its "
                    "weights: keep it in an attribute of its own, or its list in nn.ModuleList"
                ) from None
            return type(m).forward(m, *args, **kwargs)
        before = self.draws.state() if self.draws else None
        place = next(iter(reversed(self.graph.nodes)), None), dict(self.module_stack), dict(self.num_calls)
        given = containers.Given(args, kwargs)
        try:
            out = super().call_module(m, forward, args, kwargs)
        except _Unfit:
            raise
        except Exception as error:  # fx and forward may raise anything
            if path in self.leaves:
                raise
            self._forget(*place)
            given.restore()
            self.leaves[path] = f"cannot be traced: {first_line(error)}"
            out = super().call_module(m, forward, args, kwargs)
        if path in self.writing:
            given.spoil(path)
        if self.drawn is None and before is not None and self.draws.state() != before:
            self.drawn = self.path_of_module(m)
        return out

    def _forget(self, last: fx.Node | None, stack: dict, calls: dict) -> None:
        """Undo what has been recorded since."""
        while (node := next(iter(reversed(self.graph.nodes)), None)) is not last:
            self.graph.erase_node(node)
            self.values.pop(node, None)
        there = set(self.graph.nodes)
        for name, proxy in list(self._cache.items()):
            if proxy.node not in there:
                del self._cache[name]
        self.module_stack.clear()
        self.module_stack.update(stack)
        self.num_calls.clear()
        self.num_calls.update(calls)

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args=None) -> tuple[Callable, list]:
        """The inputs that are given, in the order of forward's parameters; the others have their defaults."""
        signature = inspect.signature(inspect.unwrap(root_fn))
        args: list = [self.root]
        for name, parameter in list(signature.parameters.items())[1:]:
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL and self._inputs:
                raise _Unfit(f"{type(self.root).__name__} must take its inputs one by one, not as *{name}")
            positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            if positional and (self._inputs or parameter.default is inspect.Parameter.empty):
                args.append(self._proxy_placeholder(name, concrete_args, signature, root_fn))
        return root_fn, args

    def getattr(self, attr: str, attr_val, parameter_proxy_cache: dict):
        self._cache = parameter_proxy_cache
        if self._running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        layers = (*LAYERS, *views.stochastic_depth())
        same = any(isinstance(module, layer) and type(module).forward is layer.forward for layer in layers)
        return name in self.leaves or same or super().is_leaf_module(module, name)

    def create_node(self, kind: str, target, args, kwargs, name=None, type_expr=None) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if kind.startswith("call") and not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            raise BarError(
                f"{place_of(node, dict(self.root.named_modules()))} is computed without gradients, which pruning would "
                "lose: instead of torch.no_grad, freeze weights by requires_grad_(False); instead of an "
                "autograd.Function, take an activation of torch.nn; instead of checkpoint(…, use_reentrant=True), False"
            )
        if kind.startswith("call") and _precision() != self._precision:
            raise BarError(
                f"{place_of(node, dict(self.root.named_modules()))} is computed in another precision, by "
                "torch.autocast, which pruning would lose: put that around the call of the network instead, or into a "
                "module of its own, which is left whole"
            )
        return node

    def create_arg(self, a):
        """As torch.fx does, which by itself makes a dict of an OrderedDict, and a list of whatever is one."""
        path, _ = next(reversed(self.module_stack.values()), ("", None))
        made = containers.call(a, path)
        if made is not None:
            return self.create_node("call_function", type(a), *map(self.create_arg, made))
        try:
            return super().create_arg(a)
        except NotImplementedError:
            raise containers.refusal(a, path) from None

    def create_proxy(self, kind: str, target, args, kwargs, *rest, **options):
        """Record a call, and do it on the meta device; what is no tensor is returned as it is."""
        if kind == "call_function" and (found := self._layer(target, args, kwargs)) is not None:
            kind, target, args, kwargs = "call_module", found, args[:1], {}
        if target in _JOINS and args and isinstance(args[0], fx.Proxy):  # what chunk returns, one by one
            args = (list(args[0]), *args[1:])
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        node = proxy.node
        if kind == "output":
            return proxy
        self.values[node] = value = self._value(node)
        if kind.startswith("call") and not _has_tensor(value) and value is not None:
            named = target is getattr and node.args[1] in ("dtype", "device")
            if not named and not isinstance(value, torch.dtype | torch.device):
                self.graph.erase_node(node)  # a number, known from the shapes
                del self.values[node]
                return value
        return proxy

    def _layer(self, function: Callable, args: tuple, kwargs: dict) -> str | None:
        """The path of the layer whose own function this is, inside of its own forward."""
        path, _ = next(reversed(self.module_stack.values()), ("", None))
        if not path or not args or not isinstance(args[0], fx.Proxy):
            return None
        module = submodule(self.root, path)
        view = None if module is None else views.seen(module, path, function, args, kwargs)
        if view is None or (path in self.views and not views.same(self.views[path], view)):
            return None
        self.views[path] = view
        return path

    def _known(self, node: fx.Node):
        """What a node returned; constants are recorded by torch.fx itself."""
        if node not in self.values:
            self.values[node] = self._value(node)
        return self.values[node]

    def _value(self, node: fx.Node):
        """What a node returns, on the meta device."""
        if node.op == "placeholder":
            if not self._inputs:
                raise _Unfit(f"the network needs one more input, {node.target!r}: give example_inputs")
            return self._inputs.pop(0)
        if node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            tensor = _held(submodule(self.root, owner) if owner else self.root, name)
            return torch.empty_like(tensor, device="meta") if isinstance(tensor, Tensor) else tensor
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._known)
        count = self.draws.count if self.draws else 0
        self._running = True
        try:
            with torch.device("meta"):
                if node.op == "call_module":
                    return self._returned(node.target, *containers.plain((args, kwargs)))
                if node.op == "call_method":
                    return getattr(args[0], node.target)(*args[1:], **kwargs)
                return node.target(*args, **kwargs)
        except Exception as error:
            if node.op != "call_module":
                raise
            where = place_of(node, dict(self.root.named_modules()))
            raise _Unfit(f"the network cannot take this input: {where} fails with: {first_line(error)}") from error
        finally:
            self._running = False
            if self.draws:
                self.draws.count = count

    def _returned(self, path: str, args: tuple, kwargs: dict):
        """What a module returns, on the meta device."""
        view, given = self.views.get(path), containers.Given(args, kwargs)
        layer = submodule(self.twin, path) if view is None else views.on_meta_like(view)
        if type(layer) in views.NORMS:  # which takes long on the meta device
            return torch.empty_like(args[0])
        out, _ = called(layer, submodule(self.root, path), args, kwargs)
        if given.written():
            self.writing.add(path)
        return out

    def check_inputs(self) -> None:
        """Refuse inputs that nothing takes."""
        if self._inputs:
            raise BarError(
                f"{type(self.root).__name__} takes fewer inputs than are given: {len(self._inputs)} are left"
            )

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.values.get(obj.node)
        return super().to_bool(obj) if _has_tensor(value) else bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator:
        return (obj[i] for i in range(len(obj)))

    def place(self, error: Exception) -> str:
        """The module, and the line of the user's code, that an error while tracing comes from."""
        path, _ = next(reversed(self.module_stack.values()), ("", None))
        parts = (f"module {path!r}" if path else None, line_of(error, installed=True))
        return "".join(f", {part}" for part in parts if part)


def _precision() -> tuple:
    """What torch.autocast does at this moment."""
    return tuple(torch.is_autocast_enabled(d) and torch.get_autocast_dtype(d) for d in ("cpu", "cuda"))


_JOINS = (torch.cat, torch.concat, torch.concatenate, torch.stack)
LAYERS = (*views.CONVOLUTIONS, *views.NORMS, nn.Linear)


def _held(module: nn.Module, name: str):
    """An attribute of a module, without the `getattr` that torch.fx replaces."""
    places = module._parameters, module._buffers, vars(module)
    return next(place[name] for place in places if name in place)


def _has_tensor(value) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_tensor, value))
    if isinstance(value, dict):
        return any(map(_has_tensor, value.values()))
    return isinstance(value, Tensor)


class _Proxy(_InPlace):
    """A proxy with known sizes."""

    def __getattr__(self, name: str):
        value = self.tracer.values.get(self.node)
        if name not in ("dtype", "device") and hasattr(value, name):
            found = getattr(value, name)
            if not isinstance(found, Tensor) and not callable(found):
                return found
        return super().__getattr__(name)

    def __iter__(self) -> Iterator:
        return self.tracer.iter(self)

    def __len__(self) -> int:
        return len(self.tracer.values[self.node])

    def __bool__(self) -> bool:
        return self.tracer.to_bool(self)

    def __setitem__(self, index, value) -> None:
        raise TypeError("x[...] = y changes a signal in place: use torch.where, torch.cat or a product")


@dataclass(frozen=True)
class Recording:
    """What was recorded: the graph, the layers that are seen as plain ones, and what each node returned."""

    module: fx.GraphModule
    views: dict[str, nn.Module]
    values: dict[fx.Node, object]


def record(
    model: nn.Module, inputs: list[Tensor], leaves: dict[str, str], training: bool = False, inference: bool = False
) -> Recording:
    """What a model does with these inputs in one of its modes; the model is left as it was."""
    twin = on_meta(model)
    own = {m: vars(m).copy() for m in model.modules()}
    contents = [(name, *found) for name, m in model.named_modules() for found in containers.kept(m)]
    modes = {m: m.training for m in own}
    tracer = Recorder(twin, inputs, leaves)
    grad = torch.inference_mode() if inference else torch.enable_grad()
    with _TRACING, undisturbed(), grad, _Draws() as tracer.draws:
        try:
            model.train(training)
            before = tracer.draws.state()
            module = fx.GraphModule(model, tracer.trace(model), type(model).__name__)
            tracer.check_inputs()
            if tracer.draws.state() != before:
                raise Refusal(
                    f"{f'module {tracer.drawn!r}' if tracer.drawn else 'the network itself'} draws random numbers when "
                    f"it is called{' in training mode' if training else ''}, which would be the same in every step",
                    tracer.drawn or "",
                )
            _check_attributes(model, own, contents)
        except BarError:
            raise
        except Exception as error:
            mode, advice = "", "put that into a module of its own, which will be left whole"
            if training:
                mode, advice = " in training mode", "only nn.Dropout, F.dropout and StochasticDepth are followed there"
            where = f"cannot trace {type(model).__name__} with torch.fx{mode}{tracer.place(error)}"
            raise BarError(f"{where}: {first_line(error)} - {advice}") from error
        finally:
            _restore(own, modes, contents)
    module.training = modes[model]
    module._tracer_cls = module.graph._tracer_cls = fx.Tracer  # with which torch.fx unpickles it, and its copies
    for path, view in tracer.views.items():
        owner, _, name = path.rpartition(".")
        module.get_submodule(owner)._modules[name] = view
    return Recording(module, tracer.views, {n: v for n, v in zip(module.graph.nodes, _in_order(tracer), strict=True)})


def _in_order(tracer: Recorder) -> list:
    return [tracer.values.get(node) for node in tracer.graph.nodes]


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, None if there is none; without the checks of torch."""
    for part in path.split("."):
        root = root._modules.get(part)
        if root is None:
            return None
    return root


def _check_attributes(model: nn.Module, before: dict[nn.Module, dict], contents: list[tuple]) -> None:
    """Refuse a model whose forward changes what it keeps beside its tensors, such as a count or a list of calls."""
    changed = [
        (name, key)
        for name, m in model.named_modules()
        for key, value in before[m].items()
        if type(value) in (bool, int, float, str) and key != "training" and vars(m).get(key) != value
    ]
    changed += [(name, key) for name, key, container, held in contents if containers.differs(container, held)]
    for name, key in changed:
        raise Refusal(
            f"{f'module {name!r}' if name else 'the network itself'} changes its attribute {key!r} when it is "
            "called, which would happen only once, while the network is traced",
            name,
        )


def _restore(own: dict[nn.Module, dict], modes: dict[nn.Module, bool], contents: list[tuple]) -> None:
    """Give modules back the attributes and modes that they had, and containers what was in them."""
    for m, mode in modes.items():
        for key in vars(m).keys() - own[m].keys():  # torch.fx stores here what forward creates
            del vars(m)[key]
        vars(m).update(own[m] | {"training": mode})
    for _, _, container, before in contents:
        if containers.differs(container, before):
            containers.refill(container, before)
