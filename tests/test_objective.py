"""The loss: distillation, and the budget as a term of anyone's loss."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import SIZE, build
from torch import nn

import bar
from bar.barriers import barrier
from bar.schedule import transition


@given(alpha=st.floats(0, 1), temperature=st.floats(1, 20), seed=st.integers(0, 999))
def test_distillation_by_the_formula(alpha, temperature, seed):
    """Section 3.5 written out with probabilities; and hard targets are the limit of a sure teacher."""
    torch.manual_seed(seed)
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64)
    targets = torch.randint(3, (5,))
    p_s, p_t = (
        torch.exp(z / temperature) / torch.exp(z / temperature).sum(1, keepdim=True) for z in (student, teacher)
    )
    truth = -(torch.exp(student) / torch.exp(student).sum(1, keepdim=True))[range(5), targets].log().mean()
    soft = -(p_t * p_s.log()).sum(1).mean()
    expected = (1 - alpha) * truth + alpha * temperature**2 * soft
    torch.testing.assert_close(bar.distillation(student, targets, teacher, alpha, temperature), expected)
    torch.testing.assert_close(bar.distillation(student, targets, None), truth)


def test_the_term_is_lambda_times_expected_volume_times_barrier():
    gated = bar.gate(build("wrn-10-1"), SIZE)
    for gate in gated.gates.values():
        gate.spread_(-3, 3)
    budget = bar.Budget(gated, factor=4, steps=101, cap=50.0, reach=1, aim=1)
    full = bar.count(build("wrn-10-1"), SIZE).volume
    assert (budget.full, budget.limit) == (full, full / 4)
    term = budget(70)
    areas = {name: layer["area"] for name, layer in bar.count(build("wrn-10-1"), SIZE).layers.items()}
    expected = sum(g.distribution().prob_active.sum() * areas[n] for n, g in gated.gates.items())
    volume = sum(int(g.alive.sum()) * areas[n] for n, g in gated.gates.items())
    b = full - transition(0.7) * (full - full / 4)
    f = min(float(barrier(float(volume), full / 4 - 1e-4 * full, b)), 50.0)
    assert float(budget.V) == volume
    assert budget.b == pytest.approx(b)
    assert float(budget.f) == pytest.approx(f)
    assert term.item() == pytest.approx(311 / full * expected.item() * f)
    gradient = torch.autograd.grad(term, gated.gates["conv1"].log_alpha)[0]
    assert (gradient > 0).all()


def test_the_budget_starts_at_the_full_size_and_ends_at_the_limit():
    gated = bar.gate(build("plain"), SIZE)
    budget = bar.Budget(gated, factor=3, steps=11, reach=1, aim=1)
    budget(0)
    assert (budget.b, float(budget.f)) == (budget.full, budget.cap)  # V = V_F = b: infinite in the paper
    budget(10)
    assert budget.b == pytest.approx(budget.limit)
    higher = bar.Budget(gated, factor=3, steps=11, start=1.01, reach=1, aim=1)
    higher(0)
    assert higher.b == pytest.approx(1.01 * higher.full)
    assert 0 < float(higher.f) < 100
    higher(10)
    assert higher.b == pytest.approx(higher.limit)
    early = bar.Budget(gated, factor=3, steps=11, reach=0.5, aim=0.9)
    early(4)
    assert early.b > 0.9 * early.limit
    for step in (5, 10):
        early(step)
        assert early.b == pytest.approx(0.9 * early.limit)


def test_every_call_keeps_a_path_open():
    gated = bar.gate(build("wrn-10-1"), SIZE)
    for gate in gated.gates.values():
        gate.log_alpha.data.fill_(-20.0)
    bar.Budget(gated, factor=4, steps=10)(5)
    assert all(gated.gates[name].alive.sum() == 1 for name in gated.network.spine())


@pytest.mark.parametrize("metric", ["volume", "flops"])
def test_in_a_loop_of_ones_own(metric):
    """Five lines around a plain network: it learns, and ends within its budget."""
    torch.manual_seed(0)
    images, labels = torch.randn(64, *SIZE), torch.randint(4, (64,))
    net = build("wrn-10-1").float().train()
    gated = bar.gate(net, SIZE)
    budget = bar.Budget(gated, factor=3.7, steps=150, metric=metric)
    gates = [g.log_alpha for g in gated.gates.values()]
    optimizer = torch.optim.Adam([{"params": net.parameters()}, {"params": gates, "lr": 0.05}], lr=3e-3)
    for step in range(150):
        data_loss = nn.functional.cross_entropy(gated(images), labels)
        loss = data_loss + budget(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before = gated.size(metric)
    pruned = bar.prune(budget.settle())
    size = getattr(bar.count(pruned, SIZE), metric)
    assert before < 0.6 * budget.full  # the barrier has pruned, not only the last step
    assert 0.95 * budget.limit <= size <= budget.limit


@pytest.mark.parametrize("factor", [1, 0.5, -4, 0, math.nan, math.inf, "4"])
def test_factors_that_are_none(factor):
    with pytest.raises(bar.BarError, match="pruning factor must be a number above 1"):
        bar.Budget(bar.gate(build("plain"), SIZE), factor=factor, steps=10)


def test_a_factor_that_leaves_nothing():
    """One feature in each of the two convolutions: 64 + 16 of 6 * 64 + 5 * 16."""
    with pytest.raises(bar.BarError, match=r"volume of 46, but the smallest possible is 80.*at most 5\.8"):
        bar.Budget(bar.gate(build("plain"), SIZE), factor=10, steps=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "flop"}, "unknown metric 'flop': did you mean 'flops'"),
        ({"schedule": "sigmoidal"}, "unknown schedule 'sigmoidal': did you mean 'sigmoid'"),
        ({"steps": 0}, "at least 1, not 0"),
        ({"lam": math.nan}, "lambda and cap must be above 0"),
        ({"cap": 0}, "lambda and cap must be above 0"),
        ({"start": 0.5}, "start at least 1, not None, 100.0 and 0.5"),
        ({"follow": 1.0}, "follow must be at least 0 and below 1, not 1.0"),
    ],
)
def test_other_refusals(options, message):
    with pytest.raises(bar.BarError, match=message):
        bar.Budget(bar.gate(build("plain"), SIZE), **({"factor": 4, "steps": 10} | options))
