"""Training: phases, what is watched, and what looking at a network must not change."""

import dataclasses

import pytest
import torch
from torch import nn

import bar
from bar import data, models
from bar.training import PRESETS, Settings, accuracy, fit, prune_to_budget, recalibrate, steps_per_epoch

DIGITS = data.load("digits", size=8, limit=160)
SETTINGS = dataclasses.replace(PRESETS["quick"], prune_epochs=6, finetune_epochs=2, cooldown_epochs=1)


def gated_run(factor=4.0, metric="volume", seed=0, settings=SETTINGS, teacher=None):
    torch.manual_seed(seed)
    gated = bar.gate(models.build("wrn-10-1", 10, DIGITS.input_size), DIGITS.input_size)
    for gate in gated.gates.values():
        gate.spread_(*settings.gate_start)
    steps = settings.prune_epochs * steps_per_epoch(DIGITS, settings)
    budget = bar.Budget(gated, factor, steps, metric=metric, cap=settings.cap)
    generator = torch.Generator().manual_seed(seed)
    *records, pruned = prune_to_budget(gated, DIGITS, budget, settings, generator, teacher=teacher)
    return records, pruned, budget


def test_the_presets_hold_the_papers_settings():
    """Section 5.1 and supplement 3 and 4, word for word."""
    paper = PRESETS["paper"]
    assert paper == Settings()
    assert (paper.prune_epochs, paper.finetune_epochs, paper.cooldown_epochs) == (80, 40, 10)
    assert (paper.batch_size, paper.lr, paper.cooldown_lr, paper.weight_decay) == (64, 1e-3, 1e-4, 5e-4)
    assert (paper.alpha, paper.temperature, paper.lam) == (0.9, 4.0, 1e-5)
    assert (paper.gate_start, paper.gate_lr) == ((0.0, 0.01), 1e-3)


@pytest.mark.parametrize(("factor", "metric"), [(2, "volume"), (3.7, "volume"), (4, "flops"), (16, "volume")])
def test_all_phases_end_within_the_budget(factor, metric):
    records, pruned, budget = gated_run(factor, metric)
    size = getattr(bar.count(pruned, DIGITS.input_size), metric)
    assert 0.95 * budget.limit <= size <= budget.limit
    assert [r["phase"] for r in records] == ["prune"] * 6 + ["cut"] + ["finetune"] * 2 + ["cooldown"]
    assert [r["epoch"] for r in records] == [1, 2, 3, 4, 5, 6, 6, 1, 2, 1]
    assert records[-1][metric] == size
    assert records[5]["budget"] == pytest.approx(budget.limit)
    assert all(0 <= r["accuracy"] <= 1 and r["barrier"] >= 0 for r in records)


def test_a_network_learns_and_equal_seeds_give_equal_weights():
    _, first, _ = gated_run(2)
    _, second, _ = gated_run(2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    _, other, _ = gated_run(2, seed=1)
    weights = [torch.cat([p.flatten() for p in net.parameters()]).norm() for net in (first, other)]
    assert weights[0] != weights[1]
    assert accuracy(first, DIGITS.validation, DIGITS) > 0.3  # ten classes


def test_the_teacher_teaches():
    """With alpha = 1 the student never sees a label, and learns all the same."""
    settings = dataclasses.replace(SETTINGS, alpha=1.0, prune_epochs=30)
    torch.manual_seed(0)
    teacher = models.build("wrn-10-1", 10, DIGITS.input_size)
    generator = torch.Generator().manual_seed(0)
    list(fit(teacher, DIGITS, [("train", 30, 3e-3)], settings, generator))
    teacher.eval().requires_grad_(False)
    shuffled = dataclasses.replace(DIGITS.train, labels=DIGITS.train.labels.roll(1))
    student = models.build("wrn-10-1", 10, DIGITS.input_size)
    blind = dataclasses.replace(DIGITS, train=shuffled)
    list(fit(student, blind, [("train", 30, 3e-3)], settings, generator, teacher=teacher))
    good = accuracy(teacher, DIGITS.validation, DIGITS)
    assert good > 0.7
    assert accuracy(student, DIGITS.validation, DIGITS) > good - 0.15


def test_watching_changes_nothing():
    """Training is the same whether or not somebody looks at the network in between."""

    def train(look):
        torch.manual_seed(0)
        net = models.build("wrn-10-1", 10, DIGITS.input_size)
        for _ in fit(net, DIGITS, [("train", 3, 1e-3)], SETTINGS, torch.Generator().manual_seed(0)):
            if look:
                accuracy(net, DIGITS.test, DIGITS)
                recalibrate(bar.prune(bar.gate(net, DIGITS.input_size)), DIGITS, SETTINGS)
        return net.state_dict()

    seen, unseen = train(True), train(False)
    assert all(torch.equal(seen[k], unseen[k]) for k in seen)


def test_recalibration_measures_the_statistics_of_the_training_images():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    settings = dataclasses.replace(SETTINGS, batch_size=len(DIGITS.train))
    recalibrate(net, DIGITS, settings)
    images = (DIGITS.train.images / 255 - torch.tensor(DIGITS.mean).view(-1, 1, 1)) / torch.tensor(DIGITS.std).view(
        -1, 1, 1
    )
    features = net[0](images)
    torch.testing.assert_close(net[1].running_mean, features.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net[1].running_var, features.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_weight_decay_spares_the_gates():
    settings = dataclasses.replace(SETTINGS, weight_decay=10.0, gate_lr=1e-9, prune_epochs=1)
    torch.manual_seed(0)
    gated = bar.gate(models.build("wrn-10-1", 10, DIGITS.input_size), DIGITS.input_size)
    before = gated.log_alpha.detach().clone()
    budget = bar.Budget(gated, 4, 10)
    list(fit(gated, DIGITS, [("prune", 1, 1e-3)], settings, torch.Generator().manual_seed(0), budget=budget))
    torch.testing.assert_close(gated.log_alpha.detach(), before, atol=1e-6, rtol=0)


def test_a_loss_that_is_no_number_stops_training():
    net = models.build("wrn-10-1", 10, DIGITS.input_size)
    net.fc.weight.data.fill_(float("nan"))
    with pytest.raises(bar.BarError, match=r"not a number any more \(train, epoch 1"):
        list(fit(net, DIGITS, [("train", 1, 1e-3)], SETTINGS, torch.Generator()))


def test_recalibration_does_not_depend_on_the_order_of_the_images():
    """Folders come sorted by class; statistics of the first images would be those of a few classes."""
    order = DIGITS.train.labels.argsort()
    images = dataclasses.replace(DIGITS, train=DIGITS.train[order])
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    settings = dataclasses.replace(SETTINGS, batch_size=16)
    seen = []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    recalibrate(net, images, settings, images=64)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (images.mean, images.std))
    raw = ((torch.cat(seen) * std + mean) * 255).round().to(torch.uint8)
    classes = {
        int(y)
        for x, y in zip(images.train.images, images.train.labels, strict=True)
        if (raw == x).flatten(1).all(1).any()
    }
    assert len(raw) == 64
    assert len(classes) >= 8
