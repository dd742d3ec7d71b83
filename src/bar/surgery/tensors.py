"""Tensors that a user replaces after gates were put in: they are followed where they fit, or refused."""

import torch
from torch import Tensor, nn

from bar.errors import BarError
from bar.network import Network, tied
from bar.surgery.rewiring import submodule_of


class Tensors:
    """Remembers which tensors a network computes with, in a user's model and in the graph that was made of it.

    Parameters
    ----------
    network : bar.network.Network
        What tracing found.
    model : nn.Module, optional
        The user's model; without it, as after a copy, only the network's own tensors are followed.
    """

    def __init__(self, network: Network, model: nn.Module | None) -> None:
        self._body = body = network.module
        self._tied = tied(body).keys()
        roots = [root for root in (body, model) if root is not None]
        names = dict.fromkeys(node.target for node in body.graph.find_nodes(op="get_attr"))
        self._read = [_Read(name, roots) for name in names if isinstance(_held(body, name), Tensor)]
        self._own = [held for node in body.graph.find_nodes(op="call_module") for held in _own(body, node.target)]

    def check(self, built: nn.Module | None, model_too: bool) -> None:
        """Let the graph, and what has been built of it, have the tensors that the model has by now.

        Parameters
        ----------
        built : nn.Module, optional
            What reads some of these tensors under the same names.
        model_too : bool
            Whether the model gets those that have been replaced in the graph; not for the length of one call, such as
            that of `torch.func.functional_call`.

        Raises
        ------
        BarError
            If a tensor has been replaced by one that does not fit, or is tied to another now.
        """
        own = [(name, held, key, held.get(key)) for name, held, key, _ in self._own]
        new = []
        for (name, _, key, tensor), (*_, old) in zip(own, self._own, strict=True):
            if tensor is not old:
                _check_fit(f"{name}.{key}", old, tensor)
                new.append(tensor)
        for read in self._read:
            if read.changed():
                new.append(read.follow(built, model_too))
        if any(isinstance(tensor, nn.Parameter) for tensor in new):
            self._check_ties()
        if new:
            self._own = own
            for read in self._read:
                read.remember()

    def _check_ties(self) -> None:
        """Refuse a parameter that two layers share by now; what stands for some in a single call is no parameter."""
        if not all(isinstance(tensor, nn.Parameter) for tensor in self._body.parameters()):
            return
        for path, why in tied(self._body).items():
            if path not in self._tied:
                raise BarError(
                    f"{path or 'the network itself'!r} is tied since the gates were put in: {why}. Give it a "
                    "parameter of its own, or call bar.gate anew"
                )


class _Read:
    """A tensor that the graph reads itself, and who has it: the graph first, and the model, if that has it too."""

    def __init__(self, name: str, roots: list[nn.Module]) -> None:
        self.name, tensor = name, _held(roots[0], name)
        self.holders = [root for root in roots if _held(root, name) is tensor]
        self.kinds = [_kind(root, name) for root in self.holders]
        self.remember()

    def remember(self) -> None:
        """These are the tensors that it is compared with from now on."""
        self.tensors = [_held(root, self.name) for root in self.holders]

    def changed(self) -> bool:
        """Whether one of those who have it has another one."""
        return any(_held(r, self.name) is not old for r, old in zip(self.holders, self.tensors, strict=True))

    def follow(self, built: nn.Module | None, model_too: bool) -> Tensor:
        """Give the others the one that is new."""
        if [_kind(root, self.name) for root in self.holders] != self.kinds:
            raise BarError(
                f"{self.name!r} has been made a parameter, a buffer or a plain tensor, or has been taken out, since "
                "the gates were put in: change the network first, then call bar.gate"
            )
        now = [(_held(root, self.name), old) for root, old in zip(self.holders, self.tensors, strict=True)]
        found = [new for new, old in now if new is not old]
        for new, old in now:
            _check_fit(self.name, old, new)
        if found[0] is not found[-1] and not torch.equal(found[0].to(found[-1]), found[-1]):
            raise BarError(
                f"{self.name!r} has been replaced in the model and in the gated network: replace it in one of them"
            )
        for root in [*self.holders[: None if model_too else 1], built]:
            if root is not None and (place := _place(root, self.name)) is not None:
                place[1][self.name.rpartition(".")[2]] = found[0]
        return found[0]


def _own(body: nn.Module, path: str) -> list[tuple[str, dict, str, Tensor | None]]:
    """The parameters and statistics of a layer, which are the model's own: its name, where it has them, and which."""
    found = []
    for name, module in body.get_submodule(path).named_modules(prefix=path):
        if not isinstance(module, torch.jit.ScriptModule):  # which keeps them elsewhere
            found += [(name, module._parameters, key, t) for key, t in module._parameters.items()]
        if isinstance(module, nn.modules.batchnorm._NormBase):
            found += [(name, module._buffers, key, t) for key, t in module._buffers.items()]
    return found


def _check_fit(name: str, old: Tensor | None, new: Tensor | None) -> None:
    """Refuse a tensor of another shape, or none."""
    if old is None or new is None:
        what = "taken out" if new is None else "added"
    elif old.shape != new.shape:
        what = f"replaced by one of shape {tuple(new.shape)}; it was of {tuple(old.shape)}"
    else:
        return
    raise BarError(
        f"{name!r} has been {what}, since the gates were put in: change the network first, then call bar.gate"
    )


def _place(root: nn.Module, name: str) -> tuple[int, dict] | None:
    """Where a module has a tensor of this name: among parameters, buffers or other attributes."""
    owner, _, key = name.rpartition(".")
    module = submodule_of(root, owner) if owner else root
    places = () if module is None else (module._parameters, module._buffers, vars(module))
    return next(((kind, there) for kind, there in enumerate(places) if key in there), None)


def _kind(root: nn.Module, name: str) -> int | None:
    place = _place(root, name)
    return None if place is None else place[0]


def _held(root: nn.Module, name: str) -> Tensor | None:
    """The tensor of this name that a module has."""
    place = _place(root, name)
    return None if place is None else place[1][name.rpartition(".")[2]]
