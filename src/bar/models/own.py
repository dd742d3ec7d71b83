"""A network of a user's own, ``package.module:function``, and one of timm, ``timm:NAME``.

A run's record holds a hash of the source that the network comes from, so that another source is another run.
"""

import ast
import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bar.errors import BarError, in_one_line, nearest, shown
from bar.network import on_meta, undisturbed

_STANDARD = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
_first: dict[str, tuple[Callable, str]] = {}  # name -> the function, and its source when it was first asked for
_returned: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def is_own(name: str) -> bool:
    """Whether the name of a network refers to a function that makes it, or to timm.

    Examples
    --------
    >>> is_own("package.module:function"), is_own("timm:resnet18"), is_own("resnet18")
    (True, True, False)
    """
    return ":" in name


def source_of(name: str, source: str | None = None) -> str:
    """The hash of the source of a network; its module is imported, and so run.

    Parameters
    ----------
    name : str
        ``package.module:function`` or ``timm:NAME``.
    source : str, optional
        What the hash must be.

    Returns
    -------
    str
        A SHA-256 in hexadecimal, of the files of the module, of what it imports from files that are not installed, and
        so on; of timm, of its version. What is installed beside it, and what is read from other files, is not seen.

    Raises
    ------
    BarError
        If there is no such function, it needs other arguments than ``num_classes``, or the source has changed.

    Examples
    --------
    >>> source_of("torchvision.models:resnet18") == source_of("torchvision.models:resnet50")
    True
    """
    return _load(name, source)[1]


def build(name: str, num_classes: int | None, input_size: tuple[int, int, int], source: str | None = None) -> nn.Module:
    """Call the function, and check what it returns on one image.

    Parameters
    ----------
    name, source : str
        As for `source_of`.
    num_classes : int or None
        Outputs; None for 10, or as many as the network has, if the function does not take ``num_classes``.
    input_size : (int, int, int)
        Channels, height, width of an input image.

    Returns
    -------
    nn.Module
        New, and in training mode.

    Raises
    ------
    BarError
        As `source_of`; if the function fails, or returns no network, a network that it has returned before, or one that
        does not take such images or give so many outputs.

    Examples
    --------
    >>> build("torchvision.models:resnet18", 7, (3, 32, 32)).fc
    Linear(in_features=512, out_features=7, bias=True)
    """
    function, _ = _load(name, source)
    given = _arguments(name, function, 10 if num_classes is None else num_classes)
    try:
        with _current_directory_first():
            network = function(**given)
    except (Exception, SystemExit) as error:
        raise BarError(f"{name} fails when it is called: {in_one_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise BarError(f"{name} returns {shown(network)}, not a torch.nn.Module")
    if network in _returned:
        raise BarError(f"{name} returns the same network again: it must make a new one whenever it is called")
    _returned.add(network)
    _check_outputs(name, network, given.get("num_classes", num_classes), input_size)
    other = {p.dtype for p in network.parameters()} - {torch.float32}
    if other:
        raise BarError(f"the network of {name} has weights in {other.pop()}: they must be in torch.float32")
    if not any(p.requires_grad for p in network.parameters()):
        raise BarError(f"the network of {name} has no parameter that requires a gradient: nothing can be trained")
    return network.cpu().train()


def _load(name: str, source: str | None) -> tuple[Callable, str]:
    """The function of a name, and the hash of its source."""
    path, _, wanted = name.partition(":")
    if path == "timm":
        function, found = _of_timm(wanted)
    else:
        with _current_directory_first(), undisturbed():  # whichever process imports it first
            function = _imported(path, wanted)
            found = _digest(path, getattr(function, "__module__", None))
    known, before = _first.setdefault(name, (function, found))
    if known is not function:  # the module has been loaded anew
        _first[name] = function, found
    elif before != found:
        raise BarError(f"the source of {name} has changed since Python imported it: start again in a new process")
    if source is not None and source != found:
        raise BarError(f"the source of {name} has changed since this run was configured: its SHA-256 is {found:.8}…")
    _arguments(name, function, 10)
    return function, found


def _of_timm(wanted: str) -> tuple[Callable, str]:
    try:
        import timm
    except ImportError as error:
        raise BarError(
            f"timm:{wanted:.60} needs timm: pip install '.[timm]' in a checkout ({in_one_line(error)})"
        ) from error
    if not timm.is_model(wanted):
        close = difflib.get_close_matches(wanted[:60], timm.list_models(), n=1)  # of a thousand
        raise BarError(f"timm has no network {wanted!r:.60}" + "".join(f": did you mean {name!r}?" for name in close))
    return _timms(wanted), hashlib.sha256(f"timm {timm.__version__}".encode()).hexdigest()


@functools.cache
def _timms(wanted: str) -> Callable:
    import timm

    return functools.partial(timm.create_model, wanted)


@contextlib.contextmanager
def _current_directory_first() -> Iterator[None]:
    """Import from the current directory, as ``python -m`` does and an installed command does not."""
    sys.path.insert(0, "")
    importlib.invalidate_caches()  # a file may have been written just now
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # what was imported may have put the path in order
            sys.path.remove("")


def _imported(path: str, wanted: str) -> Callable:
    if path.endswith(".py") or not all(part.isidentifier() for part in [*path.split("."), wanted]):
        raise BarError(
            f'a network of your own is named package.module:function, as in "from package.module import function", '
            f"or timm:NAME, not {path + ':' + wanted!r:.100}"
        )
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:
        raise BarError(f"cannot import {path:.100}: {in_one_line(error)}") from error
    function = getattr(module, wanted, None)
    if function is None:
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise BarError(f"{path} has no {wanted!r}: {nearest(wanted, known[:20])}")
    if isinstance(function, nn.Module):
        raise BarError(f"{path}:{wanted} is a network: name a function or class that makes a new one")
    if not callable(function):
        raise BarError(f"{path}:{wanted} is {shown(function)}, not a function that makes a network")
    return function


def _arguments(name: str, function: Callable, num_classes: int) -> dict[str, int]:
    """What the function is called with."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of something written in C
        return {}
    takes = any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    given = {"num_classes": num_classes} if takes else {}
    try:
        signature.bind(**given)
    except TypeError as error:
        raise BarError(
            f"{name} cannot be called: {error}. It is called with num_classes, if it takes that, and with nothing else"
        ) from error
    return given


def _check_outputs(name: str, network: nn.Module, num_classes: int | None, size: tuple[int, int, int]) -> None:
    """Refuse a network that cannot take such an image, or does not give a number for each class."""
    lazy = any(map(is_lazy, network.parameters()))  # such layers get their widths from an image that has values
    try:
        with torch.no_grad():
            seen = network.eval() if lazy else on_meta(network)
            output = seen(torch.zeros(1, *size, device="cpu" if lazy else "meta"))
    except Exception as error:
        shape = " x ".join(map(str, size))
        raise BarError(
            f"the network of {name} cannot take an image of {shape} (channels x height x width): {in_one_line(error)}"
        ) from error
    if not isinstance(output, torch.Tensor):
        raise BarError(f"the network of {name} returns a {type(output).__name__}, not one tensor")
    if output.ndim != 2 or output.shape[0] != 1 or num_classes not in (None, output.shape[1]):
        wanted = f"a number for each of the {num_classes} classes" if num_classes else "one number for each class"
        raise BarError(f"the network of {name} returns a tensor of {tuple(output.shape)} for one image, not {wanted}")


def _digest(*roots: str | None) -> str:
    """The hash of the modules, and of what they import from files that are not installed, directly or not."""
    top, found, waiting = roots[0].partition(".")[0], {}, [name for name in roots if name]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = None
        spec = _spec(name, top)
        if spec is None or not spec.has_location:
            continue
        try:
            content = Path(spec.origin).read_bytes()
        except OSError as error:
            raise BarError(f"cannot read {spec.origin}: {error.strerror or error}") from error
        found[name] = hashlib.sha256(content).hexdigest()
        waiting += _imports(content, spec.parent or "") if spec.origin.endswith(".py") else ()
        waiting += [name.rpartition(".")[0]] if "." in name else []
    if found[roots[0]] is None:
        raise BarError(f"{roots[0]} is no file of source, so that a record could not tell where a network comes from")
    held = sorted((name, digest) for name, digest in found.items() if digest)
    return hashlib.sha256(repr(held).encode()).hexdigest()


def _spec(name: str, top: str) -> ModuleSpec | None:
    """Where a module would be imported from; None for what is installed, or is not there."""
    first = name.partition(".")[0]
    if first == "bar" != top:  # whose commit is in the record
        return None
    try:
        spec = importlib.util.find_spec(first)
        if spec is None or (first != top and _is_installed(spec)):
            return None
        return importlib.util.find_spec(name)
    except Exception:  # it is no module, or the package around it cannot be imported
        return None


def _is_installed(spec: ModuleSpec) -> bool:
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    paths = [Path(place) for place in places]
    return not paths or any(
        {"site-packages", "dist-packages"} & set(path.parts) or any(map(path.is_relative_to, _STANDARD))
        for path in paths
    )


@functools.lru_cache(maxsize=1024)
def _imports(content: bytes, package: str) -> tuple[str, ...]:
    """The names that a file of source imports; some of them may be functions, which are no modules."""
    found = []
    try:
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    except (SyntaxError, ValueError, ImportError):  # not imported itself, or it could not have been
        return ()
    return tuple(found)
