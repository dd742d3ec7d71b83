"""Grade, with nbgrader, submissions whose points are known beforehand."""

import os
import re
import resource
import shutil
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import masters
import nbformat
from nbformat import NotebookNode
from nbgrader.apps import NbGraderAPI
from right_answers import RIGHT
from traitlets.config.loader import Config, PyFileConfigLoader
from troubles import TROUBLES
from wrong_answers import WRONG

# A cell that prints, on Linux, what the kernel has needed (`getrusage` counts the process that it was forked from, too)
STATUS = """from pathlib import Path

if Path("/proc/self/status").exists():
    print(Path("/proc/self/status").read_text("utf-8"))"""


@dataclass
class Proof:
    """What came of one assignment.

    Attributes
    ----------
    name : str
        The assignment.
    points, by_hand : int
        Points of the tests, and of what a teacher reads.
    graded : list of dict
        A line for each submission: ``who``, ``points`` of the tests, the tests that were ``lost``, ``cpu`` and ``wall``
        seconds, what it ``says`` of each, and ``as_expected``.
    faults : list of str
        Whatever is not as it should be, a line each.
    memory : float
        The largest resident memory of the master's kernel, in MB; 0 where the system is not Linux.
    """

    name: str
    points: int
    by_hand: int
    graded: list[dict] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    memory: float = 0.0


def api(root: Path) -> NbGraderAPI:
    """nbgrader, with the configuration of the course in a folder."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it calls `alembic`
    config = PyFileConfigLoader("nbgrader_config.py", path=str(root)).load_config()
    config.merge(Config({"NbGraderAPI": {"log_level": "WARN"}}))
    return NbGraderAPI(config=config)


class Class:
    """The students of one assignment, in a course of their own.

    Parameters
    ----------
    course : Path
        The folder of the released course; it is copied.
    root : Path
        Where to.
    name : str
        The assignment.
    """

    def __init__(self, course: Path, root: Path, name: str) -> None:
        shutil.copytree(course, root)
        self.root, self.name, self.nbgrader = root, name, api(root)
        self.master = masters.read(root / "source", name)
        self.release = masters.read(root / "release", name)
        self.proof = Proof(name, sum(masters.tests(self.master).values()), sum(masters.written(self.master).values()))

    def grade(self, who: str, notebook: NotebookNode | None, lost: tuple[str, ...] | None) -> None:
        """Grade a submission, and note whether it lost the points of these tests and no others.

        Parameters
        ----------
        who : str
            What kind of submission it is.
        notebook : NotebookNode, optional
            What is handed in; none if the file is missing.
        lost : tuple of str, optional
            The tests, without "test_"; none if nbgrader has to refuse the submission.
        """
        student = _student(who)
        folder = self.root / "submitted" / student / self.name
        folder.mkdir(parents=True)
        if notebook is not None:
            nbformat.write(notebook, folder / f"{self.name}.ipynb")
        before, start = _cpu(), time.perf_counter()
        result = self.nbgrader.autograde(self.name, student)
        line = {"who": who, "cpu": round(_cpu() - before, 1), "wall": round(time.perf_counter() - start, 1)}
        if lost is None:
            line |= {"points": 0, "lost": ["everything"], "as_expected": not result["success"]}
        else:
            scores = self.scores(student) if result["success"] else {}
            points = masters.tests(self.master)
            missing = {name for name, most in points.items() if scores.get(name, 0) != most}
            expected = {"test_" + name for name in lost}
            line |= {"points": sum(scores.get(name, 0) for name in points), "lost": sorted(missing)}
            line["as_expected"] = missing == expected
            line["says"] = self.says(student, missing) if result["success"] else {}
        if not line["as_expected"]:
            expected = "a refusal" if lost is None else list(lost)
            self.proof.faults.append(f"{self.name}: {who!r} lost {line['lost']}, {expected} was expected")
        self.proof.graded.append(line)

    def scores(self, student: str) -> dict[str, float]:
        """What the tests gave a student, by their names; written answers, too, as far as they are graded."""
        with self.nbgrader.gradebook as book:
            notebook = book.find_submission_notebook(self.name, self.name, student)
            return {grade.name: grade.auto_score or 0 for grade in notebook.grades}

    def memory(self, student: str) -> int:
        """The largest resident memory of the kernel, in MB, as the last cell has printed it."""
        cell = masters.read(self.root / "autograded" / student, self.name).cells[-1]
        printed = "".join(output.get("text", "") for output in cell.outputs)
        found = re.search(r"VmHWM:\s+(\d+) kB", printed)
        return round(int(found[1]) / 1000) if found else 0

    def says(self, student: str, lost: set[str]) -> dict[str, str]:
        """What the student reads about each lost test: the first line of its error."""
        notebook = masters.read(self.root / "autograded" / student, self.name)
        says = {}
        for cell in notebook.cells:
            errors = [output for output in cell.get("outputs", []) if output.output_type == "error"]
            if errors and masters.graded(cell).get("grade_id") in lost:
                kind, text = errors[0].ename, errors[0].evalue.split("\n")[0]
                says[cell.metadata.nbgrader.grade_id] = text if kind == "AssertionError" else f"{kind}: {text}"
        return says

    def check_feedback(self) -> None:
        """Make the pages of feedback: they need no network, show no secret, and say what was expected."""
        self.nbgrader.generate_feedback(self.name)
        for line in self.proof.graded:
            if line["lost"] == ["everything"]:
                continue
            path = self.root / "feedback" / _student(line["who"]) / self.name / f"{self.name}.html"
            page = path.read_text("utf-8") if path.exists() else ""
            wrong = f"{self.name}: the feedback for {line['who']!r}"
            expected = [masters.cell_of(self.master, name).source.split(":")[0].lstrip("# ") for name in line["lost"]]
            if not page or not all(text in page for text in expected):
                self.proof.faults.append(f"{wrong} does not say what was expected")
            if any(mark in page for mark in ("src=", "href=", "@import", "HIDDEN TESTS")):
                self.proof.faults.append(f"{wrong} needs other files, or shows tests")
            if line["who"] == "empty" and any(secret in page for secret in masters.secrets(self.master)):
                self.proof.faults.append(f"{wrong} shows what is secret")


def prove(course: Path, root: Path, name: str, everything: bool = True) -> dict:
    """Grade the master, other right answers, an empty submission, typical wrong ones, and what goes wrong otherwise.

    Parameters
    ----------
    course : Path
        The released course.
    root : Path
        An empty folder for the copy in which it is graded.
    name : str
        The assignment.
    everything : bool
        If not, the master, the empty one and two wrong answers only.

    Returns
    -------
    dict
        A `Proof`.
    """
    warnings.filterwarnings("ignore", module="nbgrader|nbformat")  # of theirs, about themselves
    one = Class(course, root / name, name)
    answered = lambda: masters.answered(one.release, one.master)  # noqa: E731
    master = answered()
    master.cells.append(nbformat.v4.new_code_cell(STATUS))
    one.grade("master", master, ())
    one.proof.memory = one.memory("master")
    one.grade("empty", one.release, tuple(test.removeprefix("test_") for test in masters.tests(one.master)))
    if any(one.scores("empty").values()):
        one.proof.faults.append(f"{name}: an empty submission is given points")
    for wrong in WRONG[name] if everything else WRONG[name][:2]:
        one.grade(wrong.title, wrong.applied(answered()), wrong.loses)
    if everything:
        for title, cells in RIGHT[name].items():
            one.grade(title, masters.filled(one.release, cells), ())
        for title, spoil in TROUBLES.items():
            notebook = answered()
            lost = spoil(notebook, name)
            one.grade(title, notebook, lost)
        one.grade("missing file", None, None)
    if sum(one.scores("master")[test] for test in masters.tests(one.master)) != one.proof.points:
        one.proof.faults.append(f"{name}: what others handed in has changed the points of the master")
    one.check_feedback()
    biggest = max((path.stat().st_size for path in (root / name / "autograded").rglob("*.ipynb")), default=0)
    if biggest > 1_000_000:
        one.proof.faults.append(f"{name}: a graded notebook has {biggest:,} bytes")
    return asdict(one.proof)


def _student(who: str) -> str:
    """A name that nbgrader takes for a student's."""
    return re.sub(r"\W+", "_", who).strip("_")


def _cpu() -> float:
    """Seconds of CPU that this process and those that it waited for have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
