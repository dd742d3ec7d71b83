"""What each method declares, and what follows from it: options, their ranges, tables; and a method of a user's own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bar
from bar import methods, runs

TINY = {"limit": 160, "size": 8, "epochs": (1, 1, 0)}
OPTIONS = [(method, option) for method in methods.METHODS.values() for option in method.options]
THIN = '''"""A method of one's own: keep the features whose filters have the smallest weights."""

import torch

from bar.methods import Option
from bar.methods.iterative import IterativePruning
from bar.methods.uniform import filters, highest


def smallest(gated, widths, generator):
    """Which features of each convolution stay."""
    scores = {name: -filters(gated, name).abs().sum((1, 2)) for name in gated.gates}
    return highest(gated, widths, scores)


class Thin(IterativePruning):
    name = "thin"
    title = "Thin"
    summary = "The features with the smallest weights stay."
    options = (Option("power", float, 1.0, "Not used by this example.", above=0),)
    choose = staticmethod(smallest)
'''


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_class_declares_everything(name):
    method = methods.METHODS[name]
    assert name == method.name
    assert method.title
    assert method.summary.endswith(".")
    assert set(method.presets) == {"paper", "quick"}
    assert set(method.metrics) in ({"volume", "flops"}, {"weights"})
    assert set(method.starts) <= {"scratch", "unpruned"}
    names = [option.name for option in method.options]
    assert len(names) == len(set(names))
    for preset, own in method.presets.items():
        assert set(own) <= {*names, "epochs"}
        for option in method.options:
            assert option.help.endswith(".")
            default = method.defaults(preset)[option.name]
            assert option.value(default) == default
            assert option.value(str(default).lower()) == default
    assert methods.table().loc[name, "title"] == method.title
    assert list(methods.options(name).index) == names


@pytest.mark.parametrize(("method", "option"), OPTIONS, ids=lambda value: value.name)
def test_options_out_of_range_are_one_line(method, option, bar_command, tmp_path):
    for wrong in ("perhaps", "nan", "-1", "1e999"):
        code, out, err = bar_command("run", "--method", method.name, "-o", f"{option.name}={wrong}")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert option.name in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "l0", "options": {"rules": "l0"}}, "l0 has no option 'rules': did you mean 'rule'"),
        ({"method": "uniform", "options": {"x": 1}}, "uniform has no option 'x': it has none"),
        ({"method": "uniform", "start": "unpruned"}, "trained from scratch"),
        ({"method": "learning-compression", "options": {"norm": "l1"}}, "l1 in constraint form needs kappa"),
        ({"method": "learning-compression", "options": {"kappa": 3}}, "l0 in constraint form has no kappa"),
        ({"options": [1]}, "options must be a mapping"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(bar.BarError, match=message):
        bar.RunConfig(**options)


def test_options_that_are_as_usual_make_no_other_run():
    usual = bar.RunConfig(method="l0")
    assert bar.RunConfig(method="l0", options={"rule": "median", "travel": "20", "gates": "uniform"}) == usual
    assert "options" not in usual.recorded()
    assert bar.RunConfig(options={"schedule": "linear"}) == bar.RunConfig(schedule="linear")
    other = bar.RunConfig(method="l0", options={"rule": "l0"})
    assert other.name != usual.name
    assert hash(other) == hash(bar.RunConfig(method="l0", options={"rule": "l0"}))


LC = [
    {"norm": norm, "form": form, "per_layer": layers}
    | ({"alpha": 1e-3} if form == "penalty" else {"kappa": 9.0} if norm != "l0" else {})
    for norm in ("l0", "l1", "l2") for form in ("constraint", "penalty") for layers in (False, True)
]  # fmt: skip
CHANGED = [
    *(("learning-compression", options) for options in LC[1:]),
    ("learning-compression", {"mu": 0.5}), ("learning-compression", {"growth": 3.0}),
    ("learning-compression", {"every": 2}), ("mp", {"per_layer": True}), ("mp-ft", {"per_layer": True}),
    ("l0", {"travel": 9.0}), ("l0", {"first": 0.5}), ("l0", {"rule": "l0"}), ("l0", {"gates": "normal"}),
    ("information-bottleneck", {"area": True}), ("information-bottleneck", {"travel": 9.0}),
    ("information-bottleneck", {"first": 0.5}), ("morphnet", {"pressure": 90.0}), ("morphnet", {"threshold": 1.0}),
    ("reparametrization", {"lam": 5.0}), ("reparametrization", {"t": 20.0}), ("reparametrization", {"t_lr": 30.0}),
    ("l0", {"lam": 0.4}), ("information-bottleneck", {"lam": 0.4}), ("bar", {"schedule": "linear"}),
    ("bar", {"travel": 90.0}), ("bar", {"pressure": 9.0}), ("bar", {"follow": 0.5}),
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where runs share their unpruned network."""
    return tmp_path_factory.mktemp("declared")


def told(config, folder):
    """All that a run says, but for its time."""
    record = bar.run(config, folder / config.name, device="cpu")
    lines = [json.loads(line) for line in (folder / config.name / runs.METRICS_FILE).read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    return record["weights_sha256"], kept, record["search"] and record["search"]["lambda"]


def test_every_option_is_among_those_that_are_changed():
    changed = {(name, option) for name, options in CHANGED for option in options}
    assert {(method.name, option.name) for method, option in OPTIONS} <= changed


@pytest.mark.parametrize(("name", "options"), CHANGED, ids=str)
def test_every_option_reaches_its_class(name, options, root):
    config = {"method": name, "pruning_factor": 3} | TINY | {"epochs": (3, 1, 0)}
    beside = {"travel": 9.0} if "follow" in options else {}  # in so few steps, gates that move far leave both margins
    if name == "information-bottleneck" and not options.keys() & {"lam", "first"}:
        beside = {"lam": 0.4}  # not searched for, then: l0 shows that options reach the trials, too
    usual = bar.RunConfig(**config, options=beside)
    assert told(bar.RunConfig(**config, options=beside | options), root) != told(usual, root)


def test_a_sparsity_weight_that_is_given_is_not_searched_for(root):
    config = bar.RunConfig(method="l0", pruning_factor=3, options={"lam": 0.4}, **TINY)
    record = bar.run(config, root / config.name, device="cpu")
    assert record["search"] is None
    assert not (root / config.trials).exists()
    assert record["settings"]["l0_lam"] == 0.4
    assert record["volume"] <= record["budget"]


def test_uniform_widths_from_scratch(root):
    config = bar.RunConfig(method="uniform", pruning_factor=4, **TINY)
    record = bar.run(config, root / config.name, device="cpu")
    assert config.start == "scratch"
    assert 0.9 * record["budget"] <= record["volume"] <= record["budget"]
    assert [line["phase"] for _, line in runs.metrics(root / config.name).iterrows()] == ["cut"] + ["finetune"] * 2


def test_a_new_method_is_a_file_and_a_line(tmp_path):
    """The diff that ARCHITECTURE.md shows, applied to a copy."""
    root = Path(__file__).parents[1]
    *_, diff = re.findall(r"```diff\n(.*?)```", (root / "ARCHITECTURE.md").read_text("utf-8"), re.S)
    shutil.copytree(root / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    applied = subprocess.run(
        ["git", "apply", "--unidiff-zero", "-"], input=diff, cwd=tmp_path, text=True, capture_output=True
    )
    assert applied.returncode == 0, applied.stderr
    words = ["run", "--method", "scale", "--limit", "160", "--size", "8", "--epochs", "1", "1", "0", "--json"]
    words += ["--device", "cpu", "--out", str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    made = subprocess.run(
        [sys.executable, "-c", "from bar.cli import main; main()", *words],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
    )
    assert made.returncode == 0, made.stderr
    record = json.loads(made.stdout)
    assert record["method"] == "scale"
    assert record["volume"] <= record["budget"]


def test_a_method_of_ones_own(bar_command, tmp_path):
    path = tmp_path / "thin.py"
    path.write_text(THIN)
    words = ["run", "--limit", "160", "--size", "8", "--epochs", "1", "1", "0", "--device", "cpu", "--json"]
    code, out, err = bar_command(*words, "--method", "thin.py:Thin", "-o", "power=2")
    assert code == 0, err
    record = json.loads(out)
    assert record["volume"] <= record["budget"]
    assert record["options"] == {"power": 2.0}
    first = bar.RunConfig(method="thin.py:Thin", **TINY)
    path.write_text(THIN + "\n# changed\n")
    second = bar.RunConfig(method="thin.py:Thin", **TINY)
    assert first.source != second.source
    assert first.name != second.name
    with pytest.raises(bar.BarError, match="has changed since"):
        assert first.phases
    path.unlink()  # a record is read without it
    assert set(runs.records(tmp_path)["method"]) == {"thin.py:Thin", "unpruned"}


def test_a_method_of_ones_own_may_write_weights_when_it_is_made(bar_command, tmp_path):
    lines = ["", "    def __init__(self, network, *args, **options):"]
    lines += ["        for weight in network.parameters():", "            weight.data.mul_(0.5)"]
    lines += ["        super().__init__(network, *args, **options)", ""]
    (tmp_path / "thin.py").write_text(THIN.rstrip() + "\n".join(lines))
    words = ["run", "--limit", "160", "--size", "8", "--epochs", "1", "1", "0", "--device", "cpu", "--json"]
    code, _, err = bar_command(*words, "--method", "thin.py:Thin")
    assert code == 0, err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("x = 1\nclass Thin(", "(line 2 of thin.py)"),
        ("x = 1", "has no class 'Thin'"),
        ("class Thin: pass", "is not a method: its base must be"),
        ("x = 1\n\nx // 0", "(line 3 of thin.py)"),
        ("raise SystemExit(3)", "SystemExit"),
        ("from bar.methods import Method\nclass Thin(Method): pass", "does not declare what a method must"),
        (
            "from bar.methods import Method\nclass Thin(Method):\n    name = title = summary = 'x'\n"
            "    def __init__(self, network, task): raise KeyError('what')",
            "cannot be prepared: KeyError: 'what' (line 4 of thin.py)",
        ),
    ],
)
def test_an_error_in_it_is_one_line(text, message, bar_command, tmp_path):
    if text is not None:
        (tmp_path / "thin.py").write_text(text)
    code, out, err = bar_command("run", "--limit", "160", "--size", "8", "--method", "thin.py:Thin")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("torch.ones_like(scores[name], dtype=torch.bool)", "features of '"),
        ("torch.ones(1, dtype=torch.bool)", "chosen by a bool tensor of shape ("),
    ],
)
def test_what_it_chooses_is_as_many_features_as_it_may_keep(made, message, bar_command, tmp_path):
    line = "    return highest(gated, widths, scores)"
    assert line in THIN
    (tmp_path / "thin.py").write_text(THIN.replace(line, f"    return {{name: {made} for name in scores}}"))
    words = ["run", "--limit", "160", "--size", "8", "--epochs", "1", "1", "0", "--device", "cpu"]
    code, out, err = bar_command(*words, "--method", "thin.py:Thin")
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1], err


def test_what_its_cut_leaves_is_counted_and_not_believed(bar_command, tmp_path):
    keeps = """

    def cut(self):
        super().cut()
        return trace(models.build("wrn-10-1", input_size=(3, 8, 8)), (3, 8, 8)).module
"""
    (tmp_path / "thin.py").write_text("from bar import models\nfrom bar.network import trace\n" + THIN.rstrip() + keeps)
    words = ["run", "--limit", "160", "--size", "8", "--epochs", "1", "1", "0", "-x", "4", "--out", "o/r"]
    code, _, err = bar_command(*words, "--device", "cpu", "--method", "thin.py:Thin")
    assert (code, "above the budget of" in err.splitlines()[-1]) == (2, True), err
    assert set(runs.records(tmp_path / "o").method) == {"unpruned"}


def test_a_method_that_ends_the_program_is_named(bar_command, tmp_path):
    ends = "\n\n    def cut(self):\n        raise SystemExit(0)\n"
    (tmp_path / "thin.py").write_text(THIN.rstrip() + ends)
    words = ["run", "--limit", "160", "--size", "8", "--epochs", "1", "1", "0", "--device", "cpu"]
    code, _, err = bar_command(*words, "--method", "thin.py:Thin")
    assert code == 2
    assert err.splitlines()[-1] == "bar: a file of yours has ended the program: sys.exit(0)"


def test_the_methods_on_the_command_line(bar_command):
    assert {row["method"] for row in json.loads(bar_command("methods", "--json")[1])} == set(methods.METHODS)
    assert "kappa" in bar_command("methods", "learning-compression")[1]
    for command in ("run", "sweep"):
        listed = bar_command(command, "--help")[1].partition("\nMethods:\n")[2]
        words = " ".join(listed.split())
        assert all(f" {name} {method.summary}" in f" {words}" for name, method in methods.METHODS.items())
        assert "`bar methods METHOD` lists the options" in words
    assert bar_command("methods", "learning-compresion")[0] == 2
