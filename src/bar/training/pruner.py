"""The interface between a training and a pruning method."""

import torch
from torch import Tensor, nn

from bar.errors import BarError


class Pruner:
    """A pruning method during a training: a term of the loss, parameters of its own, decisions, and the cut.

    A method overrides what it needs. By default there are no parameters, the term is 0, and nothing is done after a
    step; what raises NotImplementedError must be overridden.

    Attributes
    ----------
    network : nn.Module
        The network that is trained until the cut.
    """

    network: nn.Module

    def groups(self) -> list[dict]:
        """Return parameter groups for Adam of the method's own parameters, as `torch.optim` takes them."""
        return []

    def rate(self, step: int) -> float:
        """Return the learning rate of those groups at a step, counted from 0 over all epochs; at least 0."""
        return 0.0

    def __call__(self, step: int) -> Tensor:
        """Return the term that is added to the data loss at a step: a scalar, on the network's device."""
        return torch.zeros((), device=next(self.network.parameters()).device)

    def end_step(self) -> None:
        """Called after each step of the optimizer until the cut."""

    def end_epoch(self) -> dict:
        """Make the decisions due after an epoch; returns fields of the epoch's record, "size" among them."""
        raise NotImplementedError

    def watched(self) -> nn.Module:
        """Return a copy of the network that a cut now would leave; the epoch's record shows its accuracy."""
        raise NotImplementedError

    def cut(self) -> nn.Module:
        """Return the pruned network, which is fine-tuned next; after `load_state_dict`, the same one again."""
        raise NotImplementedError

    def cut_record(self) -> dict:
        """Return fields of the cut's record, "size" among them."""
        raise NotImplementedError

    def end_finetune_step(self) -> None:
        """Called after each step of the optimizer after the cut."""

    def state_dict(self) -> dict:
        """Return the state that the network's state dict does not hold: tensors, numbers and strings only."""
        raise NotImplementedError

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` has returned."""
        raise NotImplementedError


def check_form(state: object, like: object, name: str = "the state") -> None:
    """Raise a BarError unless a stored state has the form of another.

    Parameters
    ----------
    state : object
        What was stored: tensors, numbers and strings, in lists and dicts.
    like : object
        A state of the same method: the same fields, tensors of the same shape and kind, values of the same type.
    name : str
        What it is called in the message.

    Examples
    --------
    >>> check_form({"a": 1, "b": [0.5]}, {"a": 3, "b": [1.5]})
    >>> try:
    ...     check_form({"a": 1, "b": [None]}, {"a": 3, "b": [1.5]})
    ... except BarError as error:
    ...     print(error)
    the state: b is a NoneType, not a float
    """
    kinds = (dict, Tensor)  # of which there may be subclasses
    if type(state) is not type(like) and not any(isinstance(state, kind) and isinstance(like, kind) for kind in kinds):
        raise BarError(f"{name} is a {type(state).__name__}, not a {type(like).__name__}")
    if isinstance(like, Tensor) and (state.shape, state.dtype) != (like.shape, like.dtype):
        raise BarError(
            f"{name} is {state.dtype} of shape {tuple(state.shape)}, not {like.dtype} of {tuple(like.shape)}"
        )
    if isinstance(like, dict):
        if state.keys() != like.keys():
            raise BarError(f"{name} has other fields than it should have")
        for key, value in like.items():
            check_form(state[key], value, f"{name}: {key}")
    if isinstance(like, list | tuple):
        if len(state) != len(like):
            raise BarError(f"{name} has {len(state)} items, not {len(like)}")
        for mine, its in zip(state, like, strict=True):
            check_form(mine, its, name)
