"""The figures of a run and of results: what is drawn is what was given, where it belongs."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from bar import figures, paper

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
    figures._factors(ax, pd.Series(values))
    low, high = ax.get_xlim()
    ticks = ax.get_xticks()
    plt.close()
    assert len(ticks) >= 2
    assert min(values) >= low
    assert max(values) <= high
    assert len(ticks) <= 6
