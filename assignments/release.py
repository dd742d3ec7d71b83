"""Make the student versions of the assignments, and prove that they can be graded: `make assignments`, or
`python assignments/release.py --help`.
"""

import multiprocessing
import shutil
import sys
import tempfile
import tomllib
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import click
import leaking
import masters
import nbformat
import proving
import showing
import torch
from variants import vary

from bar import BarError, machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = HERE / "_build"
# what the notebooks import; those that import the package need what it needs, too
NEEDS = {"04_training": None, "06_comparison": ["numpy", "pandas", "scipy"]}
README = """{name}

1. Make an environment and install what the assignment needs (Python 3.11 or newer):

       python3 -m venv env
       env/bin/pip install -r requirements.txt         (Windows: env\\Scripts\\pip)

   {torch}
2. Start JupyterLab in this folder: env/bin/jupyter lab {name}.ipynb
3. Before you hand in {name}.ipynb: "Restart kernel and run all cells".

In Colab: open {name}.ipynb, upload {name}.zip with the folder symbol on the left, and run the cells from the top.
"""
TORCH = """PyTorch's CPU build is enough, and smaller by some GB. To have it, install it first: choose "Pip" and "CPU"
   at https://pytorch.org/get-started/locally and run the command that is shown there."""


def release(root: Path, seed: int) -> dict[str, dict[str, str]]:
    """Make a course for nbgrader, with the student versions, in an empty folder.

    Parameters
    ----------
    root : Path
        The folder.
    seed : int
        Of the parameters; 0 leaves those of the masters.

    Returns
    -------
    dict of str to dict
        The parameters that were set in each assignment.

    Raises
    ------
    BarError
        If nbgrader fails, or if something of a solution or a hidden test is in a student version.
    """
    for name in ("nbgrader_config.py", "cutting.py", "limiting.py"):
        shutil.copy(HERE / name, root / name)
    shutil.copytree(HERE / "templates", root / "templates")
    shutil.copytree(HERE / "source", root / "source", ignore=shutil.ignore_patterns(".*"))
    chosen = {}
    for name in masters.NAMES:
        notebook = masters.read(root / "source", name)
        chosen[name] = vary(notebook, name, seed)
        nbformat.write(notebook, root / "source" / name / f"{name}.ipynb")
    nbgrader = proving.api(root)
    for name in masters.NAMES:
        result = nbgrader.generate_assignment(name)
        if not result["success"]:
            raise BarError(f"nbgrader did not make the student version of {name}: {result['log']}")
    found = [leak for name in masters.NAMES for leak in leaking.leaks(root, name)]
    if found:
        raise BarError(f"a student version gives something away: {'; '.join(found)}")
    return chosen


def zipped(course: Path, name: str, folder: Path) -> Path:
    """Pack what a student needs into a zip: the notebook, its data, the requirements, the package if it is used.

    Parameters
    ----------
    course : Path
        The released course.
    name : str
        The assignment.
    folder : Path
        Where the zip goes.

    Returns
    -------
    Path
        The zip; everything in it lies in a folder with the name of the assignment.
    """
    requirements = NEEDS.get(name, ["torch", "numpy"])
    content = {path.name: path.read_bytes() for path in sorted((course / "release" / name).iterdir())}
    if requirements is None:
        requirements = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
        package = ROOT / "src" / "bar"
        for path in sorted([*package.rglob("*.py"), *package.rglob("*.csv")]):
            content[f"bar/{path.relative_to(package).as_posix()}"] = path.read_bytes()
    if name == "06_comparison":  # it points to how the runs came about
        content["about_the_runs.txt"] = (ROOT / "results" / "README.md").read_bytes()
    uses_torch = any(requirement.startswith("torch") for requirement in requirements)
    about_torch = TORCH if uses_torch else "PyTorch is not needed."
    content["README.txt"] = README.format(name=name, torch=about_torch).encode()
    content["requirements.txt"] = "\n".join([*requirements, "jupyterlab", ""]).encode()
    path = folder / f"{name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, data in content.items():
            archive.writestr(zipfile.ZipInfo(f"{name}/{file}"), data, zipfile.ZIP_DEFLATED)
    return path


def prove(course: Path, names: tuple[str, ...], everything: bool, jobs: int) -> Iterator[dict]:
    """`proving.prove` for each assignment, some at a time, each in a process of its own; as they are done."""
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool,
    ):
        order = sorted(names, key=lambda name: name != "04_training")  # the longest one first
        waiting = [pool.submit(proving.prove, course, Path(scratch), name, everything) for name in order]
        for done in as_completed(waiting):
            yield done.result()


@click.command(help="Make the student versions of the assignments, and prove that they can be graded.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Other budgets and seeds; 0: those of the masters.")
@click.option("--out", type=click.Path(path_type=Path), default=BUILD, help="The folder to make.", show_default=True)
@click.option("--only", type=click.Choice(masters.NAMES), multiple=True, help="Prove this assignment only.")
@click.option("--brief", is_flag=True, help="Grade the master, an empty submission and two wrong answers only.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="So many at a time.")
@click.option("--record", is_flag=True, help="Put what came of it into the record that the guide shows.")
def main(seed: int, out: Path, only: tuple[str, ...], brief: bool, jobs: int, record: bool) -> None:
    course, students = out.resolve() / "course", out.resolve() / "students"
    for folder in (course, students):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    chosen = release(course, seed)
    for name in masters.NAMES:
        path = zipped(course, name, students)
        parameters = ", ".join(f"{parameter} = {value}" for parameter, value in chosen[name].items())
        print(f"{name}: no leak; {path} {parameters}", flush=True)
    made = {"seed": seed, "hardware": machine.hardware(), "commit": machine.commit(), "torch": torch.__version__}
    proofs = []
    for proof in prove(course, only or masters.NAMES, not brief, jobs):
        print(f"{proof['name']}: {len(proof['graded'])} submissions graded", *proof["faults"], sep="\n  ", flush=True)
        proofs.append(proof)
        if record and not proof["faults"]:
            showing.record([proof | made])
    print("\n" + showing.table(sorted(proofs, key=lambda proof: proof["name"])))
    faults = [fault for proof in proofs for fault in proof["faults"]]
    if faults:
        raise BarError("; ".join(faults))
    print(f"\nthe course for nbgrader is in {course}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="nbgrader|nbformat")  # of theirs, about themselves
    try:
        main()
    except BarError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
