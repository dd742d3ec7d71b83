"""What is handed over by mistake to a public function is refused in one line, as its docstring says."""

import math

import pandas as pd
import pytest
import torch
from torch import nn

import bar
from bar import data, figures, methods, models, storage, training
from bar.figures.structure import chunk

QUICK = training.PRESETS["quick"]
LOGITS = torch.zeros(2, 2)
IMAGES, EIGHT = torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.ones(8, dtype=torch.bool)
UNKNOWN = pd.DataFrame([{"method": "mine", "v_factor": 2.0, "f_factor": 4.0, "accuracy": 0.9, "block": "group1.0"}])
NOWHERE = "/dev/null/net.pt2"  # where nothing can be written


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(128, 2))


def gated() -> bar.GatedNetwork:
    return bar.gate(plain(), (1, 6, 6))


def build(name: str, **given):
    given = {"factor": 2, "steps_per_epoch": 10} | given
    return methods.build(name, plain(), (1, 6, 6), QUICK, **given)


SIZES = {
    "a side": (32, "not 32"),
    "nothing": (None, "not None"),
    "fractions": ((1, 6.5, 6.5), "6.5"),
    "words": (("a", 6, 6), "'a'"),
    "below 1": ((1, -6, 6), "-6"),
}
COUNTING = {"gate": bar.gate, "count": bar.count, "export": lambda net, size: bar.export(net, size, NOWHERE)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("function", COUNTING)
def test_sizes_that_are_none(function, size):
    given, said = SIZES[size]
    with pytest.raises(bar.BarError, match=rf"input size must be three positive numbers .*{said}"):
        COUNTING[function](plain(), given)


def test_sizes_of_every_kind_of_whole_number():
    sizes = (
        [1, 6, 6],
        torch.Size([1, 6, 6]),
        torch.tensor([1, 6, 6]),
        torch.tensor([1, 6, 6]).numpy(),
        iter((1, 6, 6)),
    )
    assert {bar.count(plain(), size).volume for size in sizes} == {128}


OTHER = {
    "prune a plain network": (lambda: bar.prune(plain()), "only a gated network can be pruned.*not a Sequential"),
    "budget of a plain network": (lambda: bar.Budget(plain(), 2, 10), "needs a gated network.*not a Sequential"),
    "count a gated network": (lambda: bar.count(gated(), (1, 6, 6)), "counted by its own methods"),
    "save a gated network": (lambda: storage.check(gated()), "only a traced network can be saved.*GatedNetwork"),
    "export, arguments swapped": (lambda: bar.export(plain(), NOWHERE, (1, 6, 6)), r"path .*, not \(1, 6, 6\)"),
    "settle to no number": (lambda: gated().settle_(math.nan), "the budget must be a number, not nan"),
    "settle, use": (lambda: gated().settle_(70, use=2), "from 0 to 1, not 2"),
    "settle, use nan": (lambda: gated().settle_(70, use=math.nan), "from 0 to 1, not nan"),
    "an infinite lambda": (lambda: bar.Budget(gated(), 2, 10, lam=math.inf), "lambda and cap must be above 0"),
    "a step before the first": (lambda: bar.Budget(gated(), 2, 10)(-1), "counted from 0, this one is -1"),
    "a file of methods": (lambda: methods.find("meth.py"), "method 'meth.py' .one of your own is FILE.py:CLASS"),
    "a dot for a colon": (lambda: models.check("own.Net"), r"'own.net' .one of your own is PACKAGE.MODULE:FUNCTION"),
    "an infinite start": (lambda: bar.Budget(gated(), 2, 10, start=math.inf), "start at least 1"),
    "alpha and temperature swapped": (
        lambda: bar.distillation(LOGITS, torch.tensor([0, 1]), LOGITS, 4.0, 0.9), "alpha must be from 0 to 1",
    ),
    "a low temperature": (
        lambda: bar.distillation(LOGITS, torch.tensor([0, 1]), LOGITS, temperature=0.5), "temperature at least 1",
    ),
    "keep one for all": (lambda: gated().keep_({"0": torch.tensor([True])}), r"a bool tensor of shape \(8,\), not by"),
    "keep by numbers": (lambda: gated().keep_({"0": torch.arange(8)}), "'0' are chosen by a bool tensor.*int64"),
    "keep nothing": (lambda: gated().keep_({}), "'0' has no choice of its features"),
    "keep of another": (
        lambda: gated().keep_({"0": EIGHT, "2": EIGHT}), "'2' is no convolution with a gate: there are '0'",
    ),
    "cut by a list": (lambda: gated().cut_({"0": [True] * 8}), "bool tensor of shape .*, not by list"),
    "float images": (lambda: data.Split(torch.rand(5, 3, 8, 8), torch.arange(5)), "images must be bytes.*float32"),
    "fewer labels": (lambda: data.Split(IMAGES, torch.arange(4)), "labels of 5 images must be as many.*(4,)"),
    "two means": (
        lambda: data.batches(data.Split(IMAGES, torch.arange(5)), 2, mean=(0.5,) * 2, std=(1.0,) * 3), "3 numbers each",
    ),
    "no std": (
        lambda: data.batches(data.Split(IMAGES, torch.arange(5)), 2, mean=(0.5,) * 3, std=(0,) * 3), "of std above 0",
    ),
    "results of nobody": (lambda: figures.paper_results(UNKNOWN), "cannot draw the method 'mine'"),
    "neurons of nobody": (lambda: figures.neurons_by_method(UNKNOWN, 2), "cannot draw the method 'mine'"),
    "draw a plain network": (lambda: bar.draw(plain()), "only a gated network can be drawn"),
    "no method": (lambda: methods.find("unpruned"), "unpruned is no method"),
    "no preset": (lambda: build("magnitude", preset="papr"), "unknown preset 'papr': did you mean 'paper'"),
    "no preset of phases": (lambda: methods.phases("bar", QUICK, 4, "papr"), "unknown preset 'papr'"),
    "a factor of 1": (lambda: build("l0", factor=1), "pruning factor must be a number above 1, not 1"),
    "a factor of 0": (lambda: methods.phases("magnitude", QUICK, 0), "pruning factor must be a number above 1, not 0"),
    "a budget of volume": (lambda: build("mp", metric="volume"), "mp cannot serve a budget in 'volume', only in"),
    "a divisor of 0": (lambda: models.narrow(models.build("wrn-10-1"), 0), "whole number >= 1, not 0"),
    "a divisor with a fraction": (lambda: models.narrow(models.build("wrn-10-1"), 1.5), "whole number >= 1, not 1.5"),
    "no images for batch norms": (
        lambda: training.recalibrate(plain(), data.load("digits", size=8, limit=64), QUICK, 0), "at least 1 image",
    ),
    "six distributions": (lambda: figures.distributions(range(6)), "from 1 to 5 lines .* not 6"),
    "no barriers": (lambda: figures.barriers(ts=()), "from 1 to 5 lines .* not 0"),
    "six masks": (lambda: figures.reparametrization(range(1, 7)), "from 1 to 5 lines .* not 6"),
    "no reach": (lambda: figures.reparametrization(reach=0), "above 0, not 0"),
    "no schedule": (lambda: figures.schedules(schedule="sigmod"), "no schedule 'sigmod': did you mean 'sigmoid'"),
    "a metric of weights": (lambda: figures.training_run(UNKNOWN, 2, 1, metric="weights"), "unknown metric 'weights'"),
    "no rows": (lambda: chunk(bar.gate(models.build("wrn-10-1"), (3, 8, 8)), rows=0), "at least one channel, not 0"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", OTHER)
def test_other_mistakes(mistake):
    function, said = OTHER[mistake]
    with pytest.raises(bar.BarError, match=said):
        function()


def test_charts_of_records_that_are_elsewhere(tmp_path):
    """A record outside of the repository's results keeps its own path; a file without times is named."""
    pytest.importorskip("altair")
    touch = pytest.importorskip("bar.figures.touch")
    one = {"dataset_label": "digits", "model": "wrn-10-1", "method": "bar", "seed": 0, "volume_factor": 2.0}
    one |= {"flops_factor": 3.0, "accuracy": 0.9, "accuracy_unpruned": 0.9}
    folders = ["runs/one", "../results/two"]
    spec = touch.recorded_runs(pd.DataFrame([one | {"folder": folder} for folder in folders])).spec
    (rows,) = spec["datasets"].values()
    assert [row["record"] for row in rows] == ["runs/one/result.json", "results/two/result.json"]
    for content in ("{}", "[]", '{"records": []}'):
        (tmp_path / "times.json").write_text(content)
        with pytest.raises(bar.BarError, match=r"times\.json is no record of bench/latency"):
            touch.widths_and_time(tmp_path / "times.json")
