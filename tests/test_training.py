"""Training: phases, what is watched, and what looking at a network must not change."""

import dataclasses

import pytest
import torch
from torch import nn

import bar
from bar import data, models
from bar.methods.budget_aware import BudgetAware
from bar.training import PRESETS, Settings, Training, accuracy, recalibrate, steps_per_epoch

DIGITS = data.load("digits", size=8, limit=160)
SETTINGS = dataclasses.replace(PRESETS["quick"], prune_epochs=6, finetune_epochs=2, cooldown_epochs=1)


def pruning(factor=4.0, metric="volume", seed=0, settings=SETTINGS, **options):
    torch.manual_seed(seed)
    network = models.build("wrn-10-1", 10, DIGITS.input_size)
    steps = settings.prune_epochs * steps_per_epoch(DIGITS, settings)
    pruner = BudgetAware(network, DIGITS.input_size, settings, factor, steps, metric, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    phases = settings.phases_of_pruning
    return Training(pruner.network, DIGITS, phases, settings, generator, pruner=pruner, **options)


def trained(network, data, phases, settings, generator, **options):
    """All the records of a training of a plain network."""
    return list(Training(network, data, phases, settings, generator, **options))


def test_the_presets_hold_the_papers_settings():
    """Section 5.1 and supplement 3 and 4, word for word."""
    paper = PRESETS["paper"]
    assert paper == Settings()
    assert (paper.prune_epochs, paper.finetune_epochs, paper.cooldown_epochs) == (80, 40, 10)
    assert (paper.batch_size, paper.lr, paper.cooldown_lr, paper.weight_decay) == (64, 1e-3, 1e-4, 5e-4)
    assert (paper.alpha, paper.temperature, paper.lam) == (0.9, 4.0, 1e-5)
    assert (paper.gate_start, paper.gate_lr) == ((0.0, 0.01), 1e-3)


@pytest.mark.parametrize("preset", ["paper", "quick"])
def test_the_term_is_as_large_in_flops_as_in_volume(preset):
    """With all gates as they start, before anything is pruned."""
    gated = bar.gate(models.build("wrn-10-1", 10, DIGITS.input_size), DIGITS.input_size)
    for gate in gated.gates.values():
        gate.log_alpha.data.fill_(0.5)
    terms = {}
    for metric in ("volume", "flops"):
        budget = PRESETS[preset].budget(gated, factor=4, steps=10, metric=metric)
        terms[metric] = float(budget(0).detach() / budget.f)
        share = float(budget.lam * budget.full)
        assert share == pytest.approx(31 * gated.full() / 3_112_960 if preset == "paper" else 311, rel=0.01)
    assert terms["flops"] == pytest.approx(terms["volume"], rel=0.3)  # P(z > 0) counts twice in the FLOPs of a layer


@pytest.mark.parametrize(("factor", "metric"), [(2, "volume"), (3.7, "volume"), (4, "flops"), (16, "volume")])
def test_all_phases_end_within_the_budget(factor, metric):
    training = pruning(factor, metric)
    records, budget = list(training), training.pruner.budget
    size = getattr(bar.count(training.network, DIGITS.input_size), metric)
    assert 0.95 * budget.limit <= size <= budget.limit
    assert [r["phase"] for r in records] == ["prune"] * 6 + ["cut"] + ["finetune"] * 2 + ["cooldown"]
    assert [r["epoch"] for r in records] == [1, 2, 3, 4, 5, 6, 6, 1, 2, 1]
    assert records[-1][metric] == size
    assert records[5]["budget"] == pytest.approx(SETTINGS.aim * budget.limit)
    assert all(0 <= r["accuracy"] <= 1 and r["barrier"] >= 0 for r in records)


def test_how_the_size_followed_its_budget():
    """Against V and b noted at every step."""
    seen = []
    training = pruning(8)
    training.tick = lambda: seen.append((int(training.pruner.budget.V), training.pruner.budget.b))
    records = list(training)[:6]
    steps = steps_per_epoch(DIGITS, SETTINGS)
    for i, record in enumerate(records):
        mine = seen[i * steps : (i + 1) * steps]
        assert (record["size_min"], record["size_max"]) == (min(v for v, _ in mine), max(v for v, _ in mine))
        assert record["above"] == pytest.approx(sum(v >= b for v, b in mine) / steps)
        before = [v for v, _ in seen]
        rises = [v - min(before[: i * steps + j + 1]) for j, (v, _) in enumerate(mine)]
        assert record["rise"] == max(rises)
        ratios = [v / b for v, b in mine]
        assert (record["ratio_min"], record["ratio_max"]) == pytest.approx((min(ratios), max(ratios)))
        assert record["near"] == pytest.approx(sum(0.8 <= ratio <= 1 for ratio in ratios) / steps)


def test_a_lower_margin_that_follows_keeps_v_close_to_b():
    settings = dataclasses.replace(SETTINGS, prune_epochs=24)
    near = {}
    for follow in (0.0, 0.9):
        records = list(pruning(4, settings=dataclasses.replace(settings, follow=follow)))
        near[follow] = sum(record["near"] for record in records[2:24]) / 22
    assert near[0.9] > near[0.0] + 0.25


def test_a_network_learns_and_equal_seeds_give_equal_weights():
    networks = []
    for seed in (0, 0, 1):
        training = pruning(2, seed=seed)
        assert len(list(training)) == 10
        networks.append(training.network)
    first, second, other = networks
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    weights = [torch.cat([p.flatten() for p in net.parameters()]).norm() for net in (first, other)]
    assert weights[0] != weights[1]
    assert accuracy(first, DIGITS.validation, DIGITS) > 0.3  # ten classes


def test_the_teacher_teaches():
    """With alpha = 1 the student never sees a label, and learns all the same."""
    settings = dataclasses.replace(SETTINGS, alpha=1.0, prune_epochs=30)
    torch.manual_seed(0)
    teacher = models.build("wrn-10-1", 10, DIGITS.input_size)
    generator = torch.Generator().manual_seed(0)
    trained(teacher, DIGITS, [("train", 30, 3e-3)], settings, generator)
    teacher.eval().requires_grad_(False)
    shuffled = dataclasses.replace(DIGITS.train, labels=DIGITS.train.labels.roll(1))
    student = models.build("wrn-10-1", 10, DIGITS.input_size)
    blind = dataclasses.replace(DIGITS, train=shuffled)
    trained(student, blind, [("train", 30, 3e-3)], settings, generator, teacher=teacher)
    good = accuracy(teacher, DIGITS.validation, DIGITS)
    assert good > 0.7
    assert accuracy(student, DIGITS.validation, DIGITS) > good - 0.15


def test_watching_changes_nothing():
    """Training is the same whether or not somebody looks at the network in between."""

    def train(look):
        torch.manual_seed(0)
        net = models.build("wrn-10-1", 10, DIGITS.input_size)
        for _ in Training(net, DIGITS, [("train", 3, 1e-3)], SETTINGS, torch.Generator().manual_seed(0)):
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
    settings = dataclasses.replace(SETTINGS, weight_decay=10.0, gate_travel=1e-9, prune_epochs=1)
    torch.manual_seed(0)
    training = pruning(settings=settings)
    before = training.network.log_alpha.detach().clone()
    gated = training.network
    next(iter(training))
    torch.testing.assert_close(gated.log_alpha.detach(), before, atol=1e-6, rtol=0)


def test_a_loss_that_is_no_number_stops_training_at_once():
    """The step and the term are named, and no further step is made."""
    steps = []
    for poisoned, message in (
        ("data", r"step 7 \(train, epoch 2\): its data term is nan, its pruning term 0\. Lower"),
        ("weights", r"weights are not numbers any more \(train, epoch 1\)"),
    ):
        net = models.build("wrn-10-1", 10, DIGITS.input_size)

        def tick(net=net, poisoned=poisoned):
            steps.append(1)
            if len(steps) == (7 if poisoned == "data" else 5):
                net.fc.weight.data.fill_(float("nan"))

        with pytest.raises(bar.BarError, match=message):
            trained(net, DIGITS, [("train", 3, 1e-3)], SETTINGS, torch.Generator(), tick=tick)
        assert len(steps) == (7 if poisoned == "data" else 5)
        steps.clear()

    training = pruning(2)
    training.pruner.network.gates["conv1"].log_alpha.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(bar.BarError, match=r"not a number any more at step [12] \(prune, epoch 1\).* pruning term nan"):
        list(training)


@pytest.mark.parametrize("after", [3, 6, 8])
def test_a_training_goes_on_from_its_state(after, tmp_path):
    """After any epoch, before and after the cut: the same records and weights, also with features cut on the way."""
    settings = dataclasses.replace(SETTINGS, patience=0.2, gate_travel=20.0)
    whole = pruning(8, settings=settings)
    records = list(whole)
    assert records[4]["flops_trained"] < records[0]["flops_trained"]  # something had been cut

    first = pruning(8, settings=settings)
    epochs = iter(first)
    seen = [next(epochs) for _ in range(after)][-1]
    torch.save(first.state_dict(), tmp_path / "state")
    torch.manual_seed(99)
    second = pruning(8, seed=5, settings=settings)  # other weights, gates and order, all replaced by what was stored
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    rest = [seen, *second]
    for mine, its in zip(rest, records[after - 1 :], strict=True):
        assert {k: v for k, v in mine.items() if k != "seconds"} == {k: v for k, v in its.items() if k != "seconds"}
    state = whole.network.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in second.network.state_dict().items())


def test_the_state_of_another_training_is_refused():
    state = Training(
        models.build("wrn-10-1", 10, DIGITS.input_size), DIGITS, [("train", 1, 1e-3)], SETTINGS, torch.Generator()
    ).state_dict()
    with pytest.raises(bar.BarError, match="another training"):
        pruning(2).load_state_dict(state)


def test_features_that_stay_dead_are_cut_and_not_before():
    settings = dataclasses.replace(SETTINGS, patience=0.5)  # three of six epochs
    training = pruning(2, settings=dataclasses.replace(settings, gate_travel=1e-9))
    gates = training.pruner.network.gates
    gates["group1.0.conv1"].log_alpha.data[2:4] = -6.0
    cut = [(r["epoch"], int(gates["group1.0.conv1"].cut.sum())) for r in training][:6]
    assert cut == [(1, 0), (2, 0), (3, 2), (4, 2), (5, 2), (6, 2)]
    assert not any(gate.cut.any() for name, gate in gates.items() if name != "group1.0.conv1")


def test_a_reserve_stays_uncut():
    """What settling may reopen is a tenth more than the budget: features are too large to fill it exactly."""
    settings = dataclasses.replace(SETTINGS, patience=0.5, gate_travel=1e-9)
    training = pruning(2, settings=settings)
    gated, limit = training.pruner.network, training.pruner.budget.limit
    for gate in gated.gates.values():
        gate.log_alpha.data[:] = 3.0
    for gate in reversed(gated.gates.values()):
        for feature in range(1, len(gate.log_alpha)):
            if gated.size() > 1.05 * limit:
                gate.log_alpha.data[feature] = -6.0
    assert limit < gated.size() < 1.1 * limit
    list(training)
    assert not any(gate.cut.any() for gate in gated.gates.values())


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
