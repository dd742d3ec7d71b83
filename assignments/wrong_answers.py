"""Typical wrong answers: where each departs from the master's, and the tests that it has to lose, and no others."""

from dataclasses import dataclass

import masters
from nbformat import NotebookNode


@dataclass(frozen=True)
class Wrong:
    """An answer in which `old` is replaced by `new` in the cell `cell`.

    Attributes
    ----------
    title : str
        What the student got wrong.
    cell, old, new : str
        The cell of the answer, and the replacement.
    loses : tuple of str
        The tests, without "test_".
    """

    title: str
    cell: str
    old: str
    new: str
    loses: tuple[str, ...]

    def applied(self, notebook: NotebookNode) -> NotebookNode:
        """Change an answered notebook, and return it."""
        cell = masters.cell_of(notebook, self.cell)
        if cell.source.count(self.old) != 1:
            raise ValueError(f"{self.title}: {self.old!r} has to be in the answer of {self.cell!r} exactly once")
        cell.source = cell.source.replace(self.old, self.new)
        return notebook


RUNS = ("run_first", "run_second", "run_third")

WRONG = {
    "01_gates": (
        Wrong("the sign of gamma", "sample", "(zeta - gamma) + gamma", "(zeta - gamma) - gamma", ("sample",)),
        Wrong("log alpha for alpha", "sample", "(noise + log_alpha)", "(noise + log_alpha.exp())", ("sample",)),
        Wrong(
            "E[z] for P(z > 0)",
            "prob_active",
            "return torch.sigmoid(log_alpha - beta * math.log(-gamma / zeta))",
            "q = torch.linspace(0.001, 0.999, 500)[:, None]\n"
            "    s = torch.sigmoid((q.logit() + log_alpha) / beta)\n"
            "    return (s * (zeta - gamma) + gamma).clamp(0, 1).mean(0)",
            ("prob_active",),
        ),
        Wrong("beta forgotten in the median", "median", "log_alpha / beta", "log_alpha", ("median",)),
        Wrong(
            "alpha for its logarithm",
            "threshold",
            "beta * math.log(-gamma / zeta)",
            "(-gamma / zeta) ** beta",
            ("threshold",),
        ),
        Wrong(
            "a gradient where the clamp has cut",
            "gradient",
            "torch.where((stretched > 0) & (stretched < 1), slope, 0.0)",
            "slope",
            ("gradient",),
        ),
        Wrong(
            "a gradient by autograd",
            "gradient",
            "    return torch.where((stretched > 0) & (stretched < 1), slope, 0.0)",
            "    a = (log_alpha + 0 * epsilon).detach().requires_grad_()\n"
            "    z = (torch.sigmoid((torch.logit(epsilon) + a) / beta) * (zeta - gamma) + gamma).clamp(0, 1)\n"
            "    return torch.autograd.grad(z.sum(), a)[0]",
            ("gradient",),
        ),
        Wrong(
            "a gradient by differences",
            "gradient",
            "    return torch.where((stretched > 0) & (stretched < 1), slope, 0.0)",
            "    noise, a, h = torch.logit(epsilon.double()), log_alpha.double(), 1e-5\n"
            "    z = [(torch.sigmoid((noise + a + d) / beta) * (zeta - gamma) + gamma).clamp(0, 1) for d in (h, -h)]\n"
            "    return (z[0] - z[1]) / (2 * h)",
            ("gradient",),
        ),
    ),
    "02_barrier": (
        Wrong("f not capped", "capped", "f.clamp(max=cap)", "f", ("capped",)),
        Wrong(
            "b moved once an epoch",
            "along",
            "T(k / (len(volumes) - 1))",
            "T(k // (len(volumes) // epochs) / epochs)",
            ("along",),
        ),
        Wrong(
            "a gradient that is not a number",
            "barrier",
            "(b - v) * (b - a)",
            "(b - volume) * (b - a)",
            ("barrier_gradient",),
        ),
        Wrong(
            "delta forgotten",
            "transition",
            "(sigmoid(d * (i - 0.5)) - delta) / (1 - 2 * delta)",
            "sigmoid(d * (i - 0.5))",
            ("transition",),
        ),
        Wrong(
            "a moves with b",
            "margins",
            "budget - 1e-4 * full, (1",
            "(1 - T) * full + T * budget - 1e-4 * full, (1",
            ("margins",),
        ),
        Wrong(
            "V = B taken for feasible",
            "numbers",
            "(math.ceil(FEATURES / FACTOR) - 1)",
            "math.floor(FEATURES / FACTOR)",
            ("to_shut",),
        ),
        Wrong("B for a", "numbers", "FEATURES / FACTOR - 1e-4 * FEATURES", "FEATURES / FACTOR", ("first_f",)),
        Wrong("V_F for b", "numbers", "(_b - _a)", "(FEATURES - _a)", ("first_f",)),
    ),
    "03_counting": (
        Wrong("a stride forgotten in an area", "areas", " // conv.stride", "", ("areas",)),
        Wrong(
            "V counted with features that nobody reads",
            "live",
            "if not any(alive[other.name].any() for other in readers):",
            "if not readers:",
            ("live_backwards", "live_again"),
        ),
        Wrong("one round only", "live", "for _ in network:", "for _ in range(1):", ("live_again",)),
        Wrong("a few rounds only", "live", "for _ in network:", "for _ in range(4):", ("live_again",)),
        Wrong("the masks changed that were handed over", "live", "mask.clone()", "mask", ("live_forwards",)),
        Wrong(
            "what nobody reads taken for the output",
            "live",
            "if not any(alive[other.name].any() for other in readers):",
            "if readers and not any(alive[other.name].any() for other in readers):",
            ("live_backwards",),
        ),
        Wrong(
            "the first and the last of a sum only",
            "live",
            "for name in conv.reads)",
            "for name in (conv.reads[0], conv.reads[-1]))",
            ("live_forwards",),
        ),
        Wrong(
            "a side taken from the one before in the list",
            "areas",
            "side[conv.reads[0]] if conv.reads else size",
            "[size, *side.values()][-1]",
            ("areas",),
        ),
        Wrong("the image has as many channels as features", "flops", "inputs = 3", "inputs = conv.width", ("flops",)),
        Wrong(
            "FLOPs with all inputs",
            "flops",
            "inputs = int(torch.stack([alive[name] for name in conv.reads]).any(0).sum())",
            "inputs = len(alive[conv.reads[0]])",
            ("flops", "flops_of_a_sum"),
        ),
        Wrong("a channel of a sum counted twice", "flops", ".any(0).sum()", ".sum()", ("flops_of_a_sum",)),
        Wrong("volume without areas", "volume", " * area[conv.name]", "", ("volume",)),
    ),
    "04_training": (
        Wrong(
            "weight decay on the gates",
            "make_optimizer",
            '"weight_decay": 0.0',
            '"weight_decay": weight_decay',
            ("make_optimizer",),
        ),
        Wrong(
            "b moved once an epoch",
            "train",
            "            step += 1\n    return step",
            "        step += len(batches)\n    return step",
            ("train",),
        ),
        Wrong(
            "batch norms not measured anew", "finish", "    update_bn([images], pruned)\n", "", ("finish_statistics",)
        ),
        Wrong("the test images used for choosing", "choose", 'split["validation"]', 'split["test"]', ("choose",)),
        Wrong(
            "not trained after the cut",
            "run",
            "optimizer, x, y, step), batches, 8)\n    return",
            "optimizer, x, y, step), batches, 0)\n    return",
            RUNS,
        ),
        Wrong(
            "cut before it has learnt",
            "run",
            "    train(lambda x, y, step: train_step(gated, budget, optimizer, x, y, step), batches, 8)\n",
            "",
            RUNS,
        ),
        Wrong(
            "the barrier not in the loss",
            "run",
            "train_step(gated, budget,",
            "train_step(gated, lambda now: budget(now).detach(),",
            RUNS,
        ),
        Wrong(
            "b never moved",
            "run",
            "train_step(gated, budget, optimizer, x, y, step)",
            "train_step(gated, budget, optimizer, x, y, 0)",
            RUNS,
        ),
    ),
    "05_surgery": (
        Wrong(
            "a bias dropped",
            "cut_conv",
            "            small.bias.copy_(conv.bias[out])\n",
            "            small.bias.zero_()\n",
            ("cut_conv", "prune_block"),
        ),
        Wrong(
            "running statistics forgotten",
            "cut_norm",
            "        small.running_mean.copy_(norm.running_mean[keep])\n",
            "",
            ("cut_norm", "prune_block"),
        ),
        Wrong(
            "new and passed confused", "parts", "return passed, refined, new", "return new, refined, passed", ("parts",)
        ),
        Wrong(
            "channels added to the wrong place",
            "mixed_sum",
            "[union.index(c) for c in block]",
            "range(len(block))",
            ("mixed_sum", "prune_block"),
        ),
        Wrong(
            "the block added into the signal",
            "mixed_sum",
            "    result[:, [union.index(c) for c in block]] += delta\n",
            "    for i, c in enumerate(block):\n"
            "        channel = x[:, signal.index(c)] if c in signal else result[:, union.index(c)]\n"
            "        channel += delta[:, i]\n"
            "        result[:, union.index(c)] = channel\n",
            ("mixed_sum",),
        ),
        Wrong("a gate not folded into the bias", "fold", "conv.bias * z", "conv.bias", ("fold", "prune_block")),
    ),
    "06_comparison": (
        Wrong("the test images used for choosing", "choose", ".validation_accuracy", ".accuracy", ("choose",)),
        Wrong("the luckiest seed chosen", "choose", ".mean().idxmax()", ".max().idxmax()", ("choose",)),
        Wrong("the sum for the mean", "choose", ".mean().idxmax()", ".sum().idxmax()", ("choose",)),
        Wrong("the median for the mean", "choose", ".mean().idxmax()", ".median().idxmax()", ("choose",)),
        Wrong("the worst seed decides", "choose", ".mean().idxmax()", ".min().idxmax()", ("choose",)),
        Wrong(
            "lists compared, not sets of values",
            "differing",
            "set(a[c]) != set(b[c])",
            "list(a[c]) != list(b[c])",
            ("differing",),
        ),
        Wrong(
            "seeds not paired",
            "paired",
            'a, b = a.set_index("seed").accuracy, b.set_index("seed").accuracy',
            "a, b = a.accuracy.reset_index(drop=True), b.accuracy.reset_index(drop=True)",
            ("paired", "numbers"),
        ),
        Wrong("1.96 for the quantile of t", "interval", "stats.t.ppf(0.975, n - 1)", "1.96", ("interval", "numbers")),
        Wrong(
            "the mean decides",
            "verdict",
            'return "b" if high < 0 else "cannot be told"',
            'return "b" if low + high < 0 else "a"',
            ("verdict",),
        ),
    ),
}
