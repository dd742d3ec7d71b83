"""The settings of a training, and the two presets."""

from dataclasses import dataclass

from bar.objective import PRESSURE, Budget
from bar.surgery import GatedNetwork


@dataclass(frozen=True)
class Settings:
    """The settings of a training; by default the paper's (section 5.1, supp. 3 and 4), but for `b_start` and `cap`.

    `bar.training.PRESETS` has those of "paper" and of "quick"; `dataclasses.replace` makes others.

    Parameters
    ----------
    prune_epochs, finetune_epochs, cooldown_epochs : int
        Epochs of the three phases, each >= 0.
    unpruned_epochs : int
        Of the full network, before its cool-down (supp. 3.3).
    batch_size : int
        Images in a step, >= 1.
    lr, cooldown_lr : float
        Learning rates of the weights (Adam), > 0; the second is for the cool-down.
    weight_decay : float
        >= 0; not on the gates.
    alpha, temperature : float
        Of `bar.distillation`, where there is a teacher (section 3.5).
    gate_lr : float
        Learning rate of the gates (Adam), > 0.
    gate_travel : float, optional
        Replaces `gate_lr` by itself, divided by the steps of the pruning: gates move as far in a short run.
    gate_betas : (float, float)
        Adam's, for the gates.
    gate_decay : float
        In [0, 1]: the gates' learning rate falls to 0 over this last fraction of the pruning.
    gate_start : (float, float)
        Log alpha is drawn uniformly from this interval.
    lam : float
        The sparsity weight lambda, for a budget of volume (`budget`).
    pressure : float, optional
        Replaces `lam` by itself, divided by the full size: the same pressure on networks of any size.
    b_start : float
        b at the start, over V_F, >= 1; the paper starts at V_F, where its barrier is infinite.
    cap : float
        Upper bound of the barrier, > 0; infinite in the paper.
    reach, aim, follow : float
        As in `bar.Budget`: after which fraction of the pruning b has arrived, at which fraction of the budget, and the
        least a / b; in the paper, a is constant.
    patience : float, optional
        Features that are dead for this fraction of the pruning epochs are cut while training goes on; by default, none
        before the end.

    Examples
    --------
    >>> import dataclasses
    >>> dataclasses.replace(PRESETS["quick"], batch_size=64).phases_of_pruning
    [('prune', 24, 0.005), ('finetune', 12, 0.005), ('cooldown', 4, 0.0005)]
    """

    prune_epochs: int = 80
    finetune_epochs: int = 40
    cooldown_epochs: int = 10
    unpruned_epochs: int = 80
    batch_size: int = 64
    lr: float = 1e-3
    cooldown_lr: float = 1e-4
    weight_decay: float = 5e-4
    alpha: float = 0.9
    temperature: float = 4.0
    gate_lr: float = 1e-3
    gate_travel: float | None = None
    gate_betas: tuple[float, float] = (0.9, 0.999)
    gate_decay: float = 0.0
    gate_start: tuple[float, float] = (0.0, 0.01)
    lam: float = 1e-5
    pressure: float | None = None
    b_start: float = 1.01
    cap: float = 1000.0
    reach: float = 1.0
    aim: float = 1.0
    follow: float = 0.0
    patience: float | None = None

    def budget(
        self, gated: GatedNetwork, factor: float, steps: int, metric: str = "volume", schedule: str = "sigmoid"
    ) -> Budget:
        """Make the term of the loss for a budget, with these settings; for the arguments see `bar.Budget`.

        The paper's lambda is for a budget of volume. For one of FLOPs it is scaled by V_F / F_F, so that the term is as
        large as for the volume; unscaled, it would outweigh the data some thousandfold.
        """
        lam = self.lam * gated.full("volume") / gated.full(metric)
        if self.pressure is not None:
            lam = self.pressure / gated.full(metric)
        return Budget(
            gated, factor, steps, metric, schedule, lam, self.cap, self.b_start, self.reach, self.aim, self.follow
        )

    def rate_of_gates(self, step: int, steps: int) -> float:
        """Return the gates' learning rate at a step, counted from 0, of ``steps`` in all; at least 0."""
        left = (steps - step) / (self.gate_decay * steps) if self.gate_decay else 1.0
        return (self.gate_travel / steps if self.gate_travel else self.gate_lr) * min(left, 1.0)

    @property
    def phases_of_pruning(self) -> list[tuple[str, int, float]]:
        """Name, epochs and learning rate of pruning, fine-tuning and cooling down (supp. 3)."""
        return [
            ("prune", self.prune_epochs, self.lr),
            ("finetune", self.finetune_epochs, self.lr),
            ("cooldown", self.cooldown_epochs, self.cooldown_lr),
        ]

    @property
    def phases_of_unpruned(self) -> list[tuple[str, int, float]]:
        """Name, epochs and learning rate of the full network's training (supp. 3.3)."""
        return [("train", self.unpruned_epochs, self.lr), ("cooldown", self.cooldown_epochs, self.cooldown_lr)]


PRESETS = {
    # The paper's numbers, and b_start and cap, without which the first step would be infinite. What differs from its
    # text, or is not said there: a last step settles V between 0.95 B and B; at the cut gates are folded into weights,
    # Adam starts anew and batch norms are measured anew; features are gated again behind batch norms that read sums;
    # gates have no weight decay; log alpha starts in U(0, 0.01), where supp. 4 has alpha; a tenth of the images is held
    # out for validation; a GPU computes in bfloat16; under a budget of FLOPs, lambda is scaled by V_F / F_F
    # (results/flops has it unscaled, too).
    "paper": Settings(),
    # For a laptop: a short run needs gates that move faster and do not all start at the same place, and a lower margin
    # that follows b, or V is near its final size after a third of the pruning.
    "quick": Settings(
        prune_epochs=24, finetune_epochs=12, cooldown_epochs=4, unpruned_epochs=36, batch_size=32, lr=5e-3,
        cooldown_lr=5e-4, gate_travel=120.0, gate_betas=(0.0, 0.9), gate_decay=0.1, gate_start=(-1.0, 5.0),
        pressure=PRESSURE, b_start=1.0, cap=100.0, reach=0.9, aim=0.99, follow=0.9, patience=0.1,
    ),
}  # fmt: skip
