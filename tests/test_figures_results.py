"""The figures of a run and of results: what is drawn is what was given, where it belongs."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import bar
from bar import figures, paper
from bar.figures.style import factor_axis
from bar.models import build
from bar.network import trace
from bar.network.blocks import block_of_convolutions, neurons

RUN = pd.DataFrame(
    {
        "phase": ["prune"] * 3 + ["cut"] + ["finetune"] * 2 + ["cooldown"],
        "size": [100, 60, 20, 24, 24, 24, 24],
        "budget": [100, 50, 25, 25, 25, 25, 25],
        "barrier": [100.0, 2.0, 0, 0, 0, 0, 0],
        "accuracy": [0.3, 0.5, 0.6, 0.55, 0.7, 0.8, 0.9],
    }
)


def lines(ax) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_xydata()) for line in ax.lines}


def test_training_run_draws_the_cut_at_the_end_of_pruning():
    sizes, barrier, accuracies = figures.training_run(RUN, full=100, limit=25, unpruned=0.95).axes
    assert lines(sizes)["$V$"].tolist() == [[1, 1], [2, 0.6], [3, 0.2], [3, 0.24], [4, 0.24], [5, 0.24], [6, 0.24]]
    assert lines(sizes)["$b$"].tolist() == [[1, 1], [2, 0.5], [3, 0.25]]
    assert set(lines(sizes)["$B$"][:, 1]) == {0.25}
    assert barrier.lines[0].get_ydata().tolist() == [100, 2, 0]
    assert lines(accuracies)["if cut now"].tolist() == [[1, 0.3], [2, 0.5], [3, 0.6], [3, 0.55]]
    assert lines(accuracies)["after the cut"].tolist() == [[3, 0.55], [4, 0.7], [5, 0.8], [6, 0.9]]
    assert set(lines(accuracies)["unpruned"][:, 1]) == {0.95}
    starts = [line.get_xdata()[0] for line in barrier.lines[1:]]
    assert starts == [3, 5]  # the cut, and the cool-down after two epochs of fine-tuning
    assert [text.get_text() for text in sizes.texts] == ["prune", "tune", "cool"]


def test_training_run_without_phases_after_the_cut():
    figure = figures.training_run(RUN[:4], full=100, limit=25, metric="flops")
    assert [text.get_text() for text in figure.axes[0].texts] == ["prune"]
    assert figure.axes[0].get_ylabel() == "part of $F_F$"


@pytest.mark.parametrize("name", ["CIFAR-10", "CIFAR-100", "Mio-TCD"])
def test_paper_results_draw_every_number_once_and_no_two_lines_look_alike(name):
    table = paper.table("pruning_results").query("dataset == @name").sample(frac=1, random_state=0)
    figure = figures.paper_results(table)
    for ax, column in zip(figure.axes, ("v_factor", "f_factor"), strict=True):
        drawn = {label.replace("BAR", "Ours"): points for label, points in lines(ax).items()}
        assert set(drawn) == set(table.paper_name)
        for method, rows in table.groupby("paper_name"):
            expected = np.column_stack([rows[column], 100 * rows.accuracy])
            assert sorted(map(tuple, drawn[method])) == sorted(map(tuple, expected))
            assert (np.diff(drawn[method][:, 0]) >= 0).all()
        low, high = ax.get_xlim()
        assert low < table[column].min() <= table[column].max() < high
        assert len({line.get_marker() for line in ax.lines}) == len(ax.lines)


def test_accuracy_changes_keep_ours_and_the_papers_apart():
    ours = pd.DataFrame(
        {"label": ["a", "a", "b"], "factor": [16.0, 4.0, 4.0], "change": [-2, -1, -5], "interval": [0.5, 0.2, np.nan]}
    )
    theirs = pd.DataFrame({"label": ["paper"] * 2, "factor": [2.0, 8.0], "change": [1.8, 1.9]})
    left, right = figures.accuracy_changes(ours, theirs).axes
    drawn = [container.lines[0].get_xydata().tolist() for container in left.containers]
    assert drawn == [[[4, -1], [16, -2]], [[4, -5]]]
    (bars,) = left.containers[0].lines[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[-1.2, -0.8], [-2.5, -1.5]]
    assert [container.lines[0].get_xydata().tolist() for container in right.containers] == [[[2, 1.8], [8, 1.9]]]
    assert left.get_ylim() == right.get_ylim()


def test_accuracy_changes_without_a_run_of_ours():
    nothing = pd.DataFrame({"label": [], "factor": [], "change": [], "interval": []})
    theirs = pd.DataFrame({"label": ["paper"], "factor": [2.0], "change": [1.8]})
    assert len(figures.accuracy_changes(nothing, theirs).axes[0].containers) == 0


@pytest.mark.parametrize("values", [[1.0, 1.1], [3.7], [0.9, 16], [1, 256]])
def test_axis_of_factors_holds_all_values_and_has_a_tick_per_power(values):
    _, ax = plt.subplots()
    factor_axis(ax, pd.Series(values))
    low, high = ax.get_xlim()
    ticks = ax.get_xticks()
    plt.close()
    assert len(ticks) >= 2
    assert min(values) >= low
    assert max(values) <= high
    assert len(ticks) <= 6


POINTS = pd.DataFrame(
    [["morphnet", 2.0, 3.9, 0.90, 0.01], ["bar", 4.0, 16.0, 0.85, 0.02], ["bar", 2.0, 5.0, 0.95, np.nan]],
    columns=["method", "v_factor", "f_factor", "accuracy", "spread"],
)


def test_results_by_method_keep_ours_and_the_papers_apart():
    theirs = POINTS[["method", "v_factor", "f_factor"]].assign(accuracy=[0.5, 0.6, 0.7], v_factor=[1.5, 8, 2])
    axes = figures.results_by_method({"here": POINTS, "the paper": theirs}, {"here": 0.97}).axes
    assert [ax.get_title(loc="left") for ax in axes] == ["(a) here", "(b) the paper", "(c) here", "(d) the paper"]
    ours, paper_, ours_by_flops, _ = axes
    assert {name: points.tolist() for name, points in lines(ours).items() if name != "unpruned"} == {
        "BAR": [[2, 95], [4, 85]],
        "MorphNet": [[2, 90]],
    }
    assert lines(ours_by_flops)["BAR"].tolist() == [[5, 95], [16, 85]]
    assert lines(paper_)["BAR"].tolist() == [[2, 70], [8, 60]]
    assert set(lines(ours)["unpruned"][:, 1]) == {97}
    assert "unpruned" not in lines(paper_)
    bars, morphnet = (container.lines[2][0].get_segments() for container in ours.containers)
    assert np.allclose([segment[:, 1] for segment in bars if len(segment)], [[83, 87]])  # not where there is no number
    assert np.allclose(morphnet[0][:, 1], [89, 91])
    assert not paper_.containers  # no spread is known, so none is drawn
    assert ours.get_xlim() == paper_.get_xlim() != ours_by_flops.get_xlim()


def test_a_method_looks_the_same_whoever_else_is_there_and_like_no_other():
    def looks(ax):
        return {
            line.get_label(): (line.get_color(), line.get_linestyle(), line.get_marker(), line.get_markerfacecolor())
            for line in ax.lines
        }

    table = paper.table("pruning_results").query("dataset == 'CIFAR-10'")
    every = looks(figures.paper_results(table).axes[0])
    assert len({look[2] for look in every.values()}) == len(every) == len(figures.METHODS)
    few = looks(figures.results_by_method({"here": POINTS}, {}).axes[0])
    assert few == {name: every[name] for name in ("BAR", "MorphNet")}


def test_results_by_method_refuses_what_it_cannot_draw():
    with pytest.raises(bar.BarError, match="no result"):
        figures.results_by_method({"here": POINTS[:0]}, {})
    with pytest.raises(bar.BarError, match="'mp-ft'"):
        figures.results_by_method({"here": POINTS.assign(method="mp-ft")}, {})


def test_neurons_by_method_has_a_panel_a_method_and_a_pair_of_bars_a_block():
    rows = pd.DataFrame(
        [
            ["morphnet", "stem", 64, 20.0],
            ["bar", "block", 32, 0.0],
            ["bar", "stem", 64, 31.5],
            ["morphnet", "block", 32, 4],
        ],
        columns=["method", "block", "full", "left"],
    )
    first, second = figures.neurons_by_method(rows, factor=4).axes
    assert [ax.get_title(loc="left") for ax in (first, second)] == ["BAR", "MorphNet"]
    assert [text.get_text() for text in first.get_yticklabels()] == ["stem", "block"]
    for ax, expected in ((first, [31.5, 0]), (second, [20, 4])):
        same, left = ([bar_.get_width() for bar_ in bars] for bars in ax.containers)
        assert same == [16, 8]
        assert left == expected
    assert [text.get_text() for text in first.texts] == ["gone"]
    assert not second.texts


def test_neurons_by_method_leaves_the_last_place_of_an_odd_number_empty_and_refuses_nothing():
    rows = pd.DataFrame({"method": ["bar", "l0", "random"], "block": "stem", "full": 8, "left": 2.0})
    axes = figures.neurons_by_method(rows, factor=4).axes
    assert [ax.axison for ax in axes] == [True, True, True, False]
    assert [bool(ax.get_xlabel()) for ax in axes] == [False, True, True, False]
    with pytest.raises(bar.BarError):
        figures.neurons_by_method(rows[:0], factor=4)


@pytest.mark.parametrize("name", ["wrn-10-1", "resnet18-by-8"])
def test_blocks_of_convolutions_add_up_to_the_network(name):
    """What a record holds, features and areas by convolution, is enough to draw figure 7."""
    net = trace(build(name), (3, 32, 32))
    cost = bar.count(build(name), (3, 32, 32))
    homes = block_of_convolutions(net)
    assert list(homes) == list(cost.layers)
    assert sum(cost.layers[conv]["features"] * cost.layers[conv]["area"] for conv in homes) == cost.volume
    assert set(homes.values()) == set(neurons(net, net.live({})))
    named = {conv: re.match(r"(?:group|layer)\d\.\d", conv) for conv in homes}
    assert homes == {conv: block[0] if block else conv for conv, block in named.items()}
