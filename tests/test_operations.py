"""A row more in the table of operations is all that a new operation takes (ARCHITECTURE.md)."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import bar
from bar.network import operations

DOCUMENT = Path(__file__).parents[1] / "ARCHITECTURE.md"


class Summed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)
        self.dim = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cumsum(self.norm(self.first(x)), dim=self.dim)
        return self.second(x).cumsum(self.dim).flatten(1)


@pytest.fixture
def with_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply the diff that the document shows."""
    diff = re.search(r"```diff\n(.*?)```", DOCUMENT.read_text("utf-8"), re.S).group(1)
    added = "".join(line[1:] + "\n" for line in diff.splitlines() if line.startswith("+"))
    function, _, row = added.rpartition("    Row(")
    scope = dict(vars(operations))
    exec(function + "NEW = Row(" + row.rstrip().rstrip(","), scope)
    monkeypatch.setattr(operations, "TABLE", (*operations.TABLE, scope["NEW"]))


def test_unknown_before():
    with pytest.raises(bar.BarError, match="cumsum"):
        bar.gate(Summed(-1), (3, 8, 8))


def test_one_row_is_enough(with_sums):
    torch.manual_seed(0)
    gated = bar.gate(Summed(-1).double(), (3, 8, 8)).eval()
    gated.gates["first"].log_alpha.data[2:6] = -9
    pruned, images = bar.prune(gated), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    assert pruned.get_submodule("first").out_channels == 4
    assert torch.allclose(pruned(images), gated(images), atol=1e-10)
    assert bar.count(pruned, (3, 8, 8)).volume == gated.size() < gated.full()


def test_its_condition_counts(with_sums):
    with pytest.raises(bar.BarError, match="cumsum"):
        bar.gate(Summed(1), (3, 8, 8))


def test_every_operation_is_in_the_table():
    made = {"input", "output", "opaque", "whole"}  # these are no calls, or any
    assert {row.operation.name for row in operations.TABLE} | made == operations.OPERATIONS.keys()


@pytest.mark.parametrize("operation", operations.OPERATIONS.values(), ids=repr)
def test_there_is_one_of_each(operation):
    import copy
    import pickle

    assert copy.deepcopy(operation) is operation is pickle.loads(pickle.dumps(operation))
