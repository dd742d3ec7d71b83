"""Write the README's numbers anew, from the records: ``python docs/readme_numbers.py`` (``--check`` only compares).

Each part between ``<!-- numbers: NAME -->`` and ``<!-- end -->`` is what the function of that name returns. The numbers
of the chapter on claims need no such script: they are computed whenever the book is built.
"""

import difflib
import json
import re
import sys
import textwrap
from pathlib import Path

import pandas as pd

from bar import methods, runs
from bar.runs import compare

ROOT = Path(__file__).parent.parent
PART = re.compile(r"(<!-- numbers: (\w+) -->\n)(?:(?!<!-- ).)*(<!-- end -->)", re.DOTALL)
DIGITS, PHOTOGRAPHS = ROOT / "results/digits", ROOT / "results/photographs"
UNTAUGHT = "bar, distill False"
ORDER = ("bar", UNTAUGHT, "uniform", "morphnet", "l0", "information-bottleneck", "magnitude", "random")
PARTS = {  # variant of bench/ablation.py -> what is missing in it
    "log barrier": "barrier of eq. 5 (but a log barrier)", "equal starts": "spread starts (but equal ones)",
    "no distillation": "teacher", "linear schedule": "sigmoid schedule (but a linear one)",
}  # fmt: skip
ORDER += tuple(method for method in methods.STRUCTURED if method not in ORDER)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = ["|" + "---|" * len(columns), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([f"| {' | '.join(columns)} |", *lines, ""])


def wrapped(words: str) -> str:
    """A paragraph in lines of the README's length."""
    return textwrap.fill(" ".join(words.split()), 118, break_long_words=False, break_on_hyphens=False) + "\n"


def recorded(folder: Path) -> pd.DataFrame:
    """The runs of a folder that can be compared; they are on one footing."""
    footings = compare.by_footing(runs.records(folder))
    return next(iter(footings.values())) if footings else pd.DataFrame()


def of_bar(found: pd.DataFrame) -> str:
    """What BAR's networks came to, factor by factor."""
    rows = []
    for factor, part in found[found.variant == "bar"].groupby("pruning_factor"):
        numbers = [f"{factor:g}", f"{part.flops_factor.mean():.1f}", str(len(part))]
        numbers += [f"{100 * part[name].mean():.2f} %" for name in ("accuracy_unpruned", "accuracy")]
        rows.append([*numbers, compare.mean_change(part.change)])
    return table(["Volume factor", "FLOP factor", "Seeds", "Unpruned", "Pruned", "Change (points)"], rows)


def of_rivals(found: pd.DataFrame) -> str:
    """What every method's networks lost, factor by factor; which ones BAR is told from, better or worse."""
    factors, rows = sorted(found[found.variant.isin(ORDER)].pruning_factor.unique()), []
    names = {}
    for method in ORDER:
        names[method] = "BAR, no teacher" if method == UNTAUGHT else compare.short(method)
        names[f"{method}, distill True"] = f"{names[method]}, with a teacher"
    for method in (variant for variant in names if (found.variant == variant).any()):
        row, leads = [names[method]], compare.ahead(found, "bar", method) if method != "bar" else {}
        for factor in factors:
            change = compare.changes_of(found, method, factor)
            said = {"holds": " ▼", "does not hold": " ▲"}.get(compare.verdict(leads[factor])) if factor in leads else ""
            row.append(f"{compare.mean_change(change)} ({len(change)}){said or ''}" if len(change) else "")
        rows.append(row)
    return table(["Change in points (seeds)", *(f"{factor:g}x" for factor in factors)], rows)


def digits() -> str:
    """BAR on the digits."""
    return of_bar(recorded(DIGITS))


def digits_rivals() -> str:
    """Its rivals on the digits."""
    return of_rivals(recorded(DIGITS))


def photographs() -> str:
    """All methods on photographs."""
    found = recorded(PHOTOGRAPHS)
    full = found[found.variant == "unpruned"].accuracy
    untaught = f"""Without its teacher, too, BAR is {compare.told_apart(found, UNTAUGHT)}; from the others it cannot be
        told."""
    uniform = f"""`uniform`, BAR aside, is {compare.told_apart(found, "uniform")}."""
    gains = compare.gains_of_teachers(found)
    taught = f"What a teacher gives rivals, in points: {gains}." if gains else ""
    unpruned = f"Unpruned: {100 * full.mean():.1f} % of the test images, mean over {len(full)} seeds."
    return f"{of_rivals(found)}\n{wrapped(f'{untaught} {uniform} {taught}')}\n{unpruned}\n"


def parts() -> str:
    """What each part of the method keeps on photographs."""
    noted = list(compare.recorded(ROOT / "results/following", "cifar10-jpeg-*").values())
    (found,) = compare.parts_tables(noted, PARTS).values()
    rows = [[PARTS[part], *(text.replace(" *", " ▲") for text in row)] for part, *row in found.itertuples()]
    twice, _ = compare.by_factor(compare.made_twice(noted, recorded(PHOTOGRAPHS)))
    words = f"""The trainings with all parts are BAR's runs above, made once more: at 4x on the same kind of processor,
        which repeats them bit by bit, at 16x on another, where they end as with other seeds. In points against those
        runs, on the validation images: {twice}. So at 16x the teacher is told by one set of five, in the table above,
        and not by the other."""
    return table(["Points lost without (seeds)", *found.columns], rows) + "\n" + wrapped(words)


def compared() -> str:
    """What the networks of BAR and of equal widths take, at each factor, and which are faster."""
    one = json.loads((ROOT / "results/bench/compared-cpu.json").read_text())
    setup, frame = one["setup"], pd.json_normalize(one["records"])
    frame = frame[(frame.method != "bar") | frame.distill]
    means = frame.groupby(["pruning_factor", "method"])[["flops", "latency_ms.median"]].mean()
    at = []
    for factor in sorted(frame.pruning_factor[frame.method == "bar"].unique()):
        flops = means.flops[factor, "bar"] / means.flops[factor, "uniform"]
        mine, its = (means["latency_ms.median"][factor, name] for name in ("bar", "uniform"))
        took = f"{'slower' if mine > its else 'nevertheless faster'}, {mine:.1f} ms against {its:.1f}"
        at.append(f"{flops:.1f} times as many at {factor:g}x ({took})")
    others, ranges = ["l0", "information-bottleneck", "morphnet"], []
    for factor, those in means.flops[means.index.isin(others, level="method")].groupby(level=0):
        ratios = means.flops[factor, "bar"] / those
        ranges.append(f"{ratios.min():.1f} to {ratios.max():.1f} times as many at {factor:g}x")
    words = f"""Equal volume is not equal work: BAR's networks have more FLOPs than those of equal widths, which
        `uniform`, WM, Random, VQ and ID have: {", ".join(at)}; where whole blocks are gone, less has to be called. And
        more than those of {", ".join(map(compare.short, others))}: {", ".join(ranges)}; at equal FLOPs, nothing is
        recorded on photographs. One thread, batch of {setup["batch"]}, unpruned
        {means["latency_ms.median"][1.0, "unpruned"]:.1f} ms ([record](results/bench/compared-cpu.json), `python
        bench/compared.py`)."""
    return wrapped(words)


def latency() -> str:
    """Milliseconds of pruned networks."""
    records = json.loads((ROOT / "results/bench/latency-cpu.json").read_text())["records"]
    frame = pd.DataFrame([one for one in records if one["batch"] == 64])
    median = frame.assign(ms=[one["median"] for one in frame.latency_ms]).set_index(["factor", "network"]).ms
    rows = [
        [f"{factor:g}", f"{median[factor, 'unpruned']:.0f}"]
        + [f"{median[factor, name]:.1f}" for name in ("regular", "mixed", "dense")]
        for factor in sorted(frame.factor.unique())
    ]
    columns = ["Volume factor", "Unpruned", "Regular surgery", "Mixed surgery", "Dense network of the same FLOPs"]
    return table(columns, rows)


def training() -> str:
    """How long a training takes."""
    one = json.loads((ROOT / "results/bench/training-cpu.json").read_text())
    ratio, setup = one["ratio"], one["setup"]
    words = f"""And training? {setup["model"].upper()} on the digits, factor {setup["factor"]:g}, 40 epochs in turn with
        the unpruned network, one CPU thread ([record](results/bench/training-cpu.json), `python
        bench/training.py`): gates and barrier add {100 * one["overhead"]:.0f} % to a distilled step; all of BAR's
        training takes {ratio["cut while training"]:.2f} of the unpruned network's time when dead features are cut out
        on the way, as `bar run` does, and {ratio["cut at the end"]:.2f} when they are not. The teacher's forward passes
        are counted, its own training is not: it comes on top where there is no trained network yet."""
    return wrapped(words)


def public_networks() -> str:
    """How many public networks are gated, how much they lose, and how exact they are."""
    one = json.loads((ROOT / "results/bench/networks.json").read_text())
    nets = pd.DataFrame(one["networks"])
    refused, gated = nets.before == "refused", nets[nets.gated]
    mine, part = gated[gated.before == "refused"], gated.error / gated.moved
    words = f"""`bench/networks.py` tries {len(nets)} public ones. Of {refused.sum()} that an earlier version refused,
        [{len(mine)} are gated](results/bench/networks.json), and {(mine.lost >= 0.25).sum()} of these lose a quarter or
        more of their volume when {100 * one["shut"]:.0f} % of their gates are shut; of the other {(~refused).sum()},
        {len(gated) - len(mine)} are gated. Each of them, pruned, computes what the gated one does, to
        {gated.error.max():.1e} in float64, and to {part.max():.1e} of what the shut gates change
        (measured at commit {one["commit"][:7]})."""
    return wrapped(words)


WRITERS = {
    one.__name__: one
    for one in (digits, digits_rivals, photographs, parts, compared, latency, training, public_networks)
}


def rewritten(text: str) -> str:
    """A text with its parts written anew."""
    return PART.sub(lambda part: f"{part[1]}\n{WRITERS[part[2]]()}\n{part[3]}", text)


def main() -> None:
    """Write the README, or compare."""
    path = ROOT / "README.md"
    before = path.read_text("utf-8")
    after = rewritten(before)
    if sys.argv[1:] == ["--check"]:
        changes = difflib.unified_diff(before.splitlines(), after.splitlines(), "README.md", "the records", lineterm="")
        sys.exit("\n".join(changes) or 0)
    path.write_text(after, "utf-8")


if __name__ == "__main__":
    main()
