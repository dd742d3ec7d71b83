"""How long trainings take, from the records of ``bench/training.py``: chapter 12."""

from collections.abc import Mapping, Sequence

import pandas as pd

from bar.runs.compare.words import short_commit


def seconds_of_epochs(timed: Mapping[str, Mapping]) -> pd.DataFrame:
    """Return seconds of every epoch of timed trainings, as `bar.figures.seconds_per_epoch` draws them; may be empty."""
    rows = []
    for name, one in timed.items():
        setup = one["setup"]
        record = f"{name}: {setup['model']}, factor {setup['factor']:g}, {setup['hardware']}, "
        record += f"load {setup['load_at_start']:g}, commit {short_commit(setup['commit'])}"
        for training, epochs in one["epochs"].items():
            for i, epoch in enumerate((epoch for epoch in epochs if epoch["phase"] != "cut"), start=1):
                row = {"record": record, "training": training, "time": i}
                rows.append(row | {"phase": epoch["phase"], "seconds": epoch["seconds"]})
    return pd.DataFrame(rows)


def steps_table(timed: Mapping[str, Mapping]) -> pd.DataFrame:
    """Return median milliseconds of one step, and shares: a column a record."""
    table = (1000 * pd.DataFrame({name: one["steps"] for name, one in timed.items()})).map("{:.2f}".format)
    table.loc["overhead of gates and barrier"] = [f"{one['overhead']:+.1%}" for one in timed.values()]
    table.loc["teacher's forward, of an unpruned step"] = [f"{one['teacher_share']:.1%}" for one in timed.values()]
    return table


def whole_trainings(one: Mapping, wanted: Sequence[float]) -> pd.DataFrame:
    """Return seconds of the timed trainings of one record, and whether BAR that cuts early meets ``wanted`` ratios."""
    rows = []
    for training, seconds in one["seconds"].items():
        ratio = one["ratio"][training]
        answers = [("yes" if ratio <= most else "no") if "while" in training else "" for most in wanted]
        accuracy = f"{100 * one['epochs'][training][-1]['accuracy']:.1f}"
        rows.append([training, f"{seconds:.1f}", f"{ratio:.2f}", *answers, accuracy])
    columns = ["training", "seconds", "of unpruned", *(f"≤ {most:g}?" for most in wanted), "validation accuracy (%)"]
    return pd.DataFrame(rows, columns=columns).set_index("training")
