"""The tables of the proof; `python assignments/showing.py` writes those of the record into the instructor's guide."""

import json
import re
from pathlib import Path

from masters import NAMES
from right_answers import RIGHT
from troubles import TROUBLES

from bar import files

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results" / "course" / "proof.json"
GUIDE = ROOT / "book" / "grading.md"
TABLE = re.compile(r"(<!-- (\w+): from the record -->\n).*?(\n<!-- end -->)", re.DOTALL)


def _kind(name: str, who: str) -> str:
    """What kind of submission a line is about."""
    if who in RIGHT[name]:
        return "right"
    return "trouble" if who in (*TROUBLES, "missing file") else "wrong"


def table(proofs: list[dict]) -> str:
    """What came of the proof, as a table in Markdown: a line for each assignment."""
    lines = [
        "| Assignment | Tests, by hand | Master, empty | Other right answers | Wrong | Trouble | CPU s | Memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for proof in proofs:
        by_name = {line["who"]: line for line in proof["graded"]}
        kinds = {"right": [], "trouble": [], "wrong": []}
        for who, line in by_name.items():
            if who not in ("master", "empty"):
                kinds[_kind(proof["name"], who)].append(line["as_expected"])
        lines.append(
            f"| {proof['name']} | {proof['points']}, {proof['by_hand']} "
            f"| {by_name['master']['points']:g}, {by_name['empty']['points']:g} "
            f"| {sum(kinds['right'])} of {len(kinds['right'])} with all points "
            f"| {sum(kinds['wrong'])} of {len(kinds['wrong'])} as expected "
            f"| {sum(kinds['trouble'])} of {len(kinds['trouble'])} as expected "
            f"| {by_name['master']['cpu']:.0f}, {max(line['cpu'] for line in by_name.values()):.0f} "
            f"| {proof['memory']:.0f} MB |"
        )
    return "\n".join(lines)


def errors(proofs: list[dict]) -> str:
    """The typical wrong answers as a table in Markdown: what they cost, and what the student reads."""
    lines = ["| Assignment | Wrong answer | Costs | What the student reads first |", "|---|---|---|---|"]
    for proof in proofs:
        for line in proof["graded"]:
            if line["who"] in ("master", "empty") or _kind(proof["name"], line["who"]) != "wrong":
                continue
            lost = ", ".join(name.removeprefix("test_").replace("_", " ") for name in line["lost"])
            says = (line["says"].get(line["lost"][0]) or "").replace("|", "\\|").replace("$", "\\$")
            cost = f"{proof['points'] - line['points']:g}: {lost}"
            lines.append(f"| {proof['name'][:2]} | {line['who']} | {cost} | {says} |")
    return "\n".join(lines)


def made(proofs: list[dict]) -> str:
    """How the record came about, in a sentence."""
    lines = [line for proof in proofs for line in proof["graded"]]
    cpu, wall = (sum(line[what] for line in lines) / 60 for what in ("cpu", "wall"))
    missing = sorted(set(NAMES) - {proof["name"] for proof in proofs})
    places = " and ".join(sorted({f"{proof['hardware']}, PyTorch {proof['torch']}" for proof in proofs}))
    return (
        f"The {len(lines)} submissions took {cpu:.0f} minutes of processor time, and {wall:.0f} by the clock, added up "
        f"({places})." + (f" Not recorded yet: {', '.join(missing)}." if missing else "")
    )


def record(proofs: list[dict]) -> None:
    """Put these proofs in the place of those of the same assignments in the record."""
    kept = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else []
    named = {proof["name"]: proof for proof in [*kept, *proofs]}
    RECORD.parent.mkdir(exist_ok=True)
    text = json.dumps([named[name] for name in sorted(named)], indent=1, ensure_ascii=False)
    files.write_text(RECORD, text + "\n")


def guide(text: str, proofs: list[dict]) -> str:
    """The guide with the tables of a record."""
    parts = {"table": table(proofs), "errors": errors(proofs), "made": made(proofs)}
    return TABLE.sub(lambda match: match[1] + "\n" + parts[match[2]] + "\n" + match[3], text)


if __name__ == "__main__":
    files.write_text(GUIDE, guide(GUIDE.read_text("utf-8"), json.loads(RECORD.read_text("utf-8"))))
