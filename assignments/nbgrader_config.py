"""How nbgrader makes, grades and returns the assignments; it reads this file in the folder of the course."""

import sys
from pathlib import Path

import nbgrader

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # for `cutting` and `limiting`, beside this file

c = get_config()  # noqa: F821 (nbgrader hands it over)

c.CourseDirectory.root = str(HERE)
c.CourseDirectory.course_id = "bar"
# A copy of the package that a student hands in would be imported in place of the one that is installed.
c.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", "bar"]

c.Execute.extra_arguments = ["--IPKernelApp.log_level=40"]  # errors; a warning of the kernel is none of the student's
# Processor time and time by the clock of a submission as a whole, in seconds. A cell may take half of what is left:
# what loops for ever is stopped, and the next cell is run. Where the machine is slow or busy, raise them.
c.LimitedExecute.seconds = 16
c.LimitedExecute.seconds_of = {"04_training": 55}
c.LimitedExecute.clock = 300
c.Execute.iopub_timeout = 60  # and seconds for its output to arrive, of which there may be 100 MB; nbgrader's 4 are few
c.OverwriteCells.add_missing_cells = True  # a cell of tests that was deleted is put back
# nbgrader takes whatever a cell of tests writes to stderr for a failure: a warning, a bar of progress
c.IgnorePattern.enabled = True
c.IgnorePattern.pattern = "^"

c.LimitOutput.max_lines = 200
# nbgrader limits lines, not their lengths
c.Autograde.autograde_preprocessors = [
    "limiting.LimitedExecute",
    "nbgrader.preprocessors.IgnorePattern",
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "nbgrader.preprocessors.LimitOutput",
    "cutting.CutOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]

# Pages of feedback that need no network and show no hidden test.
c.HTMLExporter.template_name = "feedback"
formgrader = Path(nbgrader.__file__).parent / "server_extensions" / "formgrader" / "templates"
c.HTMLExporter.extra_template_basedirs = [str(HERE / "templates"), str(formgrader)]
