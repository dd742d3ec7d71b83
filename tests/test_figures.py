"""Figures show what the library computes: labels, the numbers behind the marks, and marks that can be told apart."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from networks import NAMES, SIZE, build

import bar
from bar import figures
from bar.barriers import barrier, log_barrier
from bar.hard_concrete import HardConcrete, threshold
from bar.network.blocks import neurons, residual_blocks
from bar.schedule import SCHEDULES, margins, transition

RESIDUAL = [name for name in NAMES if name != "plain"]


def pruned(name: str, seed: int = 0) -> bar.GatedNetwork:
    """A gated network with some features dead, some convolutions wholly dead, and a path left open."""
    torch.manual_seed(seed)
    gated = bar.gate(build(name), SIZE)
    for i, gate in enumerate(gated.gates.values()):
        gate.spread_(-5, -3 if i % 4 == 3 else 2)
    return gated.floor_()


def labelled(ax, label: str):
    """The line of a panel with this label."""
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return line


TIMES = pd.DataFrame(
    {
        "record": record,
        "batch": batch,
        "network": name,
        "factor": factor,
        "flop_factor": factor ** (1 + (name == "mixed")),
    }
    for record in ("latency-cpu.json: some-network, " + "a processor with a long name, " * 2 + "commit abcdef", "gpu")
    for batch in (1, 64)
    for factor in (16.0, 2.0, 4.0)
    for name in ("gated", "unpruned", "regular", "mixed", "dense", "torch-pruning", "mixed, as pruned")
)
RANDOM = np.random.default_rng(0)
for column in ("speedup", "throughput_over_dense", "ms_slower_convolutions", "ms_more_of_the_rest"):
    TIMES[column] = RANDOM.uniform(0.3, 1, len(TIMES))
TIMES["throughput_over_dense_low"] = TIMES.throughput_over_dense - 0.02
TIMES["throughput_over_dense_high"] = TIMES.throughput_over_dense + 0.05
TIMES["ms_if_flops_were_time"] = 1.0
FOLLOWED = pd.DataFrame(
    {
        "name": name,
        "factor": factor,
        "seed": seed,
        "time": epoch,
        "size": 1 / (1 + epoch * (factor - 1) / 4) * (1 - seed / 20),
        "size_min": 0.9 / factor if epoch == 4 else 0.5 / (1 + epoch),
        "size_max": 1 / epoch,
        "budget": 1.05 / (1 + epoch * (factor - 1) / 4),
        "note": f"cut {factor}, end 98.1",
    }
    for name in ("… and gates that have no momentum", "start", "third")
    for factor in (16.0, 4.0)
    for seed in (5, 6)
    for epoch in (1, 2, 3, 4)
    if not (name == "third" and factor == 16)
)
SECONDS = pd.DataFrame(
    {"record": record, "training": name, "time": epoch, "phase": phase, "seconds": 1 / epoch + i}
    for record in ("training-cpu.json: some-network, " + "a processor with a long name, " * 2 + "commit abcdef", "gpu")
    for i, name in enumerate(figures.TRAININGS)
    for epoch, phase in enumerate(["train" if name == "unpruned" else "prune"] * 3 + ["finetune", "cooldown"], start=1)
    if not (name == "unpruned" and phase == "finetune")
)

FIGURES = {
    "distributions": figures.distributions,
    "estimates": figures.estimates,
    "barriers": figures.barriers,
    "schedules": figures.schedules,
    "block_kinds": lambda: figures.block_kinds(pruned("resnet-bottleneck").network),
    "connectivity": lambda: figures.connectivity(pruned("wrn-16-1")),
    "chunk": lambda: figures.chunk(pruned("wrn-16-1")),
    "neurons_per_block": lambda: figures.neurons_per_block(pruned("wrn-16-1")),
    "speedups": lambda: figures.speedups(TIMES),
    "throughput_over_dense": lambda: figures.throughput_over_dense(TIMES),
    "where_time_went": lambda: figures.where_time_went(TIMES[TIMES.network.isin(["mixed", "dense"])]),
    "following": lambda: figures.following(FOLLOWED),
    "seconds_per_epoch": lambda: figures.seconds_per_epoch(SECONDS),
}


@pytest.mark.parametrize("name", FIGURES)
def test_reads_well_anywhere(name):
    """Opaque and white, no wider than a column, letters of at least 10 points, and not left open in pyplot."""
    figure = FIGURES[name]()
    assert not plt.get_fignums()
    assert to_rgb(figure.get_facecolor()) == (1, 1, 1)
    assert figure.get_facecolor()[3] == 1
    assert figure.get_figwidth() <= figures.WIDTH
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(plt.Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 10
    inches = figure.get_tightbbox()  # of all that is visible: nothing is cut off
    assert min(inches.x0, inches.y0) >= -0.02
    assert inches.x1 <= figure.get_figwidth() + 0.02
    assert inches.y1 <= figure.get_figheight() + 0.02


@pytest.mark.parametrize("name", ["distributions", "estimates", "barriers", "schedules"])
def test_curves_have_labels_and_look_different_in_grey(name):
    for ax in FIGURES[name]().axes:
        assert ax.get_xlabel() or ax.get_subplotspec().rowspan.start == 0
        assert ax.get_ylabel() or ax.get_subplotspec().colspan.start == 1  # the right one of two shares it
        curves = [line for line in ax.lines if len(line.get_xdata()) > 2]
        # The pattern, not the colour; matplotlib says "--" for all dashed lines, so look at the dashes themselves.
        assert len({str(line._unscaled_dash_pattern) for line in curves}) == len(curves)


def test_distributions_are_those_of_the_library():
    figure = figures.distributions([-1.0, 2.0], beta=0.5, gamma=-0.2, zeta=1.3)
    (binary_density, hard_density), (binary_icdf, hard_icdf) = np.array(figure.axes).reshape(2, 2)
    for i, log_alpha in enumerate((-1.0, 2.0)):
        hard = HardConcrete(torch.tensor(log_alpha, dtype=torch.float64), 0.5, -0.2, 1.3)
        for line, of in ((hard_density.lines[3 * i], hard.density), (hard_icdf.lines[i], hard.icdf)):
            x, y = (torch.as_tensor(values) for values in line.get_data())
            torch.testing.assert_close(y, of(x))
        at_zero, at_one = hard_density.lines[3 * i + 1 : 3 * i + 3]
        assert at_zero.get_xdata()[0] < 0
        assert at_one.get_xdata()[0] > 1
        assert at_zero.get_ydata()[1] == pytest.approx(float(hard.prob_zero))
        assert at_one.get_ydata()[1] == pytest.approx(float(hard.prob_one))
        # The binary concrete's quantile function in closed form.
        eps, s = (np.asarray(values)[1:-1] for values in binary_icdf.lines[i].get_data())
        np.testing.assert_allclose(s, 1 / (1 + np.exp(-(np.log(eps / (1 - eps)) + log_alpha) / 0.5)), atol=1e-9)
        # Its density by supp. eq. 2.
        z, density = (np.asarray(values) for values in binary_density.lines[i].get_data())
        alpha, beta = np.exp(log_alpha), 0.5
        top = beta * alpha * z ** (-beta - 1) * (1 - z) ** (-beta - 1)
        np.testing.assert_allclose(density, top / (alpha * z**-beta + (1 - z) ** -beta) ** 2, rtol=1e-6)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["$\\log\\alpha$ = -1", "$\\log\\alpha$ = 2"]


def test_estimates_are_those_of_the_library():
    (ax,) = figures.estimates(beta=0.5).axes
    x = torch.as_tensor(labelled(ax, "$P(z>0)$").get_xdata())
    gate = HardConcrete(x, 0.5)
    for label, expected in (
        ("median (the paper's words)", gate.median), ("L0 reference code", gate.l0_estimate),
        ("true mean", gate.mean), ("$P(z>0)$", gate.prob_active),
    ):  # fmt: skip
        torch.testing.assert_close(torch.as_tensor(labelled(ax, label).get_ydata()), expected)
    deaths = [float(line.get_xdata()[0]) for line in ax.lines if len(line.get_xdata()) == 1]
    assert deaths == pytest.approx([threshold("median", 0.5), threshold("l0", 0.5)])
    assert [t.get_text() for t in ax.texts] == [f"dead up to\n{death:.3f}" for death in deaths]
    assert ax.get_xlabel() == r"$\log\alpha$"


def test_barriers_are_those_of_the_library():
    left, right = figures.barriers([1, 3], [2, 4]).axes
    for t in (1, 3):
        V, f = (torch.as_tensor(values) for values in labelled(left, f"$t$ = {t}").get_data())
        torch.testing.assert_close(f, log_barrier(V, 1.0, t))
    for b in (2, 4):
        V, f = (torch.as_tensor(values) for values in labelled(right, f"$b$ = {b}").get_data())
        torch.testing.assert_close(f, barrier(V, 1.0, b))
        assert V.max() > 0.99 * b
        assert b in [line.get_xdata()[0] for line in right.lines if len(line.get_xdata()) == 2]
    assert "volume $V$" in left.get_xlabel()
    assert right.get_ylabel() == "$f(V, a, b)$"


def test_schedules_are_those_of_the_library():
    upper, lower = figures.schedules(hardness=5.0, pruning_factor=8.0, schedule="linear").axes
    for d in (5.0, 1.0, 25.0):
        i, T = (torch.as_tensor(values) for values in labelled(upper, f"$d$ = {d:g}").get_data())
        torch.testing.assert_close(T, transition(i, d))
    for name in SCHEDULES:
        line = labelled(lower, name)
        i, b = (torch.as_tensor(values) for values in line.get_data())
        T = (lambda i: transition(i, 5.0)) if name == "sigmoid" else SCHEDULES[name]
        torch.testing.assert_close(b, margins(i, 1.0, 1 / 8, T)[1])
        assert (line.get_linewidth() == 3) == (name == "linear")
    assert labelled(lower, "$a$").get_ydata()[0] == pytest.approx(1 / 8 - 1e-4)
    assert lower.get_ylabel() == "$b$ / $V_F$"


def test_residual_blocks_of_torchvision_and_wide_resnets():
    """Found by their graph; the oracle is what the networks' own names say."""
    for name, group, shortcut in (("resnet-bottleneck", "layer", "downsample"), ("wrn-16-1", "group", "shortcut")):
        net = build(name)
        blocks = residual_blocks(bar.gate(net, SIZE).network)
        expected = [n for n, _ in net.named_modules() if n.startswith(group) and n.count(".") == 1]
        assert [block.name for block in blocks] == expected
        for block in blocks:
            convs = [n for n, m in net.named_modules() if isinstance(m, torch.nn.Conv2d) and n.startswith(block.name)]
            assert [conv.target for conv in block.shortcut] == [n for n in convs if shortcut in n]
            assert [conv.target for conv in block.convs] == [n for n in convs if shortcut not in n]
            assert block.start.target.startswith("conv1") == (block.layer == 0 and not blocks[0].shortcut)
        numbers = [block.layer for block in blocks]
        new_layer = [i == 0 or bool(block.shortcut) for i, block in enumerate(blocks)]
        assert numbers == (np.cumsum(new_layer) - 1).tolist()


def test_residual_blocks_without_names_to_share():
    """Names are unique even where the graph's parts have none in common; a plain chain has no block."""
    blocks = residual_blocks(bar.gate(build("depthwise"), SIZE).network)
    assert [block.name for block in blocks] == ["blocks.0", "blocks.1"]
    assert "blocks.0.depthwise" in [conv.target for conv in blocks[0].convs]
    (block,) = residual_blocks(bar.gate(build("branches"), SIZE).network)
    assert block.name
    plain = bar.gate(build("plain"), SIZE)
    assert residual_blocks(plain.network) == []
    for draw in (figures.connectivity, figures.chunk, lambda gated: figures.block_kinds(gated.network)):
        with pytest.raises(bar.BarError, match="no residual blocks"):
            draw(plain)


@pytest.mark.parametrize("name", NAMES)
def test_neurons_are_the_volume_of_the_pruned_network(name):
    gated = pruned(name)
    assert sum(neurons(gated.network, gated.live()).values()) == bar.count(bar.prune(gated), SIZE).volume


def test_neurons_per_block_marks_what_is_gone():
    gated = pruned("wrn-16-1")
    gated.keep_({name: torch.full_like(gate.alive, name != "group1.1.conv2") for name, gate in gated.gates.items()})
    (ax,) = figures.neurons_per_block(gated).axes
    full, left = ([int(rectangle.get_width()) for rectangle in bars] for bars in ax.containers)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["conv1", *(f"group{i}.{j}" for i in (1, 2, 3) for j in (0, 1))]
    assert full[names.index("group1.1")] == 2 * 16 * 8 * 8
    assert left == [0 if name == "group1.1" else n for name, n in zip(names, full, strict=True)]
    assert [text.get_text().strip() for text in ax.texts] == [f"{n:,}" if n else "eliminated" for n in left]
    assert ax.get_xlabel()


def figure_4() -> bar.GatedNetwork:
    """All of figure 4 in the first block: channel 0 is passed, 1 refined, 5 new; the others are empty."""
    gated = bar.gate(build("wrn-10-1"), SIZE)
    keep = {name: torch.ones_like(gate.alive) for name, gate in gated.gates.items()}
    for name, channels in (("conv1", [0, 1]), ("group1.0.conv2", [1, 5])):
        keep[name][:] = False
        keep[name][channels] = True
    return gated.keep_(keep)


def test_connectivity_tells_passed_refined_and_new():
    gated = figure_4()
    block = residual_blocks(gated.network)[0]
    parts = {part: which.nonzero().flatten().tolist() for part, which in block.parts(gated.live()).items()}
    assert parts == {"passed": [0], "refined": [1], "new": [5]}
    upper, lower = figures.connectivity(gated).axes
    widths = {bars.get_label(): [int(rectangle.get_width()) for rectangle in bars] for bars in lower.containers}
    assert widths == {"passed": [1, 0, 0], "refined": [1, 32, 64], "new": [1, 0, 0]}
    assert [text.get_text() for text in lower.texts] == [" 3", " 32", " 64"]
    assert "group1.0" in upper.get_title(loc="left")
    shown = [text.get_text() for text in upper.texts]
    assert [part for part in figures.PARTS if part in shown] == ["passed", "refined", "new"]
    assert shown.count("$\\times$1") == 3
    looks = [(figures.PARTS[part]["hatch"], sum(to_rgb(figures.PARTS[part]["fc"])) / 3) for part in figures.PARTS]
    greys = sorted(grey for _, grey in looks)
    assert min(np.diff(greys)) > 0.15  # told apart without colour


def test_connectivity_says_which_block_is_gone():
    gated = figure_4()
    gated.gates["group1.0.conv1"].log_alpha.data.fill_(-10.0)
    _, lower = figures.connectivity(gated).axes
    assert [text.get_text() for text in lower.texts] == [" 2 (block gone)", " 32", " 64"]


@pytest.mark.parametrize("name", ["wrn-16-1", "resnet-basic", "resnet-bottleneck"])
@pytest.mark.parametrize("seed", range(3))
def test_chunk_draws_what_is_computed(name, seed):
    """Squares and crosses are as many as the convolutions of the really pruned networks have features."""
    gated = pruned(name, seed)
    blocks = residual_blocks(gated.network)
    for layer in {block.layer for block in blocks}:
        mine = [block for block in blocks if block.layer == layer]
        writers = [mine[0].start.target, *(block.convs[-1].target for block in mine)]
        drawn = figures.chunk(gated, layer, rows=10**6)
        for ax, connectivity in zip(drawn.axes[1:], ("regular", "mixed"), strict=True):
            modules = dict(bar.prune(gated, connectivity).named_modules())
            columns = np.concatenate([line.get_xdata() for line in ax.lines if line.get_marker() in "sX"])
            computed = [modules[name].out_channels if name in modules else 0 for name in writers]
            assert np.bincount(columns.astype(int), minlength=len(writers)).tolist() == computed
        assert len(drawn.axes[0].get_xticklabels()) == len(writers)
        zeros = [line for line in drawn.axes[0].lines if line.get_marker() == "o"]
        squares = [line for line in drawn.axes[0].lines if line.get_marker() == "s"]
        marks = sum(len(line.get_xdata()) for line in zeros + squares)
        assert marks == len(writers) * gated.network.features(mine[0].add)


def test_chunk_draws_a_channel_from_where_it_is_born():
    gated = figure_4()
    figure = figures.chunk(gated, layer=0)
    signals = [line.get_xdata()[0] for line in figure.axes[2].lines if line.get_marker() == "None"]
    assert signals == [0, 0, 1]  # two of the stem, one of the block
    squares = {(int(x), int(y)) for x, y in np.transpose(figure.axes[2].lines[-2].get_data())}
    assert squares == {(0, 0), (0, 1), (1, 0), (1, 2)}
    crosses = {(int(x), int(y)) for x, y in np.transpose(figure.axes[1].lines[-1].get_data())}
    assert crosses == {(1, 1), (0, 2)}
    assert len(figures.chunk(gated, rows=5).axes[0].lines[-1].get_xdata()) <= 10
    with pytest.raises(bar.BarError, match="numbered from 0 to 2"):
        figures.chunk(gated, layer=3)


@pytest.mark.parametrize("name", ["wrn-16-1", "resnet-basic", "resnet-bottleneck"])
def test_block_kinds_names_the_convolutions_and_marks_the_floored(name):
    network = bar.gate(build(name), SIZE).network
    axes = figures.block_kinds(network).axes
    blocks = residual_blocks(network)
    for ax, block in zip(axes, (next(b for b in blocks if bool(b.shortcut) == pool) for pool in (0, 1)), strict=True):
        assert ax.get_title(loc="left").endswith(block.name)
        boxes = {text.get_text().split("\n")[0]: text for text in ax.texts if "\n" in text.get_text()}
        assert set(boxes) == {conv.target[len(block.name) + 1 :] for conv in block.convs + block.shortcut}
        floored = {name for name, text in boxes.items() if text.get_bbox_patch().get_linewidth() > 2}
        assert {f"{block.name}.{name}" for name in floored} == set(network.spine()) & {
            conv.target for conv in block.convs + block.shortcut
        }
        for name, text in boxes.items():
            conv = network.module.get_submodule(f"{block.name}.{name}")
            assert f"{conv.kernel_size[0]}$\\times${conv.kernel_size[1]}" in text.get_text()
            assert ("stride 2" in text.get_text()) == (conv.stride == (2, 2))


def test_draw_shows_the_widths_before_and_after():
    gated = bar.gate(build("wrn-16-1"), (3, 16, 16))
    keep = {name: torch.arange(len(gate.log_alpha)) < 3 for name, gate in gated.gates.items()}
    keep["group3.1.conv1"][:] = False  # this block goes
    gated.keep_(keep)
    ax = figures.draw(gated).axes[0]
    rows = [label.get_text() for label in ax.get_yticklabels()]
    shown = dict(zip(rows, (text.get_text().strip() for text in ax.texts), strict=True))
    assert shown["conv1"] == "3 of 16"
    assert shown["group3.1.conv2"] == "gone"
    assert shown["+ group3.1"] == "3 of 64"
    full, convs, signals = ax.containers
    assert [bar_.get_width() for bar_ in full] == [
        int(text.split()[-1]) if "of" in text else 64 for text in shown.values()
    ]
    assert sum(bar_.get_width() for bar_ in convs) == sum(int(live.sum()) for live in [
        gated.live()[node] for node in gated.network.convs.values()
    ])  # fmt: skip
    assert len(signals) == 6


def panels_of(figure) -> list:
    """Panels with the rows of TIMES that belong into them, sorted by factor."""
    groups = [rows.sort_values("factor", kind="stable") for _, rows in TIMES.groupby(["record", "batch"], sort=False)]
    titles = [" ".join(ax.get_title(loc="left").split()) for ax in figure.axes]
    cpu, gpu = TIMES.record.unique()
    assert titles == [f"{cpu} batch of 1", "batch of 64", f"{gpu} batch of 1", "batch of 64"]
    return list(zip(figure.axes, groups, strict=True))


def drawn(ax) -> dict:
    """Label -> points, of lines with or without error bars."""
    handles, labels = ax.get_legend_handles_labels()
    return {
        label: np.asarray(getattr(handle, "lines", [handle])[0].get_xydata())
        for handle, label in zip(handles, labels, strict=True)
    }


def test_speedups_are_those_of_the_records():
    for ax, rows in panels_of(figures.speedups(TIMES)):
        lines = drawn(ax)
        assert lines.pop("limit: FLOP factor of mixed").tolist() == [[2, 4], [4, 16], [16, 256]]
        assert len(lines) == len(figures.TIMED)
        for name, look in figures.TIMED.items():
            expected = rows[rows.network == name][["factor", "speedup"]]
            np.testing.assert_array_equal(lines[look["label"]], expected)
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_throughput_over_dense_is_that_of_the_records_and_nothing_is_cut_off():
    for ax, rows in panels_of(figures.throughput_over_dense(TIMES, target=0.85)):
        lines = drawn(ax)
        assert set(lines.pop("target: 85 % of dense")[:, 1]) == {85}
        assert set(lines.pop("dense, same FLOPs")[:, 1]) == {100}
        assert set(lines) == {"mixed", "regular", "Torch-Pruning"}
        for container in ax.containers:
            own = rows[rows.network == container.get_label().lower()]
            np.testing.assert_allclose(lines[container.get_label()][:, 1], 100 * own.throughput_over_dense)
            (bars,) = container.lines[2]
            ends = np.array([segment[:, 1] for segment in bars.get_segments()])
            middle = 100 * own.throughput_over_dense.to_numpy()
            np.testing.assert_allclose(ends, np.column_stack([middle - 2, middle + 5]))
            assert ax.get_ylim()[0] <= ends.min() < ends.max() <= ax.get_ylim()[1]


def test_where_time_went_adds_up_to_all_of_it():
    networks = TIMES[TIMES.network.isin(["mixed", "dense"])]
    for ax, rows in panels_of(figures.where_time_went(networks)):
        rows = rows[rows.network.isin(["mixed", "dense"])]
        assert [tick.get_text() for tick in ax.get_yticklabels()] == [
            f"{name}, {factor}x" for factor in (2, 4, 16) for name in ("mixed", "dense")
        ]
        pieces = [rows.ms_if_flops_were_time, rows.ms_slower_convolutions, rows.ms_more_of_the_rest]
        for container, piece in zip(ax.containers, pieces, strict=True):
            np.testing.assert_allclose([bar.get_width() for bar in container], 100 * piece / sum(pieces))
        for left, right in zip(ax.containers, ax.containers[1:], strict=False):  # each begins where the last one ends
            np.testing.assert_allclose(
                [bar.get_x() for bar in right], [bar.get_x() + bar.get_width() for bar in left], atol=1e-9
            )
        np.testing.assert_allclose([bar.get_x() + bar.get_width() for bar in ax.containers[-1]], 100)


def test_where_time_went_draws_what_takes_less_than_its_share_left_of_0():
    row = TIMES[TIMES.network == "dense"].head(1)
    row = row.assign(ms_if_flops_were_time=6.0, ms_slower_convolutions=8.0, ms_more_of_the_rest=-4.0)
    (ax,) = figures.where_time_went(row).axes
    bars = [container[0] for container in ax.containers]
    ends = [sorted((bar.get_x(), bar.get_x() + bar.get_width())) for bar in bars]
    np.testing.assert_allclose(ends, [(0, 60), (60, 140), (-40, 0)], atol=1e-9)
    assert ax.get_xlim()[0] <= -40
    assert ax.get_xlim()[1] >= 140


def test_following_draws_every_seed_in_the_panel_of_its_factor():
    figure = figures.following(FOLLOWED)
    panels = [ax for ax in figure.axes if ax.axison]
    titles = [ax.get_title(loc="left").split("\n") for ax in panels]
    expected = [(name, factor) for name in FOLLOWED.name.unique() for factor in (4, 16)][:-1]
    assert [factor for _, factor in titles] == [f"{factor}x: cut {factor:.1f}, end 98.1" for _, factor in expected]
    assert [name for name, _ in titles] == [name if factor == 4 else "" for name, factor in expected]
    for ax, (name, factor) in zip(panels, expected, strict=True):
        rows = FOLLOWED[(FOLLOWED.name == name) & (FOLLOWED.factor == factor)]
        (b,) = (labelled(ax, "$b$"),)
        np.testing.assert_array_equal(b.get_xydata(), rows[rows.seed == 5][["time", "budget"]])
        assert set(labelled(ax, "$B$").get_ydata()) == {1 / factor}
        runs = [line for line in ax.lines if line not in (b, labelled(ax, "$B$"))]
        assert len(runs) == len(ax.collections) == 2
        for line, band, seed in zip(runs, ax.collections, (5, 6), strict=True):
            own = rows[rows.seed == seed]
            np.testing.assert_array_equal(line.get_xydata(), own[["time", "size"]])
            bounds = {tuple(point) for point in band.get_paths()[0].vertices}
            assert bounds >= set(zip(own.time, own.size_min, strict=True)) | set(
                zip(own.time, own.size_max, strict=True)
            )
        low, high = ax.get_ylim()
        assert low < rows.size_min.min() <= rows.size_max.max() < high
        assert ax.get_ylim() == panels[factor == 16].get_ylim()
        assert f"1/{factor}" in [tick.get_text() for tick in ax.get_yticklabels()]


def test_following_one_run_without_a_note():
    run = FOLLOWED[(FOLLOWED.name == "start") & (FOLLOWED.factor == 4) & (FOLLOWED.seed == 5)].drop(columns="note")
    (ax,) = figures.following(run, unit="step").axes
    assert (ax.get_title(loc="left"), ax.get_xlabel()) == ("start\n4x", "step of the pruning")
    assert labelled(ax, "$V$").get_ydata().tolist() == run["size"].tolist()


def test_following_two_variants_in_a_panel():
    """Two settings are told apart by colour, dash and legend; what the first panel lacks is in the legend, too."""
    of_start = FOLLOWED[(FOLLOWED.name == "start") & (FOLLOWED.seed == 5)].drop(columns="note")
    other = of_start[of_start.factor == 16].assign(variant="other", size=of_start["size"] / 2)
    third = other.assign(name="third", variant="other")
    figure = figures.following(pd.concat([of_start.assign(variant="quick"), other, third]))
    alone, both, last = (ax for ax in figure.axes if ax.axison)
    assert labelled(last, "$V$, other").get_color() == labelled(both, "$V$, other").get_color()
    assert [len(ax.collections) for ax in (alone, both)] == [1, 2]
    halved = labelled(both, "$V$, other")
    np.testing.assert_array_equal(halved.get_xydata(), other[["time", "size"]])
    mine = labelled(both, "$V$, quick")
    assert mine.get_color() != halved.get_color()
    assert mine.get_linestyle() != halved.get_linestyle()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["$V$, quick", "$b$", "$B$", "$V$, other"]


def test_following_a_network_that_lets_no_signal_through():
    run = FOLLOWED[(FOLLOWED.name == "start") & (FOLLOWED.factor == 4) & (FOLLOWED.seed == 5)].copy()
    lowest = run.size_min.iloc[1:].min()
    run.iloc[0, run.columns.get_indexer(["size", "size_min", "size_max"])] = 0.0
    (ax,) = figures.following(run).axes
    assert 0 < ax.get_ylim()[0] < min(lowest, 1 / 4)


def test_following_nothing():
    with pytest.raises(bar.BarError, match="no recorded run"):
        figures.following(FOLLOWED[:0])


def test_seconds_per_epoch_are_those_of_the_records():
    figure = figures.seconds_per_epoch(SECONDS)
    for ax, (record, rows) in zip(figure.axes, SECONDS.groupby("record", sort=False), strict=True):
        assert " ".join(ax.get_title(loc="left").split()) == record
        lines = drawn(ax)
        assert set(lines) == set(figures.TRAININGS)
        for name, points in lines.items():
            np.testing.assert_array_equal(points, rows[rows.training == name][["time", "seconds"]])
        starts = [line.get_xdata()[0] for line in ax.lines if line.get_label() not in lines]
        assert starts == [3.5, 4.5]  # three epochs of pruning, one of fine-tuning
        assert [text.get_text() for text in ax.texts] == ["tune", "cool"]
        assert ax.get_ylim()[0] == 0
        assert ax.get_ylim()[1] > rows.seconds.max()


@pytest.mark.parametrize(
    "draw", [figures.speedups, figures.throughput_over_dense, figures.where_time_went, figures.seconds_per_epoch]
)
def test_no_times_to_draw(draw):
    with pytest.raises(bar.BarError, match="no measured time"):
        draw(TIMES[:0])
