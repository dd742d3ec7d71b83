"""BAR: gates that a barrier drives below a budget, while the weights train (sections 3 and 4)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from bar.methods.base import Method, Option, Task
from bar.methods.gated import encoded, load_gates, record_of_cut
from bar.schedule import SCHEDULES
from bar.surgery import gate, prune
from bar.training import Settings, check_form

NEAR = 0.8  # V / b from which on V is near the margin
RESERVE = 1.1  # of the budget stays uncut while training


class BudgetAware(Method):
    """What BAR adds to a `bar.training.Training`.

    Records of the pruning epochs have volume, flops, size (V of eq. 4 in the budget's metric), budget (b) and barrier
    (f); flops_trained, what is still computed; size_min and size_max, the bounds of V over the epoch's steps; above,
    the fraction of them with V >= b; near, the fraction with 0.8 <= V / b <= 1, and ratio_min and ratio_max, the bounds
    of V / b; rise, the most that V exceeded its minimum so far; and gates, their scores and which are alive
    (`bar.runs.gates`). The record of the cut has size_before_settling, and what regular connectivity would cost with
    the same gates (table 2).

    Parameters
    ----------
    network : nn.Module
        A plain CNN; gated, and trained in place.
    input_size : (int, int, int)
        Of one image.
    settings : Settings
        Of gates and budget.
    factor : float
        Pruning factor > 1.
    steps : int
        Number of training steps of the pruning phase.
    metric, schedule : str
        As in `bar.Budget`.
    seed : int
        Of the gates' initial values.

    Attributes
    ----------
    network : GatedNetwork
    budget : Budget

    Raises
    ------
    BarError
        If the network cannot be gated, or the budget cannot be met.

    Examples
    --------
    >>> import bar
    >>> from bar.training import PRESETS, Training, steps_per_epoch
    >>> digits, settings = bar.data.load("digits", size=8, limit=64), PRESETS["quick"]
    >>> network, steps = bar.models.build("wrn-10-1", 10, digits.input_size), 3 * steps_per_epoch(digits, settings)
    >>> pruner = BudgetAware(network, digits.input_size, settings, factor=4, steps=steps)
    >>> phases = [("prune", 3, 1e-3)]
    >>> *_, cut = Training(pruner.network, digits, phases, settings, torch.Generator(), pruner=pruner)
    >>> cut["volume"] <= cut["budget"]
    True
    """

    name = "bar"
    title = "BAR"
    summary = "Gates learn which features to keep, under a barrier whose margin falls to the budget."
    options = (
        Option("schedule", str, "sigmoid", "How the margin b falls to the budget.", tuple(SCHEDULES)),
        Option(
            "travel", float, None,
            "How far gates can move: their learning rate is this, divided by the pruning steps. None: the preset's.",
            above=0,
        ),
        Option("pressure", float, None, "The weight of the barrier, times the full size. None: the preset's.", above=0),
        Option("follow", float, None, "The least a / b, for a that follows b. None: the preset's.", least=0, most=0.99),
    )  # fmt: skip
    presets: ClassVar = {"paper": {}, "quick": {}}

    @classmethod
    def prepare(cls, network: nn.Module, task: Task) -> "BudgetAware":
        """See `bar.methods.base.Method`."""
        options = task.options
        fields = {"gate_travel": options["travel"], "pressure": options["pressure"], "follow": options["follow"]}
        settings = replace(task.settings, **{name: value for name, value in fields.items() if value is not None})
        return cls(
            network, task.input_size, settings, task.factor, task.steps, task.metric, options["schedule"], task.seed
        )  # fmt: skip

    def __init__(
        self,
        network: nn.Module,
        input_size: Sequence[int],
        settings: Settings,
        factor: float,
        steps: int,
        metric: str = "volume",
        schedule: str = "sigmoid",
        seed: int = 0,
    ) -> None:
        gated = gate(network, input_size)
        spread = torch.Generator().manual_seed(seed)
        for each in gated.gates.values():
            each.spread_(*settings.gate_start, generator=spread)
        self.network, self.settings = gated, settings
        self.budget = settings.budget(gated, factor, steps, metric, schedule)
        self._dead_for = torch.zeros(len(gated.log_alpha), dtype=torch.long)  # epochs in a row
        self._lowest = torch.tensor([torch.inf], dtype=torch.float64)  # V so far
        self._sizes: list[Tensor] = []  # V and b at the steps of this epoch
        self._margins: list[float] = []

    def groups(self) -> list[dict]:
        """The gates, without weight decay."""
        gates = [gate.log_alpha for gate in self.network.gates.values()]
        return [{"params": gates, "betas": self.settings.gate_betas}]

    def rate(self, step: int) -> float:
        """The gates' learning rate."""
        return self.settings.rate_of_gates(step, self.budget.steps)

    def __call__(self, step: int) -> Tensor:
        """lambda L_S f of eq. 6."""
        term = self.budget(step)
        self._sizes.append(self.budget.V)
        self._margins.append(self.budget.b)
        return term

    def end_epoch(self) -> dict:
        """Cut features that stay dead; returns the epoch's record."""
        gated, budget = self.network, self.budget
        gated.floor_()  # the last step of the epoch may have shut what the next one would reopen
        self._cut_what_stays_dead()
        sizes = torch.stack(self._sizes).double().cpu()
        margins = torch.tensor(self._margins, dtype=torch.float64)
        lowest, ratios = torch.cat([self._lowest, sizes]).cummin(0).values, sizes / margins
        self._lowest, self._sizes, self._margins = lowest[-1:], [], []
        return {
            "volume": gated.size("volume"), "flops": gated.size("flops"), "size": float(budget.V), "budget": budget.b,
            "barrier": float(budget.f), "size_min": float(sizes.min()), "size_max": float(sizes.max()),
            "above": float((sizes >= margins).double().mean()), "rise": float((sizes - lowest[1:]).max()),
            "ratio_min": float(ratios.min()), "ratio_max": float(ratios.max()),
            "near": float(((ratios >= NEAR) & (ratios <= 1)).double().mean()), "flops_trained": gated.uncut("flops"),
            "gates": encoded(gated),
        }  # fmt: skip

    def _cut_what_stays_dead(self) -> None:
        """Cut features that have not mattered for some epochs in a row."""
        if self.settings.patience is None:
            return
        gated, live = self.network, self.network.live()
        matters = torch.cat([live[gated.network.convs[name]] for name in gated.gates])
        self._dead_for = torch.where(matters, 0, self._dead_for + 1)
        due = self._dead_for >= max(2, round(self.settings.patience * self.settings.prune_epochs))
        there = ~torch.cat([gate.cut for gate in gated.gates.values()]).cpu()
        sizes = [len(gate.log_alpha) for gate in gated.gates.values()]
        left = dict(zip(gated.gates, (there & ~due).split(sizes), strict=True))
        # If V falls below the budget, `settle` needs features to reopen, some more than fit, as some are large.
        if (due & there).any() and gated.size_of(left, self.budget.metric) >= RESERVE * self.budget.limit:
            gated.cut_(dict(zip(gated.gates, due.split(sizes), strict=True)))

    def watched(self) -> nn.Module:
        """The plain network that a cut would give now."""
        return prune(self.network)

    def cut(self) -> nn.Module:
        """Enforce the budget, and remove the dead features; returns the plain network."""
        self._before = self.network.size(self.budget.metric)
        return prune(self.budget.settle())

    def cut_record(self) -> dict:
        """What is left, and what regular connectivity would leave."""
        gated, budget = self.network, self.budget
        return record_of_cut(gated, budget.limit, budget.metric, self._before) | {"barrier": 0.0}

    def state_dict(self) -> dict:
        """The gates, which the pruned network does not have, and what is remembered of past epochs."""
        gates = {name: gate.state_dict() for name, gate in self.network.gates.items()}
        return {"gates": gates, "dead_for": self._dead_for, "lowest": self._lowest}

    def load_state_dict(self, state: dict) -> None:
        """Restore a `state_dict`."""
        load_gates(self.network, state["gates"])
        check_form(state, self.state_dict())
        self._dead_for, self._lowest = state["dead_for"], state["lowest"]
