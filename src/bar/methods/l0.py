"""L0 regularisation, "LZR" (Louizos, Welling & Kingma 2018; Lemaire et al. 2019, section 5).

Which features to keep is learnt, under a loss on their expected number: lambda times the sum of P(z > 0) over all
features (supp. eq. 5). Each counts the same, whatever the area of its map: this penalises width, not volume. There
is no budget in the loss; the lambda that ends at the budget is searched for (`bar.methods.search`).
"""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from bar.hard_concrete import RULES
from bar.methods.base import Option, Task
from bar.methods.sparsity import FIRST, LAM, TRAVEL, Sparsity
from bar.surgery import GatedNetwork, gate


class L0(Sparsity):
    """The pruner of L0 regularisation; `bar.methods.sparsity.Sparsity` has the parameters.

    Notes
    -----
    Gates start as `bar.gate` leaves them, in U(0, 0.01) (supp. 4); `normal_` gives the start of Louizos et al. The
    test-time gate is the one that the gated network was made with (``bar.gate(…, rule="l0")`` for the reference
    code's).

    Examples
    --------
    >>> import bar
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    >>> pruner = L0(bar.gate(net, (1, 6, 6)), limit=64, lam=0.1)
    >>> print(f"{pruner(step=0):.3f}")  # 0.1 times 8 features of P(z > 0) = 0.83
    0.666
    >>> pruner.network.gates["0"].log_alpha.data[3:] = -5
    >>> pruner.cut().get_submodule("0")
    Conv2d(1, 3, kernel_size=(3, 3), stride=(1, 1))
    """

    name = "l0"
    title = "LZR"
    summary = "Gates learn which features to keep, under a penalty on their expected number."
    options = (
        Option(
            "gates", str, "uniform",
            "The start of log alpha: uniform in the preset's interval, or normal, N(0, 0.01^2), as in Louizos et al.",
            ("uniform", "normal"),
        ),
        Option("rule", str, "median", "The test-time gate: the paper's median, or that of the L0 code.", RULES),
        TRAVEL,
        LAM,
        replace(FIRST, default=0.03),
    )  # fmt: skip
    presets: ClassVar = {"paper": {}, "quick": {"travel": 20.0}}

    @classmethod
    def prepare(cls, network: nn.Module, task: Task) -> "L0":
        """See `bar.methods.base.Method`."""
        gated, draws = (
            gate(network, task.input_size, rule=task.options["rule"]),
            torch.Generator().manual_seed(task.seed),
        )
        if task.options["gates"] == "normal":
            normal_(gated, generator=draws)
        else:
            for each in gated.gates.values():
                each.spread_(*task.settings.gate_start, generator=draws)
        return cls.on(gated, task, task.settings.gate_betas)

    def loss(self) -> Tensor:
        """The expected number of features, L_S of supp. eq. 5: a scalar, differentiable in log alpha."""
        expected = self.network.expected()
        return torch.cat([expected[name] for name in self.network.gates]).sum()


@torch.no_grad()
def normal_(gated: GatedNetwork, std: float = 0.01, generator: torch.Generator | None = None) -> GatedNetwork:
    """Draw every log alpha anew from N(0, std^2), as Louizos et al. 2018, in place; returns the gated network."""
    for each in gated.gates.values():
        each.log_alpha.normal_(0, std, generator=generator)
    return gated
